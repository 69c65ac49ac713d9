"""Bounds on characteristic functions beyond the frequencies that a sum takes.

A density that is above a step function with one peak is a mixture of uniform densities on its
layers, and of a rest. A uniform density on an interval of length w has the characteristic function
sin(y w / 2) / (y w / 2) up to a phase. Hence

    |phi(y)| <= 1 - sum_j a_j (1 - s(y w_j / 2)),    s(t) = sup over t' >= t of |sin t' / t'|,

with a_j the mass of layer j and w_j its length. That falls with y, so it bounds every further
frequency, too. Equations 7 to 9 of docs/mathematics/many_plans.md.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from dpaudit.accountants.pld.many_plans.sampled_normals import NodeGrid, TiltedNodes
from dpaudit.accountants.rounding_margins import UNIT_ROUNDOFF

Array = NDArray[np.float64]

SECOND_PEAK = 0.2173  # above |sin t / t| at its second peak, t = 4.4934
MOST_LAYERS, LAYERS_OF_MANY, MANY_ROWS = 100, 32, 300
FIRST_FALL, LAST_PEAK = 2.55, 4.6  # sin t / t > SECOND_PEAK up to the first; 1 / t below it after


def layers(grid: NodeGrid, tilted: TiltedNodes, order: Array) -> tuple[Array, Array]:
    """Return masses and lengths of the uniform layers below every tilted density.

    Args:
        grid: Nodes of ``n`` rows.
        tilted: Their masses at ``order``.
        order: Tilt c > 0, shape ``(n,)``.

    Returns:
        Masses, shape ``(n, k)``, and lengths in nats, of the same shape.
    """
    m, step = grid.rows.shift[:, None], grid.step[:, None]
    exponent = grid.rows.exponent(order)[:, None]
    # Density of L at the nodes: that of x over |dL / dx| = m w. The second derivative of its
    # logarithm is at most ``bend`` in modulus, so a cell's least value is not far below its ends.
    density = tilted.masses / (step * m * np.maximum(grid.share, 1e-290))
    bend = 1 + (np.abs(exponent) + 1) * m * m * np.minimum(0.25, grid.share[:, 1:])
    least = np.minimum(density[:, 1:], density[:, :-1]) * np.exp(-step * step * bend / 8)
    least *= 1 - 1e-9 - 2 * tilted.error[:, None]
    least = np.where(least > 0, least, 0.0)
    peak = least.argmax(axis=1)[:, None]
    place = np.arange(least.shape[1])
    left = np.where(place <= peak, least, np.inf)
    right = np.where(place >= peak, least, np.inf)
    one_peak = np.minimum(
        np.minimum.accumulate(left[:, ::-1], axis=1)[:, ::-1],
        np.minimum.accumulate(right, axis=1),
    )
    # The cells with the j largest values are an interval: one layer of the step function.
    # Their lengths are rounded down: losses differ by less than their rounding in flat tails.
    ends = 8 * UNIT_ROUNDOFF * (grid.rounding_of_ratio + np.abs(tilted.mean)[:, None])
    lengths = np.abs(np.diff(tilted.losses, axis=1)) - ends[:, 1:] - ends[:, :-1]
    lengths = np.maximum(lengths, 0.0)
    ranks = np.argsort(-one_peak, axis=1, kind="stable")
    levels = np.take_along_axis(one_peak, ranks, axis=1)
    lengths = np.cumsum(np.take_along_axis(lengths, ranks, axis=1), axis=1)
    most = MOST_LAYERS if len(order) <= MANY_ROWS else LAYERS_OF_MANY
    if levels.shape[1] > most:
        kept = _of_equal_mass(levels, lengths, most)
        levels = np.take_along_axis(levels, kept, axis=1)
        lengths = np.take_along_axis(lengths, kept, axis=1)
    heights = levels - np.append(levels[:, 1:], np.zeros((len(levels), 1)), axis=1)
    return lengths * heights, lengths * (1 - 1e-12)


def _of_equal_mass(levels: Array, lengths: Array, count: int) -> NDArray[np.int64]:
    """Choose ``count`` of falling levels per row, so that about equal masses lie between them.

    Fewer layers have less mass, so any choice is valid.
    """
    inside = np.cumsum(levels * np.diff(lengths, axis=1, prepend=0.0), axis=1)
    shares = np.linspace(0, 1 - 1 / (4 * count), count) * inside[:, -1:]
    kept = np.empty(shares.shape, dtype=np.int64)
    for column in range(count):
        kept[:, column] = (inside < shares[:, column, None]).sum(axis=1)
    return kept


def log_modulus_beyond(masses: Array, lengths: Array, frequencies: Array) -> Array:
    """Bound log |phi| of every row at and beyond each frequency.

    Args:
        masses: Masses of layers, shape ``(n, k)``.
        lengths: Their lengths in nats, shape ``(n, k)``.
        frequencies: In 1/nats, shape ``(n, f)``.

    Returns:
        Upper bounds, at most 0, shape ``(n, f)``.
    """
    found = np.empty(frequencies.shape)
    for column in range(frequencies.shape[1]):
        t = 0.5 * frequencies[:, column, None] * lengths
        found[:, column] = (masses * _fall_of_sine(t)).sum(axis=1)
    return np.asarray(np.log1p(-np.minimum(found * (1 - 1e-12), 1 - 1e-15)))


def _fall_of_sine(t: Array) -> Array:
    """Return a lower bound of 1 - s(t): sin t <= t - t^3/6 + t^5/120."""
    square = t * t
    far = np.where(t < LAST_PEAK, 1 - SECOND_PEAK, 1 - 1 / np.maximum(t, 1.0))
    return np.asarray(np.where(t < FIRST_FALL, square * (1 - square / 20) / 6, far))


def segment_bounds(y: Array, log_modulus: Array, spacing: Array) -> Array:
    """Bound (1/pi) sum spacing |phi| / y^2 over the frequencies in each [y_i, y_i+1].

    Args:
        y: Rising frequencies, shape ``(p, f + 1)``.
        log_modulus: Upper bounds of log |phi| on the segments, shape ``(p, f)``.
        spacing: Distance of frequencies, shape ``(p,)``.

    Returns:
        Upper bounds, shape ``(p, f)``.
    """
    return np.asarray(
        np.exp(log_modulus) * (np.diff(y, axis=1) + spacing[:, None]) / (math.pi * y[:, :-1] ** 2)
    )
