"""Find the boldest value of a parameter whose bound is still at most a target.

Both axes are walked in logarithms, where a bound is nearly a straight line: strides that a
slope suggests until the answer is enclosed, then interpolation. Each step of it is bent so
that the two sides close in together, and halving stands by where the bound is no line. The
value returned has itself been priced; a search gone astray is slow and never wrong.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from dpaudit.vocabulary.bound import Bound
from dpaudit.vocabulary.errors import InvalidArgument

FINEST_RESOLUTION = 1e-12
FIRST_STRIDE, LONGEST_STRIDE = math.log(2.5), math.log(30)  # until the answer is enclosed
OVERSTRIDE = 1.1  # land beyond where the answer is guessed, so that it is enclosed
NEAR = 0.9  # of the resolution: a step that short past the answer ends the search
PATIENCE = 3  # interpolations that may fail to halve the interval before a halving

Number = TypeVar("Number", bound=float)


@dataclass(frozen=True)
class Axis(Generic[Number]):
    """The values that a parameter may take, and where to look first.

    Attributes:
        name: The parameter, for messages.
        least: Its least legal value.
        most: Its greatest.
        start: Where the search begins if nobody gives a bracket.
        safer: 1 where more of it lowers the bound, -1 where less does.
        slope: Guess of by how much log bound falls per unit of log parameter.
        inside: Legal value nearest to a number, strictly between two others; or None.
    """

    name: str
    least: Number
    most: Number
    start: Number
    safer: int
    slope: float
    inside: Callable[[float, Number, Number], Number | None]

    @property
    def safest(self) -> Number:
        """The end at which the bound is least."""
        return self.most if self.safer > 0 else self.least

    @property
    def boldest(self) -> Number:
        """The end at which it is largest."""
        return self.least if self.safer > 0 else self.most

    def position(self, value: float) -> float:
        """Return where ``value`` lies on a line along which the bound falls."""
        return self.safer * math.log(value)

    def value(self, position: float) -> float:
        """Return the number at ``position``, legal or not."""
        return math.exp(min(700.0, max(-700.0, self.safer * position)))

    def between(self, position: float, one: Number, other: Number) -> Number | None:
        """Return the value nearest to ``position`` strictly between two; None if none is."""
        return self.inside(self.value(position), min(one, other), max(one, other))


@dataclass(frozen=True)
class Point(Generic[Number]):
    """A parameter that was priced."""

    value: Number
    position: float
    bound: Bound | None
    height: float
    """log(upper end / target): at most 0 where the target is met; infinite where unknown."""

    @property
    def meets(self) -> bool:
        """Whether the bound was seen to be at most the target."""
        return self.height <= 0


class Search(Generic[Number]):
    """The points priced so far, and what to price next."""

    def __init__(
        self, bound_at: Callable[[Number], Bound | None], target: float, axis: Axis[Number]
    ) -> None:
        self.bound_at, self.target, self.axis = bound_at, target, axis
        self.points: list[Point[Number]] = []

    def price(self, value: Number) -> Point[Number]:
        """Price ``value`` and keep what was found."""
        bound = self.bound_at(value)
        height = _height(bound, self.target)
        self.points.append(Point(value, self.axis.position(value), bound, height))
        return self.points[-1]

    def run(self, bracket: tuple[Number, Number] | None, resolution: float) -> tuple[Number, Bound]:
        """Return the boldest value seen to meet the target, and its bound.

        Args:
            bracket: Where to look first; the search goes beyond it where it must.
            resolution: How far, relatively, the value may lie from one seen to fail.

        Raises:
            InvalidArgument: an argument is out of range, or nothing on the axis meets the
                target.
        """
        if not FINEST_RESOLUTION <= resolution <= 1:
            raise InvalidArgument("resolution", resolution, f"{FINEST_RESOLUTION:g} to 1")
        least, most = self.axis.least, self.axis.most
        if bracket is not None and not least <= bracket[0] < bracket[1] <= most:
            raise InvalidArgument("bracket", bracket, f"two rising values in {least:g}..{most:g}")
        meets, fails = self.enclose(bracket)
        if fails is not None:
            meets = self.narrow(meets, fails, math.log1p(resolution))
        if meets.bound is None or not meets.bound.upper <= self.target:
            raise self._out_of_reach()
        return meets.value, meets.bound

    def enclose(
        self, bracket: tuple[Number, Number] | None
    ) -> tuple[Point[Number], Point[Number] | None]:
        """Return a point that meets the target and one that does not, in this order.

        None stands for the latter where the boldest value of the axis meets the target.
        """
        point = self.price(self._begin(bracket))
        low, high = bracket or (point.value, point.value)
        ends = sorted((self.axis.position(low), self.axis.position(high)))
        while True:
            limit = self.axis.boldest if point.meets else self.axis.safest
            if point.value == limit:
                if point.meets:
                    return point, None
                raise self._out_of_reach()
            following = self.price(self._beyond(point, ends, limit))
            if following.meets != point.meets:
                return (point, following) if point.meets else (following, point)
            point = following

    def _begin(self, bracket: tuple[Number, Number] | None) -> Number:
        if bracket is None:
            return self.axis.start
        middle = 0.5 * (self.axis.position(bracket[0]) + self.axis.position(bracket[1]))
        inner = self.axis.between(middle, *bracket)
        return bracket[0] if inner is None else inner

    def _beyond(self, point: Point[Number], ends: list[float], limit: Number) -> Number:
        """Return the value to look at after ``point``, all points being on one side."""
        position = self._outward(point, ends)
        if (position - self.axis.position(limit)) * (position - point.position) >= 0:
            return limit
        inner = self.axis.between(position, point.value, limit)
        return limit if inner is None else inner

    def _outward(self, point: Point[Number], ends: list[float]) -> float:
        way = -1 if point.meets else 1
        left = way * ((ends[0] if point.meets else ends[1]) - point.position)
        if not math.isfinite(point.height):  # nothing to go by: halve what the bracket leaves
            return point.position + way * max(0.5 * left, LONGEST_STRIDE)
        stride = OVERSTRIDE * abs(point.height) / self._slope() + 1e-3 * 4.0 ** len(self.points)
        # An end of the bracket that the user gave is tried before anything beyond it.
        room = left if left > FINEST_RESOLUTION else math.inf
        longest = min(FIRST_STRIDE * len(self.points), LONGEST_STRIDE)
        return point.position + way * min(stride, longest, room)

    def _slope(self) -> float:
        """Return by how much the height falls per unit of position, as far as is known."""
        usual = self.axis.slope
        if len(self.points) < 2 or not math.isfinite(self.points[-2].height):
            return usual
        last, point = self.points[-2:]
        fall, way = last.height - point.height, point.position - last.position
        return min(4 * usual, max(0.25 * usual, fall / way)) if way else usual

    def narrow(self, meets: Point[Number], fails: Point[Number], width: float) -> Point[Number]:
        """Return a point that meets the target, at most ``width`` from one that does not."""
        tries, halved = 0, 0.5 * (meets.position - fails.position)
        while meets.position - fails.position > width:
            if tries < PATIENCE:
                guess = self._guess(meets, fails, width)
            else:
                guess = 0.5 * (meets.position + fails.position)
            value = self.axis.between(guess, meets.value, fails.value)
            if value is None:
                break
            point = self.price(value)
            meets, fails = (point, fails) if point.meets else (meets, point)
            tries += 1
            if meets.position - fails.position <= halved:
                tries, halved = 0, 0.5 * (meets.position - fails.position)
        return meets

    def _guess(self, meets: Point[Number], fails: Point[Number], width: float) -> float:
        """Return where to look between ``fails`` and ``meets``.

        Interpolation finds the answer from one side; a step just short of ``width`` past it
        then settles the other.
        """
        root = self._interpolate(meets, fails)
        if meets.position - root < NEAR * width:
            return meets.position - NEAR * width
        if root - fails.position < NEAR * width:
            return fails.position + NEAR * width
        return root + 0.3 * width

    def _interpolate(self, meets: Point[Number], fails: Point[Number]) -> float:
        """Return where the line, or parabola in height, through the last points is 0."""
        if not (math.isfinite(meets.height) and math.isfinite(fails.height)):
            return 0.5 * (meets.position + fails.position)
        others = [p for p in self.points[::-1] if p is not meets and p is not fails]
        line = _zero_of_line(meets, fails)
        curve = _zero_of_parabola(meets, fails, others[0]) if others else line
        return curve if fails.position < curve < meets.position else line

    def _out_of_reach(self) -> InvalidArgument:
        limit = f"{self.axis.safest:g}"
        return InvalidArgument(
            "target_epsilon",
            self.target,
            f"one that a {self.axis.name} of {limit} meets",
        )


def _height(bound: Bound | None, target: float) -> float:
    """Return log(upper end / target), with a sign that agrees with the comparison itself."""
    if bound is None:
        return math.inf
    if bound.upper <= 0:
        return -math.inf
    height = math.log(bound.upper) - math.log(target)
    return min(height, 0.0) if bound.upper <= target else max(height, 5e-324)


def _zero_of_line(one: Point[Number], other: Point[Number]) -> float:
    share = one.height / (one.height - other.height)
    return one.position + share * (other.position - one.position)


def _zero_of_parabola(one: Point[Number], two: Point[Number], three: Point[Number]) -> float:
    """Return the position at height 0 of the parabola position(height); NaN if there is none."""
    a, b, c = one.height, two.height, three.height
    if not math.isfinite(c) or c in {a, b}:
        return math.nan
    return (
        one.position * b * c / ((a - b) * (a - c))
        + two.position * a * c / ((b - a) * (b - c))
        + three.position * a * b / ((c - a) * (c - b))
    )


def between(value: float, low: float, high: float) -> float | None:
    """Return ``value`` if it lies strictly between, else a value that does, if there is one."""
    inner = value if low < value < high else math.sqrt(low) * math.sqrt(high)
    return inner if low < inner < high else None


def between_whole(value: float, low: int, high: int) -> int | None:
    """Return the whole number nearest to ``value`` strictly between, if there is one."""
    return min(max(round(value), low + 1), high - 1) if high - low > 1 else None
