"""Violations name their cause: steps on copies of a record tell faults apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from dpaudit.attacks import conformance
from dpaudit.vocabulary.verdict import Outcome
from tests.attacks.conformance.reference_trainer import (
    BATCH,
    CLAIM,
    CLIP,
    LITTLE,
    WIDTH,
    Array,
    Plain,
    records,
)


class Divided(Plain):
    """Divides by ``divisor(n)`` where the claim divides by ``BATCH``."""

    def divisor(self, rows: int) -> float:
        return float(BATCH)

    def step(self) -> Array:
        before = self.weights
        update = super().step() * BATCH / self.divisor(len(self.sampled))
        self.weights = before + update
        return np.asarray(update)


class ActualBatchSize(Divided):
    def divisor(self, rows: int) -> float:
        return float(max(rows, 1))


class FlooredBatchSize(Divided):
    def divisor(self, rows: int) -> float:
        return float(max(rows, BATCH))


class ClippedTogether(Plain):
    def step(self) -> Array:
        self.sampled = self.draw()
        rows = [self.gradient(*self.known[i]) for i in self.sampled]
        total = self.clipped(sum(rows, np.zeros(WIDTH + 1)))
        update = CLAIM.update_scale * (total + self.noise())
        self.weights, self.number = self.weights + update, self.number + 1
        return np.asarray(update)


class PerLayer(Plain):
    def clipped(self, gradient: Array) -> Array:
        if not np.isfinite(gradient).all():
            return np.zeros_like(gradient)
        parts = [gradient[:WIDTH], gradient[WIDTH:]]
        norms = [max(float(np.linalg.norm(part)), 1e-12) for part in parts]
        return np.concatenate([p * min(1.0, CLIP / n) for p, n in zip(parts, norms, strict=True)])


class OtherClipNorm(Plain):
    def clipped(self, gradient: Array) -> Array:
        return 1.3 * super().clipped(gradient)


class Unclipped(Plain):
    def clipped(self, gradient: Array) -> Array:
        return np.nan_to_num(gradient)


class CountsTwice(Plain):
    def clipped(self, gradient: Array) -> Array:
        return 2 * super().clipped(gradient)


class DataDependentRate(Divided):
    """The learning rate falls with the mean of the records of the batch."""

    def divisor(self, rows: int) -> float:
        means = [float(np.abs(self.known[i][0]).mean()) for i in self.sampled]
        return BATCH * (1 + sum(mean for mean in means if np.isfinite(mean)))


def included(kind: type[Plain]) -> Any:
    """The trainer accepts ``include``, and noise has its own generator."""

    class Included(kind):  # type: ignore[valid-type,misc]
        chosen: Sequence[int] | None = None

        def step(self, include: Sequence[int] | None = None) -> Array:
            self.chosen = include
            return np.asarray(super().step())

        def draw(self) -> list[int]:
            return super().draw() if self.chosen is None else list(self.chosen)  # type: ignore[no-any-return]

    return Included


CAUSES = {
    ActualBatchSize: "divides by the actual number of records in the batch",
    FlooredBatchSize: "division by the actual batch size in large batches",
    ClippedTogether: "the sum of several records is clipped as a whole",
    PerLayer: "each parameter group is clipped separately",
    OtherClipNorm: "clipped, to 1.3 times the claimed norm",
    Unclipped: "a record's gradients are not clipped: different records",
    CountsTwice: "one record counts 2 times",
    DataDependentRate: "the whole noisy sum was multiplied by",
}


CASES = [
    (kind, accepts)
    for kind in CAUSES
    for accepts in (False, True)
    if (kind, accepts) != (FlooredBatchSize, True)  # its replays have small batches only
]


@pytest.mark.parametrize(("kind", "accepts"), CASES)
def test_replay_names_the_cause(kind: type[Plain], accepts: bool) -> None:
    make = included(kind) if accepts else kind
    result = conformance.check(make, CLAIM, records=records(), effort=LITTLE)
    whys = [f.why for f in result.violations if f.check == "replay"]
    others = [text for other, text in CAUSES.items() if other is not kind]
    assert any(CAUSES[kind] in why for why in whys), [f.why for f in result.violations]
    assert not any(text in why for text in others for why in whys), whys


def test_conforming_trainer_passes_with_and_without_include() -> None:
    make = included(Plain)
    result = conformance.check(make, CLAIM, records=records(), effort=LITTLE)
    assert result.verdict is Outcome.PASS, result.violations
