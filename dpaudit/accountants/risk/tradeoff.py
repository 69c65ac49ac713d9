"""The trade-off curve: how often an attacker is right, for how often it may be wrong.

For every t > 0 and every test, tpr <= h(t) + t fpr (Kairouz, Oh & Viswanath 2015,
arXiv:1311.0776, Theorem 2.1; Dong, Roth & Su 2019, arXiv:1905.02383, Proposition 2.5). The
least of these lines is the least concave curve above every pair of neighbours in both
orders; an attacker who may pick the neighbours at random reaches it. At t below 1 this is
tpr <= 1 - e^-epsilon (1 - delta - fpr).

upper  A few t were asked for, and any few of the lines bound the curve.
lower  h is convex: between the t that were asked for it lies above the lines through
       neighbouring answers, drawn on. The least of h(t) + t fpr then is at a corner.

Where to ask next: at the corner that is lowest for a rate that was asked for. It is where the
curve may still come down the most, and corners close in quadratically.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import msgspec
import numpy as np
from numpy.typing import NDArray

from dpaudit.accountants.risk.hockey_sticks import HockeyStick, HockeySticks, PrivacyProfile
from dpaudit.vocabulary.bound import Bound
from dpaudit.vocabulary.errors import InvalidArgument, require_count

Array = NDArray[np.float64]

MOST_QUESTIONS = 60
TOLERANCE = 1e-5  # of the true positive rate, or of the false negative rate if smaller
LEAST = 1e-30  # rates and ratios below are not looked for; what is said of them holds
WIDE = 1.0  # a gap, in powers of e, across which corners mislead
LEAST_GAP = 1e-10
APART = 1.001  # answers whose ratios are closer are not drawn on: their slope is noise
ROUNDING = 1e-14
CANCELLATION = 1e-12


class TradeoffCurve(msgspec.Struct, frozen=True):
    """The best true positive rate at false positive rates.

    Attributes:
        fpr: False positive rates, rising: taking the output of "without" for "with".
        tpr: Intervals of the best true positive rate. No attacker exceeds the upper ends, a
            concave curve; some attacker reaches the lower ends, another.
    """

    fpr: tuple[float, ...]
    tpr: tuple[Bound, ...]

    @property
    def fnr(self) -> tuple[Bound, ...]:
        """Intervals of the least false negative rate, 1 - tpr; a convex curve."""
        return tuple(_one_less(bound) for bound in self.tpr)


def tradeoff(
    profile: PrivacyProfile, fpr: Iterable[float], *, most_questions: int = MOST_QUESTIONS
) -> TradeoffCurve:
    """Return the trade-off curve at false positive rates from 0 to 1.

    Args:
        profile: Answers for delta; the curve is as tight as its intervals.
        fpr: False positive rates; returned in rising order, each once.
        most_questions: How many deltas may be asked for. Fewer widen the intervals.

    Raises:
        InvalidArgument: a rate is not between 0 and 1, or there is none.
    """
    require_count("most_questions", most_questions)
    rates = sorted({_require_rate("fpr", rate) for rate in fpr})
    if not rates:
        raise InvalidArgument("fpr", rates, "at least one rate")
    sticks = HockeySticks(profile)
    sticks.ask(0.0)
    while len(sticks.known) < most_questions:
        question = _next_question(sticks.rising(), rates)
        if question is None or abs(question) in sticks.known:
            break
        sticks.ask(question)
    known = sticks.rising()
    return TradeoffCurve(tuple(rates), tuple(_tpr(known, rate) for rate in rates))


def tpr_at_fpr(profile: PrivacyProfile, *, fpr: float) -> Bound:
    """Return the interval of the best true positive rate at one false positive rate.

    Raises:
        InvalidArgument: ``fpr`` is not between 0 and 1.
    """
    return tradeoff(profile, [fpr]).tpr[0]


def _require_rate(name: str, rate: float) -> float:
    if not 0 <= rate <= 1:
        raise InvalidArgument(name, rate, "at least 0 and at most 1")
    return float(rate)


def _one_less(bound: Bound) -> Bound:
    lower, upper = 1 - bound.upper, 1 - bound.lower
    return Bound(max(0.0, math.nextafter(lower, -1.0)), min(1.0, math.nextafter(upper, 2.0)))


def _next_question(known: list[HockeyStick], rates: list[float]) -> float | None:
    """Return the log ratio to ask about, where the curve may still come down the most."""
    # As if the upper ends were exact: what matters here is where, not how low.
    ratios, heights = _corners([HockeyStick(s.ratio, s.upper, s.upper) for s in known])
    worst, question = 1.0, None
    for rate in rates:
        reached = min(stick.upper + stick.ratio * rate for stick in known)
        lowest = int(np.argmin(heights + ratios * max(rate, LEAST)))
        below = float(heights[lowest] + ratios[lowest] * rate)
        wanted = max(TOLERANCE * min(reached, 1 - below), LEAST_GAP * reached)
        gap = (reached - below) / wanted if wanted > 0 else 0.0
        if gap > worst:
            inside = _inside(known, float(ratios[lowest]), rate)
            worst, question = (worst, question) if inside is None else (gap, inside)
    return question


def _inside(known: list[HockeyStick], corner: float, rate: float) -> float | None:
    """Return the log ratio to ask about in the gap that ``corner`` is in; None if it is small.

    Corners find kinks at once, and smooth curves where the gap is small. In a gap of many
    powers of e they creep: every other question there stays away from its ends.
    """
    # No line with a ratio above 1/fpr is below 1; nor do rates below the least matter.
    low = max((s.ratio for s in known if LEAST < s.ratio <= corner), default=LEAST)
    high = min((s.ratio for s in known if s.ratio > corner), default=math.inf)
    left, right = math.log(low), math.log(min(high, 1 / max(rate, LEAST)))
    if not right - left > 2 * math.log(APART):
        return None
    creeps = right - left > WIDE and len(known) % 4 == 3
    margin = (right - left) / 4 if creeps else math.log(APART) / 2
    return min(max(math.log(max(corner, LEAST)), left + margin), right - margin)


def _tpr(known: list[HockeyStick], fpr: float) -> Bound:
    upper = min(stick.upper + stick.ratio * fpr for stick in known) * (1 + ROUNDING)
    ratios, heights = _corners(known)
    lower = float(np.min(heights + ratios * fpr)) * (1 - ROUNDING)
    return Bound(max(fpr, lower), max(fpr, min(1.0, upper)))


def _corners(known: list[HockeyStick]) -> tuple[Array, Array]:
    """Return ratios and heights of the corners of a piecewise linear curve below h.

    Between two answers, h lies above the line drawn on from either side. Where both slopes
    come out alike or the wrong way round, by rounding, it lies above the lesser of both lines.
    """
    t, low, high = np.array([(s.ratio, s.lower, s.upper) for s in known]).T
    onward, back = _slopes(t, low, high)
    left, right, from_left, from_right = t[:-1], t[1:], onward[:-1], back[1:]
    convex = from_left < from_right
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        meet = (low[1:] - low[:-1] + from_left * left - from_right * right) / (
            from_left - from_right
        )
        inside = convex & (left < meet) & (meet < right)
        height = np.minimum(
            low[:-1] + from_left * (meet - left), low[1:] + from_right * (meet - right)
        )
        end = t[-1] - (1 - CANCELLATION) * low[-1] / onward[-1] if onward[-1] < 0 else t[-1]
        at_left = np.minimum(low[:-1], low[1:] - from_right * (right - left))
        at_right = np.minimum(low[1:], low[:-1] + from_left * (right - left))
    slack = CANCELLATION * low[:-1]
    ratios = [t, meet[inside], left[~convex], right[~convex], [end]]
    heights = [low, (height - slack)[inside], (at_left - slack)[~convex]]
    heights += [(at_right - slack)[~convex], [0.0 if onward[-1] < 0 else low[-1]]]
    return np.concatenate(ratios), np.maximum(0.0, np.concatenate(heights))


def _slopes(t: Array, low: Array, high: Array) -> tuple[Array, Array]:
    """Return, for each answer, lines below h: the slope to draw on to the right, and to the left.

    To the right h lies above the line through an earlier answer; to the left, above the line
    through a later one. h falls, by at most 1 per unit.
    """
    apart = t[:, None] - t[None, :]
    earlier = t[:, None] >= APART * t[None, :]
    np.fill_diagonal(earlier, val=False)
    with np.errstate(divide="ignore", invalid="ignore"):
        rising = np.where(earlier, (low[:, None] - high[None, :]) / apart, -1.0)
        falling = np.where(earlier.T, (high[None, :] - low[:, None]) / -apart, 0.0)
    return np.clip(rising.max(axis=1), -1.0, 0.0), np.minimum(falling.min(axis=1), 0.0)
