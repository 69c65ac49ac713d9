"""False claims: every bound against mechanisms whose epsilon is known.

A bound is valid if it exceeds the true epsilon at most as often as its confidence says. Within
their family the conditional ones are held to the same; outside of it a test shows what they
say there.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from dpaudit.attacks import bounds
from dpaudit.vocabulary.audit import BoundKind
from tests.attacks.bounds.known_mechanisms import (
    DELTA,
    NOTHING,
    Law,
    gaussian,
    laplace,
    randomized_response,
    sampled_gaussian,
)

Array = NDArray[np.float64]
Estimate = Callable[[Array, Array, np.random.Generator], float]
RESPONSE, LAPLACE = randomized_response(1.0), laplace(2.0)
GAUSSIAN, SAMPLED = gaussian(1.0), sampled_gaussian(1.5, 0.2, 30)
LAWS = [RESPONSE, LAPLACE, GAUSSIAN, SAMPLED, NOTHING]
CONFIDENCE, PER_SIDE = 0.95, 150


def fixed(members: Array, nonmembers: Array, rng: np.random.Generator) -> float:
    hits, alarms = int((members > 0.7).sum()), int((nonmembers > 0.7).sum())
    return bounds.clopper_pearson(
        true_positives=hits, false_positives=alarms, members=len(members),
        nonmembers=len(nonmembers), delta=DELTA, confidence=CONFIDENCE,
    ).epsilon  # fmt: skip


def with_thresholds(choose: Callable[[np.random.Generator], bounds.Thresholds]) -> Estimate:
    return lambda members, nonmembers, rng: bounds.from_scores(
        members=members, nonmembers=nonmembers, thresholds=choose(rng), delta=DELTA,
        confidence=CONFIDENCE,
    ).epsilon  # fmt: skip


def guesses(members: Array, nonmembers: Array) -> int:
    """Return how many guesses are right, in for the upper half and out for the lower."""
    scores = np.concatenate([members, nonmembers])
    bits = np.arange(len(scores)) < len(members)
    # Equal scores must not be ranked by their bits.
    order = np.lexsort((np.random.default_rng(0).random(len(scores)), scores))
    half = len(scores) // 2
    return int((~bits[order[:half]]).sum() + bits[order[half:]].sum())


def one_run(members: Array, nonmembers: Array, rng: np.random.Generator) -> float:
    m = len(members) + len(nonmembers)
    return bounds.one_run(
        canaries=m, guesses=m, correct=guesses(members, nonmembers), delta=DELTA,
        confidence=CONFIDENCE,
    ).epsilon  # fmt: skip


def one_run_gaussian(members: Array, nonmembers: Array, rng: np.random.Generator) -> float:
    m = len(members) + len(nonmembers)
    return bounds.one_run_gaussian(
        canaries=m, guesses=m, correct=guesses(members, nonmembers), delta=DELTA,
        confidence=CONFIDENCE,
    ).epsilon  # fmt: skip


def gaussian_band(members: Array, nonmembers: Array, rng: np.random.Generator) -> float:
    return bounds.gaussian_from_scores(
        members=members, nonmembers=nonmembers, thresholds=bounds.ConfidenceBand(), delta=DELTA,
        confidence=CONFIDENCE,
    ).epsilon  # fmt: skip


def gaussian_threshold(members: Array, nonmembers: Array, rng: np.random.Generator) -> float:
    hits, alarms = int((members > 0.7).sum()), int((nonmembers > 0.7).sum())
    return bounds.gaussian_threshold(
        true_positives=hits, false_positives=alarms, members=len(members),
        nonmembers=len(nonmembers), delta=DELTA, confidence=CONFIDENCE,
    ).epsilon  # fmt: skip


def pivot(members: Array, nonmembers: Array, rng: np.random.Generator) -> float:
    return bounds.gaussian_pivot(
        members=members, nonmembers=nonmembers, delta=DELTA, confidence=CONFIDENCE
    ).epsilon


CERTIFIED: dict[str, Estimate] = {
    "clopper_pearson": fixed,
    "split": with_thresholds(lambda rng: bounds.SampleSplit(rng, delta=DELTA)),
    "band": with_thresholds(lambda rng: bounds.ConfidenceBand()),
    "bonferroni": with_thresholds(lambda rng: bounds.Bonferroni()),
    "dkw": with_thresholds(lambda rng: bounds.DkwBand()),
    "one_run": one_run,
}
CONDITIONAL: dict[str, Estimate] = {
    "gaussian_threshold": gaussian_threshold,
    "gaussian_band": gaussian_band,
    "pivot": pivot,
    "one_run_gaussian": one_run_gaussian,
}


def share_of_false_claims(estimate: Estimate, law: Law, repetitions: int, m: int) -> float:
    """Return it, each canary's bit by a fair coin as the one-run audits need it."""
    rng = np.random.default_rng([repetitions, m])
    false = 0
    for _ in range(repetitions):
        ins = int(np.clip(rng.binomial(m, 0.5), 2, m - 2))
        members, nonmembers = law.draw(rng, True, ins), law.draw(rng, False, m - ins)
        false += estimate(members, nonmembers, rng) > law.epsilon
    return false / repetitions


