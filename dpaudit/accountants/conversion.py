"""From Renyi divergence to (epsilon, delta): the least epsilon that a divergence allows.

Whatever has moment M = E_Q[r^a] = e^((a-1) D_a) has delta(epsilon) = E_Q[(r - t)+], t = e^epsilon.
The ratio has mean 1, so for any x0 >= 0 the mean of r^a - a x0^(a-1) r + (a-1) x0^a >= 0 is
W = M - a x0^(a-1) + (a-1) x0^a, and delta is at most kappa W wherever kappa times that
function is nowhere below r - t: from t = sup_r (r - kappa (..)) on,

    t = (a-1) (x (1/a + y) - y x0),   y = kappa x0^(a-1),   x^(a-1) = (1/a + y)/kappa.

x0 = 0 is Proposition 12 of Canonne, Kamath & Steinke 2020, arXiv:2004.00010. By duality the
best x0 gives the optimal conversion of Asoodeh, Liao, Calmon, Kosut & Sankar 2021,
arXiv:2008.06529; it lies within delta of 1, where W = M - 1 is all that exceeds 1. So
both ends, x0 = 0 and x0 = 1, are taken here.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

HALVINGS = 60
TO_THE_LAST_DIGITS = 1e-13
LOG_LEAST = -700.0


def to_epsilon(order: Array | float, rdp: Array | float, delta: float) -> Array:
    """Return an epsilon at ``delta`` of whatever has Renyi divergence at most ``rdp``.

    Args:
        order: Orders above 1.
        rdp: The divergence of each order; infinite where none is known.
        delta: Above 0 and at most 1.
    """
    a, divergence = np.broadcast_arrays(np.asarray(order, float), np.asarray(rdp, float))
    return np.maximum(0.0, np.minimum(*_at_both_ends(a, divergence, math.log(delta))))


def _at_both_ends(a: Array, divergence: Array, log_delta: Array | float) -> tuple[Array, Array]:
    scale = 1 + np.log(a) - log_delta
    by_moment = divergence + np.log1p(-1 / a) - (log_delta + np.log(a)) / (a - 1)
    by_moment += 1e-14 * (scale / (a - 1) + scale + divergence)
    exponent = (a - 1) * divergence
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        log_excess = np.where(exponent < 700, np.log(np.expm1(exponent)), exponent)
        log_kappa = log_delta - log_excess
        # t = (a-1) (x (1/a + kappa) - kappa) with log x = log1p(1/(a kappa))/(a-1): from 1 up,
        # so log t loses nothing but next to 0, where x - 1 is kept by itself.
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


def to_delta(
    order: Array | float,
    rdp: Array | float,
    epsilon: Array | float,
    resolution: float = TO_THE_LAST_DIGITS,
) -> Array:
    """Return a delta at ``epsilon`` of whatever has Renyi divergence at most ``rdp``.

    By halving the logarithm of delta, down to ``resolution``: the delta returned has itself
    been tried.
    """
    a, divergence, at = np.broadcast_arrays(*(np.asarray(x, float) for x in (order, rdp, epsilon)))
    low, high = np.full(a.shape, LOG_LEAST), np.zeros(a.shape)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        enough = np.minimum(*_at_both_ends(a, divergence, middle)) <= at
        low, high = np.where(enough, low, middle), np.where(enough, middle, high)
        if np.all(high - low < resolution):
            break
    return np.minimum(1.0, np.exp(high) * (1 + 1e-12))
