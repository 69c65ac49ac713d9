"""Padding of tokens, and losses that depend on padding."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from dpaudit.trainer.attach import make_private
from dpaudit.trainer.data_sources.padding import PadTokens
from dpaudit.vocabulary.errors import InvalidArgument

RECORDS = [(torch.arange(1, 3 + n % 5), n % 2) for n in range(40)]


class Mean(nn.Module):
    """Classify by the mean embedding, with or without the padding."""

    def __init__(self, *, masked: bool) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(10, 6), nn.Linear(6, 2)
        self.dropout, self.masked = nn.Dropout(0.1), masked

    def forward(self, tokens: Tensor) -> Tensor:
        kept = (tokens > 0).unsqueeze(-1) if self.masked else torch.ones(*tokens.shape, 1)
        mean = (self.embedding(tokens) * kept).sum(1) / kept.sum(1)
        return self.head(self.dropout(mean))


def losses(model: nn.Module, batch: Any) -> Tensor:
    tokens = batch[0]["input_ids"] if isinstance(batch[0], dict) else batch[0]
    return nn.functional.cross_entropy(model(tokens), batch[1], reduction="none")


def pad_to_longest(records: list[Any]) -> Any:
    tokens = pad_sequence([tokens for tokens, _ in records], batch_first=True)
    return tokens, torch.tensor([label for _, label in records])


def pad_and_mask_at_random(records: list[Any]) -> Any:
    tokens, labels = pad_to_longest(records)
    return tokens * (torch.rand(tokens.shape) < 0.8), labels


def steps_of(masked: bool, collate_fn: Any, steps: int = 6) -> int:
    model = Mean(masked=masked)
    private = make_private(
        model, torch.optim.SGD(model.parameters(), lr=0.1), RECORDS, noise_multiplier=1.0,
        sampling_rate=0.5, expected_batch_size=20, collate_fn=collate_fn,
    )  # fmt: skip
    for batch in private.batches(steps=steps):
        private.step(losses, batch)
    return private.steps


def test_a_loss_that_depends_on_the_longest_record_is_refused_before_anything_is_recorded() -> None:
    with pytest.raises(InvalidArgument, match="padding changes the loss of a record"):
        steps_of(masked=False, collate_fn=pad_to_longest, steps=40)


@pytest.mark.parametrize(
    ("masked", "collate_fn"),
    [(True, pad_to_longest), (False, PadTokens(8)), (True, pad_and_mask_at_random)],
)
def test_a_loss_that_leaves_padding_out_or_has_a_fixed_length_passes(
    masked: bool, collate_fn: Any
) -> None:
    assert steps_of(masked, collate_fn) == 6


def test_tokens_masks_and_labels_are_padded() -> None:
    records = [
        {"input_ids": [5, 6], "attention_mask": [1, 1], "labels": [5, 6], "box": [1, 2, 3], "y": 1},
        {"input_ids": [7, 8], "attention_mask": [1, 0], "labels": [7, 8], "box": [4, 5, 6], "y": 0},
    ]
    batch = PadTokens(3, padding=9)(records)
    assert batch["input_ids"].tolist() == [[5, 6, 9], [7, 8, 9]]
    assert batch["attention_mask"].tolist() == [[1, 1, 0], [1, 0, 0]]
    assert batch["labels"].tolist() == [[5, 6, -100], [7, 8, -100]]
    assert batch["box"].tolist() == [[1, 2, 3], [4, 5, 6]]
    assert batch["y"].tolist() == [1, 0]


@pytest.mark.parametrize("make", [list, np.array, torch.tensor])
def test_sequences_in_tuples_get_a_mask(make: Any) -> None:
    tokens, labels = PadTokens(2)([(make([5]), 1), (make([6, 7, 8]), 0)])
    assert tokens["input_ids"].tolist() == [[5, 0], [6, 7]]
    assert tokens["attention_mask"].tolist() == [[1, 0], [1, 1]]
    assert labels.tolist() == [1, 0]


def test_a_sequence_alone_is_a_record() -> None:
    assert PadTokens(2)([[5], []])["attention_mask"].tolist() == [[1, 0], [0, 0]]


def test_a_dict_without_tokens_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="input_ids"):
        PadTokens(2)([{"tokens": [1, 2]}])


@pytest.mark.parametrize("length", [0, 1.5, None])
def test_a_length_out_of_range_is_refused(length: Any) -> None:
    with pytest.raises(InvalidArgument, match="length"):
        PadTokens(length)
