"""Audits at the edges: no noise at all, coins that all fall alike, very few canaries."""

from __future__ import annotations

import numpy as np
import pytest

from dpaudit.attacks.one_run import (
    CanaryObservations,
    ClaimedMechanism,
    ClaimedSteps,
    audit_gradient_canaries,
)
from dpaudit.vocabulary.audit import AuditResult
from dpaudit.workflow.audit.audit_plan import claimed_family

NOISE, STEPS, DELTA = 1.5, 30, 1e-5


def audited(rate: float, included: np.ndarray, noise: float) -> tuple[AuditResult, ...]:
    rng = np.random.default_rng(0)
    steps = ClaimedSteps(np.full(STEPS, rate), np.full(STEPS, NOISE))
    costs = claimed_family([(rate, NOISE)] * STEPS, DELTA)
    claimed = ClaimedMechanism(steps, costs.epsilon(1.0).upper, DELTA, costs)
    joined = included & (rng.random((STEPS, len(included))) < rate)
    shown = joined + noise * rng.standard_normal(joined.shape)
    return audit_gradient_canaries(
        CanaryObservations(shown, included, steps, joined), claimed, confidence=0.95, seed=1
    )


@pytest.mark.parametrize("rate", [0.3, 1.0])
def test_trainer_without_noise_is_detected_not_refused(rate: float) -> None:
    results = audited(rate, np.arange(60) % 2 == 0, noise=0.0)
    assert len(results) == 5
    parametric = results[-1]
    assert parametric.epsilon_lower > 100


@pytest.mark.parametrize("rate", [0.3, 1.0])
@pytest.mark.parametrize("included", [[True], [False] * 8])
def test_equal_coins_do_not_prevent_an_audit(rate: float, included: list[bool]) -> None:
    assert len(audited(rate, np.array(included), noise=NOISE)) == 5


@pytest.mark.parametrize("included", [[True, False], [True] * 8])
def test_without_two_of_a_kind_there_is_no_gap(included: list[bool]) -> None:
    assert audited(1.0, np.array(included), noise=NOISE)[-1].epsilon_lower == 0
