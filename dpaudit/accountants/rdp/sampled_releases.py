"""Bound Renyi divergences of sampled releases.

A release whose dominating pair is known is bounded by the sums of ``moment_excess`` over that pair,
which dominates under sampling, too (Zhu, Dong & Wang 2022, arXiv:2106.08567, Theorem 11).

For a zCDP guarantee alone, the moments E[r^k] <= e^(k (k-1) rho) are known in both directions, but
no pair. Then twice the sum at integer orders is a bound. The two added moments of (P, Q) and of
(Q, P) together exceed 1 by no more than the two removed ones do (the proof is in
``moment_excess``).

Between integer orders the chord of (a - 1) D_a is above it, since it is convex in a (van Erven &
Harremoes 2014, arXiv:1206.2459, Corollary 2), and 0 at a = 1.

Every bound is at most that without sampling, by quasi-convexity (van Erven & Harremoes, Theorem
13). Where a record joins with probability q, Minkowski's inequality gives another bound:

    E[(1 - q + q r)^a]^(1/a) <= 1 - q + q E[r^a]^(1/a).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from dpaudit.accountants.rdp import sampled_gaussian, unsampled_releases
from dpaudit.accountants.rdp.moment_excess import (
    Array,
    excess_rounding,
    excess_to_divergence,
    log_mixture_ratio,
    log_moment_excess,
)
from dpaudit.accountants.rounding_margins import UNIT_ROUNDOFF

ArrayBounds = tuple[Array, Array]  # lower and upper bounds of the divergence, one per order

LARGEST_EXPONENT = 1e9  # of a moment; above it no sum is computed


def unsampled_pair(pair: unsampled_releases.FinitePairBounds, orders: Array) -> ArrayBounds:
    """Bound the divergence without sampling, for a symmetric pair.

    Args:
        pair: Loss distributions below and above the true one in convex order.
        orders: Orders above 1, shape ``(k,)``.

    Returns:
        Lower and upper bounds in nats, each of shape ``(k,)``.
    """
    lower, upper = unsampled_releases.add_remove_excess(pair, 1.0, orders)
    return excess_to_divergence(lower, orders), excess_to_divergence(upper, orders)


def add_remove_pair(
    pair: unsampled_releases.FinitePairBounds, rate: float, orders: Array, unsampled: Array
) -> ArrayBounds:
    """Bound the divergence of a Poisson sample under add-or-remove-one, for a symmetric pair.

    Args:
        pair: Loss distributions below and above the true one in convex order.
        rate: Probability q with which the record joins.
        orders: Orders above 1, shape ``(k,)``.
        unsampled: Upper bounds without sampling, shape ``(k,)``.

    Returns:
        Lower and upper bounds in nats, each of shape ``(k,)``.

    References:
        Zhu, Dong & Wang (2022), arXiv:2106.08567, Theorem 11.
    """
    lower, upper = unsampled_releases.add_remove_excess(pair, rate, orders)
    most = _minkowski(rate, orders, unsampled)
    return excess_to_divergence(lower, orders), np.minimum(
        most, excess_to_divergence(upper, orders)
    )


def replace_pair(
    pair: unsampled_releases.FinitePairBounds, rate: float, orders: Array, unsampled: Array
) -> ArrayBounds:
    """Bound the divergence of a fixed-size sample under replace-one, for a symmetric pair.

    Args:
        pair: Loss distributions below and above the true one in convex order.
        rate: Probability with which the record, or its replacement, takes part.
        orders: Orders above 1, shape ``(k,)``.
        unsampled: Upper bounds without sampling, shape ``(k,)``.

    Returns:
        Lower bounds of 0, and upper bounds in nats, each of shape ``(k,)``.
    """
    upper = excess_to_divergence(unsampled_releases.replace_excess(pair, rate, orders)[1], orders)
    return np.zeros_like(orders), np.minimum(unsampled, upper)


def add_remove_gaussian(rate: float, shift: float, orders: Array) -> ArrayBounds:
    """Bound the divergence of the Poisson-sampled Gaussian under add-or-remove-one.

    Args:
        rate: Probability q with which the record joins.
        shift: Sensitivity divided by the noise standard deviation.
        orders: Orders above 1, shape ``(k,)``.

    Returns:
        Lower and upper bounds in nats, each of shape ``(k,)``.

    References:
        Mironov, Talwar & Zhang (2019), arXiv:1908.10530, Theorem 5 and equation 5.
    """
    with np.errstate(over="ignore"):
        unsampled = orders * (shift * shift / 2) * (1 + 1e-15)
        largest = orders * orders * shift * shift
    lower, upper = np.zeros_like(orders), _minkowski(rate, orders, unsampled)
    whole_order = _is_small_integer(orders) & (largest < LARGEST_EXPONENT)
    if whole_order.any():
        at = orders[whole_order]
        _store_divergences(
            lower, upper, whole_order, sampled_gaussian.add_remove_at_integers(rate, shift, at), at
        )
    # Real orders; for a shift of about 1e8 no strip is wide enough.
    real = ~whole_order & (orders * shift < sampled_gaussian.MOST_NODES)
    if real.any():
        ends = sampled_gaussian.add_remove_at_reals(rate, shift, orders[real])
        if ends is not None:
            _store_divergences(lower, upper, real, ends, orders[real])
    return lower, upper


def replace_gaussian(rate: float, shift: float, orders: Array) -> ArrayBounds:
    """Bound the divergence of the fixed-size-sampled Gaussian under replace-one.

    Args:
        rate: Probability with which the record, or its replacement, takes part.
        shift: Distance by which a replacement moves the sum, in noise standard deviations.
        orders: Orders above 1, shape ``(k,)``.

    Returns:
        Lower bounds of 0, and upper bounds in nats, each of shape ``(k,)``.
    """
    with np.errstate(over="ignore"):
        unsampled = orders * (shift * shift / 2) * (1 + 1e-15)

    def at_integers(whole_orders: Array) -> Array:
        return excess_to_divergence(
            sampled_gaussian.replace_at_integers(rate, shift, whole_orders), whole_orders
        )

    return np.zeros_like(orders), np.minimum(
        unsampled, _interpolate_orders(at_integers, shift, orders)
    )


def poisson_replace_gaussian(rate: float, shift: float, orders: Array) -> ArrayBounds:
    """Bound the divergence of the Poisson-sampled Gaussian under replace-one.

    The replacement does not take part with probability 1 - q. So the ratio is at most 1/(1-q)
    times that of the removed record, and the divergence is larger by at most log(1/(1-q)).

    Args:
        rate: Probability q with which the record, or its replacement, takes part.
        shift: Distance by which a removal moves the sum, in noise standard deviations.
        orders: Orders above 1, shape ``(k,)``.

    Returns:
        Lower bounds of 0, and upper bounds in nats, each of shape ``(k,)``.

    References:
        Balle, Barthe & Gaboardi (2018), arXiv:1807.01647, Theorem 2.
    """
    with np.errstate(over="ignore"):
        unsampled = orders * (2 * shift * shift) * (1 + 1e-15)

    def at_integers(whole_orders: Array) -> Array:
        replaced = sampled_gaussian.poisson_replace_at_integers(rate, shift, whole_orders)
        removed = sampled_gaussian.add_remove_at_integers(rate, shift, whole_orders)[1]
        left_out = excess_to_divergence(removed, whole_orders) - math.log1p(-rate)
        return np.minimum(excess_to_divergence(replaced, whole_orders), left_out * (1 + 1e-14))

    return np.zeros_like(orders), np.minimum(
        unsampled, _interpolate_orders(at_integers, 2 * shift, orders)
    )


def add_remove_zcdp(rate: float, rho: float, orders: Array) -> ArrayBounds:
    """Bound the divergence of a Poisson sample under add-or-remove-one, for a zCDP guarantee.

    Args:
        rate: Probability q with which the record joins.
        rho: The zCDP parameter of the base.
        orders: Orders above 1, shape ``(k,)``.

    Returns:
        Lower bounds of 0, and upper bounds in nats, each of shape ``(k,)``.
    """
    shift = math.sqrt(2 * rho) * (1 + 1e-15)

    def at_integers(whole_orders: Array) -> Array:
        # Twice the sum, see the module's docstring.
        excess = sampled_gaussian.add_remove_at_integers(rate, shift, whole_orders)[1]
        return excess_to_divergence(math.log(2) + excess, whole_orders)

    most = orders * rho * (1 + 1e-15)
    return np.zeros_like(orders), np.minimum(most, _interpolate_orders(at_integers, shift, orders))


def add_remove_moments(
    rate: float, log_moments: Callable[[Array], Array], unsampled: Array, orders: Array
) -> Array:
    """Bound the divergence of a Poisson sample under add-or-remove-one, for symmetric noise.

    For each sample of the other records, P and Q are one noise distribution around two centers. A
    reflection exchanges them. So their divergences agree in both directions, the added moments
    exceed 1 by no more than the removed ones, and at integer orders a the moment is at most

        1 + sum_(k >= 2) C(a, k) (1 - q)^(a-k) q^k (E[r^k] - 1).

    Args:
        rate: Probability q with which the record joins.
        log_moments: Upper bounds of log E[r^k] for integers k of at least 2, shape ``(k,)``.
        unsampled: Upper bounds without sampling at ``orders``, shape ``(k,)``.
        orders: Orders above 1, shape ``(k,)``.

    Returns:
        Upper bounds in nats, shape ``(k,)``.
    """
    largest = sampled_gaussian.LARGEST_INTEGER_ORDER
    k = np.arange(2.0, largest + 1)
    with np.errstate(over="ignore"):
        moments = log_moments(k)
        excess = np.where(moments < 600, np.log(np.expm1(np.minimum(moments, 600.0))), moments)
    # Larger moments overflow the sums' range; orders that need them keep the other bounds.
    known = int(np.searchsorted(moments, LARGEST_EXPONENT))
    logs = np.concatenate([np.zeros(2), excess * (1 + 4e-16) + 4e-16])

    def at_integers(whole_orders: Array) -> Array:
        upper = np.full_like(whole_orders, math.inf)
        near = whole_orders < known + 2
        if near.any():
            sums = sampled_gaussian.binomial_sums(rate, whole_orders[near], logs)[1]
            upper[near] = excess_to_divergence(sums, whole_orders[near])
        return upper

    most = _minkowski(rate, orders, unsampled)
    return np.asarray(np.minimum(most, _interpolate_orders(at_integers, 0.0, orders)))


def replace_zcdp(rate: float, rho: float, orders: Array) -> ArrayBounds:
    """Bound the divergence of a fixed-size sample under replace-one, for a zCDP guarantee.

    At integer orders a, with M_j = e^(j (j-1) rho), the moment is at most

        1 + q^2 C(a, 2) min(4 (M_2 - 1), 2 M_2) + sum_(j >= 3) 2 q^j C(a, j) M_j.

    Args:
        rate: Probability q with which the record, or its replacement, takes part.
        rho: The zCDP parameter of the base.
        orders: Orders above 1, shape ``(k,)``.

    Returns:
        Lower bounds of 0, and upper bounds in nats, each of shape ``(k,)``.

    References:
        Wang, Balle & Kasiviswanathan (2019), arXiv:1808.00087, Theorem 9.
    """
    shift = math.sqrt(2 * rho) * (1 + 1e-15)
    # q^j C(a, j) = (1 + q)^a C(a, j) w^j (1 - w)^(a-j) with w = q/(1 + q).
    weight = rate / (1 + rate)

    def at_integers(whole_orders: Array) -> Array:
        k = np.arange(int(whole_orders.max()) + 1, dtype=np.float64)
        moments = math.log(2) + k * (k - 1) * (shift * shift / 2)
        square = sampled_gaussian.log_raw_moments(shift, 2)[2]
        moments[2] = min(math.log(4) + square, moments[2])
        excess = sampled_gaussian.binomial_sums(weight, whole_orders, moments)[1]
        excess += whole_orders * math.log1p(rate) * (1 + 1e-14) + 1e-14
        return excess_to_divergence(excess, whole_orders)

    most = orders * rho * (1 + 1e-15)
    return np.zeros_like(orders), np.minimum(most, _interpolate_orders(at_integers, shift, orders))


def _store_divergences(
    lower: Array, upper: Array, where: NDArray[np.bool_], ends: ArrayBounds, orders: Array
) -> None:
    """Store bounds of log(moment - 1) as divergences; upper ones only where they are tighter."""
    lower[where] = excess_to_divergence(ends[0], orders)
    upper[where] = np.minimum(upper[where], excess_to_divergence(ends[1], orders))


def _is_small_integer(orders: Array) -> NDArray[np.bool_]:
    """Return which orders are integers up to ``LARGEST_INTEGER_ORDER``."""
    return np.asarray(
        (orders == np.floor(orders)) & (orders <= sampled_gaussian.LARGEST_INTEGER_ORDER)
    )


def _interpolate_orders(
    at_integers: Callable[[Array], Array], shift: float, orders: Array
) -> Array:
    """Return upper bounds at real orders by chords between integer ones; infinite where unknown."""
    upper = np.full_like(orders, math.inf)
    ceiling = np.ceil(orders)
    with np.errstate(over="ignore"):
        largest = ceiling * ceiling * shift * shift
    near = (ceiling <= sampled_gaussian.LARGEST_INTEGER_ORDER) & (largest < LARGEST_EXPONENT)
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
    """Return the smaller of the bounds by quasi-convexity and by Minkowski's inequality."""
    share = (orders - 1) / orders
    with np.errstate(over="ignore", invalid="ignore"):
        exponent = share * unsampled
        mixed = np.logaddexp(math.log1p(-rate), math.log(rate) + exponent)
        mixed = np.where(exponent < 600, np.log1p(rate * np.expm1(exponent)), mixed) / share
    return np.asarray(np.minimum(unsampled, mixed * (1 + 1e-14)))


