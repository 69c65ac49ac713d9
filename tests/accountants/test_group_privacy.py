"""Group privacy: exact where the mechanism is known, a bound where only its profile is."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpaudit.accountants import gdp, group_privacy, pld
from dpaudit.accountants.group_mixtures import unsampled_group
from dpaudit.vocabulary.errors import InvalidArgument, Unresolvable
from dpaudit.vocabulary.mechanism import (
    ZCDP,
    Composed,
    DiscreteGaussian,
    DiscreteLaplace,
    Exponential,
    Gaussian,
    Laplace,
    Mechanism,
    PoissonSampled,
    PureDP,
    RandomAllocation,
    RandomizedResponse,
    Repeated,
    TreeAggregation,
    TruncatedPoisson,
)
from dpaudit.vocabulary.privacy_terms import Adjacency, Bound
from tests.accountants.mechanisms import between_powers, deltas, in_passing, noises

sizes = st.integers(1, 12)


class Known:
    """A profile by formula, whatever the mechanism."""

    def __init__(self, delta_of, epsilon_of=None) -> None:
        self.delta_of, self.epsilon_of = delta_of, epsilon_of
        self.asked = 0

    def __call__(self, mechanism, /, *, adjacency):
        return self

    def delta(self, *, epsilon: float) -> Bound:
        self.asked += 1
        return self.delta_of(epsilon)

    def epsilon(self, *, delta: float) -> Bound:
        return self.epsilon_of(delta)


def gaussian_profile(mu: float) -> Known:
    return Known(lambda e: gdp.delta_of_mu(e, mu=mu), lambda d: gdp.epsilon_of_mu(d, mu=mu))


SAMPLED = PoissonSampled(Laplace(1.0), 0.5)  # cannot be enlarged: the stubs answer for it


@in_passing
@given(noises, st.integers(1, 100), sizes, deltas)
def test_a_group_sees_gaussians_shifted_as_many_times(noise, times, size, delta):
    release = Repeated(Gaussian(noise), times)
    mu = size * math.sqrt(times) / noise
    found = group_privacy.group_epsilon(release, size=size, delta=delta)
    truth = gdp.epsilon_of_mu(delta, mu=mu)
    assert found.lower <= truth.upper * (1 + 1e-12)
    assert truth.lower <= found.upper * (1 + 1e-12)
    at = group_privacy.group_delta(release, size=size, epsilon=truth.upper)
    assert at.upper == pytest.approx(delta, rel=1e-6)


def test_replaced_records_move_a_sum_twice_as_far():
    replaced = group_privacy.group_epsilon(
        Gaussian(8.0), size=3, delta=1e-5, adjacency=Adjacency.REPLACE_ONE
    )
    assert replaced == gdp.epsilon_of_mu(1e-5, mu=2 * 3 / 8.0)


def test_noise_and_guarantees_are_enlarged_and_nothing_else():
    size = 3
    assert group_privacy.group_mechanism(Laplace(2.0, 0.5), size) == Laplace(2.0, 1.5)
    assert group_privacy.group_mechanism(DiscreteLaplace(2.0, 2), size) == DiscreteLaplace(2.0, 6)
    assert group_privacy.group_mechanism(DiscreteGaussian(2.0), size) == DiscreteGaussian(2.0, 3)
    assert group_privacy.group_mechanism(PureDP(0.5), size) == PureDP(1.5)
    assert group_privacy.group_mechanism(Exponential(0.5), size) == Exponential(1.5)
    assert group_privacy.group_mechanism(ZCDP(0.5), size) == ZCDP(4.5)
    assert group_privacy.group_mechanism(PoissonSampled(Gaussian(6.0), 1.0), size) == Gaussian(2.0)
    tree = group_privacy.group_mechanism(TreeAggregation(Gaussian(6.0), 9), size)
    assert tree == TreeAggregation(Gaussian(2.0), 9)
    both = Composed((Repeated(Gaussian(6.0), 4), Laplace(1.0)))
    assert group_privacy.group_mechanism(both, size) == Composed(
        (Repeated(Gaussian(2.0), 4), Laplace(1.0, 3.0))
    )
    for unknown in (SAMPLED, RandomizedResponse(0.75), Composed((Gaussian(6.0), SAMPLED))):
        assert group_privacy.group_mechanism(unknown, size) is None
        assert group_privacy.group_mechanism(unknown, 1) == unknown


@in_passing
@given(between_powers(-1.5, 0.3), st.integers(2, 8), deltas)
def test_chained_bound_is_tight_for_gaussians(mu, size, delta):
    """The profile alone gives nearly what the mechanism itself does, and never less."""
    truth = gdp.epsilon_of_mu(delta, mu=size * mu)
    found = group_privacy.group_epsilon(
        SAMPLED, size=size, delta=delta, accountant=gaussian_profile(mu)
    )
    assert truth.lower <= found.upper <= truth.upper * 1.05
    assert found.lower <= truth.upper
    at = group_privacy.group_delta(
        SAMPLED, size=size, epsilon=truth.upper, accountant=gaussian_profile(mu)
    )
    assert at.lower <= delta * (1 + 1e-9)
    assert delta * (1 - 1e-9) <= at.upper


@in_passing
@given(between_powers(-1, 0), st.integers(2, 6), between_powers(-2, 1))
def test_a_chain_is_never_above_one_of_equal_steps(mu, size, epsilon):
    """delta_k(k epsilon) <= delta(epsilon) (e^(k epsilon) - 1)/(e^epsilon - 1), Vadhan 2017."""
    found = group_privacy.group_delta(
        SAMPLED, size=size, epsilon=size * epsilon, accountant=gaussian_profile(mu)
    )
    one = gdp.delta_of_mu(epsilon, mu=mu).upper
    geometric = sum(math.exp(step * epsilon) for step in range(size))
    assert found.upper <= min(1.0, one * geometric) * (1 + 1e-9) + 1e-200  # for underflow


def one_answer(epsilon_zero: float) -> Known:
    """Randomized response of two answers: delta is linear in e^epsilon, and 0 from there on."""

    def delta_of(epsilon: float) -> Bound:
        top = math.exp(epsilon_zero)
        value = max(0.0, (top - math.exp(epsilon)) / (1 + top))
        return Bound(value * (1 - 1e-15), value * (1 + 1e-15))

    return Known(delta_of, lambda delta: Bound(0.0, epsilon_zero))


@in_passing
@given(between_powers(-1, 0.5), sizes)
def test_a_group_of_pure_privacy_has_so_many_times_its_epsilon(epsilon_zero, size):
    found = group_privacy.group_epsilon(
        SAMPLED, size=size, delta=1e-12, accountant=one_answer(epsilon_zero)
    )
    assert found.upper <= size * epsilon_zero * 1.05 + 1e-9


SMALL_LAWS = [
    # Four data sets in a row, the laws of what each releases; neighbors are next to each other.
    [(0.6, 0.3, 0.1), (0.5, 0.35, 0.15), (0.35, 0.4, 0.25), (0.2, 0.4, 0.4)],
    [(0.9, 0.1, 0.0), (0.8, 0.19, 0.01), (0.7, 0.25, 0.05), (0.6, 0.3, 0.1)],
]


def hockey_stick(one, other, ratio: float) -> float:
    return sum(max(0.0, p - ratio * q) for p, q in zip(one, other, strict=True))


@pytest.mark.parametrize("laws", SMALL_LAWS)
@pytest.mark.parametrize("epsilon", [0.0, 0.1, 0.5, 1.0, 2.0])
def test_no_walk_over_known_laws_gets_above_the_chain(laws, epsilon):
    """The slow way: the profile of neighbors from the laws, then their group's delta."""

    def delta_of(at: float) -> Bound:
        pairs = list(itertools.pairwise(laws))
        value = max(
            max(hockey_stick(p, q, math.exp(at)), hockey_stick(q, p, math.exp(at)))
            for p, q in pairs
        )
        return Bound(value * (1 - 1e-12), value * (1 + 1e-12))

    for size in (2, 3):
        far = [(laws[first], laws[first + size]) for first in range(4 - size)]
        truth = max(
            max(hockey_stick(p, q, math.exp(epsilon)), hockey_stick(q, p, math.exp(epsilon)))
            for p, q in far
        )
        found = group_privacy.group_delta(
            SAMPLED, size=size, epsilon=epsilon, accountant=Known(delta_of)
        )
        assert truth <= found.upper