def nominal(repetitions: int) -> float:
    """Return 5% and three standard errors of a simulation."""
    return 0.05 + 3 * math.sqrt(0.05 * 0.95 / repetitions)


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.name)
@pytest.mark.parametrize("name", CERTIFIED)
def test_certified_bounds_hold_for_every_mechanism(name: str, law: Law) -> None:
    assert share_of_false_claims(CERTIFIED[name], law, 60, 2 * PER_SIDE) <= nominal(60)


@pytest.mark.slow
@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.name)
@pytest.mark.parametrize("name", CERTIFIED)
def test_certified_bounds_hold_in_2000_repetitions(name: str, law: Law) -> None:
    assert share_of_false_claims(CERTIFIED[name], law, 2000, 2 * PER_SIDE) <= nominal(2000)


@pytest.mark.parametrize("law", [GAUSSIAN, NOTHING], ids=lambda law: law.name)
@pytest.mark.parametrize("name", CONDITIONAL)
def test_conditional_bounds_hold_inside_their_family(name: str, law: Law) -> None:
    assert share_of_false_claims(CONDITIONAL[name], law, 60, 2 * PER_SIDE) <= nominal(60)


@pytest.mark.slow
@pytest.mark.parametrize("law", [GAUSSIAN, gaussian(0.5), NOTHING], ids=lambda law: law.name)
@pytest.mark.parametrize("name", CONDITIONAL)
def test_conditional_bounds_hold_inside_their_family_in_2000_repetitions(
    name: str, law: Law
) -> None:
    assert share_of_false_claims(CONDITIONAL[name], law, 2000, 2 * PER_SIDE) <= nominal(2000)


def test_outside_of_their_family_conditional_bounds_say_what_is_not_true() -> None:
    """Randomized response at epsilon 1: no bound there, hence the kind that is printed."""
    rng = np.random.default_rng(1)
    members, nonmembers = RESPONSE.draw(rng, True, 2500), RESPONSE.draw(rng, False, 2500)
    for name, estimate in CONDITIONAL.items():
        assert estimate(members, nonmembers, rng) > RESPONSE.epsilon, name
    for name, estimate in CERTIFIED.items():
        assert estimate(members, nonmembers, rng) <= RESPONSE.epsilon, name


@pytest.mark.parametrize("name", [*CERTIFIED, *CONDITIONAL])
def test_scores_without_information_give_zero(name: str) -> None:
    rng = np.random.default_rng(7)
    estimate = (CERTIFIED | CONDITIONAL)[name]
    found = [
        estimate(NOTHING.draw(rng, True, 400), NOTHING.draw(rng, False, 400), rng)
        for _ in range(20)
    ]
    assert np.mean(np.array(found) > 0) <= nominal(20)


def test_kinds_are_part_of_the_result() -> None:
    counts = {"true_positives": 90, "false_positives": 5, "members": 100, "nonmembers": 100}
    kinds = {
        bounds.clopper_pearson: BoundKind.CERTIFIED,
        bounds.gaussian_threshold: BoundKind.CONDITIONAL,
        bounds.jeffreys: BoundKind.ESTIMATE,
        bounds.zanella_beguelin: BoundKind.ESTIMATE,
    }
    for estimator, kind in kinds.items():
        assert estimator(**counts, delta=1e-5, confidence=0.95).kind is kind
