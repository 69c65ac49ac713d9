"""Bounds for independent canaries of sampled steps: validity, power, and words outside."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import pytest
from numpy.typing import NDArray

from dpaudit.attacks import bounds
from dpaudit.attacks.one_run.observations import ClaimedSteps, likelihood_ratio_scores
from dpaudit.attacks.one_run.registration import Guesses
from dpaudit.attacks.one_run.score_file_audit import centred_ranks
from dpaudit.vocabulary.audit import BoundKind
from dpaudit.vocabulary.errors import InvalidArgument
from dpaudit.workflow.audit.audit_plan import claimed_family

Array = NDArray[np.float64]

RATE, NOISE, STEPS, DELTA, CONFIDENCE = 0.2, 1.5, 20, 1e-5, 0.95
CLAIM = ClaimedSteps(np.full(STEPS, RATE), np.full(STEPS, NOISE))
FAMILY = claimed_family([(RATE, NOISE)] * STEPS, DELTA)
TRUTH = FAMILY.epsilon(1.0).upper


class Audit:
    """One run's canaries, and what each bound says of them."""

    def __init__(self, rng: np.random.Generator, canaries: int = 100, factor: float = 1.0) -> None:
        self.included = rng.random(canaries) < 0.5
        self.joined = self.included & (rng.random((STEPS, canaries)) < RATE)
        noise = factor * NOISE * rng.standard_normal((STEPS, canaries))
        self.seen: Array = self.joined + noise

    @property
    def inside(self) -> Array:
        return self.seen[self.joined]

    @property
    def outside(self) -> Array:
        return self.seen[~self.joined]

    def says(self, name: str) -> float:
        return float(getattr(self, name)())

    def tv_rank(self) -> float:
        # By rank: under less noise than claimed, the ratio's sign alone tells nothing.
        scores = centred_ranks(likelihood_ratio_scores(self.seen, CLAIM))
        return _tv_rank(Guesses(len(scores)).correct(scores, self.included), len(scores))

    def one_run_family(self) -> float:
        scores = likelihood_ratio_scores(self.seen, CLAIM)
        correct = Guesses(len(scores) // 2).correct(scores, self.included)
        return _one_run_family(correct, len(scores))

    def tv_visible(self) -> float:
        return bounds.tv_known_batches(
            hits=int((self.inside > 1).sum()), in_batch=len(self.inside),
            false_alarms=int((self.outside > 1).sum()), out_of_batch=len(self.outside),
            noise_multiplier=NOISE, confidence=CONFIDENCE, family=FAMILY,
        ).epsilon  # fmt: skip

    def t_visible(self) -> float:
        return bounds.t_known_batches(
            in_batch=self.inside, out_of_batch=self.outside, noise_multiplier=NOISE,
            confidence=CONFIDENCE, family=FAMILY,
        ).epsilon  # fmt: skip

    def noise_chi_square(self) -> float:
        return bounds.noise_chi_square(
            out_of_batch=self.outside, noise_multiplier=NOISE, confidence=CONFIDENCE, family=FAMILY
        ).epsilon


@cache
def _tv_rank(correct: int, canaries: int) -> float:
    return bounds.tv_all_guesses(
        canaries=canaries, correct=correct, confidence=CONFIDENCE, family=FAMILY
    ).epsilon


@cache
def _one_run_family(correct: int, canaries: int) -> float:
    return bounds.one_run_family(
        canaries=canaries, guesses=canaries // 2, correct=correct, confidence=CONFIDENCE,
        family=FAMILY,
    ).epsilon  # fmt: skip


FAST = ["tv_rank", "tv_visible", "t_visible", "noise_chi_square"]
NAMES = [*FAST, "one_run_family"]


def misses(name: str, repetitions: int) -> float:
    rng = np.random.default_rng([repetitions, NAMES.index(name)])
    return float(np.mean([Audit(rng).says(name) > TRUTH for _ in range(repetitions)]))


@pytest.mark.parametrize("name", FAST)
def test_bounds_hold_inside_their_family(name: str) -> None:
    assert misses(name, 100) <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 100)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_bounds_hold_inside_their_family_in_2000_repetitions(name: str) -> None:
    assert misses(name, 2000) <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 2000)


@pytest.mark.parametrize("name", FAST)
def test_far_less_noise_than_claimed_is_refuted(name: str) -> None:
    assert Audit(np.random.default_rng(1), factor=0.2).says(name) > TRUTH


@pytest.mark.parametrize("name", ["tv_visible", "t_visible"])
def test_canaries_without_effect_give_zero(name: str) -> None:
    rng = np.random.default_rng(2)
    audit = Audit(rng)
    audit.seen = NOISE * rng.standard_normal(audit.seen.shape)
    assert audit.says(name) == 0.0


@pytest.mark.parametrize("name", ["tv_visible", "t_visible"])
def test_outside_of_its_family_a_conditional_bound_says_what_is_not_true(name: str) -> None:
    """Each step tells by randomized response at epsilon 1 who was in the batch."""
    rng, audit = np.random.default_rng(3), Audit(np.random.default_rng(3), canaries=2000)
    honest = rng.random(audit.seen.shape) < math.e / (1 + math.e)
    answers = np.where(honest == audit.joined, 2.0, 0.0)
    audit.seen = answers + 1e-3 * rng.standard_normal(answers.shape)
    at_most = STEPS * math.log1p(RATE * math.expm1(1.0))  # pure, sampled, added up
    assert audit.says(name) > at_most


def test_conditional_bounds_say_what_they_assume() -> None:
    audit = Audit(np.random.default_rng(4))
    bound = bounds.t_known_batches(
        in_batch=audit.inside, out_of_batch=audit.outside, noise_multiplier=NOISE,
        confidence=CONFIDENCE, family=FAMILY,
    )  # fmt: skip
    assert bound.kind is BoundKind.CONDITIONAL
    assert "normal noise" in bound.assumes
    assert "more noise" in bound.states


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"hits": 11}, "hits"),
        ({"false_alarms": -1}, "false_alarms"),
        ({"confidence": math.nan}, "confidence"),
    ],
)
def test_impossible_counts_are_refused_by_name(changes: dict[str, float], named: str) -> None:
    counts = {"hits": 5, "in_batch": 10, "false_alarms": 1, "out_of_batch": 90}
    given = {**counts, "noise_multiplier": NOISE, "confidence": 0.9, "family": FAMILY, **changes}
    with pytest.raises(InvalidArgument, match=named):
        bounds.tv_known_batches(**given)  # type: ignore[arg-type]


def test_no_observation_in_a_batch_says_nothing() -> None:
    bound = bounds.tv_known_batches(
        hits=0, in_batch=0, false_alarms=1, out_of_batch=90, noise_multiplier=NOISE,
        confidence=0.9, family=FAMILY,
    )  # fmt: skip
    assert bound.epsilon == 0.0
