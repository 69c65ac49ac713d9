"""Sparse vector techniques: guarantees, attained pairs, and an independent integration."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import beta

from dpaudit.accountants import gdp, group_privacy, naive, pld, rdp, zcdp
from dpaudit.accountants.sparse_vector import attained_parts, guarantee_parts, laplace_sum_tail
from dpaudit.vocabulary.errors import InvalidArgument, UnsupportedMechanism
from dpaudit.vocabulary.mechanism import (
    FixedThresholdSparseVector,
    Laplace,
    MonotoneSparseVector,
    NumericSparseVector,
    PoissonSampled,
    PureDP,
    Repeated,
    SparseVector,
)

few = settings(max_examples=30, deadline=None, derandomize=True)
scales = st.floats(0.5, 20)
TRIALS = 200_000


def log_chance_of_run(
    level: float, below: int, last: float, threshold_scale: float, query_scale: float
) -> float:
    """Return log P[``below`` queries of ``level`` are below the threshold 0, the last one above].

    An integral over the threshold's noise, by a fine midpoint rule: nothing of the accountants.
    """
    z = np.linspace(-60, 60, 60_001) * threshold_scale
    log_density = -np.abs(z) / threshold_scale - math.log(2 * threshold_scale)

    def log_below(x: np.ndarray) -> np.ndarray:
        """Log P[Laplace < x]."""
        tail = np.log(0.5) - np.abs(x) / query_scale
        return np.where(x < 0, tail, np.log1p(-np.exp(tail)))

    logs = log_density + below * log_below(z - level) + log_below(last - z)
    top = float(logs.max())
    return top + math.log(float(np.exp(logs - top).sum()) * (z[1] - z[0]))


@few
@given(scales, scales, st.integers(0, 30), st.floats(-20, 20), st.floats(-20, 20))
def test_no_run_has_a_larger_loss_than_its_guarantee(threshold, query, below, level, last):
    first = log_chance_of_run(level, below, last, threshold, query)
    # General queries: those below the threshold rise, the one above falls.
    loss = abs(first - log_chance_of_run(level + 1, below, last - 1, threshold, query))
    ((guarantee, _),) = guarantee_parts(SparseVector(threshold, query, answers=1))
    assert loss <= guarantee.epsilon + 1e-5  # the rule's error
    # Monotone queries: all of them rise.
    loss = abs(first - log_chance_of_run(level + 1, below, last + 1, threshold, query))
    ((guarantee, _),) = guarantee_parts(MonotoneSparseVector(threshold, query, answers=1))
    assert loss <= guarantee.epsilon + 1e-5


def test_long_runs_approach_the_guarantee():
    """The published epsilon is tight: a planted smaller one would be contradicted."""
    one = log_chance_of_run(3.0, 3000, -30.0, 2.0, 4.0)
    other = log_chance_of_run(4.0, 3000, -31.0, 2.0, 4.0)
    ((guarantee, _),) = guarantee_parts(SparseVector(2.0, 4.0, answers=1))
    assert 0.99 * guarantee.epsilon < one - other <= guarantee.epsilon + 1e-5
    # 1/b1 + 1/b2, which holds for monotone queries, is exceeded by these.
    ((monotone, _),) = guarantee_parts(MonotoneSparseVector(2.0, 4.0, answers=1))
    assert one - other > monotone.epsilon


@pytest.mark.parametrize(("one", "other"), [(1.0, 1.0), (2.0, 2.0005), (1.0, 7.0), (30.0, 0.2)])
@pytest.mark.parametrize("distance", [0.0, 0.5, 3.0])
def test_the_tail_of_two_laplace_variables_is_bounded(one, other, distance):
    z = np.linspace(-80, 80, 400_001) * max(one, other)
    step = z[1] - z[0]
    tail = np.exp(-np.abs(distance - z) / other) / 2
    beyond = np.where(distance - z < 0, 1 - tail, tail)
    truth = float((np.exp(-np.abs(z) / one) / (2 * one) * beyond).sum() * step)
    found = laplace_sum_tail(distance, one, other)
    assert truth * (1 - 2e-5) <= found <= truth * 1.002


def test_the_attained_pair_is_that_of_a_simulated_query():
    """Exact binomial bands of 1 - 1e-7 around a simulated stream at the threshold."""
    generator = np.random.default_rng(20261130)
    mechanism = SparseVector(threshold_scale=2.0, query_scale=4.0, answers=1)
    noise = generator.laplace(0, 4.0, TRIALS) - generator.laplace(0, 2.0, TRIALS)
    positive = int((noise + 0.5 >= 0).sum())
    low, high = beta.ppf(
        [5e-8, 1 - 5e-8],
        [positive, positive + 1],
        [TRIALS - positive + 1, TRIALS - positive],
    )
    ((attained, _),) = attained_parts(mechanism)
    assert math.log(low / (1 - low)) <= attained.epsilon <= math.log(high / (1 - high))


@few
@given(scales, scales, st.integers(1, 20), scales)
def test_attained_pairs_cost_at_most_the_guarantee(threshold, query, answers, value):
    for kind in (SparseVector, MonotoneSparseVector, FixedThresholdSparseVector):
        mechanism = NumericSparseVector(kind(threshold, query, answers), value)
        least = sum(
            n * (p.epsilon if isinstance(p, PureDP) else p.sensitivity / p.scale)
            for p, n in attained_parts(mechanism)
        )
        most = sum(
            n * (p.epsilon if isinstance(p, PureDP) else p.sensitivity / p.scale)
            for p, n in guarantee_parts(mechanism)
        )
        assert 0 < least <= most


# Dwork & Roth 2014, Algorithm 3 and Theorem 3.28: scales of NumericSparse for epsilon 1, c = 10:
# 2 c/(8/9) = 22.5 on the threshold, twice that on a query, 2 c/(2/9) = 90 on a value.
@pytest.mark.parametrize("scale", [1e-300, 1e-6, 1e-3])
@pytest.mark.parametrize("sensitivity", [1.0, 1e300])
def test_scales_whose_tail_underflows_have_a_lower_end(scale, sensitivity):
    mechanism = SparseVector(scale, 2 * scale, answers=3, sensitivity=sensitivity)
    ((attained, answers),) = attained_parts(mechanism)
    assert answers == 3
    limit = sensitivity / scale * 2
    assert 0 < attained.epsilon <= limit
    assert attained.epsilon >= min(0.9 * limit / 8, 690)


def test_numeric_sparse_has_the_published_scales():
    mechanism = NumericSparseVector.from_epsilon(1.0, answers=10)
    assert mechanism.comparison == SparseVector(22.5, 45.0, 10)
    assert mechanism.value_scale == 90.0
    parts = dict(guarantee_parts(mechanism))
    assert set(parts.values()) == {10}
    assert Laplace(90.0, 1.0) in parts
    pure = sum(n * (p.epsilon if isinstance(p, PureDP) else 1 / p.scale) for p, n in parts.items())
    assert pure == pytest.approx(1.0, rel=1e-11)


# Lyu, Su & Li 2017: for epsilon1 = epsilon2 = 1/2, c = 10: scales 2 and 2 c/(1/2) = 40.
def test_the_fixed_threshold_has_the_published_epsilon():
    ((pure, times),) = guarantee_parts(FixedThresholdSparseVector(2.0, 40.0, answers=10))
    assert (pure.epsilon, times) == (pytest.approx(1.0, rel=1e-11), 1)
    values = NumericSparseVector(FixedThresholdSparseVector(2.0, 40.0, answers=10), 20.0)
    ((pure, times),) = guarantee_parts(values)
    assert (pure.epsilon, times) == (pytest.approx(1.5, rel=1e-11), 1)


def test_composition_of_many_answers_is_tighter_than_their_sum():
    mechanism = SparseVector(threshold_scale=100.0, query_scale=200.0, answers=1000)
    # Kairouz, Oh & Viswanath's optimal composition of 1,000 times 0.02-DP.
    expected = naive.profile(Repeated(PureDP(0.02), 1000)).optimal(delta=1e-6).upper
    by_naive = naive.profile(mechanism).epsilon(delta=1e-6).upper
    by_pld = pld.profile(mechanism).epsilon(delta=1e-6)
    assert by_naive == pytest.approx(expected, rel=1e-9)
    assert by_pld.upper == pytest.approx(expected, rel=1e-6)
    assert by_pld.upper < 0.2 * 20.0
    assert 0 < by_pld.lower < by_pld.upper


def test_every_accountant_bounds_or_refuses_it():
    mechanism = NumericSparseVector.from_epsilon(2.0, answers=5)
    for accountant in (naive, rdp, pld, zcdp):
        bound = accountant.profile(mechanism).epsilon(delta=1e-9)
        assert 0 <= bound.lower <= bound.upper < 20
    for accountant in (naive, pld):
        assert accountant.profile(mechanism).epsilon(delta=1e-9).upper <= 2.0 * (1 + 1e-6)
    with pytest.raises(UnsupportedMechanism, match="NumericSparseVector"):
        gdp.profile(mechanism)


def test_it_is_not_applied_to_a_sample():
    with pytest.raises(InvalidArgument, match="mechanism"):
        PoissonSampled(SparseVector(1.0, 1.0, 1), 0.1)


def test_the_lower_end_never_exceeds_what_a_stream_attains():
    """A released value alone: Laplace noise of the value, c times."""
    mechanism = NumericSparseVector(SparseVector(1e6, 1e6, answers=3), value_scale=2.0)
    alone = pld.profile(Repeated(Laplace(2.0), 3)).epsilon(delta=1e-5)
    found = pld.profile(mechanism).epsilon(delta=1e-5)
    assert alone.lower * (1 - 1e-3) <= found.lower <= alone.upper * (1 + 1e-6)
    assert found.upper >= alone.upper


def test_a_group_multiplies_the_sensitivity():
    one = SparseVector(10.0, 20.0, answers=3)
    assert group_privacy.group_mechanism(one, 4) == SparseVector(10.0, 20.0, 3, sensitivity=4.0)
    assert group_privacy.group_mechanism(MonotoneSparseVector(10.0, 20.0, 3), 4) is None


@pytest.mark.parametrize("field", ["threshold_scale", "query_scale", "sensitivity"])
@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_scales_that_are_not_positive_are_refused_by_name(field, value):
    given_values = {"threshold_scale": 1.0, "query_scale": 1.0, "answers": 1, "sensitivity": 1.0}
    for kind in (SparseVector, MonotoneSparseVector, FixedThresholdSparseVector):
        with pytest.raises(InvalidArgument, match=f"{field} .* got {value!r}"):
            kind(**{**given_values, field: value})
    with pytest.raises(InvalidArgument, match="answers"):
        SparseVector(1.0, 1.0, 0)
    with pytest.raises(InvalidArgument, match=f"value_scale .* got {value!r}"):
        NumericSparseVector(SparseVector(1.0, 1.0, 1), value)
    with pytest.raises(InvalidArgument, match="comparison"):
        NumericSparseVector(Laplace(1.0), 1.0)  # type: ignore[arg-type]
