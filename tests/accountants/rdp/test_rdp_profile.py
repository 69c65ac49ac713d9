"""From divergences to epsilon and delta, with what no divergence can hold kept beside them."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from dpaudit.accountants import pld, rdp, releases
from dpaudit.accountants.rdp import release_divergence
from dpaudit.accountants.rdp.conversion import rdp_to_delta, rdp_to_epsilon
from dpaudit.vocabulary.errors import InvalidArgument, Unresolvable, UnsupportedMechanism
from dpaudit.vocabulary.mechanism import (
    ApproximateDP,
    Composed,
    Gaussian,
    Laplace,
    PoissonSampled,
    PureDP,
    Repeated,
    SampledWithoutReplacement,
    TruncatedPoisson,
)
from dpaudit.vocabulary.privacy_terms import Adjacency
from tests.accountants.mechanisms import between_powers, deltas, in_passing, noises, rates, steps

ADD_OR_REMOVE, REPLACE = Adjacency.ADD_OR_REMOVE_ONE, Adjacency.REPLACE_ONE
some_orders = between_powers(-1, 1.5).map(lambda more: 1 + more)
divergences = between_powers(-6, 1)


def bernoulli_epsilon(order: float, divergence: float, delta: float) -> float:
    """Return the largest epsilon over pairs of coins: by duality the worst of all pairs."""
    q = np.concatenate([np.geomspace(1e-150, 0.5, 20_000), 1 - np.geomspace(1e-9, 0.5, 2000)])
    low, high = q.copy(), np.ones_like(q)
    for _ in range(100):  # the largest p that the divergence allows
        p = (low + high) / 2
        ones = order * np.log(p) + (1 - order) * np.log(q)
        zeros = order * np.log1p(-np.minimum(p, 1 - 1e-16)) + (1 - order) * np.log1p(-q)
        fits = np.logaddexp(ones, zeros) <= (order - 1) * divergence
        low, high = np.where(fits, p, low), np.where(fits, high, p)
    ratios = (low - delta) / q
    return max(0.0, math.log(ratios.max())) if ratios.max() > 0 else 0.0


@in_passing
@given(some_orders, divergences, between_powers(-9, -2))
def test_the_conversion_is_that_of_the_worst_pair_of_coins(order, divergence, delta):
    epsilon = float(rdp_to_epsilon(order, divergence, delta))
    worst = bernoulli_epsilon(order, divergence, delta)
    assert worst <= epsilon * (1 + 1e-9) + 1e-9
    # The grid of coins is no finer, and x0 = 1 no closer to the best one than delta.
    assert epsilon <= worst * (1 + 1e-3) + 2 * delta + 1e-6


@in_passing
@given(some_orders, divergences, deltas)
def test_the_conversion_is_at_most_the_published_one(order, divergence, delta):
    published = (
        divergence + math.log1p(-1 / order) - (math.log(delta) + math.log(order)) / (order - 1)
    )
    assert (
        float(rdp_to_epsilon(order, divergence, delta)) <= max(0.0, published) * (1 + 1e-12) + 1e-9
    )


@in_passing
@given(some_orders, divergences, deltas)
def test_delta_is_where_epsilon_is(order, divergence, delta):
    epsilon = float(rdp_to_epsilon(order, divergence, delta))
    assume(epsilon > 0.01)
    assert float(rdp_to_delta(order, divergence, epsilon)) == pytest.approx(delta, rel=1e-6)


def test_next_to_no_divergence_there_is_next_to_no_epsilon():
    """The published conversion still asks for log(1/delta)/(order - 1)."""
    assert float(rdp_to_epsilon(2.0, 1e-12, 1e-5)) < 1e-6


@in_passing
@given(st.builds(PoissonSampled, st.builds(Gaussian, noises), rates), steps, deltas)
def test_epsilon_and_delta_agree(release, times, delta):
    profile = rdp.profile(Repeated(release, times))
    epsilon = profile.epsilon(delta=delta).upper
    if epsilon > 1e-3:
        assert profile.delta(epsilon=epsilon).upper <= delta * (1 + 1e-4)


def test_delta_is_small_where_the_exponential_of_epsilon_overflows():
    profile = rdp.profile(Repeated(Gaussian(0.5), 400))
    assert profile.delta(epsilon=2000.0).upper < 1e-40


@in_passing
@given(st.builds(PoissonSampled, st.builds(Gaussian, noises), rates), steps, deltas)
def test_real_orders_are_at_least_as_good_as_whole_ones(release, times, delta):
    profile = rdp.profile(Repeated(release, times))
    real, whole = profile.at_real_orders(delta=delta), profile.at_integer_orders(delta=delta)
    assert real[0].upper <= whole[0].upper
    assert whole[1] == int(whole[1])


def test_the_table_has_each_order_and_its_divergence():
    mechanism = Composed((Repeated(PoissonSampled(Gaussian(1.0), 0.01), 100), Laplace(5.0)))
    table = rdp.profile(mechanism).table((1.5, 2.0, 16.0))
    assert [order for order, _ in table] == [1.5, 2.0, 16.0]
    for order, bound in table:
        whole = rdp.divergence(mechanism, order=order)
        assert bound.lower == pytest.approx(whole.lower, rel=1e-9)
        assert bound.upper == pytest.approx(whole.upper, rel=1e-9)
    assert len(rdp.profile(mechanism).table()) == len(rdp.INTEGER_ORDERS)


@pytest.mark.parametrize("order", [1.0, 0.5, math.nan, math.inf])
def test_a_table_of_what_is_no_order_is_refused_by_name(order):
    with pytest.raises(InvalidArgument, match="order"):
        rdp.profile(Gaussian(1.0)).table((2.0, order))


# What is outside of the divergences.


def composed_delta(parts: list[tuple[float, float]], epsilon: float) -> float:
    """Return delta of the worst (epsilon, delta)-DP releases, over every string of answers."""
    total = 0.0
    for answers in itertools.product(range(3), repeat=len(parts)):
        p = q = 1.0
        for answer, (own, delta) in zip(answers, parts, strict=True):
            likely = 1 / (1 + math.exp(-own))
            p *= (delta, (1 - delta) * likely, (1 - delta) * (1 - likely))[answer]
            q *= (0.0, (1 - delta) * (1 - likely), (1 - delta) * likely)[answer]
        total += max(0.0, p - math.exp(epsilon) * q)
    return total


approximate = st.tuples(st.floats(0.01, 2), between_powers(-6, -2))


@in_passing
@given(st.lists(approximate, min_size=1, max_size=5), st.floats(0.1, 4))
def test_what_reveals_all_now_and_then_costs_at_least_its_worst_case(parts, epsilon):
    mechanism = Composed(tuple(ApproximateDP(own, delta) for own, delta in parts))
    truth = composed_delta(parts, epsilon)
    profile = rdp.profile(mechanism)
    assert truth <= profile.delta(epsilon=epsilon).upper * (1 + 1e-12) + 1e-15
    if truth > 1e-12:
        try:
            assert epsilon <= profile.epsilon(delta=truth).upper * (1 + 1e-9) + 1e-9
        except Unresolvable:
            assert truth <= profile.infinite_part.revealed * (1 + 1e-9)


def test_a_delta_that_is_spent_is_refused():
    mechanism = Repeated(ApproximateDP(0.1, 1e-6), 10)
    with pytest.raises(Unresolvable, match=r"is too small: .*infinite loss"):
        rdp.profile(mechanism).epsilon(delta=9e-6)
    assert rdp.profile(mechanism).epsilon(delta=2e-5).upper <= 1.0 + 1e-9


def test_too_many_truncated_batches_are_refused_with_the_accountant_that_bounds_them():
    mechanism = Repeated(TruncatedPoisson(Gaussian(2.0), 0.1, 1000, 100), 10)
    with pytest.raises(Unresolvable, match=r"batches are truncated .*: use the accountant pld"):
        rdp.profile(mechanism).epsilon(delta=1e-6)
    assert pld.profile(mechanism).epsilon(delta=1e-6).upper < 20


def test_without_its_delta_approximate_privacy_is_pure():
    pure = rdp.profile(Repeated(PureDP(0.1), 10)).epsilon(delta=1e-5).upper
    nearly = rdp.profile(Repeated(ApproximateDP(0.1, 1e-30), 10)).epsilon(delta=1e-5).upper
    assert pure == pytest.approx(nearly, rel=1e-9)


@in_passing
@given(approximate, rates, st.floats(0.01, 3))
def test_a_sample_of_what_reveals_all_reveals_as_rarely_as_it_samples(part, rate, epsilon):
    """Three answers and their mixture, in both directions."""
    own, delta = part
    likely = 1 / (1 + math.exp(-own))
    seen = np.array([delta, 0.0, (1 - delta) * likely, (1 - delta) * (1 - likely)])
    base = np.array([0.0, delta, (1 - delta) * (1 - likely), (1 - delta) * likely])
    mixed = (1 - rate) * base + rate * seen
    profile = rdp.profile(PoissonSampled(ApproximateDP(own, delta), rate))
    bound = profile.delta(epsilon=epsilon).upper
    for p, q in ((mixed, base), (seen, (1 - rate) * seen + rate * base)):
        assert np.maximum(p - math.exp(epsilon) * q, 0).sum() <= bound * (1 + 1e-9) + 1e-15


def test_a_batch_of_fixed_size_of_what_reveals_all_is_priced():
    release = SampledWithoutReplacement(ApproximateDP(1.0, 1e-6), 10, 1000)
    profile = rdp.profile(release, adjacency=REPLACE)
    assert profile.infinite_part.revealed == pytest.approx(1e-8, rel=1e-9)
    assert profile.epsilon(delta=1e-5).upper <= 0.05


@in_passing
@given(st.integers(1, 60), st.fractions(Fraction(1, 50), Fraction(9, 10)), st.integers(0, 61))
def test_the_binomial_tail_is_above_its_exact_sum_and_near(trials, rate, least):
    q = Fraction(float(rate))
    exact = sum(
        math.comb(trials, j) * q**j * (1 - q) ** (trials - j) for j in range(least, trials + 1)
    )
    found = releases.binomial_tail(trials, float(rate), least)
    assert Fraction(found) >= exact
    if least > trials * rate + 1:
        assert found <= float(exact) * (1 + 1e-9)


def test_a_batch_that_is_hardly_ever_cut_costs_what_a_poisson_batch_does():
    whole = rdp.profile(Repeated(PoissonSampled(Gaussian(1.0), 0.01), 1000))
    cut = rdp.profile(Repeated(TruncatedPoisson(Gaussian(1.0), 0.01, 60_000, 1200), 1000))
    assert cut.infinite_part.altered < 1e-50
    assert cut.epsilon(delta=1e-5).upper == pytest.approx(whole.epsilon(delta=1e-5).upper, rel=1e-6)


@in_passing
@given(st.integers(720, 800), between_powers(-6, -3))
def test_cut_batches_cost_what_they_fail_by(largest, delta):
    """epsilon is enough: delta of the Poisson steps there, and t (1 + e^epsilon), are within."""
    whole = rdp.profile(Repeated(PoissonSampled(Gaussian(1.0), 0.01), 100))
    cut = rdp.profile(Repeated(TruncatedPoisson(Gaussian(1.0), 0.01, 60_000, largest), 100))
    try:
        epsilon = cut.epsilon(delta=delta).upper
    except Unresolvable:  # there is none
        for at in (0.01, 0.1, 0.3, 1.0, 3.0):
            spent = whole.delta(epsilon=at).upper + cut.infinite_part.altered * (1 + math.exp(at))
            assert spent > delta * (1 - 1e-2)
        return
    assert epsilon >= whole.epsilon(delta=delta).upper * (1 - 1e-9)
    spent = whole.delta(epsilon=epsilon).upper + cut.infinite_part.altered * (1 + math.exp(epsilon))
    assert spent <= delta * (1 + 1e-3)


def test_batches_cut_every_second_time_are_refused():
    release = TruncatedPoisson(Gaussian(1.0), 0.01, 60_000, 600)
    with pytest.raises(Unresolvable, match="batches are truncated"):
        rdp.profile(release).epsilon(delta=1e-5)


def test_where_a_record_may_be_added_one_more_may_join():
    release = TruncatedPoisson(Gaussian(1.0), 0.5, 10, 9)
    assert releases.truncation_probability(release, REPLACE) >= 0.5**10
    assert releases.truncation_probability(release, ADD_OR_REMOVE) >= 12 * 0.5**11


def test_nothing_outside_is_nothing():
    assert release_divergence.separate_infinite_divergence({Gaussian(1.0): 3}, ADD_OR_REMOVE) == (
        {Gaussian(1.0): 3},
        release_divergence.NO_INFINITE_DIVERGENCE,
    )


def test_what_cannot_be_priced_is_refused_before_any_question():
    with pytest.raises(UnsupportedMechanism, match="PoissonSampled"):
        rdp.profile(PoissonSampled(PureDP(1.0), 0.5), adjacency=REPLACE)
