"""Transforms of batches: changes of each record pass, mixing of records is refused."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dpaudit.trainer.batches.grouped_records import RecordGroups
from dpaudit.trainer.engine import Engine
from dpaudit.trainer.engine.transforms import FIRST_TESTS, TransformTest
from dpaudit.vocabulary.errors import InvalidArgument

RECORDS = 20
Pair = tuple[Tensor, Tensor]


def some_records(records: int = RECORDS) -> Pair:
    return torch.randn(records, 3, 4), torch.arange(records) % 3


def flipped(batch: Pair) -> Pair:
    x, y = batch
    keep = torch.rand(len(x)) < 0.5
    return torch.where(keep[:, None, None], x, x.flip(2)), y


def jittered_by_numpy(batch: Pair) -> Pair:
    x, y = batch
    return x + torch.from_numpy(np.random.standard_normal(x.shape)), y  # noqa: NPY002


def shifted_by_python(batch: Pair) -> Pair:
    return torch.stack([row.roll(random.randrange(4), 1) for row in batch[0]]), batch[1]


def views(batch: Pair) -> RecordGroups:
    x, y = batch
    rows = x[:, None] + 0.1 * torch.randn(len(x), 4, 3, 4)
    return RecordGroups((rows, y[:, None].expand(-1, 4)), torch.full((len(x), 4), 0.25))


def named(batch: Pair) -> dict[str, Any]:
    return {"x": batch[0].half(), "names": [f"class {int(label)}" for label in batch[1]]}


def in_place(batch: Pair) -> Pair:
    batch[0].mul_(2)
    return batch


class Counting:
    """Adds more noise in later batches, from a generator of its own."""

    def __init__(self) -> None:
        self.batches, self.generator = 0, np.random.default_rng(0)

    def __call__(self, batch: Pair) -> Pair:
        self.batches += 1
        noise = torch.from_numpy(self.generator.standard_normal(batch[0].shape))
        return batch[0] + self.batches * noise, batch[1]


APART: dict[str, Callable[[Any], Any]] = {
    "normalized by constants": lambda batch: ((batch[0] - 0.1) / 0.3, batch[1]),
    "standardized per record": lambda batch: (
        (batch[0] - batch[0].mean((1, 2), keepdim=True)) / batch[0].std((1, 2), keepdim=True),
        batch[1],
    ),
    "one flip for all records": lambda batch: (
        batch[0].flip(2) if random.random() < 0.5 else batch[0],
        batch[1],
    ),
    "flipped at random": flipped,
    "jittered by numpy": jittered_by_numpy,
    "shifted by python": shifted_by_python,
    "views of each record": views,
    "another structure": named,
    "changed in place": in_place,
    "a module with dropout": lambda batch: (nn.functional.dropout(batch[0], 0.5), batch[1]),
    "own generator and a counter": Counting(),
}


@pytest.mark.parametrize("name", APART)
@pytest.mark.parametrize("records", [RECORDS, 2, 1])
def test_changes_of_each_record_pass(name: str, records: int) -> None:
    test = TransformTest()
    for _ in range(3):
        test.require_independent(APART[name], some_records(records))


def mixup(batch: Pair) -> Pair:
    x, y = batch
    share = np.random.beta(0.2, 0.2)  # noqa: NPY002
    return share * x + (1 - share) * x[torch.randperm(len(x))], y


def cutmix(batch: Pair) -> Pair:
    x = batch[0].clone()
    x[:, 0] = x.roll(1, 0)[:, 0]
    return x, batch[1]


class Running:
    """Standardizes by running statistics."""

    def __init__(self) -> None:
        self.mean = torch.zeros(3, 4)

    def __call__(self, batch: Pair) -> Pair:
        before, self.mean = self.mean, 0.9 * self.mean + 0.1 * batch[0].mean(0)
        return batch[0] - before, batch[1]


MIXED: dict[str, tuple[Callable[[Any], Any], str]] = {
    "mixup": (mixup, "other records"),
    "mixup sometimes": (
        lambda batch: mixup(batch) if random.random() < 0.9 else batch, "other records"),
    "cutmix": (cutmix, "other records"),
    "standardized over the batch": (
        lambda batch: ((batch[0] - batch[0].mean(0)) / batch[0].std(0), batch[1]),
        "other records",
    ),
    "scaled by the largest": (lambda batch: (batch[0] / batch[0].amax(), batch[1]), "other reco"),
    "labels of others": (lambda batch: (batch[0], batch[1].roll(1)), "other records"),
    "names of others": (lambda batch: {"x": batch[0], "y": batch[1].sort().values.tolist()},
                        "other records"),
    "cut to a common length": (
        lambda batch: (batch[0][:, :, : 2 + int(1e4 * batch[0].sum()) % 2], batch[1]),
        "other records",
    ),
    "running statistics": (Running(), "earlier batches"),
    "times the count": (lambda batch: (batch[0] * len(batch[0]), batch[1]), "number of records"),
    "duplicates": (lambda batch: tuple(torch.cat([part, part]) for part in batch), "40 records|32"),
    "filter": (lambda batch: tuple(part[1:] for part in batch), "records of"),
    "raises": (lambda batch: batch[0].no_such, "AttributeError"),
    "from the system": (
        lambda batch: (batch[0] + random.SystemRandom().random(), batch[1]), "runs again"),
}  # fmt: skip


@pytest.mark.parametrize("name", MIXED)
def test_mixing_is_refused(name: str) -> None:
    transform, why = MIXED[name]
    torch.manual_seed(0)

    def try_batches() -> None:
        test = TransformTest()
        # Each batch gives mixing at random another chance to be seen: 4 rounds, then 1 each.
        for _ in range(FIRST_TESTS):
            test.require_independent(transform, some_records())

    with pytest.raises(InvalidArgument, match=why):
        try_batches()


def test_the_test_leaves_batch_and_generators_as_they_were() -> None:
    batch = some_records()
    before = batch[0].clone()
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    counting = Counting()
    held = counting.generator.bit_generator.state
    for transform in (in_place, jittered_by_numpy, flipped, shifted_by_python, counting):
        TransformTest().require_independent(transform, batch)
    assert torch.equal(batch[0], before)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert np.random.get_state()[1].tolist() == states[2]  # noqa: NPY002
    assert counting.generator.bit_generator.state == held
    assert counting.batches == 0


def test_new_transforms_and_shapes_are_tested_in_full() -> None:
    calls = [0]

    def counted(batch: Pair) -> Pair:
        calls[0] += 1
        return batch

    engine, found = Engine(nn.Linear(2, 2), lambda *_: torch.zeros(())), []
    for batch in (some_records(), some_records(), (torch.randn(RECORDS, 5), torch.zeros(RECORDS))):
        before = calls[0]
        engine.require_independent_transform(counted, batch)
        found.append(calls[0] - before)
    assert found[0] == found[2]
    assert found[1] == 3  # twice the batch, and once with another record
    assert found[0] > 20
    engine.require_independent_transform(counted, (torch.zeros(0, 5), torch.zeros(0)))
    assert calls[0] == sum(found)
