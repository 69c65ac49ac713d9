"""Characteristic functions of points on a line, at frequencies 0, h, 2h, ...

Few: as a product of two small matrices of phases. Many: each point is spread on a fine
periodic grid by a Kaiser-Bessel window and one FFT does the rest (a type-1 non-uniform
FFT: Dutt & Rokhlin 1993; Fessler & Sutton 2003 for the window).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
ComplexArray = NDArray[np.complex128]

UNIT_ROUNDOFF = 2.0**-53
FEW = 4e6  # points times frequencies: more are spread
BLOCK = 64
ANCHOR = 8
PER_POWER = 50  # two powers, each off by ANCHOR roundings of its factors and 2.3 a product
WINDOW, SHAPE, NEAR_EDGE = 16, 37.0, 0.1
AT_ONCE = 40_000
# The window's error for masses that sum to 1, its FFT's rounding included: 2e-14 was seen
# for single points anywhere in a cell; tests hold it against sums in long double.
SPREADING_ERROR = 2e-13


def characteristic(
    losses: Array, masses: Array, spacing: float, count: int
) -> tuple[ComplexArray, float]:
    """Return sum_j masses_j exp(i k spacing losses_j), k < count, and a bound on its error.

    ``masses`` are not negative and sum to about 1; losses are best centred.
    """
    phases = 4 * UNIT_ROUNDOFF * spacing * count * float(masses @ np.abs(losses))
    if len(losses) * count <= FEW:
        return _by_matrices(losses, masses, spacing, count), (
            phases + UNIT_ROUNDOFF * (1.5 * BLOCK + len(losses) / BLOCK + 16 + PER_POWER)
        )
    return _by_spreading(losses, masses, spacing, count), phases + SPREADING_ERROR


def _by_matrices(losses: Array, masses: Array, spacing: float, count: int) -> ComplexArray:
    """Sum in blocks, so that rounding grows with BLOCK and their number, not with points.

    e^(i (a m + b) t) = e^(i a m t) e^(i b t), and most of these are products in turn.
    """
    fine_count = math.isqrt(count - 1) + 1
    coarse_count = -(-count // fine_count)
    blocks = -(-len(losses) // BLOCK)
    padded = np.zeros((2, blocks * BLOCK))
    padded[0, : len(losses)], padded[1, : len(losses)] = losses, masses
    fine = _powers(spacing * padded[0], fine_count)
    coarse = _powers(spacing * fine_count * padded[0], coarse_count) * padded[1]
    left = coarse.reshape(coarse_count, blocks, BLOCK).swapaxes(0, 1)
    right = fine.reshape(fine_count, blocks, BLOCK).transpose(1, 2, 0)
    return np.asarray((left @ right).sum(axis=0).ravel()[:count])


def _powers(phases: Array, count: int) -> ComplexArray:
    """Return e^(i k phase) for k < count, shape ``(count, n)``: every ANCHOR-th by itself."""
    powers = np.empty((count, len(phases)), dtype=np.complex128)
    for k in range(0, count, ANCHOR):
        powers[k].real, powers[k].imag = np.cos(k * phases), np.sin(k * phases)
    if count > 1:
        powers[1].real, powers[1].imag = np.cos(phases), np.sin(phases)
    for k in range(2, min(ANCHOR, count)):
        np.multiply(powers[k // 2], powers[k - k // 2], out=powers[k])
    for start in range(ANCHOR, count, ANCHOR):
        end = min(start + ANCHOR, count)
        np.multiply(powers[start], powers[1 : end - start], out=powers[start + 1 : end])
    return powers


def _by_spreading(losses: Array, masses: Array, spacing: float, count: int) -> ComplexArray:
    size = _fast_length(4 * count)
    position = losses * (spacing / (2 * math.pi)) * size
    first = np.ceil(position - WINDOW / 2)
    offset = position - first
    cell = (first - size * np.floor(first / size)).astype(np.int64)
    grid = np.zeros(size + WINDOW)
    for start in range(0, len(losses), AT_ONCE):
        part = slice(start, start + AT_ONCE)
        _spread(grid, offset[part], cell[part], masses[part])
    grid[:WINDOW] += grid[size:]
    transform = np.fft.rfft(grid[:size])[:count].conj()
    return np.asarray(transform / _window_transform(count, size))


def _fast_length(least: int) -> int:
    """Return a length of at least ``least`` whose FFT is fast: few and small prime factors."""
    return min(odd << max(0, (-(-least // odd) - 1).bit_length()) for odd in (1, 3, 5, 9, 15))


def _spread(grid: Array, offset: Array, cell: NDArray[np.int64], masses: Array) -> None:
    """Add 2 exp(-b) sinh(b t) / t times ``masses`` to the cells around, in place for speed.

    exp(b (t - 1)) / max(t, NEAR_EDGE) is off by less than 1e-14 of the window's peak.
    """
    base = int(cell.min())
    length = int(cell.max()) - base + 1
    cells, scaled = cell - base, offset * (2 / WINDOW)
    t, window = np.empty_like(offset), np.empty_like(offset)
    for step in range(WINDOW):
        np.subtract(scaled, step * (2 / WINDOW), out=t)
        np.multiply(t, t, out=t)
        np.subtract(1.0, t, out=t)
        np.maximum(t, 0.0, out=t)
        np.sqrt(t, out=t)
        np.multiply(t, SHAPE, out=window)
        window -= SHAPE
        np.exp(window, out=window)
        np.maximum(t, NEAR_EDGE, out=t)
        window /= t
        window *= masses
        grid[base + step : base + step + length] += np.bincount(cells, window, length)


def _window_transform(count: int, size: int) -> Array:
    """sinh(b sqrt(1 - t^2)) / sqrt(1 - t^2) on [-1, 1] transforms to pi I0(sqrt(b^2 - w^2))."""
    frequency = np.arange(count) * (math.pi * WINDOW / size)
    root = np.sqrt(SHAPE * SHAPE - frequency * frequency)
    return np.asarray(math.pi * np.i0(root) * math.exp(-SHAPE) * WINDOW)
