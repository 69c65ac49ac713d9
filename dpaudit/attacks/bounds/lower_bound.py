"""The result of an audit's bound, and what error rates imply for epsilon.

A lower bound states its kind, its confidence, its assumptions and what exactly it refutes.
Bounds come from tests of "epsilon is at most e": the largest rejected e is the bound. A
bisection finds it, rounded down.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import bdtr, bdtrc, bdtrik, betaincinv

from dpaudit.vocabulary.audit import BoundKind
from dpaudit.vocabulary.errors import InvalidArgument, require_count, require_open_unit
from dpaudit.vocabulary.privacy_terms import Bound

ASSUMES_FAIR_COINS = "nothing but fair, independent coins"
ASSUMES_INDEPENDENT_TRIALS = (
    "independent trials, and a threshold that was chosen without these scores"
)
STATES_EPSILON_LOWER_BOUND = "the mechanism is not (epsilon, delta)-DP for any smaller epsilon"


@dataclass(frozen=True)
class LowerBound:
    """A lower bound on epsilon.

    Attributes:
        epsilon: The bound in nats, finite; 0 is the trivial bound.
        kind: Certified, conditional on assumptions, or only an estimate.
        confidence: Probability with which the bound holds, if the assumptions are true.
        assumes: The assumptions, as text for reports.
        states: The exact statement that is refuted, as text for reports.
        noise_factor: The smallest refuted factor on the claimed noise, where the bound inverts
            tests over the claimed family. None if no factor is refuted, or without a family.

    Example:
        >>> from dpaudit.vocabulary.audit import BoundKind
        >>> bound = LowerBound(1.5, BoundKind.CERTIFIED, 0.95, ASSUMES_FAIR_COINS)
        >>> bound.states
        'the mechanism is not (epsilon, delta)-DP for any smaller epsilon'
    """

    epsilon: float
    kind: BoundKind
    confidence: float
    assumes: str
    states: str = STATES_EPSILON_LOWER_BOUND
    noise_factor: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.epsilon < math.inf:
            raise InvalidArgument("epsilon", self.epsilon, "at least 0 and finite")


def require_delta_or_zero(delta: float) -> None:
    """Require a delta in [0, 1); lower bounds allow 0.

    Args:
        delta: The delta to check.

    Raises:
        InvalidArgument: If ``delta`` is NaN, negative, or 1 or more.
    """
    if not 0 <= delta < 1:
        raise InvalidArgument("delta", delta, "at least 0 and below 1")


# Inversion of monotone tests.

RESOLUTION = 1e-12  # of a bisection, relative to 1 + the size of its result


def bisect_largest(
    holds: Callable[[float], bool], low: float, high: float, resolution: float = RESOLUTION
) -> float:
    """Find the largest number for which a monotone condition holds, rounded down.

    Args:
        holds: The condition: true up to some number, and false above it.
        low: A number for which it holds. It is the result if none above is found.
        high: The end of the search. It is the result if the condition holds there.
        resolution: The largest distance of the result from that number, relative to
            1 + its size.

    Returns:
        A number for which the condition holds, at most ``resolution`` below the largest.
    """
    if holds(high):
        return high
    while high - low > resolution * (1 + abs(low)):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


# Exact confidence limits of error rates, and the epsilon that two error rates imply.
#
# Three parts:
#
# - Clopper-Pearson limits of a probability, from counts.
# - The conversion of false-negative and false-positive rates to epsilon.
# - The interval of a true-positive rate at a given false-positive rate, from counts.

Array = NDArray[np.float64]
Counts = NDArray[np.int64]

BETA_QUANTILE_ROUNDING = 1e-12  # of scipy's incomplete beta functions, with room


def upper_limit(successes: Counts | int, trials: int, level: float) -> Array:
    """Compute the one-sided Clopper-Pearson upper limit of a probability.

    For k successes in n trials it is the quantile 1 - level of Beta(k + 1, n - k), and 1 where
    k = n. Rounded up.

    Args:
        successes: Numbers of successes, any shape, each from 0 to ``trials``.
        trials: Number of independent trials.
        level: Failure probability of each limit by itself, in (0, 1).

    Returns:
        Upper limits, the shape of ``successes``.

    References:
        Clopper & Pearson (1934).
    """
    return _beta_quantile(np.asarray(successes) + 1, trials - np.asarray(successes), 1 - level)


def lower_limit(successes: Counts | int, trials: int, level: float) -> Array:
    """Compute the one-sided Clopper-Pearson lower limit of a probability, rounded down.

    Args:
        successes: Numbers of successes, any shape, each from 0 to ``trials``.
        trials: Number of independent trials.
        level: Failure probability of each limit by itself, in (0, 1).

    Returns:
        Lower limits, the shape of ``successes``; 0 where there is no success.
    """
    # A success probability p of at least 1 - u, with u the upper limit of 1 - p.
    return 1 - upper_limit(trials - np.asarray(successes), trials, level)


def jeffreys_upper_limit(successes: int, trials: int, level: float) -> Array:
    """Compute the upper end of a credible interval under Jeffreys' prior, Beta(1/2, 1/2).

    The posterior of k successes in n trials is Beta(k + 1/2, n - k + 1/2).

    Args:
        successes: Number of successes, k.
        trials: Number of trials, n.
        level: Posterior probability above the limit, in (0, 1).

    Returns:
        The quantile 1 - level of the posterior, rounded up.
    """
    return _beta_quantile(successes + 0.5, trials - successes + 0.5, 1 - level)


def _beta_quantile(a: Array | Counts | float, b: Array | Counts | float, level: float) -> Array:
    """Return a quantile of Beta(a, b), rounded up; 1 where ``b`` is 0."""
    inside = np.maximum(b, 0.5)
    quantile = np.minimum(1.0, betaincinv(a, inside, level) * (1 + BETA_QUANTILE_ROUNDING))
    return np.where(np.asarray(b) > 0, quantile, 1.0)


def clopper_pearson_interval(*, successes: int, trials: int, confidence: float) -> Bound:
    """Compute the exact two-sided Clopper-Pearson interval of a probability.

    Args:
        successes: Number of successes, from 0 to ``trials``.
        trials: Number of independent trials, at least 1.
        confidence: Probability with which the interval holds, in (0, 1). Each end fails with
            probability at most half of the rest.

    Returns:
        The interval, rounded outwards.

    Raises:
        InvalidArgument: If there are more successes than trials, or a number is out of range.

    References:
        Clopper & Pearson (1934).

    Example:
        >>> interval = clopper_pearson_interval(successes=5, trials=100, confidence=0.95)
        >>> round(interval.lower, 4), round(interval.upper, 4)
        (0.0164, 0.1128)
    """
    require_count("trials", trials)
    require_count("successes", successes, least=0)
    require_open_unit("confidence", confidence)
    if successes > trials:
        raise InvalidArgument("successes", successes, f"at most the {trials} trials")
    side = (1 - confidence) / 2
    low = float(lower_limit(successes, trials, side))
    return Bound(max(0.0, low), float(upper_limit(successes, trials, side)))


def epsilon_of_rates(
    *, false_negative_rate: Array | float, false_positive_rate: Array | float, delta: float
) -> float:
    """Compute the epsilon that error rates imply, in one direction.

    An (epsilon, delta)-DP mechanism has FNR + e^epsilon FPR >= 1 - delta at every threshold.
    Upper limits of both rates therefore give

        epsilon >= max over thresholds of ln((1 - delta - FNR) / FPR).

    Args:
        false_negative_rate: Upper limits, any shape, in [0, 1].
        false_positive_rate: Upper limits, the same shape, above 0.
        delta: In [0, 1).

    Returns:
        The largest lower bound in nats, rounded down; 0 where none is positive.

    References:
        Kairouz, Oh & Viswanath (2015), arXiv:1311.0776, Theorem 2.1.

    Example:
        >>> epsilon = epsilon_of_rates(false_negative_rate=0.1, false_positive_rate=0.05, delta=0)
        >>> round(epsilon, 4)
        2.8904
    """
    gain = 1 - delta - np.asarray(false_negative_rate)
    ratio = np.max(np.maximum(gain, 0.0) / np.asarray(false_positive_rate), initial=0.0)
    return max(0.0, math.log(ratio) - BETA_QUANTILE_ROUNDING) if ratio > 0 else 0.0


def epsilon_both_directions(
    false_negative_rate: Array, false_positive_rate: Array, delta: float
) -> float:
    """Compute the larger epsilon of both directions, since neighbors are unordered.

    Args:
        false_negative_rate: Upper limits, any shape, in (0, 1].
        false_positive_rate: Upper limits, the same shape, in (0, 1].
        delta: In [0, 1).

    Returns:
        The larger of both lower bounds, in nats; 0 where neither is positive.
    """
    one = epsilon_of_rates(
        false_negative_rate=false_negative_rate,
        false_positive_rate=false_positive_rate,
        delta=delta,
    )
    other = epsilon_of_rates(
        false_negative_rate=false_positive_rate,
        false_positive_rate=false_negative_rate,
        delta=delta,
    )
    return max(one, other)


# The interval of a true-positive rate at a given false-positive rate, from counts.
#
# The threshold with that false-positive rate is unknown, too. Two order statistics of the
# non-members' scores enclose it, and Clopper-Pearson limits at both enclose the rate. These are
# four statements. Each fails with at most a quarter of the failure probability.

STATEMENTS = 4  # statements that share the failure probability


def tpr_interval_of_counts(
    hits: tuple[int, int], *, members: int, nonmembers: int, fpr: float, confidence: float
) -> Bound:
    """Compute the interval of the true-positive rate at the false-positive rate ``fpr``.

    Args:
        hits: Numbers of members above two thresholds: the one whose false-positive rate is at
            most ``fpr``, and the one whose rate is at least ``fpr``, each up to its share of
            the failure probability.
        members: Number of members that were scored.
        nonmembers: Number of non-members that were scored.
        fpr: The false-positive rate, in (0, 1).
        confidence: Probability with which the interval holds, in (0, 1).

    Returns:
        The interval of the true-positive rate.
    """
    ranks = threshold_ranks(nonmembers, np.array([fpr]), confidence)
    counts = np.array([hits[0]]), np.array([hits[1]])
    lower, upper = tpr_limits_of_counts(counts, members, ranks, nonmembers, confidence)
    return Bound(float(lower[0]), float(upper[0]))


def threshold_ranks(nonmembers: int, rates: Array, confidence: float) -> tuple[Counts, Counts]:
    """Compute the ranks of the non-members whose scores enclose the wanted thresholds.

    Args:
        nonmembers: Number of non-members that were scored.
        rates: False-positive rates, shape ``(k,)``, each in (0, 1).
        confidence: Probability with which an interval holds, in (0, 1).

    Returns:
        Two arrays of shape ``(k,)``, counted from the largest score. The first threshold has a
        false-positive rate of at most ``rates``, the second of at least ``rates``, each up to
        its share of the failure probability. With too few non-members the first rank is 0, or
        the second is above ``nonmembers``: no score is such a threshold.
    """
    share = (1 - confidence) / STATEMENTS
    strict = _lower_quantile(share, nonmembers, rates)
    return strict, _upper_quantile(share, nonmembers, rates) + 1


def tpr_limits_of_counts(
    hits: tuple[Counts, Counts],
    members: int,
    ranks: tuple[Counts, Counts],
    nonmembers: int,
    confidence: float,
) -> tuple[Array, Array]:
    """Compute the limits of the true-positive rate at each false-positive rate.

    Args:
        hits: Numbers of members above the strict and the loose thresholds, each shape ``(k,)``.
        members: Number of members that were scored.
        ranks: The ranks of both thresholds, as ``threshold_ranks`` returns them.
        nonmembers: Number of non-members that were scored.
        confidence: Probability with which each interval holds, in (0, 1).

    Returns:
        Lower and upper limits, each shape ``(k,)``; 0 or 1 where there is no threshold.
    """
    share, (least, greatest), (strict, loose) = (1 - confidence) / STATEMENTS, hits, ranks
    lower = np.where(strict > 0, _tpr_lower_limit(least, members, share), 0.0)
    return lower, np.where(loose <= nonmembers, _tpr_upper_limit(greatest, members, share), 1.0)


def _tpr_lower_limit(hits: Counts, trials: int, share: float) -> Array:
    """Return Clopper-Pearson lower limits that fail with probability ``share`` each."""
    some = np.maximum(hits, 1)
    return np.where(hits > 0, betaincinv(some, trials - some + 1, share), 0.0)


def _tpr_upper_limit(hits: Counts, trials: int, share: float) -> Array:
    """Return Clopper-Pearson upper limits that fail with probability ``share`` each."""
    return 1 - _tpr_lower_limit(trials - hits, trials, share)


def _lower_quantile(share: float, trials: int, rates: Array) -> Counts:
    """Return the least k with P[Bin(trials, rate) <= k] >= ``share``."""
    k = np.clip(np.ceil(bdtrik(share, trials, rates)), 0, trials)
    k = np.where((k > 0) & (bdtr(np.maximum(k - 1, 0), trials, rates) >= share), k - 1, k)
    k = np.where(bdtr(k, trials, rates) >= share, k, k + 1)  # rounding of the inverse
    return np.asarray(k, dtype=np.int64)


def _upper_quantile(share: float, trials: int, rates: Array) -> Counts:
    """Return the least k with P[Bin(trials, rate) > k] <= ``share``."""
    k = np.clip(np.ceil(bdtrik(1 - share, trials, rates)), 0, trials)
    k = np.where((k > 0) & (bdtrc(np.maximum(k - 1, 0), trials, rates) <= share), k - 1, k)
    k = np.where(bdtrc(k, trials, rates) <= share, k, k + 1)
    return np.asarray(k, dtype=np.int64)
