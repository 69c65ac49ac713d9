"""Noise on a grid: the Gaussian mechanism without the leak through the low bits of floats.

A float sum plus a float normal lies on a lattice that depends on the sum. Its last bits
distinguish neighboring data sets (Mironov 2012, CCS; Holohan & Braghin 2021,
arXiv:2107.10138). Here the clipped sum is rounded to multiples of a power of two g. The
noise is round(N(0, sigma^2) / g) g, sampled without error. With x on the grid

    x + g round(Z / g) = g round((x + Z) / g).

So the result is that of the Gaussian mechanism on x, rounded afterwards. It has the same
privacy loss as the Gaussian mechanism, in any dimension.

Rounding moves a coordinate by at most g / 2. The rounded sums of two neighbors therefore
differ by at most g sqrt(d) more than their sums do; the sensitivity grows by as much.
The rounding errors of summing clipped gradients in floats are not part of this bound.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from fractions import Fraction
from functools import cache, lru_cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri, ndtri_exp

from dpaudit.trainer.noise.randomness import Keystream, Purpose
from dpaudit.vocabulary.errors import InvalidArgument, require_count, require_positive

if TYPE_CHECKING:
    from torch import Tensor

# Exact rounding of a normal: bits are drawn until they decide the result.

WORD_BITS = 64
GUARD_BITS = 32


def rounded_magnitude(first: int, further: Iterator[int], deviation: float) -> int:
    """Return round(|N(0, deviation^2)|), decided from the bits of its tail probability.

    Args:
        first: Bits 2 to 64 of the tail probability after the binary point; bit 1 is zero.
        further: The bits after these, in words of 64; words are read until the result is decided.
        deviation: Standard deviation, above 0; exactly this float.

    Returns:
        The rounded magnitude, without rounding error.
    """
    known, bits = first, WORD_BITS
    while True:
        known, bits = known << WORD_BITS | next(further), bits + WORD_BITS
        found = _round_if_decided(known, bits, deviation) if known >> WORD_BITS else None
        if found is not None:
            return found


def _round_if_decided(known: int, bits: int, deviation: float) -> int | None:
    """Return what all of [known, known + 1] / 2^bits rounds to, as tails; None if undecided."""
    doubled = 2 * Fraction(deviation)

    @cache
    def boundary(magnitude: int) -> tuple[int, int]:
        return upper_tail((2 * magnitude + 1) / doubled, bits)

    def surely_at_most(magnitude: int) -> bool:
        return boundary(magnitude)[1] <= known

    def surely_above(magnitude: int) -> bool:
        return known + 1 <= boundary(magnitude)[0]

    # A float gives the first candidate; exact bounds decide.
    found = round(-float(ndtri_exp(math.log(known) - bits * math.log(2))) * deviation)
    while surely_above(found):
        found += 1
    while found > 0 and surely_at_most(found - 1):
        found -= 1
    if surely_at_most(found) and (found == 0 or surely_above(found - 1)):
        return found
    return None


def upper_tail(at: Fraction, bits: int) -> tuple[int, int]:
    """Return bounds of P(N(0, 1) > at) in units of 2^-bits.

    Q(x) = 1/2 - S(x) / sqrt(2 pi), with S(x) = sum of (-1)^n x^(2n+1) / (2^n n! (2n+1)).

    Args:
        at: Where the tail begins, at least 0.
        bits: Precision of the bounds.

    Returns:
        A lower and an upper bound, as whole numbers.

    References:
        Abramowitz & Stegun, 26.2.10.

    Example:
        >>> lower, upper = upper_tail(Fraction(1), 32)
        >>> lower / 2**32 <= 0.15865525393145707 <= upper / 2**32
        True
    """
    square = at * at
    if square >= 2 * bits:
        return 0, 1  # Q(x) <= exp(-x^2 / 2) / 2 < 2^-bits: finer needs more bits
    # The terms grow as large as exp(x^2 / 2) < 2^(0.73 x^2) before they cancel.
    working = bits + GUARD_BITS + math.ceil(square * 3 / 4)
    lower_sum, upper_sum = _central_series(at, working)
    lower_root, upper_root = _root_of_two_pi(working)
    half, spare = 1 << (working - 1), working - bits
    lower = half - _ceiling(upper_sum << working, lower_root)
    upper = half - (lower_sum << working) // upper_root
    return max(lower >> spare, 0), _ceiling(upper, 1 << spare)


def _central_series(at: Fraction, bits: int) -> tuple[int, int]:
    """Return bounds of S(at) in units of 2^-bits."""
    square = at * at
    low_term = (at.numerator << bits) // at.denominator
    high_term = low_term + 1
    lower, upper, n = low_term, high_term, 0
    # Past its largest term the series alternates and decreases: the remainder is less than
    # the first term left out.
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
    """Return arctan(1 / inverse) in units of 2^-bits, off by at most one unit per term."""
    power, total, n = (1 << bits) // inverse, 0, 0
    while power:
        total += (-1) ** n * (power // (2 * n + 1))
        power, n = power // inverse**2, n + 1
    return total


def _ceiling(numerator: int, denominator: int) -> int:
    """Return numerator / denominator rounded up."""
    return -(-numerator // denominator)


LOST_TO_ROUNDING = Fraction(1, 2**10)
"""Upper bound of g sqrt(d) over the clip norm: the relative increase of sensitivity."""

LEAST_EXPONENT = -1000
LARGEST_SUM = 2.0**52
LARGEST_DEVIATION = 2.0**32

TAIL_BITS = 2**63 - 1
RARE_TAIL = (
    2**42
)  # tail probabilities below this / 2^64 are decided exactly: about one draw in two million

# How far a float can be from a normal whose tail probability lies between 2^-22 and 1/2,
# so that z < 5.1 (the derivative of z is 1 / phi(z), at most u / phi(z) <= 1.26 times the
# relative error of u):
#   bits that are not known        half of 2^-64 in 2^-22, over z at z = 5.0    2^-45.3
#   rounding the bits to a float   twice 2^-53 of u                             2^-51.6
#   ndtri                          documented 2^-50.3 of z; here 2^-45.4 of 5.1: 2^-43.0
# The last allows for 30 times what is documented. The product with the deviation, 2^-53 of
# it, disappears in that.
MARGIN = 2.0**-42.5

DRAWS_AT_ONCE = 2**15
"""Draws per chunk, so that they fit the processor's cache; affects speed alone."""


