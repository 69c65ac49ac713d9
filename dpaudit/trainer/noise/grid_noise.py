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

import math
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dpaudit.trainer.noise.exact_rounding import rounded_magnitude
from dpaudit.trainer.noise.kernels import DRAWS, PAIRS, kernels
from dpaudit.trainer.noise.randomness import Keystream, Purpose
from dpaudit.vocabulary.errors import InvalidArgument, require_count, require_positive

if TYPE_CHECKING:
    from torch import Tensor

LOST_TO_ROUNDING = Fraction(1, 2**10)
"""Upper bound of g sqrt(d) over the clip norm: the relative increase of sensitivity."""

LEAST_EXPONENT = -1000
LARGEST_SUM = 2.0**52
LARGEST_DEVIATION = 2.0**32

MARGIN = 2.0**-44
"""Upper bound of the error of a draw in float64, in units of its deviation. The bound is proven in
``docs/mathematics/grid_noise.md``. A draw nearer to a half than this is decided exactly."""

BLOCKS_AT_ONCE = 2**8
"""Blocks per chunk, so that they fit the processor's cache; affects speed alone."""


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
        raise _unroundable_sum()
    return rounded.to(torch.int64)


def _unroundable_sum() -> InvalidArgument:
    """Return the error of a sum with NaN or too large an entry, which is secret and not shown."""
    return InvalidArgument("total", "an entry that is not", "finite and at most 2^52 grid steps")


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
        noise: Multiples of the grid spacing, int64 or whole numbers in float64, as many entries
            as ``total``.
        grid: The grid spacing, a power of two.

    Returns:
        The noisy sum, with the shape, type and device of ``total``.
    """
    units = round_to_grid(total, grid).double()
    # Below 2^53, so that the double is exact; the last conversion is post-processing.
    units += noise.to(total.device).view_as(total)
    return units.mul_(grid).to(total.dtype)


def add_in_place(total: Tensor, noise: Tensor, grid: float, share: float = 1.0) -> None:
    """Round a part of a sum to the grid, add noise in units of the grid, and multiply, in place.

    Args:
        total: A part of the sum, of one dimension and contiguous.
        noise: Whole numbers in float64 on the CPU, as many as ``total`` has entries.
        grid: The grid spacing, a power of two.
        share: Factor on the noisy sum.

    Raises:
        InvalidArgument: If an entry is not finite or beyond 2^52 units.
    """
    import torch  # noqa: PLC0415  the server of a federation draws noise without it

    if total.device.type != "cpu" or total.dtype is not torch.float32:
        total.copy_(add_grid_units(total, noise, grid)).mul_(share)
    elif kernels().add_units(total, noise, grid, share):
        raise _unroundable_sum()


def rounded_normals(
    stream: Keystream, purpose: Purpose, step: int, deviation: float, grid: float, count: int
) -> NDArray[np.int64]:
    """Return draws of round(N(0, deviation^2) / grid), sampled without error.

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
    draws, start = np.empty(count, dtype=np.int64), 0
    for chunk in grid_chunks(stream, purpose, step, deviation_in_units(deviation, grid), count):
        draws[start : start + len(chunk)] = chunk
        start += len(chunk)
    return draws


def grid_chunks(
    stream: Keystream, purpose: Purpose, step: int, scale: float, count: int
) -> Iterator[NDArray[np.float64]]:
    """Yield draws of round(N(0, scale^2)), sampled without error, in chunks of cache size.

    Draw i depends on the key, the purpose, the step and i alone. Each pair of draws has 128 bits
    of the keystream. Floats round a draw where their error cannot change the result; elsewhere
    further bits decide.

    Args:
        stream: Keystream of the noise.
        purpose: Address of the noise in the keystream, together with ``step``.
        step: Number of the step, from 0.
        scale: Standard deviation before rounding, from ``deviation_in_units``.
        count: Number of draws.

    Yields:
        Whole numbers in float64, ``count`` in all; a chunk is overwritten by the next one.
    """
    fill = stream.reader(purpose, step, length=8 * (count + DRAWS))
    at_once = max(min(-(-count // DRAWS), BLOCKS_AT_ONCE), 1)
    words, draws = np.empty(2 * DRAWS * at_once, "<u4"), np.empty(DRAWS * at_once)
    transform = kernels().rounded_normals(words, draws, scale, max(scale, 1.0) * MARGIN)
    bits = words.view(np.uint8).data
    for start in range(0, count, DRAWS * at_once):
        blocks = min(-(-(count - start) // DRAWS), at_once)
        fill(bits[: 8 * DRAWS * blocks])
        made = draws[: DRAWS * blocks]
        if transform(blocks):
            first = start // DRAWS

            def further(block: int, pair: int, first: int = first) -> Iterator[int]:
                return stream.further_words(purpose, step, (first + block) * PAIRS + pair)

            _decide(words[: 2 * DRAWS * blocks], made, scale, further)
        yield made[: count - start]


def _decide(
    words: NDArray[np.uint32],
    draws: NDArray[np.float64],
    scale: float,
    further: Callable[[int, int], Iterator[int]],
) -> None:
    """Replace the draws that are NaN, from their words and further bits of their pair."""
    bits, made = words.reshape(-1, 4, PAIRS), draws.reshape(-1, 2, PAIRS)
    for block, which, pair in np.argwhere(np.isnan(made)).tolist():
        # The kernels read low words, and angles, as signed.
        radius, radius_low, angle, angle_low = (int(word) for word in bits[block, :, pair])
        magnitude = rounded_magnitude(
            radius << 32 | radius_low ^ 2**31,
            (angle ^ 2**31) >> 2 << 32 | angle_low ^ 2**31,
            further(block, pair),
            scale=scale,
            plus=bool(which),
        )
        made[block, which, pair] = -magnitude if angle >> which & 1 else magnitude


def deviation_in_units(deviation: float, grid: float) -> float:
    """Return deviation / grid, which is exact for a power of two.

    Args:
        deviation: Standard deviation of the Gaussian before rounding.
        grid: The grid spacing, a power of two.

    Returns:
        The deviation in grid steps.

    Raises:
        InvalidArgument: If ``grid`` is not a power of two, or the deviation is not between 2^-32
            and 2^32 grid steps.
    """
    require_positive("deviation", deviation)
    _require_power_of_two(grid)
    if not 1 / LARGEST_DEVIATION <= deviation / grid <= LARGEST_DEVIATION:
        raise InvalidArgument("deviation", deviation, f"from 2^-32 to 2^32 grid steps of {grid}")
    return deviation / grid


def _require_power_of_two(grid: float) -> None:
    """Refuse a grid spacing that is not a power of two."""
    if not (0 < grid < math.inf and math.frexp(grid)[0] == 0.5):
        raise InvalidArgument("grid", grid, "a power of two, as grid_spacing returns")
