"""Mistakes of an adapter are inconclusive, with what to correct; faults beside them are found."""

from __future__ import annotations

import numpy as np
import pytest

from dpaudit.attacks import conformance
from dpaudit.vocabulary.conformance import ConformanceResult
from dpaudit.vocabulary.verdict import Outcome
from tests.attacks.conformance.reference_trainer import CLAIM, LITTLE, RATE, Array, Plain, records
from tests.attacks.conformance.test_all_checks import Shares


def audited(kind: conformance.MakeTrainer) -> ConformanceResult:
    return conformance.check(kind, CLAIM, records=records(), effort=LITTLE)


def undecided(result: ConformanceResult) -> dict[str, str]:
    return {f.name: f.why for f in result.findings if f.outcome is Outcome.INCONCLUSIVE}


class NoiseIgnoresSeed(Plain):
    def noise(self) -> Array:
        kept, self.seed = self.seed, 7
        try:
            return super().noise()
        finally:
            self.seed = kept


class SamplerIgnoresSeed(Plain):
    def draw(self) -> list[int]:
        coins = np.random.default_rng([7, self.number, 1]).random(len(self.known))
        return np.flatnonzero(coins < RATE).tolist()


class IgnoresSeed(NoiseIgnoresSeed, SamplerIgnoresSeed):
    pass


@pytest.mark.parametrize(
    ("kind", "named"),
    [
        (NoiseIgnoresSeed, {"runs", "scale beside records"}),
        (SamplerIgnoresSeed, {"inclusion"}),
        (IgnoresSeed, {"runs", "scale beside records", "inclusion"}),
    ],
)
def test_ignored_seed_is_inconclusive_with_a_hint(kind: type[Plain], named: set[str]) -> None:
    result = audited(kind)
    assert result.verdict is Outcome.INCONCLUSIVE, result.violations
    found = undecided(result)
    assert set(found) == named
    assert all("seed" in why for why in found.values())


def test_noise_of_a_trainer_that_gets_the_seed_is_reused() -> None:
    class GetsSeed(NoiseIgnoresSeed):
        passes_seed = True

    (violation,) = audited(GetsSeed).violations
    assert (violation.check, violation.name) == ("correlation", "runs")
    assert "seeds differ" in violation.why


def test_noise_that_is_too_low_is_found_beside_an_ignored_seed() -> None:
    class Quiet(NoiseIgnoresSeed):
        def noise(self) -> Array:
            return 0.8 * super().noise()

    assert {f.check for f in audited(Quiet).violations} == {"noise"}


def test_noise_that_every_step_repeats_is_found_beside_an_ignored_seed() -> None:
    class Repeats(Plain):
        def noise(self) -> Array:
            return (
                CLAIM.noise_multiplier * CLAIM.clip_norm * np.random.default_rng(7).normal(size=31)
            )

    assert "correlation" in {f.check for f in audited(Repeats).violations}


def test_absent_noise_is_not_an_ignored_seed() -> None:
    class Silent(Plain):
        def noise(self) -> Array:
            return np.zeros(31)

    assert "noise" in {f.check for f in audited(Silent).violations}


def test_rank_rows_that_are_noise_only_are_inconclusive_with_a_hint() -> None:
    class NoiseOnly(Shares):
        def step(self) -> Array:
            weights, update = self.weights, super().step()
            own = np.zeros(31)
            for i in self.sampled:
                kept, self.weights = self.weights, weights
                own = own + self.clipped(self.gradient(*self.known[i]))
                self.weights = kept
            self.rank_updates = self.rank_updates - CLAIM.update_scale * own / 2
            return update

    result = audited(NoiseOnly)
    assert result.verdict is Outcome.INCONCLUSIVE, result.violations
    assert "must contain its rank's clipped sum" in undecided(result)["ranks"]
