"""Bound the Renyi divergence of random allocation: each record joins one of k Gaussian sums.

The sum is drawn uniformly. If the record is removed, the ratio is X = (r_1 + .. + r_k)/k, the mean
of k independent log-normals of mean 1. With shift s, its moment of an integer order a is

    E[X^a] = a!/k^a [t^a] (sum_j t^j/j! exp(j (j-1) s^2/2))^k.

If it is added, the divergence is log E[X^(1-a)]/(a-1). With x^(1-a) = integral of
t^(a-2) e^(-t x) dt/Gamma(a-1), and psi(u) = log E[e^(-u (r - 1))],

    E[X^(1-a)] = 1 + E[exp(k psi(T/k)) - 1],    T of the Gamma distribution with shape a - 1.

k psi(t/k) is convex in t, and 0 with slope 0 at t = 0. So its chord between the points of a grid is
above it. Both divergences are at most that of one release without sampling. By the inequality
of means, the added one is then at most s^2/2 (1 + (a-1)/k) (Feldman & Shenfeld 2025,
arXiv:2502.08202).
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

from dpaudit.accountants.numerics import log_gamma, ndtr
from dpaudit.accountants.rdp.moment_excess import Array
from dpaudit.accountants.rounding_margins import UNIT_ROUNDOFF

LARGEST_ORDER = 64
SHIFT_LIMIT = 12.0  # above it sampling hardly lowers the cost of a pass
TIME_POINTS = 600
LARGE_TIME = 600.0  # above it Gamma probabilities are replaced by bounds of the density
LARGEST_TIME = 4000.0
NORMAL_REACH = 9.0
NORMAL_TAIL_MASS = 1.2e-19  # above P[Y > REACH], and so above E[r; Y > REACH + shift]
LEAST_SHIFT = 1e-3  # smaller shifts use its cost: more noise never costs more


@lru_cache(maxsize=256)
def allocation_log_moments(shift: float, steps: int) -> tuple[Array, Array]:
    """Compute upper bounds of the log moments of one pass, at orders 0 .. ``LARGEST_ORDER``.

    Args:
        shift: Sensitivity divided by the noise standard deviation.
        steps: Number of sums k in the pass.

    Returns:
        Bounds of log E[X^a] (record removed) and of log E[X^(1-a)] (record added), read-only,
        each of shape ``(LARGEST_ORDER + 1,)``.
    """
    removed, added = _removed(shift, steps), _added(shift, steps)
    removed.flags.writeable = added.flags.writeable = False
    return removed, added


def _removed(shift: float, steps: int) -> Array:
    """Bound log E[X^a]: the k-th power of a power series, truncated at ``LARGEST_ORDER``."""
    j = np.arange(LARGEST_ORDER + 1, dtype=np.float64)
    power = j * (j - 1) * (shift * shift / 2) - log_gamma(j + 1)
    # The k-th power by repeated squaring, from the highest binary digit of k down.
    total = power
    for digit in bin(steps)[3:]:
        total = _product(total, total)
        if digit == "1":
            total = _product(total, power)
    # Coefficient 0 is exactly 1, so per product at most a factors carry rounding errors.
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
    """Bound log E[X^(1-a)] by the Gamma mixture or by the inequality of means."""
    orders = np.arange(LARGEST_ORDER + 1, dtype=np.float64)
    # By the inequality of means: (a - 1) times s^2/2 (1 + (a - 1)/k).
    means = (orders - 1) * (shift * shift / 2) * (1 + (orders - 1) / steps) * (1 + 1e-14)
    out = np.where(orders < 2, 0.0, means)
    shift = max(shift, LEAST_SHIFT)
    time = np.concatenate([[0.0], np.geomspace(1e-3, LARGEST_TIME, TIME_POINTS)])
    cost = np.minimum(time, steps * _log_laplace(shift, time / steps) * (1 + 1e-14))
    for order in range(2, LARGEST_ORDER + 1):
        exact = _gamma_mean(order, time, cost, _log_tail_beyond_times(shift, steps, order))
        out[order] = min(out[order], exact)
    return out


def _log_laplace(shift: float, u: Array) -> Array:
    """Return upper bounds of psi(u) = log E[e^(-u (r - 1))], r log-normal of mean 1.

    It is log(1 + mean of the convex e^(-u (r - 1)) - 1 + u (r - 1)), or, where u is large,
    u + log(mean of e^(-u r)). Both means can only grow where r is spread onto the ends of cells
    of y with its mean kept. Left of all cells the functions are at most their value at r = 0;
    right of them they are at most u r, or 1. psi is at most u.
    """
    # On a cell with ratios r_i < r_(i+1), normal mass m and ratio mean n: the right end gets
    # (n - r_i m)/(r_(i+1) - r_i), which keeps both m and n.
    edges = np.linspace(-NORMAL_REACH, NORMAL_REACH + shift, 1201)
    ratio = np.exp(shift * (edges - shift / 2))
    mass, mean = _differences(edges), _differences(edges - shift)
    onto_right = np.clip((mean - ratio[:-1] * mass) / np.diff(ratio), 0.0, mass)
    # The error of the quotient is about 1e-14 over the cells' width in log ratio.
    slack = mass * 1e-13 / (shift * (edges[1] - edges[0]))
    weights = np.zeros_like(ratio)
    weights[1:] += onto_right + slack
    weights[:-1] += mass - onto_right + slack
    x = u[:, None] * (ratio - 1)
    with np.errstate(over="ignore"):
        convex = np.where(np.abs(x) < 1e-4, x * x / 2 * (1 + np.abs(x)), np.expm1(-x) + x)
        small = np.log1p(convex @ weights * (1 + 1e-11) + NORMAL_TAIL_MASS * np.expm1(u))
    large = u + np.log(np.exp(-u[:, None] * ratio) @ weights * (1 + 1e-11) + 2 * NORMAL_TAIL_MASS)
    return np.asarray(np.minimum(u, np.minimum(small, large)))


def _differences(edges: Array) -> Array:
    """Return the normal probabilities of the cells between ``edges``, each from its nearer tail."""
    left = np.diff(ndtr(edges))
    right = -np.diff(ndtr(-edges))
    return np.asarray(np.where(edges[1:] < 0, left, right))


def _gamma_mean(order: int, time: Array, cost: Array, log_rest: float) -> float:
    """Bound log(1 + E[e^cost(T) - 1]) for T of the Gamma distribution with shape p = order - 1.

    On each cell the convex e^cost - 1 is below its chord, whose mean needs the cell's
    probability and mean. Late cells have negligible mass. There the largest values of t^(p-1)
    and of the falling e^(cost - t) are used instead.
    """
    p = order - 1
    # E[T; cell] = p P[T' in cell] for T' of shape p + 1, which gives the mean on each cell.
    near = int(np.searchsorted(time, LARGE_TIME))
    early = time[: near + 1]
    (mass, error), (scaled, scaled_error) = _gamma_cells(p, early), _gamma_cells(p + 1, early)
    height, width = np.expm1(cost[: near + 1]), np.diff(early)
    right = np.clip((p * scaled - early[:-1] * mass) / width, 0.0, mass)
    right_error = (p * scaled_error + early[:-1] * error) / width
    total = (mass + error) @ height[:-1] + (right + right_error) @ np.diff(height)
    late = (p - 1) * np.log(time[near + 1 :]) + cost[near:-1] - time[near:-1]
    late += np.log(np.diff(time[near:])) - log_gamma(p)
    rest = float(np.exp(np.minimum(late, LARGE_TIME)).sum()) + math.exp(min(LARGE_TIME, log_rest))
    return math.log1p(float(total) * (1 + 1e-11) + rest * (1 + 1e-9))


def _gamma_cells(shape: int, edges: Array) -> tuple[Array, Array]:
    """Return the Gamma probabilities of the cells between ``edges``, and bounds of their errors."""
    from scipy.special import gammainc, gammaincc  # noqa: PLC0415 - half a second

    below, above = gammainc(shape, edges), gammaincc(shape, edges)
    left = edges[1:] < shape
    mass = np.where(left, np.diff(below), -np.diff(above))
    return np.maximum(mass, 0.0), 1e-13 * np.where(left, below[1:], above[:-1])


def _log_tail_beyond_times(shift: float, steps: int, order: int) -> float:
    """Bound log of E[X^-p Q(p, T X)], the part beyond ``LARGEST_TIME`` = T; p = order - 1.

    Where X >= x it is at most x^-p Q(p, T x), with Gamma(p, z) <= z^p e^-z/(z - p + 1). Where
    X < x it is at most x^b E[X^-(p+b)] for any b >= 0, which the inequality of means bounds.
    """
    p, half = order - 1, shift * shift / 2
    least = math.inf
    for x in (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7):
        z = LARGEST_TIME * x
        above = p * math.log(LARGEST_TIME) - z - math.log(z - p + 1) - float(log_gamma(p))
        power = max(p, steps * (-math.log(x) / half - 1) / 2)  # p + b at its best
        under = (power - p) * math.log(x) + power * half * (1 + power / steps)
        least = min(least, float(np.logaddexp(above, under)))
    return least


def allocation_divergence(shift: float, steps: int, orders: Array) -> Array:
    """Compute upper bounds of one pass's divergence, the larger of both directions.

    Args:
        shift: Sensitivity divided by the noise standard deviation.
        steps: Number of sums k in the pass.
        orders: Orders above 1, shape ``(n,)``.

    Returns:
        Upper bounds, in nats, shape ``(n,)``; those of one release without sampling for orders
        above ``LARGEST_ORDER`` or large shifts.

    References:
        Feldman & Shenfeld (2025), arXiv:2502.08202.
    """
    with np.errstate(over="ignore"):
        upper = orders * (shift * shift / 2) * (1 + 1e-15)
    if shift < SHIFT_LIMIT:
        near = orders <= LARGEST_ORDER
        heights = np.maximum(*allocation_log_moments(shift, steps))
        # (a - 1) D_a is convex in a, so its chord between integer orders is above it.
        chord = np.interp(orders[near], np.arange(1, LARGEST_ORDER + 1), heights[1:])
        upper[near] = np.minimum(upper[near], chord / (orders[near] - 1) * (1 + 1e-14))
    return upper
