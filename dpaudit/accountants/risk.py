"""Convert a privacy profile to the success of the best attacker.

All functions take a privacy profile, that is, delta(epsilon) as an interval. Its upper ends
give what no attacker exceeds; its lower ends give what some attacker reaches. The attacker
knows all records but one, selects the worst pair of neighbors, may select it at random, and
observes everything that was released. Of the two neighbors, "with" is the one whose output
the attacker tries to recognize; the other one is "without".

- ``tradeoff``, ``tpr_at_fpr``: true positive rate at a false positive rate
- ``advantage``: largest difference of true and false positive rate
- ``accuracy``: accuracy of the best guess for a prior probability
- ``bayes_risk``: error probability of that guess
- ``posterior``: bound on the posterior probability of "with"
- ``reconstruction``: success rate of guessing a whole record
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from dpaudit.vocabulary.errors import (
    AccountingError,
    InvalidArgument,
    require_count,
    require_open_unit,
    require_rate,
    to_python_number,
)
from dpaudit.vocabulary.notebooks import bound_in_words, plot_tradeoff, table_html
from dpaudit.vocabulary.privacy_terms import Bound

__all__ = [
    "PosteriorBound",
    "PrivacyProfile",
    "TradeoffCurve",
    "accuracy",
    "advantage",
    "bayes_risk",
    "posterior",
    "reconstruction",
    "tpr_at_fpr",
    "tradeoff",
]


# Compute the trade-off curve: the best true positive rate at each false positive rate.
#
# With h(t) the hockey-stick divergence at ratio t, every test has, for every t > 0,
#
#     tpr <= h(t) + t fpr
#
# (Kairouz, Oh & Viswanath 2015, arXiv:1311.0776, Theorem 2.1; Dong, Roth & Su 2019,
# arXiv:1905.02383, Proposition 2.5). The least of these lines is the least concave curve above
# every pair of neighbors in both directions. An attacker who may select the neighbors at random
# reaches it. For t < 1 the line is tpr <= 1 - e^-epsilon (1 - delta - fpr).
#
# Upper ends: h is evaluated at a few t; any subset of the lines bounds the curve from above.
#
# Lower ends: h is convex. Between two evaluated t it lies above the extension of the chords on
# either side. These extensions form a piecewise linear function below h, whose corners determine
# the least of h(t) + t fpr.
#
# Next evaluation: the corner that is lowest for a requested rate. There the curve may still fall
# the most, and corners converge quadratically.

# The hockey-stick divergence: with t = e^epsilon,
#
#     h(t) = sup_S P(S) - t Q(S) = delta(epsilon),    h(1/t) = 1 - 1/t + h(t)/t,
#
# the second because profiles cover both directions. Both ends of each value are kept.

LARGEST_EPSILON = 700.0  # its exponential does not overflow
RATIO_ROUNDING = 8 * 2.0**-53


class PrivacyProfile(Protocol):
    """Protocol of the result of any accountant that bounds delta(epsilon).

    Example:
        >>> from dpaudit.accountants import gdp, risk
        >>> from dpaudit.vocabulary.privacy_terms import Bound
        >>> class OneGaussian:
        ...     def delta(self, *, epsilon: float) -> Bound:
        ...         return gdp.delta_of_mu(epsilon, mu=1.0)
        >>> round(risk.advantage(OneGaussian()).upper, 4)
        0.3829
    """

    def delta(self, *, epsilon: float) -> Bound:
        """Return the interval of the least delta at ``epsilon``.

        Args:
            epsilon: Privacy loss in nats, at least 0.

        Returns:
            The interval; its lower end is at least 0.
        """


@dataclass(frozen=True, order=True)
class HockeyStickPoint:
    """An evaluation ``lower <= h(ratio) <= upper``; the ratio is known up to rounding."""

    ratio: float
    lower: float
    upper: float


@dataclass(frozen=True)
class HockeyStickCurve:
    """The evaluated points of a profile's hockey-stick divergence; each is evaluated once."""

    profile: PrivacyProfile
    evaluated: dict[float, tuple[HockeyStickPoint, HockeyStickPoint]] = field(default_factory=dict)

    def points_at(self, epsilon: float) -> tuple[HockeyStickPoint, HockeyStickPoint]:
        """Return h at e^|epsilon| and at e^-|epsilon|; |epsilon| is at most ``LARGEST_EPSILON``."""
        size = min(abs(epsilon), LARGEST_EPSILON)
        if size not in self.evaluated:
            self.evaluated[size] = _points_from_delta(size, self.profile.delta(epsilon=size))
        return self.evaluated[size]

    def sorted_points(self) -> list[HockeyStickPoint]:
        """Return all evaluated points in the order of their ratios, from h(0) = 1 on."""
        found = {point for pair in self.evaluated.values() for point in pair}
        return [HockeyStickPoint(0.0, 1.0, 1.0), *sorted(found)]