def grid_spacing(clip_norm: float, dimension: int) -> float:
    """Return the largest power of two g with g sqrt(dimension) <= clip_norm / 2^10.

    Args:
        clip_norm: Largest L2 norm of what one record adds, above 0.
        dimension: Number of coordinates, at least 1.

    Returns:
        The grid spacing g.

    Raises:
        InvalidArgument: If an argument is out of range, or the clip norm is too small for a
            grid of floats.
    """
    require_positive("clip_norm", clip_norm)
    require_count("dimension", dimension)
    allowed = (Fraction(clip_norm) * LOST_TO_ROUNDING) ** 2 / dimension  # of g^2
    exponent = math.frexp(clip_norm)[1] - 10 - dimension.bit_length() // 2  # or 1 or 2 less
    while Fraction(2) ** (2 * exponent) > allowed:
        exponent -= 1
    if exponent < LEAST_EXPONENT:
        raise InvalidArgument("clip_norm", clip_norm, "large enough for a grid of floats")
    return math.ldexp(1.0, exponent)


def clip_norm_within(clip_norm: float, dimension: int) -> float:
    """Return the clip norm with which rounded sums have sensitivity at most ``clip_norm``.

    Args:
        clip_norm: The sensitivity that rounded sums may have, above 0.
        dimension: Number of coordinates, at least 1.

    Returns:
        clip_norm - g sqrt(dimension), rounded down.
    """
    widening = math.nextafter(grid_spacing(clip_norm, dimension) * math.sqrt(dimension), math.inf)
    return math.nextafter(clip_norm - widening, 0.0)


def round_to_grid(total: Tensor, grid: float) -> Tensor:
    """Return ``total`` rounded to multiples of ``grid``.

    Args:
        total: The sum, of any shape.
        grid: The grid spacing, a power of two.

    Returns:
        Multiples of the grid spacing, int64, of the same shape.

    Raises:
        InvalidArgument: If ``grid`` is not a power of two, or an entry is not finite or beyond
            2^52 units.
    """
    import torch  # noqa: PLC0415  the server of a federation draws noise without it

    _require_power_of_two(grid)
    rounded = (total.double() / grid).round_()  # dividing by a power of two is exact
    if not bool((rounded.abs() <= LARGEST_SUM).all()):
        # The message does not show the value: the sum is secret.
        raise InvalidArgument("total", "an entry that is not", "finite and at most 2^52 grid steps")
    return rounded.to(torch.int64)


