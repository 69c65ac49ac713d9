"""Characteristic functions of weighted points, at frequencies 0, h, 2h, ..., and their decay.

Few points: a product of two small matrices of phases. Many points: a type-1 non-uniform FFT,
which spreads each point on a fine periodic grid by a Kaiser-Bessel window (Dutt & Rokhlin
1993; Fessler & Sutton 2003 for the window).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dpaudit.accountants.pld.laws.loss_distribution import (
    LARGEST_LOSS,
    LossDistribution,
    SampledDensity,
    TiltedPoints,
    log_mixture_ratio,
)
from dpaudit.accountants.rounding_margins import ROUND_UP, UNIT_ROUNDOFF

Array = NDArray[np.float64]
ComplexArray = NDArray[np.complex128]

# Points times frequencies; above the second the non-uniform FFT is faster, but less precise.
MATRIX_LIMIT, ROUGH_MATRIX_LIMIT = 4e6, 5e5
BLOCK = 64
EXACT_POWER_STEP = 8
# Two powers, each with EXACT_POWER_STEP roundings of its factors and 2.3 per product.
ROUNDINGS_PER_POWER = 50
WINDOW, SHAPE, NEAR_EDGE = 16, 37.0, 0.1
CHUNK_POINTS = 40_000
# Error of the window for masses that sum to 1, rounding of the FFT included. The largest error
# measured for single points anywhere in a cell is 2e-14; tests compare with long double.
SPREADING_ERROR = 2e-13


def characteristic_values(
    losses: Array, masses: Array, spacing: float, count: int, *, rough: bool = False
) -> tuple[ComplexArray, float]:
    """Evaluate sum_j masses_j exp(i k spacing losses_j) for 0 <= k < count.

    Args:
        losses: Losses in nats, shape ``(n,)``; centred losses give the smallest error.
        masses: Non-negative masses with a sum of about 1, shape ``(n,)``.
        spacing: Distance of frequencies, in 1/nats.
        count: Number of frequencies, from 0.
        rough: Whether an error of ``SPREADING_ERROR`` is small enough for what is faster.

    Returns:
        The values, shape ``(count,)``, and an upper bound on the error of each.
    """
    phase_error = 4 * UNIT_ROUNDOFF * spacing * count * float(masses @ np.abs(losses))
    if len(losses) * count <= (ROUGH_MATRIX_LIMIT if rough else MATRIX_LIMIT):
        return _by_matrices(losses, masses, spacing, count), (
            phase_error
            + UNIT_ROUNDOFF * (1.5 * BLOCK + len(losses) / BLOCK + 16 + ROUNDINGS_PER_POWER)
        )
    return _by_spreading(losses, masses, spacing, count), phase_error + SPREADING_ERROR


def _by_matrices(losses: Array, masses: Array, spacing: float, count: int) -> ComplexArray:
    """Sum in blocks of points, so that rounding grows with BLOCK and the number of blocks.

    With k = a m + b, e^(i k t) = e^(i a m t) e^(i b t): two tables of about sqrt(count) rows each
    give all frequencies by matrix products.
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
    """Return e^(i k phase) for k < count, shape ``(count, n)``.

    Every EXACT_POWER_STEP-th power is evaluated; the others are products of two powers.
    """
    powers = np.empty((count, len(phases)), dtype=np.complex128)
    for k in range(0, count, EXACT_POWER_STEP):
        powers[k].real, powers[k].imag = np.cos(k * phases), np.sin(k * phases)
    if count > 1:
        powers[1].real, powers[1].imag = np.cos(phases), np.sin(phases)
    for k in range(2, min(EXACT_POWER_STEP, count)):
        np.multiply(powers[k // 2], powers[k - k // 2], out=powers[k])
    for start in range(EXACT_POWER_STEP, count, EXACT_POWER_STEP):
        end = min(start + EXACT_POWER_STEP, count)
        np.multiply(powers[start], powers[1 : end - start], out=powers[start + 1 : end])
    return powers


def _by_spreading(losses: Array, masses: Array, spacing: float, count: int) -> ComplexArray:
    """Evaluate by a type-1 non-uniform FFT: spread, transform, divide by the window's transform."""
    size = _fast_length(4 * count)
    position = losses * (spacing / (2 * math.pi)) * size
    first = np.ceil(position - WINDOW / 2)
    offset = position - first
    cell = (first - size * np.floor(first / size)).astype(np.int64)
    grid = np.zeros(size + WINDOW)
    for start in range(0, len(losses), CHUNK_POINTS):
        part = slice(start, start + CHUNK_POINTS)
        _spread(grid, offset[part], cell[part], masses[part])
    grid[:WINDOW] += grid[size:]
    transform = np.fft.rfft(grid[:size])[:count].conj()
    return np.asarray(transform / _window_transform(count, size))


def _fast_length(least: int) -> int:
    """Return an FFT length of at least ``least`` with small prime factors."""
    return min(odd << max(0, (-(-least // odd) - 1).bit_length()) for odd in (1, 3, 5, 9, 15))


def _spread(grid: Array, offset: Array, cell: NDArray[np.int64], masses: Array) -> None:
    """Add the window times ``masses`` to the cells around each point, in place.

    The window is 2 exp(-b) sinh(b t) / t. It is evaluated as exp(b (t - 1)) / max(t, NEAR_EDGE),
    which differs by less than 1e-14 of the window's peak.
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
    """Return the window's transform at the grid's frequencies, shape ``(count,)``.

    sinh(b sqrt(1 - t^2)) / sqrt(1 - t^2) on [-1, 1] transforms to pi I0(sqrt(b^2 - w^2)).
    """
    frequency = np.arange(count) * (math.pi * WINDOW / size)
    root = np.sqrt(SHAPE * SHAPE - frequency * frequency)
    return np.asarray(math.pi * np.i0(root) * math.exp(-SHAPE) * WINDOW)


# Decay of a release's characteristic function beyond the frequencies computed.


GRID_POINTS = 600
ENVELOPE_WINDOWS = 40
WINDOW_STARTS = np.unique(np.linspace(0, GRID_POINTS - 1, ENVELOPE_WINDOWS).astype(int))


@dataclass(frozen=True)
class DecayEnvelope:
    """An upper bound on a characteristic function: |phi(y)| <= min_i (floor_i + slope_i / y).

    Attributes:
        floors: Tilted mass outside of each window of losses, shape ``(m,)``.
        slopes: End values plus total variation of the density in the window, shape ``(m,)``.
    """

    floors: Array
    slopes: Array

    def log_upper_bound(self, frequencies: Array) -> Array:
        """Bound log |phi| at and beyond each frequency: the envelope falls with y.

        Args:
            frequencies: Positive frequencies in 1/nats, shape ``(n,)``.

        Returns:
            Upper bounds, at most 0, shape ``(n,)``.
        """
        each = self.floors + np.multiply.outer(1 / frequencies, self.slopes)
        return np.asarray(np.log(np.clip(each.min(axis=1), 1e-300, 1.0)))


def decay_envelope(
    distribution: LossDistribution, order: float, log_moment: float
) -> DecayEnvelope:
    """Bound the decay of the characteristic function of a tilted distribution with one density.

    Integration by parts over a window [a, b] of losses with density f gives

        |phi(y)| <= (1 - mass of the window) + (f(a) + f(b) + variation of f) / y.

    Args:
        distribution: Loss distribution with exactly one branch.
        order: Tilt c.
        log_moment: log E[exp(c L)], which normalizes the tilted density.

    Returns:
        The envelope over windows that share the upper end of the interval.
    """
    (branch,) = distribution.branches
    base = np.linspace(branch.low, branch.high, GRID_POINTS)
    ratios = log_mixture_ratio(base, branch.rate)
    exponent = branch.power + branch.direction.value * order
    log_mass = branch.density.log_at(base) + exponent * ratios - log_moment
    # Density of L: that of l times dl/dL = r / (q e^l).
    log_density = log_mass + ratios - base - math.log(branch.rate)
    with np.errstate(over="ignore"):
        density = np.exp(log_density)
        mass = np.exp(log_mass)
    turns = _log_density_slope(branch, base, ratios, exponent)
    steep = np.diff(base) * np.maximum(np.abs(turns[1:]), np.abs(turns[:-1]))
    turning = turns[1:] * turns[:-1] <= 0
    # A panel with a turning point may rise above its ends by this factor.
    with np.errstate(over="ignore", invalid="ignore"):
        overshoot = np.maximum(density[1:], density[:-1]) * np.expm1(np.minimum(steep, 50.0))
        variation = np.abs(np.diff(density)) + np.where(turning, 2 * overshoot, 0.0)
    variation[np.isnan(variation)] = np.inf  # of two infinite ends: no bound
    # Mass of a monotone panel is at least its width times the smaller end.
    inside = np.where(turning, 0.0, np.minimum(mass[1:], mass[:-1]) * np.diff(base))
    mass_above = np.append(np.cumsum(inside[::-1])[::-1], 0.0)
    variation_above = np.append(np.cumsum(variation[::-1])[::-1], 0.0)
    slopes = density + variation_above + density[-1]
    return DecayEnvelope(1 - mass_above[WINDOW_STARTS], slopes[WINDOW_STARTS])


def _log_density_slope(
    branch: SampledDensity, base: Array, ratios: Array, exponent: float
) -> Array:
    """Return the slope of the log density of L in the base loss: the density turns at its zeros."""
    share = branch.rate * np.exp(np.minimum(base - ratios, LARGEST_LOSS))
    return np.asarray(branch.density.slope_at(base) + (exponent + 1) * share - 1)


def log_modulus_between(points: TiltedPoints, step: float, count: int) -> Array:
    """Bound log |phi| on the intervals [k step, (k + 1) step], k + 1 < count.

    |phi|^2 is the characteristic function of L - L' with L' an independent copy. Its second
    derivative is at most 2 Var L, so it exceeds the larger end of an interval by at most
    step^2 Var L / 4. That holds for the points; at every frequency up to their reach, phi of the
    distribution differs by their error.

    Args:
        points: Tilted points of one distribution.
        step: Distance of samples, in 1/nats.
        count: Number of samples, from 0.

    Returns:
        Upper bounds, at most 0, shape ``(count - 1,)``.
    """
    mean = float(points.masses @ points.losses)
    centred = points.losses - mean
    variance = float(points.masses @ centred**2)
    factor, error = characteristic_values(centred, points.masses, step, count, rough=True)
    squares = (np.abs(factor) + error) ** 2
    between = np.maximum(squares[1:], squares[:-1]) + step * step * variance / 4
    return np.asarray(np.log(np.clip(np.sqrt(between) + points.error, 1e-150, 1.0)))


# Smoothing of delta over nearby epsilons, which makes any contour integral converge.
#
# As a function of t = e^epsilon, delta is falling and convex. Its mean g over e^v t, |v| <= h,
# with weights that keep the mean of t,
#
#     k(v) = p(v) e^(-v/2) / N,    p(v) = s I1(beta s),    s = sqrt(1 - (v/h)^2),
#
# therefore lies above it. Consider a loss that exceeds epsilon by x. Smoothing adds to
# (1 - e^-x)+, for x > 0 and, as p is even, for x < 0 as well,
#
#     e^(-x/2) / N  int_|x|^h p(v) 2 sinh((v - |x|)/2) dv.
#
# Divided by k(x), that falls with |x|: log p is concave in v, as log(sqrt(y) I1(beta sqrt(y)))
# is concave and rises in y = s^2 (all zeros of its power series are negative). At x = 0, where
# p(v) / p(0) <= exp(-beta v^2 / (2 h^2)), it is at most C = h^2 cosh(h/2) / beta. So
#
#     g(epsilon) - C j(epsilon) <= delta(epsilon) <= g(epsilon),    j(epsilon) = E[k(L - epsilon)].
#
# On the contour, g has the factor kappa(z) = A(rho) / A(k0), with
#
#     A(rho) = (rho cosh rho - sinh rho) / rho^3 = (1/4) int_-1^1 (1 - u^2) cosh(rho u) du,
#     rho^2 = beta^2 + ((z + 1/2) h)^2,    k0^2 = beta^2 + h^2/4,
#
# and j has the same factor without delta's own 1 / (z (z + 1)). Beyond y = beta/h the factor is
# tiny, for any losses: |A(rho)| <= cosh(Re rho) min(1/3, 2 / |rho|^2).


LARGEST_EXPONENT = 700.0
SERIES_RADIUS = 1.5  # up to this |rho|, A is summed as a series: its numerator cancels
# A(rho) = sum_k 2 (k + 1) rho^(2k) / (2k + 3)!
SERIES_COEFFICIENTS = [2 * (k + 1) / math.factorial(2 * k + 3) for k in range(14)]


@dataclass(frozen=True)
class SmoothingKernel:
    """The smoothing kernel k(v) on |v| <= h.

    Attributes:
        half_width: h, in nats.
        beta: Shape; the transform falls to about e^-beta at the frequency beta / h.
    """

    half_width: float
    beta: float

    @property
    def reach(self) -> float:
        """The frequency beta / h beyond which the transform is tiny, in 1/nats."""
        return self.beta / self.half_width

    @property
    def excess(self) -> float:
        """C: smoothing adds at most C j(epsilon) to delta(epsilon)."""
        h = self.half_width
        return h * h * math.cosh(h / 2) / self.beta * ROUND_UP

    @property
    def _log_norm(self) -> float:
        """log A(k0), which normalizes kappa to 1 at z = 0 and z = -1."""
        k0 = math.hypot(self.beta, self.half_width / 2)
        # A(k0) = e^k0 (k0 (1 + e^-2k0) - (1 - e^-2k0)) / (2 k0^3), without overflow.
        fading = math.exp(-2 * k0)
        return k0 + math.log((k0 * (1 + fading) - (1 - fading)) / (2 * k0**3))

    def transform(self, z: ComplexArray) -> ComplexArray:
        """Evaluate kappa(z) = A(rho) / A(k0).

        Args:
            z: Points on the contour, shape ``(n,)``.

        Returns:
            Values, shape ``(n,)``.
        """
        scaled = (z + 0.5) * self.half_width
        square = self.beta * self.beta + scaled * scaled
        rho = np.sqrt(square)
        near = np.abs(rho) < SERIES_RADIUS
        far = np.where(near, 1.0, rho)
        fading = np.exp(-2 * far)
        found = (
            np.exp(far - self._log_norm)
            * (far * (1 + fading) - (1 - fading))
            / (2 * far * far * far)
        )
        if near.any():
            found[near] = np.polyval(SERIES_COEFFICIENTS[::-1], square[near]) * math.exp(
                -self._log_norm
            )
        return np.asarray(found)

    def beyond_reach(self, order: float) -> float:
        """Bound |kappa(order + i y)| for every y >= ``reach``.

        Args:
            order: Real part c of the contour.

        Returns:
            The upper bound.
        """
        return self._growth(order) / 3

    def beyond(self, order: float, last: float) -> float:
        """Bound (1/pi) sum spacing |kappa / (z (z + 1))| over frequencies beyond ``last``.

        |z (z + 1)| >= y sqrt(1 + y^2), whose reciprocal has the integral asinh(1 / last).

        Args:
            order: Real part c of the contour.
            last: Last frequency of the sum, at least ``reach``, in 1/nats.

        Returns:
            The upper bound.
        """
        return self.beyond_reach(order) * math.asinh(1 / last) / math.pi

    def density_beyond(self, order: float) -> float:
        """Bound (1/pi) sum spacing |kappa| over frequencies beyond ``reach``.

        |rho|^2 >= (h y)^2 - b^2 with b^2 = beta^2 + ((order + 1/2) h)^2. Up to h y = w the bound
        with 1/3 applies, from there on that with 2 / |rho|^2, whose integral is
        (1/b) log((w + b)/(w - b)).

        Args:
            order: Real part c of the contour.

        Returns:
            The upper bound.
        """
        b = math.hypot(self.beta, (order + 0.5) * self.half_width)
        w = math.sqrt(b * b + 6)
        area = (w - self.beta) / 3 + math.log((w + b) / (w - b)) / b
        return self._growth(order) * area * ROUND_UP / (math.pi * self.half_width)

    def _growth(self, order: float) -> float:
        """Bound cosh(Re rho) / A(k0) for every y >= ``reach``."""
        # Re rho falls with y. At h y = beta, rho^2 = side^2 + 2 i side beta.
        side = (order + 0.5) * self.half_width
        real = math.sqrt((math.sqrt(side**4 + 4 * side**2 * self.beta**2) + side**2) / 2)
        return math.exp(min(LARGEST_EXPONENT, real - self._log_norm))  # cosh x <= e^x
