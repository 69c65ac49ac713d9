"""Gaussian differential privacy: exact where it is exact, and an estimate that is no bound."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpaudit.accountants import gdp
from dpaudit.accountants import gdp as gaussian
from dpaudit.vocabulary.errors import UnsupportedMechanism
from dpaudit.vocabulary.mechanism import (
    Composed,
    Gaussian,
    Laplace,
    PoissonSampled,
    Repeated,
    TreeAggregation,
)
from dpaudit.vocabulary.privacy_terms import Adjacency, Bound
from tests.accountants.golden import holds, relative_width, values
from tests.accountants.mechanisms import deltas, in_passing, noises, steps

REPLACE = Adjacency.REPLACE_ONE


@pytest.mark.parametrize("value", values("gaussian", "at_delta"), ids=str)
def test_epsilon_holds_the_closed_form_to_nine_digits(value):
    answer = gdp.profile(Gaussian(1 / value["mu"])).epsilon(delta=value["at_delta"])
    assert holds(answer, value["epsilon"])
    assert relative_width(answer) <= 1e-9


@pytest.mark.parametrize("value", values("gaussian", "at_epsilon"), ids=str)
def test_delta_holds_the_closed_form_to_six_digits(value):
    answer = gdp.profile(Gaussian(1 / value["mu"])).delta(epsilon=value["at_epsilon"])
    assert holds(answer, value["delta"])
    assert relative_width(answer) <= 1e-6


@in_passing
@given(st.lists(st.tuples(noises, steps), min_size=1, max_size=4), deltas)
def test_gaussians_compose_to_one(parts, delta):
    mechanism = Composed(tuple(Repeated(Gaussian(noise), times) for noise, times in parts))
    mu = math.sqrt(sum(times / noise**2 for noise, times in parts))
    profile = gdp.profile(mechanism)
    assert profile.mu.lower <= mu * (1 + 1e-12)
    assert profile.mu.upper >= mu * (1 - 1e-12)
    exact = gaussian.epsilon_of_mu(delta, mu=mu)
    answer = profile.epsilon(delta=delta)
    assert answer.lower <= exact.upper
    assert exact.lower <= answer.upper


def test_a_tree_is_a_gaussian_for_each_level():
    tree = gdp.profile(TreeAggregation(Gaussian(10.0), 100)).mu
    assert tree == gdp.profile(Repeated(Gaussian(10.0), 7)).mu


def test_replacing_a_record_doubles_mu():
    once, twice = gdp.profile(Gaussian(2.0)).mu, gdp.profile(Gaussian(2.0), adjacency=REPLACE).mu
    assert twice.upper == pytest.approx(2 * once.upper, rel=1e-12)


@pytest.mark.parametrize("mechanism", [Laplace(1.0), PoissonSampled(Gaussian(1.0), 0.1)], ids=str)
def test_whatever_is_no_gaussian_is_refused_by_name(mechanism):
    with pytest.raises(UnsupportedMechanism, match=type(mechanism).__name__):
        gdp.profile(Composed((Gaussian(1.0), mechanism)))


def test_the_estimate_is_no_bound():
    estimate = gdp.clt_estimate(Repeated(PoissonSampled(Gaussian(1.0), 0.01), 1000))
    assert not isinstance(estimate, Bound)
    assert isinstance(estimate.epsilon(delta=1e-5), float)
    assert estimate.mu == pytest.approx(0.01 * math.sqrt(1000 * math.expm1(1.0)))
    with pytest.raises(AttributeError):
        estimate.mu = 2.0


@pytest.mark.parametrize("value", values("sampled_gaussian", "at_delta")[:12], ids=str)
def test_the_estimate_is_below_the_truth_somewhere(value):
    """What makes it an estimate: of these ledgers not one may be reported by it."""
    releases = tuple(
        Repeated(PoissonSampled(Gaussian(noise), rate), times)
        for rate, noise, times in value["ledger"]
    )
    estimate = gdp.clt_estimate(Composed(releases)).epsilon(delta=value["at_delta"])
    truth = max(map(float, value["epsilon"].values()))
    assert 0 <= estimate < 3 * truth + 1


def test_reporting_the_estimate_would_have_been_wrong():
    """Ledger B at delta 1e-5: the truth is 2.456145."""
    estimate = gdp.clt_estimate(Repeated(PoissonSampled(Gaussian(0.6), 0.001), 10_000))
    assert estimate.epsilon(delta=1e-5) < 0.7 * 2.456145


def test_the_estimate_is_exact_for_everyone():
    mechanism = Repeated(Gaussian(3.0), 10)
    assert gdp.clt_estimate(mechanism).mu == pytest.approx(gdp.profile(mechanism).mu.upper)


def test_a_record_replaced_in_a_sample_is_refused_by_name():
    with pytest.raises(UnsupportedMechanism, match="PoissonSampled"):
        gdp.clt_estimate(PoissonSampled(Gaussian(1.0), 0.1), adjacency=REPLACE)


def test_an_upper_bound_that_underflows_stays_above_zero():
    """delta at epsilon 1 of mu = 1e-6 is about e^(-5e11), which no double holds."""
    found = gdp.delta_of_mu(1.0, mu=1e-6)
    assert found.lower == 0
    assert found.upper > 0
