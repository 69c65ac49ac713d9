"""Audits of one run with gradient canaries: which bounds are computed, and at what level.

The first part plans audits of observations at every step, the second part audits of the final
iterate of plain SGD. Both follow the same order:

1. Plan the audits. The numbers of guesses, and the power of each audit, come from simulating the
   claimed mechanism. No score has been read.
2. Read the observations, and compute each bound.

The failure probability is divided among the bounds, so that all of them hold together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from dpaudit.attacks.one_run.guess_audits import (
    CertifiedAudit,
    TotalVariationAudit,
    TradeoffCurveAudit,
)
from dpaudit.attacks.one_run.known_batch_audits import (
    GAUSSIAN_BAND_METHOD,
    GAUSSIAN_PIVOT_METHOD,
    BatchMeansAudit,
    BatchRatesAudit,
    FullBatchAudit,
    band_statistics,
    common_noise_multiplier,
    gaussian_band_bound,
    gaussian_pivot_bound,
    pivot_statistics,
)
from dpaudit.attacks.one_run.observations import CanaryObservations, ClaimedMechanism, ClaimedSteps
from dpaudit.attacks.one_run.score_file_audit import centred_ranks
from dpaudit.attacks.one_run.simulation import ScorePool, Simulation
from dpaudit.vocabulary.audit import AuditResult, BoundStatistics, GaussianBand, GaussianPivot
from dpaudit.vocabulary.errors import InvalidArgument, require_open_unit

# Shares of the failure probability. Bounds with more assumptions are sharper, and work at a small
# share. The certified bound assumes least and gets the largest share.
CERTIFIED_SHARE, CURVE_SHARE, TOTAL_VARIATION_SHARE, BATCH_RATES_SHARE, BATCH_MEANS_SHARE = (
    0.6,
    0.28,
    0.04,
    0.04,
    0.04,
)


class OneRunAudit(Protocol):
    """A planned audit: everything is fixed but the observations."""

    @property
    def confidence(self) -> float:
        """Probability with which the bound holds."""

    @property
    def statistics(self) -> type[BoundStatistics]:
        """The type of the statistics that the bound is a function of."""

    def name_of(self, observed: str) -> str:
        """Return the name of the bound, such as "rates by batch, every step"."""

    def result(self, observations: CanaryObservations) -> AuditResult:
        """Compute the lower bound from the observations.

        Args:
            observations: The canaries' observations and their secret bits.

        Returns:
            The bound, with its power and the statistics that it is a function of.
        """

    def power(self) -> float | None:
        """Compute the power of the audit.

        Returns:
            The smallest true epsilon, in nats, at which the audit refutes the claim with
            probability 95%. None if no simulated noise is low enough.
        """


@dataclass(frozen=True)
class CanaryDesign:
    """The public properties of a run's gradient canaries.

    Attributes:
        count: Number of canaries, m.
        interfering: Whether the records' gradients overlap with the canaries' directions.
        batches_recorded: Whether the run recorded which canaries each batch held.
    """

    count: int
    interfering: bool
    batches_recorded: bool


def plan_audits(
    canaries: CanaryDesign, claim: ClaimedMechanism, *, confidence: float, seed: int
) -> tuple[OneRunAudit, ...]:
    """Plan the audits of a run's gradient canaries.

    Args:
        canaries: The public properties of the canaries.
        claim: The claimed mechanism.
        confidence: Probability with which all bounds hold together, in (0, 1).
        seed: Seed of the simulation that fixes the guesses. It must not depend on the scores.

    Returns:
        The audits, by increasing assumptions.

    Raises:
        InvalidArgument: If ``confidence`` is out of range.
    """
    require_open_unit("confidence", confidence)
    alpha = 1 - confidence
    plan = _plan_interfering if canaries.interfering else _plan_noninterfering
    return tuple(plan(canaries, claim, alpha, seed))


def audit_gradient_canaries(
    observations: CanaryObservations, claim: ClaimedMechanism, *, confidence: float, seed: int
) -> tuple[AuditResult, ...]:
    """Compute lower bounds from gradient canaries in directions of their own.

    Always: the certified one-run bound, the bound against the claimed trade-off curve, and the
    total-variation bound. For full batches also the two Gaussian bounds. For Poisson-sampled
    batches with recorded membership and one noise multiplier also the two bounds by batch.

    Args:
        observations: The canaries' observations at every step.
        claim: The claimed mechanism.
        confidence: Probability with which all bounds hold together, in (0, 1).
        seed: Seed of the simulation that fixes the guesses. It must not depend on the scores.

    Returns:
        The bounds, by increasing assumptions.

    Raises:
        InvalidArgument: If ``confidence`` is out of range, an observation is not finite, or
            there is not one row per step.

    References:
        Steinke, Nasr & Jagielski (2023), arXiv:2305.08846, Theorem 5.2; Mahloujifar, Melis &
        Chaudhuri (2024).

    Example:
        One full-batch step with noise multiplier 1, eight canaries:

        >>> from math import erf, sqrt
        >>> from dpaudit.attacks import bounds
        >>> from dpaudit.vocabulary.privacy_terms import Bound
        >>> def epsilon(factor):
        ...     bound = bounds.gaussian_epsilon(mu=1 / factor, delta=1e-5).epsilon
        ...     return Bound(bound, bound)
        >>> family = bounds.MechanismFamily(
        ...     epsilon=epsilon,
        ...     total_variation=lambda factor: erf(1 / factor / sqrt(8)),
        ...     tradeoff=lambda factor: bounds.gaussian_tradeoff(1 / factor),
        ... )
        >>> steps = ClaimedSteps(np.ones(1), np.ones(1))
        >>> claim = ClaimedMechanism(steps, epsilon(1.0).upper, 1e-5, family)
        >>> included = np.arange(8) % 2 == 0
        >>> noise = np.random.default_rng(0).standard_normal((1, 8))
        >>> observations = CanaryObservations(included + noise, included, steps)
        >>> results = audit_gradient_canaries(observations, claim, confidence=0.95, seed=1)
        >>> [result.kind.value for result in results]
        ['certified', 'conditional', 'conditional', 'conditional', 'conditional']
    """
    canaries = CanaryDesign(observations.canaries, False, observations.in_batch is not None)
    plan = plan_audits(canaries, claim, confidence=confidence, seed=seed)
    return tuple(audit.result(observations) for audit in plan)


def audit_interfering_canaries(
    observations: CanaryObservations, claim: ClaimedMechanism, *, confidence: float, seed: int
) -> tuple[AuditResult, ...]:
    """Compute lower bounds from gradient canaries that records' gradients overlap with.

    Only the certified one-run bound and the bound against the claimed trade-off curve hold.

    Args:
        observations: The canaries' observations at every step.
        claim: The claimed mechanism.
        confidence: Probability with which both bounds hold together, in (0, 1).
        seed: Seed of the simulation that fixes the guesses. It must not depend on the scores.

    Returns:
        Both bounds, the certified one first.

    Raises:
        InvalidArgument: If ``confidence`` is out of range, an observation is not finite, or
            there is not one row per step.

    References:
        Steinke, Nasr & Jagielski (2023), arXiv:2305.08846, Theorem 5.2; Mahloujifar, Melis &
        Chaudhuri (2024).

    Example:
        One full-batch step with noise multiplier 1, eight canaries:

        >>> from math import erf, sqrt
        >>> from dpaudit.attacks import bounds
        >>> from dpaudit.vocabulary.privacy_terms import Bound
        >>> def epsilon(factor):
        ...     bound = bounds.gaussian_epsilon(mu=1 / factor, delta=1e-5).epsilon
        ...     return Bound(bound, bound)
        >>> family = bounds.MechanismFamily(
        ...     epsilon=epsilon,
        ...     total_variation=lambda factor: erf(1 / factor / sqrt(8)),
        ...     tradeoff=lambda factor: bounds.gaussian_tradeoff(1 / factor),
        ... )
        >>> steps = ClaimedSteps(np.ones(1), np.ones(1))
        >>> claim = ClaimedMechanism(steps, epsilon(1.0).upper, 1e-5, family)
        >>> included = np.arange(8) % 2 == 0
        >>> noise = np.random.default_rng(0).standard_normal((1, 8))
        >>> observations = CanaryObservations(included + noise, included, steps)
        >>> results = audit_interfering_canaries(observations, claim, confidence=0.95, seed=1)
        >>> [result.kind.value for result in results]
        ['certified', 'conditional']
    """
    canaries = CanaryDesign(observations.canaries, True, observations.in_batch is not None)
    plan = plan_audits(canaries, claim, confidence=confidence, seed=seed)
    return tuple(audit.result(observations) for audit in plan)


def _plan_interfering(
    canaries: CanaryDesign, claim: ClaimedMechanism, alpha: float, seed: int
) -> list[OneRunAudit]:
    """Plan both audits that hold for interfering canaries; they share ``alpha``."""
    m, simulation = canaries.count, Simulation(claim.steps, canaries.count, seed)
    share = CERTIFIED_SHARE / (CERTIFIED_SHARE + CURVE_SHARE)
    return [
        CertifiedAudit(claim, m, 1 - share * alpha, simulation),
        TradeoffCurveAudit(claim, m, 1 - (1 - share) * alpha, simulation),
    ]


def _plan_noninterfering(
    canaries: CanaryDesign, claim: ClaimedMechanism, alpha: float, seed: int
) -> list[OneRunAudit]:
    """Plan all audits that apply to non-interfering canaries; they share ``alpha``."""
    m, simulation = canaries.count, Simulation(claim.steps, canaries.count, seed)
    audits: list[OneRunAudit] = [
        CertifiedAudit(claim, m, 1 - CERTIFIED_SHARE * alpha, simulation),
        TradeoffCurveAudit(claim, m, 1 - CURVE_SHARE * alpha, simulation),
        TotalVariationAudit(claim, m, 1 - TOTAL_VARIATION_SHARE * alpha, simulation),
    ]
    if (claim.steps.sampling_rates == 1).all():
        audits += [
            FullBatchAudit(
                claim,
                m,
                1 - BATCH_RATES_SHARE * alpha,
                simulation,
                "Gaussian band",
                GAUSSIAN_BAND_METHOD,
                GaussianBand,
                gaussian_band_bound,
                band_statistics,
            ),
            FullBatchAudit(
                claim,
                m,
                1 - BATCH_MEANS_SHARE * alpha,
                simulation,
                "Gaussian pivot",
                GAUSSIAN_PIVOT_METHOD,
                GaussianPivot,
                gaussian_pivot_bound,
                pivot_statistics,
            ),
        ]
    elif canaries.batches_recorded and common_noise_multiplier(claim.steps) is not None:
        audits += [
            BatchRatesAudit(claim, m, 1 - BATCH_RATES_SHARE * alpha, seed),
            BatchMeansAudit(claim, m, 1 - BATCH_MEANS_SHARE * alpha, seed),
        ]
    return audits


# The final iterate of plain SGD.
#
# At one learning rate, the parameters move by the sum of all noisy sums. Along a canary's
# direction this sum is the number of batches with the canary, a sum of Bernoulli(q_t), plus noise
# N(0, sum of s_t^2). An excluded canary has the noise alone.

Array = NDArray[np.float64]
Bits = NDArray[np.bool_]

FINAL_ITERATE = "final iterate of plain SGD"
"""The observation, as part of a bound's name."""

