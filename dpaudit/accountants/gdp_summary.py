"""Summarize any privacy profile by one number: mu of Gaussian DP, with the regret of doing so.

With t = e^epsilon, h(t) = delta(epsilon) is convex in t for every mechanism. The trade-off curve
of the mechanism lies above that of mu-GDP if and only if h <= h_mu at every t >= 1. The regret is
the largest amount kappa by which the summary overstates the risk (Kaissis et al. 2024),

    Delta = inf {kappa : f(alpha + kappa) - kappa <= f_mu(alpha) for all alpha}
          = sup over t >= 1 of (h_mu(t) - h(t)) / (1 + t),

as the lines of slope -t below f and below the moved curve differ by kappa (1 + t).

Both are certified between evaluated points. h is below its chords, and above their extensions.
h_mu is above its tangents, and below its chords. On an interval, the bounds are lines, so the
extrema are at its ends or where two lines cross.

Unbounded losses need a ``slack``. The tail of sampled Gaussians, at deltas that nobody asks for,
is that of the same Gaussians without sampling, which would determine mu.

References:
    Gomez et al. (2025), arXiv:2503.10945; Kaissis et al. (2024), arXiv:2406.08918.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import msgspec

from dpaudit.accountants import gdp
from dpaudit.accountants.numerics import ndtr
from dpaudit.accountants.risk import PrivacyProfile
from dpaudit.vocabulary.errors import (
    InvalidArgument,
    Unresolvable,
    require_count,
    require_not_negative,
    to_python_number,
)
from dpaudit.vocabulary.notebooks import bound_in_words, table_html
from dpaudit.vocabulary.privacy_terms import Bound

__all__ = ["GdpSummary", "summarize"]

LARGEST_EPSILON, LARGEST_MU, LEAST_MU = 690.0, 1e3, 1e-9
FIRST_POINTS = 49
REFINEMENTS, MOST_POINTS = 5, 240
WANTED_WIDTH = 1e-4
MU_TOLERANCE = 1e-7
SLOPE_ROUNDING = 1e-12
LINE_ROUNDING = 1e-12


class GdpSummary(msgspec.Struct, frozen=True):
    """The least mu of Gaussian DP that a mechanism satisfies, and what the summary loses.

    Attributes:
        mu: Interval of the least mu. The mechanism is mu-GDP at the upper end, up to ``slack``:
            its true positive rate is at most that of mu-GDP plus ``slack``, at every false
            positive rate.
        regret: Interval of the Delta divergence of the mechanism from mu-GDP at the upper end
            of ``mu``: by how much the summary overstates the risk. Below 0.01, Gomez et al. call
            the summary adequate.
        slack: The amount by which the trade-off curve may fall below that of mu-GDP.
        evaluations: Number of evaluations of delta.

    Example:
        >>> from dpaudit.accountants import Gaussian, gdp, gdp_summary
        >>> found = gdp_summary.summarize(gdp.profile(Gaussian(noise_multiplier=2.0)))
        >>> round(found.mu.upper, 3), found.regret.upper < 1e-3
        (0.5, True)
    """

    mu: Bound
    regret: Bound
    slack: float
    evaluations: int

    def _repr_html_(self) -> str:
        """Return the summary as a table for notebooks."""
        rows = (
            ("mu", bound_in_words(self.mu)),
            ("regret", bound_in_words(self.regret)),
            ("slack of the true-positive rate", f"{self.slack:g}"),
        )
        return table_html("Gaussian DP", rows)


@dataclass(frozen=True)
class _Point:
    """h at one ratio t = e^epsilon."""

    epsilon: float
    ratio: float
    lower: float
    upper: float


def summarize(
    profile: PrivacyProfile, *, slack: float = 1e-10, points: int = FIRST_POINTS
) -> GdpSummary:
    """Compute the least mu of Gaussian DP of a mechanism, and the regret of that summary.

    Args:
        profile: Privacy profile of the mechanism; the result is as tight as its intervals.
        slack: Amount by which the trade-off curve may fall below that of mu-GDP, at least 0 and
            below 1. With 0, the privacy loss must be bounded, or delta reach 0 in doubles.
        points: Number of first evaluations of delta, at least 3. More narrow the intervals.

    Returns:
        The intervals of mu and of the regret.

    Raises:
        InvalidArgument: If an argument is out of range.
        Unresolvable: If delta stays above ``slack`` up to epsilon 690, or mu exceeds 1000.

    References:
        Gomez et al. (2025), arXiv:2503.10945.

    Example:
        >>> from dpaudit.accountants import Gaussian, PoissonSampled, Repeated, gdp_summary, pld
        >>> steps = Repeated(PoissonSampled(Gaussian(2.0), 0.01), 1000)
        >>> found = gdp_summary.summarize(pld.profile(steps), slack=1e-6)
        >>> found.mu.upper < 0.25, found.regret.upper < 0.02
        (True, True)
    """
    require_not_negative("slack", slack)
    if not slack < 1:
        raise InvalidArgument("slack", slack, "at least 0 and below 1")
    points = to_python_number(points)
    require_count("points", points, least=3)
    curve = _Curve(profile, slack)
    curve.begin(points)
    for _ in range(REFINEMENTS):
        gaps = curve.gaps()
        curve.refine(gaps[: max(0, MOST_POINTS - len(curve.known))])
    mu = curve.least_mu()
    return GdpSummary(mu, curve.regret(mu.upper), slack, len(curve.known))


class _Curve:
    """The evaluated points of h, in the order of their ratios."""

    def __init__(self, profile: PrivacyProfile, slack: float) -> None:
        self.profile, self.slack = profile, slack
        self.known: dict[float, _Point] = {}

    def at(self, epsilon: float) -> _Point:
        """Return h at an epsilon, evaluated once."""
        if epsilon not in self.known:
            found = self.profile.delta(epsilon=epsilon)
            self.known[epsilon] = _Point(epsilon, math.exp(epsilon), found.lower, found.upper)
        return self.known[epsilon]

    @property
    def points(self) -> list[_Point]:
        """All evaluated points up to the last one that matters."""
        return [self.known[epsilon] for epsilon in sorted(self.known)]

    def begin(self, points: int) -> None:
        """Find where h falls to the slack, and evaluate points up to there."""
        end = 0.25
        while self.at(end).upper > self.slack:
            end *= 2
            if end > LARGEST_EPSILON:
                raise Unresolvable(
                    f"delta is above the slack {self.slack:g} at epsilon {end / 2:g}: no mu "
                    "describes this mechanism; use a larger slack, or more noise"
                )
        low = end / 2 if end > 0.25 else 0.0
        for _ in range(4):  # the last points are few where the end is known roughly
            middle = (low + end) / 2
            low, end = (low, middle) if self.at(middle).upper <= self.slack else (middle, end)
        self.known = {epsilon: one for epsilon, one in self.known.items() if epsilon <= end}
        for i in range(points):
            self.at(end * i / (points - 1))

    def gaps(self) -> list[tuple[float, float]]:
        """Return the ends of the intervals that keep mu from being certified near its lower end."""
        return list(self._failing(self._least * (1 + WANTED_WIDTH), self.points))

    def refine(self, gaps: list[tuple[float, float]]) -> None:
        """Evaluate the middle of intervals between two epsilons."""
        for low, high in gaps:
            self.at((low + high) / 2)

    @property
    def _least(self) -> float:
        """A mu that is too small, or the least one."""
        return max(_mu_below(one, self.slack) for one in self.points)

    def least_mu(self) -> Bound:
        """Return the interval of the least mu."""
        points, lower = self.points, self._least
        high = max(2 * lower, 1e-6)
        while any(self._failing(high, points)):
            high *= 2
            if high > LARGEST_MU:
                raise Unresolvable(
                    "no mu up to 1000 describes this mechanism: use a larger slack, or more noise"
                )
        low = lower
        while high - low > MU_TOLERANCE * high:
            middle = (low + high) / 2
            low, high = (middle, high) if any(self._failing(middle, points)) else (low, middle)
        return Bound(min(lower, high), high)

    def _failing(self, mu: float, points: list[_Point]) -> Iterator[tuple[float, float]]:
        """Yield the intervals on which h <= h_mu + slack is not certified."""
        tangents = [_tangent(one, mu) for one in points]
        for i, (left, right) in enumerate(pairwise(points)):
            if not _is_above(left, right, tangents[i], tangents[i + 1], self.slack):
                yield left.epsilon, right.epsilon

    def regret(self, mu: float) -> Bound:
        """Bound the supremum of (h_mu - h)/(1 + t)."""
        points = self.points
        tops = [gdp.delta_of_mu(one.epsilon, mu=mu) for one in points]
        least = max(
            (top.lower - one.upper) / (1 + one.ratio) for top, one in zip(tops, points, strict=True)
        )
        most = tops[-1].upper / (1 + points[-1].ratio)  # beyond the last point h may be 0
        # h(1/t) = 1 - 1/t + h(t)/t extends the curve to the left of t = 1.
        first = points[1]
        mirrored = _Point(
            -first.epsilon,
            1 / first.ratio,
            0.0,
            (-math.expm1(-first.epsilon) + first.upper / first.ratio) * (1 + LINE_ROUNDING),
        )
        around = [mirrored, *points]
        for i, (left, right) in enumerate(pairwise(points)):
            below = [_extension(around[i], left)]
            if i + 2 < len(points):
                below.append(_extension(points[i + 2], right))
            most = max(most, _largest_excess(left, right, tops[i].upper, tops[i + 1].upper, below))
        return Bound(max(0.0, least * (1 - LINE_ROUNDING)), max(0.0, most * (1 + LINE_ROUNDING)))


def _mu_below(point: _Point, slack: float) -> float:
    """Return a mu that is too small at one point: h_mu + slack < h there."""
    wanted = point.lower - slack
    if not wanted > 0:
        return 0.0
    low, high = 0.0, LARGEST_MU
    for _ in range(80):
        middle = math.sqrt(max(low, LEAST_MU) * high)
        if gdp.delta_of_mu(point.epsilon, mu=middle).upper < wanted:
            low = middle
        else:
            high = middle
        if low and high / low < 1 + MU_TOLERANCE:
            break
    return low


@dataclass(frozen=True)
class _Tangent:
    """A value below h_mu at one ratio, and bounds of the modulus of its slope."""

    value: float
    flat: float
    steep: float


def _tangent(point: _Point, mu: float) -> _Tangent:
    """Return the tangent of h_mu: its slope is -P[N > mu/2 + epsilon/mu]."""
    value = gdp.delta_of_mu(point.epsilon, mu=mu).lower
    slope = float(ndtr(-mu / 2 - point.epsilon / mu))
    # The argument is rounded, too: its tail changes by a relative x^2 u.
    x = mu / 2 + point.epsilon / mu
    rounding = SLOPE_ROUNDING * (1 + x * x)
    return _Tangent(value, slope * max(0.0, 1 - rounding), slope * (1 + rounding))


def _is_above(left: _Point, right: _Point, at: _Tangent, to: _Tangent, slack: float) -> bool:
    """Return whether the tangents of h_mu at both ends certify h <= h_mu + slack between them."""
    if not (left.upper <= at.value + slack and right.upper <= to.value + slack):
        return False
    width = right.ratio - left.ratio
    # From the left at.value - at.steep s, from the right to.value + to.flat (width - s).
    drop = at.value - to.value - to.flat * width
    slopes = at.steep - to.flat
    crossing = drop / slopes if slopes > 0 else 0.0
    if not 0 < crossing < width:
        return True  # one tangent is above the other throughout, and the chord below it at its end
    line = max(at.value - at.steep * crossing, to.value + to.flat * (width - crossing))
    chord = left.upper + (right.upper - left.upper) * (crossing / width)
    return chord * (1 + LINE_ROUNDING) <= line + slack


def _extension(through: _Point, at: _Point) -> tuple[float, float, float]:
    """Return the line below h beyond ``at``: its ratio, its height there, and its slope."""
    slope = (at.lower - through.upper) / (at.ratio - through.ratio)
    return at.ratio, at.lower, slope


def _largest_excess(
    left: _Point,
    right: _Point,
    top_left: float,
    top_right: float,
    below: list[tuple[float, float, float]],
) -> float:
    """Bound (h_mu - h)/(1 + t) on an interval, with h_mu below its chord and h above lines."""
    width = right.ratio - left.ratio
    candidates = [left.ratio, right.ratio]
    if len(below) == 2:
        (t, a, slope), (u, b, other) = below
        if slope != other:
            candidates.append((b - a + slope * t - other * u) / (slope - other))
    found = 0.0
    for t in candidates:
        if not left.ratio <= t <= right.ratio:
            continue
        share = (t - left.ratio) / width
        top = top_left + (top_right - top_left) * share
        least = max([0.0, *(height + slope * (t - at) for at, height, slope in below)])
        found = max(found, (top - least) / (1 + t) * (1 + LINE_ROUNDING) + LINE_ROUNDING * top)
    return found
