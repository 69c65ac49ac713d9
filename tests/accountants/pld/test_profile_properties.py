"""Properties of the PLD accountant for arbitrary compositions, checked on intervals."""

from __future__ import annotations

import math

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from dpaudit.accountants import pld
from dpaudit.accountants.numerics import Direction
from dpaudit.accountants.pld.laws import loss_query
from dpaudit.accountants.registry import sampling_accountants
from dpaudit.accountants.releases import count_releases
from dpaudit.vocabulary.errors import DpauditError, Unresolvable
from dpaudit.vocabulary.mechanism import (
    ApproximateDP,
    Composed,
    DiscreteGaussian,
    DiscreteLaplace,
    Exponential,
    Gaussian,
    Laplace,
    Mechanism,
    PoissonSampled,
    PureDP,
    RandomizedResponse,
    Repeated,
    SampledWithoutReplacement,
)
from dpaudit.vocabulary.privacy_terms import Adjacency, Bound
from tests.accountants.mechanisms import (
    at_length,
    between_powers,
    compositions,
    in_passing,
    noises,
    rates,
    steps,
)

ADD, REPLACE = Adjacency.ADD_OR_REMOVE_ONE, Adjacency.REPLACE_ONE

losses = between_powers(-1.5, 0.3)
deltas = between_powers(-12, -2)
elementary = st.one_of(
    st.builds(Gaussian, noises),
    st.builds(Laplace, noises),
    st.builds(DiscreteGaussian, st.floats(0.5, 20), st.integers(1, 3)),
    st.builds(DiscreteLaplace, st.floats(0.5, 20), st.integers(1, 3)),
    st.builds(Exponential, losses),
    st.builds(PureDP, losses),
    st.builds(ApproximateDP, losses, between_powers(-12, -6)),
)
added = elementary | st.builds(PoissonSampled, elementary, rates)
replaced = (
    elementary
    | st.builds(RandomizedResponse, st.floats(0.55, 0.95), st.integers(2, 4))
    | st.builds(SampledWithoutReplacement, elementary, st.just(3), st.integers(4, 1000))
    | st.builds(PoissonSampled, st.builds(Gaussian, noises), rates)
)
Question = tuple[Mechanism, Adjacency]
questions = st.tuples(compositions(added), st.just(ADD)) | st.tuples(
    compositions(replaced), st.just(REPLACE)
)


def may_be_at_most(smaller: Bound, larger: Bound) -> bool:
    """Return whether two intervals are consistent with smaller <= larger."""
    return smaller.lower <= larger.upper


def assume_infinite_loss_is_rare(question: Question, delta: float) -> None:
    """Skip mechanisms whose infinite loss has more probability than delta."""
    releases = count_releases(question[0]).items()
    parts = ((getattr(release, "mechanism", release), times) for release, times in releases)
    infinite = sum(times * part.delta for part, times in parts if isinstance(part, ApproximateDP))
    assume(infinite < 0.99 * delta)


def epsilon_of(mechanism: Mechanism, adjacency: Adjacency, delta: float) -> Bound:
    assume_infinite_loss_is_rare((mechanism, adjacency), delta)
    return pld.profile(mechanism, adjacency=adjacency).epsilon(delta=delta)


def every_answer(question: Question, delta: float) -> list[Bound]:
    """Return the intervals of all accountants that accept the mechanism."""
    mechanism, adjacency = question
    found: list[Bound] = []
    for accountant in sampling_accountants():
        try:
            found += accountant.bounds(mechanism, delta, adjacency).values()
        except DpauditError:
            continue
    return found


def check_accountants(question: Question, delta: float) -> None:
    assume_infinite_loss_is_rare(question, delta)
    answers = every_answer(question, delta)
    assert answers
    assert max(a.lower for a in answers) <= min(a.upper for a in answers)


def check_duality(question: Question, delta: float) -> None:
    mechanism, adjacency = question
    profile = pld.profile(mechanism, adjacency=adjacency)
    epsilon = epsilon_of(mechanism, adjacency, delta)
    assert profile.delta(epsilon=epsilon.upper).lower <= delta
    if epsilon.lower > 0:  # at 0, delta may be more than enough
        assert profile.delta(epsilon=epsilon.lower).upper >= delta


def check_width(question: Question, delta: float) -> None:
    """Applies where dominating pairs are attained: not to replaced Poisson samples or choices."""
    assume_infinite_loss_is_rare(question, delta)
    mechanism, adjacency = question
    profile = pld.profile(mechanism, adjacency=adjacency)
    if not loss_query.LossQuery(
        profile.releases, adjacency, Direction.REMOVED, loss_query.BoundSide.ABOVE
    ).exact:
        return
    for answer in profile.explain_epsilon(delta=delta):
        assert answer.is_narrow(1e-3, 1e-6), answer


@in_passing
@given(questions, deltas)
def test_no_accountant_contradicts_another(question, delta):
    check_accountants(question, delta)


