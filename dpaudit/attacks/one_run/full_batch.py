"""Independent canaries at a sampling rate of 1, where the trade-off curve is Gaussian."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from dpaudit.attacks import bounds
from dpaudit.attacks.one_run.claimed import Claimed
from dpaudit.attacks.one_run.guesses import digest
from dpaudit.attacks.one_run.results import audit_result
from dpaudit.attacks.one_run.seen import Seen
from dpaudit.attacks.one_run.simulation import Simulation, detectable_epsilon
from dpaudit.vocabulary.audit import AuditResult, BoundKind

Array = NDArray[np.float64]
Estimator = Callable[[Array, Array, float, float], bounds.LowerBound]

BAND = "Gaussian trade-off under a simultaneous band of all thresholds"
PIVOT = "Gaussian trade-off from the gap of the means (noncentral t)"
ONE_KIND = "nothing: all canaries were included, or none"
AUDITS = 40  # simulated at each noise: a band of thousands of thresholds takes its time


def band(members: Array, nonmembers: Array, delta: float, confidence: float) -> bounds.LowerBound:
    """Return the bound of the largest Gaussian trade-off through a band of all thresholds."""
    return bounds.gaussian_from_scores(
        members=members,
        nonmembers=nonmembers,
        thresholds=bounds.Band(),
        delta=delta,
        confidence=confidence,
    )


def pivot(members: Array, nonmembers: Array, delta: float, confidence: float) -> bounds.LowerBound:
    """Return the bound from the gap of the means."""
    return bounds.gaussian_pivot(
        members=members, nonmembers=nonmembers, delta=delta, confidence=confidence
    )


@dataclass(frozen=True)
class FullBatchAudit:
    """Canaries as independent trials of one Gaussian mechanism."""

    claimed: Claimed
    canaries: int
    confidence: float
    simulation: Simulation
    name: str
    method: str
    estimator: Estimator

    def result(self, seen: Seen) -> AuditResult:
        """Return the bound."""
        bound = self._bound(seen.scores, seen.included)
        bound = replace(bound, assumes=f"canaries that do not touch each other; {bound.assumes}")
        return audit_result(
            bound,
            name=f"{self.name}, every step",
            method=self.method,
            delta=self.claimed.delta,
            canaries=self.canaries,
            thresholds="none is chosen: all are paid for, or none is needed",
            registered=digest(audit=self.method, canaries=self.canaries),
            detectable_epsilon=detectable_epsilon(self.claimed, self._share_refuted),
        )

    def _bound(self, scores: Array, included: NDArray[np.bool_]) -> bounds.LowerBound:
        members, nonmembers = scores[included], scores[~included]
        if included.all() or not included.any():  # coins fall like that, and say nothing
            return bounds.LowerBound(0.0, BoundKind.CONDITIONAL, self.confidence, ONE_KIND)
        return self.estimator(members, nonmembers, self.claimed.delta, self.confidence)

    def _share_refuted(self, noise_factor: float) -> float:
        audits = self.simulation.audits(noise_factor, AUDITS)
        return float(np.mean([self._bound(*a).epsilon > self.claimed.epsilon for a in audits]))
