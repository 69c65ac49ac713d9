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
from dpaudit.vocabulary.estimators import GaussianBand, GaussianPivot

Array = NDArray[np.float64]
Estimate = Callable[[Array, Array, float, float], bounds.LowerBound]

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


def moments(members: Array, nonmembers: Array) -> GaussianPivot:
    """Return what ``pivot`` reads of the scores."""
    return GaussianPivot(bounds.sample_of(members), bounds.sample_of(nonmembers))


def errors(members: Array, nonmembers: Array) -> GaussianBand:
    """Return what ``band`` reads of the scores."""
    if min(len(members), len(nonmembers)) == 0:
        return GaussianBand(len(members), len(nonmembers), (), ())
    return bounds.errors_at_every_threshold(members, nonmembers)


def full_batch_bound(
    read: GaussianPivot | GaussianBand, *, delta: float, confidence: float
) -> bounds.LowerBound:
    """Return the bound of a full-batch audit from what it reads of the scores."""
    match read:
        case GaussianPivot(members, nonmembers):
            if min(members.count, nonmembers.count) > 0:
                return bounds.gaussian_pivot_of_moments(
                    members, nonmembers, delta=delta, confidence=confidence
                )
        case GaussianBand(members, nonmembers):
            if min(members, nonmembers) > 0 and read.missed:
                return bounds.gaussian_band_of_counts(read, delta=delta, confidence=confidence)
    # Coins fall like that, and say nothing.
    return bounds.LowerBound(0.0, BoundKind.CONDITIONAL, confidence, ONE_KIND)


@dataclass(frozen=True)
class FullBatchAudit:
    """Canaries as independent trials of one Gaussian mechanism."""

    claimed: Claimed
    canaries: int
    confidence: float
    simulation: Simulation
    name: str
    method: str
    reads: type[GaussianPivot | GaussianBand]
    estimate: Estimate
    read: Callable[[Array, Array], GaussianPivot | GaussianBand]

    def name_of(self, observed: str) -> str:
        """Return how its bound is called, by what was observed."""
        return f"{self.name}, {observed}"

    def result(self, seen: Seen) -> AuditResult:
        """Return the bound."""
        read = self.read(seen.scores[seen.included], seen.scores[~seen.included])
        bound = full_batch_bound(read, delta=self.claimed.delta, confidence=self.confidence)
        bound = replace(bound, assumes=f"canaries that do not touch each other; {bound.assumes}")
        return audit_result(
            bound,
            name=self.name_of(seen.name),
            method=self.method,
            delta=self.claimed.delta,
            canaries=self.canaries,
            thresholds="none is chosen: all are paid for, or none is needed",
            registered=digest(audit=self.method, canaries=self.canaries),
            detectable_epsilon=self.power(),
            estimator=read,
        )

    def _refutes(self, scores: Array, included: NDArray[np.bool_]) -> bool:
        if included.all() or not included.any():
            return False
        claimed = self.claimed
        found = self.estimate(scores[included], scores[~included], claimed.delta, self.confidence)
        return found.epsilon > claimed.epsilon

    def power(self) -> float | None:
        """Return the least true epsilon at which the claim is refuted 95 times in 100."""
        return detectable_epsilon(self.claimed, self._share_refuted)

    def _share_refuted(self, noise_factor: float) -> float:
        audits = self.simulation.audits(noise_factor, AUDITS)
        return float(np.mean([self._refutes(*audit) for audit in audits]))
