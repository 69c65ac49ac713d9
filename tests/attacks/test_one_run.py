"""Audits of one run on canaries whose law is known exactly."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import pytest

from dpaudit.accountants import pld
from dpaudit.attacks.canary_scores import (
    ClaimedSteps,
    fitted_noise_factor,
    likelihood_ratio_scores,
)
from dpaudit.attacks.one_run import (
    Claimed,
    Guesses,
    audit_gradient_canaries,
    audit_input_canaries,
)
from dpaudit.vocabulary.audit import BoundKind
from dpaudit.vocabulary.errors import InvalidArgument
from dpaudit.vocabulary.mechanism import Gaussian, PoissonSampled, Repeated

RATE, NOISE, STEPS, DELTA = 0.2, 2.2, 30, 1e-5
CLAIM = ClaimedSteps(np.full(STEPS, RATE), np.full(STEPS, NOISE))


@cache
def epsilon_at(factor: float) -> tuple[float, float]:
    mechanism = Repeated(PoissonSampled(Gaussian(factor * NOISE), RATE), STEPS)
    bound = pld.profile(mechanism).epsilon(delta=DELTA)
    return bound.lower, bound.upper


@cache
def total_variation_at(factor: float) -> float:
    mechanism = Repeated(PoissonSampled(Gaussian(factor * NOISE), RATE), STEPS)
    return pld.profile(mechanism).delta(epsilon=0.0).upper


CLAIMED = Claimed(CLAIM, epsilon_at(1.0)[1], DELTA, epsilon_at, total_variation_at)


def observed(
    rng: np.random.Generator, canaries: int, factor: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    included = rng.random(canaries) < 0.5
    joined = included & (rng.random((STEPS, canaries)) < RATE)
    noise = factor * NOISE * rng.standard_normal((STEPS, canaries))
    return joined + noise, included


def bounds_of(rng: np.random.Generator, canaries: int, factor: float) -> tuple[float, float]:
    observations, included = observed(rng, canaries, factor)
    results = audit_gradient_canaries(
        observations, included, CLAIMED, confidences=(0.95, 0.95), seed=3
    )
    assert [result.kind for result in results] == [BoundKind.CERTIFIED, BoundKind.CONDITIONAL]
    return results[0].epsilon_lower, results[1].epsilon_lower


def test_honest_noise_is_rarely_contradicted_and_less_noise_is_found() -> None:
    rng = np.random.default_rng(5)
    honest = np.array([bounds_of(rng, 400, 1.0) for _ in range(6)])
    assert (honest[:, 0] > CLAIMED.epsilon).sum() == 0
    assert (honest[:, 1] > CLAIMED.epsilon).mean() <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 6)
    leaky = np.array([bounds_of(rng, 400, 0.1) for _ in range(2)])
    assert (leaky > CLAIMED.epsilon).all()


@pytest.mark.slow
def test_bounds_miss_the_true_epsilon_at_most_at_the_nominal_rate() -> None:
    rng = np.random.default_rng(6)
    for factor in (0.5, 1.0):
        truth = epsilon_at(factor)[0]
        found = np.array([bounds_of(rng, 300, factor) for _ in range(200)])
        misses = (found > truth).mean(axis=0)
        assert (misses <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 200)).all()


def test_scores_that_carry_no_information_give_zero() -> None:
    rng = np.random.default_rng(7)
    observations, _ = observed(rng, 500)
    unrelated = rng.random(500) < 0.5
    results = audit_gradient_canaries(
        observations, unrelated, CLAIMED, confidences=(0.99, 0.99), seed=3
    )
    assert [result.epsilon_lower for result in results] == [0.0, 0.0]


@pytest.mark.slow
def test_the_power_that_is_printed_is_the_power_that_is_had() -> None:
    rng = np.random.default_rng(8)
    observations, included = observed(rng, 400)
    _, conditional = audit_gradient_canaries(
        observations, included, CLAIMED, confidences=(0.95, 0.95), seed=3
    )
    assert conditional.detectable_epsilon is not None
    factor = min(
        np.linspace(0.2, 1.0, 200),
        key=lambda f: abs(epsilon_at(round(float(f), 3))[1] - conditional.detectable_epsilon),
    )
    seen = [bounds_of(rng, 400, float(factor))[1] > CLAIMED.epsilon for _ in range(40)]
    assert np.mean(seen) >= 0.8


def test_the_numbers_of_guesses_do_not_depend_on_the_scores() -> None:
    rng = np.random.default_rng(9)
    texts = set()
    for factor in (1.0, 0.3):
        observations, included = observed(rng, 300, factor)
        results = audit_gradient_canaries(
            observations, included, CLAIMED, confidences=(0.95, 0.95), seed=3
        )
        texts.add(tuple(result.thresholds for result in results))
    assert len(texts) == 1


def test_the_score_is_the_log_likelihood_ratio_term_by_term() -> None:
    x = np.random.default_rng(1).standard_normal((STEPS, 3))
    scores = likelihood_ratio_scores(x, CLAIM)
    for i in range(3):
        slow = sum(
            math.log(1 - RATE + RATE * math.exp((2 * x[t, i] - 1) / (2 * NOISE**2)))
            for t in range(STEPS)
        )
        assert scores[i] == pytest.approx(slow, rel=1e-12)


@pytest.mark.parametrize("factor", [0.2, 0.7, 1.0])
def test_the_noise_is_fitted_without_the_bits(factor: float) -> None:
    observations, _ = observed(np.random.default_rng(2), 500, factor)
    assert fitted_noise_factor(observations, CLAIM) == pytest.approx(factor, rel=0.08)


def test_equal_scores_count_against_the_guesser() -> None:
    included = np.array([True, False] * 10)
    assert Guesses(20).correct(np.zeros(20), included) == 0


def test_inverted_scores_of_input_canaries_give_zero_not_a_pass_in_disguise() -> None:
    included = np.arange(60) < 30
    right = audit_input_canaries(included * 1.0, included, delta=DELTA, confidence=0.95)
    wrong = audit_input_canaries(included * -1.0, included, delta=DELTA, confidence=0.95)
    assert right.epsilon_lower > 2.5
    assert wrong.epsilon_lower == 0.0


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_scores_that_are_not_finite_are_refused(bad: float) -> None:
    observations, included = observed(np.random.default_rng(3), 20)
    observations[4, 7] = bad
    with pytest.raises(InvalidArgument, match="finite"):
        audit_gradient_canaries(observations, included, CLAIMED, confidences=(0.95, 0.95), seed=3)
    with pytest.raises(InvalidArgument, match="finite"):
        audit_input_canaries(np.full(4, bad), np.ones(4, bool), delta=DELTA, confidence=0.9)