def _points_from_delta(epsilon: float, delta: Bound) -> tuple[HockeyStickPoint, HockeyStickPoint]:
    """Return h at e^epsilon and e^-epsilon: h(1/t) = 1 - 1/t + h(t)/t, by exchanging P and Q."""
    above = HockeyStickPoint(math.exp(epsilon), max(0.0, delta.lower), min(1.0, delta.upper))
    ratio, gain = math.exp(-epsilon), -math.expm1(-epsilon)
    below = HockeyStickPoint(
        ratio,
        (gain + ratio * above.lower) * (1 - RATIO_ROUNDING),
        min(1.0, (gain + ratio * above.upper) * (1 + RATIO_ROUNDING)),
    )
    return above, below


Array = NDArray[np.float64]

MOST_EVALUATIONS = 60
TOLERANCE = 1e-5  # of the true positive rate, or of the false negative rate if smaller
LEAST_RATE = 1e-30  # no evaluation is spent on rates and ratios below; their bounds still hold
WIDE_GAP = 1.0  # width of a gap, in powers of e, above which corners converge slowly
LEAST_GAP = 1e-10
LEAST_RATIO_STEP = 1.001  # closer points give no chord: rounding dominates their slope
CURVE_ROUNDING = 1e-14
CANCELLATION = 1e-12


class TradeoffCurve(msgspec.Struct, frozen=True):
    """The best true positive rate at several false positive rates.

    Attributes:
        fpr: False positive rates in ascending order: P["with" is guessed] under "without".
        tpr: Intervals of the best true positive rate. No attacker exceeds the upper ends, which
            form a concave curve. Some attacker reaches the lower ends, which form another one.

    Example:
        >>> from dpaudit.accountants import Gaussian, gdp, risk
        >>> profile = gdp.profile(Gaussian(noise_multiplier=1.0))
        >>> curve = risk.tradeoff(profile, [0.1, 0.01])
        >>> curve.fpr
        (0.01, 0.1)
        >>> [round(bound.upper, 4) for bound in curve.fnr]
        [0.9076, 0.6109]
    """

    fpr: tuple[float, ...]
    tpr: tuple[Bound, ...]

    @property
    def fnr(self) -> tuple[Bound, ...]:
        """Intervals of the least false negative rate, 1 - tpr, rounded outward; a convex curve."""
        return tuple(complement(bound) for bound in self.tpr)

    def _repr_html_(self) -> str:
        """Return the rates as a table for notebooks."""
        rows = (
            (f"{rate:g}", bound_in_words(bound))
            for rate, bound in zip(self.fpr, self.tpr, strict=True)
        )
        heading = ("false positive rate", "largest true positive rate")
        return table_html("Trade-off curve", rows, heading)

    def plot(self, axes: Any = None) -> Any:
        """Draw the largest true positive rate over the false positive rate.

        Args:
            axes: Axes of matplotlib to draw on; None: those of a new figure.

        Returns:
            The axes, with the diagonal of a release that reveals nothing.

        Raises:
            MissingExtra: If matplotlib is not installed.
        """
        return plot_tradeoff(axes, self.fpr, self.tpr)