FINAL_TOTAL_VARIATION_SHARE = 0.06  # of the failure probability
FINAL_CERTIFIED_SHARE = 0.64  # of the remaining failure probability
POOL_SIZE = 5000  # simulated sums of included canaries, and of excluded ones


@dataclass(frozen=True)
class FinalIterate:
    """The sum of all noisy gradient sums, along each canary's direction.

    Attributes:
        sums: Movement of the parameters along each canary's direction, divided by the public
            factor of a step, in clip norms, shape ``(m,)``, finite.
        included: The canaries' secret inclusion bits, shape ``(m,)``.

    Example:
        >>> FinalIterate(np.array([2.1, -0.4]), np.array([True, False])).scores
        array([ 0.5, -0.5])
    """

    sums: Array
    included: Bits

    def __post_init__(self) -> None:
        if self.sums.shape != self.included.shape or self.sums.ndim != 1 or len(self.sums) == 0:
            given = f"shape {self.sums.shape}"
            raise InvalidArgument("sums", given, f"one for each of {len(self.included)} canaries")
        if not np.isfinite(self.sums).all():
            raise InvalidArgument("sums", "NaN or infinity", "finite")

    @property
    def name(self) -> str:
        """The observation, as part of a bound's name."""
        return FINAL_ITERATE

    @property
    def scores(self) -> Array:
        """Ranks of the sums minus their mean: the likelihood ratio rises with the sum."""
        return centred_ranks(self.sums)


