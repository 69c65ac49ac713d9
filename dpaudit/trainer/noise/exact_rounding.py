"""Exact rounding of a normal: bits of its two uniforms are drawn until they decide the result.

A draw is round(scale r (cos y - sin y)) or round(scale r (cos y + sin y)), with r = sqrt(-ln u)
and y = pi t / 4. Of u in (0, 1) and t in (-1, 1) the first bits are known. The draw falls as u
rises. It falls with t in the first case, and rises in the second. So two corners of the known
intervals bound it. Each is computed in whole numbers, with a bound of the error.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from functools import lru_cache
from math import isqrt

WORD_BITS = 64
GUARD_BITS = 32

Bounds = tuple[int, int]
"""A lower and an upper bound in units of 2^-bits."""


def rounded_magnitude(
    radius: int, angle: int, further: Iterator[int], *, scale: float, plus: bool
) -> int:
    """Return round(scale sqrt(-ln u) (cos y +- sin y)), decided from the bits of u and t.

    Args:
        radius: The first 64 bits of u.
        angle: The first 62 bits of (t + 1) / 2.
        further: The bits after these, in words of 64: one for u, then one for t; words are read
            until the result is decided.
        scale: Standard deviation of the draw before rounding, above 0; exactly this float.
        plus: Whether the sine is added, as for the second draw of a pair, or subtracted.

    Returns:
        The rounded magnitude, without rounding error.
    """
    bits = WORD_BITS
    while True:
        lower, upper = magnitude_bounds(radius, angle, bits, Fraction(scale), plus=plus)
        if upper is not None and lower == upper:
            return lower
        radius = radius << WORD_BITS | next(further)
        angle = angle << WORD_BITS | next(further)
        bits += WORD_BITS


def magnitude_bounds(
    radius: int, angle: int, bits: int, scale: Fraction, *, plus: bool
) -> tuple[int, int | None]:
    """Return bounds of the rounded magnitude over all further bits.

    Args:
        radius: The first ``bits`` bits of u.
        angle: The first ``bits - 2`` bits of (t + 1) / 2.
        bits: Number of known bits of u.
        scale: Standard deviation of the draw before rounding.
        plus: Whether the sine is added or subtracted.

    Returns:
        The least rounded magnitude, and the largest; None if it is unbounded, as u may be 0.

    Example:
        >>> magnitude_bounds(2**63, 2**61, 64, Fraction(100), plus=True)  # u = 1/2, y = 0
        (83, 83)
    """
    working = bits + GUARD_BITS + scale.numerator.bit_length()
    ends = (angle, angle + 1) if plus else (angle + 1, angle)
    low_turn, high_turn = (turned_bounds(t, bits - 2, working, plus=plus) for t in ends)
    low_square, _ = minus_log_bounds(radius + 1, bits, working)
    lower = _rounded(isqrt(low_square << working) * max(low_turn[0], 0), working, scale)
    if radius == 0:
        return lower, None
    _, high_square = minus_log_bounds(radius, bits, working)
    root = isqrt(high_square << working) + 1
    return lower, _rounded(root * high_turn[1], working, scale)


def _rounded(product: int, working: int, scale: Fraction) -> int:
    """Return floor(scale * product / 2^(2 working) + 1/2); a tie has probability 0."""
    unit = scale.denominator << (2 * working)
    return (2 * scale.numerator * product + unit) // (2 * unit)


def minus_log_bounds(numerator: int, bits: int, working: int) -> Bounds:
    """Return bounds of -ln(numerator / 2^bits).

    With u = 2^-k m and m between 0.7 and 1.42, it is k ln 2 + 2 artanh((1 - m) / (1 + m)).

    Args:
        numerator: From 1 to 2^bits.
        bits: At most ``working``.
        working: Precision of the bounds.

    Returns:
        Bounds, at least 0.
    """
    k = max(bits - numerator.bit_length(), 0)
    one, m = 1 << working, numerator << (k + working - bits)
    if 10 * m < 7 * one:
        k, m = k + 1, 2 * m
    s = ((one - m) << working) // (one + m)
    value = k * _log_two(working) + 2 * _artanh(s, working)
    error = (2 * k + 2) * working
    return max(value - error, 0), value + error


@lru_cache(maxsize=64)
def _log_two(bits: int) -> int:
    """Return ln 2 = 2 artanh(1/3) in units of 2^-bits, off by at most ``2 bits`` units."""
    return 2 * _artanh((1 << bits) // 3, bits)


def _artanh(s: int, bits: int) -> int:
    """Return artanh of |s| <= 1/3, off by at most ``bits`` units.

    The series has at most bits / 3 + 1 terms. Rounding a power down costs less than 1.2 units, and
    the division one more. The error of s itself, below 1 unit, grows by at most 9/8. What is left
    out is below 1 unit. Together this is less than ``bits`` for 64 bits or more.
    """
    square, power, total, n = (s * s) >> bits, s, 0, 1
    while power not in (0, -1):
        total += power // n
        power, n = (power * square) >> bits, n + 2
    return total


def turned_bounds(angle: int, bits: int, working: int, *, plus: bool) -> Bounds:
    """Return bounds of cos y +- sin y for y = pi t / 4 and t = angle / 2^(bits - 1) - 1.

    Args:
        angle: From 0 to 2^bits.
        bits: At most ``working``.
        working: Precision of the bounds.
        plus: Whether the sine is added or subtracted.

    Returns:
        A lower and an upper bound.
    """
    y = _pi(working) * (angle - (1 << (bits - 1))) >> (bits + 1)
    # One Taylor series: 1 + y - y^2/2! - y^3/3! + ..., and with -y where the sine is subtracted.
    y = y if plus else -y
    total, term, n = 1 << working, y, 1
    while term not in (0, -1):
        total += term if n & 2 == 0 else -term
        n += 1
        term = (term * y >> working) // n
    # Each of at most ``working`` terms is off by less than 3 units, y by less than 20 per bit.
    return total - 40 * working, total + 40 * working


@lru_cache(maxsize=64)
def _pi(bits: int) -> int:
    """Return pi in units of 2^-bits, by Machin's formula, off by at most ``20 bits`` units."""
    # Each inverse tangent has at most bits / 4 terms, each off by less than 3.
    return 16 * _inverse_tangent(5, bits) - 4 * _inverse_tangent(239, bits)


def _inverse_tangent(inverse: int, bits: int) -> int:
    """Return arctan(1 / inverse) in units of 2^-bits, off by at most one unit per term."""
    power, total, n = (1 << bits) // inverse, 0, 0
    while power:
        total += (-1) ** n * (power // (2 * n + 1))
        power, n = power // inverse**2, n + 1
    return total