def tradeoff(
    profile: PrivacyProfile, fpr: Iterable[float], *, most_evaluations: int = MOST_EVALUATIONS
) -> TradeoffCurve:
    """Compute the trade-off curve at false positive rates.

    Args:
        profile: Privacy profile of the mechanism; the curve is as tight as its intervals.
        fpr: False positive rates, each from 0 to 1.
        most_evaluations: Largest number of evaluations of delta. Fewer widen the intervals.

    Returns:
        The curve at the distinct rates in ascending order.

    Raises:
        InvalidArgument: If a rate is not from 0 to 1, or there is none.

    References:
        Dong, Roth & Su (2019), arXiv:1905.02383, Proposition 2.5.

    Example:
        >>> from dpaudit.accountants import Gaussian, gdp, risk
        >>> profile = gdp.profile(Gaussian(noise_multiplier=1.0))
        >>> [round(bound.upper, 4) for bound in risk.tradeoff(profile, [0.01, 0.1]).tpr]
        [0.0924, 0.3891]
    """
    most_evaluations = to_python_number(most_evaluations)
    require_count("most_evaluations", most_evaluations)
    rates = sorted({_checked_rate("fpr", rate) for rate in fpr})
    if not rates:
        raise InvalidArgument("fpr", rates, "at least one rate")
    curve = HockeyStickCurve(profile)
    curve.points_at(0.0)
    while len(curve.evaluated) < most_evaluations:
        log_ratio = _next_evaluation(curve.sorted_points(), rates)
        if log_ratio is None or abs(log_ratio) in curve.evaluated:
            break
        curve.points_at(log_ratio)
    known = curve.sorted_points()
    return TradeoffCurve(tuple(rates), tuple(_tpr(known, rate) for rate in rates))


def tpr_at_fpr(profile: PrivacyProfile, *, fpr: float) -> Bound:
    """Compute the interval of the best true positive rate at one false positive rate.

    Args:
        profile: Privacy profile of the mechanism.
        fpr: False positive rate, from 0 to 1.

    Returns:
        The interval, from ``fpr`` itself to at most 1.

    Raises:
        InvalidArgument: If ``fpr`` is not from 0 to 1.

    Example:
        >>> from dpaudit.accountants import Gaussian, gdp, risk
        >>> profile = gdp.profile(Gaussian(noise_multiplier=1.0))
        >>> round(risk.tpr_at_fpr(profile, fpr=0.05).upper, 4)
        0.2595
    """
    return tradeoff(profile, [fpr]).tpr[0]


def _checked_rate(name: str, rate: float) -> float:
    require_rate(name, rate)
    return float(rate)


def complement(bound: Bound) -> Bound:
    """Return 1 - bound, rounded outward within [0, 1].

    Args:
        bound: Interval of a probability.

    Returns:
        Interval of the complement.
    """
    lower, upper = 1 - bound.upper, 1 - bound.lower
    return Bound(max(0.0, math.nextafter(lower, -1.0)), min(1.0, math.nextafter(upper, 2.0)))


def _next_evaluation(known: list[HockeyStickPoint], rates: list[float]) -> float | None:
    """Return the log ratio to evaluate next, or None where all rates are within the tolerance."""
    # Upper ends are treated as exact: only the position of the corner matters here.
    ratios, heights = _corners([HockeyStickPoint(s.ratio, s.upper, s.upper) for s in known])
    worst, log_ratio = 1.0, None
    for rate in rates:
        # The curve at this rate lies between the corner below and the best line above.
        reached = min(point.upper + point.ratio * rate for point in known)
        lowest = int(np.argmin(heights + ratios * max(rate, LEAST_RATE)))
        below = float(heights[lowest] + ratios[lowest] * rate)
        wanted = max(TOLERANCE * min(reached, 1 - below), LEAST_GAP * reached)
        gap = (reached - below) / wanted if wanted > 0 else 0.0
        if gap > worst:
            inside = _point_in_gap(known, float(ratios[lowest]), rate)
            worst, log_ratio = (worst, log_ratio) if inside is None else (gap, inside)
    return log_ratio


def _point_in_gap(known: list[HockeyStickPoint], corner: float, rate: float) -> float | None:
    """Return the log ratio to evaluate in the gap around ``corner``; None if the gap is small.

    Corners locate kinks at once, and smooth curves where the gap is small. In a gap of many
    powers of e they converge slowly. There every second evaluation keeps a distance from the
    ends of the gap.
    """
    # A line with a ratio above 1/fpr never falls below 1; smaller rates are not refined.
    low = max((s.ratio for s in known if LEAST_RATE < s.ratio <= corner), default=LEAST_RATE)
    high = min((s.ratio for s in known if s.ratio > corner), default=math.inf)
    left, right = math.log(low), math.log(min(high, 1 / max(rate, LEAST_RATE)))
    if not right - left > 2 * math.log(LEAST_RATIO_STEP):
        return None
    keep_away = right - left > WIDE_GAP and len(known) % 4 == 3
    margin = (right - left) / 4 if keep_away else math.log(LEAST_RATIO_STEP) / 2
    return min(max(math.log(max(corner, LEAST_RATE)), left + margin), right - margin)


