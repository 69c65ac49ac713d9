"""Limit and measure the privacy loss of adaptive schedules: Renyi filters and odometers.

Composition theorems require noise and sampling rates that were fixed in advance. Where they
are chosen after earlier releases were observed, two statements remain. Both require that every
choice depends on the data through earlier releases only.

Filter: a budget is declared first, and a release that does not fit is refused. The whole run is
then (epsilon, delta)-DP, however it was chosen and whenever it ends. For one order a: if the
conditional divergences of order a add up to at most R on every path, the run has divergence at
most R (Feldman & Zrnic 2021, arXiv:2008.11193, Theorem 3.1; the filter is Theorem 4.3 there).

Odometer: nothing is declared. With probability 1 - delta over the outputs, the privacy loss of
all releases so far is at most the reading, at all times simultaneously. This is a statement about
the loss, and no (epsilon, delta) guarantee.

Several orders in one filter: each order a gets a share d_a of delta, and the budget R_a that
converts to (epsilon, d_a). Releases are admitted while at least one order is within its budget.
Partition the outputs by the first order that is within its budget at the end. On that part the
run coincides with the filter of that order alone, so P(S) = sum_a P(S and a) <= e^epsilon Q(S) +
sum_a d_a. Without the shares, "some order has budget left" proves nothing, since which order it
is depends on the outputs.

Proof of the odometer: with loss L_t and R_t(a) the divergences of order a so far,
exp((a - 1) (L_t - R_t(a))) is a supermartingale of mean at most 1 (proof of Theorem 3.1 there).
By Ville's inequality, L_t <= R_t(a) + log(1/d_a)/(a - 1) at all times, except with probability
d_a. The exceptions of all orders add up to delta. Whitehouse, Ramdas, Rogers & Wu 2023
(arXiv:2203.05481, Theorem 3) take the same route; here Renyi divergences replace theirs.

A filter by trade-off functions or privacy loss distributions would be tighter. The natural one is
not valid in general (Tran et al. 2026, arXiv:2602.06756), so none is offered.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

from dpaudit.accountants import rdp
from dpaudit.vocabulary.errors import (
    AccountingError,
    BudgetExceeded,
    require_delta,
)
from dpaudit.vocabulary.ledger import RenyiBudget
from dpaudit.vocabulary.mechanism import Mechanism
from dpaudit.vocabulary.privacy_terms import Adjacency, Bound

# Default orders: order - 1 as multiples of the best one for Gaussians. Sampled releases need
# smaller orders, and each further order takes a share of delta.
ORDER_FACTORS = (0.4, 0.7, 1.0)
ODOMETER_ORDERS = tuple(1 + 2.0**k for k in range(-1, 8))
FILTER_ROUNDING = 1e-14
LEAST_DIVERGENCE = 1e-300  # keeps a zero divergence out of a denominator

DivergenceByOrder = dict[float, float]


def declare_budget(
    *,
    epsilon: float,
    delta: float,
    intended: Mechanism | None = None,
    adjacency: Adjacency = Adjacency.ADD_OR_REMOVE_ONE,
) -> RenyiBudget:
    """Choose the budget to declare and record before the first release.

    The guarantee holds for any orders. The orders chosen here only determine how many releases
    fit: the best order for ``intended``, or three that suit most Gaussians. For other orders,
    build a ``RenyiBudget`` directly.

    Args:
        epsilon: Epsilon of the whole run, in nats, above 0.
        delta: Delta of the whole run.
        intended: A mechanism similar to most of the releases, if known.
        adjacency: Neighbor relation.

    Returns:
        The budget with its orders.

    Raises:
        InvalidArgument: If an argument is out of range.
        UnsupportedMechanism: If the Renyi divergence of ``intended`` is not known.

    Example:
        >>> from dpaudit.accountants import Gaussian, privacy_filters
        >>> budget = privacy_filters.declare_budget(epsilon=1.0, delta=1e-5)
        >>> [round(order, 1) for order in budget.orders]
        [8.1, 13.4, 18.8]
    """
    RenyiBudget(epsilon, delta, (2.0,))  # validates epsilon and delta
    if intended is None:
        best = _best_order_for_gaussians(epsilon, delta / len(ORDER_FACTORS))
        return RenyiBudget(epsilon, delta, tuple(1 + (best - 1) * s for s in ORDER_FACTORS))
    best = _best_order_for_gaussians(epsilon, delta)
    # Under sampling high orders cost more, so the best order is below that for Gaussians.
    near = [1 + (best - 1) * 2 ** (k / 8) for k in range(-32, 3)]
    order = _best_order(near, epsilon, delta, lambda a: _divergence(intended, a, adjacency))
    return RenyiBudget(epsilon, delta, (order,))


def _best_order_for_gaussians(epsilon: float, delta: float) -> float:
    """Return the order of a grid at which most Gaussian releases fit; their D_a is a mu^2/2."""
    orders = [1 + 10 ** (k / 20) for k in range(-30, 161)]
    return _best_order(orders, epsilon, delta, lambda order: order)


def _best_order(
    orders: list[float], epsilon: float, delta: float, divergence_at: Callable[[float], float]
) -> float:
    """Return the order with the largest ratio of limit to the divergence of one release."""
    return max(
        orders,
        key=lambda a: _limit(a, epsilon, delta) / max(divergence_at(a), LEAST_DIVERGENCE),
    )


def divergence_limits(budget: RenyiBudget) -> DivergenceByOrder:
    """Compute the Renyi divergence that each order of a budget may reach.

    With d = delta/number of orders, this solves for R the conversion

        epsilon = R + log(1 - 1/a) - (log d + log a)/(a - 1).

    Args:
        budget: Epsilon, delta and orders.

    Returns:
        The limit of each order, rounded down; an order whose limit is at most 0 admits nothing.

    References:
        Canonne, Kamath & Steinke (2020), arXiv:2004.00010, Proposition 12.
    """
    share = budget.delta / len(budget.orders)
    return {order: _limit(order, budget.epsilon, share) for order in budget.orders}


def _limit(order: float, epsilon: float, delta: float) -> float:
    """Return the limit R of one order for its epsilon and delta, rounded down."""
    penalty = (math.log(delta) + math.log(order)) / (order - 1)
    gain = -math.log1p(-1 / order)
    return epsilon + gain + penalty - FILTER_ROUNDING * (epsilon + gain + abs(penalty))


class RenyiFilter:
    """A privacy filter: it admits releases until a budget declared in advance is exhausted.

    Admitted releases may be chosen after observing all earlier ones, and the run may end at any
    time: it is (``budget.epsilon``, ``budget.delta``)-DP. A partly spent budget gives no smaller
    epsilon; a smaller epsilon has to be declared first.

    Args:
        budget: The budget, declared before the first release.
        adjacency: Neighbor relation.

    Example:
        >>> from dpaudit.accountants import Gaussian, privacy_filters
        >>> budget = privacy_filters.declare_budget(epsilon=1.0, delta=1e-5)
        >>> guard = privacy_filters.RenyiFilter(budget)
        >>> guard.admits(Gaussian(noise_multiplier=1.0))
        False
        >>> guard.spend(Gaussian(noise_multiplier=10.0))
        >>> 0 < guard.share_spent() < 1
        True
    """

    def __init__(
        self, budget: RenyiBudget, *, adjacency: Adjacency = Adjacency.ADD_OR_REMOVE_ONE
    ) -> None:
        self.budget, self.adjacency = budget, adjacency
        self._limits = divergence_limits(budget)
        self._spent: DivergenceByOrder = dict.fromkeys(budget.orders, 0.0)

    def admits(self, mechanism: Mechanism) -> bool:
        """Return whether ``mechanism`` may be released next; nothing is recorded.

        Args:
            mechanism: The next release, or a composition that is released as a whole.

        Returns:
            True if at least one order stays within its limit.

        Raises:
            UnsupportedMechanism: If its Renyi divergence is not known under the adjacency.
        """
        return self._within(self._after(mechanism))

    def spend(self, mechanism: Mechanism) -> None:
        """Record ``mechanism`` before it is released.

        Args:
            mechanism: The next release, or a composition that is released as a whole.

        Raises:
            BudgetExceeded: If the budget does not admit it; nothing was recorded.
            UnsupportedMechanism: If its Renyi divergence is not known under the adjacency.
        """
        after = self._after(mechanism)
        if not self._within(after):
            raise BudgetExceeded(
                f"{mechanism!r} does not fit into the rest of epsilon {self.budget.epsilon:g} at "
                f"delta {self.budget.delta:g}: release with more noise, or stop"
            )
        self._spent = after

    def spent(self) -> DivergenceByOrder:
        """Return the Renyi divergence so far by order: upper bounds, which may be infinite."""
        return dict(self._spent)

    def share_spent(self) -> float:
        """Return the spent share, 0 to 1, of the order that has spent the least of its limit."""
        pairs = [(self._spent[order], limit) for order, limit in self._limits.items()]
        return min((spent / limit for spent, limit in pairs if limit > 0), default=1.0)

    def _within(self, spent: DivergenceByOrder) -> bool:
        """Return whether at least one order with a positive limit is within it."""
        # An order with no positive limit admits nothing, not even releases of divergence 0.
        return any(limit > 0 and spent[order] <= limit for order, limit in self._limits.items())

    def _after(self, mechanism: Mechanism) -> DivergenceByOrder:
        """Return the divergences after ``mechanism``, by order."""
        return _divergence_after(self._spent, mechanism, self.adjacency)


class RenyiOdometer:
    """A privacy odometer: a bound on the privacy loss of all releases so far, at any time.

    Let L be the loss log(P/Q) of all outputs so far. With probability at least 1 - ``delta``
    over the outputs on either of two neighbors, L <= ``epsilon()`` at all times simultaneously.
    So it may be read after every release. It is not a budget: a run that must be
    (epsilon, delta)-DP for an epsilon fixed in advance needs a filter.

    Args:
        delta: Probability of the outputs that the statement excludes.
        orders: Renyi orders, each above 1.
        adjacency: Neighbor relation.

    Raises:
        InvalidArgument: If ``delta`` or an order is out of range.

    Example:
        >>> from dpaudit.accountants import Gaussian, privacy_filters
        >>> odometer = privacy_filters.RenyiOdometer(delta=1e-5)
        >>> odometer.spend(Gaussian(noise_multiplier=10.0))
        >>> round(odometer.epsilon(), 4)
        0.5392
    """

    def __init__(
        self,
        *,
        delta: float,
        orders: tuple[float, ...] = ODOMETER_ORDERS,
        adjacency: Adjacency = Adjacency.ADD_OR_REMOVE_ONE,
    ) -> None:
        require_delta("delta", delta)
        RenyiBudget(1.0, delta, orders)  # validates the orders
        self.delta, self.adjacency = delta, adjacency
        self._spent: DivergenceByOrder = dict.fromkeys(orders, 0.0)

    def spend(self, mechanism: Mechanism) -> None:
        """Record ``mechanism`` before it is released.

        Args:
            mechanism: The next release, or a composition that is released as a whole.

        Raises:
            UnsupportedMechanism: If its Renyi divergence is not known under the adjacency.
        """
        self._spent = _divergence_after(self._spent, mechanism, self.adjacency)

    def epsilon(self) -> float:
        """Return the bound on the privacy loss so far.

        Returns:
            min over orders of R(a) + log(1/d_a)/(a - 1), in nats, rounded up; 0 before any release.

        Raises:
            AccountingError: If no order has a finite divergence.
        """
        if not any(self._spent.values()):
            return 0.0
        # log(1/d_a) with equal shares d_a = delta/number of orders.
        penalty = math.log(len(self._spent)) - math.log(self.delta)
        reading = min(spent + penalty / (order - 1) for order, spent in self._spent.items())
        if not reading < math.inf:
            raise AccountingError("no Renyi order has a finite divergence: add noise")
        return reading * (1 + FILTER_ROUNDING)


def epsilon_under_budget(
    releases: Iterable[Mechanism],
    budget: RenyiBudget,
    *,
    adjacency: Adjacency = Adjacency.ADD_OR_REMOVE_ONE,
) -> Bound:
    """Return the interval of epsilon at ``budget.delta`` of an adaptive schedule.

    Args:
        releases: The releases in order.
        budget: The filter's budget. The caller must know that it was declared before the first
            release; the releases cannot show that.
        adjacency: Neighbor relation.

    Returns:
        From 0 to the budget's epsilon, however little of it was spent.

    Raises:
        BudgetExceeded: If a filter would not have admitted all releases; then nothing holds.
        UnsupportedMechanism: If a Renyi divergence is not known under ``adjacency``.

    Example:
        >>> from dpaudit.accountants import Gaussian, privacy_filters
        >>> budget = privacy_filters.declare_budget(epsilon=1.0, delta=1e-5)
        >>> privacy_filters.epsilon_under_budget([Gaussian(20.0), Gaussian(10.0)], budget)
        Bound(lower=0.0, upper=1.0)
    """
    replayed = RenyiFilter(budget, adjacency=adjacency)
    for release in releases:
        replayed.spend(release)
    return Bound(0.0, budget.epsilon)


def _divergence_after(
    spent: DivergenceByOrder, mechanism: Mechanism, adjacency: Adjacency
) -> DivergenceByOrder:
    """Return the divergences by order after ``mechanism``, rounded up."""
    return {
        order: math.nextafter(before + _divergence(mechanism, order, adjacency), math.inf)
        for order, before in spent.items()
    }


def _divergence(mechanism: Mechanism, order: float, adjacency: Adjacency) -> float:
    """Return the upper bound of D_a; infinite where no finite one can be certified."""
    try:
        return rdp.divergence(mechanism, order=order, adjacency=adjacency).upper
    except AccountingError:  # no finite number is certain
        return math.inf
