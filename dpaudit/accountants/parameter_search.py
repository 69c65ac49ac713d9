"""Search the least private value of a parameter whose bound is at most a target.

Parameter and bound are on logarithmic axes, on which a bound is nearly a straight line. First,
strides whose lengths follow from a slope enclose the solution. Then interpolation narrows the
enclosure. Each interpolated point is moved so that both sides of the enclosure shrink. Where
interpolation is slow, bisection replaces it. The bound of the returned value was computed, so
that a poor guess only costs time.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from dpaudit.vocabulary.errors import InvalidArgument, require_positive
from dpaudit.vocabulary.privacy_terms import Bound

FINEST_RESOLUTION = 1e-12
FIRST_STRIDE, LONGEST_STRIDE = math.log(2.5), math.log(30)  # until the solution is enclosed
STRIDE_MARGIN = 1.1  # go past the estimated solution, so that it is enclosed
LAST_STEP_FRACTION = 0.9  # of the resolution: such a step past the solution ends the search
MOST_SLOW_STEPS = 3  # interpolations that may fail to halve the enclosure before a bisection

Number = TypeVar("Number", bound=float)


@dataclass(frozen=True)
class ParameterRange(Generic[Number]):
    """The allowed values of a parameter and the start of its search.

    Attributes:
        name: Name of the parameter, for messages.
        least: Least allowed value.
        most: Largest allowed value.
        start: First value of a search without a bracket.
        direction: 1 where a larger value lowers the bound, -1 where a smaller one does.
        slope: Estimate of the decrease of the log bound per unit of the log parameter.
        nearest: Function that returns the allowed value nearest to a number and strictly between
            two others; None if there is none.
    """

    name: str
    least: Number
    most: Number
    start: Number
    direction: int
    slope: float
    nearest: Callable[[float, Number, Number], Number | None]

    @property
    def most_private(self) -> Number:
        """The end of the range with the least bound."""
        return self.most if self.direction > 0 else self.least

    @property
    def least_private(self) -> Number:
        """The end of the range with the largest bound."""
        return self.least if self.direction > 0 else self.most

    def position(self, value: float) -> float:
        """Return +-log(value), signed so that the bound falls along positions."""
        return self.direction * math.log(value)

    def value(self, position: float) -> float:
        """Return the number at ``position``, the inverse of ``position``; it may be illegal."""
        return math.exp(min(700.0, max(-700.0, self.direction * position)))

    def between(self, position: float, one: Number, other: Number) -> Number | None:
        """Return the allowed value nearest to ``position`` strictly between two, or None."""
        return self.nearest(self.value(position), min(one, other), max(one, other))


@dataclass(frozen=True)
class EvaluatedPoint(Generic[Number]):
    """A value of the parameter whose bound was computed.

    Attributes:
        value: The parameter.
        position: Its position, ``ParameterRange.position(value)``.
        bound: The interval, or None where the accountant cannot certify one.
        log_excess: log(upper end / target); at most 0 where the target is met, infinite where
            there is no bound.
    """

    value: Number
    position: float
    bound: Bound | None
    log_excess: float

    @property
    def meets(self) -> bool:
        """Whether the upper end of the bound is at most the target."""
        return self.log_excess <= 0


class ParameterSearch(Generic[Number]):
    """A search: the points evaluated so far, and the rules for the next one."""

    def __init__(
        self,
        bound_at: Callable[[Number], Bound | None],
        target: float,
        parameter: ParameterRange[Number],
        target_name: str = "target_epsilon",
    ) -> None:
        self.bound_at, self.target, self.parameter = bound_at, target, parameter
        self.target_name = target_name
        self.points: list[EvaluatedPoint[Number]] = []

    def evaluate(self, value: Number) -> EvaluatedPoint[Number]:
        """Compute the bound at ``value`` and store the point."""
        bound = self.bound_at(value)
        log_excess = _log_excess_over_target(bound, self.target)
        self.points.append(EvaluatedPoint(value, self.parameter.position(value), bound, log_excess))
        return self.points[-1]

    def run(self, bracket: tuple[Number, Number] | None, resolution: float) -> tuple[Number, Bound]:
        """Return the least private evaluated value that meets the target, and its bound.

        Args:
            bracket: Where the search starts; it leaves the bracket where it must.
            resolution: Largest relative distance of the result from an evaluated value that fails.

        Returns:
            The value, and the interval that was computed for it.

        Raises:
            InvalidArgument: If an argument is out of range, or no value in the range meets the
                target.
        """
        require_positive("resolution", resolution)
        if not FINEST_RESOLUTION <= resolution <= 1:
            raise InvalidArgument("resolution", resolution, f"{FINEST_RESOLUTION:g} to 1")
        least, most = self.parameter.least, self.parameter.most
        for end in bracket or ():
            require_positive("bracket", end)
        if bracket is not None and not least <= bracket[0] < bracket[1] <= most:
            raise InvalidArgument("bracket", bracket, f"two rising values in {least:g}..{most:g}")
        meets, fails = self.enclose(bracket)
        if fails is not None:
            meets = self.narrow(meets, fails, math.log1p(resolution))
        if meets.bound is None or not meets.bound.upper <= self.target:
            raise self._unreachable()
        return meets.value, meets.bound

    def enclose(
        self, bracket: tuple[Number, Number] | None
    ) -> tuple[EvaluatedPoint[Number], EvaluatedPoint[Number] | None]:
        """Find a point that meets the target and one that fails.

        Args:
            bracket: Where the search starts, or None for the start of the range.

        Returns:
            The point that meets the target and the one that fails, in this order. The latter is
            None where the least private value of the range meets the target.

        Raises:
            InvalidArgument: If no value in the range meets the target.
        """
        point = self.evaluate(self._begin(bracket))
        low, high = bracket or (point.value, point.value)
        ends = sorted((self.parameter.position(low), self.parameter.position(high)))
        while True:
            limit = self.parameter.least_private if point.meets else self.parameter.most_private
            if point.value == limit:
                if point.meets:
                    return point, None
                raise self._unreachable()
            following = self.evaluate(self._beyond(point, ends, limit))
            if following.meets != point.meets:
                return (point, following) if point.meets else (following, point)
            point = following

    def _begin(self, bracket: tuple[Number, Number] | None) -> Number:
        """Return the first value to evaluate: the middle of the bracket in logarithms."""
        if bracket is None:
            return self.parameter.start
        middle = 0.5 * (self.parameter.position(bracket[0]) + self.parameter.position(bracket[1]))
        inner = self.parameter.between(middle, *bracket)
        return bracket[0] if inner is None else inner

    def _beyond(self, point: EvaluatedPoint[Number], ends: list[float], limit: Number) -> Number:
        """Return the value to evaluate after ``point``, while all points are on one side."""
        position = self._outward(point, ends)
        if (position - self.parameter.position(limit)) * (position - point.position) >= 0:
            return limit
        inner = self.parameter.between(position, point.value, limit)
        return limit if inner is None else inner

    def _outward(self, point: EvaluatedPoint[Number], ends: list[float]) -> float:
        """Return the position of the next stride, away from the points evaluated so far."""
        sign = -1 if point.meets else 1
        left = sign * ((ends[0] if point.meets else ends[1]) - point.position)
        if not math.isfinite(point.log_excess):  # no slope is known: halve the rest of the bracket
            return point.position + sign * max(0.5 * left, LONGEST_STRIDE)
        stride = STRIDE_MARGIN * abs(point.log_excess) / self._slope() + 1e-3 * 4.0 ** len(
            self.points
        )
        # The end of a given bracket is evaluated before any value beyond it.
        room = left if left > FINEST_RESOLUTION else math.inf
        longest = min(FIRST_STRIDE * len(self.points), LONGEST_STRIDE)
        return point.position + sign * min(stride, longest, room)

    def _slope(self) -> float:
        """Return the decrease of the log excess per unit of position, from the last two points."""
        usual = self.parameter.slope
        if len(self.points) < 2 or not math.isfinite(self.points[-2].log_excess):
            return usual
        last, point = self.points[-2:]
        fall, distance = last.log_excess - point.log_excess, point.position - last.position
        return min(4 * usual, max(0.25 * usual, fall / distance)) if distance else usual

    def narrow(
        self, meets: EvaluatedPoint[Number], fails: EvaluatedPoint[Number], width: float
    ) -> EvaluatedPoint[Number]:
        """Shrink an enclosure to a width.

        Args:
            meets: A point that meets the target.
            fails: A point that fails.
            width: Largest distance of their positions at the end.

        Returns:
            A point that meets the target, at most ``width`` from an evaluated one that fails, or
            with no allowed value between.
        """
        tries, halved = 0, 0.5 * (meets.position - fails.position)
        while meets.position - fails.position > width:
            if tries < MOST_SLOW_STEPS:
                guess = self._guess(meets, fails, width)
            else:
                guess = 0.5 * (meets.position + fails.position)
            value = self.parameter.between(guess, meets.value, fails.value)
            if value is None:
                break
            point = self.evaluate(value)
            meets, fails = (point, fails) if point.meets else (meets, point)
            tries += 1
            if meets.position - fails.position <= halved:
                tries, halved = 0, 0.5 * (meets.position - fails.position)
        return meets

    def _guess(
        self, meets: EvaluatedPoint[Number], fails: EvaluatedPoint[Number], width: float
    ) -> float:
        """Return the position to evaluate between ``fails`` and ``meets``.

        Interpolation converges to the solution from one side. A step of just below ``width`` past
        it then settles the other side.
        """
        root = self._interpolate(meets, fails)
        if meets.position - root < LAST_STEP_FRACTION * width:
            return meets.position - LAST_STEP_FRACTION * width
        if root - fails.position < LAST_STEP_FRACTION * width:
            return fails.position + LAST_STEP_FRACTION * width
        return root + 0.3 * width

    def _interpolate(self, meets: EvaluatedPoint[Number], fails: EvaluatedPoint[Number]) -> float:
        """Return the zero of the line, or of the inverse parabola, through the last points."""
        if not (math.isfinite(meets.log_excess) and math.isfinite(fails.log_excess)):
            return 0.5 * (meets.position + fails.position)
        others = [p for p in self.points[::-1] if p is not meets and p is not fails]
        line = _zero_of_line(meets, fails)
        curve = _zero_of_parabola(meets, fails, others[0]) if others else line
        return curve if fails.position < curve < meets.position else line

    def _unreachable(self) -> InvalidArgument:
        """Return the error for a target that no value in the range meets."""
        limit = f"{self.parameter.most_private:g}"
        return InvalidArgument(
            self.target_name,
            self.target,
            f"a target that a {self.parameter.name} of {limit} meets",
        )


def _log_excess_over_target(bound: Bound | None, target: float) -> float:
    """Return log(upper end / target), with a sign that agrees with the comparison itself."""
    if bound is None:
        return math.inf
    if bound.upper <= 0:
        return -math.inf
    height = math.log(bound.upper) - math.log(target)
    return min(height, 0.0) if bound.upper <= target else max(height, 5e-324)


def _zero_of_line(one: EvaluatedPoint[Number], other: EvaluatedPoint[Number]) -> float:
    """Return the position of the zero of the line through two points."""
    share = one.log_excess / (one.log_excess - other.log_excess)
    return one.position + share * (other.position - one.position)


def _zero_of_parabola(
    one: EvaluatedPoint[Number], two: EvaluatedPoint[Number], three: EvaluatedPoint[Number]
) -> float:
    """Return the zero of the parabola position(log excess) through three points, or NaN.

    Lagrange's form at log excess 0: sum over points of position times the products b c /
    ((a - b) (a - c)) of the other two log excesses. NaN if two log excesses are equal.
    """
    a, b, c = one.log_excess, two.log_excess, three.log_excess
    if not math.isfinite(c) or c in {a, b}:
        return math.nan
    return (
        one.position * b * c / ((a - b) * (a - c))
        + two.position * a * c / ((b - a) * (b - c))
        + three.position * a * b / ((c - a) * (c - b))
    )


def real_between(value: float, low: float, high: float) -> float | None:
    """Return a real number near a value and strictly between two others.

    Args:
        value: The preferred number.
        low: Lower limit, above 0.
        high: Upper limit.

    Returns:
        ``value`` if it lies strictly between; else the geometric mean of the limits, or None
        where no double lies between them.
    """
    inner = value if low < value < high else math.sqrt(low) * math.sqrt(high)
    return inner if low < inner < high else None


def integer_between(value: float, low: int, high: int) -> int | None:
    """Return the integer nearest to ``value`` strictly between two others, or None."""
    return min(max(round(value), low + 1), high - 1) if high - low > 1 else None