def test_chain_without_step_weights_is_detected(monkeypatch):
    def unweighed(sticks, size, spacing):
        return HONEST(sticks, 1, spacing).repeat(size) * size

    monkeypatch.setattr(group_privacy, "_chains", unweighed)
    found = group_privacy.group_epsilon(
        SAMPLED, size=5, delta=1e-5, accountant=gaussian_profile(1.0)
    )
    assert found.upper < gdp.epsilon_of_mu(1e-5, mu=5.0).lower


HONEST = group_privacy._chains


@in_passing
@given(between_powers(-1, 0), st.integers(2, 6), deltas)
def test_larger_groups_are_protected_less(mu, size, delta):
    small, large = (
        group_privacy.group_epsilon(Gaussian(1 / mu), size=count, delta=delta)
        for count in (size, size + 1)
    )
    assert small.upper < large.upper


def test_a_sampled_run_is_priced_by_its_own_profile():
    run = Repeated(PoissonSampled(Gaussian(1.0), 0.1), 20)
    one = pld.profile(run).epsilon(delta=1e-5)
    pair = group_privacy.group_epsilon(run, size=2, delta=1e-5)
    assert one.lower <= pair.lower
    # A pair is in some batch twice as often at least; and no worse than without sampling.
    assert 1.5 * one.upper < pair.upper < gdp.epsilon_of_mu(1e-5, mu=2 * math.sqrt(20)).upper


