"""How many records would decide whether a true-positive rate is within its limit.

The interval of a rate shrinks with members and non-members. What is computed assumes that more
records would be told apart as well as those that were scored: it is a forecast, not a bound.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import NormalDist

import msgspec

from dpaudit.vocabulary.audit import MembershipResult

MOST_TIMES = 1e6
"""How many times as many records are looked at; beyond, the rate is at its limit."""


class Records(msgspec.Struct, frozen=True):
    """Numbers of members and non-members."""

    members: int
    nonmembers: int


def records_that_decide(
    result: MembershipResult, *, fpr: float, limit: float, confidence: float
) -> Records | None:
    """Return how many records would put ``limit`` outside of the interval of the rate.

    The four statements of the interval (``TprAtFpr.interval``) each fail with a quarter of the
    failure probability. Binomial limits are taken as normal, which needs about five of each
    kind; the rates at the two thresholds are read off the measured ROC curve.

    Args:
        result: The attack that was measured.
        fpr: The false-positive rate.
        limit: The largest true-positive rate that is allowed.
        confidence: Of the interval.

    Returns:
        The least multiple of the records that were scored; None where a million times as many
        would not decide, as the rate is at its limit.
    """
    quantile = NormalDist().inv_cdf(1 - (1 - confidence) / 4)

    def decides(times: float) -> bool:
        members, nonmembers = times * result.members, times * result.nonmembers
        below = fpr - _error(fpr, nonmembers, quantile)
        above = fpr + _error(fpr, nonmembers, quantile)
        if min(below, 1 - above) * nonmembers < 1:
            return False
        least, greatest = _on_curve(result, below), _on_curve(result, above)
        lower = least - _error(least, members, quantile)
        upper = greatest + _error(greatest, members, quantile)
        return upper <= limit or lower > limit

    times = _least(decides)
    if times is None:
        return None
    return Records(math.ceil(times * result.members), math.ceil(times * result.nonmembers))


def _error(rate: float, trials: float, quantile: float) -> float:
    """Return how far a rate may be off: at the limit of Wilson's interval where it is 0 or 1."""
    variance = max(rate * (1 - rate), 1 / (trials + 1))
    return quantile * math.sqrt(variance / trials)


def _on_curve(result: MembershipResult, fpr: float) -> float:
    """Return the true-positive rate of the measured curve at ``fpr``, between its points."""
    before = (0.0, 0.0)
    for point in result.roc:
        if point[0] > fpr:
            share = (fpr - before[0]) / (point[0] - before[0])
            return before[1] + share * (point[1] - before[1])
        before = point
    return before[1]


def _least(decides: Callable[[float], bool]) -> float | None:
    """Return about the least number of times at which something is decided."""
    low, high = 1.0, 2.0
    while not decides(high):
        if high > MOST_TIMES:
            return None
        low, high = high, 2 * high
    while high / low > 1.05:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if decides(middle) else (middle, high)
    return high
