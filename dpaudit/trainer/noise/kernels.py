"""From uniform words to normals: the compiled kernels of ``kernels.c``, or the same in numpy.

The extension module is optional: an installation without a compiler lacks it. Both use the same
bits. On the grid they give the same integers, as each marks every draw that it might round
wrongly. In float32 they differ by a few units in the last place.

Words and draws come in blocks of ``PAIRS`` pairs; ``kernels.c`` has their layout and formulas.
"""

from __future__ import annotations

import ctypes
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

PAIRS = 64
"""Pairs of draws in a block."""

DRAWS = 2 * PAIRS
"""Draws in a block."""

FLOAT_BYTES = 4

RARE = 2**12
"""Radius words below this are rare: u is below 2^-20, and its tail needs further bits."""

Words = NDArray[np.uint32]
Doubles = NDArray[np.float64]
Fill = Callable[[int], int]
"""Fills so many blocks of a buffer, and returns how many draws need further bits."""

Add = Callable[["Tensor", int, int, int, float, float, int], int]
"""For sums, the position of one, a first draw and an end, two factors and a limit of rare words:
adds the draws times the first factor to consecutive sums, contiguous and float32, on the CPU, and
multiplies these by the second. It stops before a block with a radius word below the limit, and
returns the draw that it came to."""


@dataclass(frozen=True)
class Kernels:
    """Functions that turn uniform words into draws, block by block.

    Attributes:
        compiled: Whether they are those of the extension module.
        add_normals: For a buffer of words, shape ``(2 * PAIRS * blocks,)``, returns what adds its
            float32 normals.
        add_scaled: Adds float32 draws times a factor to as many sums, with the same rounding as
            the function above. Both are contiguous tensors on the CPU.
        rounded_normals: For buffers of words, shape ``(4 * PAIRS * blocks,)``, and of rounded
            normals, shape ``(2 * PAIRS * blocks,)``, a scale and a margin, returns a function of a
            number of blocks. It fills so many, and returns the number of draws that are NaN, as
            they are undecided.
        add_units: Rounds float32 sums to a grid in place, adds whole numbers of grid steps, in
            float64, and multiplies the result by a factor. Both are contiguous tensors on the CPU.
            Returns the number of sums that are not finite or beyond 2^52 grid steps.
    """

    compiled: bool
    add_normals: Callable[[Words], Add]
    add_scaled: Callable[[Tensor, Tensor, float], object]
    rounded_normals: Callable[[Words, Doubles, float, float], Fill]
    add_units: Callable[[Tensor, Tensor, float, float], int]


@cache
def kernels() -> Kernels:
    """Return the compiled kernels if they were built, or those in numpy.

    Returns:
        The kernels of this process.
    """
    found = [Path(__file__).with_name("_kernels" + suffix) for suffix in EXTENSION_SUFFIXES]
    # The bits of the words are little-endian in both.
    if sys.byteorder == "little":
        for path in found:
            if path.exists():
                return load_kernels(path)
    return NUMPY_KERNELS


def load_kernels(path: Path) -> Kernels:
    """Return the kernels of a shared library; ctypes lets other threads run while they compute.

    Args:
        path: The library that was compiled from ``kernels.c``.

    Returns:
        The compiled kernels.
    """
    library = ctypes.CDLL(str(path))

    def function(name: str, *types: Any) -> Callable[..., int]:
        made = getattr(library, name)
        made.restype, made.argtypes = ctypes.c_int64, types
        return made  # type: ignore[no-any-return]

    pointer, number, double = ctypes.c_void_p, ctypes.c_int64, ctypes.c_double
    word, single = ctypes.c_uint32, ctypes.c_float
    normals = function("add_normals", pointer, pointer, *2 * [number], *2 * [single], word)
    scaled = function("add_scaled", pointer, pointer, number, single)
    rounded = function("rounded_normals", pointer, pointer, number, double, double)
    add = function("add_units", pointer, pointer, number, double, single)

    # Looking up an address takes longer than a call: once per buffer.
    def bound_normals(words: Words) -> Add:
        from_ = words.ctypes.data
        return lambda sums, at, first, end, *rest: normals(
            from_, sums.data_ptr() + FLOAT_BYTES * at, first, end, *rest
        )

    def bound_rounded(words: Words, draws: Doubles, scale: float, margin: float) -> Fill:
        from_, to = words.ctypes.data, draws.ctypes.data
        return lambda blocks: rounded(from_, to, blocks, scale, margin)

    return Kernels(
        compiled=True,
        add_normals=bound_normals,
        add_scaled=lambda to, draws, *rest: scaled(to.data_ptr(), draws.data_ptr(), len(to), *rest),
        rounded_normals=bound_rounded,
        add_units=lambda to, units, *rest: add(to.data_ptr(), units.data_ptr(), len(to), *rest),
    )


