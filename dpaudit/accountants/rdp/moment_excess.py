"""Compute by how much a moment of a likelihood ratio exceeds 1, by a sum without cancellation.

With r = P/Q and E_Q[r] = 1, the moment of order p (above 1, or below 0) of the mixture's
ratio A = 1 - q + q r is

    E_Q[A^p] = 1 + E_Q[g_p(A - 1)],    g_p(x) = (1 + x)^p - 1 - p x >= 0.

Every term is nonnegative, so a divergence of 1e-20 keeps its digits. Two sums of such terms
bound every sampled release whose pair (P, Q) is symmetric, that is, where P/Q under Q is
distributed as Q/P under P.

Add or remove: the record joins with probability q, or does not exist. The sum is
E_Q[g_a(q (r - 1))]. This direction (record removed) dominates. Proof: with A = 1 - q + q r and
B = q + (1-q) r, the two terms r and 1/r of "removed minus added" at order a = m + 1/2 sum to

    2 (sqrt(A) sinh(m log A) - sqrt(r B) sinh(m log(r/B))),

which is 0 at m = 1/2; and AB >= r makes the first sinh grow faster (Mironov, Talwar & Zhang 2019,
arXiv:1908.10530, Theorem 5, for all orders).

Replace: the record takes part with probability q, and so does its replacement. With
H(u) = E_Q[(r - u)+] the privacy profile of the base, the profile at t = 1 + q (u - 1), u >= 1, is
at most q H(u) in both directions (Balle, Barthe & Gaboardi 2018, arXiv:1807.01647, Theorems 2 and
9). A moment is the integral of a (a-1) (t^(a-2) + t^(-a-1)) times the profile over t >= 1. So it
exceeds 1 by at most E_Q[g_a(q (r - 1)) + g_(1-a)(q (r - 1)); r > 1], at every real order.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dpaudit.accountants.rounding_margins import UNIT_ROUNDOFF

Array = NDArray[np.float64]

SERIES_BELOW = 0.05  # of |z| max(1, |p|): there 14 terms of the power series are exact
SERIES_TERMS = 14
LARGE_EXPONENT = 30.0


def log_mixture_ratio(rate: float, loss: Array) -> Array:
    """Compute log(1 - q + q e^loss) without overflow.

    Args:
        rate: The sampling rate q, above 0 and at most 1.
        loss: Log likelihood ratios, in nats, of any shape.

    Returns:
        The log ratios of the mixture, to a few units in the last place.
    """
    if rate == 1:
        return loss
    moderate = np.log1p(rate * np.expm1(np.minimum(loss, 600.0)))
    large = np.logaddexp(np.log1p(-rate), np.log(rate) + loss)
    return np.where(loss < 600, moderate, large)


def log_moment_excess(power: Array, z: Array) -> Array:
    """Compute log g_p(e^z - 1).

    Args:
        power: Powers p, above 1 or below 0; broadcast against ``z``.
        z: Logarithms of the ratio.

    Returns:
        The logarithms, -inf where z is 0; ``excess_rounding`` bounds their relative error.
    """
    p, z = np.broadcast_arrays(power, z)
    small = np.abs(z) * np.maximum(1.0, np.abs(p)) < SERIES_BELOW
    # Three forms of g_p(e^z - 1) = (e^(pz) - 1) - p (e^z - 1): the series where it cancels, a
    # factored form where it overflows, and the difference itself elsewhere.
    large = np.maximum(p * z, z) > LARGE_EXPONENT
    out = np.empty(z.shape)
    out[small] = _by_series(p[small], z[small])
    out[large] = _by_largest_term(p[large], z[large])
    rest = ~(small | large)
    out[rest] = np.log(np.expm1(p[rest] * z[rest]) - p[rest] * np.expm1(z[rest]))
    return out


def _by_series(p: Array, z: Array) -> Array:
    """Return log of the sum over n >= 2 of p (p-1) z^n s_n / n!, s_n = 1 + p + .. + p^(n-2)."""
    term, partial, total = 0.5 * np.ones_like(z), np.ones_like(z), np.zeros_like(z)
    for n in range(2, SERIES_TERMS):
        total += term * partial
        term *= z / (n + 1)
        partial = 1 + p * partial
    with np.errstate(divide="ignore"):
        return np.log(np.abs(z)) * 2 + np.log(p * (p - 1)) + np.log(total)


def _by_largest_term(p: Array, z: Array) -> Array:
    """Factor out the larger of e^(pz) and e^z, so that nothing overflows."""
    top = np.maximum(p * z, z)
    rest = np.exp(p * z - top) - (1 - p) * np.exp(-top) - p * np.exp(z - top)
    return top + np.log(rest)


def excess_rounding(power: Array, largest_z: float, z_rounding: float) -> Array:
    """Bound the relative error of a sum of g_p(e^z - 1) with |z| at most ``largest_z``.

    At worst e^(pz) - 1 - p (e^z - 1) cancels to (p - 1) z/4 of its terms, at |z| and p z of
    ``SERIES_BELOW``. An error of z itself counts twice, and p z times more often.

    Args:
        power: The powers p.
        largest_z: The largest modulus of a z.
        z_rounding: The relative error of z.

    Returns:
        The bound per power.
    """
    cancelling = 500 * (1 + 1 / np.abs(power - 1))
    logarithms = 4 * (1 + np.abs(power)) * (1 + largest_z)
    return (cancelling + logarithms) * UNIT_ROUNDOFF + (4 + np.abs(power) * largest_z) * z_rounding


def excess_to_divergence(log_excesses: Array, orders: Array) -> Array:
    """Return the divergence log(1 + e^log_excess)/(a - 1).

    Args:
        log_excesses: Logarithms of moment - 1.
        orders: The orders a, above 1, of the same shape.

    Returns:
        The divergences, in nats.
    """
    return np.asarray(np.logaddexp(0.0, log_excesses) / (orders - 1))