@dataclass(frozen=True)
class FinalIterateSimulation:
    """Simulated final iterates of the claimed steps at any noise factor.

    Attributes:
        steps: The claimed steps.
        canaries: Number of canaries, m.
        seed: Seed of the simulation.
    """

    steps: ClaimedSteps
    canaries: int
    seed: int

    def right_guesses(
        self, noise_factor: float, repetitions: int, guesses: Sequence[int]
    ) -> NDArray[np.int64]:
        """Simulate audits, and count the correct guesses by rank of the sums.

        Args:
            noise_factor: True noise over claimed noise.
            repetitions: Number of simulated audits.
            guesses: Numbers of guesses, each at most m.

        Returns:
            Correct guesses, shape ``(repetitions, len(guesses))``.
        """
        pool = self._pool(noise_factor)
        return pool.right_guesses_by_rank(self.canaries, self.seed, repetitions, guesses)

    def _pool(self, noise_factor: float) -> ScorePool:
        """Draw sums of excluded and of included canaries."""
        rng = np.random.default_rng([self.seed, int(1e9 * noise_factor)])
        deviation = noise_factor * float(np.linalg.norm(self.steps.noise_multipliers))
        rates, counts = np.unique(self.steps.sampling_rates, return_counts=True)
        inclusions = sum(
            rng.binomial(count, rate, POOL_SIZE) for rate, count in zip(rates, counts, strict=True)
        )
        excluded, noise = deviation * rng.standard_normal((2, POOL_SIZE))
        return ScorePool(excluded, inclusions + noise)


