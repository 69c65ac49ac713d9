"""zCDP: rho of each release from both sides, and the epsilon it gives."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpaudit.accountants import gdp, rdp, zcdp
from dpaudit.vocabulary.errors import UnsupportedMechanism
from dpaudit.vocabulary.mechanism import (
    ZCDP,
    ApproximateDP,
    Composed,
    DiscreteGaussian,
    DiscreteLaplace,
    Exponential,
    Gaussian,
    Laplace,
    PoissonSampled,
    PoissonTrials,
    PureDP,
    RandomAllocation,
    RandomizedResponse,
    Repeated,
    Selected,
)
from dpaudit.vocabulary.privacy_terms import Adjacency
from tests.accountants.mechanisms import between_powers, deltas, in_passing, noises, steps

ADD_OR_REMOVE, REPLACE = Adjacency.ADD_OR_REMOVE_ONE, Adjacency.REPLACE_ONE
losses = between_powers(-2, 1)
releases = st.one_of(
    st.builds(Gaussian, noises),
    st.builds(DiscreteGaussian, noises),
    st.builds(Laplace, noises),
    st.builds(DiscreteLaplace, noises),
    st.builds(Exponential, losses),
    st.builds(PureDP, losses),
    st.builds(ZCDP, losses),
)


@in_passing
@given(losses)
def test_laplace_has_the_rho_of_its_mean_loss(loss):
    """loss + e^-loss - 1: Theorem 1 of arXiv:2510.25746, proven there."""
    rho = zcdp.profile(Laplace(1 / loss)).rho
    truth = loss + math.expm1(-loss)
    assert rho.lower <= truth * (1 + 1e-9)
    assert truth * (1 - 1e-9) <= rho.upper <= truth * (1 + 1e-3)


@in_passing
@given(losses)
def test_pure_privacy_has_the_rho_of_its_mean_loss(loss):
    rho = zcdp.profile(PureDP(loss)).rho
    truth = loss * math.tanh(loss / 2)
    assert rho.lower <= truth * (1 + 1e-9)
    assert truth * (1 - 1e-9) <= rho.upper <= min(loss**2 / 2, truth * (1 + 1e-3)) * (1 + 1e-9)


@in_passing
@given(losses)
def test_a_choice_has_at_most_an_eighth_of_its_square(epsilon):
    rho = zcdp.profile(Exponential(epsilon)).rho
    assert rho.upper <= epsilon**2 / 8 * (1 + 1e-9)
    if epsilon < 0.1:
        assert rho.lower >= epsilon**2 / 8 * (1 - 1e-2)


@in_passing
@given(releases, between_powers(-2, 2).map(lambda more: 1 + more))
def test_rho_bounds_every_divergence(release, order):
    rho = zcdp.profile(release).rho
    assert rdp.divergence(release, order=order).lower <= order * rho.upper * (1 + 1e-12)


@in_passing
@given(st.lists(st.tuples(releases, steps), min_size=1, max_size=3))
def test_rho_adds_up(parts):
    whole = zcdp.profile(Composed(tuple(Repeated(*part) for part in parts))).rho
    each = [(zcdp.profile(release).rho, times) for release, times in parts]
    assert whole.lower <= sum(times * rho.upper for rho, times in each)
    assert whole.upper == pytest.approx(sum(times * rho.upper for rho, times in each), rel=1e-9)


@in_passing
@given(noises, steps, deltas)
def test_epsilon_lies_above_the_gaussian_and_just_below_renyi(noise, times, delta):
    mechanism = Repeated(Gaussian(noise), times)
    found = zcdp.profile(mechanism).epsilon(delta=delta).upper
    assert found >= gdp.epsilon_of_mu(delta, mu=math.sqrt(times) / noise).lower
    assert found <= rdp.profile(mechanism).epsilon(delta=delta).upper * (1 + 1e-4)


@in_passing
@given(releases, deltas)
def test_delta_at_epsilon_is_delta(release, delta):
    profile = zcdp.profile(release)
    epsilon = profile.epsilon(delta=delta).upper
    if epsilon > 1e-3:
        assert profile.delta(epsilon=epsilon).upper == pytest.approx(delta, rel=1e-3)


def test_replacing_a_record_costs_four_times_the_rho():
    once = zcdp.profile(Gaussian(2.0)).rho.upper
    assert zcdp.profile(Gaussian(2.0), adjacency=REPLACE).rho.upper == pytest.approx(4 * once)


def test_randomized_response_is_priced_where_a_record_is_replaced():
    rho = zcdp.profile(RandomizedResponse(0.75), adjacency=REPLACE).rho
    assert rho.upper == pytest.approx(math.log(3) * math.tanh(math.log(3) / 2), rel=1e-3)


@pytest.mark.parametrize(
    "mechanism",
    [
        PoissonSampled(Gaussian(1.0), 0.1),
        RandomAllocation(Gaussian(1.0), 10),
        ApproximateDP(1.0, 1e-6),
        Selected(Gaussian(1.0), PoissonTrials(3.0)),
    ],
)
def test_what_has_no_useful_rho_is_refused_by_name(mechanism):
    with pytest.raises(UnsupportedMechanism, match=type(mechanism).__name__):
        zcdp.profile(Composed((Gaussian(1.0), mechanism)))
