"""mu-GDP summaries: the curve lies above that of mu, and less does not suffice."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from dpaudit.accountants import gdp, gdp_summary, pld
from dpaudit.vocabulary.errors import InvalidArgument, Unresolvable
from dpaudit.vocabulary.mechanism import (
    Gaussian,
    Laplace,
    PoissonSampled,
    PureDP,
    RandomizedResponse,
    Repeated,
)
from dpaudit.vocabulary.privacy_terms import Adjacency, Bound

REPLACE = Adjacency.REPLACE_ONE


class LaplaceCurve:
    """delta(epsilon) of one Laplace mechanism of scale 1: 1 - exp((epsilon - 1)/2)."""

    def delta(self, *, epsilon: float) -> Bound:
        value = max(0.0, -math.expm1((epsilon - 1) / 2))
        return Bound(value, value)


def test_mu_of_randomized_response_is_that_of_its_corner() -> None:
    """f has its corner at (1 - p, 1 - p), so mu = Phi^-1(p) - Phi^-1(1 - p)."""
    for truth in (0.75, 0.99):
        found = gdp_summary.summarize(
            pld.profile(RandomizedResponse(truth), adjacency=REPLACE), slack=0.0
        )
        exact = 2 * stats.norm.ppf(truth)
        assert found.mu.lower <= exact * (1 + 1e-6)
        assert exact * (1 - 1e-9) <= found.mu.upper <= exact * (1 + 3e-4)


def test_mu_and_regret_of_laplace_noise_are_those_of_a_fine_grid() -> None:
    """f(x) = 1 - e x, then e^-1/(4 x), then (1 - x)/e; regret by moving f until it is below."""
    found = gdp_summary.summarize(LaplaceCurve(), slack=0.0, points=200)
    x = np.linspace(1e-6, 1 - 1e-6, 100_001)
    e = math.e

    def f(at: np.ndarray) -> np.ndarray:
        inside = np.where(at < 1 / (2 * e), 1 - e * at, math.exp(-1) / (4 * at))
        return np.where(at > 0.5, (1 - at) / e, inside) * (at < 1)

    mu = float((stats.norm.isf(x) - stats.norm.ppf(f(x))).max())
    assert found.mu.lower * (1 - 1e-5) <= mu <= found.mu.upper * (1 + 1e-9)
    gaussian = stats.norm.cdf(stats.norm.isf(x) - found.mu.upper)
    low, high = 0.0, 1.0
    for _ in range(40):
        kappa = (low + high) / 2
        below = bool(np.all(f(x + kappa) - kappa <= gaussian))
        low, high = (low, kappa) if below else (kappa, high)
    assert found.regret.lower - 2e-5 <= high <= found.regret.upper + 2e-5
    assert found.regret.upper - found.regret.lower < 1e-3


def test_summary_of_gaussians_is_their_mu_without_regret() -> None:
    for noise in (0.5, 4.0):
        found = gdp_summary.summarize(gdp.profile(Gaussian(noise)))
        assert found.mu.lower <= 1 / noise <= found.mu.upper * (1 + 1e-6)
        assert found.mu.upper <= 1.001 / noise
        assert found.regret.upper < 5e-4


def test_steps_of_training_stay_above_the_curve_of_mu() -> None:
    profile = pld.profile(Repeated(PoissonSampled(Gaussian(2.0), 0.02), 100))
    found = gdp_summary.summarize(profile, slack=1e-6, points=25)
    for epsilon in np.random.default_rng(3).uniform(0, 1.2, 12):
        top = gdp.delta_of_mu(epsilon, mu=found.mu.upper)
        own = profile.delta(epsilon=epsilon)
        assert own.lower <= top.upper + 1e-6
        excess = (top.lower - own.upper) / (1 + math.exp(epsilon))
        assert excess <= found.regret.upper * (1 + 1e-9)
    # A thousandth less fails somewhere: at the point that determines the lower end.
    assert found.mu.upper <= found.mu.lower * 1.01


def test_a_larger_slack_never_needs_a_larger_mu() -> None:
    profile = pld.profile(PureDP(1.0))
    values = [gdp_summary.summarize(profile, slack=s).mu.upper for s in (0.0, 1e-3, 1e-2)]
    assert values[0] > values[1] > values[2]


def test_what_no_mu_describes_is_refused() -> None:
    class Revealing:
        def delta(self, *, epsilon: float) -> Bound:
            return Bound(0.1, 0.1)

    with pytest.raises(Unresolvable, match="larger slack"):
        gdp_summary.summarize(Revealing())
    for slack in (-1e-9, 1.0, math.nan):
        with pytest.raises(InvalidArgument, match="slack"):
            gdp_summary.summarize(LaplaceCurve(), slack=slack)
    with pytest.raises(InvalidArgument, match="points"):
        gdp_summary.summarize(pld.profile(Laplace(1.0)), points=2)


class Bulge:
    """A curve whose mu is determined between the points of a coarse grid."""

    def delta(self, *, epsilon: float) -> Bound:
        found = gdp.delta_of_mu(epsilon, mu=0.5)
        line = 0.05 * -math.expm1(epsilon - 2.0)
        return Bound(max(found.lower, line), max(found.upper, line))


def test_planted_error_of_points_alone_falls_below_the_least_mu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(gdp_summary, "REFINEMENTS", 0)
    exact = gdp_summary.summarize(Bulge(), slack=0.001, points=200).mu.lower
    assert gdp_summary.summarize(Bulge(), slack=0.001, points=4).mu.upper >= exact
    ends = lambda left, right, at, to, slack: (  # noqa: E731
        left.upper <= at.value + slack and right.upper <= to.value + slack
    )
    monkeypatch.setattr(gdp_summary, "_is_above", ends)
    assert gdp_summary.summarize(Bulge(), slack=0.001, points=4).mu.upper < exact