def audit_final_iterate(
    observations: FinalIterate, claim: ClaimedMechanism, *, confidence: float, seed: int
) -> tuple[AuditResult, ...]:
    """Compute lower bounds from the final iterate of plain SGD.

    They are weaker than bounds from every step, since the sum of all steps holds less
    information. The claimed guarantee covers the sum as well, so the bounds can contradict it.

    Args:
        observations: The sums along the canaries' directions.
        claim: The claimed mechanism, of all steps.
        confidence: Probability with which all bounds hold together, in (0, 1).
        seed: Seed of the simulation that fixes the guesses. It must not depend on the scores.

    Returns:
        The certified, the trade-off curve and the total-variation bound.

    Raises:
        InvalidArgument: If ``confidence`` is out of range.

    References:
        Steinke, Nasr & Jagielski (2023), arXiv:2305.08846, Theorem 5.2; Mahloujifar, Melis &
        Chaudhuri (2024).

    Example:
        One full-batch step with noise multiplier 1, eight canaries:

        >>> from math import erf, sqrt
        >>> from dpaudit.attacks import bounds
        >>> from dpaudit.vocabulary.privacy_terms import Bound
        >>> def epsilon(factor):
        ...     bound = bounds.gaussian_epsilon(mu=1 / factor, delta=1e-5).epsilon
        ...     return Bound(bound, bound)
        >>> family = bounds.MechanismFamily(
        ...     epsilon=epsilon,
        ...     total_variation=lambda factor: erf(1 / factor / sqrt(8)),
        ...     tradeoff=lambda factor: bounds.gaussian_tradeoff(1 / factor),
        ... )
        >>> claim = ClaimedMechanism(
        ...     ClaimedSteps(np.ones(1), np.ones(1)), epsilon(1.0).upper, 1e-5, family
        ... )
        >>> included = np.arange(8) % 2 == 0
        >>> sums = included + np.random.default_rng(0).standard_normal(8)
        >>> final = FinalIterate(sums, included)
        >>> results = audit_final_iterate(final, claim, confidence=0.95, seed=1)
        >>> [result.kind.value for result in results]
        ['certified', 'conditional', 'conditional']
    """
    plan = plan_final_audits(
        len(observations.included), claim, interfering=False, confidence=confidence, seed=seed
    )
    return tuple(audit.result(observations) for audit in plan)


