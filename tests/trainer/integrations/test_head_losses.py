"""Each per-record loss is the loss that the model itself computes for that record alone."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor, nn
from transformers.trainer_pt_utils import LabelSmoother

from dpaudit.trainer.integrations.head_losses import RecordByRecord, loss_of_model
from dpaudit.vocabulary.errors import InvalidArgument

WORDS, TOKENS, RECORDS = 13, 6, 3
BERT = {
    "vocab_size": WORDS,
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 8,
    "max_position_embeddings": 16,
}

Case = tuple[nn.Module, dict[str, Tensor]]


def words() -> Tensor:
    return torch.randint(3, WORDS, (RECORDS, TOKENS))


def partly_ignored(labels: Tensor) -> Tensor:
    """Return labels of which each record has another number."""
    places = torch.arange(labels.shape[1])
    return torch.where(places < torch.tensor([[2], [4], [5]]), labels, -100)


def bert(head: str, **options: Any) -> nn.Module:
    kind = getattr(hf, f"BertFor{head}")
    return kind(hf.BertConfig(**BERT, **options))  # type: ignore[no-any-return]


def causal() -> Case:
    config = hf.GPT2Config(
        vocab_size=WORDS, n_positions=16, n_embd=8, n_layer=1, n_head=2, bos_token_id=0,
        eos_token_id=0,
    )  # fmt: skip
    tokens = words()
    return hf.GPT2LMHeadModel(config), {"input_ids": tokens, "labels": partly_ignored(tokens)}


def masked() -> Case:
    return bert("MaskedLM"), {"input_ids": words(), "labels": partly_ignored(words())}


def sequence_to_sequence() -> Case:
    config = hf.T5Config(
        vocab_size=WORDS, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2,
        decoder_start_token_id=0,
    )  # fmt: skip
    model = hf.T5ForConditionalGeneration(config)
    return model, {"input_ids": words(), "labels": partly_ignored(words())}


def tokens() -> Case:
    labels = partly_ignored(torch.randint(0, 3, (RECORDS, TOKENS)))
    return bert("TokenClassification", num_labels=3), {"input_ids": words(), "labels": labels}


def classes() -> Case:
    labels = torch.randint(0, 3, (RECORDS,))
    return bert("SequenceClassification", num_labels=3), {"input_ids": words(), "labels": labels}


def several_labels() -> Case:
    labels = torch.randint(0, 2, (RECORDS, 3)).float()
    return bert("SequenceClassification", num_labels=3), {"input_ids": words(), "labels": labels}


def values() -> Case:
    labels = torch.randn(RECORDS)
    return bert("SequenceClassification", num_labels=1), {"input_ids": words(), "labels": labels}


def answers() -> Case:
    places = {"start_positions": torch.tensor([0, 2, 9]), "end_positions": torch.tensor([1, 5, 9])}
    return bert("QuestionAnswering"), {"input_ids": words(), **places}


CASES = [causal, masked, sequence_to_sequence, tokens, classes, several_labels, values, answers]


def one(batch: dict[str, Tensor], record: int) -> dict[str, Tensor]:
    return {name: part[record : record + 1] for name, part in batch.items()}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_each_loss_is_that_of_the_model_for_the_record_alone(case: Callable[[], Case]) -> None:
    torch.manual_seed(0)
    model, batch = case()
    model.eval()
    loss = loss_of_model(model, 0.0)
    with torch.no_grad():
        found = loss(model, batch)
        own = torch.stack([model(**one(batch, record)).loss for record in range(RECORDS)])
    if case is answers:  # the model's own mean of no answer is NaN
        assert own[2].isnan()
        assert found[2] == 0
        found, own = found[:2], own[:2]
    torch.testing.assert_close(found, own)
    assert loss.agrees_with(model, batch)


@pytest.mark.parametrize("case", [causal, masked, classes], ids=lambda case: case.__name__)
def test_label_smoothing_is_that_of_the_trainer(case: Callable[[], Case]) -> None:
    torch.manual_seed(1)
    model, batch = case()
    model.eval()
    smoother = LabelSmoother(epsilon=0.2)
    with torch.no_grad():
        found = loss_of_model(model, 0.2)(model, batch)
        for record in range(RECORDS):
            alone = one(batch, record)
            outputs = model(input_ids=alone["input_ids"])
            own = smoother(outputs, alone["labels"], shift_labels=case is causal)
            torch.testing.assert_close(found[record], own.float())


def test_a_loss_function_of_the_user_gets_one_record_at_a_time() -> None:
    torch.manual_seed(2)
    model, batch = masked()
    model.eval()
    seen = []

    def compute(outputs: Any, labels: Tensor, num_items_in_batch: object = None) -> Tensor:
        seen.append((outputs.logits.shape[0], len(labels), num_items_in_batch))
        return nn.functional.cross_entropy(outputs.logits.flatten(0, 1), labels.flatten())

    loss = loss_of_model(model, 0.0, compute)
    torch.testing.assert_close(loss(model, batch), loss_of_model(model, 0.0)(model, batch))
    assert seen == [(1, 1, None)] * RECORDS
    assert loss.agrees_with(model, batch)  # nothing to compare with


def test_an_empty_batch_and_a_record_without_labels_are_not_compared() -> None:
    model, batch = masked()
    nothing = {name: part[:0] for name, part in batch.items()}
    assert RecordByRecord(lambda *_, **__: torch.zeros(()))({}, nothing, 0.0).shape == (0,)
    assert not loss_of_model(model, 0.0).agrees_with(
        model, {**batch, "labels": torch.full_like(batch["labels"], -100)}
    )
    assert not loss_of_model(model, 0.0).agrees_with(model, nothing)


def test_a_head_whose_loss_is_not_known_is_refused() -> None:
    model = nn.Linear(2, 2)
    model.loss_type = "ForObjectDetection"
    with pytest.raises(InvalidArgument, match=r"per_record_loss=.* its loss is ForObjectDetection"):
        loss_of_model(model, 0.0)


class WithPenalty(nn.Module):
    """A model whose own loss has a further term."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.loss_type, self.config = model, "ForMaskedLM", SimpleNamespace()

    def forward(self, **inputs: Any) -> Any:
        outputs = self.model(**inputs)
        outputs["loss"] = outputs["loss"] + 0.3
        return outputs


def test_a_model_whose_own_loss_has_further_terms_is_refused() -> None:
    model, batch = masked()
    other = WithPenalty(model)
    with pytest.raises(InvalidArgument, match=r"per_record_loss=.* its own loss is"):
        loss_of_model(other, 0.0).agrees_with(other, batch)
