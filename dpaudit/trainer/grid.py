"""Noise on a grid: the Gaussian mechanism, without what the floats below it give away.

A float sum plus a float normal lies on a lattice that depends on the sum, and its last
bits tell neighbouring data sets apart (Mironov 2012, CCS; Holohan & Braghin 2021,
arXiv:2107.10138). Here the clipped sum is rounded to multiples of a power of two g, and
what is added is round(N(0, sigma^2) / g) g, sampled without error. With x on the grid

    x + g round(Z / g) = g round((x + Z) / g):

the result is that of the Gaussian mechanism on x, rounded afterwards; so it costs what
the Gaussian mechanism costs, in any dimension.

Rounding moves a coordinate by at most g / 2. Two neighbours' rounded sums therefore differ
by at most g sqrt(d) more than their sums do, and clipping has to aim that much lower. What
the summation of clipped gradients in floats adds to their difference is not in this bound.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from fractions import Fraction

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import ndtri
from torch import Tensor

from dpaudit.trainer.exact_rounding import rounded_magnitude
from dpaudit.trainer.randomness import Keystream, Purpose
from dpaudit.vocabulary.errors import InvalidArgument, require_count, require_positive

LOST_TO_ROUNDING = Fraction(1, 2**10)
"""At most this part of the clip norm is given up, so that rounding is inside it."""

LEAST_EXPONENT = -1000
LARGEST_SUM = 2.0**52
LARGEST_DEVIATION = 2.0**32

TAIL_BITS = 2**63 - 1
RARE_TAIL = 2**42  # of 2^63: beyond five deviations, one draw in two million

# How far a float can be from a normal whose tail probability lies between 2^-22 and 1/2,
# so that z < 5.1 (the derivative of z is 1 / phi(z), at most u / phi(z) <= 1.26 times the
# relative error of u):
#   bits that are not known        half of 2^-64 in 2^-22, over z at z = 5.0    2^-45.3
#   rounding the bits to a float   twice 2^-53 of u                             2^-51.6
#   ndtri                          documented 2^-50.3 of z; here 2^-45.4 of 5.1: 2^-43.0
# The last allows for 30 times what is documented. The product with the deviation, 2^-53 of
# it, disappears in that.
MARGIN = 2.0**-42.5

CHUNK = 2**15
"""Draws in the processor's cache at once; a matter of speed alone."""


def grid_for(clip_norm: float, dimension: int) -> float:
    """Return the largest power of two g with g sqrt(dimension) <= clip_norm / 2^10."""
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
    """Return what clipping aims at so that rounded sums have sensitivity ``clip_norm``.

    Rounded down: clip_norm - g sqrt(dimension).
    """
    widening = math.nextafter(grid_for(clip_norm, dimension) * math.sqrt(dimension), math.inf)
    return math.nextafter(clip_norm - widening, 0.0)


def on_grid(total: Tensor, grid: float) -> Tensor:
    """Return ``total`` rounded to multiples of ``grid``, in units of it: int64.

    Raises:
        InvalidArgument: an entry is not finite, or beyond 2^52 units.
    """
    _require_power_of_two(grid)
    rounded = (total.double() / grid).round_()  # dividing by a power of two is exact
    if not bool((rounded.abs() <= LARGEST_SUM).all()):
        # Not the value: the sum is what must stay secret.
        raise InvalidArgument("total", "an entry that is not", "finite and at most 2^52 grid steps")
    return rounded.to(torch.int64)


def noisy(
    total: Tensor,
    stream: Keystream,
    purpose: Purpose,
    step: int,
    *,
    deviation: float,
    grid: float,
) -> Tensor:
    """Return ``total`` on the grid plus a rounded Gaussian, as a tensor of ``total``'s kind."""
    noise = rounded_normals(stream, purpose, step, deviation, grid, total.numel())
    return with_noise(total, torch.from_numpy(noise), grid)


def with_noise(total: Tensor, noise: Tensor, grid: float) -> Tensor:
    """Return ``total`` on the grid plus ``noise`` in units of the grid, as ``total``'s kind."""
    units = on_grid(total, grid).add_(noise.to(total.device).view_as(total))
    # Below 2^53, so that the double is exact; the last conversion is post-processing.
    return units.double().mul_(grid).to(total.dtype)


def rounded_normals(
    stream: Keystream, purpose: Purpose, step: int, deviation: float, grid: float, count: int
) -> NDArray[np.int64]:
    """Return ``count`` draws of round(N(0, deviation^2) / grid), whose law is exactly that.

    Draw i depends on the key, the purpose, the step and i alone. Its word of the keystream
    is a sign and the tail probability's next 63 bits; floats round it where they certainly
    can, and where they cannot, further bits decide.

    Raises:
        InvalidArgument: the grid is no power of two, or the deviation not between 2^-32
            and 2^32 of it.
    """
    scale = _in_units(deviation, grid)
    words = stream.words(purpose, step, count)
    draws = np.empty(count, dtype=np.int64)
    for start in range(0, count, CHUNK):
        some = words[start : start + CHUNK]
        magnitudes, undecided = _by_floats(some, scale)
        for i in np.flatnonzero(undecided):
            further = _further_words(stream, purpose, step, start + int(i))
            first = int(some[i]) & TAIL_BITS
            magnitudes[i] = rounded_magnitude(first, further, scale)
        # The word's first bit is its sign, as a float's is.
        draws[start : start + CHUNK] = np.copysign(magnitudes, some.view(np.float64))
    return draws


def _by_floats(
    words: NDArray[np.uint64], scale: float
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return the magnitudes that floats find, and where they might not be right."""
    bits = np.bitwise_and(words, np.uint64(TAIL_BITS)).view(np.int64)
    values = bits.astype(np.float64)
    values += 0.5  # the middle of what the further bits can make of it
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
    """Yield the bits that continue one draw, under a key of the step and an address of its own."""
    key = bytes(stream.bits(Purpose.FURTHER_BITS, step, 32))
    further = Keystream(key, stream.randomness)
    for count in itertools.count(1):
        yield int(further.words(purpose, draw, count)[-1])


def _in_units(deviation: float, grid: float) -> float:
    """Return deviation / grid, which is exact."""
    require_positive("deviation", deviation)
    _require_power_of_two(grid)
    if not 1 / LARGEST_DEVIATION <= deviation / grid <= LARGEST_DEVIATION:
        raise InvalidArgument("deviation", deviation, f"from 2^-32 to 2^32 grid steps of {grid}")
    return deviation / grid


def _require_power_of_two(grid: float) -> None:
    if not (0 < grid < math.inf and math.frexp(grid)[0] == 0.5):
        raise InvalidArgument("grid", grid, "a power of two, as of grid_for")
