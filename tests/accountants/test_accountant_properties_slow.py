"""The laws that matter most, on many random mechanisms, new ones each time: run with --slow."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpaudit.accountants import pld
from dpaudit.vocabulary.mechanism import Gaussian, PoissonSampled
from tests.accountants import oracles
from tests.accountants.golden import one_way
from tests.accountants.mechanisms import (
    at_length,
    between_powers,
    deltas,
    every_method,
    noises,
    questions,
    rates,
)

pytestmark = pytest.mark.slow


@at_length
@given(questions, deltas)
def test_every_upper_bound_is_at_least_every_lower_bound(question, delta):
    bounds = every_method(question, delta).values()
    assert max(bound.lower for bound in bounds) <= min(bound.upper for bound in bounds)


@at_length
@given(questions, deltas)
def test_delta_at_epsilon_is_delta(question, delta):
    mechanism, adjacency = question
    profile = pld.profile(mechanism, adjacency=adjacency)
    epsilon = profile.epsilon(delta=delta)
    assert profile.delta(epsilon=epsilon.upper).lower <= delta
    if epsilon.lower > 0:
        assert profile.delta(epsilon=epsilon.lower).upper >= delta


@at_length
@given(rates, noises, between_powers(-2, 0.7), st.sampled_from(("remove", "add")))
def test_one_step_holds_the_closed_form(rate, noise, epsilon, direction):
    profile = pld.profile(PoissonSampled(Gaussian(noise), rate))
    answer = one_way(profile.explain_delta(epsilon=epsilon), direction)
    truth = oracles.one_step_delta(epsilon, rate, noise, direction)
    assert answer.lower <= truth * (1 + 1e-12) + 1e-15
    assert truth * (1 - 1e-12) - 1e-15 <= answer.upper
