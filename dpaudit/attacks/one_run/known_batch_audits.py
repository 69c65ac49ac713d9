"""Audits of non-interfering canaries whose membership of every batch is known.

With Poisson sampling and recorded batches, every step of every canary is a trial: an observation
is N(1, s^2) in the batch and N(0, s^2) out of it, in clip norms. ``BatchRatesAudit`` uses rates
at one threshold, ``BatchMeansAudit`` the gap of the means.

With full batches every included canary is in every batch, so that each canary is one trial of a
Gaussian mechanism. ``FullBatchAudit`` then applies the Gaussian band or the Gaussian pivot.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from msgspec.structs import asdict
from numpy.typing import NDArray
from scipy.special import nctdtr, nctdtrit, ndtr, ndtri

from dpaudit.attacks import bounds
from dpaudit.attacks.bounds.lower_bound import lower_limit, upper_limit
from dpaudit.attacks.bounds.noninterfering_canaries import TRUE_POSITIVE_LEVEL_SHARE
from dpaudit.attacks.one_run.observations import CanaryObservations, ClaimedMechanism, ClaimedSteps
from dpaudit.attacks.one_run.registration import audit_result, registration_digest
from dpaudit.attacks.one_run.simulation import REPETITIONS, Simulation, detectable_epsilon
from dpaudit.vocabulary.audit import (
    AuditResult,
    BatchMeans,
    BatchRates,
    BoundKind,
    BoundStatistics,
    GaussianBand,
    GaussianPivot,
)
from dpaudit.vocabulary.errors import InvalidArgument

Array = NDArray[np.float64]

IN_BATCH_THRESHOLD = 1.0  # in clip norms: half of the observations in the batch are above it
BATCH_RATES_METHOD = "rates in and out of the batch, inverted over the claimed family"
BATCH_MEANS_METHOD = "gap of the means in and out of the batch (noncentral t)"


def common_noise_multiplier(steps: ClaimedSteps) -> float | None:
    """Return the noise multiplier that all Poisson-sampled steps share.

    Args:
        steps: The claimed steps.

    Returns:
        The noise multiplier. None if it varies, or if a step uses a full batch.
    """
    noises, rates = steps.noise_multipliers, steps.sampling_rates
    return float(noises[0]) if np.ptp(noises) == 0 and (rates < 1).all() else None


@dataclass(frozen=True)
class BatchObservations:
    """Observations by membership of the batch, over the clip norm.

    Attributes:
        in_batch: Observations with the canary in the batch, shape ``(k,)``.
        out_of_batch: All other observations, shape ``(n,)``.
    """

    in_batch: Array
    out_of_batch: Array


def _split_by_batch(observations: CanaryObservations) -> BatchObservations:
    """Split the observations of all steps by the recorded membership of the batches."""
    if observations.in_batch is None:
        raise InvalidArgument("in_batch", None, "an array of the canaries in each batch")
    return BatchObservations(
        observations.observations[observations.in_batch],
        observations.observations[~observations.in_batch],
    )


@dataclass(frozen=True)
class _RecordedBatchesAudit(ABC):
    """The common part of both audits by batch.

    Attributes:
        claim: The claimed mechanism.
        canaries: Number of canaries, m.
        confidence: Probability with which the bound holds, in (0, 1).
        seed: Seed of the simulation of the power.
    """

    claim: ClaimedMechanism
    canaries: int
    confidence: float
    seed: int

    @property
    def noise_multiplier(self) -> float:
        """The claimed noise multiplier of every step."""
        return float(self.claim.steps.noise_multipliers[0])

    @property
    def expected_in_batch(self) -> int:
        """Expected number of observations with the canary in the batch, at least 2."""
        return max(2, round(self.canaries / 2 * float(self.claim.steps.sampling_rates.sum())))

    @property
    def observations(self) -> int:
        """Number of observations of all canaries at all steps."""
        return self.canaries * len(self.claim.steps.sampling_rates)

    def _result(
        self,
        name: str,
        method: str,
        bound: bounds.LowerBound,
        thresholds: str,
        estimator: BoundStatistics,
    ) -> AuditResult:
        """Return the bound as an audit result, with the registration and the power."""
        return audit_result(
            bound,
            name=name,
            method=method,
            delta=self.claim.delta,
            canaries=self.canaries,
            thresholds=thresholds,
            registered=registration_digest(
                audit=method, canaries=self.canaries, threshold=IN_BATCH_THRESHOLD
            ),
            detectable_epsilon=self.detectable_epsilon,
            estimator=estimator,
        )

    @property
    def detectable_epsilon(self) -> float | None:
        """The power of the audit, from the claim and the number of canaries; see ``power``."""
        return detectable_epsilon(self.claim, self._share_refuted)

    def power(self) -> float | None:
        """Compute the power of the audit.

        Returns:
            The smallest true epsilon, in nats, at which the audit refutes the claim with
            probability 95%. None if no simulated noise is low enough.
        """
        return self.detectable_epsilon

    @abstractmethod
    def _share_refuted(self, noise_factor: float) -> float:
        """Return the probability that the claim is refuted at a true noise factor."""


@dataclass(frozen=True)
class BatchRatesAudit(_RecordedBatchesAudit):
    """The bound from rates above one threshold, in and out of the batch.

    It assumes that a step has a Gaussian trade-off curve, at some noise factor.
    """

    statistics = BatchRates

    @staticmethod
    def name_of(observed: str) -> str:
        """Return the name of the bound, given what was observed."""
        return f"rates by batch, {observed}"

    def result(self, observations: CanaryObservations) -> AuditResult:
        """Compute the bound from the rates at the threshold.

        Args:
            observations: The canaries' observations, secret bits and recorded batches.

        Returns:
            The bound, with its power and the statistics that it is a function of.

        Raises:
            InvalidArgument: If the batches were not recorded, or an observation is not finite.
        """
        split = _split_by_batch(observations)
        hits, alarms = (
            int(np.count_nonzero(part > IN_BATCH_THRESHOLD))
            for part in (split.in_batch, split.out_of_batch)
        )
        counts = BatchRates(hits, len(split.in_batch), alarms, len(split.out_of_batch))
        bound = bounds.tv_known_batches(
            **asdict(counts),
            noise_multiplier=self.noise_multiplier,
            confidence=self.confidence,
            family=self.claim.family,
        )
        thresholds = (
            f"{IN_BATCH_THRESHOLD:g} clip norm, the claimed shift; {hits} of "
            f"{len(split.in_batch)} observations in the batch and {alarms} of "
            f"{len(split.out_of_batch)} others are above it"
        )
        return self._result(
            self.name_of(observations.name), BATCH_RATES_METHOD, bound, thresholds, counts
        )

    def _share_refuted(self, noise_factor: float) -> float:
        """Simulate both counts, which are binomial, and test the claimed shift."""
        rng, level = np.random.default_rng(self.seed), 1 - self.confidence
        in_batch = self.expected_in_batch
        out_of_batch = self.observations - in_batch
        false_alarm = float(ndtr(-IN_BATCH_THRESHOLD / (noise_factor * self.noise_multiplier)))
        hits = rng.binomial(in_batch, 0.5, REPETITIONS)
        alarms = rng.binomial(out_of_batch, false_alarm, REPETITIONS)
        least = lower_limit(hits, in_batch, level * TRUE_POSITIVE_LEVEL_SHARE)
        most = upper_limit(alarms, out_of_batch, level * (1 - TRUE_POSITIVE_LEVEL_SHARE))
        # The claimed shift is one clip norm, 1 / noise_multiplier standard deviations.
        return float(np.mean(self.noise_multiplier * (ndtri(least) - ndtri(most)) > 1))


@dataclass(frozen=True)
class BatchMeansAudit(_RecordedBatchesAudit):
    """The bound from the gap of the means, in and out of the batch: sharper, for normal noise."""

    statistics = BatchMeans

    @staticmethod
    def name_of(observed: str) -> str:
        """Return the name of the bound, given what was observed."""
        return f"means by batch, {observed}"

    def result(self, observations: CanaryObservations) -> AuditResult:
        """Compute the bound from the means.

        Args:
            observations: The canaries' observations, secret bits and recorded batches.

        Returns:
            The bound, with its power and the statistics that it is a function of.

        Raises:
            InvalidArgument: If the batches were not recorded, or an observation is not finite.
        """
        split = _split_by_batch(observations)
        means = BatchMeans(
            bounds.sample_statistics(split.in_batch), bounds.sample_statistics(split.out_of_batch)
        )
        bound = bounds.t_known_batches_of_moments(
            means.in_batch,
            means.out_of_batch,
            noise_multiplier=self.noise_multiplier,
            confidence=self.confidence,
            family=self.claim.family,
        )
        return self._result(
            self.name_of(observations.name), BATCH_MEANS_METHOD, bound, "none is needed", means
        )

    def _share_refuted(self, noise_factor: float) -> float:
        """Return the power of the t test, whose statistic is noncentral t."""
        in_batch, total = self.expected_in_batch, self.observations
        noncentrality = math.sqrt(in_batch * (total - in_batch) / total) / self.noise_multiplier
        degrees = total - 2
        critical = float(nctdtrit(degrees, noncentrality, self.confidence))
        return 1 - float(nctdtr(degrees, noncentrality / noise_factor, critical))


# Full batches. Over T steps with noise multipliers s_t the mechanism is mu-GDP with
# mu^2 = sum of 1/s_t^2, so that bounds for Gaussian trade-off curves apply.

BoundOfScores = Callable[[Array, Array, float, float], bounds.LowerBound]
"""Computes a bound from members' scores, non-members' scores, delta and confidence."""

GAUSSIAN_BAND_METHOD = "Gaussian trade-off under a simultaneous band of all thresholds"
GAUSSIAN_PIVOT_METHOD = "Gaussian trade-off from the gap of the means (noncentral t)"
ASSUMES_NOTHING_ONE_CLASS = "nothing: all canaries were included, or none"
# Simulated audits per noise factor. A band of thousands of thresholds is slow.
SIMULATED_FULL_BATCH_AUDITS = 40


def gaussian_band_bound(
    members: Array, nonmembers: Array, delta: float, confidence: float
) -> bounds.LowerBound:
    """Compute the bound of Gaussian trade-off curves under a simultaneous band.

    Args:
        members: Scores of included canaries, shape ``(n1,)``.
        nonmembers: Scores of excluded canaries, shape ``(n0,)``.
        delta: In (0, 1).
        confidence: Probability with which the bound holds, in (0, 1).

    Returns:
        The bound, see ``bounds.gaussian_from_scores``.
    """
    return bounds.gaussian_from_scores(
        members=members,
        nonmembers=nonmembers,
        thresholds=bounds.ConfidenceBand(),
        delta=delta,
        confidence=confidence,
    )


def gaussian_pivot_bound(
    members: Array, nonmembers: Array, delta: float, confidence: float
) -> bounds.LowerBound:
    """Compute the bound from the gap of the means, by the Gaussian pivot.

    Args:
        members: Scores of included canaries, shape ``(n1,)``.
        nonmembers: Scores of excluded canaries, shape ``(n0,)``.
        delta: In (0, 1).
        confidence: Probability with which the bound holds, in (0, 1).

    Returns:
        The bound, see ``bounds.gaussian_pivot``.
    """
    return bounds.gaussian_pivot(
        members=members, nonmembers=nonmembers, delta=delta, confidence=confidence
    )


def pivot_statistics(members: Array, nonmembers: Array) -> GaussianPivot:
    """Compute the statistics of ``gaussian_pivot_bound``.

    Args:
        members: Scores of included canaries, shape ``(n1,)``.
        nonmembers: Scores of excluded canaries, shape ``(n0,)``.

    Returns:
        The moments of both classes.
    """
    return GaussianPivot(bounds.sample_statistics(members), bounds.sample_statistics(nonmembers))


def band_statistics(members: Array, nonmembers: Array) -> GaussianBand:
    """Compute the statistics of ``gaussian_band_bound``.

    Args:
        members: Scores of included canaries, shape ``(n1,)``.
        nonmembers: Scores of excluded canaries, shape ``(n0,)``.

    Returns:
        The errors at every threshold; no thresholds if a class is empty.
    """
    if min(len(members), len(nonmembers)) == 0:
        return GaussianBand(len(members), len(nonmembers), (), ())
    return bounds.error_counts_at_every_threshold(members, nonmembers)


def full_batch_bound(
    statistics: GaussianPivot | GaussianBand, *, delta: float, confidence: float
) -> bounds.LowerBound:
    """Compute the bound of a full-batch audit from its statistics.

    Args:
        statistics: The moments of both classes, or the errors at every threshold.
        delta: In (0, 1).
        confidence: Probability with which the bound holds, in (0, 1).

    Returns:
        The bound; 0 if a class is empty.

    Raises:
        InvalidArgument: If a number is out of range.
    """
    match statistics:
        case GaussianPivot(members, nonmembers):
            if min(members.count, nonmembers.count) > 0:
                return bounds.gaussian_pivot_of_moments(
                    members, nonmembers, delta=delta, confidence=confidence
                )
        case GaussianBand(members, nonmembers):
            if min(members, nonmembers) > 0 and statistics.missed:
                return bounds.gaussian_band_of_counts(
                    statistics, delta=delta, confidence=confidence
                )
    # All coins can fall alike. The bound is then trivial.
    return bounds.LowerBound(0.0, BoundKind.CONDITIONAL, confidence, ASSUMES_NOTHING_ONE_CLASS)


@dataclass(frozen=True)
class FullBatchAudit:
    """An audit of canaries as independent trials of one Gaussian mechanism.

    Attributes:
        claim: The claimed mechanism.
        canaries: Number of canaries, m.
        confidence: Probability with which the bound holds, in (0, 1).
        simulation: Simulated audits, for the power.
        name: The first part of the bound's name.
        method: The estimator, as text for reports.
        statistics: The type of the statistics that the bound is a function of.
        bound_of_scores: Computes the bound from scores.
        statistics_of: Computes the statistics from scores.
    """

    claim: ClaimedMechanism
    canaries: int
    confidence: float
    simulation: Simulation
    name: str
    method: str
    statistics: type[GaussianPivot | GaussianBand]
    bound_of_scores: BoundOfScores
    statistics_of: Callable[[Array, Array], GaussianPivot | GaussianBand]

    def name_of(self, observed: str) -> str:
        """Return the name of the bound, given what was observed."""
        return f"{self.name}, {observed}"

    def result(self, observations: CanaryObservations) -> AuditResult:
        """Compute the bound from the scores of included and excluded canaries.

        Args:
            observations: The canaries' observations and their secret bits.

        Returns:
            The bound, with its power and the statistics that it is a function of.

        Raises:
            InvalidArgument: If an observation is not finite.
        """
        statistics = self.statistics_of(
            observations.scores[observations.included], observations.scores[~observations.included]
        )
        bound = full_batch_bound(statistics, delta=self.claim.delta, confidence=self.confidence)
        bound = replace(bound, assumes=f"non-interfering canaries; {bound.assumes}")
        return audit_result(
            bound,
            name=self.name_of(observations.name),
            method=self.method,
            delta=self.claim.delta,
            canaries=self.canaries,
            thresholds="none is chosen: the bound holds at all thresholds at once, or needs none",
            registered=registration_digest(audit=self.method, canaries=self.canaries),
            detectable_epsilon=self.power(),
            estimator=statistics,
        )

    def _refutes(self, scores: Array, included: NDArray[np.bool_]) -> bool:
        """Return whether the bound of these scores exceeds the claimed epsilon."""
        if included.all() or not included.any():
            return False
        claim = self.claim
        found = self.bound_of_scores(
            scores[included], scores[~included], claim.delta, self.confidence
        )
        return found.epsilon > claim.epsilon

    def power(self) -> float | None:
        """Compute the power of the audit.

        Returns:
            The smallest true epsilon, in nats, at which the audit refutes the claim with
            probability 95%. None if no simulated noise is low enough.
        """
        return detectable_epsilon(self.claim, self._share_refuted)

    def _share_refuted(self, noise_factor: float) -> float:
        """Return the share of simulated audits that refute the claim at a true noise factor."""
        audits = self.simulation.audits(noise_factor, SIMULATED_FULL_BATCH_AUDITS)
        return float(np.mean([self._refutes(*audit) for audit in audits]))
