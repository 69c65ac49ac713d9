"""What holds of every accountant, whatever is composed."""

from __future__ import annotations

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from dpaudit.accountants import pld
from dpaudit.accountants.releases import count_releases
from dpaudit.vocabulary.mechanism import Composed, Gaussian, PoissonSampled, Repeated
from dpaudit.vocabulary.privacy_terms import Adjacency, Bound
from tests.accountants.mechanisms import (
    between_powers,
    deltas,
    every_method,
    federated_questions,
    gaussian_questions,
    gaussians,
    in_passing,
    noises,
    questions,
    rates,
    responses,
    sampled,
    steps,
)

ADD_OR_REMOVE = Adjacency.ADD_OR_REMOVE_ONE


def may_be_at_most(smaller: Bound, larger: Bound) -> bool:
    """Two intervals contradict "smaller <= larger" only if they say the contrary surely."""
    return smaller.lower <= larger.upper


def each_may_be_at_most(smaller: dict[str, Bound], larger: dict[str, Bound]) -> bool:
    return all(
        may_be_at_most(bound, other) for bound in smaller.values() for other in larger.values()
    )


@in_passing
@given(questions, deltas)
def test_every_upper_bound_is_at_least_every_lower_bound(question, delta):
    methods = every_method(question, delta)
    assert len(methods) == 6
    assert each_may_be_at_most(methods, methods)


@settings(in_passing, max_examples=60)
@given(federated_questions, deltas, st.integers(2, 5))
def test_bounds_of_federated_releases_contain_one_truth(question, delta, times):
    mechanism, adjacency = question
    methods = every_method(question, delta)
    assert len(methods) == 6
    assert each_may_be_at_most(methods, methods)
    assert each_may_be_at_most(
        methods, every_method((Repeated(mechanism, times), adjacency), delta)
    )


@in_passing
@given(questions, deltas, deltas)
def test_epsilon_falls_with_delta(question, one, other):
    less, more = sorted((one, other))
    assert each_may_be_at_most(every_method(question, more), every_method(question, less))


@in_passing
@given(questions, deltas, st.integers(2, 5))
def test_more_steps_never_lower_epsilon(question, delta, times):
    mechanism, adjacency = question
    longer = (Repeated(mechanism, times), adjacency)
    assert each_may_be_at_most(every_method(question, delta), every_method(longer, delta))


@in_passing
@given(rates, rates, noises, steps, deltas)
def test_a_higher_rate_never_lowers_epsilon(one, other, noise, times, delta):
    low, high = sorted((one, other))
    rarely, often = (
        (Repeated(PoissonSampled(Gaussian(noise), rate), times), ADD_OR_REMOVE)
        for rate in (low, high)
    )
    assert each_may_be_at_most(every_method(rarely, delta), every_method(often, delta))


@in_passing
@given(rates, noises, noises, steps, deltas)
def test_more_noise_never_raises_epsilon(rate, one, other, times, delta):
    little, much = sorted((one, other))
    loud, quiet = (
        (Repeated(PoissonSampled(Gaussian(noise), rate), times), ADD_OR_REMOVE)
        for noise in (much, little)
    )
    assert each_may_be_at_most(every_method(loud, delta), every_method(quiet, delta))


@in_passing
@given(sampled, st.integers(1, 200), st.integers(1, 200), deltas)
def test_the_closed_upper_bounds_rise_with_steps_themselves(release, fewer, extra, delta):
    """Naive and Renyi bounds are formulas, so their upper ends obey the law, too."""
    short = every_method((Repeated(release, fewer), ADD_OR_REMOVE), delta)
    long = every_method((Repeated(release, fewer + extra), ADD_OR_REMOVE), delta)
    for method in short.keys() - {"pld, privacy loss distribution"}:
        assert short[method].upper <= long[method].upper * (1 + 1e-12)


