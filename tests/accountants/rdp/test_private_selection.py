"""The cost of the best of a random number of runs, against the exact law of the best."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpaudit.accountants import rdp
from dpaudit.accountants.rdp import expected_trials
from dpaudit.vocabulary.errors import UnsupportedMechanism
from dpaudit.vocabulary.mechanism import (
    ApproximateDP,
    Composed,
    Gaussian,
    NegativeBinomialTrials,
    PoissonSampled,
    PoissonTrials,
    RandomizedResponse,
    Repeated,
    Selected,
)
from dpaudit.vocabulary.privacy_terms import Adjacency
from tests.accountants.mechanisms import between_powers, in_passing, noises

REPLACE = Adjacency.REPLACE_ONE


def negative_binomial(shape: float, success: float, most: int) -> np.ndarray:
    """Return P[K = k], k = 0 .. most, from the definition: K >= 1 of mass ~ (1-g)^k prod .. ."""
    masses, growth = [0.0], 1.0
    for k in range(1, most + 1):
        # The first factor shape/1 is common to all, and at shape 0 the limit leaves 1/k.
        masses.append((1 - success) ** k * growth)
        growth *= (k + shape) / (k + 1)
    return np.array(masses) / math.fsum(masses)


def poisson(mean: float, most: int) -> np.ndarray:
    return np.array([math.exp(k * math.log(mean) - mean - math.lgamma(k + 1)) for k in range(most)])


def law_of_best(trials: np.ndarray, run: np.ndarray) -> np.ndarray:
    """Return the law of the largest of K outputs; the last entry is that there was none."""
    below = np.concatenate([[0.0], np.cumsum(run)])
    powers = np.array([float(trials[1:] @ at ** np.arange(1, len(trials))) for at in below])
    return np.append(np.diff(powers), trials[0])


def renyi(p: np.ndarray, q: np.ndarray, order: float) -> float:
    kept = (p > 0) & (q > 0)
    return math.log(float((p[kept] ** order * q[kept] ** (1 - order)).sum())) / (order - 1)


laws = st.one_of(
    st.builds(
        NegativeBinomialTrials, st.sampled_from([-0.5, 0.0, 0.5, 1.0, 3.0]), st.floats(0.1, 0.9)
    ),
    st.builds(PoissonTrials, between_powers(-2, 1.3)),
)


@in_passing
@given(laws, st.floats(0.5, 0.9), st.sampled_from([1.1, 1.5, 2.0, 4.0, 16.0]))
def test_no_order_of_outputs_costs_more_than_the_bound(trials, truth, order):
    """A run answers one of three; whichever answer counts as best."""
    if isinstance(trials, PoissonTrials):
        counts = poisson(trials.mean, 200)
    else:
        counts = negative_binomial(trials.shape, trials.success, 600)
    selected = Selected(RandomizedResponse(truth, 3), trials)
    bound = rdp.divergence(selected, order=order, adjacency=REPLACE).upper
    other = (1 - truth) / 2
    for places in itertools.permutations(range(3)):
        run = np.array([truth, other, other])[list(places)]
        replaced = np.array([other, truth, other])[list(places)]
        actual = renyi(law_of_best(counts, run), law_of_best(counts, replaced), order)
        assert actual <= bound * (1 + 1e-9) + 1e-9


@in_passing
@given(st.floats(-0.9, 5), st.floats(0.05, 0.95))
def test_the_expected_number_of_trials_is_that_of_the_law(shape, success):
    masses = negative_binomial(shape, success, 3000)
    mean = float(masses @ np.arange(len(masses)))
    assert mean <= expected_trials(shape, success) * (1 + 1e-9)
    assert expected_trials(shape, success) == pytest.approx(mean, rel=1e-6)


def test_the_expected_number_of_trials_has_no_gap_at_the_logarithmic_law():
    for success in (0.5, 1e-3):
        exactly = expected_trials(0.0, success)
        for shape in (1e-12, -1e-12, 1e-7, -1e-7):
            assert expected_trials(shape, success) == pytest.approx(exactly, rel=1e-5)


@in_passing
@given(noises, st.floats(0, 3), between_powers(-3, -0.1))
def test_the_second_theorem_is_taken_at_its_best_order(noise, shape, success):
    """Gaussian runs: D_a = a/(2 noise^2) in the formula, over every order that is tried."""
    order, rho = 5.0, 1 / (2 * noise**2)
    once = min(
        (1 - 1 / b) * b * rho + math.log(1 / success) / b for b in (1.0, *rdp.INTEGER_ORDERS)
    )
    formula = (
        order * rho + (1 + shape) * once + math.log(expected_trials(shape, success)) / (order - 1)
    )
    selected = Selected(Gaussian(noise), NegativeBinomialTrials(shape, success))
    assert rdp.divergence(selected, order=order).upper == pytest.approx(formula, rel=1e-9)


def test_the_sixth_theorem_is_that_of_the_paper():
    """D_a + m delta + log(m)/(a-1), delta at epsilon log(1 + 1/(a-1)): here of one Gaussian."""
    order, mean = 6.0, 20.0
    base = rdp.profile(Gaussian(5.0))
    delta = base.delta(epsilon=math.log1p(1 / (order - 1))).upper
    formula = order / 50 + mean * delta + math.log(mean) / (order - 1)
    found = rdp.divergence(Selected(Gaussian(5.0), PoissonTrials(mean)), order=order).upper
    # Its delta is looked for at whole orders alone, and to three digits.
    assert formula * (1 - 1e-3) <= found <= formula * 1.1


@in_passing
@given(laws, noises)
def test_the_best_of_several_costs_more_than_one(trials, noise):
    run = Repeated(PoissonSampled(Gaussian(noise), 0.01), 100)
    one = rdp.profile(run).epsilon(delta=1e-6).upper
    best = rdp.profile(Selected(run, trials)).epsilon(delta=1e-6).upper
    if isinstance(trials, NegativeBinomialTrials):
        assert one <= best * (1 + 1e-9)
    assert best < 200 * one + 200


def test_a_selection_composes_with_other_releases():
    selected = Selected(Gaussian(5.0), NegativeBinomialTrials(1.0, 0.1))
    both = rdp.divergence(Composed((selected, Repeated(Gaussian(2.0), 3))), order=4.0).upper
    alone = rdp.divergence(selected, order=4.0).upper
    assert both == pytest.approx(alone + 3 * 4 / 8, rel=1e-9)


def test_a_selection_among_selections_is_priced():
    inner = Selected(Gaussian(20.0), NegativeBinomialTrials(1.0, 0.5))
    outer = rdp.profile(Selected(inner, PoissonTrials(3.0))).epsilon(delta=1e-5).upper
    assert outer > rdp.profile(inner).epsilon(delta=1e-5).upper


def test_runs_that_may_reveal_all_are_refused_by_name():
    with pytest.raises(UnsupportedMechanism, match="reveal all"):
        rdp.profile(Selected(ApproximateDP(1.0, 1e-6), PoissonTrials(3.0)))
