"""By how much a moment of a likelihood ratio exceeds 1: a sum without cancellation.

With r = P/Q and E_Q[r] = 1, the moment of order p (above 1, or below 0) of the mixture's
ratio A = 1 - q + q r is

    E_Q[A^p] = 1 + E_Q[g_p(A - 1)],    g_p(x) = (1 + x)^p - 1 - p x >= 0,

so that every term is positive, and a divergence of 1e-20 keeps its digits. Two sums of
such terms price every sampled release whose pair (P, Q) is symmetric, that is, where P/Q
under Q is distributed as Q/P under P.

joining     A record joins with probability q, or there is none: E_Q[g_a(q (r - 1))]. This
            direction (record removed) dominates: with A = 1 - q + q r and B = q + (1-q) r,
            the two terms r and 1/r of "removed minus added" at order a = m + 1/2 sum to
            2 (sqrt(A) sinh(m log A) - sqrt(r B) sinh(m log(r/B))); that is 0 at m = 1/2, and
            AB >= r makes the first sinh grow faster (Mironov, Talwar & Zhang 2019,
            arXiv:1908.10530, Theorem 5, for all orders).

swapping    A record takes part with probability q, and so does the one that replaces it.
            With H(u) the base's privacy profile E_Q[(r - u)+], the profile at
            t = 1 + q (u - 1), u >= 1, is at most q H(u) both ways (Balle, Barthe & Gaboardi
            2018, arXiv:1807.01647, Theorems 2 and 9). A moment is the integral of
            a (a-1) (t^(a-2) + t^(-a-1)) times the profile over t >= 1; so it exceeds 1 by
            at most E_Q[g_a(q (r - 1)) + g_(1-a)(q (r - 1)); r > 1], at every real order.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

UNIT_ROUNDOFF = 2.0**-53
# Where |z| max(1, |p|) is smaller, 14 terms of the power series have every digit.
SERIES_BELOW = 0.05
SERIES_TERMS = 14
LARGE_EXPONENT = 30.0


def log_mixture(rate: float, loss: Array) -> Array:
    """Return log(1 - q + q e^loss), to a few units in its last place, without overflow."""
    if rate == 1:
        return loss
    moderate = np.log1p(rate * np.expm1(np.minimum(loss, 600.0)))
    large = np.logaddexp(np.log1p(-rate), np.log(rate) + loss)
    return np.where(loss < 600, moderate, large)


def log_excess(power: Array, z: Array) -> Array:
    """Return log g_p(e^z - 1); its relative error is below ``rounding``; -inf where z is 0.

    Args:
        power: Powers p, above 1 or below 0; broadcast against ``z``.
        z: Logarithms of the ratio.
    """
    p, z = np.broadcast_arrays(power, z)
    small = np.abs(z) * np.maximum(1.0, np.abs(p)) < SERIES_BELOW
    large = np.maximum(p * z, z) > LARGE_EXPONENT
    out = np.empty(z.shape)
    out[small] = _by_series(p[small], z[small])
    out[large] = _by_largest_term(p[large], z[large])
    rest = ~(small | large)
    out[rest] = np.log(np.expm1(p[rest] * z[rest]) - p[rest] * np.expm1(z[rest]))
    return out


def _by_series(p: Array, z: Array) -> Array:
    """Sum p (p-1) z^n s_n / n!, s_n = 1 + p + .. + p^(n-2), from n = 2."""
    term, partial, total = 0.5 * np.ones_like(z), np.ones_like(z), np.zeros_like(z)
    for n in range(2, SERIES_TERMS):
        total += term * partial
        term *= z / (n + 1)
        partial = 1 + p * partial
    with np.errstate(divide="ignore"):
        return np.log(np.abs(z)) * 2 + np.log(p * (p - 1)) + np.log(total)


def _by_largest_term(p: Array, z: Array) -> Array:
    """Take out the largest of e^(pz) and e^z, so that nothing overflows."""
    top = np.maximum(p * z, z)
    rest = np.exp(p * z - top) - (1 - p) * np.exp(-top) - p * np.exp(z - top)
    return top + np.log(rest)


def rounding(power: Array, largest_z: float, z_rounding: float) -> Array:
    """Bound the relative error of a sum of g_p(e^z - 1) with |z| at most ``largest_z``.

    At worst e^(pz) - 1 - p (e^z - 1) cancels to (p - 1) z/4 of its terms, at |z| and p z of
    ``SERIES_BELOW``; an error of z itself counts twice, and p z times more often.

    Args:
        power: The powers p.
        largest_z: The largest modulus of a z.
        z_rounding: To which relative error z is known.
    """
    cancelling = 500 * (1 + 1 / np.abs(power - 1))
    logarithms = 4 * (1 + np.abs(power)) * (1 + largest_z)
    return (cancelling + logarithms) * UNIT_ROUNDOFF + (4 + np.abs(power) * largest_z) * z_rounding


def to_divergence(log_excesses: Array, orders: Array) -> Array:
    """Return log(1 + e^log_excess)/(a - 1)."""
    return np.asarray(np.logaddexp(0.0, log_excesses) / (orders - 1))