# Poisson samples of exponential mechanisms: the worst release of bounded range.
#
# A release of range epsilon has its losses within some [t - epsilon, t], 0 <= t <= epsilon.
# Spread onto both ends, they form a pair with two losses. That family is closed under
# exchanging P and Q, so both directions are bounded by
#
#     max over t of E_Q[g_p(q (r - 1))],    p = a (record removed), p = 1 - a (added).
#
# For t between two points of a grid, the losses lie between the lower end of the lower point
# and the upper end of the upper point. Spread onto those, every such sum can only grow.

BOUNDED_RANGE_CELLS = 128


def add_remove_bounded_range(epsilon: float, rate: float, orders: Array) -> Array:
    """Bound the divergence of a Poisson-sampled exponential mechanism, from above.

    Args:
        epsilon: Range of the privacy loss, in nats.
        rate: Probability q with which the record joins.
        orders: Orders above 1, shape ``(k,)``.

    Returns:
        Upper bounds in nats, shape ``(k,)``.
    """
    grid = epsilon * np.arange(BOUNDED_RANGE_CELLS + 1) / BOUNDED_RANGE_CELLS
    high, low = grid[1:], grid[:-1] - epsilon
    # Q of the high loss: (1 - e^low)/(e^high - e^low), so that the mean ratio is 1.
    log_high = np.log(-np.expm1(low)) - high - np.log(-np.expm1(low - high))
    log_low = np.log(-np.expm1(-high)) - np.log(-np.expm1(low - high))
    ends = [(log_high, log_mixture_ratio(rate, high)), (log_low, log_mixture_ratio(rate, low))]
    directions = [_largest_log_excess(power, ends) for power in (orders, 1 - orders)]
    return excess_to_divergence(np.maximum(*directions), orders)


def _largest_log_excess(powers: Array, ends: list[tuple[Array, Array]]) -> Array:
    """Return, rounded up, log of the largest E_Q[g_p(q (r - 1))] over the cells of t."""
    terms = [log_mass + log_moment_excess(powers[:, None], z) for log_mass, z in ends]
    largest = max(float(np.abs(z).max()) for _, z in ends)
    relative = excess_rounding(powers, largest, 64 * UNIT_ROUNDOFF) + 1e-13 * (1 + largest)
    return np.asarray(np.logaddexp(*terms).max(axis=1) + relative)
