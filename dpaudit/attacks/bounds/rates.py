"""Limits of a probability from counts, and what two error rates say of epsilon."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaincinv

from dpaudit.vocabulary.bound import Bound
from dpaudit.vocabulary.errors import InvalidArgument, require_count, require_open_unit

Array = NDArray[np.float64]
Counts = NDArray[np.int64]

ROUNDING = 1e-12  # of scipy's incomplete beta functions, with room


def upper_limit(successes: Counts | int, trials: int, level: float) -> Array:
    """Return what a probability is above with probability ``level`` at most.

    Clopper & Pearson 1934: the quantile 1 - level of Beta(k + 1, n - k); 1 where k = n.

    Args:
        successes: Any shape, each from 0 to ``trials``.
        trials: How many independent trials there were.
        level: Failure probability of each limit by itself, in (0, 1).
    """
    return _beta_quantile(np.asarray(successes) + 1, trials - np.asarray(successes), 1 - level)


def lower_limit(successes: Counts | int, trials: int, level: float) -> Array:
    """Return what a probability is below with probability ``level`` at most."""
    return 1 - upper_limit(trials - np.asarray(successes), trials, level)


def jeffreys_upper_limit(successes: int, trials: int, level: float) -> Array:
    """Return the quantile 1 - level of the posterior of Jeffreys' prior, Beta(1/2, 1/2)."""
    return _beta_quantile(successes + 0.5, trials - successes + 0.5, 1 - level)


def _beta_quantile(a: Array | Counts | float, b: Array | Counts | float, level: float) -> Array:
    """Return it rounded up; 1 where ``b`` is 0."""
    inside = np.maximum(b, 0.5)
    quantile = np.minimum(1.0, betaincinv(a, inside, level) * (1 + ROUNDING))
    return np.where(np.asarray(b) > 0, quantile, 1.0)


def clopper_pearson_interval(*, successes: int, trials: int, confidence: float) -> Bound:
    """Return the exact two-sided interval of a probability (Clopper & Pearson 1934).

    Raises:
        InvalidArgument: more successes than trials, or a number out of range.
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
    """Return the largest ln((1 - delta - FNR)/FPR): one direction, 0 where it says less.

    Kairouz, Oh & Viswanath 2015, arXiv:1311.0776, Theorem 2.1: an (epsilon, delta)-DP
    mechanism has FNR + e^epsilon FPR >= 1 - delta at every threshold.

    Args:
        false_negative_rate: Upper limits, any shape.
        false_positive_rate: Upper limits, the same shape, above 0.
        delta: In [0, 1).
    """
    gain = 1 - delta - np.asarray(false_negative_rate)
    ratio = np.max(np.maximum(gain, 0.0) / np.asarray(false_positive_rate), initial=0.0)
    return max(0.0, math.log(ratio) - ROUNDING) if ratio > 0 else 0.0


def epsilon_both_ways(
    false_negative_rate: Array, false_positive_rate: Array, delta: float
) -> float:
    """Return the larger of both directions: neither neighbour is first."""
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
