"""Local levels of simultaneous bands against published figures and simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import betaincinv

from dpaudit.attacks.bounds.lower_bound import upper_limit
from dpaudit.attacks.bounds.thresholds import (
    ConfidenceBand,
    band_failure_probability,
    candidate_thresholds,
    limited_order_statistics,
    local_level,
)
from dpaudit.vocabulary.errors import InvalidArgument


@pytest.mark.parametrize(("scores", "gamma"), [(600, 6.08e-4), (1300, 5.00e-4), (2700, 4.26e-4)])
def test_local_levels_are_those_of_an_independent_implementation(scores: int, gamma: float) -> None:
    assert local_level(scores, 0.025) == pytest.approx(gamma, rel=2e-3)


@given(st.integers(1, 60), st.floats(1e-6, 0.5))
def test_a_band_costs_no_more_than_bonferroni_and_no_less_than_one_limit(
    scores: int, level: float
) -> None:
    gamma = local_level(scores, level)
    assert level / scores <= gamma <= level
    assert band_failure_probability(scores, gamma) <= level + 1e-14 * scores  # what it rounds up by


@pytest.mark.parametrize(("scores", "gamma"), [(1, 0.03), (2, 0.2), (7, 0.02), (50, 0.0076)])
def test_the_failure_probability_is_what_is_simulated(scores: int, gamma: float) -> None:
    rng, draws = np.random.default_rng(3), 40_000
    k = np.arange(1, scores + 1)
    limits = betaincinv(k, scores - k + 1, 1 - gamma)
    seen = np.mean((np.sort(rng.random((draws, scores)), axis=1) > limits).any(axis=1))
    truth = band_failure_probability(scores, gamma)
    assert abs(seen - truth) <= 4 * math.sqrt(truth * (1 - truth) / draws)


def test_two_order_statistics_by_hand() -> None:
    """P(U_(1) <= a, U_(2) <= b) = 2 a b - a^2 for a <= b."""
    a, b = betaincinv(1, 2, 0.9), betaincinv(2, 1, 0.9)
    assert band_failure_probability(2, 0.1) == pytest.approx(1 - (2 * a * b - a * a), abs=1e-12)


@pytest.mark.parametrize("scores", [10_001, 40_000])
def test_many_scores_have_fewer_limits_that_fail_as_often_as_is_simulated(scores: int) -> None:
    rng, draws, gamma = np.random.default_rng(4), 400, 0.004
    k = limited_order_statistics(scores)
    assert k[-1] == scores
    assert len(k) < 0.15 * scores
    assert (np.diff(k) <= 1 + np.sqrt(k[1:]) / 2).all()
    limits = betaincinv(k, scores - k + 1, 1 - gamma)
    seen = np.mean([(np.sort(rng.random(scores))[k - 1] > limits).any() for _ in range(draws)])
    truth = band_failure_probability(scores, gamma)
    assert abs(seen - truth) <= 4 * math.sqrt(truth * (1 - truth) / draws)


def test_the_limit_between_two_places_is_that_of_the_larger_one() -> None:
    rng = np.random.default_rng(5)
    members, nonmembers = rng.normal(1, 1, 12_000), rng.normal(0, 1, 300)
    found = ConfidenceBand().limits(members, nonmembers, 0.05)
    missed = np.searchsorted(
        np.sort(members), candidate_thresholds(members, nonmembers), side="right"
    )
    gamma = local_level(12_000, 0.025)
    assert gamma > 0.025 / 12_000
    alone = upper_limit(missed, 12_000, gamma)
    # One limit by itself, at most raised by a third of a standard deviation and one score.
    assert (found.false_negative_rate >= alone).all()
    raised = np.sqrt(missed + 1) / 2 + 1
    assert (found.false_negative_rate <= alone + 1.3 * raised / 12_000).all()


@pytest.mark.parametrize("level", [0.0, 1.0, math.nan])
def test_levels_out_of_range_are_refused(level: float) -> None:
    with pytest.raises(InvalidArgument, match="level"):
        local_level(10, level)
