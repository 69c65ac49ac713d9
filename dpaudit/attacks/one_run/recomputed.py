"""A bound and its power from the counts in an audit, for whoever does not believe the audit."""

from __future__ import annotations

import math
from collections.abc import Callable

from msgspec.structs import asdict

from dpaudit.attacks import bounds
from dpaudit.attacks.bounds.independent import INDEPENDENT
from dpaudit.attacks.bounds.search import largest
from dpaudit.attacks.one_run.claimed import Claimed
from dpaudit.attacks.one_run.full_batch import full_batch_bound
from dpaudit.attacks.one_run.guesses import fewest
from dpaudit.attacks.one_run.visible import GapAudit, HitAudit
from dpaudit.vocabulary.audit import POWER, AuditResult, BoundKind
from dpaudit.vocabulary.errors import InvalidArgument
from dpaudit.vocabulary.estimators import (
    BatchMeans,
    BatchRates,
    ClaimedCurve,
    ClassGuesses,
    GaussianBand,
    GaussianPivot,
    Guessed,
    OneRun,
    TotalVariation,
)

Found = bounds.LowerBound
Refuted = Callable[[float], bool]
"""Whether a factor on the claimed noise is refuted."""

LEAST_FACTOR, MOST_FACTOR = 1e-2, 1e3
"""Beyond these no search for a noise factor goes."""

MOST_ABOVE = 100.0
"""How far above a claim a power is looked for, in nats."""


def recomputed_bound(result: AuditResult, claim: Callable[[], Claimed | None]) -> Found | None:
    """Return the bound that the statistics in ``result`` give.

    Args:
        result: What an audit says.
        claim: Returns the claimed steps, at the delta of ``result``; None where no ledger is
            there. It is called for estimators that invert over the claimed family alone.

    Returns:
        The bound; None where it cannot be computed: the result names no estimator, or one that
        inverts over claimed steps that are not given.

    Raises:
        InvalidArgument: The statistics contradict each other.
    """
    match result.estimator:
        case OneRun():
            return _one_run(result, [_counted(result), *result.estimator.also])
        case ClassGuesses() as counts:
            _require_counted(result, counts)
            return bounds.fixed_sizes(counts, delta=result.delta, confidence=result.confidence)
        case GaussianBand() | GaussianPivot() as read:
            _require_all_scored(result, read)
            return full_batch_bound(read, delta=result.delta, confidence=result.confidence)
        case None:
            return None
    claimed = claim()
    return None if claimed is None else _within_the_family(result, claimed)


def _within_the_family(result: AuditResult, claimed: Claimed) -> Found | None:
    family, confidence = claimed.family, result.confidence
    match result.estimator:
        case ClaimedCurve(factor):
            _require_least(factor, _curve_refuted(result, claimed))
            return _at(factor, result, claimed)
        case TotalVariation(factor):
            distance = bounds.total_variation(
                canaries=result.trials, correct=result.correct, confidence=confidence
            )
            _require_least(factor, lambda noise: family.total_variation(noise) < distance)
            return _at(factor, result, claimed)
        case BatchRates() as counts:
            return bounds.tv_visible(
                **asdict(counts),
                noise_multiplier=_noise_multiplier(claimed),
                confidence=confidence,
                family=family,
            )
        case BatchMeans(in_batch, out_of_batch):
            return bounds.t_visible_of_moments(
                in_batch,
                out_of_batch,
                noise_multiplier=_noise_multiplier(claimed),
                confidence=confidence,
                family=family,
            )
    return None


def greatest_epsilon(result: AuditResult) -> float | None:
    """Return the bound had every guess been right; None for statistics that are no guesses."""
    if isinstance(result.estimator, ClassGuesses):
        return _greatest_of_split(result, result.estimator)
    if not isinstance(result.estimator, OneRun):
        return None
    registered = [_counted(result), *result.estimator.also]
    best = [Guessed(one.guesses, one.guesses) for one in registered]
    return _one_run(result, best).epsilon


def _greatest_of_split(result: AuditResult, counts: ClassGuesses) -> float:
    return bounds.greatest_of_fixed_sizes(
        members=counts.members,
        nonmembers=counts.nonmembers,
        guessed_in=counts.guessed_in,
        guessed_out=counts.guessed_out,
        delta=result.delta,
        confidence=result.confidence,
    )


def _require_counted(result: AuditResult, counts: ClassGuesses) -> None:
    """Refuse numbers of guesses beside the counts by class that are other ones."""
    for name, given, by_class in (
        ("trials", result.trials, counts.members + counts.nonmembers),
        ("guesses", result.guesses, counts.guessed_in + counts.guessed_out),
        ("correct", result.correct, counts.right_in + counts.right_out),
    ):
        if given != by_class:
            raise InvalidArgument(name, given, f"the {by_class} of the counts by class")


