"""One and two steps, against closed forms and sums taken the slow, obvious way."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import ndtr

from dpaudit.accountants import pld
from dpaudit.accountants.numerics import CertifiedInterval
from dpaudit.accountants.pld import enclosure
from dpaudit.vocabulary.mechanism import (
    Composed,
    Gaussian,
    PoissonSampled,
    RandomizedResponse,
    Repeated,
)
from dpaudit.vocabulary.privacy_terms import Adjacency, Bound
from tests.accountants import oracles
from tests.accountants.golden import one_way
from tests.accountants.mechanisms import between_powers, in_passing, noises, rates

DIRECTIONS = ("remove", "add")
SUM_ERROR = 1e-9  # of the oracle's trapezoid rule: relative, and absolute where delta is tiny


def holds(answer: Bound | CertifiedInterval, truth: float, error: float = 1e-12) -> bool:
    """Allow for what the oracle itself, in double precision, may be wrong by."""
    slack = error * truth + 1e-15
    return answer.lower <= truth + slack and truth - slack <= answer.upper


def sampled(rate: float, noise: float) -> PoissonSampled:
    return PoissonSampled(Gaussian(noise), rate)


def test_the_oracle_itself_agrees_with_a_plain_integral():
    """One step at (0.3, 1.5), epsilon 0.2, by a million rectangles."""
    import numpy as np

    x = np.linspace(-20, 20, 1_000_001)
    base = np.exp(-(x**2) / 4.5) / (1.5 * math.sqrt(2 * math.pi))
    moved = np.exp(-((x - 1) ** 2) / 4.5) / (1.5 * math.sqrt(2 * math.pi))
    mixture = 0.7 * base + 0.3 * moved
    for direction, p, q in (("remove", mixture, base), ("add", base, mixture)):
        integral = np.maximum(p - math.exp(0.2) * q, 0).sum() * (x[1] - x[0])
        assert oracles.one_step_delta(0.2, 0.3, 1.5, direction) == pytest.approx(integral, rel=1e-6)


@in_passing
@given(rates, noises, between_powers(-2, 0.7), st.sampled_from(DIRECTIONS))
def test_one_step_holds_the_closed_form(rate, noise, epsilon, direction):
    answers = pld.profile(sampled(rate, noise)).explain_delta(epsilon=epsilon)
    truth = oracles.one_step_delta(epsilon, rate, noise, direction)
    assert holds(one_way(answers, direction), truth)


@in_passing
@given(rates, noises, between_powers(-2, 0.7))
def test_one_step_answers_for_the_worse_direction(rate, noise, epsilon):
    answer = pld.profile(sampled(rate, noise)).delta(epsilon=epsilon)
    truth = max(oracles.one_step_delta(epsilon, rate, noise, way) for way in ("remove", "add"))
    assert holds(answer, truth)


TWO_STEPS = [
    ((0.01, 1.0), (0.01, 1.0)),
    ((0.3, 2.0), (0.3, 2.0)),
    ((0.001, 0.5), (0.001, 0.5)),
    ((0.001, 0.5), (0.5, 8.0)),
    ((1.0, 3.0), (0.05, 0.8)),
]


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize(("first", "second"), TWO_STEPS)
@pytest.mark.parametrize("epsilon", [0.0, 0.1, 0.7, 2.5])
def test_two_steps_hold_the_integral_over_the_first(first, second, epsilon, direction):
    profile = pld.profile(Composed((sampled(*first), sampled(*second))))
    truth = oracles.two_step_delta(epsilon, first, second, direction)
    answer = one_way(profile.explain_delta(epsilon=epsilon), direction)
    assert holds(answer, truth, SUM_ERROR)


@pytest.mark.parametrize(("categories", "times"), [(2, 1), (2, 7), (3, 1), (3, 6), (5, 4)])
@pytest.mark.parametrize("truth", [0.55, 0.9])
@pytest.mark.parametrize("epsilon", [0.0, 0.3, 1.0, 3.0, 8.0])
def test_few_responses_hold_the_sum_over_every_string_of_answers(epsilon, truth, categories, times):
    mechanism = Repeated(RandomizedResponse(truth, categories), times)
    answer = pld.profile(mechanism, adjacency=Adjacency.REPLACE_ONE).delta(epsilon=epsilon)
    assert holds(answer, oracles.responses_delta(epsilon, truth, categories, times))


@pytest.mark.parametrize("epsilon", [0.0, 0.5, 2.0, 4.0])
def test_a_response_and_a_gaussian_hold_the_mean_over_the_response(epsilon):
    def gaussian_delta(at: float, mu: float) -> float:
        return float(ndtr(mu / 2 - at / mu) - math.exp(at) * ndtr(-mu / 2 - at / mu))

    loss = math.log(0.8 / 0.2)
    truth = 0.8 * gaussian_delta(epsilon - loss, 1.0) + 0.2 * gaussian_delta(epsilon + loss, 1.0)
    mechanism = Composed((RandomizedResponse(0.8), Gaussian(2.0)))  # replaced: shift 2 / 2
    answer = pld.profile(mechanism, adjacency=Adjacency.REPLACE_ONE).delta(epsilon=epsilon)
    assert holds(answer, truth)


@in_passing
@given(rates, noises, between_powers(-2, 0.7))
def test_a_coarse_grid_is_wider_and_never_wrong(rate, noise, epsilon):
    truth = max(oracles.one_step_delta(epsilon, rate, noise, way) for way in ("remove", "add"))
    for width in (0.05, 5.0):
        profile = enclosure.profile(sampled(rate, noise), relative_width=width)
        assert holds(profile.delta(epsilon=epsilon), truth)
