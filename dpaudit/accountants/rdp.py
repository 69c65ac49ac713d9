"""Renyi differential privacy: the moments accountant and its refinement to real orders.

divergence   D_a(P || Q) of each release, the larger of both directions (``renyi``); they
             compose by addition (Mironov 2017, arXiv:1702.07476, Proposition 1).
selection    a private choice among runs, priced from one run (``selection``).
outside      what has no finite divergence, kept beside the divergences (``outside``).
conversion   the least epsilon over orders (``conversion``).

A first pass over whole orders finds the best of them; a second narrows in on the best real
one next to it. Each order's bound holds by itself: where one looks costs tightness at most.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray

from dpaudit.accountants import outside, renyi, selection
from dpaudit.accountants.conversion import to_delta, to_epsilon
from dpaudit.accountants.outside import NOTHING, Outside
from dpaudit.accountants.releases import Releases, count_releases, require_meaning
from dpaudit.vocabulary.adjacency import Adjacency
from dpaudit.vocabulary.bound import Bound
from dpaudit.vocabulary.errors import (
    AccountingError,
    InvalidArgument,
    UnsupportedMechanism,
    require_delta,
)
from dpaudit.vocabulary.mechanism import (
    Mechanism,
    Release,
    Selected,
)

Array = NDArray[np.float64]
Ends = tuple[Array, Array]
Price = Callable[[Array, Array], Array]  # of orders and divergences: what is to be least

INTEGER_ORDERS = (*range(2, 65), 80, 96, 128, 192, 256, 384, 512, 768, 1024)
# Between whole orders beyond this one nothing is gained.
LARGEST_REAL_ORDER = 32
REAL_ORDERS = 1 + np.geomspace(1e-4, LARGEST_REAL_ORDER, 400)  # 3% of order - 1 apart
ORDERS_AT_ONCE = 9


def profile(
    mechanism: Mechanism, *, adjacency: Adjacency = Adjacency.ADD_OR_REMOVE_ONE
) -> RdpProfile:
    """Return the Renyi upper bounds of ``mechanism``.

    Raises:
        UnsupportedMechanism: a part has no valid statement under ``adjacency``.
    """
    releases = count_releases(mechanism)
    require_meaning(releases, adjacency)
    inside, beside = outside.split(releases, adjacency)
    answer = RdpProfile(inside, adjacency, beside)
    _ = answer.at_whole_orders  # what cannot be priced is refused here, not later
    return answer


def divergence(
    mechanism: Mechanism,
    *,
    order: float,
    adjacency: Adjacency = Adjacency.ADD_OR_REMOVE_ONE,
) -> Bound:
    """Return the interval of the Renyi divergence, the larger of both directions.

    Where only an upper bound is known, the lower end is 0.

    Args:
        mechanism: A release or a composition whose schedule was fixed in advance.
        order: The order a of the divergence, above 1.
        adjacency: Which data sets are neighbours.

    Raises:
        UnsupportedMechanism: a part has no finite divergence, or none that is known.
    """
    if not 1 < order < math.inf:
        raise InvalidArgument("order", order, "above 1 and finite")
    releases = count_releases(mechanism)
    require_meaning(releases, adjacency)
    inside, beside = outside.split(releases, adjacency)
    if beside != NOTHING:
        raise UnsupportedMechanism(
            mechanism,
            "with some probability it may reveal all, so no divergence of it is finite: "
            "rdp.profile keeps that probability beside the divergence",
        )
    # One order is asked for again and again, before each step of a run.
    lower, upper = _sum(
        (times, release_divergences(release, (float(order),), adjacency))
        for release, times in inside.items()
    )
    return Bound(float(lower[0]), float(upper[0]))


@dataclass(frozen=True)
class RdpProfile:
    """Upper bounds by Renyi divergences; from below they know 0 alone.

    ``releases`` have finite divergences; ``outside`` is what they leave out.
    """

    releases: Releases
    adjacency: Adjacency
    outside: Outside = NOTHING

    def epsilon(self, *, delta: float) -> Bound:
        """Return the interval of epsilon at ``delta`` over real orders, whole ones among them."""
        return self.at_real_orders(delta=delta)[0]

    def delta(self, *, epsilon: float) -> Bound:
        """Return the interval of delta at ``epsilon``."""
        if not 0 <= epsilon < math.inf:
            raise InvalidArgument("epsilon", epsilon, "at least 0 and finite")
        best, _ = self._least(lambda orders, rdp: to_delta(orders, rdp, epsilon), self._narrowed)
        return outside.delta_at(self.outside, epsilon, best)

    def at_integer_orders(self, *, delta: float) -> tuple[Bound, float]:
        """Return the moments accountant's interval, and the order that gave it."""
        return self._epsilon(delta, lambda price, start: start)

    def at_real_orders(self, *, delta: float) -> tuple[Bound, float]:
        """Return the interval over real orders, integers among them, and the best order."""
        return self._epsilon(delta, self._narrowed)

    def table(self, orders: Sequence[float] = INTEGER_ORDERS) -> tuple[tuple[float, Bound], ...]:
        """Return each order with its divergence; what is ``outside`` is not in it.

        An order whose divergence no double holds is left out.
        """
        for order in orders:
            if not 1 < order < math.inf:
                raise InvalidArgument("order", order, "above 1 and finite")
        at = np.array(orders, dtype=np.float64)
        ends = zip(*_of_all(self.releases, at, self.adjacency), strict=True)
        return tuple(
            (float(order), Bound(float(lower), float(upper)))
            for order, (lower, upper) in zip(at, ends, strict=True)
            if upper < math.inf
        )

    @cached_property
    def at_whole_orders(self) -> Array:
        """Upper ends of the divergence at ``INTEGER_ORDERS``."""
        return _sum(
            (times, release_divergences(release, INTEGER_ORDERS, self.adjacency))
            for release, times in self.releases.items()
        )[1]

    def _epsilon(
        self, delta: float, refine: Callable[[Price, _Best], _Best]
    ) -> tuple[Bound, float]:
        require_delta("delta", delta)
        best_order = float(INTEGER_ORDERS[0])

        def rest(share: float) -> float:
            nonlocal best_order
            best, best_order = self._least(
                lambda orders, rdp: to_epsilon(orders, rdp, share), refine
            )
            return best

        return outside.epsilon_at(self.outside, delta, rest), best_order

    def _least(self, price: Price, refine: Callable[[Price, _Best], _Best]) -> _Best:
        """Return the least price, and the order that gave it."""
        orders = np.array(INTEGER_ORDERS, dtype=np.float64)
        return refine(price, _best(orders, price(orders, self.at_whole_orders)))

    def _narrowed(self, price: Price, start: _Best) -> _Best:
        """Return the best of ``start`` and of ``REAL_ORDERS`` next to it, in ever smaller steps.

        The orders are the same for every ledger: so a dearer one is not made to look cheaper.
        """
        best = start
        if start[1] > LARGEST_REAL_ORDER:
            return best
        low, high = np.searchsorted(REAL_ORDERS, [start[1] - 1, start[1] + 1])
        step = max(1, int(high - low) // ORDERS_AT_ONCE)
        while True:
            at = np.arange(max(low, 0), min(high + 1, len(REAL_ORDERS)), step)
            found = _best(REAL_ORDERS[at], price(REAL_ORDERS[at], self._upper(REAL_ORDERS[at])))
            best = min(best, found)
            if step == 1:
                return best
            middle = int(np.searchsorted(REAL_ORDERS, found[1]))
            low, high, step = middle - step + 1, middle + step - 1, max(1, step // 4)

    def _upper(self, orders: Array) -> Array:
        return _of_all(self.releases, orders, self.adjacency)[1]


_Best = tuple[float, float]  # a price and the order that gave it


def _best(orders: Array, prices: Array) -> _Best:
    least = int(np.argmin(prices))
    if not prices[least] < math.inf:
        raise AccountingError("at no order is there a finite Renyi divergence: add noise")
    return float(prices[least]), float(orders[least])


def _of_all(releases: Releases, orders: Array, adjacency: Adjacency) -> Ends:
    """Return lower and upper ends of the whole ledger's divergence, one for each order."""
    return _sum(
        (times, release_ends(release, orders, adjacency)) for release, times in releases.items()
    )


def _sum(parts: Iterable[tuple[int, Ends]]) -> Ends:
    """Return the ends of what composes, each with its count."""
    each = list(parts)
    lower = np.sum([times * ends[0] for times, ends in each], axis=0)
    upper = np.sum([times * ends[1] for times, ends in each], axis=0)
    rounding = 1e-15 * (2 + len(each))
    return lower * (1 - rounding), upper * (1 + rounding)


@lru_cache(maxsize=8192)
def release_divergences(release: Release, orders: tuple[float, ...], adjacency: Adjacency) -> Ends:
    """Return ``release_ends`` at orders that are asked for again and again."""
    lower, upper = release_ends(release, np.array(orders, dtype=np.float64), adjacency)
    lower.flags.writeable = upper.flags.writeable = False
    return lower, upper


def release_ends(release: Release, orders: Array, adjacency: Adjacency) -> Ends:
    """Return lower and upper ends of one release's divergence, the larger of both directions."""
    match release:
        case Selected(mechanism, trials):
            base = profile(mechanism, adjacency=adjacency)
            if base.outside != NOTHING:
                raise UnsupportedMechanism(
                    release,
                    "with some probability one run may reveal all, and no cost of selection "
                    "from such runs is known: select from runs with a finite divergence",
                )
            run = selection.Run(
                orders,
                base._upper(orders),
                np.array(INTEGER_ORDERS, dtype=np.float64),
                base.at_whole_orders,
            )
            return np.zeros_like(orders), selection.selected(trials, run)
        case _:
            return renyi.bounds(release, orders, adjacency)
