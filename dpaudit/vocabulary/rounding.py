"""Rounding of numbers for output, and comparison of numbers that were written and read.

Output has four significant digits. Upper bounds are rounded up and lower bounds down. The number
that is rounded is the shortest decimal that identifies the float, as in JSON: 0.1 gives 0.1.
"""

from __future__ import annotations

import math
from decimal import ROUND_CEILING, ROUND_FLOOR, ROUND_HALF_EVEN, Context, Decimal

from dpaudit.vocabulary.errors import AccountingError

SIGNIFICANT_DIGITS = 4


def round_up(value: float) -> str:
    """Return an upper bound with four significant digits, rounded up.

    Args:
        value: The bound; may be infinite.

    Returns:
        A decimal that is not below the shortest decimal of ``value``, or ``infinite``.

    Raises:
        AccountingError: If ``value`` is NaN.

    Example:
        >>> round_up(1.23401), round_up(0.1)
        ('1.235', '0.1')
    """
    return _rounded(value, ROUND_CEILING)


def round_down(value: float) -> str:
    """Return a lower bound with four significant digits, rounded down.

    Args:
        value: The bound; may be infinite.

    Returns:
        A decimal that is not above the shortest decimal of ``value``, or ``infinite``.

    Raises:
        AccountingError: If ``value`` is NaN.

    Example:
        >>> round_down(1.23499)
        '1.234'
    """
    return _rounded(value, ROUND_FLOOR)


def round_nearest(value: float) -> str:
    """Return an estimate, which is no bound, rounded to four significant digits.

    Args:
        value: The estimate; may be infinite.

    Returns:
        The nearest decimal, ties to even, or ``infinite``.

    Raises:
        AccountingError: If ``value`` is NaN.

    Example:
        >>> round_nearest(1234567.0), round_nearest(12345678.0)
        ('1235000', '1.235e+7')
    """
    return _rounded(value, ROUND_HALF_EVEN)


def format_significant(number: Decimal, rounding: str) -> str:
    """Return ``number`` with four significant digits.

    Args:
        number: A finite decimal.
        rounding: A rounding mode of ``decimal``, such as ``ROUND_CEILING``.

    Returns:
        Plain notation from 0.0001 to below 10,000,000, otherwise scientific notation.

    Example:
        >>> format_significant(Decimal("0.000012345"), ROUND_CEILING)
        '1.235e-5'
    """
    short = Context(prec=SIGNIFICANT_DIGITS, rounding=rounding).plus(number).normalize()
    plain = short.is_zero() or -4 <= short.adjusted() < 7
    return f"{short:f}" if plain else f"{short:e}"


def _rounded(value: float, rounding: str) -> str:
    """Return a float with four significant digits; refuse NaN."""
    if math.isnan(value):
        raise AccountingError("a number to print is NaN, which is no result")
    if math.isinf(value):
        return "infinite"
    return format_significant(Decimal(repr(float(value))), rounding)


# Comparison of numbers whose last digits a file or another machine may have changed.

SAME_NUMBER_TOLERANCE = 1e-9
"""Relative tolerance for a number that was written, read or computed in another order."""

CROSS_MACHINE_TOLERANCE = 1e-6
"""Relative tolerance for an epsilon that two machines compute from the same ledger."""

SMALLEST_EPSILON_DIFFERENCE = 1e-9
"""Absolute tolerance for two epsilons, in nats; it matters near 0 alone."""


def same_number(one: float, other: float) -> bool:
    """Return whether two deltas, rates or confidences are equal up to rounding.

    Args:
        one: A number.
        other: A number.

    Returns:
        True if the relative difference is at most ``SAME_NUMBER_TOLERANCE``; False with NaN.

    Example:
        >>> same_number(1e-5, 1e-5 * (1 + 1e-12)), same_number(0.0, 1e-30)
        (True, False)
    """
    return math.isclose(one, other, rel_tol=SAME_NUMBER_TOLERANCE, abs_tol=0.0)


def bound_holds_at(delta_of_bound: float, delta: float) -> bool:
    """Return whether a lower bound on epsilon at one delta holds at another.

    The true epsilon falls as delta grows. So a lower bound at a larger delta also holds at a
    smaller one.

    Args:
        delta_of_bound: The delta of the lower bound.
        delta: The delta at which it is used.

    Returns:
        True if ``delta_of_bound`` is at least ``delta``, up to rounding.

    Example:
        >>> bound_holds_at(1e-5, 1e-6), bound_holds_at(1e-6, 1e-5)
        (True, False)
    """
    return delta_of_bound >= delta or same_number(delta_of_bound, delta)


def same_epsilon(one: float, other: float) -> bool:
    """Return whether two epsilons are equal up to the differences between machines.

    Args:
        one: An epsilon, in nats.
        other: An epsilon, in nats.

    Returns:
        True if they differ by at most ``CROSS_MACHINE_TOLERANCE`` (relative) or
        ``SMALLEST_EPSILON_DIFFERENCE`` (absolute); False with NaN.
    """
    return math.isclose(
        one, other, rel_tol=CROSS_MACHINE_TOLERANCE, abs_tol=SMALLEST_EPSILON_DIFFERENCE
    )
