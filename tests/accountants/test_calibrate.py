"""Calibration returns what was priced and meets the target, and hardly more than needed."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpaudit.accountants import calibrate, gdp, naive, pld, rdp
from dpaudit.accountants.parameter_search import ParameterSearch
from dpaudit.vocabulary.errors import AccountingError, InvalidArgument, UnsupportedMechanism
from dpaudit.vocabulary.mechanism import (
    Composed,
    Gaussian,
    Mechanism,
    PoissonSampled,
    RandomizedResponse,
    Repeated,
)
from dpaudit.vocabulary.privacy_terms import Adjacency, Bound
from tests.accountants.mechanisms import between_powers, deltas, in_passing

TARGETS = (0.01, 0.1, 2.0, 50.0)


@dataclass
class Says:
    """An accountant whose epsilon of one Gaussian is any function of its noise multiplier."""

    epsilon_of: object
    asked: list[float] = field(default_factory=list)

    def __call__(self, mechanism: Gaussian, /, *, adjacency: Adjacency):
        self.asked.append(mechanism.noise_multiplier)
        return _Answer(self.epsilon_of(mechanism.noise_multiplier))


@dataclass
class _Answer:
    value: float

    def epsilon(self, *, delta: float) -> Bound:
        return Bound(0.0, self.value)


def sampled_run(noise: float, rate: float = 0.01, steps: int = 200) -> Mechanism:
    return Repeated(PoissonSampled(Gaussian(noise), rate), steps)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("accountant", [naive.profile, pld.profile])
def test_calibrated_noise_meets_the_target_and_a_thousandth_less_does_not(accountant, target):
    found = calibrate.noise_multiplier(
        sampled_run, target_epsilon=target, delta=1e-5, accountant=accountant
    )
    assert found.epsilon == accountant(sampled_run(found.value)).epsilon(delta=1e-5)
    assert found.epsilon.upper <= target
    assert found.slack == target - found.epsilon.upper >= 0
    less = accountant(sampled_run(found.value * (1 - 1e-3))).epsilon(delta=1e-5)
    assert less.upper > target


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(("rate", "steps"), [(1e-3, 10), (0.5, 10_000)])
@pytest.mark.parametrize("accountant", [naive.profile, rdp.profile, pld.profile])
def test_calibrated_noise_meets_the_target_at_the_corners(accountant, rate, steps, target):
    build = partial(sampled_run, rate=rate, steps=steps)
    found = calibrate.noise_multiplier(
        build, target_epsilon=target, delta=1e-5, accountant=accountant
    )
    assert accountant(build(found.value)).epsilon(delta=1e-5).upper <= target
    less = accountant(build(found.value * (1 - 1e-3))).epsilon(delta=1e-5)
    assert less.upper > target


# Wide, narrow, around the answer and far from it.
brackets = st.none() | st.tuples(between_powers(-3.9, 8.9), between_powers(-3.9, 8.9)).map(
    lambda ends: (min(ends), max(ends) * 1.001)
)


@in_passing
@given(between_powers(-3, 2.5), deltas, st.integers(1, 1_000_000), brackets)
def test_any_bracket_gives_the_least_noise_in_few_evaluations(target, delta, steps, bracket):
    found = calibrate.noise_multiplier(
        lambda noise: Repeated(Gaussian(noise), steps),
        target_epsilon=target,
        delta=delta,
        bracket=bracket,
    )
    upper = gdp.epsilon_of_mu(delta, mu=math.sqrt(steps) / found.value).upper
    assert upper <= target
    assert gdp.epsilon_of_mu(delta, mu=math.sqrt(steps) / found.value * 1.00011).upper > target
    assert found.evaluations <= 15


@in_passing
@given(between_powers(-2, 1.7), deltas, between_powers(-0.5, 1))
def test_the_largest_rate_meets_the_target_and_a_thousandth_more_does_not(target, delta, noise):
    build = partial(sampled_run, noise)
    found = calibrate.sampling_rate(
        build, target_epsilon=target, delta=delta, accountant=naive.profile
    )
    assert found.value <= 1
    assert naive.profile(build(found.value)).epsilon(delta=delta).upper <= target
    if found.value < 1 / (1 + 1e-3):
        more = naive.profile(build(found.value * (1 + 1e-3)))
        assert more.epsilon(delta=delta).upper > target
    assert found.evaluations <= 15


def test_a_rate_of_one_is_returned_where_it_meets_the_target():
    found = calibrate.sampling_rate(
        lambda rate: sampled_run(100.0, rate, 1), target_epsilon=1.0, delta=1e-5
    )
    assert found.value == 1.0


@in_passing
@given(between_powers(-0.5, 1.5), deltas, between_powers(1, 2))
def test_one_step_more_than_the_most_does_not_meet_the_target(target, delta, noise):
    def build(steps: int) -> Mechanism:
        return Repeated(Gaussian(noise), steps)

    def upper(steps: int) -> float:
        return gdp.epsilon_of_mu(delta, mu=math.sqrt(steps) / noise).upper

    if not upper(1) <= target:
        with pytest.raises(InvalidArgument, match=r"number of steps of 1 meets"):
            calibrate.steps(build, target_epsilon=target, delta=delta)
        return
    found = calibrate.steps(build, target_epsilon=target, delta=delta, resolution=1e-9)
    assert isinstance(found.value, int)
    assert upper(found.value) <= target < upper(found.value + 1)
    assert found.evaluations <= 20


@in_passing
@given(between_powers(-1, 1), between_powers(-100, 100))
def test_the_clip_norm_is_the_noise_over_its_multiplier_whatever_the_unit(target, noise_std):
    goal = {"target_epsilon": target, "delta": 1e-6, "resolution": 1e-6}
    noise = calibrate.noise_multiplier(Gaussian, **goal)
    clip = calibrate.clip_norm(Gaussian, noise_std=noise_std, **goal)
    assert clip.value == pytest.approx(noise_std / noise.value, rel=3e-6)
    assert gdp.epsilon_of_mu(1e-6, mu=clip.value / noise_std).upper <= target * (1 + 1e-14)


def test_what_else_the_mechanism_releases_is_part_of_the_target():
    count = Gaussian(3.0)
    found = calibrate.noise_multiplier(
        lambda noise: Composed((Gaussian(noise), count)), target_epsilon=2.0, delta=1e-5
    )
    whole = pld.profile(Composed((Gaussian(found.value), count))).epsilon(delta=1e-5)
    assert whole.upper <= 2.0
    with pytest.raises(InvalidArgument, match="target_epsilon"):
        calibrate.noise_multiplier(
            lambda noise: Composed((Gaussian(noise), count)), target_epsilon=1.0, delta=1e-5
        )


def test_replacing_a_record_needs_twice_the_noise():
    goal = {"target_epsilon": 1.0, "delta": 1e-5, "resolution": 1e-9}
    removed = calibrate.noise_multiplier(Gaussian, **goal)
    replaced = calibrate.noise_multiplier(Gaussian, adjacency=Adjacency.REPLACE_ONE, **goal)
    assert replaced.value == pytest.approx(2 * removed.value, rel=3e-9)


@in_passing
@given(between_powers(-2, 1.7))
def test_a_finer_resolution_is_kept(target):
    found = calibrate.noise_multiplier(Gaussian, target_epsilon=target, delta=1e-5, resolution=1e-8)
    assert gdp.epsilon_of_mu(1e-5, mu=1 / found.value).upper <= target
    assert gdp.epsilon_of_mu(1e-5, mu=1 / found.value * (1 + 1e-7)).upper > target


@pytest.mark.parametrize(
    "epsilon_of",
    [
        lambda noise: 1 / noise + 0.3 * math.sin(40 * noise) ** 2,  # rises and falls
        lambda noise: float(math.ceil(10 / noise)),  # in steps
        lambda noise: 5.0 if noise < 3 else 0.0,  # at once, to nothing
        lambda noise: math.exp(min(500.0, 3 / noise**2)),  # far from a straight line
        lambda noise: 1 / noise + 1e-3 * (hash(noise) % 97) / 97,  # jittering
    ],
)
def test_whatever_the_accountant_says_the_answer_was_asked_and_meets(epsilon_of):
    says = Says(epsilon_of)
    found = calibrate.noise_multiplier(Gaussian, target_epsilon=1.5, delta=1e-5, accountant=says)
    assert found.value in says.asked
    assert found.evaluations == len(says.asked) <= 60
    assert found.epsilon == Bound(0.0, epsilon_of(found.value))
    assert found.epsilon.upper <= 1.5


def refuses_below_two(noise: float) -> float:
    if noise < 2:
        raise AccountingError("nothing is certain here")
    return 1 / noise


def test_what_cannot_be_priced_meets_no_target():
    found = calibrate.noise_multiplier(
        Gaussian, target_epsilon=1.5, delta=1e-5, accountant=Says(refuses_below_two)
    )
    assert 2 <= found.value <= 2 * (1 + 2e-4)


@pytest.mark.parametrize("epsilon_of", [lambda noise: 1.0, lambda noise: math.nan])
def test_a_target_out_of_reach_is_refused_by_name(epsilon_of):
    with pytest.raises(InvalidArgument, match=r"target_epsilon .* got 0\.5"):
        calibrate.noise_multiplier(
            Gaussian, target_epsilon=0.5, delta=1e-5, accountant=Says(epsilon_of)
        )


def test_unsupported_mechanism_is_refused_without_search():
    with pytest.raises(UnsupportedMechanism, match="RandomizedResponse"):
        calibrate.noise_multiplier(
            lambda noise: Composed((Gaussian(noise), RandomizedResponse(0.75))),
            target_epsilon=0.5,
            delta=1e-5,
        )


@pytest.mark.parametrize("target", [math.nan, math.inf, 0.0, -3.0])
def test_a_target_that_is_not_positive_is_refused_by_name(target):
    with pytest.raises(InvalidArgument, match=f"target_epsilon .* got {target!r}"):
        calibrate.noise_multiplier(Gaussian, target_epsilon=target, delta=1e-5)


@pytest.mark.parametrize(
    "bracket", [(2.0, 1.0), (1.0, 1.0), (0.0, 1.0), (1.0, math.inf), (math.nan, 1.0)]
)
def test_invalid_bracket_is_refused(bracket):
    with pytest.raises(InvalidArgument, match="bracket"):
        calibrate.noise_multiplier(Gaussian, target_epsilon=1.0, delta=1e-5, bracket=bracket)


@pytest.mark.parametrize("resolution", [0.0, -1.0, math.nan, 1e-16, 2.0])
def test_a_resolution_out_of_range_is_refused_by_name(resolution):
    with pytest.raises(InvalidArgument, match="resolution"):
        calibrate.noise_multiplier(Gaussian, target_epsilon=1.0, delta=1e-5, resolution=resolution)


@pytest.mark.parametrize("noise_std", [0.0, -1.0, math.nan, math.inf])
def test_noise_of_no_size_is_refused_by_name(noise_std):
    with pytest.raises(InvalidArgument, match="noise_std"):
        calibrate.clip_norm(Gaussian, noise_std=noise_std, target_epsilon=1.0, delta=1e-5)


def test_a_search_that_ends_on_the_wrong_side_is_refused(monkeypatch):
    """A planted bug: what does not meet the target is never returned."""
    monkeypatch.setattr(ParameterSearch, "narrow", lambda self, meets, fails, width: fails)
    with pytest.raises(InvalidArgument, match="target_epsilon"):
        calibrate.noise_multiplier(Gaussian, target_epsilon=1.0, delta=1e-5)
