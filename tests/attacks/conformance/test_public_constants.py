"""Numbers derived from the size of the data set change with one record: they are not public."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import msgspec
import pytest

from dpaudit.attacks import conformance
from dpaudit.vocabulary.conformance import ConformanceFinding, ConformanceResult, StepClaim
from dpaudit.vocabulary.errors import InvalidArgument
from dpaudit.vocabulary.privacy_terms import Adjacency
from dpaudit.vocabulary.verdict import Outcome
from tests.attacks.conformance.reference_trainer import (
    BATCH,
    CLAIM,
    LITTLE,
    RATE,
    RECORDS,
    Array,
    Plain,
    Record,
    records,
)

REPLACED = msgspec.structs.replace(CLAIM, adjacency=Adjacency.REPLACE_ONE)


class Derives(Plain):
    """Divides by the rate times the number of records; accepts ``include``."""

    def __init__(self, known: Sequence[Record], seed: int) -> None:
        super().__init__(known, seed)
        self.constants = {"the expected batch size": RATE * len(known), "the sampling rate": RATE}
        self.include: Sequence[int] | None = None

    def step(self, include: Sequence[int] | None = None) -> Array:  # type: ignore[override]
        self.include = include
        return super().step() * BATCH / (RATE * len(self.known))

    def draw(self) -> list[int]:
        return super().draw() if self.include is None else list(self.include)


class Sized:
    """Makes trainers for a data set of a given size."""

    def __init__(self, kind: type[Plain], size: int) -> None:
        self.kind, self.dataset_size = kind, size
        self.made: list[int] = []

    def __call__(self, known: Sequence[Record], seed: int) -> Plain:
        self.made.append(len(known))
        return self.kind(known, seed)


def audited(make: conformance.MakeTrainer, claim: StepClaim = CLAIM) -> ConformanceResult:
    return conformance.check(make, claim, records=records(), effort=LITTLE)


def constants(result: ConformanceResult) -> ConformanceFinding:
    (found,) = [finding for finding in result.findings if finding.name == "public constants"]
    return found


def test_divisor_that_differs_between_neighbors_is_rejected() -> None:
    result = audited(Sized(Derives, RECORDS))
    assert result.verdict is Outcome.FAIL
    assert constants(result).outcome is Outcome.FAIL
    assert "the expected batch size is 5.75, 6, 6.25 for 23, 24, 25" in constants(result).why


def test_divisor_of_the_data_set_is_public_under_replace_one() -> None:
    result = audited(Sized(Derives, RECORDS), REPLACED)
    assert result.verdict is Outcome.PASS, result.findings
    assert constants(result).outcome is Outcome.PASS


def test_sized_trainer_is_made_only_with_its_neighboring_sizes() -> None:
    make = Sized(Derives, RECORDS)
    audited(make)
    assert set(make.made) == {RECORDS - 1, RECORDS, RECORDS + 1}


@pytest.mark.parametrize("adjacency", list(Adjacency)[:2])
def test_sized_trainer_that_does_not_clip_is_rejected(adjacency: Adjacency) -> None:
    class Unclipped(Derives):
        def clipped(self, gradient: Array) -> Array:
            return gradient

    claim = msgspec.structs.replace(CLAIM, adjacency=adjacency)
    result = audited(Sized(Unclipped, RECORDS), claim)
    assert any("not clipped" in finding.why for finding in result.violations)


def test_rate_that_is_not_the_claimed_one_is_rejected() -> None:
    class Other(Derives):
        def __init__(self, known: Sequence[Record], seed: int) -> None:
            super().__init__(known, seed)
            self.constants = {"the sampling rate": RATE / 2}

    found = constants(audited(Sized(Other, RECORDS), REPLACED))
    assert found.outcome is Outcome.FAIL
    assert "0.125; the claim is 0.25" in found.why


def test_unchanged_constants_pass() -> None:
    class Fixed(Plain):
        constants: ClassVar = {"the expected batch size": BATCH}

    assert constants(audited(Fixed)).outcome is Outcome.PASS


def test_invalid_dataset_size_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="dataset_size"):
        audited(Sized(Derives, 1))


def test_sized_trainer_must_accept_include() -> None:
    with pytest.raises(InvalidArgument, match="include"):
        audited(Sized(Plain, RECORDS))
