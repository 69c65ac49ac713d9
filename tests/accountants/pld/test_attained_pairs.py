"""Pairs that some neighbors attain: lower bounds that compositions reach."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import norm

from dpaudit.accountants import pld
from dpaudit.accountants.numerics import Direction
from dpaudit.accountants.pld.laws.gaussian_mixtures import lower_law, replaced_pair
from dpaudit.accountants.pld.laws.two_candidates import OFFSETS
from dpaudit.vocabulary.mechanism import Exponential, Gaussian, PoissonSampled, Repeated
from dpaudit.vocabulary.privacy_terms import Adjacency


def mirrored_delta(sigma: float, rate: float, times: int, epsilon: float) -> float:
    """Integrate (P - e^epsilon Q)+ on a grid of the composed loss, by convolution."""
    x = np.arange(-12 * sigma - 1, 12 * sigma + 1, 2e-4 * sigma)
    p = (1 - rate) * norm.pdf(x, 0, sigma) + rate * norm.pdf(x, 1, sigma)
    q = (1 - rate) * norm.pdf(x, 0, sigma) + rate * norm.pdf(x, -1, sigma)
    loss, mass = np.log(p / q), p * (x[1] - x[0])
    step = 1e-3
    cells = np.round(loss / step).astype(int)
    law = np.bincount(cells - cells.min(), mass)
    total, start = law, cells.min()
    for _ in range(times - 1):
        total, start = np.convolve(total, law), start + cells.min()
    losses = (start + np.arange(len(total))) * step
    return float((total * -np.expm1(np.minimum(epsilon - losses, 0))).sum())


@pytest.mark.parametrize(
    ("sigma", "rate", "times", "delta"),
    [(1.0, 0.1, 1, 1e-3), (0.7, 0.01, 2, 1e-4), (2.0, 0.5, 3, 1e-2), (1.0, 1.0, 2, 1e-3)],
)
def test_a_record_that_changes_sign_attains_the_lower_end(
    sigma: float, rate: float, times: int, delta: float
) -> None:
    plan = Repeated(PoissonSampled(Gaussian(sigma), rate), times)
    found = pld.profile(plan, adjacency=Adjacency.REPLACE_ONE).epsilon(delta=delta)
    # The lower end is attained up to the width of the cells, and is not above the pair's epsilon.
    assert mirrored_delta(sigma, rate, times, found.lower) == pytest.approx(delta, rel=0.02)
    assert mirrored_delta(sigma, rate, times, found.lower + 5e-3) < delta * 1.001


def test_the_published_value_of_dp_sgd_under_replace_one() -> None:
    plan = Repeated(PoissonSampled(Gaussian(1.0), 0.01), 1000)
    found = pld.profile(plan, adjacency=Adjacency.REPLACE_ONE).epsilon(delta=1e-5)
    assert 2.8425 <= found.lower <= 2.8435  # dp_accounting 0.6: 2.84345


@pytest.mark.parametrize("shift", [0.1, 1.0, 5.0, 40.0])
@pytest.mark.parametrize("rate", [1e-4, 0.3, 1.0])
def test_cells_hold_at_most_the_mass_of_the_pair(shift: float, rate: float) -> None:
    law = lower_law(replaced_pair(shift, rate), Direction.REMOVED, 1e-20)
    assert law.atom_masses.sum() == pytest.approx(1, abs=1e-13)
    assert np.isfinite(law.atom_losses).all()
    # Q's mass of a cell is e^-loss times P's, up to the losses that were lowered.
    cells, losses = law.atom_masses[:-1], law.atom_losses[:-1]
    assert (cells * np.exp(-losses)).sum() <= 1 + 1e-9
    # The last atom is the mass that was rounded off, at the least loss.
    assert law.atom_masses[-1] <= 1e-9
    assert law.atom_losses[-1] == losses.min()


def two_candidates_epsilon(epsilon: float, times: int, delta: float) -> float:
    """Return the largest epsilon of binomial compositions of two candidates."""

    def needed(start: float) -> float:
        p, q = 1 / (1 + math.exp(-start - epsilon)), 1 / (1 + math.exp(-start))
        high, low = math.log(p / q), math.log((1 - p) / (1 - q))
        law = [
            (math.comb(times, j) * p**j * (1 - p) ** (times - j), j * high + (times - j) * low)
            for j in range(times + 1)
        ]
        a, b = 0.0, times * epsilon
        for _ in range(45):
            e = (a + b) / 2
            left = sum(mass * -math.expm1(e - loss) for mass, loss in law if loss > e)
            a, b = (e, b) if left > delta else (a, e)
        return a

    return max(needed(float(offset) - epsilon / 2) for offset in OFFSETS)


@pytest.mark.parametrize(
    ("epsilon", "times", "delta"),
    [(1.0, 2, 1e-6), (2.0, 10, 1e-8), (0.1, 30, 1e-3), (1.0, 60, 1e-6), (0.5, 5, 0.05)],
)
def test_two_candidates_attain_the_lower_end(epsilon: float, times: int, delta: float) -> None:
    attained = two_candidates_epsilon(epsilon, times, delta)
    found = pld.profile(Repeated(Exponential(epsilon), times)).epsilon(delta=delta)
    assert 0.99 * attained <= found.lower <= attained * (1 + 1e-9)
    assert attained <= found.upper
    delta_there = pld.profile(Repeated(Exponential(epsilon), times)).delta(epsilon=attained)
    assert delta_there.lower <= delta * 1.02
    assert delta_there.upper >= delta * 0.98
