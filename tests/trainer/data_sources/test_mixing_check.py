"""Data sets and collate functions that mix records are refused; those that do not are used."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, default_collate

from dpaudit.trainer import Private, make_private
from dpaudit.vocabulary.errors import InvalidArgument

Record = tuple[Tensor, int]


class Records(Dataset[Record]):
    """Records by index."""

    def __len__(self) -> int:
        return 200

    def __getitem__(self, number: int) -> Record:
        return torch.randn(4, generator=torch.Generator().manual_seed(number)), number % 2


class Together(Records):
    """Records that are read together, each by itself."""

    def __getitems__(self, numbers: Sequence[int]) -> list[Record]:
        return [self[number] for number in numbers]


class Centered(Together):
    """Records without the mean of those that are read together."""

    def __getitems__(self, numbers: Sequence[int]) -> list[Record]:
        records = super().__getitems__(numbers)
        mean = torch.stack([x for x, _ in records]).mean(dim=0)
        return [(x - mean, label) for x, label in records]


def _loss(model: nn.Module, batch: Any) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")


def _private(data: Any, collate_fn: Callable[[list[Any]], Any] | None) -> Private:
    torch.manual_seed(0)
    model = nn.Linear(4, 2)
    return make_private(
        model, torch.optim.SGD(model.parameters(), 0.1), data, noise_multiplier=1.0, steps=10,
        dataset_size=200, expected_batch_size=20, collate_fn=collate_fn, seed=0,
    )  # fmt: skip


def _standardized(records: list[Record]) -> list[Tensor]:
    x, labels = default_collate(records)
    return [x - x.mean(dim=0), labels]


def _mixup(records: list[Record]) -> list[Tensor]:
    x, labels = default_collate(records)
    share = torch.rand(())
    return [share * x + (1 - share) * x[torch.randperm(len(x))], labels]


def _counted(records: list[Record]) -> list[Tensor]:
    x, labels = default_collate(records)
    return [x * len(x), labels]


class OwnMixup:
    """Mixup with a generator of its own."""

    def __init__(self) -> None:
        self._numbers = np.random.default_rng(0)

    def __call__(self, records: list[Record]) -> list[Tensor]:
        x, labels = default_collate(records)
        return [x + 0.1 * x[torch.from_numpy(self._numbers.permutation(len(x)))], labels]


def _noisy(records: list[Record]) -> list[Tensor]:
    x, labels = default_collate(records)
    return [x + torch.randn(x.shape), labels]


def _cropped(records: list[Record]) -> list[Tensor]:
    """Draws other random numbers for other records."""
    for x, _ in records:
        for _ in range(1 + int(x[0] > 0)):
            x.add_(torch.randn(4))
    return list(default_collate(records))


@pytest.mark.parametrize("collate_fn", [_standardized, _mixup, _counted, OwnMixup()])
def test_a_collate_function_that_mixes_records_is_refused(
    collate_fn: Callable[[list[Any]], Any],
) -> None:
    private = _private(Records(), collate_fn)
    with pytest.raises(InvalidArgument, match="collate_fn must be without operations over"):
        next(iter(private.batches()))


def test_a_data_set_that_mixes_what_is_read_together_is_refused() -> None:
    private = _private(Centered(), None)
    with pytest.raises(InvalidArgument, match="data must be without operations over"):
        next(iter(private.batches()))


@pytest.mark.parametrize(
    ("data", "collate_fn"),
    [(Records(), default_collate), (Records(), _noisy), (Records(), _cropped), (Together(), None)],
)
def test_others_are_used(data: Any, collate_fn: Callable[[list[Any]], Any] | None) -> None:
    private = _private(data, collate_fn)
    for batch in private.batches():
        private.step(_loss, batch)
    assert private.steps == 10
