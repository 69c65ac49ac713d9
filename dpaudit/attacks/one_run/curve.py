"""The family statement: right guesses against the trade-off curve of the claimed mechanism."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from dpaudit.attacks import bounds
from dpaudit.attacks.bounds.one_run_curve import mu_of_guesses
from dpaudit.attacks.one_run.claimed import Claimed
from dpaudit.attacks.one_run.guesses import Guesses, best_guesses, digest, fewest
from dpaudit.attacks.one_run.results import audit_result
from dpaudit.attacks.one_run.seen import Scored
from dpaudit.attacks.one_run.simulation import REPETITIONS, Audits, detectable_epsilon
from dpaudit.vocabulary.audit import AuditResult
from dpaudit.vocabulary.estimators import ClaimedCurve

MU_RESOLUTION = 0.005  # of the bounds that numbers of guesses are compared by
CURVE = "one run against the claimed trade-off curve (Mahloujifar, Melis & Chaudhuri 2024)"


@dataclass(frozen=True)
class CurveAudit:
    """Inverts the test of the claimed curve over the noise; canaries may interfere."""

    claimed: Claimed
    canaries: int
    confidence: float
    simulation: Audits

    reads = ClaimedCurve

    @staticmethod
    def name_of(observed: str) -> str:
        """Return how its bound is called, by what was observed."""
        return f"claimed curve, {observed}"

    @cached_property
    def registered(self) -> Guesses:
        """The number of guesses that says most of Gaussian trade-offs, if the claim is true."""

        def mu(guesses: int, correct: int) -> float:
            level = 1 - self.confidence
            return mu_of_guesses(self.canaries, guesses, correct, level, resolution=MU_RESOLUTION)

        return best_guesses(self.simulation, self.canaries, 1.0, mu)[1]

    def result(self, seen: Scored) -> AuditResult:
        """Return the bound."""
        guesses = self.registered
        correct = guesses.correct(seen.scores, seen.included)
        bound = bounds.one_run_family(
            canaries=self.canaries,
            guesses=guesses.count,
            correct=correct,
            confidence=self.confidence,
            family=self.claimed.family,
        )
        return audit_result(
            bound,
            name=self.name_of(seen.name),
            method=CURVE,
            delta=self.claimed.delta,
            canaries=self.canaries,
            guesses=guesses.count,
            correct=correct,
            thresholds=f"the surest {guesses.count} canaries, fixed by simulating the claim",
            registered=digest(audit=CURVE, canaries=self.canaries, guesses=guesses.count),
            detectable_epsilon=self.power(),
            estimator=ClaimedCurve(bound.noise_factor),
        )

    def power(self) -> float | None:
        """Return the least true epsilon at which the claim is refuted 95 times in 100."""
        return detectable_epsilon(self.claimed, self._share_refuted)

    def _share_refuted(self, noise_factor: float) -> float:
        counts = [self.registered.count]
        found = self.simulation.right_guesses(noise_factor, REPETITIONS, counts)
        return float(np.mean(found >= self._needed))

    @cached_property
    def _needed(self) -> int:
        tradeoff = self.claimed.family.tradeoff(1.0)

        def refutes(correct: int) -> bool:
            return bounds.curve_is_refuted(
                canaries=self.canaries,
                guesses=self.registered.count,
                correct=correct,
                level=1 - self.confidence,
                tradeoff=tradeoff,
            )

        return fewest(refutes, self.registered.count)
