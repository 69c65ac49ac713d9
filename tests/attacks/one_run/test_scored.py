"""Audits of one score a canary, and of final iterates."""

from __future__ import annotations

import math

import numpy as np
import pytest

from dpaudit.attacks.one_run import (
    Claimed,
    ClaimedSteps,
    FinalIterate,
    audit_final_iterate,
    audit_interfering_final_iterate,
    audit_scores,
)
from dpaudit.attacks.one_run.scored import register_share
from dpaudit.vocabulary.audit import AuditResult, BoundKind
from dpaudit.vocabulary.errors import InvalidArgument
from dpaudit.workflow.families import family

DELTA = 1e-5


def audited(
    scores: np.ndarray, included: np.ndarray, claimed: float | None = 2.0, confidence: float = 0.95
) -> AuditResult:
    return audit_scores(
        scores, included, delta=DELTA, confidence=confidence, claimed_epsilon=claimed,
        fair_coins=BoundKind.CERTIFIED,
    )  # fmt: skip


def test_scores_that_give_canaries_away_refute_a_small_claim() -> None:
    rng = np.random.default_rng(0)
    included = rng.random(400) < 0.5
    bound = audited(included * 3.0 + rng.standard_normal(400), included)
    assert bound.epsilon_lower > 2.0
    assert bound.registered


def test_inverted_scores_and_scores_that_know_nothing_give_zero() -> None:
    rng = np.random.default_rng(1)
    included = rng.random(400) < 0.5
    assert audited(included * -3.0 + rng.standard_normal(400), included).epsilon_lower == 0
    assert audited(rng.standard_normal(400), included).epsilon_lower == 0


def test_only_ranks_count() -> None:
    rng = np.random.default_rng(2)
    included = rng.random(300) < 0.5
    scores = included + rng.standard_normal(300)
    assert audited(scores, included) == audited(np.exp(5 * scores) - 7, included)


@pytest.mark.parametrize(
    ("scores", "included", "why"),
    [
        (np.zeros(10), np.arange(10) < 5, "one value for all"),
        (np.arange(10.0), np.ones(10, bool), "every canary"),
        (np.arange(10.0), np.zeros(10, bool), "no canary"),
        (np.arange(9.0), np.arange(10) < 5, "one for each canary"),
        (np.full(10, math.nan), np.arange(10) < 5, "finite"),
    ],
)
def test_scores_that_can_say_nothing_are_refused_not_called_private(
    scores: np.ndarray, included: np.ndarray, why: str
) -> None:
    with pytest.raises(InvalidArgument, match=why):
        audited(scores, included)


def test_how_many_are_guessed_depends_on_the_claim_alone() -> None:
    asked = {"canaries": 500, "epsilon": 1.0, "delta": DELTA, "confidence": 0.95}
    assert register_share(**asked) == register_share(**asked)
    rng = np.random.default_rng(5)
    included = rng.random(500) < 0.5
    registered = {
        audited(leak * included + rng.standard_normal(500), included, 1.0).registered
        for leak in (0.0, 1.0, 5.0)
    }
    assert len(registered) == 1


RATE, NOISE, STEPS = 0.2, 2.0, 40
CLAIM = ClaimedSteps(np.full(STEPS, RATE), np.full(STEPS, NOISE))
FAMILY = family([(RATE, NOISE)] * STEPS, DELTA)
CLAIMED = Claimed(CLAIM, FAMILY.epsilon(1.0).upper, DELTA, FAMILY)


def final(rng: np.random.Generator, canaries: int, factor: float) -> FinalIterate:
    included = rng.random(canaries) < 0.5
    joined = included * rng.binomial(STEPS, RATE, canaries)
    noise = factor * NOISE * math.sqrt(STEPS) * rng.standard_normal(canaries)
    return FinalIterate(joined + noise, included)


def test_a_final_iterate_refutes_far_too_little_noise_and_not_the_claim() -> None:
    rng = np.random.default_rng(3)
    honest = audit_final_iterate(final(rng, 400, 1.0), CLAIMED, confidence=0.99, seed=1)
    leaky = audit_final_iterate(final(rng, 400, 0.05), CLAIMED, confidence=0.99, seed=1)
    assert all(bound.epsilon_lower <= CLAIMED.epsilon for bound in honest)
    assert [bound.epsilon_lower > CLAIMED.epsilon for bound in leaky][-1]
    assert len(honest) == 3


def test_canaries_that_interfere_get_no_bound_that_needs_independence() -> None:
    seen = final(np.random.default_rng(4), 200, 1.0)
    results = audit_interfering_final_iterate(seen, CLAIMED, confidence=0.95, seed=1)
    assert len(results) == 2
    assert not any("do not touch" in result.assumes for result in results)


def test_sums_that_do_not_pair_with_canaries_are_refused() -> None:
    with pytest.raises(InvalidArgument, match="sums"):
        FinalIterate(np.zeros(3), np.zeros(4, bool))
    with pytest.raises(InvalidArgument, match="finite"):
        FinalIterate(np.array([math.nan]), np.zeros(1, bool))


def test_the_greatest_bound_is_that_of_perfect_guesses_and_no_outcome_passes_it() -> None:
    rng = np.random.default_rng(3)
    included = rng.random(200) < 0.5
    for shift in (0.0, 1.0, 100.0):
        scores = rng.standard_normal(200) + shift * included
        found = audit_scores(
            scores,
            included,
            delta=1e-5,
            confidence=0.95,
            claimed_epsilon=3.0,
            fair_coins=BoundKind.CERTIFIED,
        )
        assert found.greatest_epsilon is not None
        assert found.epsilon_lower <= found.greatest_epsilon
        assert (found.correct == found.guesses) == (found.epsilon_lower == found.greatest_epsilon)
