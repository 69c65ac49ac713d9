"""Saddle points of many compositions at once: searches, not bounds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dpaudit.accountants.pld.many_plans.sampled_normals import SampledNormals

Array = NDArray[np.float64]
IntArray = NDArray[np.int64]

MOST_ROUNDS = 24
PRECISION = 0.02  # in log delta
MOST_ROWS = 600  # of one plan; more are represented by some of them


@dataclass(frozen=True)
class ManyCompositions:
    """Compositions of sampled Gaussians, and of Gaussians without sampling.

    Attributes:
        rows: The sampled Gaussians of all plans, each plan's together, ``n`` of them.
        times: How often each is composed, shape ``(n,)``.
        starts: Index of each plan's first row, shape ``(p,)``; every plan has a row.
        gaussian: mu^2 of the Gaussians without sampling, shape ``(p,)``.
    """

    rows: SampledNormals
    times: Array
    starts: IntArray
    gaussian: Array

    @property
    def plan_of_row(self) -> IntArray:
        """The plan of each row, shape ``(n,)``."""
        counts = np.diff(np.append(self.starts, len(self.times)))
        return np.repeat(np.arange(len(self.starts)), counts)

    def sums(self, values: Array) -> Array:
        """Sum values per row, shape ``(n, ...)``, over the rows of each plan."""
        return np.asarray(np.add.reduceat(values, self.starts, axis=0))

    def take(self, plans: IntArray) -> ManyCompositions:
        """Return some of the plans."""
        counts = np.diff(np.append(self.starts, len(self.times)))[plans]
        starts = np.cumsum(counts) - counts
        picked = np.repeat(self.starts[plans] - starts, counts) + np.arange(counts.sum())
        return ManyCompositions(self.rows[picked], self.times[picked], starts, self.gaussian[plans])

    @property
    def sketch(self) -> ManyCompositions:
        """About the same plans with at most about ``MOST_ROWS`` rows each."""
        counts = np.diff(np.append(self.starts, len(self.times)))
        if not len(counts) or counts.max() <= MOST_ROWS:
            return self
        picked: list[IntArray] = []
        weights: list[Array] = []
        starts: list[int] = []
        for start, count in zip(self.starts, counts, strict=True):
            order = np.argsort(self.rows.rate[start : start + count] * self.rows.shift[
                start : start + count
            ]) + start  # fmt: skip
            step = -(-count // MOST_ROWS)
            starts.append(sum(len(part) for part in picked))
            picked.append(order[step // 2 :: step])
            weights.append(np.full(len(picked[-1]), count / len(picked[-1])))
        index = np.concatenate(picked)
        return ManyCompositions(
            self.rows[index],
            self.times[index] * np.concatenate(weights),
            np.array(starts),
            self.gaussian,
        )

    def rough_cumulants(self, order: Array) -> tuple[Array, Array, Array]:
        """Estimate K(c), K'(c) and K''(c) of each plan at its order, shape ``(p,)`` each."""
        parts = self.rows.rough_cumulants(order[self.plan_of_row])
        value, mean, variance = (self.sums(self.times * part) for part in parts)
        g = self.gaussian
        return value + 0.5 * g * order * (order + 1), mean + g * (order + 0.5), variance + g


def saddle_points(
    plans: ManyCompositions, *, log_delta: Array | None = None, epsilon: Array | None = None
) -> tuple[Array, Array, Array]:
    """Find the order at which each plan has a given delta, or a given epsilon.

    At the order c the integrand exp(K(z) - z epsilon) / (z (z + 1)) has its saddle point if

        epsilon = K'(c) - 1/c - 1/(c + 1),
        delta ~ exp(K(c) - c epsilon) / (c (c + 1) sqrt(2 pi (K''(c) + 1/c^2 + 1/(c + 1)^2))),

    and with c epsilon rises and delta falls. The root is bracketed by powers, then found by
    secants on log c.

    Args:
        plans: Compositions, ``p`` of them.
        log_delta: Logarithms of delta, shape ``(p,)``; or
        epsilon: Epsilons in nats, shape ``(p,)``.

    Returns:
        Orders, epsilons in nats and logarithms of delta, each of shape ``(p,)``.
    """
    sketch = plans.sketch
    at_zero = sketch.rough_cumulants(np.full(len(plans.starts), 1e-3))[2]
    rough = np.full(len(at_zero), -20.0) if log_delta is None else np.minimum(log_delta, -1.0)
    guess = np.sqrt(-2 * rough / np.maximum(at_zero, 1e-30))
    x = np.log(np.clip(guess, 1e-3, 1e7))
    low, high = np.full(len(x), np.nan), np.full(len(x), np.nan)
    low_gap, high_gap = low.copy(), high.copy()
    active = np.arange(len(x))
    at, logs = np.zeros(len(x)), np.zeros(len(x))
    for _ in range(MOST_ROUNDS):
        part = sketch if len(active) == len(x) else sketch.take(active)
        logs[active], at[active] = _log_delta_at(part, np.exp(x[active]))
        if log_delta is not None:
            gap = logs[active] - log_delta[active]
        else:
            assert epsilon is not None
            gap = (epsilon[active] - at[active]) * np.exp(x[active])
        above = gap > 0
        low[active[above]], low_gap[active[above]] = x[active[above]], gap[above]
        high[active[~above]], high_gap[active[~above]] = x[active[~above]], gap[~above]
        active = active[~(np.abs(gap) < PRECISION)]
        if not len(active):
            break
        a, b = low[active], high[active]
        with np.errstate(invalid="ignore", divide="ignore"):
            share = low_gap[active] / (low_gap[active] - high_gap[active])
        inside = a + (b - a) * np.clip(share, 0.08, 0.92)
        x[active] = np.where(np.isnan(b), a + 0.7, np.where(np.isnan(a), b - 0.7, inside))
    return np.exp(x), at, logs


def _log_delta_at(plans: ManyCompositions, order: Array) -> tuple[Array, Array]:
    """Return the saddle point estimates of log delta and of epsilon."""
    value, mean, variance = plans.rough_cumulants(order)
    epsilon = mean - 1 / order - 1 / (order + 1)
    curvature = variance + 1 / order**2 + 1 / (order + 1) ** 2
    logs = value - order * epsilon - np.log(order * (order + 1))
    return logs - 0.5 * np.log(2 * np.pi * curvature), epsilon
