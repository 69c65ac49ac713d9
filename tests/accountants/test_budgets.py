"""A split budget: shares follow the weights, and the whole composition meets the total."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest

from dpaudit.accountants import budgets, naive, pld
from dpaudit.accountants.budgets import Query
from dpaudit.vocabulary.errors import InvalidArgument
from dpaudit.vocabulary.mechanism import Gaussian, Laplace, Repeated
from dpaudit.vocabulary.privacy_terms import Adjacency


def test_pure_shares_sum_to_the_total_in_exact_arithmetic() -> None:
    queries = {
        "a": Query(1.0, "laplace"),
        "b": Query(0.3, "laplace", sensitivity=7.0),
        "c": Query(2.0, "laplace", times=3),
    }
    found = budgets.split_budget(queries, target_epsilon=0.7, delta=0)
    shares = {
        name: Fraction(query.sensitivity) / Fraction(found.noise[name]) * query.times
        for name, query in queries.items()
    }
    assert sum(shares.values()) <= Fraction(0.7)
    assert float(sum(shares.values())) == pytest.approx(0.7, rel=1e-14)
    assert float(shares["c"] / shares["a"]) == pytest.approx(2.0)
    assert found.epsilon.upper <= 0.7
    assert found.mechanisms["c"] == Repeated(Laplace(found.noise["c"]), 3)


def test_squares_of_shifts_follow_the_weights_and_the_total_is_met() -> None:
    queries = {
        "mean": Query(4.0, sensitivity=10.0),
        "histogram": Query(1.0, times=4),
        "count": Query(np.int64(2), "laplace"),
    }
    found = budgets.split_budget(queries, target_epsilon=1.0, delta=1e-6)
    assert pld.profile(found.mechanism).epsilon(delta=1e-6) == found.epsilon
    assert 0.999 < found.epsilon.upper <= 1.0
    squares = {
        name: query.times * (query.sensitivity / found.noise[name]) ** 2
        for name, query in queries.items()
    }
    assert squares["mean"] / squares["histogram"] == pytest.approx(4.0)
    assert squares["mean"] / squares["count"] == pytest.approx(2.0)
    assert found.mechanisms["mean"].noise_multiplier == pytest.approx(found.noise["mean"] / 10)
    # Splitting epsilon and delta evenly by basic composition needs more noise.
    alone = {"mean": Query(), "other": Query()}
    together = budgets.split_budget(alone, target_epsilon=1.0, delta=1e-6)
    halved = budgets.split_budget({"mean": Query()}, target_epsilon=0.5, delta=5e-7)
    assert together.noise["mean"] < 0.8 * halved.noise["mean"]


def test_one_query_takes_the_whole_budget_and_other_accountants_may_decide() -> None:
    found = budgets.split_budget(
        {"sum": Query()}, target_epsilon=2.0, delta=1e-5, accountant=naive.profile
    )
    assert isinstance(found.mechanisms["sum"], Gaussian)
    assert naive.profile(found.mechanism).epsilon(delta=1e-5).upper <= 2.0
    replaced = budgets.split_budget(
        {"sum": Query()}, target_epsilon=2.0, delta=1e-5, adjacency=Adjacency.REPLACE_ONE
    )
    added = budgets.split_budget({"sum": Query()}, target_epsilon=2.0, delta=1e-5)
    assert replaced.noise["sum"] == pytest.approx(2 * added.noise["sum"], rel=1e-3)


@pytest.mark.parametrize(
    ("queries", "epsilon", "delta", "named"),
    [
        ({}, 1.0, 1e-6, "queries"),
        ({"a": 1.0}, 1.0, 1e-6, "queries"),
        ({"a": Query()}, 1.0, 0.0, "noise of a"),
        ({"a": Query()}, 0.0, 1e-6, "target_epsilon"),
        ({"a": Query()}, 1.0, True, "delta"),
        ({"a": Query()}, 1.0, math.nan, "delta"),
    ],
)
def test_budgets_that_cannot_be_split_are_refused(queries, epsilon, delta, named) -> None:
    with pytest.raises(InvalidArgument, match=named):
        budgets.split_budget(queries, target_epsilon=epsilon, delta=delta)


@pytest.mark.parametrize(
    "fields", [{"weight": 0.0}, {"weight": "1"}, {"noise": "normal"}, {"times": 0}, {"times": True}]
)
def test_queries_out_of_range_are_refused(fields) -> None:
    with pytest.raises(InvalidArgument):
        Query(**fields)


def test_weights_may_overflow_when_they_are_added() -> None:
    found, plain = (
        budgets.split_budget(
            {"a": Query(weight), "b": Query(weight)}, target_epsilon=1.0, delta=1e-6
        )
        for weight in (1e308, 1.0)
    )
    assert found.noise["a"] == pytest.approx(plain.noise["a"], rel=1e-9)
    assert found.epsilon.upper <= 1.0


def test_far_apart_weights_have_finite_noise() -> None:
    """A sum over a weight, 1e309, overflows, where the noise does not."""
    queries = {"a": Query(1.0), "b": Query(1e-309)}
    found = budgets.split_budget(queries, target_epsilon=1.0, delta=1e-6)
    share = found.noise["b"] / found.noise["a"]
    assert share == pytest.approx(1 / math.sqrt(1e-309), rel=1e-9)


@pytest.mark.parametrize("delta", [0.0, 1e-6])
@pytest.mark.parametrize(
    "huge", [Query(1e-320, "laplace", 1e300), Query(1e-300, "laplace", sensitivity=1e308)]
)
def test_noise_beyond_doubles_is_refused(huge: Query, delta: float) -> None:
    queries = {"small": Query(1.0, "laplace"), "huge": huge}
    with pytest.raises(InvalidArgument, match=r"query huge .* finite number"):
        budgets.split_budget(queries, target_epsilon=1.0, delta=delta)
