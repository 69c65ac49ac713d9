"""Recompute a bound, its power and its largest value from the statistics in an audit result.

The gate uses these functions, so that it does not have to trust the figures of an audit file.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from msgspec.structs import asdict

from dpaudit.attacks import bounds
from dpaudit.attacks.bounds.lower_bound import bisect_largest
from dpaudit.attacks.bounds.noninterfering_canaries import ASSUMES_NONINTERFERING_CANARIES
from dpaudit.attacks.one_run.known_batch_audits import (
    BatchMeansAudit,
    BatchRatesAudit,
    full_batch_bound,
)
from dpaudit.attacks.one_run.observations import ClaimedMechanism
from dpaudit.attacks.one_run.registration import least_refuting_count
from dpaudit.vocabulary.audit import (
    POWER,
    AdaptiveGuesses,
    AuditResult,
    BatchMeans,
    BatchRates,
    BoundKind,
    ClaimedCurve,
    ClassGuesses,
    ErrorBand,
    GaussianBand,
    GaussianPivot,
    GuessCount,
    OneRun,
    SequentialRanks,
    TotalVariation,
)
from dpaudit.vocabulary.errors import InvalidArgument

RecomputedBound = bounds.LowerBound
NoiseFactorTest = Callable[[float], bool]
"""Returns whether a factor on the claimed noise is refuted."""

MIN_SEARCHED_FACTOR, MAX_SEARCHED_FACTOR = 1e-2, 1e3
"""The range of noise factors that a search can return."""

MAX_EPSILON_ABOVE_CLAIM = 100.0
"""The range above the claim in which a detectable epsilon is searched, in nats."""


def recompute_bound(
    result: AuditResult, load_claim: Callable[[], ClaimedMechanism | None]
) -> RecomputedBound | None:
    """Recompute the bound from the statistics in an audit result.

    Args:
        result: The audit result.
        load_claim: Returns the claimed mechanism at the delta of ``result``, or None without a
            ledger. Called only for estimators that invert tests over the claimed family.

    Returns:
        The bound. None if it cannot be computed: the result has no estimator, or the estimator
        needs a claimed mechanism and there is none.

    Raises:
        InvalidArgument: If the statistics contradict each other.
    """
    match result.estimator:
        case OneRun():
            return _recompute_one_run(result, [_registered_guesses(result), *result.estimator.also])
        case ClassGuesses() as counts:
            _require_matching_guesses(result, counts)
            return bounds.fixed_sizes(counts, delta=result.delta, confidence=result.confidence)
        case GaussianBand() | GaussianPivot() as statistics:
            _require_all_scored(result, statistics)
            return full_batch_bound(statistics, delta=result.delta, confidence=result.confidence)
        case ErrorBand() as errors:
            _require_scored(result, errors.members, errors.nonmembers)
            return bounds.from_error_band(errors, delta=result.delta, confidence=result.confidence)
        case SequentialRanks(members, nonmembers):
            _require_scored(result, len(members), len(nonmembers))
            return bounds.sequential_pairs(
                members=np.array(members, dtype=np.float64),
                nonmembers=np.array(nonmembers, dtype=np.float64),
                delta=result.delta,
                confidence=result.confidence,
            )
        case AdaptiveGuesses():
            return bounds.adaptive_one_run(
                canaries=result.trials,
                guesses=result.guesses,
                correct=result.correct,
                delta=result.delta,
                confidence=result.confidence,
            )
        case None:
            return None
    claim = load_claim()
    return None if claim is None else _recompute_within_family(result, claim)


def _recompute_within_family(
    result: AuditResult, claim: ClaimedMechanism
) -> RecomputedBound | None:
    """Return the bound of an estimator that inverts tests over the claimed family."""
    family, confidence = claim.family, result.confidence
    match result.estimator:
        case ClaimedCurve(factor):
            _require_least_refuted(factor, _curve_refuted(result, claim))
            return _bound_at_noise_factor(factor, result, claim)
        case TotalVariation(factor):
            distance = bounds.total_variation(
                canaries=result.trials, correct=result.correct, confidence=confidence
            )
            _require_least_refuted(factor, lambda noise: family.total_variation(noise) < distance)
            return _bound_at_noise_factor(factor, result, claim)
        case BatchRates() as counts:
            return bounds.tv_known_batches(
                **asdict(counts),
                noise_multiplier=_noise_multiplier(claim),
                confidence=confidence,
                family=family,
            )
        case BatchMeans(in_batch, out_of_batch):
            return bounds.t_known_batches_of_moments(
                in_batch,
                out_of_batch,
                noise_multiplier=_noise_multiplier(claim),
                confidence=confidence,
                family=family,
            )
    return None


def has_equal_scores(result: AuditResult) -> bool:
    """Return whether all scores of an audit are equal, by its statistics: it shows nothing.

    Args:
        result: The audit result.

    Returns:
        True if every threshold separates nothing, or all ranks of models are equal; False for
        estimators that keep neither.
    """
    match result.estimator:
        case ErrorBand(members, nonmembers, missed, accused) | GaussianBand(
            members, nonmembers, missed, accused
        ):
            nothing = {(members, 0), (0, nonmembers)}
            return set(zip(missed, accused, strict=True)) <= nothing
        case SequentialRanks(members, nonmembers):
            return len({*members, *nonmembers}) <= 1
    return False


def greatest_epsilon(result: AuditResult) -> float | None:
    """Compute the bound if every guess had been correct.

    Args:
        result: The audit result.

    Returns:
        The largest attainable bound in nats; None for estimators that do not count guesses.

    Raises:
        InvalidArgument: If the statistics contradict each other.
    """
    match result.estimator:
        case ClassGuesses() as split:
            return _greatest_of_split(result, split)
        case ErrorBand() as errors:
            return greatest_of_models(errors.members, errors.nonmembers, result)
        case SequentialRanks(members, _):
            return greatest_of_pairs(len(members), result)
        case AdaptiveGuesses():
            return _greatest_of_adaptive(result)
        case OneRun():
            pass
        case _:
            return None
    registered = [_registered_guesses(result), *result.estimator.also]
    best = [GuessCount(one.guesses, one.guesses) for one in registered]
    return _recompute_one_run(result, best).epsilon


def greatest_of_models(members: int, nonmembers: int, result: AuditResult) -> float:
    """Compute the certified band's bound if the scores of both classes were separated.

    Args:
        members: Number of models with the target record.
        nonmembers: Number of models without it.
        result: Its delta and confidence count.

    Returns:
        The largest attainable bound, in nats.
    """
    best = ErrorBand(members, nonmembers, (members, 0, 0), (0, 0, nonmembers))
    return bounds.from_error_band(best, delta=result.delta, confidence=result.confidence).epsilon


def greatest_of_pairs(pairs: int, result: AuditResult) -> float:
    """Compute the sequential bound if the scores of both classes were separated.

    Args:
        pairs: Number of pairs of models.
        result: Its delta and confidence count.

    Returns:
        The bound of separated scores, in nats.
    """
    return bounds.sequential_pairs(
        members=np.ones(pairs),
        nonmembers=np.zeros(pairs),
        delta=result.delta,
        confidence=result.confidence,
    ).epsilon


def _greatest_of_adaptive(result: AuditResult) -> float:
    """Return the bound if all of the guesses had been right."""
    return bounds.adaptive_one_run(
        canaries=result.trials,
        guesses=result.guesses,
        correct=result.guesses,
        delta=result.delta,
        confidence=result.confidence,
    ).epsilon


def _greatest_of_split(result: AuditResult, counts: ClassGuesses) -> float:
    """Return the largest attainable bound of a random split with these guesses."""
    return bounds.greatest_of_fixed_sizes(
        members=counts.members,
        nonmembers=counts.nonmembers,
        guessed_in=counts.guessed_in,
        guessed_out=counts.guessed_out,
        delta=result.delta,
        confidence=result.confidence,
    )


def _require_matching_guesses(result: AuditResult, counts: ClassGuesses) -> None:
    """Require that the total numbers of guesses match the counts by class."""
    for name, given, by_class in (
        ("trials", result.trials, counts.members + counts.nonmembers),
        ("guesses", result.guesses, counts.guessed_in + counts.guessed_out),
        ("correct", result.correct, counts.right_in + counts.right_out),
    ):
        if given != by_class:
            raise InvalidArgument(name, given, f"the {by_class} of the counts by class")


def _require_all_scored(result: AuditResult, statistics: GaussianBand | GaussianPivot) -> None:
    """Require that the classes hold as many canaries as were scored."""
    counts = (
        (statistics.members, statistics.nonmembers)
        if isinstance(statistics, GaussianBand)
        else (statistics.members.count, statistics.nonmembers.count)
    )
    _require_scored(result, *counts)


def _require_scored(result: AuditResult, members: int, nonmembers: int) -> None:
    """Require that both classes together are the trials of the result."""
    if members + nonmembers != result.trials:
        given, allowed = members + nonmembers, f"with nonmembers the {result.trials} trials"
        raise InvalidArgument("members", given, allowed)


def detectable_epsilon(
    result: AuditResult, load_claim: Callable[[], ClaimedMechanism | None], seed: int
) -> float | None:
    """Recompute the power of an audit by batch, whose power is fast to compute.

    Args:
        result: The audit result.
        load_claim: As for ``recompute_bound``.
        seed: Seed of the audit's simulation.

    Returns:
        The smallest detectable epsilon in nats; infinite if no simulated noise is low enough.
        None for other audits, and without a claimed mechanism.
    """
    match result.estimator:
        case BatchRates():
            kind: type[BatchRatesAudit | BatchMeansAudit] = BatchRatesAudit
        case BatchMeans():
            kind = BatchMeansAudit
        case _:
            return None
    claim = load_claim()
    if claim is None:
        return None
    audit = kind(claim, result.trials, result.confidence, seed)
    return audit.detectable_epsilon or math.inf


def detectable_epsilon_floor(result: AuditResult, claimed_epsilon: float) -> float:
    """Compute a lower bound on the detectable epsilon from the numbers of guesses.

    To refute the claim at r guesses, some number v of them must be correct. At a true epsilon E,
    at least v guesses are correct with probability at most the p-value of E. The smallest E at
    which these probabilities, over all registered numbers of guesses, sum to 95% is a lower
    bound on the detectable epsilon.

    Args:
        result: The audit result.
        claimed_epsilon: The claim to refute, in nats.

    Returns:
        The lower bound in nats. Infinite if no number of correct guesses refutes the claim; 0
        for estimators that do not guess fair coins.

    References:
        Steinke, Nasr & Jagielski (2023), arXiv:2305.08846, Theorem 5.2.
    """
    if not isinstance(result.estimator, OneRun):
        return 0.0
    registered = [one.guesses for one in (_registered_guesses(result), *result.estimator.also)]
    needed = [
        _least_refuting_correct(result, guesses, len(registered), claimed_epsilon)
        for guesses in registered
    ]
    pairs = [(r, v) for r, v in zip(registered, needed, strict=True) if v <= r]

    def undetected(epsilon: float) -> bool:
        """Whether a true ``epsilon`` refutes the claim with probability below 95%."""
        return sum(_p_value(result, r, v, epsilon) for r, v in pairs) < POWER

    if not pairs:
        return math.inf
    return bisect_largest(undetected, claimed_epsilon, claimed_epsilon + MAX_EPSILON_ABOVE_CLAIM)


def _least_refuting_correct(
    result: AuditResult, guesses: int, tests: int, claimed_epsilon: float
) -> int:
    """Return the smallest refuting number of correct guesses; ``guesses`` + 1 if none is."""
    level = (1 - result.confidence) / tests
    return least_refuting_count(
        lambda correct: _p_value(result, guesses, correct, claimed_epsilon) <= level, guesses
    )


def _p_value(result: AuditResult, guesses: int, correct: int, epsilon: float) -> float:
    """Return the one-run p-value of ``epsilon`` at the delta of ``result``."""
    return bounds.one_run_p_value(
        epsilon=epsilon,
        canaries=result.trials,
        guesses=guesses,
        correct=correct,
        delta=result.delta,
    )


def _registered_guesses(result: AuditResult) -> GuessCount:
    """Return the number of guesses that the stated bound is from."""
    return GuessCount(result.guesses, result.correct)


def _recompute_one_run(result: AuditResult, registered: list[GuessCount]) -> RecomputedBound:
    """Return the largest bound; the numbers of guesses share the failure probability equally."""
    level = (1 - result.confidence) / len(registered)
    found = [
        bounds.one_run(
            canaries=result.trials,
            guesses=one.guesses,
            correct=one.correct,
            delta=result.delta,
            confidence=1 - level,
        )
        for one in registered
    ]
    return max(found, key=lambda bound: bound.epsilon)


def _curve_refuted(result: AuditResult, claim: ClaimedMechanism) -> NoiseFactorTest:
    """Return the test of the claimed trade-off curve at a noise factor."""

    def refuted(noise_factor: float) -> bool:
        return bounds.curve_is_refuted(
            canaries=result.trials,
            guesses=result.guesses,
            correct=result.correct,
            level=1 - result.confidence,
            tradeoff=claim.family.tradeoff(noise_factor),
        )

    return refuted


def _bound_at_noise_factor(
    factor: float | None, result: AuditResult, claim: ClaimedMechanism
) -> RecomputedBound:
    """Return the bound at the smallest refuted noise factor."""
    epsilon = claim.family.epsilon_at(factor)
    return RecomputedBound(
        epsilon, BoundKind.CONDITIONAL, result.confidence, ASSUMES_NONINTERFERING_CANARIES
    )


def _require_least_refuted(factor: float | None, refuted: NoiseFactorTest) -> None:
    """Require that the stated factor is the smallest one that the counts refute."""
    if factor is not None and not MIN_SEARCHED_FACTOR <= factor <= MAX_SEARCHED_FACTOR:
        raise InvalidArgument(
            "noise_factor", factor, f"from {MIN_SEARCHED_FACTOR:g} to {MAX_SEARCHED_FACTOR:g}"
        )
    if not bounds.is_least_refuted(factor, refuted):
        allowed = "the smallest factor on the claimed noise that the counts refute"
        raise InvalidArgument("noise_factor", factor, allowed)


def _noise_multiplier(claim: ClaimedMechanism) -> float:
    """Return the noise multiplier that all steps share."""
    return float(claim.steps.noise_multipliers[0])
