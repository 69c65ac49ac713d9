"""The family statement: right guesses against the trade-off curve of the claimed mechanism."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from dpaudit.attacks import bounds
from dpaudit.attacks.one_run.claimed import Claimed
from dpaudit.attacks.one_run.guesses import Guesses, best_guesses, digest, fewest
from dpaudit.attacks.one_run.results import audit_result
from dpaudit.attacks.one_run.seen import Scored
from dpaudit.attacks.one_run.simulation import REPETITIONS, Audits, detectable_epsilon
from dpaudit.vocabulary.audit import AuditResult

CURVE = "one run against the claimed trade-off curve (Mahloujifar, Melis & Chaudhuri 2024)"


@dataclass(frozen=True)
class CurveAudit:
    """Inverts the test of the claimed curve over the noise; canaries may interfere."""

    claimed: Claimed
    canaries: int
    confidence: float
    simulation: Audits

    @cached_property
    def registered(self) -> Guesses:
        """The number of guesses that says most of Gaussian trade-offs, if the claim is true."""

        def mu(guesses: int, correct: int) -> float:
            return bounds.one_run_gaussian(
                canaries=self.canaries,
                guesses=guesses,
                correct=correct,
                delta=self.claimed.delta,
                confidence=self.confidence,
            ).epsilon

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
            name=f"claimed curve, {seen.name}",
            method=CURVE,
            delta=self.claimed.delta,
            canaries=self.canaries,
            guesses=guesses.count,
            correct=correct,
            thresholds=f"the surest {guesses.count} canaries, fixed by simulating the claim",
            registered=digest(audit=CURVE, canaries=self.canaries, guesses=guesses.count),
            detectable_epsilon=detectable_epsilon(self.claimed, self._share_refuted),
        )

    def _share_refuted(self, noise_factor: float) -> float:
        audits = self.simulation.audits(noise_factor, REPETITIONS)
        return float(np.mean([self.registered.correct(*a) >= self._needed for a in audits]))

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
