"""Evaluate normal tails, factorials and certified roots without scipy.special.

scipy.special has these functions, but its import takes longer than one computation of epsilon.
It would take half of the run time of ``dpaudit epsilon``. These use the C library instead.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dpaudit.vocabulary.errors import AccountingError, Unresolvable
from dpaudit.vocabulary.privacy_terms import Bound

Array = NDArray[np.float64]

DEKKER_SPLITTER = 2.0**27 + 1
ERFC_UNDERFLOW = 26.0  # above it erfc underflows; the series has full precision there
SQRT_HALF = math.sqrt(0.5)


def _over_arrays(function: Callable[[float], float]) -> Callable[[ArrayLike], Array]:
    """Return a function that applies ``function`` to each element of an array."""
    each: Callable[[ArrayLike], Any] = np.frompyfunc(function, 1, 1)

    def over(values: ArrayLike) -> Array:
        with np.errstate(over="ignore"):  # -x^2/2 of a huge x is -inf
            return np.asarray(each(values), dtype=np.float64)

    return over


def _square(x: float) -> tuple[float, float]:
    """Return x^2 rounded to a double, and its rounding error, exactly (Dekker 1971)."""
    high = DEKKER_SPLITTER * x - (DEKKER_SPLITTER * x - x)
    low = x - high
    square = x * x
    return square, ((high * high - square) + 2 * high * low) + low * low


def erfcx(x: float) -> float:
    """Compute the scaled complementary error function e^(x^2) erfc(x).

    Where erfc underflows, seven terms of the asymptotic series 1/(x sqrt(pi)) sum_k (-1)^k
    (2k - 1)!!/(2 x^2)^k are used.

    Args:
        x: Above -26; below, the result overflows.

    Returns:
        The value, to a few units in the last place.
    """
    if x < ERFC_UNDERFLOW:
        square, rest = _square(x)
        return math.exp(square) * (1 + rest) * math.erfc(x)
    term, total, square = 1.0, 1.0, x * x
    for k in range(1, 8):
        term *= -(2 * k - 1) / (2 * square)
        total += term
    return total / (x * math.sqrt(math.pi))


def _log_ndtr(x: float) -> float:
    """Return the logarithm of the normal distribution function of one number."""
    if x > -1:
        return math.log1p(-0.5 * math.erfc(x * SQRT_HALF))
    return -0.5 * x * x + math.log(0.5 * erfcx(-x * SQRT_HALF)) if x > -math.inf else -math.inf


def _ndtr(x: float) -> float:
    """Return the normal distribution function of one number."""
    return 0.5 * math.erfc(-x * SQRT_HALF)


log_gamma = _over_arrays(math.lgamma)
"""Logarithm of the gamma function of positive numbers, elementwise."""

ndtr = _over_arrays(_ndtr)
"""Standard normal distribution function, elementwise."""

log_ndtr = _over_arrays(_log_ndtr)
"""Logarithm of the standard normal distribution function, elementwise, without underflow."""


def logsumexp(values: Array, axis: int | None = None) -> Array:
    """Compute log sum e^values along an axis, with infinities of either sign.

    Args:
        values: Logarithms, of any shape.
        axis: The axis that is summed over; None for all.

    Returns:
        The logarithm of the sum, without ``axis``.
    """
    peak = np.clip(np.max(values, axis=axis, keepdims=True), -1e300, 1e300)
    with np.errstate(divide="ignore"):
        total = np.log(np.sum(np.exp(values - peak), axis=axis, keepdims=True)) + peak
    return np.asarray(total.squeeze() if axis is None else total.squeeze(axis))


# Roots of a falling function, on the conservative side: the inequality is evaluated at the
# returned argument, so that neither rounding nor a missed root makes the result invalid.

MOST_BISECTIONS = 60
FULL_PRECISION = 1e-13


def certified_upper_crossing(
    falling: Callable[[float], float],
    target: float,
    low: float,
    high: float,
    resolution: float = FULL_PRECISION,
) -> float:
    """Find an argument at which a falling function is at most a target.

    Args:
        falling: The function. It may be non-monotone by rounding.
        target: The value to reach.
        low: Lower end of the search; returned if the function is at most the target there.
        high: Upper end of the search.
        resolution: Relative width at which bisection stops.

    Returns:
        An argument at which ``falling(argument) <= target`` was evaluated to hold.

    Raises:
        Unresolvable: If it does not hold at ``high``.
    """
    if falling(low) <= target:
        return low
    if not (high < math.inf and falling(high) <= target):
        raise Unresolvable(
            f"no value up to {high:g} can be certified to meet the target: add noise, or use a "
            "larger delta"
        )
    for _ in range(MOST_BISECTIONS):
        middle = 0.5 * (low + high)
        if falling(middle) <= target:
            high = middle
        else:
            low = middle
        if high - low <= resolution * high:
            break
    return high


def certified_lower_crossing(
    falling: Callable[[float], float],
    target: float,
    low: float,
    high: float,
    resolution: float = FULL_PRECISION,
) -> float:
    """Find an argument at which a falling function is at least a target.

    The search starts at ``high`` and goes down, as the function may be useless as a lower bound
    far below the point for which it was constructed.

    Args:
        falling: The function. It may be non-monotone by rounding.
        target: The value to reach.
        low: A valid result by itself, for example epsilon 0.
        high: Upper end of the search.
        resolution: Relative width at which bisection stops.

    Returns:
        An argument at which ``falling(argument) >= target`` was evaluated to hold, or ``low``.
    """
    if not high < math.inf:
        return low
    if falling(high) >= target:
        return high
    fails, gap = high, max(1e-3 * high, resolution * high)
    while not falling(high - gap) >= target:
        fails, gap = high - gap, 2 * gap
        if high - gap <= low:
            break
    holds = max(low, high - gap)
    for _ in range(MOST_BISECTIONS):
        if fails - holds <= resolution * fails:
            break
        middle = 0.5 * (holds + fails)
        if falling(middle) >= target:
            holds = middle
        else:
            fails = middle
    return holds


# A certified interval with its method and error budget.

LARGEST_CONTRADICTION = 1e-9
"""Relative size up to which two bounds may cross by rounding."""


@dataclass(frozen=True)
class CertifiedInterval:
    """An interval that contains the exact value, with the method and the error budget.

    Attributes:
        lower: Lower bound; 0 is trivial.
        upper: Upper bound; infinity is trivial.
        method: Name of the evaluation that gave the interval.
        budget: Size of each error that the interval includes, relative to delta.
        direction: "removed" or "added"; empty where both directions agree.
    """

    lower: float
    upper: float
    method: str
    budget: Mapping[str, float] = field(default_factory=dict)
    direction: str = ""

    @classmethod
    def closed(cls, bound: Bound, method: str) -> CertifiedInterval:
        """Return the interval of a closed form, whose only error is rounding.

        Args:
            bound: The interval; rounding is inside.
            method: Name of the closed form.

        Returns:
            The interval, with an empty error budget.
        """
        return cls(bound.lower, bound.upper, method)

    def is_narrow(self, relative: float, absolute: float) -> bool:
        """Return whether the width is within a relative or an absolute tolerance.

        Args:
            relative: Tolerance relative to the upper end.
            absolute: Absolute tolerance.

        Returns:
            True if the larger of both tolerances covers the width.
        """
        return self.upper - self.lower <= max(relative * self.upper, absolute)

    def intersect(self, other: CertifiedInterval) -> CertifiedInterval:
        """Return the intersection with another certified interval of the same value.

        Args:
            other: The newer interval; its method and budget are kept.

        Returns:
            The intersection.

        Raises:
            AccountingError: If the intervals are disjoint, which only a bug can cause.
        """
        lower, upper = max(self.lower, other.lower), min(self.upper, other.upper)
        if not lower <= upper:
            raise AccountingError(
                f"two certified intervals of one value are disjoint: [{self.lower!r}, "
                f"{self.upper!r}] and [{other.lower!r}, {other.upper!r}]"
            )
        return replace(other, lower=lower, upper=upper)

    def with_lower(self, below: CertifiedInterval) -> CertifiedInterval:
        """Replace the lower end by that of an attained pair.

        Args:
            below: An interval whose lower end is a valid lower bound of the same value.

        Returns:
            This interval with the new lower end, capped at its upper end.
        """
        return replace(self, lower=min(below.lower, self.upper))

    def with_upper(self, upper: float) -> CertifiedInterval:
        """Cap the interval at a further upper bound of the same value.

        Args:
            upper: A valid upper bound, from another method.

        Returns:
            This interval with both ends at most ``upper``.

        Raises:
            AccountingError: If ``upper`` is below the interval, which only a bug can cause.
        """
        if upper >= self.upper:
            return self
        if upper < self.lower * (1 - LARGEST_CONTRADICTION):
            raise AccountingError(
                f"two bounds of one value contradict each other: at least {self.lower!r}, and at "
                f"most {upper!r}"
            )
        return replace(self, lower=min(self.lower, upper), upper=upper)


class Direction(Enum):
    """Which of the two neighbors P is, the one that generates the output."""

    REMOVED = 1
    """P includes the record, Q does not; L = +log r(l)."""

    ADDED = -1
    """Q includes the record, P does not; L = -log r(l)."""


def worst_direction(answers: Iterable[CertifiedInterval]) -> Bound:
    """Return the interval of the maximum over directions.

    Args:
        answers: One interval per direction; at least one.

    Returns:
        The largest lower end and the largest upper end.
    """
    found = list(answers)
    return Bound(max(answer.lower for answer in found), max(answer.upper for answer in found))
