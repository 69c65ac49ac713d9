"""A record that changes sign in a Poisson sample: a pair that some replace-one neighbors attain.

One record contributes +C, its replacement -C, and all others 0. In units of C, with noise of
standard deviation s and sampling rate q, the outputs are

    P = (1 - q) N(0, s^2) + q N(1, s^2),    Q = (1 - q) N(0, s^2) + q N(-1, s^2).

Whether this pair dominates all others is not proven, so it gives lower bounds alone. The output
is rounded to cells, which can only lose information: the losses log(P(cell)/Q(cell)) give lower
bounds, too.

References:
    Zhu, Dong & Wang (2022), arXiv:2106.08567; Lebeda et al. (2024), arXiv:2405.20769.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from dpaudit.accountants.numerics import ndtr
from dpaudit.accountants.pld.laws.loss_distribution import LossDistribution
from dpaudit.accountants.rounding_margins import UNIT_ROUNDOFF

Array = NDArray[np.float64]

CELL = 0.01
"""Width of a cell over the standard deviation, and largest change of the loss in it, about."""
MOST_CELLS = 40_000
LEAST_MASS = 1e-300
ROUNDINGS = 16
"""Roundings of a normal probability, and of a mixture of two."""


def mirrored_loss_distribution(shift: float, rate: float, tail: float) -> LossDistribution:
    """Return the loss distribution of the pair, on cells, rounded down.

    Args:
        shift: 1/s: what the record adds, over the standard deviation of the noise.
        rate: Sampling rate q, in (0, 1].
        tail: Mass of P on either side beyond which cells are merged.

    Returns:
        Atoms whose losses are not above those of the pair, in mass.
    """
    reach = math.sqrt(-2 * math.log(tail)) + shift
    cells = min(MOST_CELLS, math.ceil(2 * reach * max(1.0, 2 * shift) / CELL))
    edges = np.concatenate([[-math.inf], np.linspace(-reach, reach, cells + 1), [math.inf]])
    p, p_error = _mixture_masses(edges, shift, rate)
    q, q_error = _mixture_masses(edges, -shift, rate)
    # The edges that are moved by +-shift are rounded, so P's and Q's cells differ a little.
    moved = 4 * UNIT_ROUNDOFF * (reach + shift) * cells / (2 * reach)
    p_error, q_error = p_error + moved, q_error + moved
    kept = p > LEAST_MASS
    # A larger mass of Q lowers the loss, so one that underflows may be rounded up.
    p, q, error = p[kept], np.maximum(q[kept], LEAST_MASS), (p_error + q_error)[kept]
    log_p, log_q = np.log(p), np.log(q)
    losses = log_p - log_q - error - 4 * UNIT_ROUNDOFF * (np.abs(log_p) + np.abs(log_q))
    masses = p * np.maximum(1 - p_error[kept], 0.0)
    # What the masses were lowered by has the least loss, which can only lower delta.
    losses = np.append(losses, losses.min())
    masses = np.append(masses, max(0.0, 1 - float(masses.sum())))
    largest = float(losses.max())
    return LossDistribution((), losses, masses, 0.0, 0.0, largest, largest)


def _mixture_masses(edges: Array, shift: float, rate: float) -> tuple[Array, Array]:
    """Return (1-q) N(0, 1) + q N(shift, 1) of each cell, with bounds on the relative errors."""
    base, base_error = _normal_masses(edges)
    moved, moved_error = _normal_masses(edges - shift)
    return (1 - rate) * base + rate * moved, np.maximum(base_error, moved_error)


def _normal_masses(edges: Array) -> tuple[Array, Array]:
    """Return N(0, 1) of each cell, from the nearer tail, with bounds on the relative errors."""
    low, high = edges[:-1], edges[1:]
    right = low > 0
    near, far = ndtr(np.where(right, -low, high)), ndtr(np.where(right, -high, low))
    masses = np.maximum(near - far, 0.0)
    error = ROUNDINGS * UNIT_ROUNDOFF * near / np.maximum(masses, LEAST_MASS)
    return masses, error
