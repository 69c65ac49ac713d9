"""What is said of the best attacker holds of every attacker, and some attacker is as good."""

from __future__ import annotations

import itertools
import math
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import ndtr, ndtri

from dpaudit.accountants import gdp, pld, risk
from dpaudit.accountants import risk as tradeoff_curve
from dpaudit.vocabulary.errors import AccountingError, InvalidArgument
from dpaudit.vocabulary.mechanism import Gaussian, PoissonSampled, Repeated
from dpaudit.vocabulary.privacy_terms import Bound
from tests.accountants.mechanisms import between_powers, in_passing

RATES = [0.0, 1e-8, 1e-5, 1e-3, 0.01, 0.05, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99, 1.0]


class Profile:
    """A privacy profile by formula, which counts what it is asked."""

    def __init__(self, delta_of, margin: float = 1e-13) -> None:
        self.delta_of, self.margin, self.asked = delta_of, margin, 0

    def delta(self, *, epsilon: float) -> Bound:
        self.asked += 1
        value = self.delta_of(epsilon)
        if isinstance(value, Bound):
            return value
        return Bound(value * (1 - self.margin), min(1.0, value * (1 + self.margin)))


def of_gaussian(mu: float) -> Profile:
    return Profile(lambda epsilon: gdp.delta_of_mu(epsilon, mu=mu))


def of_pure(epsilon_zero: float) -> Profile:
    top = math.exp(epsilon_zero)
    return Profile(lambda epsilon: max(0.0, (top - math.exp(epsilon)) / (1 + top)))


# ---------------------------------------------------------------------------------------
# Closed forms.


@in_passing
@given(between_powers(-2, 1), st.lists(st.floats(1e-12, 0.999), min_size=1, max_size=6))
def test_the_curve_of_a_gaussian_holds_its_closed_form(mu, rates):
    """G_mu: tpr = Phi(Phi^-1(fpr) + mu), Dong, Roth & Su 2019, equation 6."""
    profile = of_gaussian(mu)
    curve = risk.tradeoff(profile, rates)
    for fpr, tpr in zip(curve.fpr, curve.tpr, strict=True):
        truth = float(ndtr(ndtri(fpr) + mu))
        assert tpr.lower <= truth * (1 + 1e-9)
        assert truth * (1 - 1e-9) <= tpr.upper
    assert profile.asked <= 60


@pytest.mark.parametrize("mu", [0.1, 1.0, 3.0])
@pytest.mark.parametrize("fpr", [1e-6, 1e-3, 0.1, 0.5])
def test_one_point_of_a_gaussian_is_sharp_after_few_questions(mu, fpr):
    profile = of_gaussian(mu)
    tpr = risk.tpr_at_fpr(profile, fpr=fpr)
    assert tpr.upper == pytest.approx(ndtr(ndtri(fpr) + mu), rel=1e-4)
    assert tpr.lower == pytest.approx(tpr.upper, rel=1e-4)
    assert profile.asked <= 35


