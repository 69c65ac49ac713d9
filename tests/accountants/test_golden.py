"""Every golden value lies inside the interval, and the interval is narrow."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

from dpaudit.accountants import gdp, naive, pld, rdp
from dpaudit.accountants.numerics import CertifiedInterval
from dpaudit.vocabulary.mechanism import (
    Gaussian,
    Laplace,
    PoissonSampled,
    RandomizedResponse,
    Repeated,
)
from dpaudit.vocabulary.privacy_terms import Adjacency
from tests.accountants.golden import holds, of_ledger, one_way, relative_width, values


def each(name: str, *keys: str) -> list[Any]:
    """Return golden values as parameters of a test, named by what was asked."""
    return [pytest.param(value, id=" ".join(_question(value))) for value in values(name, *keys)]


def _question(value: dict[str, Any]) -> list[str]:
    hidden = {"epsilon", "delta", "divergence"}
    if value.get("name", "one step") != "one step":
        hidden.add("ledger")
    return [f"{key}={part}" for key, part in value.items() if key not in hidden]


@pytest.mark.parametrize("value", each("gaussian", "at_delta"))
def test_gaussian_epsilon_holds_the_closed_form_to_nine_digits(value):
    answer = gdp.epsilon_of_mu(value["at_delta"], mu=value["mu"])
    assert holds(answer, value["epsilon"])
    assert relative_width(answer) <= 1e-9


@pytest.mark.parametrize("value", each("gaussian", "at_epsilon"))
def test_gaussian_delta_holds_the_closed_form_to_six_digits(value):
    answer = gdp.delta_of_mu(value["at_epsilon"], mu=value["mu"])
    assert holds(answer, value["delta"])
    assert relative_width(answer) <= 1e-6


@pytest.mark.parametrize("value", each("randomized_response"))
def test_responses_epsilon_holds_the_binomial_sum_to_nine_digits(value):
    release = RandomizedResponse(value["truth_probability"])
    profile = pld.profile(Repeated(release, value["times"]), adjacency=Adjacency.REPLACE_ONE)
    answer = profile.epsilon(delta=value["at_delta"])
    assert holds(answer, value["epsilon"])
    assert relative_width(answer) <= 1e-9


DIRECTIONS = ("remove", "add")
CLOSED = {"one Gaussian, closed form", "one integral", "contour"}


def is_narrow(answer: CertifiedInterval, delta: float) -> bool:
    """To a millionth where nothing is smoothed; else to a thousandth, or 1e-6 absolute.

    Far out the terms of a contour cancel: rounding is what is left of 1e-30.
    """
    if answer.method in CLOSED and delta >= 1e-12:
        return relative_width(answer) <= 1e-6
    return answer.upper - answer.lower <= max(1e-3 * answer.upper, 1e-6)


@pytest.mark.parametrize("value", each("sampled_gaussian", "at_delta"))
def test_sampled_epsilon_holds_the_contour_integral(value):
    profile = pld.profile(of_ledger(value["ledger"]))
    answer = profile.epsilon(delta=value["at_delta"])
    assert holds(answer, max(value["epsilon"].values(), key=Decimal))


@pytest.mark.parametrize("value", each("sampled_gaussian", "at_epsilon"))
def test_sampled_delta_holds_the_contour_integral(value):
    profile = pld.profile(of_ledger(value["ledger"]))
    answer = profile.delta(epsilon=value["at_epsilon"])
    assert holds(answer, max(value["delta"].values(), key=Decimal))


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("value", each("sampled_gaussian", "at_delta"))
def test_each_direction_holds_its_own_epsilon_narrowly(value, direction):
    answers = pld.profile(of_ledger(value["ledger"])).explain_epsilon(delta=value["at_delta"])
    answer = one_way(answers, direction)
    assert holds(answer, value["epsilon"][direction])
    assert is_narrow(answer, value["at_delta"])


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("value", each("sampled_gaussian", "at_epsilon"))
def test_each_direction_holds_its_own_delta_to_a_thousandth(value, direction):
    answers = pld.profile(of_ledger(value["ledger"])).explain_delta(epsilon=value["at_epsilon"])
    answer = one_way(answers, direction)
    assert holds(answer, value["delta"][direction])
    assert relative_width(answer) <= 1e-3


# What the contour without smoothing is for: many releases, none of them rare and large.
A_TO_H = [
    pytest.param([(0.01, 1.0, 1000)], id="A"),
    pytest.param([(0.001, 0.6, 10_000)], id="B"),
    pytest.param([(256 / 60_000, 1.1, 14_063)], id="C"),
    pytest.param([(0.02, 0.7, 2000)], id="D"),
    pytest.param([(1e-4, 0.5, 100_000)], id="E"),
    pytest.param([(0.25, 5.0, 100)], id="F"),
    pytest.param([(1.0, 10.0, 100)], id="G"),
    pytest.param([(1e-5, 0.4, 1_000_000)], id="H"),
]


@pytest.mark.parametrize("ledger", A_TO_H)
def test_sampled_epsilon_is_known_to_a_millionth(ledger):
    answer = pld.profile(of_ledger(ledger)).epsilon(delta=1e-5)
    assert relative_width(answer) <= 1e-6


@pytest.mark.parametrize("value", each("laplace", "at_delta"))
def test_laplace_epsilon_holds_the_closed_form(value):
    profile = pld.profile(Repeated(Laplace(value["scale"]), value["times"]))
    (answer,) = profile.explain_epsilon(delta=value["at_delta"])
    assert holds(answer, value["epsilon"])
    assert is_narrow(answer, value["at_delta"])


@pytest.mark.parametrize("value", each("laplace", "at_epsilon"))
def test_laplace_delta_holds_the_closed_form(value):
    profile = pld.profile(Repeated(Laplace(value["scale"]), value["times"]))
    answer = profile.delta(epsilon=value["at_epsilon"])
    assert holds(answer, value["delta"])
    assert relative_width(answer) <= 1e-3


@pytest.mark.parametrize("value", each("sampled_gaussian", "at_delta"))
def test_renyi_and_naive_upper_bounds_lie_above_the_truth(value):
    mechanism, delta = of_ledger(value["ledger"]), value["at_delta"]
    truth = max(Decimal(epsilon) for epsilon in value["epsilon"].values())
    by_orders, by_theorem = rdp.profile(mechanism), naive.profile(mechanism)
    assert Decimal(by_orders.at_integer_orders(delta=delta)[0].upper) >= truth
    assert Decimal(by_orders.at_real_orders(delta=delta)[0].upper) >= truth
    assert Decimal(by_theorem.basic(delta=delta).upper) >= truth
    assert Decimal(by_theorem.advanced(delta=delta).upper) >= truth


def renyi_pairs() -> list[Any]:
    """Return (release, order, the larger of both directions' divergences)."""
    worst: dict[tuple[float, float, float], Decimal] = {}
    for value in values("renyi"):
        where = (value["sampling_rate"], value["noise_multiplier"], value["order"])
        worst[where] = max(worst.get(where, Decimal(0)), Decimal(value["divergence"]))
    return [
        pytest.param(
            PoissonSampled(Gaussian(noise), rate), order, truth, id=f"{rate}-{noise}-{order}"
        )
        for (rate, noise, order), truth in worst.items()
    ]


@pytest.mark.parametrize(("release", "order", "truth"), renyi_pairs())
def test_renyi_divergence_holds_the_quadrature_to_eleven_decimals(release, order, truth):
    answer = rdp.divergence(release, order=order)
    assert holds(answer, truth)
    assert answer.width <= 1e-11


def test_a_hundred_randomized_responses_cost_a_hundred():
    """A peer ignores the count and answers 1.0987."""
    mechanism = Repeated(RandomizedResponse(0.75), 100)
    answer = pld.profile(mechanism, adjacency=Adjacency.REPLACE_ONE).epsilon(delta=1e-6)
    assert holds(answer, "94.289867892924877")