def _tpr(known: list[HockeyStickPoint], fpr: float) -> Bound:
    """Return the interval at one rate, given the sorted points of h."""
    # tpr <= h(t) + t fpr at every evaluated t; from below, at every corner of a curve below h.
    upper = min(point.upper + point.ratio * fpr for point in known) * (1 + CURVE_ROUNDING)
    ratios, heights = _corners(known)
    lower = float(np.min(heights + ratios * fpr)) * (1 - CURVE_ROUNDING)
    return Bound(max(fpr, lower), max(fpr, min(1.0, upper)))


def _corners(known: list[HockeyStickPoint]) -> tuple[Array, Array]:
    """Return ratios and heights of the corners of a piecewise linear curve below h.

    Between two evaluated points, h lies above the extended chord from either side. If rounding
    makes both slopes equal or exchanges them, it lies above the lesser of both lines.
    """
    t, low, high = np.array([(s.ratio, s.lower, s.upper) for s in known]).T
    forward, backward = _slopes(t, low, high)
    left, right, from_left, from_right = t[:-1], t[1:], forward[:-1], backward[1:]
    convex = from_left < from_right
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        # The lines low_i + from_left (t - left) and low_(i+1) + from_right (t - right) meet at
        # this t; the corner is used where it lies between both points.
        meet = (low[1:] - low[:-1] + from_left * left - from_right * right) / (
            from_left - from_right
        )
        inside = convex & (left < meet) & (meet < right)
        height = np.minimum(
            low[:-1] + from_left * (meet - left), low[1:] + from_right * (meet - right)
        )
        # Beyond the last point: the last extension down to 0, as h is not negative.
        end = t[-1] - (1 - CANCELLATION) * low[-1] / forward[-1] if forward[-1] < 0 else t[-1]
        at_left = np.minimum(low[:-1], low[1:] - from_right * (right - left))
        at_right = np.minimum(low[1:], low[:-1] + from_left * (right - left))
    slack = CANCELLATION * low[:-1]
    ratios = [t, meet[inside], left[~convex], right[~convex], [end]]
    heights = [low, (height - slack)[inside], (at_left - slack)[~convex]]
    heights += [(at_right - slack)[~convex], [0.0 if forward[-1] < 0 else low[-1]]]
    return np.concatenate(ratios), np.maximum(0.0, np.concatenate(heights))


def _slopes(t: Array, low: Array, high: Array) -> tuple[Array, Array]:
    """Return, for each point, slopes of lines below h: to its right, and to its left.

    To the right, h lies above the chord through an earlier point; to the left, above the chord
    through a later one. h is nonincreasing, with slope at least -1.
    """
    # To the right of point i every earlier j gives a valid slope (low_i - high_j)/(t_i - t_j),
    # and the largest is the tightest. To the left every later j gives a valid slope
    # (high_j - low_i)/(t_j - t_i), and the smallest is the tightest.
    apart = t[:, None] - t[None, :]
    earlier = t[:, None] >= LEAST_RATIO_STEP * t[None, :]
    np.fill_diagonal(earlier, val=False)
    with np.errstate(divide="ignore", invalid="ignore"):
        rising = np.where(earlier, (low[:, None] - high[None, :]) / apart, -1.0)
        falling = np.where(earlier.T, (high[None, :] - low[:, None]) / -apart, 0.0)
    return np.clip(rising.max(axis=1), -1.0, 0.0), np.minimum(falling.min(axis=1), 0.0)


# Compute bounds on attack success that are single numbers.
#
# Each bound holds for the best attacker on the worst pair of neighbors, and so for all others.

GUESS_ROUNDING = 1e-14
FIRST_EPSILON = 0.02
GOLDEN_SECTION = (math.sqrt(5) - 1) / 2
GOLDEN_SECTION_STEPS = 16  # narrow the bracket to a thousandth of its width


