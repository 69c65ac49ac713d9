"""Noise that is too low only in steps with records is detected; claimed noise passes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
import pytest

from dpaudit.attacks import conformance
from dpaudit.attacks.conformance.noise_distribution import COPIES_FINDING, SAMPLED_FINDING
from dpaudit.attacks.conformance.statistical_tests import (
    LEVEL_PER_FINDING,
    detectable_low_scale,
    low_variance_p_values,
)
from dpaudit.vocabulary.conformance import ConformanceFinding, ConformanceResult
from dpaudit.vocabulary.ledger import Sampling
from dpaudit.vocabulary.verdict import Outcome
from tests.attacks.conformance.reference_trainer import CLAIM, LITTLE, Array, Plain, records
from tests.planted_bugs.parts import checks_alone


class Named(Plain):
    def step(self, include: Sequence[int] | None = None) -> Array:
        self.include = include
        return super().step()

    def draw(self) -> list[int]:
        return super().draw() if self.include is None else list(self.include)


class Random(Plain):
    """Weights depend on the seed, so copies add different amounts under different seeds."""

    def __init__(self, known: Sequence[Any], seed: int) -> None:
        super().__init__(known, seed)
        self.weights = np.random.default_rng(seed).normal(size=len(self.weights))


def by_size(factor: Any, kind: type[Plain] = Plain) -> type[Plain]:
    class BySize(kind):  # type: ignore[valid-type,misc]
        def noise(self) -> Array:
            return np.asarray(factor(len(self.sampled)) * super().noise())

    return BySize


LOW = {
    "a tenth from 4 on": lambda size: 0.1 if size >= 4 else 1.0,
    "a tenth from 6 on": lambda size: 0.1 if size >= 6 else 1.0,
    "half from 1 on": lambda size: 0.5 if size else 1.0,
    "half above 9": lambda size: 0.5 if size > 9 else 1.0,
    "divided by microbatches of 3": lambda size: 1 / max(1, math.ceil(size / 3)),
    "divided by microbatches of 4": lambda size: 1 / max(1, math.ceil(size / 4)),
    "divided by microbatches of 6": lambda size: 1 / max(1, math.ceil(size / 6)),
}


def audited(make: Any, seed: int = 0, **claimed: Any) -> ConformanceResult:
    claim = msgspec.structs.replace(CLAIM, **claimed)
    effort = conformance.Effort(noise_samples=20_000, replays=1)
    return conformance.check(make, claim, records=records(), effort=effort, seed=seed)


def named(result: ConformanceResult, name: str) -> ConformanceFinding:
    (found,) = [finding for finding in result.findings if finding.name == name]
    return found


def low_noise(make: Any, seed: int = 0, **claimed: Any) -> set[str]:
    """Return the names of the violations that the checks of noise find, which run alone."""
    with checks_alone("noise"):
        return {finding.name for finding in audited(make, seed, **claimed).violations}


@pytest.mark.parametrize("name", LOW)
@pytest.mark.parametrize("kind", [Plain, Named])
@pytest.mark.parametrize("seed", [0, 1])
def test_low_noise_at_some_batch_sizes_is_detected(name: str, kind: type[Plain], seed: int) -> None:
    found = low_noise(by_size(LOW[name], kind), seed)
    assert {SAMPLED_FINDING, COPIES_FINDING} & found


@pytest.mark.parametrize("kind", [Plain, Named, Random])
@pytest.mark.parametrize("seed", range(4))
def test_claimed_noise_passes(kind: type[Plain], seed: int) -> None:
    result = audited(kind, seed)
    assert result.verdict is Outcome.PASS, result.findings
    assert "records" in named(result, COPIES_FINDING).tested


def test_full_batches_are_tested() -> None:
    class Full(Plain):
        def draw(self) -> list[int]:
            return list(range(len(self.known)))

    claimed: dict[str, Any] = {"sampling_rate": 1.0, "sampling": Sampling.FULL_BATCH}
    assert audited(Full, **claimed).verdict is Outcome.PASS
    low = by_size(lambda size: 0.3 if size > 12 else 1.0, Full)
    assert COPIES_FINDING in low_noise(low, **claimed)


def test_unknown_batches_are_inconclusive() -> None:
    class Silent(Plain):
        def step(self) -> Array:
            update = super().step()
            self.sampled = None
            return update

    found = named(
        conformance.check(Silent, CLAIM, records=records(), effort=LITTLE), SAMPLED_FINDING
    )
    assert found.outcome is Outcome.INCONCLUSIVE
    assert "only steps without records are tested" in found.why


@pytest.mark.parametrize("rate", [0.004, 0.01])
def test_rare_records_are_tested_as_copies(rate: float) -> None:
    class Rare(Plain):
        def draw(self) -> list[int]:
            coins = np.random.default_rng([self.seed, self.number, 1]).random(len(self.known))
            return np.flatnonzero(coins < rate).tolist()

    claimed: dict[str, Any] = {"sampling_rate": rate, "steps": 300}
    result = audited(Rare, **claimed)
    assert result.verdict is Outcome.PASS, result.findings
    low = by_size(lambda size: 0.3 if size else 1.0, Rare)
    assert COPIES_FINDING in low_noise(low, **claimed)


def test_power_is_reduced_by_what_records_may_hide() -> None:
    assert detectable_low_scale(31, LEVEL_PER_FINDING, 31.0) == 1.0
    few, many = (detectable_low_scale(1_000, LEVEL_PER_FINDING, shift) for shift in (1.0, 100.0))
    assert detectable_low_scale(1_000, LEVEL_PER_FINDING) < few < many < 1


@pytest.mark.parametrize(("samples", "shift"), [(300, 0.0), (300, 40.0), (20_000, 2_000.0)])
def test_low_noise_is_detected_at_the_stated_power(samples: int, shift: float) -> None:
    """Records add the allowed amount; claimed noise is rarely rejected."""
    rng, repetitions = np.random.default_rng(samples), 2_000
    factor = 1 - detectable_low_scale(samples, LEVEL_PER_FINDING, shift)
    noncentral = (rng.normal(size=repetitions) * factor + math.sqrt(shift)) ** 2
    sums = noncentral + factor**2 * rng.chisquare(samples - 1, repetitions)
    counts = np.full(repetitions, samples)
    assert (low_variance_p_values(sums, counts) <= LEVEL_PER_FINDING).mean() > 0.93
    honest = (rng.normal(size=repetitions) + math.sqrt(shift)) ** 2
    honest += rng.chisquare(samples - 1, repetitions)
    assert (low_variance_p_values(honest, counts) <= 0.01).mean() < 0.02
