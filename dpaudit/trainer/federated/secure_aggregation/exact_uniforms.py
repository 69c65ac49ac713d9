"""Uniform numbers in [0, 1) with as many bits as a comparison needs.

A sampler compares the first 64 bits in floats. Where their error could change the result, the
comparison is repeated with further bits and rational bounds, so that no draw has a rounding
error.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Context, Decimal
from fractions import Fraction

from dpaudit.trainer.noise.randomness import Keystream, Purpose

WORD_BITS, GUARD_BITS = 64, 64
SMALL_TERM = 2**32
"""Sums end with terms of at most 2^-32 units. Rounded up, terms near 1 would never shrink."""

Bounds = Callable[[int], tuple[int, int]]
"""From a number of bits B to whole numbers below and above 2^B times a probability."""


class ExactUniform:
    """A uniform number in [0, 1) whose bits after the first 64 are drawn when they are needed.

    Args:
        first: The first 64 bits.
        further: From a number n to the next n words of 64 bits, the same ones in each call.
    """

    def __init__(self, first: int, further: Callable[[int], list[int]]) -> None:
        self._first, self._further = first, further

    def is_below(self, bounds: Bounds) -> bool:
        """Return whether the number is below a probability.

        Args:
            bounds: Bounds of the probability at any precision.

        Returns:
            The exact result.
        """
        extra = 0
        while True:
            bits = WORD_BITS * (1 + extra)
            known = self._first
            for word in self._further(extra):
                known = known << WORD_BITS | word
            lower, upper = bounds(bits)
            if known + 1 <= lower:
                return True
            if known >= upper:
                return False
            extra += 1


def further_words(
    stream: Keystream, purpose: Purpose, step: int, draw: int
) -> Callable[[int], list[int]]:
    """Return the bits that continue one draw, from a separate key and address.

    Args:
        stream: Keystream of the draw.
        purpose: Purpose of the draw.
        step: Its step.
        draw: Its number, different for each draw of the same purpose and step.

    Returns:
        From a number n to the first n words of 64 bits.
    """

    def words(count: int) -> list[int]:
        key = bytes(stream.bits(Purpose.FURTHER_BITS, step, 32))
        further = Keystream(key, stream.randomness)
        return [int(word) for word in further.words(purpose, draw, count)]

    return words


def exponential_bounds(exponent: Fraction) -> Bounds:
    """Return bounds of exp(-exponent).

    Args:
        exponent: At least 0.

    Returns:
        A function from a number of bits B to bounds of 2^B exp(-exponent).

    Example:
        >>> lower, upper = exponential_bounds(Fraction(1))(32)
        >>> lower / 2**32 <= 0.36787944117144233 <= upper / 2**32
        True
    """

    def bounds(bits: int) -> tuple[int, int]:
        if exponent >= bits:
            return 0, 1  # exp(-x) < 2^-x
        if exponent == 0:
            return 1 << bits, 1 << bits
        digits = math.ceil(bits * 0.302) + 10
        context = Context(prec=digits)
        value = context.divide(Decimal(exponent.numerator), Decimal(exponent.denominator))
        # copy_negate: a minus sign would round to the digits of the default context.
        power = Fraction(context.exp(value.copy_negate()))
        # Both operations are correctly rounded: their relative errors are at most 10^(1-digits)
        # of the exponent and of the result.
        error = power * (exponent + 2) * Fraction(10) ** (2 - digits)
        lower, upper = (power - error) * 2**bits, (power + error) * 2**bits
        return max(math.floor(lower), 0), math.ceil(upper)

    return bounds


def poisson_bounds(largest: int, mean: Fraction) -> Bounds:
    """Return bounds of the probability that a Poisson draw is at most ``largest``.

    Terms relative to the largest one are summed upwards and downwards from it, with their
    rounding errors. Their sum over all counts stands for 1, so no factorial is needed.

    Args:
        largest: The count, at least 0.
        mean: Mean of the draw, above 0.

    Returns:
        A function from a number of bits B to bounds of 2^B P(N <= largest).

    Example:
        >>> lower, upper = poisson_bounds(0, Fraction(1))(32)
        >>> lower / 2**32 <= 0.36787944117144233 <= upper / 2**32
        True
    """

    def bounds(bits: int) -> tuple[int, int]:
        unit = 1 << (bits + GUARD_BITS)
        inside, outside = _Sum(), _Sum()
        _add_from_mode_up(inside, outside, largest, mean, unit)
        _add_below_mode(inside, outside, largest, mean, unit)
        # inside / (inside + outside) rises with the first and falls with the second.
        lower = (inside.lower << bits) // (inside.lower + outside.upper)
        upper = -(-(inside.upper << bits) // (inside.upper + outside.lower))
        return lower, upper

    return bounds


@dataclass
class _Sum:
    """Bounds of a sum of terms."""

    lower: int = 0
    upper: int = 0


def _add_from_mode_up(inside: _Sum, outside: _Sum, largest: int, mean: Fraction, unit: int) -> None:
    """Add the terms from the largest one, of size ``unit``, upwards: factors mean / count."""
    count, lower, upper = math.floor(mean), unit, unit
    top, bottom = mean.numerator, mean.denominator
    while upper > SMALL_TERM:
        part = inside if count <= largest else outside
        part.lower += lower
        part.upper += upper
        count += 1
        lower = lower * top // (bottom * count)
        upper = -(-upper * top // (bottom * count))
    # The rest is at most a geometric series; if part of it is inside, it counts for both.
    rest = math.ceil(upper / (1 - mean / count))
    outside.upper += rest
    if largest >= count:
        inside.upper += rest


def _add_below_mode(inside: _Sum, outside: _Sum, largest: int, mean: Fraction, unit: int) -> None:
    """Add the terms below the largest one, downwards: factors (count + 1) / mean."""
    count, lower, upper = math.floor(mean), unit, unit
    top, bottom = mean.denominator, mean.numerator
    while count > 0 and upper > SMALL_TERM:
        lower = lower * count * top // bottom
        upper = -(-upper * count * top // bottom)
        count -= 1
        part = inside if count <= largest else outside
        part.lower += lower
        part.upper += upper
    if count > 0:
        # Every further term is smaller than the last one by at least the factor count / mean.
        rest = math.ceil(upper / (1 - count / mean))
        inside.upper += rest
        if largest < count - 1:
            outside.upper += rest