def test_few_queries_are_made():
    profile = gaussian_profile(0.7)
    group_privacy.group_epsilon(SAMPLED, size=4, delta=1e-6, accountant=profile)
    assert profile.asked <= 70


def test_nondecreasing_delta_has_no_group_privacy():
    stuck = Known(lambda epsilon: Bound(1e-6, 1e-6), lambda delta: Bound(0.0, 1.0))
    with pytest.raises(Unresolvable, match="group of 4"):
        group_privacy.group_epsilon(SAMPLED, size=4, delta=1e-7, accountant=stuck)


def test_delta_below_what_doubles_hold_is_not_taken_for_nothing():
    """At a ratio of e^780 a delta that underflowed still counts."""
    falls_off = Known(lambda epsilon: Bound(0.0, 0.0 if epsilon >= 20 else 1.0))
    found = group_privacy.group_delta(SAMPLED, size=40, epsilon=800.0, accountant=falls_off)
    assert found.upper == 1.0


@pytest.mark.parametrize("size", [0, -1, 2.0, True])
def test_a_group_of_no_size_is_refused_by_name(size):
    with pytest.raises(InvalidArgument, match=f"size .* got {size!r}"):
        group_privacy.group_epsilon(Gaussian(1.0), size=size, delta=1e-5)
    with pytest.raises(InvalidArgument, match=f"size .* got {size!r}"):
        group_privacy.group_delta(Gaussian(1.0), size=size, epsilon=1.0)


@pytest.mark.parametrize("epsilon", [-1.0, math.nan, math.inf])
def test_an_epsilon_out_of_range_is_refused_by_name(epsilon):
    with pytest.raises(InvalidArgument, match=f"epsilon .* got {epsilon!r}"):
        group_privacy.group_delta(Gaussian(1.0), size=2, epsilon=epsilon)


@pytest.mark.parametrize("size", [65, 1000])
def test_large_groups_cost_at_most_the_noise_without_sampling(size):
    """More than 64 records have chains of equal ratios alone, and this run has none."""
    run = Repeated(PoissonSampled(Gaussian(1.0), 0.01), 100)
    found = group_privacy.group_epsilon(run, size=size, delta=1e-6)
    most = gdp.epsilon_of_mu(1e-6, mu=10.0 * size).upper
    assert 0 < found.lower <= found.upper <= most * (1 + 1e-9)
    at = group_privacy.group_delta(run, size=size, epsilon=most)
    assert at.upper <= 1e-6 * (1 + 1e-6)


def test_noise_that_vanishes_over_the_size_of_a_group_gives_no_privacy() -> None:
    step = PoissonSampled(Gaussian(1e-310), 0.1)
    found = group_privacy.group_delta(step, size=10**18, epsilon=1.0)
    assert found.upper == 1.0


NOISE = Gaussian(4.0)
UNSAMPLED: list[tuple[Mechanism, Mechanism]] = [
    (PoissonSampled(NOISE, 0.1), Gaussian(1.0)),
    (TruncatedPoisson(NOISE, 0.1, 100, 15), Gaussian(0.5)),
    (RandomAllocation(NOISE, 10, 3), Repeated(Gaussian(1.0), 3)),
    (Composed((NOISE, Repeated(PoissonSampled(NOISE, 0.1), 9))),
     Composed((Gaussian(1.0), Repeated(Gaussian(1.0), 9)))),
]  # fmt: skip


@pytest.mark.parametrize(("sampled", "whole"), UNSAMPLED, ids=lambda one: type(one).__name__)
def test_all_records_of_a_group_may_join_the_same_batch(sampled, whole):
    """In a truncated batch, each of them may also displace another record."""
    assert unsampled_group(sampled, 4, group_privacy.group_mechanism) == whole


def test_groups_of_sampled_laplace_noise_have_no_bound_without_sampling():
    step = PoissonSampled(Laplace(1.0), 0.1)
    assert unsampled_group(step, 4, group_privacy.group_mechanism) is None
    assert (
        unsampled_group(Composed((step, Gaussian(1.0))), 4, group_privacy.group_mechanism) is None
    )
