"""Convert Renyi divergences to (epsilon, delta): the least epsilon that a divergence allows.

Let r = P/Q, t = e^epsilon and M = E_Q[r^a] = e^((a-1) D_a). Then delta(epsilon) = E_Q[(r - t)+].
The ratio has mean 1. So for any x0 >= 0, the nonnegative function

    w(r) = r^a - a x0^(a-1) r + (a-1) x0^a    has mean    W = M - a x0^(a-1) + (a-1) x0^a.

delta is at most kappa W if kappa w(r) >= r - t for all r. This holds from t = sup_r (r - kappa
w(r)) on, which is

    t = (a-1) (x (1/a + y) - y x0),   y = kappa x0^(a-1),   x^(a-1) = (1/a + y)/kappa.

x0 = 0 is Proposition 12 of Canonne, Kamath & Steinke 2020, arXiv:2004.00010. By duality the
best x0 gives the optimal conversion of Asoodeh, Liao, Calmon, Kosut & Sankar 2021,
arXiv:2008.06529. The best x0 lies within delta of 1, where W = M - 1. So both ends, x0 = 0 and
x0 = 1, are evaluated here, and the smaller epsilon is used.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

MOST_BISECTIONS = 60
FULL_PRECISION = 1e-13
LEAST_LOG_DELTA = -700.0


def rdp_to_epsilon(order: Array | float, rdp: Array | float, delta: float) -> Array:
    """Compute an upper bound of epsilon at ``delta`` for a Renyi divergence.

    Args:
        order: Orders a above 1, broadcast against ``rdp``.
        rdp: Upper bounds of D_a in nats; infinite where none is known.
        delta: Above 0 and at most 1.

    Returns:
        The upper bound per order, in nats, at least 0; the least of them is valid.

    References:
        Canonne, Kamath & Steinke (2020), arXiv:2004.00010, Proposition 12; Asoodeh, Liao,
        Calmon, Kosut & Sankar (2021), arXiv:2008.06529.
    """
    a, divergence = np.broadcast_arrays(np.asarray(order, float), np.asarray(rdp, float))
    return np.maximum(0.0, np.minimum(*_at_both_ends(a, divergence, math.log(delta))))


def _at_both_ends(a: Array, divergence: Array, log_delta: Array | float) -> tuple[Array, Array]:
    """Return epsilon by x0 = 0 and by x0 = 1, rounded up; see the module's derivation."""
    scale = 1 + np.log(a) - log_delta
    # x0 = 0: epsilon = D_a + log(1 - 1/a) - (log delta + log a)/(a - 1).
    by_moment = divergence + np.log1p(-1 / a) - (log_delta + np.log(a)) / (a - 1)
    by_moment += 1e-14 * (scale / (a - 1) + scale + divergence)
    exponent = (a - 1) * divergence
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        # x0 = 1: W = M - 1, kappa = delta/(M - 1), y = kappa.
        log_excess = np.where(exponent < 700, np.log(np.expm1(exponent)), exponent)
        log_kappa = log_delta - log_excess
        # t = (a-1) (x (1/a + kappa) - kappa) with log x = log1p(1/(a kappa))/(a-1) and x >= 1.
        # t - 1 is computed from x - 1, so that log t keeps its digits close to 0.
        log_x = np.logaddexp(0.0, -log_kappa - np.log(a)) / (a - 1)
        kappa = np.exp(np.minimum(log_kappa, 700.0))
        more = (a - 1) * np.expm1(log_x) * (1 / a + kappa) - 1 / a
        by_excess = np.where(
            log_x < 600,
            np.log1p(np.maximum(more, 0.0) + 1e-13 * (np.maximum(more, 0.0) + 2 / a)),
            log_x + np.log(a - 1) + np.log(1 / a + kappa),
        )
    by_excess += 1e-14 * (scale / (a - 1) + np.minimum(log_x, 1e300) + divergence)
    return by_moment, np.where(np.isnan(by_excess), math.inf, by_excess)


def rdp_to_delta(
    order: Array | float,
    rdp: Array | float,
    epsilon: Array | float,
    resolution: float = FULL_PRECISION,
) -> Array:
    """Compute an upper bound of delta at ``epsilon`` for a Renyi divergence.

    Inverts ``rdp_to_epsilon`` by bisection of log delta. The conversion was evaluated at the
    returned delta, so that a coarse resolution never makes the bound invalid.

    Args:
        order: Orders a above 1, broadcast against the other two.
        rdp: Upper bounds of D_a in nats; infinite where none is known.
        epsilon: Privacy losses in nats, at least 0.
        resolution: Width of log delta at which bisection stops.

    Returns:
        The upper bound per element, at most 1.
    """
    a, divergence, at = np.broadcast_arrays(*(np.asarray(x, float) for x in (order, rdp, epsilon)))
    low, high = np.full(a.shape, LEAST_LOG_DELTA), np.zeros(a.shape)
    for _ in range(MOST_BISECTIONS):
        middle = (low + high) / 2
        enough = np.minimum(*_at_both_ends(a, divergence, middle)) <= at
        low, high = np.where(enough, low, middle), np.where(enough, middle, high)
        if np.all(high - low < resolution):
            break
    return np.minimum(1.0, np.exp(high) * (1 + 1e-12))
