"""Compute bounds by Renyi differential privacy (RDP), at integer and real orders.

The Renyi divergence of order a > 1 is D_a(P || Q) = log E_Q[(P/Q)^a]/(a - 1). An RDP bound takes
the larger of both directions, and adds up under composition (Mironov 2017, arXiv:1702.07476,
Proposition 1). At integer orders this is the moments accountant.

- ``release_divergence``: D_a of one release, from both sides; its formulas are in
  ``unsampled_releases``, ``sampled_releases``, ``sampled_gaussian`` and ``random_allocation``
- ``moment_excess``: sums without cancellation, from which these divergences are computed
- private selection: D_a of the best of several runs, in this module
- ``infinite_divergence``: events under which no divergence is finite, kept as probabilities
- ``conversion``: epsilon and delta from D_a

Epsilon is the least over orders. A first pass over integer orders finds the best of them; a
second pass refines around it over real orders. The bound of each order is valid by itself, so
the selection of orders affects tightness only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dpaudit.accountants.profile_display import DisplayedProfile
from dpaudit.accountants.rdp import release_divergence
from dpaudit.accountants.rdp import release_divergence as infinite_divergence
from dpaudit.accountants.rdp.conversion import rdp_to_delta, rdp_to_epsilon
from dpaudit.accountants.rdp.release_divergence import NO_INFINITE_DIVERGENCE, InfiniteDivergence
from dpaudit.accountants.releases import (
    ReleaseCounts,
    count_releases,
    refuse_given_pairs,
    require_supported_adjacency,
)
from dpaudit.vocabulary.errors import (
    AccountingError,
    InvalidArgument,
    UnsupportedMechanism,
    require_delta,
    require_not_negative,
)
from dpaudit.vocabulary.mechanism import (
    Mechanism,
    NegativeBinomialTrials,
    PoissonTrials,
    Release,
    Selected,
    TrialCount,
)
from dpaudit.vocabulary.privacy_terms import Adjacency, Bound

# Private selection: the divergence of the best of a random number of runs.

Array = NDArray[np.float64]

ROUND_UP = 1 + 1e-13


class RunDivergence(NamedTuple):
    """Upper bounds of one run's Renyi divergence, for private selection.

    Attributes:
        orders: The orders at which the divergence of the selection is computed, shape ``(k,)``.
        divergence: Upper bounds at ``orders``.
        auxiliary_orders: Orders b that the theorems may choose freely, shape ``(m,)``.
        auxiliary: Upper bounds at ``auxiliary_orders``.
    """

    orders: Array
    divergence: Array
    auxiliary_orders: Array
    auxiliary: Array


def selection_divergence(trials: TrialCount, run: RunDivergence) -> Array:
    """Compute upper bounds of the divergence of a private selection.

    Args:
        trials: The distribution of the number of runs.
        run: Upper bounds for one run.

    Returns:
        Upper bounds at ``run.orders``, shape ``(k,)``.

    References:
        Papernot & Steinke (2022), arXiv:2110.03620, Theorems 2 and 6.
    """
    match trials:
        case NegativeBinomialTrials(shape, success):
            return _negative_binomial_divergence(shape, success, run)
        case PoissonTrials(mean):
            return _poisson_divergence(mean, run)


def expected_trials(shape: float, success: float) -> float:
    """Return the mean of the truncated negative binomial distribution, rounded up.

    E[K] = shape (1 - g)/(g (1 - g^shape)), and (1 - g)/(g log(1/g)) for shape 0.

    Args:
        shape: Above -1; 1 is the geometric distribution, 0 the logarithmic one.
        success: The success probability g, above 0 and below 1.

    Returns:
        An upper bound of E[K].

    References:
        Papernot & Steinke (2022), arXiv:2110.03620, Definition 1.
    """
    exponent = -shape * math.log(success)
    # Close to shape 0 the limit is used, times a bound: x/(1 - e^-x) <= 1 + |x| there.
    if abs(exponent) < 1e-8:
        mean = (1 - success) / (success * -math.log(success)) * (1 + abs(exponent))
    else:
        mean = shape * (1 - success) / (success * -math.expm1(-exponent))
    return mean * (1 + 1e-12)


def _negative_binomial_divergence(shape: float, success: float, run: RunDivergence) -> Array:
    """Evaluate Theorem 2 of Papernot & Steinke for shape h and success probability g.

    D_a + (1 + h) min over b of ((1 - 1/b) D_b + log(1/g)/b) + log E[K]/(a - 1)
    """
    log_inverse = -math.log(success)
    b = run.auxiliary_orders
    # The limit b -> 1 is log(1/g), without a divergence of the run.
    once = min(log_inverse, float(((1 - 1 / b) * run.auxiliary + log_inverse / b).min()))
    log_mean = max(0.0, math.log(expected_trials(shape, success)))
    return (run.divergence + (1 + shape) * once + log_mean / (run.orders - 1)) * ROUND_UP


def _poisson_divergence(mean: float, run: RunDivergence) -> Array:
    """Evaluate Theorem 6 of Papernot & Steinke for a Poisson number of runs with mean m.

    At e with exp(e) = 1 + 1/(a - 1) and delta that of one run at e, the runs that select
    something have divergence D_a + m delta + log(m)/(a - 1). No run at all adds its own
    probability exp(-m) to the moment.
    """
    at = -np.log1p(-1 / run.orders)[:, None] * (1 - 1e-15)
    deltas = rdp_to_delta(run.auxiliary_orders, run.auxiliary, at, resolution=1e-3).min(axis=1)
    # log of the moment: exp(-m) for no run, plus m exp((a - 1) (D_a + m delta)) for the rest.
    selected = math.log(mean) + (run.orders - 1) * (run.divergence + mean * deltas)
    exponent = np.logaddexp(-mean, selected) + 1e-14 * (1 + mean + np.abs(selected))
    return np.asarray(np.maximum(0.0, exponent) / (run.orders - 1) * ROUND_UP)


ArrayBounds = tuple[Array, Array]
# From orders and divergences to the values that are minimized: epsilons or deltas.
ConversionFunction = Callable[[Array, Array], Array]

INTEGER_ORDERS = (*range(2, 65), 80, 96, 128, 192, 256, 384, 512, 768, 1024)
LARGEST_REAL_ORDER = 32  # above it real orders no longer improve on integer ones
REAL_ORDERS = 1 + np.geomspace(1e-4, LARGEST_REAL_ORDER, 400)  # 3% of order - 1 apart
ORDERS_AT_ONCE = 9


def profile(
    mechanism: Mechanism, *, adjacency: Adjacency = Adjacency.ADD_OR_REMOVE_ONE
) -> RdpProfile:
    """Compute the Renyi upper bounds of a mechanism.

    Args:
        mechanism: A release, or a composition whose schedule was fixed in advance.
        adjacency: Neighbor relation.

    Returns:
        The profile; its divergences at integer orders are computed.

    Raises:
        UnsupportedMechanism: If a part has no valid bound under ``adjacency``.

    References:
        Mironov (2017), arXiv:1702.07476, Proposition 1.

    Example:
        >>> from dpaudit.accountants import Gaussian, PoissonSampled, Repeated, rdp
        >>> run = Repeated(PoissonSampled(Gaussian(noise_multiplier=1.0), 0.01), 1000)
        >>> round(rdp.profile(run).epsilon(delta=1e-5).upper, 3)
        2.101
    """
    releases = count_releases(mechanism)
    require_supported_adjacency(releases, adjacency)
    refuse_given_pairs(releases)
    finite, infinite = infinite_divergence.separate_infinite_divergence(releases, adjacency)
    found = RdpProfile(finite, adjacency, infinite)
    _ = found.upper_at_integers  # an unsupported release raises here, not later
    return found


def divergence(
    mechanism: Mechanism,
    *,
    order: float,
    adjacency: Adjacency = Adjacency.ADD_OR_REMOVE_ONE,
) -> Bound:
    """Compute the interval of the Renyi divergence, the larger of both directions.

    Args:
        mechanism: A release, or a composition whose schedule was fixed in advance.
        order: The order a of the divergence, above 1 and finite.
        adjacency: Neighbor relation.

    Returns:
        The interval, in nats; from 0 where only an upper bound is known.

    Raises:
        InvalidArgument: If the order is out of range.
        UnsupportedMechanism: If a part has no finite divergence, or none that is known.

    Example:
        >>> from dpaudit.accountants import Gaussian, rdp
        >>> bound = rdp.divergence(Gaussian(noise_multiplier=2.0), order=8.0)
        >>> round(bound.upper, 6)  # a/(2 noise_multiplier^2)
        1.0
    """
    if not 1 < order < math.inf:
        raise InvalidArgument("order", order, "above 1 and finite")
    releases = count_releases(mechanism)
    require_supported_adjacency(releases, adjacency)
    refuse_given_pairs(releases)
    finite, infinite = infinite_divergence.separate_infinite_divergence(releases, adjacency)
    if infinite != NO_INFINITE_DIVERGENCE:
        raise UnsupportedMechanism(
            mechanism,
            "with some probability it may reveal all, so its divergence is infinite: use "
            "rdp.profile, which accounts for that probability separately",
        )
    # A filter evaluates the same order before each step of a run, hence the cache.
    lower, upper = _sum_bounds(
        (times, cached_release_divergence(release, (float(order),), adjacency))
        for release, times in finite.items()
    )
    return Bound(float(lower[0]), float(upper[0]))


@dataclass(frozen=True)
class RdpProfile(DisplayedProfile):
    """Upper bounds by Renyi divergences; all lower ends of epsilon and delta are 0.

    Attributes:
        releases: Elementary releases with finite divergences, each with its count.
        adjacency: Neighbor relation.
        infinite_part: Probabilities of the events under which no divergence is finite.
    """

    releases: ReleaseCounts
    adjacency: Adjacency
    infinite_part: InfiniteDivergence = NO_INFINITE_DIVERGENCE

    def epsilon(self, *, delta: float) -> Bound:
        """Compute the interval of epsilon at ``delta`` over integer and real orders.

        Args:
            delta: At least 1e-300 and below 1.

        Returns:
            From 0 to the upper bound, in nats.

        Raises:
            InvalidArgument: If ``delta`` is out of range.
            AccountingError: If no order has a finite divergence, or ``delta`` is too small for the
                infinite part.
        """
        return self.at_real_orders(delta=delta)[0]

    def delta(self, *, epsilon: float) -> Bound:
        """Compute the interval of delta at ``epsilon`` over integer and real orders.

        Args:
            epsilon: Privacy loss in nats, at least 0 and finite.

        Returns:
            From 0 to the upper bound, at most 1.

        Raises:
            InvalidArgument: If ``epsilon`` is out of range.
            AccountingError: If no order has a finite divergence.
        """
        require_not_negative("epsilon", epsilon)
        best, _ = self._least(lambda orders, rdp: rdp_to_delta(orders, rdp, epsilon), self._refined)
        return infinite_divergence.delta_with_infinite_divergence(self.infinite_part, epsilon, best)

    def at_integer_orders(self, *, delta: float) -> tuple[Bound, float]:
        """Compute the interval of epsilon at integer orders: the moments accountant.

        Args:
            delta: At least 1e-300 and below 1.

        Returns:
            The interval, and the order at which its upper end is reached.

        Raises:
            InvalidArgument: If ``delta`` is out of range.
            AccountingError: If no order has a finite divergence, or ``delta`` is too small for the
                infinite part.
        """
        return self._epsilon(delta, lambda convert, start: start)

    def at_real_orders(self, *, delta: float) -> tuple[Bound, float]:
        """Compute the interval of epsilon at integer and real orders.

        Args:
            delta: At least 1e-300 and below 1.

        Returns:
            The interval, and the order at which its upper end is reached.

        Raises:
            InvalidArgument: If ``delta`` is out of range.
            AccountingError: If no order has a finite divergence, or ``delta`` is too small for the
                infinite part.
        """
        return self._epsilon(delta, self._refined)

    def table(self, orders: Sequence[float] = INTEGER_ORDERS) -> tuple[tuple[float, Bound], ...]:
        """Return the divergence of the finite part at each order.

        Args:
            orders: Orders above 1.

        Returns:
            Pairs of an order and its interval, without the orders whose divergence overflows.

        Raises:
            InvalidArgument: If an order is not above 1 and finite.
        """
        for order in orders:
            if not 1 < order < math.inf:
                raise InvalidArgument("order", order, "above 1 and finite")
        at = np.array(orders, dtype=np.float64)
        ends = zip(*_total_divergence(self.releases, at, self.adjacency), strict=True)
        return tuple(
            (float(order), Bound(float(lower), float(upper)))
            for order, (lower, upper) in zip(at, ends, strict=True)
            if upper < math.inf
        )

    @cached_property
    def upper_at_integers(self) -> Array:
        """Upper bounds of the divergence at ``INTEGER_ORDERS``."""
        return _sum_bounds(
            (times, cached_release_divergence(release, INTEGER_ORDERS, self.adjacency))
            for release, times in self.releases.items()
        )[1]

    def _epsilon(
        self, delta: float, refine: Callable[[ConversionFunction, _BestOrder], _BestOrder]
    ) -> tuple[Bound, float]:
        """Return epsilon's interval and the best order, given the refinement over orders."""
        require_delta("delta", delta)
        best_order = float(INTEGER_ORDERS[0])

        def finite_epsilon(share: float) -> float:
            nonlocal best_order
            best, best_order = self._least(
                lambda orders, rdp: rdp_to_epsilon(orders, rdp, share), refine
            )
            return best

        return infinite_divergence.epsilon_with_infinite_divergence(
            self.infinite_part, delta, finite_epsilon
        ), best_order

    def _least(
        self,
        convert: ConversionFunction,
        refine: Callable[[ConversionFunction, _BestOrder], _BestOrder],
    ) -> _BestOrder:
        """Return the least converted value over orders, and the order that gave it."""
        orders = np.array(INTEGER_ORDERS, dtype=np.float64)
        return refine(convert, _best_order(orders, convert(orders, self.upper_at_integers)))

    def _refined(self, convert: ConversionFunction, start: _BestOrder) -> _BestOrder:
        """Return the best of ``start`` and of the ``REAL_ORDERS`` around it, in decreasing steps.

        The grid of orders is the same for all mechanisms. So a mechanism with larger divergences
        never gets a smaller result by a better grid.
        """
        best = start
        if start[1] > LARGEST_REAL_ORDER:
            return best
        low, high = np.searchsorted(REAL_ORDERS, [start[1] - 1, start[1] + 1])
        step = max(1, int(high - low) // ORDERS_AT_ONCE)
        while True:
            at = np.arange(max(low, 0), min(high + 1, len(REAL_ORDERS)), step)
            found = _best_order(
                REAL_ORDERS[at], convert(REAL_ORDERS[at], self._upper(REAL_ORDERS[at]))
            )
            best = min(best, found)
            if step == 1:
                return best
            middle = int(np.searchsorted(REAL_ORDERS, found[1]))
            low, high, step = middle - step + 1, middle + step - 1, max(1, step // 4)

    def _upper(self, orders: Array) -> Array:
        """Return upper bounds of the divergence of the finite part at ``orders``."""
        return _total_divergence(self.releases, orders, self.adjacency)[1]


_BestOrder = tuple[float, float]  # a converted value and the order that gave it


def _best_order(orders: Array, values: Array) -> _BestOrder:
    """Return the least value and its order; raise where none is finite."""
    least = int(np.argmin(values))
    if not values[least] < math.inf:
        raise AccountingError("no Renyi order has a finite divergence: add noise")
    return float(values[least]), float(orders[least])


def _total_divergence(releases: ReleaseCounts, orders: Array, adjacency: Adjacency) -> ArrayBounds:
    """Return lower and upper bounds of the divergence of the composition, one per order."""
    return _sum_bounds(
        (times, release_divergence_bounds(release, orders, adjacency))
        for release, times in releases.items()
    )


def _sum_bounds(parts: Iterable[tuple[int, ArrayBounds]]) -> ArrayBounds:
    """Return the bounds of the composition of parts, each with its count, rounded outward."""
    each = list(parts)
    with np.errstate(over="ignore"):  # infinite where there is hardly any noise
        lower = np.sum([times * ends[0] for times, ends in each], axis=0)
        upper = np.sum([times * ends[1] for times, ends in each], axis=0)
    rounding = 1e-15 * (2 + len(each))
    return lower * (1 - rounding), upper * (1 + rounding)


@lru_cache(maxsize=8192)
def cached_release_divergence(
    release: Release, orders: tuple[float, ...], adjacency: Adjacency
) -> ArrayBounds:
    """Return ``release_divergence_bounds`` from a cache, as read-only arrays.

    Args:
        release: An elementary release.
        orders: Orders above 1, of a table that is used repeatedly.
        adjacency: Neighbor relation.

    Returns:
        Lower and upper bounds, each of the shape of ``orders``.
    """
    lower, upper = release_divergence_bounds(release, np.array(orders, dtype=np.float64), adjacency)
    lower.flags.writeable = upper.flags.writeable = False
    return lower, upper


def release_divergence_bounds(release: Release, orders: Array, adjacency: Adjacency) -> ArrayBounds:
    """Return lower and upper bounds of one release's divergence, the larger of both directions.

    Args:
        release: An elementary release with finite divergences, or a private selection.
        orders: Orders above 1, shape ``(k,)``.
        adjacency: Neighbor relation.

    Returns:
        Lower and upper bounds, each of shape ``(k,)``; 0 from below for private selection.

    Raises:
        UnsupportedMechanism: If no finite bound is known.
    """
    match release:
        case Selected(mechanism, trials):
            base = profile(mechanism, adjacency=adjacency)
            if base.infinite_part != NO_INFINITE_DIVERGENCE:
                raise UnsupportedMechanism(
                    release,
                    "with some probability one run may reveal all, and private selection among "
                    "such runs has no known bound: use runs with a finite divergence",
                )
            run = RunDivergence(
                orders,
                base._upper(orders),
                np.array(INTEGER_ORDERS, dtype=np.float64),
                base.upper_at_integers,
            )
            return np.zeros_like(orders), selection_divergence(trials, run)
        case _:
            return release_divergence.divergence_bounds(release, orders, adjacency)
