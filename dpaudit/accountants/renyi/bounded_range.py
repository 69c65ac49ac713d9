"""Poisson samples of exponential mechanisms: the worst of all releases of bounded range.

A release of range epsilon has its losses within some [t - epsilon, t], 0 <= t <= epsilon;
spread onto both ends, they are a pair with two losses. That family is closed under
exchanging P and Q, so both directions are priced by

    largest over t of E_Q[g_p(q (r - 1))],    p = a (record removed), p = 1 - a (added).

For t between two points of a grid, the losses lie within the lower point's lower end and
the upper point's upper end: spread onto those, every such sum has only grown.
"""

from __future__ import annotations

import numpy as np

from dpaudit.accountants.renyi.excess import (
    UNIT_ROUNDOFF,
    Array,
    log_excess,
    log_mixture,
    rounding,
    to_divergence,
)

CELLS = 128


def joining(epsilon: float, rate: float, orders: Array) -> Array:
    """Return upper ends of the divergence where a record joins with probability ``rate``."""
    grid = epsilon * np.arange(CELLS + 1) / CELLS
    high, low = grid[1:], grid[:-1] - epsilon
    # Q of the high loss: (1 - e^low)/(e^high - e^low), so that the mean ratio is 1.
    log_high = np.log(-np.expm1(low)) - high - np.log(-np.expm1(low - high))
    log_low = np.log(-np.expm1(-high)) - np.log(-np.expm1(low - high))
    ends = [(log_high, log_mixture(rate, high)), (log_low, log_mixture(rate, low))]
    ways = [_largest(power, ends) for power in (orders, 1 - orders)]
    return to_divergence(np.maximum(*ways), orders)


def _largest(powers: Array, ends: list[tuple[Array, Array]]) -> Array:
    terms = [log_mass + log_excess(powers[:, None], z) for log_mass, z in ends]
    largest = max(float(np.abs(z).max()) for _, z in ends)
    relative = rounding(powers, largest, 64 * UNIT_ROUNDOFF) + 1e-13 * (1 + largest)
    return np.asarray(np.logaddexp(*terms).max(axis=1) + relative)
