"""Clipping that stops at a late step is detected, and the power covers only tested steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
import pytest

from dpaudit.attacks import conformance
from dpaudit.attacks.conformance.clipping_coverage import LATER_STEPS_FINDING
from dpaudit.vocabulary.conformance import ConformanceFinding, ConformanceResult, StepClaim
from dpaudit.vocabulary.verdict import Outcome
from tests.attacks.conformance import saturating_trainers as models
from tests.attacks.conformance.reference_trainer import (
    CLAIM,
    CLIP,
    LITTLE,
    STEPS,
    Array,
    Plain,
    records,
)

LONG = msgspec.structs.replace(CLAIM, steps=400)


def audited(make: Any, claim: StepClaim = CLAIM, seed: int = 0) -> ConformanceResult:
    return conformance.check(make, claim, records=records(), effort=LITTLE, seed=seed)


def of(result: ConformanceResult, name: str) -> ConformanceFinding:
    (found,) = [finding for finding in result.findings if finding.name == name]
    return found


class Named(Plain):
    """Accepts ``include``."""

    least = 0

    def step(self, include: Sequence[int] | None = None) -> Array:
        self.include = include
        if include is not None and len(include) < self.least:
            raise ValueError("an empty batch")
        return super().step()

    def draw(self) -> list[int]:
        return super().draw() if self.include is None else list(self.include)


class NeedsRecords(Named):
    least = 1


class NeedsData(Plain):
    def __init__(self, known: Sequence[Any], seed: int) -> None:
        super().__init__(known, seed)
        self.width = len(known[0][0])


class Silent(Plain):
    def step(self) -> Array:
        update = super().step()
        self.sampled = None
        return update


def grows(kind: type[Plain], start: int, times: float) -> type[Plain]:
    """From step ``start``, multiply the clip norm by ``times``; infinity means no clipping."""

    class Grows(kind):  # type: ignore[valid-type,misc]
        def clipped(self, gradient: Array) -> Array:
            norm = float(np.linalg.norm(gradient))
            if self.number < start or not 0 < norm < np.inf:
                return np.asarray(super().clipped(gradient))
            return np.asarray(gradient * min(1.0, times * CLIP / norm))

    return Grows


@pytest.mark.parametrize("kind", [Plain, Named, NeedsRecords, NeedsData, Silent])
@pytest.mark.parametrize(("start", "times"), [(13, np.inf), (13, 10.0), (19, np.inf), (16, 1.5)])
def test_clipping_that_stops_or_grows_late_is_detected(
    kind: type[Plain], start: int, times: float
) -> None:
    result = audited(grows(kind, start, times))
    assert result.verdict is Outcome.FAIL
    assert [finding.name for finding in result.violations] == [LATER_STEPS_FINDING]
    assert "and not at the first steps" in result.violations[0].why


@pytest.mark.parametrize("kind", [Plain, Named, NeedsRecords, NeedsData])
@pytest.mark.parametrize("seed", range(3))
def test_constant_clipping_passes(kind: type[Plain], seed: int) -> None:
    result = audited(kind, seed=seed)
    assert result.verdict is Outcome.PASS, result.findings
    assert of(result, LATER_STEPS_FINDING).norm == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize("kind", [Plain, Named])
def test_power_covers_only_tested_steps(kind: type[Plain]) -> None:
    last = LITTLE.longest_run - 1
    result = audited(kind, LONG)
    assert result.verdict is Outcome.PASS, result.findings
    found = of(result, LATER_STEPS_FINDING)
    assert f"of 0 to {LONG.steps - 1}" in found.tested
    assert "later steps are not tested" in found.power
    named = int(found.power.split("the last is step ")[1].split(";")[0])
    assert 0.9 * last <= named <= last
    assert of(result, "clipping").power.endswith(f"at steps up to {named}")
    assert audited(grows(kind, named, np.inf), LONG).verdict is Outcome.FAIL


def test_steps_of_a_long_run_are_limited() -> None:
    longest = 0

    class Counted(Plain):
        def step(self) -> Array:
            nonlocal longest
            longest = max(longest, self.number + 1)
            return super().step()

    effort = conformance.Effort(noise_samples=5_000, sampler_steps=24, longest_run=30)
    conformance.check(
        Counted, msgspec.structs.replace(LONG, steps=9_000), records=records(), effort=effort
    )
    assert longest <= effort.longest_run


def test_missing_late_steps_are_reported() -> None:
    class Never(NeedsData, Silent):
        pass

    result = audited(Never)
    assert LATER_STEPS_FINDING not in {finding.name for finding in result.findings}
    power = of(result, "clipping").power
    assert int(power.split("at steps up to ")[1]) < STEPS / 2


def test_searched_record_is_followed_to_later_steps() -> None:
    norm = 10.0
    clip = models.clipped_to(norm)

    class Stops(models.trainer(models.tanh_network, clip, norm, models.TANH_GROUPS)):  # type: ignore[misc]
        pass

    effort = conformance.Effort(noise_samples=10_000, replays=1, sampler_steps=72)
    result = conformance.check(Stops, models.claim(norm), records=models.records(), effort=effort)
    assert result.verdict is Outcome.PASS, result.findings
    assert "at steps up to" in of(result, "clipping").power
