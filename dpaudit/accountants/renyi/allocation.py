"""Random allocation: each record joins one of k Gaussian sums, drawn uniformly.

Removed, the ratio is the mean of k independent log-normals r_j of mean 1, and its moment of
a whole order a is, with shift s,

    E[((r_1 + .. + r_k)/k)^a] = a!/k^a [t^a] (sum_j t^j/j! exp(j (j-1) s^2/2))^k.

Added, the divergence is log E[X^(1-a)]/(a-1) of the same mean X. With
x^(1-a) = integral of t^(a-2) e^(-t x) dt/Gamma(a-1) and psi(u) = log E[e^(-u (r - 1))],

    E[X^(1-a)] = 1 + E[exp(k psi(T/k)) - 1],    T of Gamma law with shape a - 1.

k psi(t/k) is convex in t, 0 with its slope at t = 0, so between the points of a grid its chord
is above it. Both are at most what a whole pass without sampling costs; and so the added one,
by the inequality of means, at most s^2/2 (1 + (a-1)/k) (Feldman & Shenfeld 2025,
arXiv:2502.08202).
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

from dpaudit.accountants.renyi.excess import UNIT_ROUNDOFF, Array
from dpaudit.accountants.special import log_gamma, ndtr

LARGEST_ORDER = 64
SHIFT_LIMIT = 12.0  # beyond it a pass is as good as not sampled
POINTS = 600
LATE = 600.0  # from here on the Gamma laws are bounded by hand
LATEST = 4000.0
REACH = 9.0
UNSEEN = 1.2e-19  # above P[Y > REACH], and so above E[r; Y > REACH + shift]
LEAST_SHIFT = 1e-3  # below it, the cost of this one: more noise never costs more


@lru_cache(maxsize=256)
def log_moments(shift: float, steps: int) -> tuple[Array, Array]:
    """Return upper ends of the log-moments of orders 0 .. ``LARGEST_ORDER``: removed, added."""
    removed, added = _removed(shift, steps), _added(shift, steps)
    removed.flags.writeable = added.flags.writeable = False
    return removed, added


def _removed(shift: float, steps: int) -> Array:
    j = np.arange(LARGEST_ORDER + 1, dtype=np.float64)
    power = j * (j - 1) * (shift * shift / 2) - log_gamma(j + 1)
    # By squaring, from the highest binary digit of k down: the exponent is k at the end.
    total = power
    for digit in bin(steps)[3:]:
        total = _product(total, total)
        if digit == "1":
            total = _product(total, power)
    # Coefficient 0 is exactly 1, so of every round at most a factors were rounded.
    rounds = 2 * steps.bit_length() + 1
    size = float(np.abs(power).max()) + LARGEST_ORDER * math.log(steps + 1) + 2 * LARGEST_ORDER
    slack = 8 * UNIT_ROUNDOFF * j * rounds * (LARGEST_ORDER + size)
    return np.asarray(np.maximum(0.0, total + log_gamma(j + 1) - j * math.log(steps) + slack))


def _product(left: Array, right: Array) -> Array:
    """Return the logarithms of the coefficients of the product of two polynomials."""
    n = len(left)
    index = np.arange(n)[:, None] - np.arange(n)
    terms = np.where(index >= 0, left + right[index], -math.inf)
    top = terms.max(axis=1)
    return np.asarray(top + np.log(np.exp(terms - top[:, None]).sum(axis=1)))


def _added(shift: float, steps: int) -> Array:
    orders = np.arange(LARGEST_ORDER + 1, dtype=np.float64)
    # The inequality of means.
    means = (orders - 1) * (shift * shift / 2) * (1 + (orders - 1) / steps) * (1 + 1e-14)
    out = np.where(orders < 2, 0.0, means)
    shift = max(shift, LEAST_SHIFT)
    time = np.concatenate([[0.0], np.geomspace(1e-3, LATEST, POINTS)])
    cost = np.minimum(time, steps * _log_laplace(shift, time / steps) * (1 + 1e-14))
    for order in range(2, LARGEST_ORDER + 1):
        exact = _gamma_mean(order, time, cost, _log_rest(shift, steps, order))
        out[order] = min(out[order], exact)
    return out


def _log_laplace(shift: float, u: Array) -> Array:
    """Return upper ends of psi(u) = log E[e^(-u (r - 1))], r log-normal of mean 1.

    It is the logarithm of 1 and the mean of the convex e^(-u (r - 1)) - 1 + u (r - 1), or, where
    u is large, u and that of the mean of e^(-u r). Both can only grow where r is spread
    onto the ends of cells of y with its mean kept; left of all cells they are at most their
    value at r = 0, right of them u r, or 1. psi is at most u.
    """
    edges = np.linspace(-REACH, REACH + shift, 1201)
    ratio = np.exp(shift * (edges - shift / 2))
    mass, mean = _differences(edges), _differences(edges - shift)
    onto_right = np.clip((mean - ratio[:-1] * mass) / np.diff(ratio), 0.0, mass)
    # The quotient is good to some 1e-14 over the cells' width in logarithms of the ratio.
    slack = mass * 1e-13 / (shift * (edges[1] - edges[0]))
    weights = np.zeros_like(ratio)
    weights[1:] += onto_right + slack
    weights[:-1] += mass - onto_right + slack
    x = u[:, None] * (ratio - 1)
    with np.errstate(over="ignore"):
        convex = np.where(np.abs(x) < 1e-4, x * x / 2 * (1 + np.abs(x)), np.expm1(-x) + x)
        small = np.log1p(convex @ weights * (1 + 1e-11) + UNSEEN * np.expm1(u))
    large = u + np.log(np.exp(-u[:, None] * ratio) @ weights * (1 + 1e-11) + 2 * UNSEEN)
    return np.asarray(np.minimum(u, np.minimum(small, large)))


def _differences(edges: Array) -> Array:
    """Return the normal probabilities of the cells between ``edges``, each from its own tail."""
    left = np.diff(ndtr(edges))
    right = -np.diff(ndtr(-edges))
    return np.asarray(np.where(edges[1:] < 0, left, right))


def _gamma_mean(order: int, time: Array, cost: Array, log_rest: float) -> float:
    """Bound log(1 + E[e^cost(T) - 1]) for T of Gamma law with shape p = order - 1.

    On each cell the convex e^cost - 1 is below its chord, whose mean needs the cell's
    probability and mean. Late cells, next to impossible, take the largest of t^(p-1) and of
    the falling e^(cost - t) instead.
    """
    p = order - 1
    near = int(np.searchsorted(time, LATE))
    early = time[: near + 1]
    (mass, error), (scaled, scaled_error) = _gamma_cells(p, early), _gamma_cells(p + 1, early)
    height, width = np.expm1(cost[: near + 1]), np.diff(early)
    right = np.clip((p * scaled - early[:-1] * mass) / width, 0.0, mass)
    right_error = (p * scaled_error + early[:-1] * error) / width
    total = (mass + error) @ height[:-1] + (right + right_error) @ np.diff(height)
    late = (p - 1) * np.log(time[near + 1 :]) + cost[near:-1] - time[near:-1]
    late += np.log(np.diff(time[near:])) - log_gamma(p)
    rest = float(np.exp(np.minimum(late, LATE)).sum()) + math.exp(min(LATE, log_rest))
    return math.log1p(float(total) * (1 + 1e-11) + rest * (1 + 1e-9))


def _gamma_cells(shape: int, edges: Array) -> tuple[Array, Array]:
    """Return the Gamma law's probabilities of the cells between ``edges``, and their errors."""
    from scipy.special import gammainc, gammaincc  # noqa: PLC0415 - half a second

    below, above = gammainc(shape, edges), gammaincc(shape, edges)
    left = edges[1:] < shape
    mass = np.where(left, np.diff(below), -np.diff(above))
    return np.maximum(mass, 0.0), 1e-13 * np.where(left, below[1:], above[:-1])