@in_passing
@given(between_powers(-1, 1.2), st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_the_curve_of_pure_privacy_is_two_lines(epsilon, rates):
    """Kairouz, Oh & Viswanath 2015, Theorem 2.1."""
    curve = risk.tradeoff(of_pure(epsilon), rates)
    for fpr, tpr in zip(curve.fpr, curve.tpr, strict=True):
        truth = min(math.exp(epsilon) * fpr, 1 - math.exp(-epsilon) * (1 - fpr))
        assert tpr.upper == pytest.approx(truth, rel=1e-4, abs=1e-9)
        assert tpr.lower == pytest.approx(truth, rel=1e-4, abs=1e-9)


@in_passing
@given(between_powers(-2, 1))
def test_the_numbers_of_a_gaussian_hold_their_closed_forms(mu):
    profile = of_gaussian(mu)
    advantage = 2 * float(ndtr(mu / 2)) - 1
    assert risk.advantage(profile).lower <= advantage <= risk.advantage(profile).upper
    fair = risk.accuracy(profile)
    assert fair.lower <= float(ndtr(mu / 2)) <= fair.upper
    found = risk.posterior(profile, prior=0.5, exceptional=1e-3)
    exact = mu * mu / 2 - mu * float(ndtri(1e-3))  # the loss is N(mu^2/2, mu^2)
    assert exact <= found.epsilon <= 1.5 * exact
    assert profile.asked <= 50


def test_pure_privacy_bounds_every_posterior():
    found = risk.posterior(of_pure(1.0), prior=0.1, exceptional=1e-9)
    assert 1.0 <= found.epsilon <= 1.001
    assert found.at_most == pytest.approx(1 / (1 + 9 * math.exp(-1)), rel=1e-3)


# ---------------------------------------------------------------------------------------
# The slow way: few outputs, every test, every guess.

Laws = tuple[tuple[float, ...], tuple[float, ...]]


def hockey_stick(one, other, ratio: float) -> float:
    return sum(max(0.0, p - ratio * q) for p, q in zip(one, other, strict=True))


def of_laws(*pairs: Laws, margin: float = 1e-12) -> Profile:
    def delta_of(epsilon: float) -> float:
        ratio = math.exp(epsilon)
        return max(max(hockey_stick(p, q, ratio), hockey_stick(q, p, ratio)) for p, q in pairs)

    return Profile(delta_of, margin)


def every_test(pair: Laws) -> list[tuple[float, float]]:
    """Return (fpr, tpr) of every set of outputs, with P and Q in either role."""
    found = [(0.0, 0.0), (1.0, 1.0)]  # exactly, however the laws are rounded
    for picks in itertools.product((0, 1), repeat=len(pair[0])):
        p, q = (sum(m for m, picked in zip(law, picks, strict=True) if picked) for law in pair)
        found += [(q, p), (p, q)]
    return found


def best_tpr(pair: Laws, fpr: float) -> float:
    """Return the best mixture of two tests: the concave curve above all of them."""
    best = 0.0
    for (a, x), (b, y) in itertools.product(every_test(pair), repeat=2):
        if a <= fpr <= b:
            share = 0.0 if b == a else (fpr - a) / (b - a)
            best = max(best, x + share * (y - x), max(x, y) if a == b else 0.0)
    return best


def normalised(weights) -> tuple[float, ...]:
    total = math.fsum(weights)
    return tuple(weight / total for weight in weights)


laws = st.lists(st.floats(0, 1), min_size=4, max_size=4).filter(sum).map(normalised)


@in_passing
@given(laws, laws)
def test_every_test_lies_below_the_curve_and_the_best_one_on_it(p, q):
    curve = risk.tradeoff(of_laws((p, q)), RATES)
    for fpr, tpr in zip(curve.fpr, curve.tpr, strict=True):
        best = best_tpr((p, q), fpr)
        assert best <= tpr.upper + 1e-9
        assert tpr.lower <= best + 1e-9
        assert tpr.width <= 0.01 or fpr == 0  # there, delta at every epsilon matters


@in_passing
@given(laws, laws, st.integers(0, 1000), between_powers(-4, -1))
def test_a_profile_that_is_not_sure_gives_a_wider_curve_and_no_wrong_one(p, q, seed, margin):
    draw = random.Random(seed)
    sharp = of_laws((p, q))

    def unsure(epsilon: float) -> Bound:
        value = sharp.delta_of(epsilon)
        low, high = (draw.uniform(0, margin) for _ in range(2))
        return Bound(value * (1 - low), min(1.0, value * (1 + high)))

    curve = risk.tradeoff(Profile(unsure), RATES)
    for fpr, tpr in zip(curve.fpr, curve.tpr, strict=True):
        assert tpr.lower - 1e-9 <= best_tpr((p, q), fpr) <= tpr.upper + 1e-9


@in_passing
@given(laws, laws, st.floats(0.001, 0.999))
def test_no_guess_is_right_more_often_than_the_accuracy(p, q, prior):
    found = risk.accuracy(of_laws((p, q)), prior=prior)
    best = max(
        sum(max(prior * a, (1 - prior) * b) for a, b in zip(one, other, strict=True))
        for one, other in ((p, q), (q, p))
    )
    assert found.lower - 1e-9 <= best <= found.upper + 1e-9


@in_passing
@given(laws, laws, st.floats(0.01, 0.99), st.floats(0.01, 0.9))
def test_posteriors_exceed_the_bound_at_most_at_its_rate(p, q, prior, exceptional):
    try:
        found = risk.posterior(of_laws((p, q)), prior=prior, exceptional=exceptional)
    except AccountingError:
        assert max(hockey_stick(p, q, 1e300), hockey_stick(q, p, 1e300)) >= 0.99 * exceptional
        return
    for one, other in ((p, q), (q, p)):
        above = [
            (a, b)
            for a, b in zip(one, other, strict=True)
            if a and prior * a / (prior * a + (1 - prior) * b) > found.at_most * (1 + 1e-9)
        ]
        assert sum(a for a, _ in above) <= exceptional * (1 + 1e-9)
        assert sum(b for _, b in above) <= exceptional * (1 + 1e-9)


@in_passing
@given(st.lists(laws, min_size=2, max_size=5), laws)
def test_reconstruction_rate_is_below_its_bound(candidates, reference):
    """The output's law for each candidate record; naming the likeliest is the best there is."""
    chance = 1 / len(candidates)
    best = sum(max(law[output] for law in candidates) for output in range(4)) * chance
    found = risk.reconstruction(of_laws(*((law, reference) for law in candidates)), chance=chance)
    assert found.lower == chance
    assert best <= found.upper + 1e-9


# ---------------------------------------------------------------------------------------
# Shapes.


def concave(x, y, slack: float = 1e-9) -> bool:
    return all(
        y[i] >= y[i - 1] + (y[i + 1] - y[i - 1]) * (x[i] - x[i - 1]) / (x[i + 1] - x[i - 1]) - slack
        for i in range(1, len(x) - 1)
    )


@in_passing
@given(between_powers(-2, 1), st.integers(1, 60))
def test_curves_are_convex_and_better_than_guessing_however_few_questions(mu, questions):
    profile = of_gaussian(mu)
    curve = risk.tradeoff(profile, RATES, most_evaluations=questions)
    assert profile.asked <= questions
    assert concave(curve.fpr, [tpr.upper for tpr in curve.tpr])
    assert concave(curve.fpr, [tpr.lower for tpr in curve.tpr])
    assert concave(curve.fpr, [-fnr.upper for fnr in curve.fnr])
    for fpr, tpr, fnr in zip(curve.fpr, curve.tpr, curve.fnr, strict=True):
        assert fpr <= tpr.lower <= tpr.upper <= 1
        assert fnr.lower <= 1 - tpr.upper <= 1 - tpr.lower <= fnr.upper <= 1 - fpr + 1e-15
    assert list(curve.fpr) == RATES
    assert curve.tpr[-1].lower == pytest.approx(1.0)


def test_accountant_without_lower_bound_states_the_guessing_rate():
    profile = Profile(lambda epsilon: Bound(0.0, gdp.delta_of_mu(epsilon, mu=1.0).upper))
    exact = risk.tradeoff(of_gaussian(1.0), RATES)
    curve = risk.tradeoff(profile, RATES)
    for fpr, tpr, sharp in zip(curve.fpr, curve.tpr, exact.tpr, strict=True):
        assert tpr.lower == pytest.approx(fpr)
        assert tpr.upper >= sharp.lower
        if fpr:
            assert tpr.upper == pytest.approx(sharp.upper, rel=0.01)
    assert risk.advantage(profile).lower == 0.0


@in_passing
@given(between_powers(-1, 1), between_powers(-2, 0.5))
def test_more_noise_never_helps_an_attacker(mu, more):
    loud, quiet = of_gaussian(mu / (1 + more)), of_gaussian(mu)
    assert risk.advantage(loud).lower <= risk.advantage(quiet).upper
    assert risk.accuracy(loud, prior=0.2).lower <= risk.accuracy(quiet, prior=0.2).upper
    assert risk.tpr_at_fpr(loud, fpr=0.01).lower <= risk.tpr_at_fpr(quiet, fpr=0.01).upper


# ---------------------------------------------------------------------------------------
# Planted bugs: an attacker beats the curve, or is said to do what none can.

SKEWED = ((0.5, 0.3, 0.2, 0.0), (0.1, 0.3, 0.4, 0.2))


def the_curve_holds() -> bool:
    pair = (SKEWED[0], SKEWED[1])
    curve = risk.tradeoff(of_laws(pair), RATES)
    return all(
        tpr.lower - 1e-9 <= best_tpr(pair, fpr) <= tpr.upper + 1e-9
        for fpr, tpr in zip(curve.fpr, curve.tpr, strict=True)
    )


def one_order_of_neighbours_alone(monkeypatch) -> None:
    monkeypatch.setattr(
        tradeoff_curve,
        "_points_from_delta",
        lambda epsilon, delta: (
            tradeoff_curve.HockeyStickPoint(math.exp(epsilon), delta.lower, delta.upper),
            tradeoff_curve.HockeyStickPoint(math.exp(-epsilon), delta.lower, delta.upper),
        ),
    )


def half_of_delta(monkeypatch) -> None:
    honest = tradeoff_curve._points_from_delta
    monkeypatch.setattr(
        tradeoff_curve,
        "_points_from_delta",
        lambda epsilon, delta: honest(epsilon, Bound(delta.lower / 2, delta.upper / 2)),
    )


def lines_drawn_on_flat(monkeypatch) -> None:
    import sys

    tradeoff = sys.modules["dpaudit.accountants.risk"]
    monkeypatch.setattr(
        tradeoff, "_slopes", lambda t, low, high: (np.zeros_like(t), -np.ones_like(t))
    )


def test_the_curve_holds_with_no_bug_planted():
    assert the_curve_holds()


@pytest.mark.parametrize(
    "plant", [one_order_of_neighbours_alone, half_of_delta, lines_drawn_on_flat]
)
def test_a_bug_in_the_curve_is_noticed(monkeypatch, plant):
    plant(monkeypatch)
    try:
        held = the_curve_holds()
    except AccountingError:  # ends that contradict each other
        held = False
    assert not held


# ---------------------------------------------------------------------------------------
# Accountants, and refusals.


def test_a_run_has_the_risks_that_its_profile_says():
    run = Repeated(PoissonSampled(Gaussian(1.0), 0.05), 50)
    profile = pld.profile(run)
    curve = risk.tradeoff(profile, [0.001, 0.01, 0.1], most_evaluations=20)
    for fpr, tpr in zip(curve.fpr, curve.tpr, strict=True):
        for epsilon in (0.3, 1.1, 2.3):
            bound = profile.delta(epsilon=epsilon).upper
            assert tpr.lower <= bound + math.exp(epsilon) * fpr
        # A run cannot be told better than its steps without sampling.
        assert fpr < tpr.lower < float(ndtr(ndtri(fpr) + math.sqrt(50)))
    assert risk.advantage(profile).upper < 1


def test_composed_gaussians_are_asked_through_the_accountant():
    found = risk.tpr_at_fpr(pld.profile(Repeated(Gaussian(10.0), 25)), fpr=0.01)
    assert found.lower <= float(ndtr(ndtri(0.01) + 0.5)) <= found.upper


@pytest.mark.parametrize("rate", [-0.1, 1.1, math.nan, math.inf])
def test_a_rate_that_is_no_probability_is_refused_by_name(rate):
    with pytest.raises(InvalidArgument, match="fpr"):
        risk.tpr_at_fpr(of_gaussian(1.0), fpr=rate)


def test_a_curve_of_no_points_is_refused_by_name():
    with pytest.raises(InvalidArgument, match="fpr"):
        risk.tradeoff(of_gaussian(1.0), [])
    with pytest.raises(InvalidArgument, match="most_evaluations"):
        risk.tradeoff(of_gaussian(1.0), [0.1], most_evaluations=0)


@pytest.mark.parametrize("share", [0.0, 1.0, -1.0, math.nan])
def test_a_prior_or_chance_that_is_certain_is_refused_by_name(share):
    profile = of_gaussian(1.0)
    with pytest.raises(InvalidArgument, match="prior"):
        risk.accuracy(profile, prior=share)
    with pytest.raises(InvalidArgument, match="prior"):
        risk.posterior(profile, prior=share, exceptional=0.1)
    with pytest.raises(InvalidArgument, match="exceptional"):
        risk.posterior(profile, prior=0.1, exceptional=share)
    with pytest.raises(InvalidArgument, match="chance"):
        risk.reconstruction(profile, chance=share)


def test_a_delta_that_stays_above_the_exceptions_bounds_no_posterior():
    with pytest.raises(AccountingError, match="exceptional"):
        risk.posterior(Profile(lambda epsilon: 0.01), prior=0.5, exceptional=0.001)
