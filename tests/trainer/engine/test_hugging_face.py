"""Transformers as Hugging Face writes them, tiny and with random weights: nothing is downloaded."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from dpaudit.trainer.engine import Engine, Flat, PerSampleLoss
from dpaudit.trainer.engine.batch_structure import Batch
from tests.trainer.engine.networks import RECORDS, labels
from tests.trainer.engine.oracle import per_record, relative_gap

transformers = pytest.importorskip("transformers")

TOKENS, LENGTH, WIDTH = 13, 6, 8


def gpt2() -> nn.Module:
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=TOKENS, n_positions=12, n_embd=WIDTH, n_layer=2, n_head=2,
            resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, use_cache=False,
        )
    )  # fmt: skip


def llama() -> nn.Module:
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=TOKENS, hidden_size=WIDTH, intermediate_size=16, num_hidden_layers=2,
            num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=12,
            use_cache=False, attn_implementation="eager",
        )
    )  # fmt: skip


def bert(attention: str) -> nn.Module:
    return transformers.BertForSequenceClassification(
        transformers.BertConfig(
            vocab_size=TOKENS, hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=2,
            intermediate_size=16, max_position_embeddings=12, num_labels=3,
            hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
            attn_implementation=attention,
        )
    )  # fmt: skip


def next_tokens(model: nn.Module, batch: Batch) -> Tensor:
    scores = model(input_ids=batch["input_ids"]).logits[:, :-1].transpose(1, 2)
    losses = functional.cross_entropy(scores, batch["input_ids"][:, 1:], reduction="none")
    return losses.mean(dim=1)


def classes(model: nn.Module, batch: dict[str, Any]) -> Tensor:
    scores = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    return functional.cross_entropy(scores, batch["labels"], reduction="none")


MODELS = {
    "gpt2": (gpt2, next_tokens),
    "llama": (llama, next_tokens),
    "bert": (lambda: bert("eager"), classes),
    "bert with torch's attention": (lambda: bert("sdpa"), classes),
}


@pytest.mark.parametrize("length", [RECORDS, LENGTH])
@pytest.mark.parametrize("chunk", [None, 2])
@pytest.mark.parametrize("name", MODELS)
def test_the_sum_is_that_of_a_loop_over_records(name: str, chunk: int | None, length: int) -> None:
    make: Any
    loss: PerSampleLoss
    make, loss = MODELS[name]
    torch.manual_seed(0)
    model = make().train()
    lengths = torch.randint(1, length + 1, (RECORDS, 1))
    batch = {
        "input_ids": torch.randint(0, TOKENS, (RECORDS, length)),
        "attention_mask": (torch.arange(length) < lengths).long(),
        "labels": labels(RECORDS),
    }
    gradients = per_record(model, loss, batch)
    engine = Engine(model, loss)
    for clipping in (Flat(float(gradients.norms.median())), Flat(1e6)):
        got = engine.clipped_sum(batch, clipping, chunk)
        assert relative_gap(got.sums, gradients.clipped_sum(clipping)) <= 1e-5
        assert torch.allclose(got.norms, gradients.norms, rtol=1e-5, atol=0.0)
