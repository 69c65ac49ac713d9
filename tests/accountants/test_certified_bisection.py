"""A root finder that stopped early answers wider, never wrong."""

from __future__ import annotations

import contextlib
import itertools
import math

import pytest
from hypothesis import given

from dpaudit.accountants import numerics
from dpaudit.vocabulary.errors import AccountingError
from tests.accountants.mechanisms import between_powers, in_passing


def falling(x: float) -> float:
    return math.exp(-x)


@in_passing
@given(between_powers(-12, -0.1))
def test_verified_bounds_enclose_a_narrow_interval(target):
    upper = numerics.certified_upper_crossing(falling, target, 0.0, 1000.0)
    lower = numerics.certified_lower_crossing(falling, target, 0.0, 1000.0)
    assert falling(upper) <= target <= falling(lower)
    assert lower <= upper <= lower * (1 + 1e-12)


@pytest.mark.parametrize("halvings", [0, 1, 5])
def test_an_unfinished_search_is_wider_and_still_holds(monkeypatch, halvings):
    monkeypatch.setattr(numerics, "MOST_BISECTIONS", halvings)
    upper = numerics.certified_upper_crossing(falling, 1e-5, 0.0, 1000.0)
    lower = numerics.certified_lower_crossing(falling, 1e-5, 0.0, 1000.0)
    assert falling(upper) <= 1e-5 <= falling(lower)


def test_nonmonotone_bound_is_verified_where_it_is_used():
    def wiggly(x: float) -> float:
        return math.exp(-x) * (1 + 0.5 * math.sin(1e3 * x))

    assert wiggly(numerics.certified_upper_crossing(wiggly, 1e-3, 0.0, 100.0)) <= 1e-3
    assert wiggly(numerics.certified_lower_crossing(wiggly, 1e-3, 0.0, 100.0)) >= 1e-3


def test_a_target_met_from_the_start_costs_nothing():
    assert numerics.certified_upper_crossing(falling, 1.0, 0.0, 10.0) == 0.0
    assert numerics.certified_lower_crossing(falling, 2.0, 0.0, 10.0) == 0.0


def test_a_target_that_is_never_met_is_an_error_and_no_number():
    with pytest.raises(AccountingError):
        numerics.certified_upper_crossing(falling, 1e-9, 0.0, 10.0)


def test_a_bound_that_is_nan_meets_nothing():
    with pytest.raises(AccountingError):
        numerics.certified_upper_crossing(lambda x: math.nan, 1e-9, 0.0, 10.0)
    assert numerics.certified_lower_crossing(lambda x: math.nan, 1e-9, 0.0, 10.0) == 0.0


def test_a_search_from_infinity_ends():
    """A Gaussian of noise 1e-200 has no finite epsilon to start from."""
    calls = itertools.count()

    def nowhere_high_enough(x: float) -> float:
        assert next(calls) < 10_000, "the search does not end"
        return -math.inf

    with contextlib.suppress(AccountingError):
        numerics.certified_lower_crossing(nowhere_high_enough, 1.0, 0.0, math.inf)
