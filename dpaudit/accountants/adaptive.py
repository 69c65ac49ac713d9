"""Budgets for releases that are chosen on the way: what a training loop asks before a step.

Composition theorems price a sequence whose noise and rates were fixed in advance. Where they
are chosen after seeing earlier releases, two statements remain. Both need every choice to
depend on the data through earlier releases alone.

filter    A budget is declared first; a release that does not fit is refused. The whole run
          is then (epsilon, delta)-DP, however it was chosen and whenever it ends. At one
          order a: if the conditional divergences of order a add up to at most R on every
          path, the run has divergence at most R (Feldman & Zrnic 2021, arXiv:2008.11193,
          Theorem 3.1; the filter is Theorem 4.3 there).
odometer  Nothing is declared. With probability 1 - delta over the outputs, the privacy loss
          of everything so far is at most the reading, at all times at once. That is a
          statement about the loss, and no (epsilon, delta) that was promised.

*Several orders in one filter.* Give each order a its share d_a of delta, and the budget R_a
that converts to (epsilon, d_a); go on while at least one order is within its budget. Split
the outputs by the first order still within at the end: there the run coincides with the
filter of that order alone, so P(S) = sum_a P(S and a) <= e^epsilon Q(S) + sum_a d_a. Without
the shares "some order has budget left" proves nothing, since which one it is depends on
the outputs.

*The odometer.* With loss L_t and R_t(a) the divergences of order a so far, exp((a - 1)
(L_t - R_t(a))) is a supermartingale of mean at most 1 (proof of Theorem 3.1 there). By
Ville's inequality L_t <= R_t(a) + log(1/d_a)/(a - 1) at all times, except with probability
d_a; the exceptions of all orders add up to delta. This is the route of Whitehouse, Ramdas,
Rogers & Wu 2023 (arXiv:2203.05481, Theorem 3), with Renyi divergences in place of theirs.

A filter by trade-off functions or privacy loss distributions would be tighter; the natural
one is not valid in general (Tran et al. 2026, arXiv:2602.06756), so none is offered.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

from dpaudit.accountants import rdp
from dpaudit.vocabulary.adjacency import Adjacency
from dpaudit.vocabulary.bound import Bound
from dpaudit.vocabulary.errors import (
    AccountingError,
    BudgetExceeded,
    require_delta,
)
from dpaudit.vocabulary.ledger import RenyiBudget
from dpaudit.vocabulary.mechanism import Mechanism

# Distances from 1 of the default orders, over that of the best one for Gaussians. Sampling
# wants smaller orders; each further order costs a share of delta.
SHRUNK = (0.4, 0.7, 1.0)
ODOMETER_ORDERS = tuple(1 + 2.0**k for k in range(-1, 8))
ROUNDING = 1e-14
LEAST_PRICE = 1e-300  # what costs nothing must not be divided by

Spent = dict[float, float]


def declare(
    *,
    epsilon: float,
    delta: float,
    intended: Mechanism | None = None,
    adjacency: Adjacency = Adjacency.ADD_OR_REMOVE_ONE,
) -> RenyiBudget:
    """Return the budget to be declared, and booked, before the first release.

    The promise holds for any orders. Those chosen here only decide how much fits into it:
    the one that is best for what is ``intended``, or three that suit most Gaussians. To
    watch others, build a ``RenyiBudget``.

    Args:
        epsilon: What the whole run shall keep, above 0.
        delta: The delta that it shall keep it at.
        intended: What most releases are going to look like, as far as is known.
        adjacency: Which data sets are neighbours.

    Raises:
        InvalidArgument: an argument is out of range.
        UnsupportedMechanism: the Renyi divergence of ``intended`` is not known.
    """
    RenyiBudget(epsilon, delta, (2.0,))  # what follows takes any number for granted
    if intended is None:
        best = _best_for_gaussians(epsilon, delta / len(SHRUNK))
        return RenyiBudget(epsilon, delta, tuple(1 + (best - 1) * s for s in SHRUNK))
    best = _best_for_gaussians(epsilon, delta)
    # Sampling makes high orders dear: what it wants lies below the best for Gaussians.
    near = [1 + (best - 1) * 2 ** (k / 8) for k in range(-32, 3)]
    order = _best(near, epsilon, delta, lambda a: _divergence(intended, a, adjacency))
    return RenyiBudget(epsilon, delta, (order,))


def _best_for_gaussians(epsilon: float, delta: float) -> float:
    orders = [1 + 10 ** (k / 20) for k in range(-30, 161)]
    return _best(orders, epsilon, delta, lambda order: order)  # they cost order * mu^2/2


def _best(
    orders: list[float], epsilon: float, delta: float, price: Callable[[float], float]
) -> float:
    """Return the order whose limit buys most of what has this price."""
    return max(orders, key=lambda a: _limit(a, epsilon, delta) / max(price(a), LEAST_PRICE))


def limits(budget: RenyiBudget) -> Spent:
    """Return the Renyi divergence that each order may reach, rounded down; at most 0 for none.

    epsilon = R + log(1 - 1/a) - (log d + log a)/(a - 1) at the order's share d of delta
    (Canonne, Kamath & Steinke 2020, arXiv:2004.00010, Proposition 12), solved for R.
    """
    share = budget.delta / len(budget.orders)
    return {order: _limit(order, budget.epsilon, share) for order in budget.orders}


def _limit(order: float, epsilon: float, delta: float) -> float:
    penalty = (math.log(delta) + math.log(order)) / (order - 1)
    gain = -math.log1p(-1 / order)
    return epsilon + gain + penalty - ROUNDING * (epsilon + gain + abs(penalty))


class RenyiFilter:
    """Admits releases until a budget declared in advance is used up.

    However the admitted releases are chosen, after seeing all earlier ones, and whenever the
    run ends, it is (``budget.epsilon``, ``budget.delta``)-DP. What was spent short of that is
    no guarantee: a smaller epsilon has to be declared first.
    """

    def __init__(
        self, budget: RenyiBudget, *, adjacency: Adjacency = Adjacency.ADD_OR_REMOVE_ONE
    ) -> None:
        self.budget, self.adjacency = budget, adjacency
        self._limits = limits(budget)
        self._spent: Spent = dict.fromkeys(budget.orders, 0.0)

    def admits(self, mechanism: Mechanism) -> bool:
        """Whether ``mechanism`` may be released next; asking leaves no trace.

        Raises:
            UnsupportedMechanism: its Renyi divergence is not known under the adjacency.
        """
        return self._within(self._after(mechanism))

    def spend(self, mechanism: Mechanism) -> None:
        """Book ``mechanism``, before it is released.

        Raises:
            BudgetExceeded: the budget does not admit it; nothing was booked.
            UnsupportedMechanism: its Renyi divergence is not known under the adjacency.
        """
        after = self._after(mechanism)
        if not self._within(after):
            raise BudgetExceeded(
                f"{mechanism!r} does not fit what is left of epsilon {self.budget.epsilon:g} at "
                f"delta {self.budget.delta:g}: release something cheaper, or stop"
            )
        self._spent = after

    def spent(self) -> Spent:
        """Return the Renyi divergence so far, by order; an upper bound, which may be infinite."""
        return dict(self._spent)

    def share_spent(self) -> float:
        """Return how much of its limit the order with the most left has spent, 0 to 1."""
        paid = [(self._spent[order], limit) for order, limit in self._limits.items()]
        return min((spent / limit for spent, limit in paid if limit > 0), default=1.0)

    def _within(self, spent: Spent) -> bool:
        # An order without a budget watches nothing, not even releases that cost nothing.
        return any(limit > 0 and spent[order] <= limit for order, limit in self._limits.items())

    def _after(self, mechanism: Mechanism) -> Spent:
        return _added(self._spent, mechanism, self.adjacency)


class RenyiOdometer:
    """Reads off, at any time, a bound on the privacy loss of everything released so far.

    With probability at least 1 - ``delta`` over the outputs on either of two neighbours, the
    loss log(P/Q) of all outputs so far is at most ``epsilon()``, at all times at once. So one
    may look at it after every release. It is no budget: a run that shall be (epsilon,
    delta)-DP for an epsilon named in advance needs a filter.
    """

    def __init__(
        self,
        *,
        delta: float,
        orders: tuple[float, ...] = ODOMETER_ORDERS,
        adjacency: Adjacency = Adjacency.ADD_OR_REMOVE_ONE,
    ) -> None:
        require_delta("delta", delta)
        RenyiBudget(1.0, delta, orders)  # the orders are held to the same rules
        self.delta, self.adjacency = delta, adjacency
        self._spent: Spent = dict.fromkeys(orders, 0.0)

    def spend(self, mechanism: Mechanism) -> None:
        """Book ``mechanism``, before it is released.

        Raises:
            UnsupportedMechanism: its Renyi divergence is not known under the adjacency.
        """
        self._spent = _added(self._spent, mechanism, self.adjacency)

    def epsilon(self) -> float:
        """Return the bound on the loss so far, rounded up; 0 where nothing was released.

        Raises:
            AccountingError: no order has a finite divergence.
        """
        if not any(self._spent.values()):
            return 0.0
        penalty = math.log(len(self._spent)) - math.log(self.delta)
        reading = min(spent + penalty / (order - 1) for order, spent in self._spent.items())
        if not reading < math.inf:
            raise AccountingError("no Renyi order has a finite divergence: use more noise")
        return reading * (1 + ROUNDING)


def price(
    releases: Iterable[Mechanism],
    budget: RenyiBudget,
    *,
    adjacency: Adjacency = Adjacency.ADD_OR_REMOVE_ONE,
) -> Bound:
    """Return what is certain of epsilon at ``budget.delta`` of a schedule chosen on the way.

    Args:
        releases: What was released, in order.
        budget: The filter's budget, declared before the first release; which releases were
            booked cannot show that, so whoever asks must know.
        adjacency: Which data sets are neighbours.

    Returns:
        From 0 to the budget's epsilon, however little of it was spent.

    Raises:
        BudgetExceeded: a filter would not have admitted all of it: then nothing is certain.
        UnsupportedMechanism: a Renyi divergence is not known under ``adjacency``.
    """
    replayed = RenyiFilter(budget, adjacency=adjacency)
    for release in releases:
        replayed.spend(release)
    return Bound(0.0, budget.epsilon)


def _added(spent: Spent, mechanism: Mechanism, adjacency: Adjacency) -> Spent:
    """Return what will have been spent after ``mechanism``, rounded up."""
    return {
        order: math.nextafter(before + _divergence(mechanism, order, adjacency), math.inf)
        for order, before in spent.items()
    }


def _divergence(mechanism: Mechanism, order: float, adjacency: Adjacency) -> float:
    try:
        return rdp.divergence(mechanism, order=order, adjacency=adjacency).upper
    except AccountingError:  # no finite number is certain
        return math.inf
