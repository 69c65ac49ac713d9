"""What must be so where the truth is known: models that are normal by construction."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from dpaudit.attacks.membership import (
    ReferenceConfidences,
    calibrated_loss,
    evaluate,
    lira_offline,
    lira_online,
    random_halves,
    rmia_offline,
    rmia_online,
)
from dpaudit.attacks.membership.scores import RecordScores
from dpaudit.vocabulary.arrays import FloatArray
from dpaudit.vocabulary.audit import MembershipResult

RECORDS = 4000
Attack = Callable[[FloatArray, ReferenceConfidences], RecordScores]
ATTACKS: list[Attack] = [calibrated_loss, lira_online, lira_offline, rmia_online, rmia_offline]


def world(
    effect: float, seed: int
) -> tuple[FloatArray, FloatArray, np.ndarray, ReferenceConfidences]:
    """Difficulty, a target and 64 references: confidence is difficulty, membership and luck."""
    generator = np.random.default_rng(seed)
    # A target that was a reference's other half would be known by what that one trained on.
    member = np.concatenate(
        [random_halves(1, RECORDS, seed=1000 + seed), random_halves(64, RECORDS, seed=2000 + seed)]
    )
    difficulty = 2 * generator.standard_normal(RECORDS)
    confidences = difficulty + effect * member + generator.standard_normal(member.shape)
    return difficulty, confidences[0], member[0], ReferenceConfidences(confidences[1:], member[1:])


def attacked(attack: Attack, models: int, effect: float, seed: int = 0) -> MembershipResult:
    _, target, member, references = world(effect, seed)
    return evaluate("x", attack(target, references.first(models)).split(member), confidence=0.95)


def tpr(result: MembershipResult, fpr: float) -> float:
    return next(rate.tpr for rate in result.tpr_at_fpr if rate.fpr == fpr)


@pytest.mark.parametrize("attack", ATTACKS)
def test_more_references_help(attack: Attack) -> None:
    few, more, many = (attacked(attack, models, effect=2.0) for models in (2, 8, 64))
    assert few.auc < more.auc < many.auc


def test_lira_nears_the_best_attack_there_is() -> None:
    """Which knows each record's two means: its AUC is Phi(effect / sqrt 2)."""
    difficulty, target, member, _ = world(2.0, 0)
    best = evaluate("best", RecordScores(target - difficulty).split(member), confidence=0.95)
    found = attacked(lira_online, 64, effect=2.0)
    assert best.auc - 0.02 < found.auc < best.auc
    assert tpr(found, 0.01) > 0.7 * tpr(best, 0.01)


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("models", [1, 16])
def test_records_without_effect_are_not_detected(attack: Attack, models: int) -> None:
    aucs = [attacked(attack, models, effect=0.0, seed=seed).auc for seed in range(20)]
    error = np.sqrt((RECORDS + 1) / (12 * (RECORDS / 2) ** 2) / len(aucs))
    assert abs(np.mean(aucs) - 0.5) < 4 * error


@pytest.mark.parametrize(("models", "records"), [(1, 7), (2, 7), (5, 10), (8, 10)])
def test_halves_are_halves_and_come_in_complete_pairs(models: int, records: int) -> None:
    member = random_halves(models, records, seed=3)
    assert member.shape == (models, records)
    assert set(member.sum(axis=1)) <= {records // 2, records - records // 2}
    for first in range(0, models - 1, 2):
        assert (member[first] ^ member[first + 1]).all()


def test_halves_depend_on_their_seed_alone() -> None:
    assert np.array_equal(random_halves(4, 50, seed=1), random_halves(4, 50, seed=1))
    assert not np.array_equal(random_halves(4, 50, seed=1), random_halves(4, 50, seed=2))
