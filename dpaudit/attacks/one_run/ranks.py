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

TOTAL_VARIATION = "total variation, inverted over the claimed family"


@dataclass(frozen=True)
class RankAudit:
    """The binomial test of total variation, every canary guessed by the sign of its score."""

    claimed: Claimed
    canaries: int
    confidence: float
    simulation: Audits

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
            name=f"ranks of canaries, {seen.name}",
            method=TOTAL_VARIATION,
            delta=self.claimed.delta,
            canaries=self.canaries,
            guesses=self.canaries,
            correct=correct,
            thresholds="all are guessed: in where included is likelier under the fitted noise",
            registered=digest(audit=TOTAL_VARIATION, canaries=self.canaries),
            detectable_epsilon=detectable_epsilon(self.claimed, self._share_refuted),
        )

    def _share_refuted(self, noise_factor: float) -> float:
        audits = self.simulation.audits(noise_factor, REPETITIONS)
        guesses = Guesses(self.canaries)
        return float(np.mean([guesses.correct(*audit) >= self._needed for audit in audits]))

    @cached_property
    def _needed(self) -> int:
        claimed = self.claimed.family.total_variation(1.0)

        def refutes(correct: int) -> bool:
            found = bounds.total_variation(
                canaries=self.canaries, correct=correct, confidence=self.confidence
            )
            return found > claimed

        return fewest(refutes, self.canaries)