def audit_interfering_final_iterate(
    observations: FinalIterate, claim: ClaimedMechanism, *, confidence: float, seed: int
) -> tuple[AuditResult, ...]:
    """Compute the bounds of ``audit_final_iterate`` that hold for interfering canaries.

    Records' gradients overlap with the canaries' directions, so that only the certified bound
    and the bound against the claimed trade-off curve hold.

    Args:
        observations: The sums along the canaries' directions.
        claim: The claimed mechanism, of all steps.
        confidence: Probability with which both bounds hold together, in (0, 1).
        seed: Seed of the simulation that fixes the guesses. It must not depend on the scores.

    Returns:
        Both bounds, the certified one first.

    Raises:
        InvalidArgument: If ``confidence`` is out of range.

    References:
        Steinke, Nasr & Jagielski (2023), arXiv:2305.08846, Theorem 5.2; Mahloujifar, Melis &
        Chaudhuri (2024).

    Example:
        One full-batch step with noise multiplier 1, eight canaries:

        >>> from math import erf, sqrt
        >>> from dpaudit.attacks import bounds
        >>> from dpaudit.vocabulary.privacy_terms import Bound
        >>> def epsilon(factor):
        ...     bound = bounds.gaussian_epsilon(mu=1 / factor, delta=1e-5).epsilon
        ...     return Bound(bound, bound)
        >>> family = bounds.MechanismFamily(
        ...     epsilon=epsilon,
        ...     total_variation=lambda factor: erf(1 / factor / sqrt(8)),
        ...     tradeoff=lambda factor: bounds.gaussian_tradeoff(1 / factor),
        ... )
        >>> claim = ClaimedMechanism(
        ...     ClaimedSteps(np.ones(1), np.ones(1)), epsilon(1.0).upper, 1e-5, family
        ... )
        >>> included = np.arange(8) % 2 == 0
        >>> sums = included + np.random.default_rng(0).standard_normal(8)
        >>> final = FinalIterate(sums, included)
        >>> results = audit_interfering_final_iterate(final, claim, confidence=0.95, seed=1)
        >>> [result.kind.value for result in results]
        ['certified', 'conditional']
    """
    plan = plan_final_audits(
        len(observations.included), claim, interfering=True, confidence=confidence, seed=seed
    )
    return tuple(audit.result(observations) for audit in plan)


FinalAudit = CertifiedAudit | TradeoffCurveAudit | TotalVariationAudit


def plan_final_audits(
    canaries: int, claim: ClaimedMechanism, *, interfering: bool, confidence: float, seed: int
) -> tuple[FinalAudit, ...]:
    """Plan the audits of the final iterate of plain SGD.

    Args:
        canaries: Number of canaries, m.
        claim: The claimed mechanism, of all steps.
        interfering: Whether the records' gradients overlap with the canaries' directions.
        confidence: Probability with which all bounds hold together, in (0, 1).
        seed: Seed of the simulation that fixes the guesses. It must not depend on the scores.

    Returns:
        The audits, by increasing assumptions.

    Raises:
        InvalidArgument: If ``confidence`` is out of range.
    """
    require_open_unit("confidence", confidence)
    total_variation_share = 0.0 if interfering else FINAL_TOTAL_VARIATION_SHARE
    alpha = (1 - total_variation_share) * (1 - confidence)
    simulation = FinalIterateSimulation(claim.steps, canaries, seed)
    plan: tuple[FinalAudit, ...] = (
        CertifiedAudit(claim, canaries, 1 - FINAL_CERTIFIED_SHARE * alpha, simulation),
        TradeoffCurveAudit(claim, canaries, 1 - (1 - FINAL_CERTIFIED_SHARE) * alpha, simulation),
    )
    if interfering:
        return plan
    return (
        *plan,
        TotalVariationAudit(
            claim, canaries, 1 - FINAL_TOTAL_VARIATION_SHARE * (1 - confidence), simulation
        ),
    )