def _add_normals(words: Words) -> Add:
    """Return what adds draws as the compiled kernel does, but for the last bits."""

    def add(sums: Tensor, at: int, first: int, end: int, *rest: Any) -> int:
        factor, share, rare = rest
        start, stop = first - first % DRAWS, end + -end % DRAWS
        radii = words[start:stop].reshape(-1, 2, PAIRS)[:, 0]
        blocks = np.flatnonzero((radii < rare).any(axis=1))
        reached = min(max(first, start + DRAWS * int(blocks[0])), end) if len(blocks) else end
        if reached > first:
            draws = _float_normals(words[start : reached + -reached % DRAWS])
            own = draws[first - start : reached - start]
            sums[at : at + reached - first].add_(own, alpha=factor).mul_(share)
        return reached

    return add


def _float_normals(words: Words) -> Tensor:
    """Return the draws of whole blocks, in torch."""
    import torch  # noqa: PLC0415  the server of a federation draws noise without it

    parts = torch.from_numpy(words.view(np.int32)).view(-1, 2, PAIRS)
    radii, angles = parts[:, 0], parts[:, 1]
    v = torch.bitwise_and(angles, 255).float().add_(0.5).mul_(2.0**-8).add_(radii)
    v.mul_(2.0**-32)  # u, or u - 1
    # Faster than torch.where, and equal to it for weights 0 and 1.
    radius = torch.lerp(v.abs().log_(), v.log1p(), (radii < 0).float()).neg_().sqrt_()
    y = torch.bitwise_right_shift(angles, 10).float().add_(0.5).mul_(math.pi / 4 * 2.0**-21)
    cosine, sine = y.cos(), y.sin_()
    out = torch.empty(len(parts), 2, PAIRS)
    for which, turned in enumerate((cosine - sine, cosine.add_(sine))):
        signs = torch.bitwise_and(angles >> (8 + which), 1).mul_(-2).add_(1)
        torch.mul(turned.mul_(radius), signs, out=out[:, which])
    return out.view(-1)


def _rounded_normals(words: Words, draws: Doubles, scale: float, margin: float) -> Fill:
    """Return what fills ``draws`` as the compiled kernel does, up to those that are undecided."""
    return lambda blocks: _fill_rounded(
        words[: 2 * DRAWS * blocks], draws[: DRAWS * blocks], scale, margin
    )


def _fill_rounded(words: Words, draws: Doubles, scale: float, margin: float) -> int:
    """Fill all of ``draws`` in numpy; the margin holds for its functions, too."""
    parts = words.view(np.int32).reshape(-1, 4, PAIRS).swapaxes(0, 1)
    radii, radii_low, angles, angles_low = parts
    v = radii_low.astype(np.float64)
    v += 2.0**31 + 0.5
    v *= 2.0**-32
    v += radii
    v *= 2.0**-32  # u, or u - 1
    radius = np.sqrt(-np.where(radii < 0, np.log1p(v), np.log(np.abs(v))))
    radius *= scale
    y = (angles >> 2).astype(np.float64)
    y *= 2.0**32
    y += angles_low
    y += 2.0**31 + 0.5
    y *= math.pi / 4 * 2.0**-61
    cosine, sine = np.cos(y), np.sin(y)
    rare = (radii >= -1) & (radii < RARE)
    out = draws.reshape(-1, 2, PAIRS)
    for which, turned in enumerate((cosine - sine, cosine + sine)):
        x = turned * radius
        rounded = np.rint(x)
        undecided = (np.abs(x - rounded) >= 0.5 - margin) | rare
        signed = np.where(angles >> which & 1, -rounded, rounded)
        out[:, which] = np.where(undecided, np.nan, signed)
    return int(np.count_nonzero(np.isnan(draws)))


def _add_units(sums: Tensor, units: Tensor, grid: float, share: float) -> int:
    """Add grid steps to the rounded sums, which are exact in float64 up to the last conversion."""
    steps = sums.double().div_(grid)
    refused = int((steps.abs() <= 2.0**52).logical_not_().sum())
    sums.copy_(steps.round_().add_(units).mul_(grid)).mul_(share)
    return refused


NUMPY_KERNELS = Kernels(
    compiled=False,
    add_normals=_add_normals,
    add_scaled=lambda sums, draws, factor: sums.add_(draws, alpha=factor),
    rounded_normals=_rounded_normals,
    add_units=_add_units,
)
"""The same in numpy."""
