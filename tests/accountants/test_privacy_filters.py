"""Filters and odometers keep their word however releases are chosen on the way."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpaudit.accountants import privacy_filters, rdp
from dpaudit.accountants.privacy_filters import RenyiFilter, RenyiOdometer
from dpaudit.vocabulary.errors import BudgetExceeded, InvalidArgument, UnsupportedMechanism
from dpaudit.vocabulary.ledger import RenyiBudget
from dpaudit.vocabulary.mechanism import (
    Gaussian,
    PoissonSampled,
    RandomizedResponse,
    Repeated,
)
from dpaudit.vocabulary.privacy_terms import Adjacency, Bound
from tests.accountants.mechanisms import between_powers, deltas, gaussians, in_passing

REPLACE = Adjacency.REPLACE_ONE
Path = tuple[tuple[float, bool], ...]  # truth probability and whether the truth was told
Analyst = Callable[[Path], list[float]]  # what it would ask next, best first

# ---------------------------------------------------------------------------------------
# An analyst asks randomized responses and picks each after seeing the answers to the last.
# Its whole tree is walked: P and Q of every path are products.


def wanders(seed: int) -> Analyst:
    def ask(path: Path) -> list[float]:
        draw = random.Random(f"{seed} {path}")
        return [draw.uniform(0.51, 0.99) for _ in range(3)]

    return ask


def presses_on_when_lucky(path: Path) -> list[float]:
    """Ask little of everyone, and all that is left of those who seem to be caught."""
    lead = sum(1 if truth else -1 for _, truth in path)
    return [0.97, 0.9, 0.75, 0.6] if lead >= 1 else [0.6]


def spends_each_order_in_turn(path: Path) -> list[float]:
    """Large answers are cheap at small orders, many small ones at large orders."""
    caught = sum(truth for _, truth in path) > len(path) / 2
    return [0.99, 0.8, 0.6] if caught else [0.55]


ANALYSTS = [presses_on_when_lucky, spends_each_order_in_turn, *map(wanders, range(4))]
DEEPEST = 7


def masses(path: Path) -> tuple[float, float]:
    """Return the probability of a path where the truth is as told, and where it is not."""
    p = math.prod(truth if told else 1 - truth for truth, told in path)
    q = math.prod(1 - truth if told else truth for truth, told in path)
    return p, q


def leaves(analyst: Analyst, budget: RenyiBudget, path: Path = ()) -> list[Path]:
    """Return all ends of the run: the filter refuses all that is asked, or it is enough."""
    guard = RenyiFilter(budget, adjacency=REPLACE)
    for truth, _ in path:
        guard.spend(RandomizedResponse(truth))
    for truth in analyst(path) if len(path) < DEEPEST else []:
        if guard.admits(RandomizedResponse(truth)):
            return [
                leaf
                for told in (True, False)
                for leaf in leaves(analyst, budget, (*path, (truth, told)))
            ]
    return [path]


def true_delta(paths: list[Path], epsilon: float) -> float:
    both = [masses(path) for path in paths]
    assert math.isclose(sum(p for p, _ in both), 1)
    assert math.isclose(sum(q for _, q in both), 1)
    return max(
        sum(max(0.0, p - math.exp(epsilon) * q) for p, q in both),
        sum(max(0.0, q - math.exp(epsilon) * p) for p, q in both),
    )


BUDGETS = [
    privacy_filters.declare_budget(epsilon=2.0, delta=0.05),
    privacy_filters.declare_budget(epsilon=4.0, delta=1e-3),
    RenyiBudget(3.0, 0.02, (3.0,)),
    RenyiBudget(5.0, 0.05, (1.5, 2.0, 4.0, 20.0)),
]


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("analyst", ANALYSTS)
def test_no_analyst_gets_more_out_of_a_filter_than_was_declared(analyst, budget):
    ends = leaves(analyst, budget)
    assert len(ends) > 1
    assert true_delta(ends, budget.epsilon) <= budget.delta


def breaks_a_budget() -> bool:
    return any(
        true_delta(leaves(analyst, budget), budget.epsilon) > budget.delta
        for budget in BUDGETS
        for analyst in ANALYSTS
    )


def test_filter_that_ignores_spent_budget_is_detected(monkeypatch):
    honest = privacy_filters._divergence_after
    monkeypatch.setattr(
        privacy_filters,
        "_divergence_after",
        lambda spent, *rest: honest(dict.fromkeys(spent, 0.0), *rest),
    )
    assert breaks_a_budget()


def test_a_filter_that_takes_epsilon_itself_for_the_limit_is_noticed(monkeypatch):
    monkeypatch.setattr(privacy_filters, "_limit", lambda order, epsilon, delta: epsilon)
    assert breaks_a_budget()


def probability_of_ever_reading_too_low(analyst: Analyst, delta: float, path: Path) -> float:
    meter = RenyiOdometer(delta=delta, adjacency=REPLACE)
    for truth, _ in path:
        meter.spend(RandomizedResponse(truth))
    p, q = masses(path)
    if math.log(p / q) > meter.epsilon():
        return p
    if len(path) == DEEPEST:
        return 0.0
    truth = analyst(path)[0]
    return sum(
        probability_of_ever_reading_too_low(analyst, delta, (*path, (truth, told)))
        for told in (True, False)
    )


@pytest.mark.parametrize("delta", [0.3, 0.01])
@pytest.mark.parametrize("analyst", ANALYSTS[:4])
def test_an_odometer_reads_too_low_at_any_time_at_most_with_its_delta(analyst, delta):
    assert probability_of_ever_reading_too_low(analyst, delta, ()) <= delta


def test_an_odometer_without_the_price_of_looking_is_noticed(monkeypatch):
    monkeypatch.setattr(RenyiOdometer, "epsilon", lambda self: min(self._spent.values()))
    assert probability_of_ever_reading_too_low(ANALYSTS[0], 0.01, ()) > 0.01


# ---------------------------------------------------------------------------------------
# What a filter promises, by formula.


@in_passing
@given(between_powers(-2, 1.5), deltas)
def test_the_limits_of_all_orders_convert_to_no_more_than_was_declared(epsilon, delta):
    budget = privacy_filters.declare_budget(epsilon=epsilon, delta=delta)
    total = 0.0
    for order, limit in privacy_filters.divergence_limits(budget).items():
        share = delta / len(budget.orders)
        exact = (order - 1) * (limit - epsilon) + order * math.log1p(-1 / order)
        converted = math.exp(exact) / (order - 1)
        assert converted == pytest.approx(share, rel=1e-6)
        total += converted
    assert total <= delta * (1 + 1e-9)


@in_passing
@given(between_powers(-1, 1), deltas, between_powers(0, 1.5))
def test_one_order_admits_as_many_gaussians_as_its_limit_pays_for(epsilon, delta, noise):
    order = 1 + 2 * math.log(1 / delta) / epsilon
    budget = RenyiBudget(epsilon, delta, (order,))
    price = order / (2 * noise**2)
    fits = math.floor(privacy_filters.divergence_limits(budget)[order] / price * (1 - 1e-9))
    guard = RenyiFilter(budget)
    if fits:
        guard.spend(Repeated(Gaussian(noise), fits))
        assert guard.spent()[order] == pytest.approx(fits * price)
    assert not guard.admits(Repeated(Gaussian(noise), 2))


@pytest.mark.parametrize("delta", [1e-5, 1e-10])
@pytest.mark.parametrize(
    ("rate", "noise", "steps"), [(0.01, 1.0, 1000), (256 / 60000, 1.1, 14063), (1.0, 10.0, 100)]
)
def test_a_filter_admits_most_of_what_a_schedule_fixed_in_advance_could(rate, noise, steps, delta):
    step = PoissonSampled(Gaussian(noise), rate)
    fixed = rdp.profile(Repeated(step, steps)).epsilon(delta=delta).upper
    guard = RenyiFilter(privacy_filters.declare_budget(epsilon=fixed, delta=delta))
    assert guard.admits(Repeated(step, round(0.7 * steps)))
    assert not guard.admits(Repeated(step, steps + 1))
    prepared = RenyiFilter(
        privacy_filters.declare_budget(epsilon=fixed, delta=delta, intended=step)
    )
    assert prepared.admits(Repeated(step, round(0.99 * steps)))
    assert not prepared.admits(Repeated(step, round(1.05 * steps)))


@in_passing
@given(st.lists(gaussians, min_size=1, max_size=20), between_powers(-1, 1), deltas)
def test_refused_release_is_not_recorded(releases, epsilon, delta):
    guard = RenyiFilter(privacy_filters.declare_budget(epsilon=epsilon, delta=delta))
    admitted = []
    for release in releases:
        before, fits = guard.spent(), guard.admits(release)
        assert guard.spent() == before
        if fits:
            guard.spend(release)
            admitted.append(release)
            assert guard.spent() != before
        else:
            with pytest.raises(BudgetExceeded, match="Gaussian"):
                guard.spend(release)
            assert guard.spent() == before
        assert 0 <= guard.share_spent() <= 1
    # A ledger of what was admitted is priced at what was declared.
    assert privacy_filters.epsilon_under_budget(admitted, guard.budget) == Bound(0.0, epsilon)


@in_passing
@given(st.lists(gaussians, min_size=1, max_size=10), deltas)
def test_an_odometer_rises_with_every_release(releases, delta):
    meter, last = RenyiOdometer(delta=delta), 0.0
    assert meter.epsilon() == 0.0
    for release in releases:
        meter.spend(release)
        assert meter.epsilon() > last
        last = meter.epsilon()


def test_a_ledger_past_its_budget_has_no_price():
    budget = privacy_filters.declare_budget(epsilon=1.0, delta=1e-5)
    with pytest.raises(BudgetExceeded, match="epsilon 1 at delta 1e-05"):
        privacy_filters.epsilon_under_budget([Gaussian(10.0)] * 1000, budget)


def test_an_order_without_a_budget_admits_nothing():
    budget = RenyiBudget(0.1, 1e-10, (1.5, 1000.0))
    assert (
        privacy_filters.divergence_limits(budget)[1.5]
        < 0
        < privacy_filters.divergence_limits(budget)[1000.0]
    )
    assert RenyiFilter(budget).admits(Gaussian(1000.0))
    assert not RenyiFilter(RenyiBudget(0.1, 1e-10, (1.5,))).admits(Gaussian(1e100))


def test_what_has_no_renyi_divergence_is_refused_by_name_and_not_recorded():
    guard = RenyiFilter(privacy_filters.declare_budget(epsilon=1.0, delta=1e-5))
    for ask in (guard.admits, guard.spend, RenyiOdometer(delta=1e-5).spend):
        with pytest.raises(UnsupportedMechanism, match="RandomizedResponse"):
            ask(RandomizedResponse(0.75))
    assert not any(guard.spent().values())


@pytest.mark.parametrize("orders", [(), (1.0,), (2.0, 2.0), (3.0, 2.0), (math.inf,), (math.nan,)])
def test_orders_that_are_none_are_refused_by_name(orders):
    with pytest.raises(InvalidArgument, match="orders"):
        RenyiBudget(1.0, 1e-5, orders)
    with pytest.raises(InvalidArgument, match="orders"):
        RenyiOdometer(delta=1e-5, orders=orders)


@pytest.mark.parametrize("epsilon", [0.0, -1.0, math.nan, math.inf])
def test_an_epsilon_that_is_no_budget_is_refused_by_name(epsilon):
    with pytest.raises(InvalidArgument, match="epsilon"):
        privacy_filters.declare_budget(epsilon=epsilon, delta=1e-5)


@pytest.mark.parametrize("delta", [0.0, 1.0, math.nan])
def test_a_delta_that_is_no_probability_is_refused_by_name(delta):
    with pytest.raises(InvalidArgument, match="delta"):
        privacy_filters.declare_budget(epsilon=1.0, delta=delta)
    with pytest.raises(InvalidArgument, match="delta"):
        RenyiOdometer(delta=delta)


def test_a_budget_survives_json():
    budget = privacy_filters.declare_budget(epsilon=1.0, delta=1e-5)
    assert msgspec.json.decode(msgspec.json.encode(budget), type=RenyiBudget) == budget


def test_a_budget_may_be_intended_for_what_costs_nothing():
    budget = privacy_filters.declare_budget(epsilon=1.0, delta=1e-5, intended=Gaussian(1e200))
    assert RenyiFilter(budget).admits(Gaussian(1e200))
