"""Moments and characteristic functions of many Poisson-sampled Gaussians at once.

In units of the noise, Q = N(0, 1), l(x) = m x - m^2/2 and r(x) = 1 - q + q e^l(x). The loss is
L = d log r with d = 1 (removed) or d = -1 (added). Tilted by the order c, every expectation is

    E[e^((c + i y) L)] = int n(x) r(x)^(e + i d y) dx,    e = c + 1 (removed), -c (added).

The trapezoid rule with step s on the whole real line integrates it. The error bounds are equations
1 to 6 of docs/mathematics/many_plans.md; no mass of either distribution is left out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from dpaudit.accountants.pld.contour.integrand import ROUNDINGS_PER_POWER, _powers
from dpaudit.accountants.pld.laws.loss_distribution import LARGEST_LOSS
from dpaudit.accountants.rounding_margins import UNIT_ROUNDOFF

Array = NDArray[np.float64]
ComplexArray = NDArray[np.complex128]
IntArray = NDArray[np.int64]

EDGE = 9.0  # of the nodes, in standard deviations beyond the tilted peak: e^(-81/2) remains
LOG_PRECISION = 36.0  # nats of accuracy that a step aims at
LARGEST_STEP, LARGEST_STRIP = 0.6, 8.0
STRIPS = 0.5 ** np.arange(8)  # half widths that are tried, as shares of the largest one
ROUGH_NODES = 112
NODES_TO_CHOOSE = 48
CUT, WIDEST_CUT = 2.0, 2.0  # a over the length of the cutoff; the widest strip with one
# Cells beyond the last node, in standard deviations. The last one stands for all further ones:
# the density falls by more than e^(-x^2/2) there.
TAIL_EDGES = np.append(0.0, 0.4 * (1.4 ** np.arange(1, 16) - 1) / 0.4)
MOST_CHUNK = 1.5e6  # numbers in one array
LARGEST_LOG = 650.0


@dataclass(frozen=True)
class SampledNormals:
    """Poisson-sampled Gaussians, one row each, tilted by an order.

    Attributes:
        shift: m, sensitivity over the noise's standard deviation, shape ``(n,)``.
        rate: Sampling rate q in (0, 1), shape ``(n,)``.
        sign: d, 1 for removed and -1 for added, shape ``(n,)``.
    """

    shift: Array
    rate: Array
    sign: Array

    def __getitem__(self, rows: IntArray | slice) -> SampledNormals:
        """Return some of the rows."""
        return SampledNormals(self.shift[rows], self.rate[rows], self.sign[rows])

    def exponent(self, order: Array) -> Array:
        """Return e, the real exponent of r at an order, elementwise."""
        return np.asarray(np.where(self.sign > 0, order + 1, -order))

    def interval(self, order: Array) -> tuple[Array, Array]:
        """Return ends of x that hold the density tilted by every order up to ``order``.

        Removed, the peak is at most at e m. Added, it is at least at -c m q, as d log r / dx is at
        most m q where x < 0.
        """
        removed = self.sign > 0
        high = EDGE + np.where(removed, (order + 1) * self.shift, 0.0)
        low = -EDGE - np.where(removed, 0.0, order * self.shift * self.rate)
        return low, high

    def log_ratios(self, x: Array) -> tuple[Array, Array]:
        """Return log r and w = q e^l / r at points of shape ``(n, k)``."""
        base = self.shift[:, None] * (x - 0.5 * self.shift[:, None])
        log_rate = np.log(self.rate)[:, None]
        ratios = np.log1p(self.rate[:, None] * np.expm1(np.minimum(base, LARGEST_LOSS)))
        if base.size and base.max() > LARGEST_LOSS:
            ratios = np.where(base > LARGEST_LOSS, base + log_rate, ratios)
        return ratios, np.exp(base + log_rate - ratios)

    def rough_cumulants(self, order: Array) -> tuple[Array, Array, Array]:
        """Estimate log E[e^(c L)] and its first two derivatives: for searches, not for bounds.

        Args:
            order: Orders c, shape ``(n,)``.

        Returns:
            Three arrays of shape ``(n,)``.
        """
        low, high = self.interval(order)
        step = (high - low) / (ROUGH_NODES - 1)
        x = low[:, None] + step[:, None] * np.arange(ROUGH_NODES)
        ratios = self.log_ratios(x)[0]
        logs = -0.5 * x * x + self.exponent(order)[:, None] * ratios
        peak = logs.max(axis=1, keepdims=True)
        masses = np.exp(logs - peak)
        total = masses.sum(axis=1)
        losses = self.sign[:, None] * ratios
        mean = (masses * losses).sum(axis=1) / total
        variance = (masses * (losses - mean[:, None]) ** 2).sum(axis=1) / total
        value = peak[:, 0] + np.log(total * step / math.sqrt(2 * math.pi))
        return value, mean, variance


def choose_steps(rows: SampledNormals, order: Array, reach: Array) -> tuple[Array, Array]:
    """Choose steps of the trapezoid rule that resolve frequencies up to ``reach``.

    Args:
        rows: Releases, ``n`` of them.
        order: Tilt c > 0, shape ``(n,)``.
        reach: Largest frequency, in 1/nats, shape ``(n,)``.

    Returns:
        The steps, and the half widths a of the strip that suit them, each of shape ``(n,)``.
    """
    low, high = rows.interval(order)
    spacing = (high - low) / (NODES_TO_CHOOSE - 1)
    x = low[:, None] + spacing[:, None] * np.arange(NODES_TO_CHOOSE)
    ratios, share = rows.log_ratios(x)
    logs = -0.5 * x * x + rows.exponent(order)[:, None] * ratios
    logs -= _log_sums(logs)[:, None]
    largest = np.minimum(math.pi / (2 * rows.shift), LARGEST_STRIP)
    best, chosen = np.zeros(len(largest)), largest.copy()
    for factor in STRIPS:
        strip = factor * largest
        if (2 * math.pi * strip <= LOG_PRECISION * best).all():
            break  # no narrower strip allows a larger step
        growth = _off_axis_growth(rows, order, reach, strip, ratios, share)
        inside = _log_sums(logs + growth)
        for cut in (0.0, CUT) if (reach > 0).any() else (0.0,):
            beyond = _log_beyond(rows, order, reach, strip, high, logs[:, -1], growth[:, -1], cut)
            log_most = 0.5 * strip * strip + cut**2 + np.logaddexp(inside, beyond - np.log(spacing))
            step = 2 * math.pi * strip / (LOG_PRECISION + np.maximum(log_most, 0.0))
            better = (step > best) & ((cut == 0) | (strip <= WIDEST_CUT))
            best, chosen = np.where(better, step, best), np.where(better, strip, chosen)
    return np.minimum(best, LARGEST_STEP), chosen


def _off_axis_growth(
    rows: SampledNormals, order: Array, reach: Array, strip: Array, ratios: Array, share: Array
) -> Array:
    """Bound log |r(x + i b)^(e + i d y)| - e log r(x) for |b| <= a and |y| <= reach.

    With t = m a <= pi/2: |arg r| <= t min(1, sqrt(2) w). Removed, |r(x + i b)| <= r(x). Added,
    |r(x + i b)| >= max(r(x) cos(t/2), 1 - q).
    """
    angle = (rows.shift * strip)[:, None]
    if not reach.any() and (rows.sign > 0).all():
        return np.zeros_like(share)
    growth = reach[:, None] * angle * np.minimum(1.0, math.sqrt(2) * share)
    if (added := rows.sign < 0).any():
        least = np.maximum(
            np.log(np.cos(angle[added] / 2)), np.log1p(-rows.rate[added])[:, None] - ratios[added]
        )
        growth[added] -= order[added][:, None] * np.minimum(least, 0.0)
    return np.asarray(growth)


def _log_beyond(
    rows: SampledNormals,
    order: Array,
    reach: Array,
    strip: Array,
    last: Array,
    log_mass: Array,
    growth: Array,
    cut: float,
) -> Array:
    """Bound the log of the integral beyond the last node of the modulus off the axis, cut off.

    The cutoff is erfc((x - last) / t) / 2 with t = a / cut, at most e^(cut^2) e^(-u^2) off the
    axis, u = (x - last) / t >= 0; the factor e^(cut^2) is left to the caller. Cells are bounded
    by the density at their left and by w at their right end.

    Args:
        rows: Releases, ``n`` of them.
        order: Tilt c > 0, shape ``(n,)``.
        reach: Largest frequency, in 1/nats, shape ``(n,)``.
        strip: a, shape ``(n,)``.
        last: The last node, shape ``(n,)``.
        log_mass: Log of the tilted mass there, in units of the step, shape ``(n,)``.
        growth: Growth off the axis there, shape ``(n,)``.
        cut: a over the length of the cutoff; 0 for none.

    Returns:
        Upper bounds in those units, shape ``(n,)``.
    """
    left, width = TAIL_EDGES[:-1], np.diff(TAIL_EDGES)
    steep = last - np.maximum(rows.exponent(order), 0.0) * rows.shift
    share = rows.log_ratios(last[:, None] + TAIL_EDGES[1:])[1]
    share[:, -1] = 1.0  # the last cell is endless
    angle = reach * rows.shift * strip
    logs = log_mass[:, None] - 0.5 * left**2 - steep[:, None] * left
    logs += growth[:, None] + angle[:, None] * np.minimum(1.0, math.sqrt(2) * share)
    logs -= (left * (cut / strip)[:, None]) ** 2
    return np.asarray(np.where(steep > 0.5, _log_sums(logs + np.log(width)), np.inf))


@dataclass(frozen=True)
class TiltedNodes:
    """Nodes of the trapezoid rule, with the masses of the tilted distributions.

    Attributes:
        losses: Losses L about their tilted means, in nats, shape ``(n, k)``.
        masses: Tilted masses; each row sums to 1 up to rounding, shape ``(n, k)``.
        mean: Tilted mean of L, in nats, shape ``(n,)``.
        log_moment: log E[e^(c L)], shape ``(n,)``.
        error: Bound on the error of the characteristic function up to the reach, and on the
            error of ``log_moment``, shape ``(n,)``; infinite where nothing is certified.
    """

    losses: Array
    masses: Array
    mean: Array
    log_moment: Array
    error: Array


@dataclass(frozen=True)
class NodeGrid:
    """Equidistant points x with log r there, for any order up to that of the interval.

    Attributes:
        rows: The releases, ``n`` of them.
        step: Step s of the trapezoid rule, shape ``(n,)``.
        strip: Half width a of the strip for the error bound, shape ``(n,)``.
        x: Points, shape ``(n, k)``.
        ratios: log r, shape ``(n, k)``.
        share: w = q e^l / r, shape ``(n, k)``.
    """

    rows: SampledNormals
    step: Array
    strip: Array
    x: Array
    ratios: Array
    share: Array

    @classmethod
    def of(
        cls, rows: SampledNormals, step: Array, strip: Array, high: Array, count: int
    ) -> NodeGrid:
        """Evaluate log r at ``count`` points up to ``high``: below, more of them do no harm."""
        x = high[:, None] - step[:, None] * np.arange(count)[::-1]
        return cls(rows, step, strip, x, *rows.log_ratios(x))

    @cached_property
    def rounding_of_ratio(self) -> Array:
        """Size of the rounding errors of log r: its own, and that of l times w = d log r / dl.

        In units of a few ``UNIT_ROUNDOFF``, shape ``(n, k)``.
        """
        m = self.rows.shift[:, None]
        return np.asarray(np.abs(self.ratios) + self.share * (np.abs(m * self.x) + m * m))

    @cached_property
    def _half_squares(self) -> Array:
        return np.asarray(0.5 * self.x * self.x)

    @cached_property
    def _share_nearby(self) -> Array:
        """Upper bounds on w within half a step of a node: it grows by e^(m s/2) there."""
        growth = np.exp(np.minimum(0.5 * self.rows.shift * self.step, 50.0))
        return np.asarray(self.share * growth[:, None])

    def tilted(self, order: Array, reach: Array) -> TiltedNodes:
        """Return the distributions tilted by an order, with errors for frequencies up to a reach.

        Args:
            order: Tilt c > 0, shape ``(n,)``.
            reach: Largest frequency, in 1/nats, shape ``(n,)``.

        Returns:
            Nodes, masses and error bounds.
        """
        exponent = self.rows.exponent(order)
        logs = exponent[:, None] * self.ratios - self._half_squares
        peak = logs.max(axis=1)
        masses = np.exp(logs - peak[:, None])
        total = masses.sum(axis=1)
        masses /= total[:, None]
        losses = self.rows.sign[:, None] * self.ratios
        mean = (masses * losses).sum(axis=1)
        rounding = self._rounding(masses, exponent, reach, peak)
        losses -= mean[:, None]
        return TiltedNodes(
            losses,
            masses,
            mean,
            peak + np.log(total * self.step / math.sqrt(2 * math.pi)),
            rounding + self._quadrature(order, reach, exponent, masses),
        )

    def _rounding(self, masses: Array, exponent: Array, reach: Array, peak: Array) -> Array:
        """Bound the relative rounding of masses and of their sums, and that of phases."""
        of_ratio = self.rounding_of_ratio
        exponents = self._half_squares + np.abs(exponent)[:, None] * of_ratio
        return np.asarray(
            UNIT_ROUNDOFF
            * (
                48
                + self.x.shape[1]
                + ROUNDINGS_PER_POWER
                + 4 * np.abs(peak)
                + 4 * np.einsum("nk,nk->n", masses, exponents)
                + 12 * reach * np.einsum("nk,nk->n", masses, of_ratio)
            )
        )

    def _quadrature(self, order: Array, reach: Array, exponent: Array, masses: Array) -> Array:
        """Bound the error of the infinite trapezoid rule, and the terms that are left out.

        Both relative to the moment; equations 2 to 6 of docs/mathematics/many_plans.md.
        """
        m, step, strip = self.rows.shift, self.step, self.strip
        growth = _off_axis_growth(self.rows, order, reach, strip, self.ratios, self.share)
        angle = m * strip
        # Slope of the log of the bound within half a step of a node.
        near = self._share_nearby
        slope = np.abs(exponent[:, None] * m[:, None] * self.share - self.x)
        slope += (0.36 * reach * angle * m)[:, None]
        slope += np.where(self.rows.sign < 0, order * m, 0.0)[:, None] * near
        bend = 1 + (np.abs(exponent) * m * m)[:, None] * np.minimum(0.25, near)
        half = 0.5 * step[:, None]
        uneven = np.exp(np.minimum(growth + half * (slope + half * bend), 600.0))
        inside = (masses * uneven).sum(axis=1)
        # Terms beyond the last node on either side: geometric series, relative to the moment.
        high_fall = self.x[:, -1] - np.maximum(exponent, 0.0) * m
        low_fall = -self.x[:, 0] - np.maximum(-exponent, 0.0) * m * self.share[:, 0]
        enough = np.minimum(high_fall, low_fall) > 0.5
        low_rest = masses[:, 0] / -np.expm1(-step * np.where(enough, low_fall, 1.0))
        high_rest = masses[:, -1] / -np.expm1(-step * np.where(enough, high_fall, 1.0))
        with np.errstate(divide="ignore"):
            log_last = np.log(masses[:, -1])
        grown = np.log(inside + low_rest * np.exp(np.minimum(growth[:, 0], 600.0)))
        uneven_masses = masses * np.exp(np.minimum(half * (slope + half * bend), 600.0))
        found = np.full(len(m), np.inf)
        for cut in (0.0, CUT) if (reach > 0).any() else (0.0,):
            log_high = _log_beyond(
                self.rows, order, reach, strip, self.x[:, -1], log_last, growth[:, -1], cut
            ) - np.log(step)
            log_most = cut * cut + 0.5 * strip * strip - 2 * math.pi * strip / step
            log_most += math.log(2.02) + np.logaddexp(grown, log_high)
            error = np.exp(np.minimum(log_most, 600.0)) + 2 * (low_rest + 2 * high_rest)
            if cut:  # it takes away at most erfc(u) / 2 <= e^(-u^2) / 2 before the last node
                before = np.maximum(0.0, self.x[:, -1:] - self.x - half) * (cut / strip)[:, None]
                error += 2 * (uneven_masses * np.exp(-(before**2))).sum(axis=1)
            found = np.minimum(found, error)
        return np.asarray(np.where(enough, found, np.inf))


def characteristic_rows(losses: Array, masses: Array, spacing: Array, count: int) -> ComplexArray:
    """Evaluate sum_j masses_j exp(i k spacing losses_j) of every row, for 0 <= k < count.

    Args:
        losses: Losses in nats, shape ``(n, k)``.
        masses: Masses, shape ``(n, k)``.
        spacing: Distance of frequencies, in 1/nats, shape ``(n,)``.
        count: Number of frequencies, from 0.

    Returns:
        Values, shape ``(n, count)``.
    """
    rows, nodes = losses.shape
    fine_count = math.isqrt(count - 1) + 1
    coarse_count = -(-count // fine_count)
    phases = (spacing[:, None] * losses).ravel()
    fine = _powers(phases, fine_count).reshape(fine_count, rows, nodes)
    coarse = _powers(fine_count * phases, coarse_count).reshape(coarse_count, rows, nodes)
    coarse *= masses
    product = coarse.transpose(1, 0, 2) @ fine.transpose(1, 2, 0)
    return np.asarray(product.reshape(rows, -1)[:, :count])


def _log_sums(logs: Array) -> Array:
    """Return log sum exp of every row."""
    peak = np.clip(logs.max(axis=1), -1e300, 1e300)
    with np.errstate(divide="ignore"):
        return np.asarray(peak + np.log(np.exp(logs - peak[:, None]).sum(axis=1)))
