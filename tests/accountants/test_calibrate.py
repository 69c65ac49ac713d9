"""Calibration returns noise that was seen to meet the target, and hardly more than needed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpaudit.accountants import calibrate, gaussian, naive, pld, rdp
from dpaudit.vocabulary.errors import InvalidArgument
from dpaudit.vocabulary.mechanism import Gaussian, PoissonSampled, Repeated
from tests.accountants.mechanisms import between_powers, in_passing

TARGETS = (0.01, 0.1, 2.0, 50.0)


def upper_epsilon(profile, rate: float, steps: int):
    def at(noise: float) -> float:
        mechanism = Repeated(PoissonSampled(Gaussian(noise), rate), steps)
        return profile(mechanism).epsilon(delta=1e-5).upper

    return at


def is_met_and_tight(upper, target: float) -> bool:
    noise = calibrate.noise_multiplier(upper, target)
    return upper(noise) <= target < upper(noise * (1 - 1e-3))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("profile", [naive.profile, pld.profile])
def test_calibrated_noise_meets_the_target_and_a_thousandth_less_does_not(profile, target):
    assert is_met_and_tight(upper_epsilon(profile, rate=0.01, steps=200), target)


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(("rate", "steps"), [(1e-3, 10), (0.5, 10_000)])
@pytest.mark.parametrize("profile", [naive.profile, rdp.profile, pld.profile])
def test_calibrated_noise_meets_the_target_at_the_corners(profile, rate, steps, target):
    assert is_met_and_tight(upper_epsilon(profile, rate, steps), target)


@in_passing
@given(between_powers(-2, 1.7), st.integers(1, 10_000))
def test_calibrated_gaussian_noise_meets_any_target(target, steps):
    def upper(noise: float) -> float:
        return gaussian.epsilon(1e-5, mu=steps**0.5 / noise).upper

    assert is_met_and_tight(upper, target)


@in_passing
@given(between_powers(-2, 1.7))
def test_a_finer_resolution_is_kept(target):
    def upper(noise: float) -> float:
        return gaussian.epsilon(1e-5, mu=1 / noise).upper

    noise = calibrate.noise_multiplier(upper, target, resolution=1e-8)
    assert upper(noise) <= target < upper(noise * (1 - 1e-7))


def test_a_target_out_of_reach_is_refused_by_name():
    with pytest.raises(InvalidArgument, match=r"target_epsilon .* got 0\.5"):
        calibrate.noise_multiplier(lambda noise: 1.0, 0.5)


def test_an_accountant_that_says_nan_meets_no_target():
    with pytest.raises(InvalidArgument, match="target_epsilon"):
        calibrate.noise_multiplier(lambda noise: float("nan"), 0.5)