class PosteriorBound(msgspec.Struct, frozen=True):
    """Upper bound on the posterior probability that the output is that of "with".

    With probability at least 1 - ``exceptional`` over the outputs of either data set, an
    attacker with the prior ``prior`` has a posterior of at most ``at_most``. For these outputs
    the privacy loss is at most ``epsilon``.

    Attributes:
        prior: Prior probability of "with", above 0 and below 1.
        exceptional: Probability of the outputs that the statement excludes.
        epsilon: Upper bound on the privacy loss, in nats.
        at_most: Upper bound on the posterior, at most 1.

    Example:
        >>> from dpaudit.accountants import Gaussian, gdp, risk
        >>> profile = gdp.profile(Gaussian(noise_multiplier=1.0))
        >>> bound = risk.posterior(profile, prior=0.5, exceptional=1e-5)
        >>> round(bound.epsilon, 3), round(bound.at_most, 4)
        (4.96, 0.993)
    """

    prior: float
    exceptional: float
    epsilon: float
    at_most: float


def advantage(profile: PrivacyProfile) -> Bound:
    """Compute the interval of the largest difference of true and false positive rate.

    It is the total variation distance of the outputs: h(1), which is delta at epsilon 0.

    Args:
        profile: Privacy profile of the mechanism.

    Returns:
        The interval, within [0, 1].

    Example:
        >>> from dpaudit.accountants import Gaussian, gdp, risk
        >>> round(risk.advantage(gdp.profile(Gaussian(noise_multiplier=1.0))).upper, 4)
        0.3829
    """
    found = profile.delta(epsilon=0.0)
    return Bound(max(0.0, found.lower), min(1.0, found.upper))


def accuracy(profile: PrivacyProfile, *, prior: float = 0.5) -> Bound:
    """Compute the interval of the accuracy of the best guess of "with" or "without".

    With t = (1 - prior)/prior, the best accuracy is prior (sup tpr - t fpr) + 1 - prior, and
    the supremum is h(t): delta at epsilon = log t. It is at least the larger prior.

    Args:
        profile: Privacy profile of the mechanism.
        prior: Prior probability that the output is that of "with".

    Returns:
        The interval, from max(prior, 1 - prior) to at most 1.

    Raises:
        InvalidArgument: If ``prior`` is not above 0 and below 1.

    Example:
        >>> from dpaudit.accountants import Gaussian, gdp, risk
        >>> round(risk.accuracy(gdp.profile(Gaussian(noise_multiplier=1.0))).upper, 4)
        0.6915
    """
    require_open_unit("prior", prior)
    # By symmetry of the profile: accuracy = larger prior + smaller prior * h(larger/smaller).
    rare, usual = min(prior, 1 - prior), max(prior, 1 - prior)
    found = profile.delta(epsilon=min(LARGEST_EPSILON, math.log(usual) - math.log(rare)))
    lower, upper = (usual + rare * end for end in (found.lower, found.upper))
    return Bound(
        max(usual, lower * (1 - GUESS_ROUNDING)), max(usual, min(1.0, upper * (1 + GUESS_ROUNDING)))
    )


def bayes_risk(profile: PrivacyProfile, *, prior: float = 0.5) -> Bound:
    """Compute the interval of the Bayes risk: the error probability of the best guess.

    It is 1 minus ``accuracy``. No attacker errs less often than the lower end.

    Args:
        profile: Privacy profile of the mechanism.
        prior: Prior probability that the output is that of "with".

    Returns:
        The interval, from 0 to at most min(prior, 1 - prior) up to rounding.

    Raises:
        InvalidArgument: If ``prior`` is not above 0 and below 1.

    Example:
        >>> from dpaudit.accountants import Gaussian, gdp, risk
        >>> round(risk.bayes_risk(gdp.profile(Gaussian(noise_multiplier=1.0))).lower, 4)
        0.3085
    """
    return complement(accuracy(profile, prior=prior))