@in_passing
@given(questions, deltas)
def test_delta_at_epsilon_is_delta(question, delta):
    check_duality(question, delta)


@in_passing
@given(questions, deltas)
def test_epsilon_is_narrow_to_a_thousandth(question, delta):
    check_width(question, delta)


@in_passing
@given(questions, deltas, deltas)
def test_epsilon_falls_with_delta(question, one, other):
    less, more = sorted((one, other))
    assert may_be_at_most(epsilon_of(*question, more), epsilon_of(*question, less))


@in_passing
@given(questions, deltas, st.integers(2, 5))
def test_more_steps_never_lower_epsilon(question, delta, times):
    mechanism, adjacency = question
    longer = Repeated(mechanism, times)
    assert may_be_at_most(
        epsilon_of(mechanism, adjacency, delta), epsilon_of(longer, adjacency, delta)
    )


@in_passing
@given(elementary, rates, rates, steps, deltas)
def test_a_higher_rate_never_lowers_epsilon(inner, one, other, times, delta):
    rarely, often = (Repeated(PoissonSampled(inner, q), times) for q in sorted((one, other)))
    assert may_be_at_most(epsilon_of(rarely, ADD, delta), epsilon_of(often, ADD, delta))


@in_passing
@given(st.sampled_from([Gaussian, Laplace]), noises, noises, rates, steps, deltas)
def test_more_noise_never_raises_epsilon(noise, one, other, rate, times, delta):
    quiet, loud = (
        Repeated(PoissonSampled(noise(scale), rate), times) for scale in sorted((one, other))
    )
    assert may_be_at_most(epsilon_of(loud, ADD, delta), epsilon_of(quiet, ADD, delta))


@in_passing
@given(st.lists(added, min_size=2, max_size=3), deltas)
def test_the_order_of_composition_does_not_matter(releases, delta):
    forth = epsilon_of(Composed(tuple(releases)), ADD, delta)
    back = epsilon_of(Composed(tuple(releases[::-1])), ADD, delta)
    assert may_be_at_most(forth, back)
    assert may_be_at_most(back, forth)


@in_passing
@given(added, st.integers(2, 50), deltas)
def test_a_split_repetition_has_the_same_epsilon(release, times, delta):
    whole = Repeated(release, times)
    split = Composed((Repeated(release, times - 1), release))
    assert epsilon_of(whole, ADD, delta) == epsilon_of(split, ADD, delta)


@in_passing
@given(elementary, st.integers(1, 60), st.integers(2, 9), deltas)
def test_whole_batches_have_the_epsilon_without_sampling(inner, times, size, delta):
    whole = epsilon_of(Repeated(inner, times), REPLACE, delta)
    batches = Repeated(SampledWithoutReplacement(inner, size, size), times)
    assert epsilon_of(batches, REPLACE, delta) == whole


@in_passing
@given(elementary, st.integers(1, 60), st.integers(2, 50), deltas)
def test_batches_have_at_most_the_epsilon_without_sampling(inner, times, size, delta):
    part = Repeated(SampledWithoutReplacement(inner, 1, size), times)
    assert may_be_at_most(
        epsilon_of(part, REPLACE, delta), epsilon_of(Repeated(inner, times), REPLACE, delta)
    )


@in_passing
@given(questions, between_powers(-2, 0.7), between_powers(-2, 0.7), between_powers(-2, 0.7))
def test_delta_is_convex_in_the_exponential_of_epsilon(question, one, other, third):
    low, middle, high = sorted((one, other, third))
    profile = pld.profile(question[0], adjacency=question[1])
    a, b, c = (profile.delta(epsilon=e) for e in (low, middle, high))
    left, right = math.exp(high) - math.exp(middle), math.exp(middle) - math.exp(low)
    if left + right > 0:
        assert b.lower <= (left * a.upper + right * c.upper) / (left + right) * (1 + 1e-12)
    assert may_be_at_most(c, a)


@pytest.mark.parametrize("times", [1, 2, 11])
def test_no_epsilon_is_enough_where_the_loss_is_infinite(times):
    mechanism = Repeated(ApproximateDP(1.0, 1e-6), times)
    with pytest.raises(Unresolvable, match="no epsilon is enough"):
        pld.profile(mechanism).epsilon(delta=0.99e-6 * times)


def test_a_declared_guarantee_is_certified_unchanged():
    found = pld.profile(ApproximateDP(1.0, 1e-6)).epsilon(delta=1e-6)
    assert found.lower <= 1.0 <= found.upper <= 1.0 + 1e-11


@pytest.mark.slow
@at_length
@given(questions, deltas)
def test_no_accountant_contradicts_another_at_length(question, delta):
    check_accountants(question, delta)


@pytest.mark.slow
@at_length
@given(questions, deltas)
def test_delta_at_epsilon_is_delta_at_length(question, delta):
    check_duality(question, delta)


@pytest.mark.slow
@at_length
@given(questions, deltas)
def test_epsilon_is_narrow_to_a_thousandth_at_length(question, delta):
    check_width(question, delta)
