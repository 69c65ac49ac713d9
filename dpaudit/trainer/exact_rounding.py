"""The rounding of a normal whose bits are drawn until they decide it.

A normal's magnitude is given by its tail probability u, uniform on (0, 1/2), of which some
bits are known. It rounds to k where Q((k + 1/2) / s) < u < Q((k - 1/2) / s), with Q the
upper tail of N(0, 1) and s the standard deviation. Q is enclosed in whole numbers, every
division rounded outward; where the enclosure does not decide, more bits of u are drawn
and the enclosure narrows with them. So what is returned is certain, whatever the rounding
of floats, and the law is that of a rounded normal without any error.

Whole numbers rather than a library of intervals: those keep their precision and their
constants in the process, and noise may be made in a thread beside other computations.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from fractions import Fraction
from functools import cache, lru_cache

from scipy.special import ndtri_exp

WORD = 64
GUARD = 32


def rounded_magnitude(first: int, further: Iterator[int], deviation: float) -> int:
    """Return round(|N(0, deviation^2)|), decided from the bits of its tail probability.

    Args:
        first: The tail probability's bits 2 to 64 after the point; bit 1 is zero.
        further: The bits after these, in words of 64; as many are taken as it needs.
        deviation: Standard deviation, above 0; exactly this float.
    """
    known, bits = first, WORD
    while True:
        known, bits = known << WORD | next(further), bits + WORD
        found = _decided(known, bits, deviation) if known >> WORD else None
        if found is not None:
            return found


def _decided(known: int, bits: int, deviation: float) -> int | None:
    """Return what every tail probability in [known, known + 1] / 2^bits rounds to, if one."""
    doubled = 2 * Fraction(deviation)

    @cache
    def boundary(magnitude: int) -> tuple[int, int]:
        return upper_tail((2 * magnitude + 1) / doubled, bits)

    def surely_at_most(magnitude: int) -> bool:
        return boundary(magnitude)[1] <= known

    def surely_above(magnitude: int) -> bool:
        return known + 1 <= boundary(magnitude)[0]

    # A float says where to look, and has no say in what is found there.
    found = round(-float(ndtri_exp(math.log(known) - bits * math.log(2))) * deviation)
    while surely_above(found):
        found += 1
    while found > 0 and surely_at_most(found - 1):
        found -= 1
    if surely_at_most(found) and (found == 0 or surely_above(found - 1)):
        return found
    return None


def upper_tail(at: Fraction, bits: int) -> tuple[int, int]:
    """Return bounds of P(N(0, 1) > at) in units of 2^-bits, for ``at >= 0``.

    Q(x) = 1/2 - S(x) / sqrt(2 pi), with S(x) = sum of (-1)^n x^(2n+1) / (2^n n! (2n+1))
    (Abramowitz & Stegun 26.2.10).
    """
    square = at * at
    if square >= 2 * bits:
        return 0, 1  # Q(x) <= exp(-x^2 / 2) / 2 < 2^-bits: finer needs more bits
    # The terms grow as large as exp(x^2 / 2) < 2^(0.73 x^2) before they cancel.
    working = bits + GUARD + math.ceil(square * 3 / 4)
    lower_sum, upper_sum = _central_series(at, working)
    lower_root, upper_root = _root_of_two_pi(working)
    half, spare = 1 << (working - 1), working - bits
    lower = half - _ceiling(upper_sum << working, lower_root)
    upper = half - (lower_sum << working) // upper_root
    return max(lower >> spare, 0), _ceiling(upper, 1 << spare)


def _central_series(at: Fraction, bits: int) -> tuple[int, int]:
    """Return bounds of S in units of 2^-bits."""
    square = at * at
    low_term = (at.numerator << bits) // at.denominator
    high_term = low_term + 1
    lower, upper, n = low_term, high_term, 0
    # Past its largest term the series alternates and falls: what is left out is less than
    # the first term that is.
    while high_term > 1 or square > 2 * n:
        n += 1
        divisor = square.denominator * 2 * n
        low_term = low_term * square.numerator // divisor
        high_term = _ceiling(high_term * square.numerator, divisor)
        least, most = low_term // (2 * n + 1), _ceiling(high_term, 2 * n + 1)
        lower, upper = (
            (lower + least, upper + most) if n % 2 == 0 else (lower - most, upper - least)
        )
    return lower - 1, upper + 1


@lru_cache(maxsize=64)
def _root_of_two_pi(bits: int) -> tuple[int, int]:
    """Return bounds of sqrt(2 pi) in units of 2^-bits; pi by Machin's formula."""
    pi = 16 * _inverse_tangent(5, bits) - 4 * _inverse_tangent(239, bits)
    error = 20 * bits  # each has at most bits / 4 terms, each off by less than 3
    return (
        math.isqrt((2 * (pi - error)) << bits),
        math.isqrt((2 * (pi + error)) << bits) + 1,
    )


def _inverse_tangent(inverse: int, bits: int) -> int:
    """Return arctan(1 / inverse) in units of 2^-bits, short of or over it by a unit a term."""
    power, total, n = (1 << bits) // inverse, 0, 0
    while power:
        total += (-1) ** n * (power // (2 * n + 1))
        power, n = power // inverse**2, n + 1
    return total


def _ceiling(numerator: int, denominator: int) -> int:
    return -(-numerator // denominator)
