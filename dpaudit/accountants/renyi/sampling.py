"""Divergences of sampled releases: which sum prices which, and what stands in beyond it.

A release whose pair of laws is known is priced by the sums of ``excess`` over that pair: it
dominates under sampling, too (Zhu, Dong & Wang 2022, arXiv:2106.08567, Theorem 11). Of
zCDP alone the moments E[r^k] <= e^(k (k-1) rho) are known, in both directions, but no pair.
Then the sum at whole orders holds twice over: what the two added moments of (P, Q) and of
(Q, P) exceed 1 by is together no more than for the two removed ones (the proof in ``excess``).

Between whole orders the chord of (a - 1) D_a is above it: it is convex in a (van Erven &
Harremoes 2014, arXiv:1206.2459, Corollary 2), and 0 at a = 1.

Every bound is at most that without sampling, by quasi-convexity (Theorem 13 there), and
where a record joins with probability q, at most what Minkowski's inequality says:
E[(1 - q + q r)^a]^(1/a) <= 1 - q + q E[r^a]^(1/a).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from dpaudit.accountants.renyi import gaussian, pairs
from dpaudit.accountants.renyi.excess import Array, to_divergence

Ends = tuple[Array, Array]  # lower and upper ends of the divergence, one for each order

LARGEST_EXPONENT = 1e9  # of a moment, beyond which no sum is taken


def whole(pair: pairs.Pair, orders: Array) -> Ends:
    """Return ends of the divergence without sampling."""
    lower, upper = pairs.joining(pair, 1.0, orders)
    return to_divergence(lower, orders), to_divergence(upper, orders)


def joining_pair(pair: pairs.Pair, rate: float, orders: Array, unsampled: Array) -> Ends:
    """Return ends where a record joins with probability ``rate``, for a symmetric pair."""
    lower, upper = pairs.joining(pair, rate, orders)
    most = _minkowski(rate, orders, unsampled)
    return to_divergence(lower, orders), np.minimum(most, to_divergence(upper, orders))


def swapping_pair(pair: pairs.Pair, rate: float, orders: Array, unsampled: Array) -> Ends:
    """Return ends where the record and its replacement take part with probability ``rate``."""
    upper = to_divergence(pairs.swapping(pair, rate, orders)[1], orders)
    return np.zeros_like(orders), np.minimum(unsampled, upper)


def joining_gaussian(rate: float, shift: float, orders: Array) -> Ends:
    """Return ends for the Poisson-sampled Gaussian."""
    with np.errstate(over="ignore"):
        unsampled = orders * (shift * shift / 2) * (1 + 1e-15)
        largest = orders * orders * shift * shift
    lower, upper = np.zeros_like(orders), _minkowski(rate, orders, unsampled)
    whole_order = _whole(orders) & (largest < LARGEST_EXPONENT)
    if whole_order.any():
        at = orders[whole_order]
        _put(lower, upper, whole_order, gaussian.joining_at_integers(rate, shift, at), at)
    # Beyond whole orders: next to 1/noise of 1e8 no strip is wide enough.
    real = ~whole_order & (orders * shift < gaussian.MOST_NODES)
    if real.any():
        ends = gaussian.joining_at_reals(rate, shift, orders[real])
        if ends is not None:
            _put(lower, upper, real, ends, orders[real])
    return lower, upper


def swapping_gaussian(rate: float, shift: float, orders: Array) -> Ends:
    """Return ends for the sampled Gaussian under replace-one; ``shift`` is the replacing one."""
    with np.errstate(over="ignore"):
        unsampled = orders * (shift * shift / 2) * (1 + 1e-15)

    def at_integers(whole_orders: Array) -> Array:
        return to_divergence(gaussian.swapping_at_integers(rate, shift, whole_orders), whole_orders)

    return np.zeros_like(orders), np.minimum(unsampled, _by_chords(at_integers, shift, orders))


def replaced_gaussian(rate: float, shift: float, orders: Array) -> Ends:
    """Return ends for the Poisson-sampled Gaussian under replace-one; ``shift`` removes.

    Whatever replaces the record is left out with probability 1 - q; so the ratio is at most
    1/(1-q) times that of the record removed, and the divergence log(1/(1-q)) more at most.
    """
    with np.errstate(over="ignore"):
        unsampled = orders * (2 * shift * shift) * (1 + 1e-15)

    def at_integers(whole_orders: Array) -> Array:
        replaced = gaussian.replaced_at_integers(rate, shift, whole_orders)
        removed = gaussian.joining_at_integers(rate, shift, whole_orders)[1]
        left_out = to_divergence(removed, whole_orders) - math.log1p(-rate)
        return np.minimum(to_divergence(replaced, whole_orders), left_out * (1 + 1e-14))

    return np.zeros_like(orders), np.minimum(unsampled, _by_chords(at_integers, 2 * shift, orders))


def joining_rho(rate: float, rho: float, orders: Array) -> Ends:
    """Return ends where of the base nothing but rho-zCDP is known."""
    shift = math.sqrt(2 * rho) * (1 + 1e-15)

    def at_integers(whole_orders: Array) -> Array:
        excess = gaussian.joining_at_integers(rate, shift, whole_orders)[1]
        return to_divergence(math.log(2) + excess, whole_orders)

    most = orders * rho * (1 + 1e-15)
    return np.zeros_like(orders), np.minimum(most, _by_chords(at_integers, shift, orders))


def swapping_rho(rate: float, rho: float, orders: Array) -> Ends:
    """Return ends under replace-one where of the base nothing but rho-zCDP is known.

    At whole orders a, with M_j = e^(j (j-1) rho), the moment is at most 1 + q^2 C(a, 2)
    min(4 (M_2 - 1), 2 M_2) + sum_(j >= 3) 2 q^j C(a, j) M_j (Wang, Balle & Kasiviswanathan
    2019, arXiv:1808.00087, Theorem 9).
    """
    shift = math.sqrt(2 * rho) * (1 + 1e-15)
    # q^j C(a, j) is (1 + q)^a times the binomial weight of q/(1 + q).
    weight = rate / (1 + rate)

    def at_integers(whole_orders: Array) -> Array:
        k = np.arange(int(whole_orders.max()) + 1, dtype=np.float64)
        moments = math.log(2) + k * (k - 1) * (shift * shift / 2)
        square = gaussian.log_raw_moments(shift, 2)[2]
        moments[2] = min(math.log(4) + square, moments[2])
        excess = gaussian.binomial_sums(weight, whole_orders, moments)[1]
        excess += whole_orders * math.log1p(rate) * (1 + 1e-14) + 1e-14
        return to_divergence(excess, whole_orders)

    most = orders * rho * (1 + 1e-15)
    return np.zeros_like(orders), np.minimum(most, _by_chords(at_integers, shift, orders))


def _put(lower: Array, upper: Array, where: NDArray[np.bool_], ends: Ends, orders: Array) -> None:
    """Enter ends of log(moment - 1) as divergences, the upper ones where they are tighter."""
    lower[where] = to_divergence(ends[0], orders)
    upper[where] = np.minimum(upper[where], to_divergence(ends[1], orders))


def _whole(orders: Array) -> NDArray[np.bool_]:
    return np.asarray((orders == np.floor(orders)) & (orders <= gaussian.LARGEST_INTEGER))


def _by_chords(at_integers: Callable[[Array], Array], shift: float, orders: Array) -> Array:
    """Return upper ends at real orders from those at whole ones; infinite where none is known."""
    upper = np.full_like(orders, math.inf)
    ceiling = np.ceil(orders)
    with np.errstate(over="ignore"):
        largest = ceiling * ceiling * shift * shift
    near = (ceiling <= gaussian.LARGEST_INTEGER) & (largest < LARGEST_EXPONENT)
    if near.any():
        floors = np.floor(orders[near])
        needed = np.unique(np.concatenate([floors, ceiling[near]]))
        needed = needed[needed > 1]
        grid = np.concatenate([[1.0], needed])
        heights = np.concatenate([[0.0], (needed - 1) * at_integers(needed)])
        chord = np.interp(orders[near], grid, heights)
        upper[near] = chord / (orders[near] - 1) * (1 + 1e-14)
    return upper


def _minkowski(rate: float, orders: Array, unsampled: Array) -> Array:
    """Return the smaller of both bounds that hold of any sum: see above."""
    share = (orders - 1) / orders
    with np.errstate(over="ignore", invalid="ignore"):
        exponent = share * unsampled
        mixed = np.logaddexp(math.log1p(-rate), math.log(rate) + exponent)
        mixed = np.where(exponent < 600, np.log1p(rate * np.expm1(exponent)), mixed) / share
    return np.asarray(np.minimum(unsampled, mixed * (1 + 1e-14)))
