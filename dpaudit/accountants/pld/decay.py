"""How fast a release's characteristic function falls, beyond the frequencies computed.

Two bounds on |phi(y)| of a tilted law. From samples y_1 < y_2: |phi|^2 has a second
derivative of at most twice the variance, so between them it exceeds their larger value by
at most (y_2 - y_1)^2 variance / 4. From the density f of the losses above some l: what
lies below, plus what lies in atoms, plus (f(l) + total variation of f above l) / y.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dpaudit.accountants.pld.losses import LARGEST_LOSS, Branch, LossLaw, Points, log_ratio
from dpaudit.accountants.pld.transform import characteristic

Array = NDArray[np.float64]

GRID = 600
WINDOWS = 40


@dataclass(frozen=True)
class Envelope:
    """|phi(y)| <= min over windows of floor + slope / y."""

    floors: Array
    slopes: Array

    def log_above(self, frequencies: Array) -> Array:
        """Bound log |phi| at every frequency from each of these on."""
        each = self.floors + np.multiply.outer(1 / frequencies, self.slopes)
        return np.asarray(np.log(np.clip(each.min(axis=1), 1e-300, 1.0)))


def envelope(law: LossLaw, order: float, log_moment: float) -> Envelope:
    """Return the envelope of a law with one density, tilted."""
    (branch,) = law.branches
    base = np.linspace(branch.low, branch.high, GRID)
    ratios = log_ratio(base, branch.rate)
    exponent = branch.power + branch.way.value * order
    log_mass = branch.density.log_at(base) + exponent * ratios - log_moment
    # dl/dL = r / (q e^l)
    log_density = log_mass + ratios - base - math.log(branch.rate)
    with np.errstate(over="ignore"):
        density = np.exp(log_density)
        mass = np.exp(log_mass)
    turns = _turns(branch, base, ratios, exponent)
    steep = np.diff(base) * np.maximum(np.abs(turns[1:]), np.abs(turns[:-1]))
    turning = turns[1:] * turns[:-1] <= 0
    overshoot = np.maximum(density[1:], density[:-1]) * np.expm1(np.minimum(steep, 50.0))
    variation = np.abs(np.diff(density)) + np.where(turning, 2 * overshoot, 0.0)
    inside = np.where(turning, 0.0, np.minimum(mass[1:], mass[:-1]) * np.diff(base))
    mass_above = np.append(np.cumsum(inside[::-1])[::-1], 0.0)
    variation_above = np.append(np.cumsum(variation[::-1])[::-1], 0.0)
    picked = np.unique(np.linspace(0, GRID - 1, WINDOWS).astype(int))
    slopes = density + variation_above + density[-1]
    return Envelope(1 - mass_above[picked], slopes[picked])


def _turns(branch: Branch, base: Array, ratios: Array, exponent: float) -> Array:
    """Return the slope of log density: where it changes sign, the density turns."""
    share = branch.rate * np.exp(np.minimum(base - ratios, LARGEST_LOSS))
    return np.asarray(branch.density.slope_at(base) + (exponent + 1) * share - 1)


def log_between(points: Points, step: float, count: int) -> Array:
    """Bound log |phi| on each [k step, (k + 1) step], k + 1 < count."""
    mean = float(points.masses @ points.losses)
    centred = points.losses - mean
    variance = float(points.masses @ centred**2)
    factor, error = characteristic(centred, points.masses, step, count)
    squares = (np.abs(factor) + error + points.error) ** 2
    between = np.maximum(squares[1:], squares[:-1]) + step * step * variance / 4
    return np.asarray(0.5 * np.log(np.clip(between, 1e-300, 1.0)))