def _require_all_scored(result: AuditResult, read: GaussianBand | GaussianPivot) -> None:
    """Refuse counts of other canaries than were scored."""
    counts = (
        (read.members, read.nonmembers)
        if isinstance(read, GaussianBand)
        else (read.members.count, read.nonmembers.count)
    )
    if sum(counts) != result.trials:
        raise InvalidArgument("members", sum(counts), f"with nonmembers the {result.trials} trials")


def detectable_epsilon(
    result: AuditResult, claim: Callable[[], Claimed | None], seed: int
) -> float | None:
    """Return the power of an audit whose power is quickly computed anew; None for others.

    Args:
        result: What an audit says.
        claim: As for ``recomputed_bound``.
        seed: Of the audit's simulation.
    """
    match result.estimator:
        case BatchRates():
            kind: type[HitAudit | GapAudit] = HitAudit
        case BatchMeans():
            kind = GapAudit
        case _:
            return None
    claimed = claim()
    if claimed is None:
        return None
    audit = kind(claimed, result.trials, result.confidence, seed)
    return audit.detectable_epsilon or math.inf  # no noise is low enough


def least_detectable_epsilon(result: AuditResult, claimed_epsilon: float) -> float:
    """Return what the power of an audit cannot be below, by its numbers of guesses alone.

    To refute the claim at r guesses, some number v of them must be right. At a true epsilon E
    that many are right with a probability of at most the p-value of E (Steinke, Nasr &
    Jagielski 2023, Theorem 5.2). The least E at which these, over all registered numbers of
    guesses, sum to 95% is a lower bound on the detectable epsilon. Infinite where no number of
    right guesses would refute the claim.

    Args:
        result: What an audit says; of estimators that are no guesses of fair coins, nothing is
            known: 0.
        claimed_epsilon: The claim that is to be refuted.
    """
    if not isinstance(result.estimator, OneRun):
        return 0.0
    registered = [one.guesses for one in (_counted(result), *result.estimator.also)]
    needed = [_needed(result, guesses, len(registered), claimed_epsilon) for guesses in registered]
    pairs = [(r, v) for r, v in zip(registered, needed, strict=True) if v <= r]

    def unseen(epsilon: float) -> bool:
        return sum(_p_value(result, r, v, epsilon) for r, v in pairs) < POWER

    if not pairs:
        return math.inf
    return largest(unseen, claimed_epsilon, claimed_epsilon + MOST_ABOVE)


def _needed(result: AuditResult, guesses: int, tests: int, claimed_epsilon: float) -> int:
    """Return how many right guesses refute the claim; one more than there are: none do."""
    level = (1 - result.confidence) / tests
    return fewest(
        lambda correct: _p_value(result, guesses, correct, claimed_epsilon) <= level, guesses
    )


def _p_value(result: AuditResult, guesses: int, correct: int, epsilon: float) -> float:
    return bounds.one_run_p_value(
        epsilon=epsilon,
        canaries=result.trials,
        guesses=guesses,
        correct=correct,
        delta=result.delta,
    )


def _counted(result: AuditResult) -> Guessed:
    return Guessed(result.guesses, result.correct)


def _one_run(result: AuditResult, registered: list[Guessed]) -> Found:
    """Return the largest bound; each has its part of the failure probability."""
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


def _curve_refuted(result: AuditResult, claimed: Claimed) -> Refuted:
    def refuted(noise_factor: float) -> bool:
        return bounds.curve_is_refuted(
            canaries=result.trials,
            guesses=result.guesses,
            correct=result.correct,
            level=1 - result.confidence,
            tradeoff=claimed.family.tradeoff(noise_factor),
        )

    return refuted


def _at(factor: float | None, result: AuditResult, claimed: Claimed) -> Found:
    epsilon = claimed.family.epsilon_at(factor)
    return Found(epsilon, BoundKind.CONDITIONAL, result.confidence, INDEPENDENT)


def _require_least(factor: float | None, refuted: Refuted) -> None:
    if factor is not None and not LEAST_FACTOR <= factor <= MOST_FACTOR:
        raise InvalidArgument("noise_factor", factor, f"from {LEAST_FACTOR:g} to {MOST_FACTOR:g}")
    if not bounds.is_least_refuted(factor, refuted):
        allowed = "the least factor on the claimed noise that the counts refute"
        raise InvalidArgument("noise_factor", factor, allowed)


def _noise_multiplier(claimed: Claimed) -> float:
    return float(claimed.steps.noise_multipliers[0])
