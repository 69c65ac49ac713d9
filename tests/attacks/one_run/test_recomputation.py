"""The counts in a result give its bound; other counts, or another bound, do not."""

from __future__ import annotations

import math
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from dpaudit.attacks.one_run import (
    CanaryObservations,
    ClaimedMechanism,
    ClaimedSteps,
    FinalIterate,
    audit_final_iterate,
    audit_gradient_canaries,
    audit_input_canaries,
    audit_interfering_canaries,
    audit_scores,
)
from dpaudit.attacks.one_run.gradient_canary_audits import CanaryDesign, plan_audits
from dpaudit.attacks.one_run.guess_audits import result_without_evidence
from dpaudit.attacks.one_run.recomputation import (
    detectable_epsilon,
    detectable_epsilon_floor,
    greatest_epsilon,
    recompute_bound,
)
from dpaudit.vocabulary.audit import (
    AuditResult,
    BatchMeans,
    BatchRates,
    BoundKind,
    ClaimedCurve,
    OneRun,
)
from dpaudit.vocabulary.errors import InvalidArgument
from dpaudit.workflow.audit.audit_plan import claimed_family
from tests.attacks.one_run.test_gradient_canary_audits import CLAIMED, DELTA, observed

SEED = 3


def getter(value: Any) -> Any:
    """Return the value, once it is asked for."""
    return value


FULL = ClaimedSteps(np.ones(4), np.full(4, 3.0))
FULL_FAMILY = claimed_family([(1.0, 3.0)] * 4, DELTA)
FULL_CLAIMED = ClaimedMechanism(FULL, FULL_FAMILY.epsilon(1.0).upper, DELTA, FULL_FAMILY)


def every_step(factor: float) -> tuple[AuditResult, ...]:
    seen = observed(np.random.default_rng(8), 200, factor)
    return audit_gradient_canaries(seen, CLAIMED, confidence=0.95, seed=SEED)


def full_batch(factor: float) -> tuple[AuditResult, ...]:
    rng = np.random.default_rng(9)
    included = rng.random(150) < 0.5
    rows = included + 3.0 * factor * rng.standard_normal((4, 150))
    seen = CanaryObservations(rows, included, FULL)
    return audit_gradient_canaries(seen, FULL_CLAIMED, confidence=0.95, seed=SEED)


@pytest.fixture(scope="module")
def results() -> list[tuple[AuditResult, ClaimedMechanism]]:
    """Results of every estimator, of honest and of leaky runs."""
    honest, leaky = every_step(1.0), every_step(0.3)
    seen = observed(np.random.default_rng(8), 200, 0.5)
    interfering = audit_interfering_canaries(seen, CLAIMED, confidence=0.9, seed=SEED)
    last = FinalIterate(seen.observations.sum(axis=0), seen.included)
    final = audit_final_iterate(last, CLAIMED, confidence=0.95, seed=SEED)
    sampled = [(one, CLAIMED) for one in (*honest, *leaky, *interfering, *final)]
    full = [(one, FULL_CLAIMED) for one in (*full_batch(1.0), *full_batch(0.4))]
    return [*sampled, *full]


def test_the_counts_of_a_result_give_its_bound(
    results: list[tuple[AuditResult, ClaimedMechanism]],
) -> None:
    for result, claimed in results:
        again = recompute_bound(result, partial(getter, claimed))
        assert again is not None
        assert again.epsilon == pytest.approx(result.epsilon_lower, rel=1e-12)
        assert again.kind is result.kind
    estimators = {type(result.estimator) for result, _ in results}
    assert len(estimators) == 7


def test_a_result_without_an_estimator_or_steps_cannot_be_recomputed(
    results: list[tuple[AuditResult, ClaimedMechanism]],
) -> None:
    result, claimed = results[0]
    assert recompute_bound(replace(result, estimator=None), lambda: claimed) is None
    for one, _ in results:
        of_counts_alone = one.kind is BoundKind.CERTIFIED or "Gaussian" in one.name
        assert (recompute_bound(one, lambda: None) is not None) is of_counts_alone


@pytest.mark.parametrize("factor", [1.01, 0.99, 3.0, 0.2])
def test_another_noise_factor_is_refused(
    results: list[tuple[AuditResult, ClaimedMechanism]], factor: float
) -> None:
    refuted = [
        (result, claimed)
        for result, claimed in results
        if isinstance(result.estimator, ClaimedCurve) and result.estimator.noise_factor
    ]
    result, claimed = refuted[0]
    moved = ClaimedCurve(factor * result.estimator.noise_factor)
    with pytest.raises(InvalidArgument, match="noise_factor"):
        recompute_bound(replace(result, estimator=moved), lambda: claimed)


def test_the_power_of_what_sees_batches_is_computed_anew(
    results: list[tuple[AuditResult, ClaimedMechanism]],
) -> None:
    found = [one for one in results if isinstance(one[0].estimator, BatchRates | BatchMeans)]
    assert len(found) == 4
    for result, claimed in found:
        assert (
            detectable_epsilon(result, partial(getter, claimed), SEED) == result.detectable_epsilon
        )


def test_no_power_is_better_than_its_guesses_allow(
    results: list[tuple[AuditResult, ClaimedMechanism]],
) -> None:
    certified = [one for one in results if isinstance(one[0].estimator, OneRun)]
    assert certified
    for result, claimed in certified:
        least = detectable_epsilon_floor(result, claimed.epsilon)
        assert claimed.epsilon <= least
        assert least <= (result.detectable_epsilon or math.inf)


def test_the_least_power_rises_with_the_claim_and_is_infinite_beyond_reach() -> None:
    scores = np.linspace(1, 0, 400)
    result = audit_scores(
        scores,
        np.arange(400) < 200,
        delta=DELTA,
        confidence=0.95,
        claimed_epsilon=1.0,
        fair_coins=BoundKind.CERTIFIED,
    )
    powers = [detectable_epsilon_floor(result, epsilon) for epsilon in (0.5, 1.0, 2.0, 50.0)]
    assert all(less < more for less, more in pairwise(powers))
    assert powers[-1] == math.inf
    assert greatest_epsilon(result) == result.greatest_epsilon


def test_canaries_of_one_score_are_no_evidence_and_keep_their_place() -> None:
    result = result_without_evidence(30, delta=DELTA, confidence=0.98)
    rng = np.random.default_rng(0)
    scores, included = rng.standard_normal(30), rng.random(30) < 0.5
    told = audit_input_canaries(scores, included, delta=DELTA, confidence=0.98)
    assert (result.name, result.trials, result.kind) == (told.name, told.trials, told.kind)
    assert result.epsilon_lower == 0
    assert result.inconclusive
    again = recompute_bound(result, lambda: None)
    assert again is not None
    assert again.epsilon == 0


@pytest.mark.parametrize("interfering", [False, True])
@pytest.mark.parametrize("recorded", [False, True])
def test_the_plan_names_what_an_audit_holds(*, interfering: bool, recorded: bool) -> None:
    seen = observed(np.random.default_rng(8), 60)
    seen = CanaryObservations(
        seen.observations, seen.included, seen.steps, seen.in_batch if recorded else None
    )
    plan = plan_audits(CanaryDesign(60, interfering, recorded), CLAIMED, confidence=0.95, seed=SEED)
    audit = audit_interfering_canaries if interfering else audit_gradient_canaries
    made = audit(seen, CLAIMED, confidence=0.95, seed=SEED)
    assert [one.name_of(seen.name) for one in plan] == [one.name for one in made]
    assert [one.confidence for one in plan] == [one.confidence for one in made]
    assert [one.statistics for one in plan] == [type(one.estimator) for one in made]