def posterior(profile: PrivacyProfile, *, prior: float, exceptional: float) -> PosteriorBound:
    """Compute a bound that the posterior exceeds with probability ``exceptional`` at most.

    For a loss above epsilon, 1 - e^(s - loss) > 1 - e^(s - epsilon) for every s below. The mean
    of its positive part under "with" is delta(s). By Markov's inequality the loss therefore
    exceeds epsilon with probability at most delta(s)/(1 - e^(s - epsilon)). Set equal to
    ``exceptional``, solved for epsilon and minimized over s:

        epsilon = s - log(1 - delta(s)/exceptional).

    Under "without", a loss above epsilon is rarer by a factor of e^-epsilon. Pure differential
    privacy is the case delta(s) = 0: the bound then holds for all outputs.

    Args:
        profile: Privacy profile of the mechanism; only its upper ends count.
        prior: Prior probability that the output is that of "with".
        exceptional: Probability of the outputs that the statement excludes.

    Returns:
        The bound on the privacy loss and on the posterior, rounded up.

    Raises:
        InvalidArgument: If ``prior`` or ``exceptional`` is not above 0 and below 1.
        AccountingError: If delta does not fall below ``exceptional`` at any epsilon.

    Example:
        >>> from dpaudit.accountants import Gaussian, gdp, risk
        >>> profile = gdp.profile(Gaussian(noise_multiplier=1.0))
        >>> round(risk.posterior(profile, prior=0.5, exceptional=1e-5).at_most, 4)
        0.993
    """
    require_open_unit("prior", prior)
    require_open_unit("exceptional", exceptional)
    curve = HockeyStickCurve(profile)

    def loss(s: float) -> float:
        share = curve.points_at(s)[0].upper / exceptional
        return s - math.log1p(-share) if share < 1 else math.inf

    epsilon = _least_value(loss) * (1 + GUESS_ROUNDING) + GUESS_ROUNDING
    # Bayes: posterior odds against "with" are the prior odds times e^-loss.
    odds_against = (1 - prior) / prior * math.exp(-epsilon)
    return PosteriorBound(
        prior, exceptional, epsilon, min(1.0, (1 + GUESS_ROUNDING) / (1 + odds_against))
    )


def _least_value(function: Callable[[float], float]) -> float:
    """Return the least of some values of ``function`` on [0, infinity).

    Doubling finds a bracket, and the golden section narrows it. Every value is a valid bound,
    so that a missed minimum only costs tightness.
    """
    values = [function(0.0)]
    high = FIRST_EPSILON
    while not (found := function(high)) < math.inf or len(values) < 2 or found < values[-1]:
        values.append(found)
        high *= 2
        if high > LARGEST_EPSILON:
            break
    else:
        values.append(found)
    low = 0.0 if len(values) < 3 else high / 4
    one, other = high - GOLDEN_SECTION * (high - low), low + GOLDEN_SECTION * (high - low)
    left, right = function(one), function(other)
    for _ in range(GOLDEN_SECTION_STEPS):
        values += [left, right]
        if left <= right < math.inf:
            high, other, right = other, one, left
            one = high - GOLDEN_SECTION * (high - low)
            left = function(one)
        else:
            low, one, left = one, other, right
            other = low + GOLDEN_SECTION * (high - low)
            right = function(other)
    if not min(values) < math.inf:
        raise AccountingError(
            "delta is above the exceptional probability at every epsilon: use a larger one"
        )
    return min(values)


def reconstruction(profile: PrivacyProfile, *, chance: float) -> Bound:
    """Compute the interval of the success rate of reconstructing a whole record.

    An attacker knows all other records and a prior of the last one, observes the output and
    names a record. It succeeds if the named record is as close as agreed to the true one.
    ``chance`` is the largest success rate without the output.

    Let Q be the output on a reference neighbor that does not depend on the last record. This is
    the data without it (add-or-remove-one), with zeros in its place (zero-out), or with a fixed
    record (replace-one). Under Q the success rate is at most ``chance``. With the record it is
    at most the best true positive rate at that false positive rate. The statement therefore
    holds under each of the three adjacencies, for the profile under it.

    Args:
        profile: Privacy profile of the mechanism under the adjacency in force.
        chance: Largest success rate without the output, above 0 and below 1.

    Returns:
        From ``chance``, which is reached without the output, to an upper bound for any attacker.

    Raises:
        InvalidArgument: If ``chance`` is not above 0 and below 1.

    References:
        Hayes, Mahloujifar & Balle (2023), arXiv:2302.07225, Theorem 2. The notion is that of
        Balle, Cherubin & Hayes (2022), arXiv:2201.04845.

    Example:
        >>> from dpaudit.accountants import Gaussian, gdp, risk
        >>> profile = gdp.profile(Gaussian(noise_multiplier=1.0))
        >>> round(risk.reconstruction(profile, chance=0.01).upper, 4)
        0.0924
    """
    require_open_unit("chance", chance)
    return Bound(chance, tpr_at_fpr(profile, fpr=chance).upper)