def _log_rest(shift: float, steps: int, order: int) -> float:
    """Bound log of E[X^-p Q(p, T X)], what lies beyond ``LATEST`` = T; p = order - 1.

    Where X >= x it is at most x^-p Q(p, T x), with Gamma(p, z) <= z^p e^-z/(z - p + 1). Where
    X < x it is at most x^b E[X^-(p+b)], which the inequality of means bounds, for any b >= 0.
    """
    p, half = order - 1, shift * shift / 2
    least = math.inf
    for x in (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7):
        z = LATEST * x
        above = p * math.log(LATEST) - z - math.log(z - p + 1) - float(log_gamma(p))
        power = max(p, steps * (-math.log(x) / half - 1) / 2)  # p + b at its best
        under = (power - p) * math.log(x) + power * half * (1 + power / steps)
        least = min(least, float(np.logaddexp(above, under)))
    return least


def divergences(shift: float, steps: int, orders: Array) -> Array:
    """Return upper ends of one pass's divergence, the larger of both directions."""
    with np.errstate(over="ignore"):
        upper = orders * (shift * shift / 2) * (1 + 1e-15)
    if shift < SHIFT_LIMIT:
        near = orders <= LARGEST_ORDER
        heights = np.maximum(*log_moments(shift, steps))
        # Between whole orders the chord of each convex log-moment is above it.
        chord = np.interp(orders[near], np.arange(1, LARGEST_ORDER + 1), heights[1:])
        upper[near] = np.minimum(upper[near], chord / (orders[near] - 1) * (1 + 1e-14))
    return upper
