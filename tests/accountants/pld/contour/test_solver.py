"""Every method for delta and epsilon, forced, against closed forms and each other."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy.special import ndtr

from dpaudit.accountants import pld
from dpaudit.accountants.pld import closed_form
from dpaudit.accountants.pld.contour import solver
from dpaudit.vocabulary.mechanism import (
    Composed,
    Gaussian,
    MixtureOfGaussians,
    SampledWithoutReplacement,
)
from dpaudit.vocabulary.privacy_terms import Adjacency
from tests.accountants import forced_contours, oracles
from tests.accountants.golden import of_ledger, one_way

CLOSED_FORM, SUM = 1e-10, 1e-9  # relative errors of the oracles
DIRECTIONS = ("remove", "add")

ONE_STEP = [
    (rate, noise, share)
    for rate, noise in [(0.01, 1.0), (1e-3, 0.4), (0.3, 3.0), (1e-6, 0.3), (0.9, 2.0), (1e-5, 20.0)]
    for share in (0.02, 0.3, 0.8)
]


def epsilon_and_truth(rate: float, noise: float, share: float, direction: str):
    """Return an epsilon that is ``share`` of the largest relevant loss, and delta there."""
    composition = forced_contours.composition_of([(rate, noise, 1)], direction)
    epsilon = share * composition.largest
    return epsilon, oracles.one_step_delta(epsilon, rate, noise, direction)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize(("rate", "noise", "share"), ONE_STEP)
def test_one_step_as_a_composition_holds_the_closed_form(rate, noise, share, direction):
    epsilon, truth = epsilon_and_truth(rate, noise, share, direction)

    def cut_for(delta):
        return forced_contours.composition_of([(rate, noise, 1)], direction, delta=delta)

    answer = solver.delta_by_contour(cut_for, epsilon)
    assert answer.lower <= truth * (1 + CLOSED_FORM)
    assert truth * (1 - CLOSED_FORM) <= answer.upper
    found = solver.epsilon_by_contour(cut_for(truth), truth)
    slack = 1e-9 * epsilon + 1e-13
    assert found.lower <= epsilon + slack
    assert epsilon - slack <= found.upper


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize(("rate", "noise", "share"), ONE_STEP)
def test_one_release_by_one_integral_holds_the_closed_form(rate, noise, share, direction):
    epsilon, truth = epsilon_and_truth(rate, noise, share, direction)
    ((distribution, _),) = forced_contours.composition_of(
        [(rate, noise, 1)], direction, delta=truth
    ).distributions
    answer = closed_form.single_release_delta(distribution, epsilon)
    assert answer.lower <= truth * (1 + CLOSED_FORM)
    assert truth * (1 - CLOSED_FORM) <= answer.upper
    assert answer.upper - answer.lower <= 1e-3 * truth
    found = closed_form.single_release_epsilon(distribution, truth)
    slack = 1e-9 * epsilon + 1e-13
    assert found.lower - slack <= epsilon <= found.upper + slack


HEAVY = [
    ((1e-3, 0.35), (1e-3, 0.35)),
    ((1e-5, 0.3), (0.4, 6.0)),
    ((0.02, 0.6), (1e-4, 0.45)),
    ((1e-3, 0.5), (1.0, 4.0)),
]


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize(("first", "second"), HEAVY)
@pytest.mark.parametrize("epsilon", [0.002, 0.3, 4.0])
def test_two_heavy_tailed_steps_hold_the_integral_over_the_first(first, second, epsilon, direction):
    truth = oracles.two_step_delta(epsilon, first, second, direction)
    profile = pld.profile(of_ledger([(*first, 1), (*second, 1)]))
    answer = one_way(profile.explain_delta(epsilon=epsilon), direction)
    slack = SUM * truth + 1e-15
    assert answer.lower <= truth + slack
    assert truth - slack <= answer.upper


LEDGERS = [
    pytest.param([(0.01, 1.0, 1000)], 1.8, id="A"),
    pytest.param([(0.25, 5.0, 100)], 2.0, id="F"),
    pytest.param([(0.02, 0.7, 200)], 5.0, id="heavier"),
    pytest.param([(1e-3, 0.6, 300)], 1.5, id="few jumps"),
    pytest.param([(1e-5, 0.4, 20)], 6.0, id="fewer"),
    pytest.param([(0.01, 1.0, 500), (0.02, 2.0, 500), (1.0, 30.0, 10)], 2.0, id="mixed"),
    pytest.param([(1e-4, 0.8, 2000), (0.2, 12.0, 300)], 1.0, id="rare"),
]


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize(("entries", "epsilon"), LEDGERS)
def test_all_routes_overlap(entries, epsilon, direction):
    composition = forced_contours.composition_of(entries, direction)
    epsilon = min(epsilon, 0.4 * composition.largest)
    routes = {"plain": forced_contours.plain(composition, epsilon)}
    routes |= {
        f"by {share}": forced_contours.smoothed(composition, epsilon, share)
        for share in (0.01, 0.1)
    }
    for cap in (0.2, 0.6, 1.3):
        routes[f"split at {cap}"] = forced_contours.split(composition, epsilon, cap * epsilon)
    ends = [
        (route.lower(epsilon), route.upper(epsilon))
        for route in routes.values()
        if route is not None
    ]
    assert len(ends) >= 2
    for (lower, _), (_, upper) in itertools.product(ends, ends):
        assert lower <= upper


def single_big_jump(epsilon: float, rate: float, noise: float, times: int) -> float:
    """Return P(any output above x) - e^epsilon Q(the same), the best over x: a lower bound."""
    x = np.linspace(-3 * noise, 1 + 12 * noise, 4001)
    q = ndtr(-x / noise)
    p = (1 - rate) * q + rate * ndtr((1 - x) / noise)
    some_p, some_q = -np.expm1(times * np.log1p(-p)), -np.expm1(times * np.log1p(-q))
    return float((some_p - math.exp(epsilon) * some_q).max())


@pytest.mark.parametrize("rate", [1e-6, 1e-4, 0.01])
@pytest.mark.parametrize("noise", [0.3, 0.5, 1.0])
@pytest.mark.parametrize("times", [3, 100, 3000])
def test_no_upper_end_lies_below_one_big_jump(rate, noise, times):
    profile = pld.profile(of_ledger([(rate, noise, times)]))
    for epsilon in (0.5, 6.0):
        least = single_big_jump(epsilon, rate, noise, times)
        if least > 1e-250:
            assert profile.delta(epsilon=epsilon).upper >= least * (1 - 1e-9)


OFTEN, RARELY = [[(0.01, 1.0, 300)], [(0.5, 8.0, 30)]], [(1e-5, 0.5, 200)]
INVERSE = [(entries, delta) for entries in (*OFTEN, RARELY) for delta in (1e-2, 1e-30, 1e-250)]
INVERSE[-1] = pytest.param(*INVERSE[-1], marks=pytest.mark.slow)  # 6 s


@pytest.mark.parametrize(("entries", "delta"), INVERSE)
def test_epsilon_and_delta_are_inverse_down_to_1e_300(entries, delta):
    profile = pld.profile(of_ledger(entries))
    epsilon = profile.epsilon(delta=delta)
    assert profile.delta(epsilon=epsilon.upper).lower <= delta
    if epsilon.lower > 0:
        assert profile.delta(epsilon=epsilon.lower).upper >= delta


# Few jumps, and delta near the probability of any jump: the hardest to make narrow.
HARD = [
    ([(6.1e-6, 0.677, 48)], 1.52e-6),
    ([(3.5e-6, 0.43, 8)], 1.89e-6),
    ([(5.09e-6, 1.0, 3)], 1.69e-6),
    ([(2.1e-6, 11.1, 136952), (2.07e-6, 0.963, 288), (2.17e-4, 89.4, 3)], 4.73e-14),
    ([(0.00209, 0.527, 2)], 1.156e-9),
    ([(1.5e-5, 1.234, 920)], 1.26e-16),
    ([(2.8e-6, 23.0, 7756), (7.9e-6, 1.01, 1026), (9.9e-6, 61.6, 880282)], 2.06e-10),
]


@pytest.mark.parametrize(("entries", "delta"), HARD)
def test_few_jumps_are_narrow_in_both_directions(entries, delta):
    for answer in pld.profile(of_ledger(entries)).explain_epsilon(delta=delta):
        assert answer.is_narrow(1e-3, 1e-6), answer


# A release of a few huge losses, next to one whose order of a similar Gaussian is far too large.
FAR_MIXTURE = MixtureOfGaussians(300.0, [0.0, 1.0, 2.0], [0.5, 0.3, 0.2], [0.0, 1.0], [0.9, 0.1])


@pytest.mark.parametrize(
    ("noise", "size", "delta"),
    [(0.027, 10**5, 1e-14), pytest.param(0.03, 10**6, 1e-12, marks=pytest.mark.slow)],
)
def test_the_smaller_direction_is_dismissed_at_an_order_that_its_losses_allow(noise, size, delta):
    plan = Composed((SampledWithoutReplacement(Gaussian(noise), 1, size), FAR_MIXTURE))
    profile = pld.profile(plan, adjacency=Adjacency.REPLACE_ONE)
    whole = profile.explain_epsilon(delta=delta)
    found = profile.epsilon(delta=delta)
    assert max(one.lower for one in whole) <= found.upper
    assert found.lower <= max(one.upper for one in whole)
    assert found.upper <= found.lower * 1.0001
