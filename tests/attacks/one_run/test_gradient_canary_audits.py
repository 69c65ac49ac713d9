"""Audits of one run on canaries whose law is known exactly."""

from __future__ import annotations

import math

import numpy as np
import pytest

from dpaudit.attacks.one_run import (
    CanaryObservations,
    ClaimedMechanism,
    ClaimedSteps,
    audit_gradient_canaries,
    audit_input_canaries,
    audit_interfering_canaries,
)
from dpaudit.attacks.one_run.observations import fitted_noise_factor, likelihood_ratio_scores
from dpaudit.attacks.one_run.registration import Guesses
from dpaudit.vocabulary.audit import AuditResult, BoundKind
from dpaudit.vocabulary.errors import InvalidArgument
from dpaudit.workflow.audit.audit_plan import claimed_family

RATE, NOISE, STEPS, DELTA = 0.2, 2.2, 30, 1e-5
CLAIM = ClaimedSteps(np.full(STEPS, RATE), np.full(STEPS, NOISE))
FAMILY = claimed_family([(RATE, NOISE)] * STEPS, DELTA)
CLAIMED = ClaimedMechanism(CLAIM, FAMILY.epsilon(1.0).upper, DELTA, FAMILY)
METHODS = 5


def observed(rng: np.random.Generator, canaries: int, factor: float = 1.0) -> CanaryObservations:
    included = rng.random(canaries) < 0.5
    joined = included & (rng.random((STEPS, canaries)) < RATE)
    noise = factor * NOISE * rng.standard_normal((STEPS, canaries))
    return CanaryObservations(joined + noise, included, CLAIM, joined)


def audited(seen: CanaryObservations, confidence: float = 0.95) -> tuple[AuditResult, ...]:
    return audit_gradient_canaries(seen, CLAIMED, confidence=confidence, seed=3)


def bounds_of(rng: np.random.Generator, canaries: int, factor: float) -> list[float]:
    return [result.epsilon_lower for result in audited(observed(rng, canaries, factor))]


def test_honest_noise_is_rarely_contradicted_and_less_noise_is_found() -> None:
    rng = np.random.default_rng(5)
    honest = np.array(bounds_of(rng, 300, 1.0))
    assert (honest <= CLAIMED.epsilon).all()  # at most 1 in 20 of such tests would fail by chance
    leaky = np.array(bounds_of(rng, 300, 0.1))
    assert (leaky > CLAIMED.epsilon).all()


def test_what_assumes_more_is_sharper_and_says_so() -> None:
    results = audited(observed(np.random.default_rng(10), 1000))
    assert [result.kind for result in results] == [
        BoundKind.CERTIFIED, *[BoundKind.CONDITIONAL] * (METHODS - 1)
    ]  # fmt: skip
    assert all(result.assumes and result.states and result.registered for result in results)
    powers = [result.detectable_epsilon or math.inf for result in results]
    assert powers == sorted(powers, reverse=True)


def test_without_a_record_of_batches_nothing_is_said_that_needs_one() -> None:
    seen = observed(np.random.default_rng(11), 200)
    hidden = audited(CanaryObservations(seen.observations, seen.included, CLAIM))
    assert len(hidden) == METHODS - 2


def test_canaries_among_the_parameters_get_what_holds_under_interference() -> None:
    seen = observed(np.random.default_rng(12), 200)
    results = audit_interfering_canaries(seen, CLAIMED, confidence=0.95, seed=3)
    assert not any("non-interfering" in result.assumes for result in results)
    assert len(results) == 2


@pytest.mark.slow
def test_bounds_miss_the_true_epsilon_at_most_at_the_nominal_rate() -> None:
    rng = np.random.default_rng(6)
    for factor in (0.5, 1.0):
        truth = FAMILY.epsilon(factor).lower
        found = np.array([bounds_of(rng, 300, factor) for _ in range(30)])
        misses = (found > truth).any(axis=1).mean()  # they hold together
        assert misses <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 30)


def test_scores_that_carry_no_information_give_zero() -> None:
    rng = np.random.default_rng(7)
    seen = observed(rng, 500)
    unrelated = rng.random(500) < 0.5
    results = audited(CanaryObservations(seen.observations, unrelated, CLAIM), confidence=0.99)
    assert [result.epsilon_lower for result in results] == [0.0] * (METHODS - 2)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(METHODS))
def test_the_power_that_is_printed_is_the_power_that_is_had(number: int) -> None:
    rng = np.random.default_rng(8)
    promised = audited(observed(rng, 400))[number].detectable_epsilon
    if promised is None:
        pytest.skip("no power is promised")
    factor = min(
        np.geomspace(0.1, 1.0, 200),
        key=lambda f: abs(FAMILY.epsilon(float(f)).upper - promised),
    )
    seen = [bounds_of(rng, 400, float(factor))[number] > CLAIMED.epsilon for _ in range(20)]
    assert np.mean(seen) >= 0.8


def test_what_is_registered_does_not_depend_on_the_scores() -> None:
    rng = np.random.default_rng(9)
    registered = {
        tuple(result.registered for result in audited(observed(rng, 300, f))) for f in (1.0, 0.3)
    }
    assert len(registered) == 1


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"observations": np.zeros((STEPS, 3))}, "observations"),
        ({"included": np.zeros(0, bool), "observations": np.zeros((STEPS, 0))}, "included"),
        ({"in_batch": np.zeros((STEPS, 3), bool)}, "in_batch"),
        ({"in_batch": np.ones((STEPS, 20), bool)}, "in_batch"),
    ],
)
def test_what_does_not_fit_together_is_refused(changes: dict[str, np.ndarray], named: str) -> None:
    seen = observed(np.random.default_rng(4), 20)
    given = {"observations": seen.observations, "included": seen.included, "in_batch": None}
    with pytest.raises(InvalidArgument, match=named):
        CanaryObservations(steps=CLAIM, **{**given, **changes})


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
    seen = observed(np.random.default_rng(2), 500, factor)
    assert fitted_noise_factor(seen.observations, CLAIM) == pytest.approx(factor, rel=0.08)


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
    seen = observed(np.random.default_rng(3), 20)
    seen.observations[4, 7] = bad
    with pytest.raises(InvalidArgument, match="finite"):
        audited(seen)
    with pytest.raises(InvalidArgument, match="finite"):
        audit_input_canaries(np.full(4, bad), np.ones(4, bool), delta=DELTA, confidence=0.9)


def test_constant_scores_of_input_canaries_are_refused_not_called_private() -> None:
    with pytest.raises(InvalidArgument, match="one value for all"):
        audit_input_canaries(np.zeros(40), np.arange(40) < 20, delta=DELTA, confidence=0.9)
