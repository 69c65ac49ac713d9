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


SMALL = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24,
}  # fmt: skip
UNDROPPED = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
LANGUAGE = {"vocab_size": TOKENS, "max_position_embeddings": 12, "use_cache": False}
IMAGE = {"image_size": 8, "patch_size": 4, "num_labels": 3}


def made(name: str, config: str, **settings: Any) -> nn.Module:
    model: nn.Module = getattr(transformers, name)(getattr(transformers, config)(**settings))
    return model


def translations(model: nn.Module, batch: Batch) -> Tensor:
    tokens = batch["input_ids"]
    scores = model(input_ids=tokens, decoder_input_ids=tokens.flip(1)).logits.transpose(1, 2)
    return functional.cross_entropy(scores, tokens, reduction="none").mean(dim=1)


def images(model: nn.Module, batch: Batch) -> Tensor:
    scores = model(pixel_values=batch["pixels"]).logits
    return functional.cross_entropy(scores, batch["labels"], reduction="none")


FAST = {
    "gemma 2": (lambda: made("Gemma2ForCausalLM", "Gemma2Config", **SMALL, **LANGUAGE, head_dim=8,
                             num_key_value_heads=1), next_tokens),
    "mixtral": (lambda: made("MixtralForCausalLM", "MixtralConfig", **SMALL, **LANGUAGE,
                             num_key_value_heads=1, num_local_experts=3), next_tokens),
    "mamba": (lambda: made("MambaForCausalLM", "MambaConfig", vocab_size=TOKENS, hidden_size=16,
                           state_size=4, num_hidden_layers=1, use_cache=False), next_tokens),
    "t5": (lambda: made("T5ForConditionalGeneration", "T5Config", vocab_size=TOKENS, d_model=16,
                        d_kv=8, d_ff=24, num_layers=1, num_heads=2, dropout_rate=0.0),
           translations),
    "deberta": (lambda: made("DebertaV2ForSequenceClassification", "DebertaV2Config", **SMALL,
                             **UNDROPPED, vocab_size=TOKENS, max_position_embeddings=12,
                             relative_attention=True, pos_att_type=["p2c", "c2p"],
                             position_buckets=4, norm_rel_ebd="layer_norm", share_att_key=True,
                             pooler_dropout=0.0, num_labels=3), classes),
    "vit": (lambda: made("ViTForImageClassification", "ViTConfig", **SMALL, **UNDROPPED, **IMAGE),
            images),
    "swin": (lambda: made("SwinForImageClassification", "SwinConfig", **UNDROPPED, image_size=8,
                          patch_size=1, embed_dim=8, depths=[2], num_heads=[2], window_size=4,
                          num_labels=3, drop_path_rate=0.0), images),
}  # fmt: skip


@pytest.mark.parametrize("name", FAST)
def test_no_parameter_of_a_public_model_is_taken_record_by_record(name: str) -> None:
    make: Any
    loss: PerSampleLoss
    make, loss = FAST[name]
    torch.manual_seed(0)
    model = make().train()
    batch = {
        "input_ids": torch.randint(0, TOKENS, (RECORDS, LENGTH)),
        "attention_mask": torch.ones(RECORDS, LENGTH, dtype=torch.long),
        "pixels": torch.randn(RECORDS, 3, 8, 8),
        "labels": labels(RECORDS),
    }
    gradients, engine = per_record(model, loss, batch), Engine(model, loss)
    clipping = Flat(float(gradients.norms.median()))
    got = engine.clipped_sum(batch, clipping)
    assert relative_gap(got.sums, gradients.clipped_sum(clipping)) <= 1e-5
    assert torch.allclose(got.norms, gradients.norms, rtol=1e-5, atol=0.0)
    assert engine.record_by_record == ()


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
