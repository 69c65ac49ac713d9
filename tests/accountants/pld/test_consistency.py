"""Laws that hold between all accountants and all answers, over random ledgers of every kind."""

from __future__ import annotations

import math
from contextlib import suppress
from itertools import pairwise

import numpy as np
import pytest
from side_by_side.every_kind import answers, question, without_numbers

from dpaudit.accountants import pld, risk
from dpaudit.accountants.pld import PldProfile
from dpaudit.vocabulary.errors import AccountingError, DpauditError
from dpaudit.vocabulary.mechanism import (
    ZCDP,
    ApproximateDP,
    Composed,
    Exponential,
    Gaussian,
    Laplace,
    Mechanism,
    PoissonSampled,
    PureDP,
    RandomAllocation,
    RandomizedResponse,
    Repeated,
    SampledWithoutReplacement,
    Skellam,
    SparseVector,
)
from dpaudit.vocabulary.privacy_terms import Adjacency, Bound

ADD, REPLACE = Adjacency.ADD_OR_REMOVE_ONE, Adjacency.REPLACE_ONE
SEED = 5
DELTAS = (1e-8, 1e-4, 0.1)


def require_consistent(place: int) -> None:
    """Check one random ledger: typed errors, no warnings, least upper bounds."""
    row = answers(question(place, seed=SEED))
    assert row["wrong"] == []
    refused = row["refusals"].get("pld")
    assert refused is None or refused["names"], without_numbers(refused["text"])


@pytest.mark.parametrize("place", range(8))
def test_random_ledgers_get_least_bounds_or_named_refusals(place: int) -> None:
    require_consistent(place)


@pytest.mark.slow
def test_many_random_ledgers_get_least_bounds_or_named_refusals() -> None:
    for place in range(100, 400):
        require_consistent(place)


SLOW_PLANS: list[tuple[Mechanism, Adjacency]] = [
    (Repeated(PoissonSampled(Gaussian(2.0), 0.1), 50), REPLACE),
    (Repeated(Exponential(0.5), 10), ADD),
    (Repeated(RandomAllocation(Gaussian(1.0), 20), 2), ADD),
]
"""Plans whose pairs above and below differ; each takes seconds."""


@pytest.mark.slow
@pytest.mark.parametrize(("plan", "adjacency"), SLOW_PLANS, ids=lambda value: type(value).__name__)
def test_the_same_laws_hold_where_no_pair_is_attained(
    plan: Mechanism, adjacency: Adjacency
) -> None:
    test_delta_at_the_upper_end_of_epsilon_is_at_most_delta(plan, adjacency)
    test_the_tradeoff_agrees_with_every_epsilon(plan, adjacency)


PLANS: list[tuple[Mechanism, Adjacency]] = [
    (Repeated(PoissonSampled(Gaussian(1.0), 0.01), 200), ADD),
    (
        Composed([Laplace(2.0), Laplace(3.1), Repeated(PoissonSampled(Gaussian(1.0), 0.02), 30)]),
        ADD,
    ),
    (Exponential(0.5), ADD),
    (RandomAllocation(Gaussian(1.0), 20), ADD),
    (Repeated(SampledWithoutReplacement(Laplace(1.0), 10, 100), 5), REPLACE),
    (Repeated(Skellam(100.0, l1_sensitivity=9.0, l2_sensitivity=3.0, dimension=9), 5), ADD),
    (Composed([SparseVector(20.0, 40.0, 3), ApproximateDP(0.1, 1e-9)]), ADD),
    (Composed([RandomizedResponse(0.7), PureDP(0.2)]), REPLACE),
]


def answered(profile: PldProfile, delta: float) -> Bound | None:
    """Return epsilon, or None where no interval is certified."""
    with suppress(AccountingError):
        return profile.epsilon(delta=delta)
    return None


@pytest.mark.parametrize(("plan", "adjacency"), PLANS, ids=lambda value: type(value).__name__)
def test_delta_at_the_upper_end_of_epsilon_is_at_most_delta(
    plan: Mechanism, adjacency: Adjacency
) -> None:
    profile = pld.profile(plan, adjacency=adjacency)
    ends: list[Bound] = []
    for delta in DELTAS:
        if (found := answered(profile, delta)) is None:
            continue
        back = profile.delta(epsilon=found.upper)
        assert back.lower <= delta * (1 + 1e-9)
        assert profile.delta(epsilon=found.lower).upper >= delta * (1 - 1e-9) or found.lower == 0
        ends.append(found)
    assert len(ends) >= 2
    for more, less in pairwise(ends):  # delta rises, epsilon never does
        assert less.lower <= more.upper
        assert less.upper <= more.upper


@pytest.mark.parametrize(("plan", "adjacency"), PLANS[-3:], ids=lambda value: type(value).__name__)
def test_the_tradeoff_agrees_with_every_epsilon(plan: Mechanism, adjacency: Adjacency) -> None:
    """TPR at FPR is at most e^epsilon FPR + delta, for every certified (epsilon, delta)."""
    profile = pld.profile(plan, adjacency=adjacency)
    rates = risk.tradeoff(profile, (0.01, 0.2)).tpr
    for fpr, tpr in zip((0.01, 0.2), rates, strict=True):
        for delta in DELTAS:
            if (found := answered(profile, delta)) is not None:
                most = math.exp(min(found.upper, 700.0)) * fpr + delta
                assert tpr.lower <= most * (1 + 1e-9)
        assert fpr <= tpr.upper <= 1


def test_epsilon_of_pure_guarantees_at_no_delta_is_their_sum() -> None:
    plan = Composed([Repeated(PureDP(0.25), 3), Laplace(2.0), SparseVector(20.0, 40.0, 4)])
    found = pld.profile(plan).epsilon(delta=0)
    total = 3 * 0.25 + 0.5 + 4 * (1 / 20 + 2 / 40)
    assert found.lower <= total * (1 + 1e-12)
    assert total * (1 - 1e-12) <= found.upper <= total * (1 + 1e-9)


def test_a_tree_of_repetitions_is_priced_as_its_flat_list() -> None:
    step = PoissonSampled(Gaussian(1.3), 0.05)
    nested = Composed([Repeated(Composed([Repeated(step, 3), Laplace(5.0)]), 4), Gaussian(9.0)])
    flat = Composed([Gaussian(9.0), Repeated(Laplace(5.0), 4), Repeated(step, 12)])
    for delta in (1e-8, 1e-3):
        one, other = (pld.profile(plan).epsilon(delta=delta) for plan in (nested, flat))
        assert one.lower <= other.upper
        assert other.lower <= one.upper


def test_both_ends_of_delta_fall_with_epsilon_below_the_least_float() -> None:
    profile = pld.profile(Repeated(PoissonSampled(Gaussian(1.0), 0.01), 100))
    found = [profile.delta(epsilon=float(epsilon)) for epsilon in np.linspace(60, 90, 5)]
    for more, less in pairwise(found):
        assert less.upper <= more.upper
        assert less.lower <= more.upper
    assert found[-1].upper < 1e-290


def test_refusals_name_the_cause_where_no_accountant_answers() -> None:
    pair = pld.from_pmfs([0.6, 0.4], [0.4, 0.6])
    with pytest.raises(DpauditError, match=r"ZCDP.*no dominating pair is known"):
        pld.profile(Composed((pair, ZCDP(0.1)))).epsilon(delta=1e-5)
