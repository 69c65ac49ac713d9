"""Split a privacy budget over several queries.

``split_budget`` divides a total (epsilon, delta) by weights. A query with twice the weight takes
twice the share of the budget:

- at delta 0, Laplace noise with epsilon_i = epsilon weight_i / sum of weights: the sum is exact
- at delta above 0, noise with 1/noise_i^2 in proportion to the weights, as squares of shifts add
  up. One common factor is calibrated, so that the accountant's epsilon of the whole composition
  meets the total: no part of the budget is lost to a composition theorem.

The queries must be fixed in advance. Their order has no meaning, and their results may be used
for other purposes only after all of them were asked.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from fractions import Fraction

import msgspec

from dpaudit.accountants import calibrate, pld
from dpaudit.vocabulary.errors import (
    InvalidArgument,
    require_count,
    require_delta,
    require_positive,
    to_python_number,
)
from dpaudit.vocabulary.mechanism import Composed, Gaussian, Laplace, Mechanism, Repeated
from dpaudit.vocabulary.privacy_terms import Adjacency, Bound

__all__ = ["BudgetSplit", "Query", "split_budget"]

NOISES = ("gaussian", "laplace")
MOST_NOISE = sys.float_info.max


class Query(msgspec.Struct, frozen=True):
    """One query of a split budget.

    Attributes:
        weight: Its share of the budget, relative to the other weights; above 0 and finite.
        noise: ``gaussian`` or ``laplace``.
        sensitivity: Largest change of the result between neighbors: in the L2 norm for Gaussian
            noise, of the number for Laplace noise; above 0 and finite.
        times: How often it is asked, each time with fresh noise; at least 1. The share covers
            all of them.

    Raises:
        InvalidArgument: If a field is out of its range.

    Example:
        >>> from dpaudit.accountants import budgets
        >>> budgets.Query(weight=2.0).noise
        'gaussian'
    """

    weight: float = 1.0
    noise: str = "gaussian"
    sensitivity: float = 1.0
    times: int = 1

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            msgspec.structs.force_setattr(self, name, to_python_number(getattr(self, name)))
        require_positive("weight", self.weight)
        require_positive("sensitivity", self.sensitivity)
        require_count("times", self.times)
        if not isinstance(self.noise, str) or self.noise not in NOISES:
            raise InvalidArgument("noise", self.noise, " or ".join(NOISES))


class BudgetSplit(msgspec.Struct, frozen=True):
    """What each query may use of a budget.

    Attributes:
        mechanisms: The mechanism of each query, by its name; repeated where it is asked often.
        noise: Standard deviation of Gaussian noise, or scale of Laplace noise, of each query, in
            the unit of its result: the noise to add.
        epsilon: Interval of epsilon of all queries together, in nats; its upper end is at most
            the total.
        delta: The delta of ``epsilon``.

    Example:
        >>> from dpaudit.accountants import budgets
        >>> found = budgets.split_budget(
        ...     {"count": budgets.Query(noise="laplace")}, target_epsilon=0.5, delta=0.0
        ... )
        >>> found.noise
        {'count': 2.0}
    """

    mechanisms: dict[str, Mechanism]
    noise: dict[str, float]
    epsilon: Bound
    delta: float

    @property
    def mechanism(self) -> Mechanism:
        """All queries together."""
        return Composed(tuple(self.mechanisms.values()))


def split_budget(
    queries: Mapping[str, Query],
    *,
    target_epsilon: float,
    delta: float,
    adjacency: Adjacency = Adjacency.ADD_OR_REMOVE_ONE,
    accountant: calibrate.Accountant = pld.profile,
) -> BudgetSplit:
    """Split a total (epsilon, delta) over queries by their weights.

    Args:
        queries: The queries by their names; at least one.
        target_epsilon: Largest epsilon of all queries together, in nats, above 0 and finite.
        delta: Delta of the total: 0 for Laplace noise alone, otherwise at least 1e-300 and below
            1.
        adjacency: Neighbor relation, which the sensitivities refer to. The sensitivity of
            Gaussian noise is that of one record added or removed.
        accountant: The ``profile`` function of the accountant that decides.

    Returns:
        The noise of each query, and epsilon of all of them, which was computed.

    Raises:
        InvalidArgument: If there is no query, an argument is out of range, or noise at delta 0
            is Gaussian.
        UnsupportedMechanism: If the accountant has no bound for the queries.

    References:
        Dong, Roth & Su (2019), arXiv:1905.02383, Corollary 3.3, for the sum of squares.

    Example:
        >>> from dpaudit.accountants import budgets
        >>> queries = {"mean": budgets.Query(weight=4.0), "histogram": budgets.Query()}
        >>> found = budgets.split_budget(queries, target_epsilon=1.0, delta=1e-6)
        >>> round(found.noise["histogram"] / found.noise["mean"], 6), found.epsilon.upper <= 1
        (2.0, True)
    """
    require_positive("target_epsilon", target_epsilon)
    if not isinstance(queries, Mapping) or not queries:
        raise InvalidArgument("queries", queries, "at least one query by its name")
    for name, query in queries.items():
        if not isinstance(query, Query):
            raise InvalidArgument(f"queries[{name!r}]", query, "a Query")
    if isinstance(delta, bool) or delta != 0:
        require_delta("delta", delta)
        return _by_squares(queries, target_epsilon, delta, adjacency, accountant)
    return _by_sums(queries, target_epsilon, adjacency)


def _by_sums(
    queries: Mapping[str, Query], target_epsilon: float, adjacency: Adjacency
) -> BudgetSplit:
    """Split pure epsilon: the exact fractions of all queries sum to at most the total."""
    for name, query in queries.items():
        if query.noise != "laplace":
            raise InvalidArgument(
                f"noise of {name}", query.noise, "laplace at delta 0: other noise needs a delta"
            )
    total = sum(Fraction(query.weight) for query in queries.values())
    noise = {}
    for name, query in queries.items():
        share = Fraction(target_epsilon) * Fraction(query.weight) / total / query.times
        exact = Fraction(query.sensitivity) / share
        _require_finite(name, query, exact)
        scale = float(exact)
        noise[name] = scale if Fraction(scale) >= exact else math.nextafter(scale, math.inf)
    mechanisms = {name: _mechanism(query, noise[name]) for name, query in queries.items()}
    epsilon = pld.profile(Composed(tuple(mechanisms.values())), adjacency=adjacency).epsilon(
        delta=0
    )
    return BudgetSplit(mechanisms, noise, epsilon, 0.0)


def _by_squares(
    queries: Mapping[str, Query],
    target_epsilon: float,
    delta: float,
    adjacency: Adjacency,
    accountant: calibrate.Accountant,
) -> BudgetSplit:
    """Split by squares of shifts, with one calibrated factor."""
    # Roots neither overflow nor vanish where weights or their sum and quotients do.
    total = math.hypot(*(math.sqrt(query.weight) for query in queries.values()))
    spread = {
        name: math.sqrt(query.times) * (total / math.sqrt(query.weight))
        for name, query in queries.items()
    }

    def noise_at(factor: float) -> dict[str, float]:
        return {
            name: min(factor * query.sensitivity * spread[name], MOST_NOISE)
            for name, query in queries.items()
        }

    def parts_at(factor: float) -> dict[str, Mechanism]:
        noise = noise_at(factor)
        return {name: _mechanism(query, noise[name]) for name, query in queries.items()}

    found = calibrate.noise_multiplier(
        lambda factor: Composed(tuple(parts_at(factor).values())),
        target_epsilon=target_epsilon,
        delta=delta,
        adjacency=adjacency,
        accountant=accountant,
    )
    noise = noise_at(found.value)
    for name, query in queries.items():
        _require_finite(name, query, noise[name])
    return BudgetSplit(parts_at(found.value), noise, found.epsilon, delta)


def _require_finite(name: str, query: Query, noise: float | Fraction) -> None:
    """Refuse a query that needs more noise than a double holds."""
    if noise >= MOST_NOISE:
        raise InvalidArgument(
            f"query {name}", query, "one whose noise is a finite number: use another unit or weight"
        )


def _mechanism(query: Query, noise: float) -> Mechanism:
    """Return the mechanism of a query with noise in the unit of its result."""
    once: Mechanism = (
        Laplace(noise, query.sensitivity)
        if query.noise == "laplace"
        else Gaussian(math.nextafter(noise / query.sensitivity, 0.0))
    )
    return once if query.times == 1 else Repeated(once, query.times)