@in_passing
@given(st.lists(sampled, min_size=2, max_size=3), deltas)
def test_the_order_of_composition_does_not_matter(releases, delta):
    forth = every_method((Composed(tuple(releases)), ADD_OR_REMOVE), delta)
    back = every_method((Composed(tuple(releases[::-1])), ADD_OR_REMOVE), delta)
    assert each_may_be_at_most(forth, back)
    assert each_may_be_at_most(back, forth)
    for method, bound in forth.items():
        assert bound.upper == pytest.approx(back[method].upper, rel=1e-3)


@in_passing
@given(sampled | gaussians | responses, st.integers(2, 50), st.integers(1, 49), st.integers(2, 4))
def test_splitting_a_repetition_changes_nothing(release, times, cut, blocks):
    assume(cut < times)
    whole = Repeated(release, times * blocks)
    for same in (
        Repeated(Repeated(release, times), blocks),
        Repeated(Composed((Repeated(release, cut), Repeated(release, times - cut))), blocks),
        Composed((Repeated(release, times * blocks - 1), release)),
    ):
        assert count_releases(same) == count_releases(whole)


@in_passing
@given(sampled, st.integers(2, 50), deltas)
def test_a_split_repetition_has_the_same_epsilon(release, times, delta):
    whole = (Repeated(release, times), ADD_OR_REMOVE)
    split = (Composed((Repeated(release, times - 1), release)), ADD_OR_REMOVE)
    assert every_method(whole, delta) == every_method(split, delta)


@in_passing
@given(questions, deltas)
def test_delta_at_epsilon_is_delta(question, delta):
    mechanism, adjacency = question
    profile = pld.profile(mechanism, adjacency=adjacency)
    epsilon = profile.epsilon(delta=delta)
    assert profile.delta(epsilon=epsilon.upper).lower <= delta
    if epsilon.lower > 0:  # at 0, delta may be more than enough
        assert profile.delta(epsilon=epsilon.lower).upper >= delta


@in_passing
@given(questions, between_powers(-2, 1), between_powers(-2, 1))
def test_delta_falls_with_epsilon(question, one, other):
    mechanism, adjacency = question
    less, more = sorted((one, other))
    profile = pld.profile(mechanism, adjacency=adjacency)
    assert may_be_at_most(profile.delta(epsilon=more), profile.delta(epsilon=less))


@in_passing
@given(questions, deltas)
def test_no_method_answers_below_zero(question, delta):
    for bound in every_method(question, delta).values():
        assert bound.lower >= 0


@in_passing
@given(gaussian_questions, deltas)
def test_composed_gaussians_are_one_gaussian(question, delta):
    mechanism, adjacency = question
    precision = sum(
        times / release.noise_multiplier**2 for release, times in count_releases(mechanism).items()
    )
    one = pld.profile(Gaussian(precision**-0.5), adjacency=adjacency).epsilon(delta=delta)
    many = pld.profile(mechanism, adjacency=adjacency).epsilon(delta=delta)
    assert many.upper == pytest.approx(one.upper, rel=1e-9)
    assert many.lower == pytest.approx(one.lower, rel=1e-9)


@in_passing
@given(noises, steps, deltas)
def test_replacing_a_record_costs_what_half_the_noise_costs(noise, times, delta):
    replaced = (Repeated(Gaussian(noise), times), Adjacency.REPLACE_ONE)
    removed = (Repeated(Gaussian(noise / 2), times), ADD_OR_REMOVE)
    assert every_method(replaced, delta) == every_method(removed, delta)


@in_passing
@given(sampled, steps, deltas)
def test_zeroing_a_record_out_costs_what_removing_it_costs(release, times, delta):
    mechanism = Repeated(release, times)
    assert every_method((mechanism, Adjacency.ZERO_OUT), delta) == every_method(
        (mechanism, ADD_OR_REMOVE), delta
    )


@in_passing
@given(noises, steps, deltas)
def test_a_batch_of_everyone_is_no_sampling(noise, times, delta):
    everyone = (Repeated(PoissonSampled(Gaussian(noise), 1.0), times), ADD_OR_REMOVE)
    assert every_method(everyone, delta) == every_method(
        (Repeated(Gaussian(noise), times), ADD_OR_REMOVE), delta
    )
