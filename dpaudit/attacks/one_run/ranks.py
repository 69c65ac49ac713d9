"""Independent canaries, their batches unknown: every one guessed, total variation inverted."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from dpaudit.attacks import bounds
from dpaudit.attacks.one_run.claimed import Claimed
from dpaudit.attacks.one_run.guesses import Guesses, digest, fewest
from dpaudit.attacks.one_run.results import audit_result
from dpaudit.attacks.one_run.seen import Scored
from dpaudit.attacks.one_run.simulation import REPETITIONS, Audits, detectable_epsilon
from dpaudit.vocabulary.audit import AuditResult
from dpaudit.vocabulary.estimators import TotalVariation

TOTAL_VARIATION = "total variation, inverted over the claimed family"


@dataclass(frozen=True)
class RankAudit:
    """The binomial test of total variation, every canary guessed by the sign of its score."""

    claimed: Claimed
    canaries: int
    confidence: float
    simulation: Audits

    reads = TotalVariation

    @staticmethod
    def name_of(observed: str) -> str:
        """Return how its bound is called, by what was observed."""
        return f"ranks of canaries, {observed}"

    def result(self, seen: Scored) -> AuditResult:
        """Return the bound."""
        correct = Guesses(self.canaries).correct(seen.scores, seen.included)
        bound = bounds.tv_rank(
            canaries=self.canaries,
            correct=correct,
            confidence=self.confidence,
            family=self.claimed.family,
        )
        return audit_result(
            bound,
            name=self.name_of(seen.name),
            method=TOTAL_VARIATION,
            delta=self.claimed.delta,
            canaries=self.canaries,
            guesses=self.canaries,
            correct=correct,
            thresholds="all are guessed: in where included is likelier under the fitted noise",
            registered=digest(audit=TOTAL_VARIATION, canaries=self.canaries),
            detectable_epsilon=self.power(),
            estimator=TotalVariation(bound.noise_factor),
        )

    def power(self) -> float | None:
        """Return the least true epsilon at which the claim is refuted 95 times in 100."""
        return detectable_epsilon(self.claimed, self._share_refuted)

    def _share_refuted(self, noise_factor: float) -> float:
        found = self.simulation.right_guesses(noise_factor, REPETITIONS, [self.canaries])
        return float(np.mean(found >= self._needed))

    @cached_property
    def _needed(self) -> int:
        claimed = self.claimed.family.total_variation(1.0)

        def refutes(correct: int) -> bool:
            found = bounds.total_variation(
                canaries=self.canaries, correct=correct, confidence=self.confidence
            )
            return found > claimed

        return fewest(refutes, self.canaries)