def add_rounded_noise(
    total: Tensor,
    stream: Keystream,
    purpose: Purpose,
    step: int,
    *,
    deviation: float,
    grid: float,
) -> Tensor:
    """Round ``total`` to the grid and add a rounded Gaussian.

    Args:
        total: The sum, of any shape.
        stream: Keystream of the noise.
        purpose: Address of the noise in the keystream, together with ``step``.
        step: Number of the step, from 0.
        deviation: Standard deviation of the Gaussian before rounding.
        grid: The grid spacing, a power of two.

    Returns:
        The noisy sum, with the shape, type and device of ``total``.
    """
    import torch  # noqa: PLC0415  the server of a federation draws noise without it

    noise = rounded_normals(stream, purpose, step, deviation, grid, total.numel())
    return add_grid_units(total, torch.from_numpy(noise), grid)


def add_grid_units(total: Tensor, noise: Tensor, grid: float) -> Tensor:
    """Round ``total`` to the grid and add noise given in units of the grid.

    Args:
        total: The sum, of any shape.
        noise: Multiples of the grid spacing, int64, as many entries as ``total``.
        grid: The grid spacing, a power of two.

    Returns:
        The noisy sum, with the shape, type and device of ``total``.
    """
    units = round_to_grid(total, grid).add_(noise.to(total.device).view_as(total))
    # Below 2^53, so that the double is exact; the last conversion is post-processing.
    return units.double().mul_(grid).to(total.dtype)


def rounded_normals(
    stream: Keystream, purpose: Purpose, step: int, deviation: float, grid: float, count: int
) -> NDArray[np.int64]:
    """Return draws of round(N(0, deviation^2) / grid), sampled without error.

    Draw i depends on the key, the purpose, the step and i alone. Its word of the keystream holds
    a sign and the next 63 bits of the tail probability. Floats round it where their error cannot
    change the result; elsewhere further bits decide.

    Args:
        stream: Keystream of the noise.
        purpose: Address of the noise in the keystream, together with ``step``.
        step: Number of the step, from 0.
        deviation: Standard deviation of the Gaussian before rounding.
        grid: The grid spacing, a power of two.
        count: Number of draws.

    Returns:
        Multiples of the grid spacing, int64, shape ``(count,)``.

    Raises:
        InvalidArgument: If ``grid`` is not a power of two, or the deviation is not between 2^-32
            and 2^32 grid steps.
    """
    scale = _in_units(deviation, grid)
    words = stream.words(purpose, step, count)
    draws = np.empty(count, dtype=np.int64)
    for start in range(0, count, DRAWS_AT_ONCE):
        some = words[start : start + DRAWS_AT_ONCE]
        magnitudes, undecided = _by_floats(some, scale)
        for i in np.flatnonzero(undecided):
            further = _further_words(stream, purpose, step, start + int(i))
            first = int(some[i]) & TAIL_BITS
            magnitudes[i] = rounded_magnitude(first, further, scale)
        # The word's first bit is its sign, as a float's is.
        draws[start : start + DRAWS_AT_ONCE] = np.copysign(magnitudes, some.view(np.float64))
    return draws


def _by_floats(
    words: NDArray[np.uint64], scale: float
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return the magnitudes computed in floats, and a mask of those that might be wrong."""
    bits = np.bitwise_and(words, np.uint64(TAIL_BITS)).view(np.int64)
    values = bits.astype(np.float64)
    values += 0.5  # the middle of the interval that further bits can reach
    values *= 2.0**-64
    ndtri(values, out=values)
    values *= -scale
    magnitudes = np.rint(values)
    values -= magnitudes
    np.abs(values, out=values)
    undecided = values >= 0.5 - max(scale, 1.0) * MARGIN
    undecided |= bits < RARE_TAIL
    return magnitudes, undecided


def _further_words(stream: Keystream, purpose: Purpose, step: int, draw: int) -> Iterator[int]:
    """Yield the bits that continue one draw, from a separate key and address."""
    key = bytes(stream.bits(Purpose.FURTHER_BITS, step, 32))
    further = Keystream(key, stream.randomness)
    for count in itertools.count(1):
        yield int(further.words(purpose, draw, count)[-1])


def _in_units(deviation: float, grid: float) -> float:
    """Return deviation / grid, which is exact for a power of two."""
    require_positive("deviation", deviation)
    _require_power_of_two(grid)
    if not 1 / LARGEST_DEVIATION <= deviation / grid <= LARGEST_DEVIATION:
        raise InvalidArgument("deviation", deviation, f"from 2^-32 to 2^32 grid steps of {grid}")
    return deviation / grid


def _require_power_of_two(grid: float) -> None:
    """Refuse a grid spacing that is not a power of two."""
    if not (0 < grid < math.inf and math.frexp(grid)[0] == 0.5):
        raise InvalidArgument("grid", grid, "a power of two, as grid_spacing returns")
