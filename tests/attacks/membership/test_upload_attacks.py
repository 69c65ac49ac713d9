"""Attacks on uploads find members, refuse mismatches, and guess where nothing is revealed."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from dpaudit.attacks.membership import (
    RecordScores,
    evaluate,
    gradient_alignment_scores,
    gradient_regression_scores,
    loss_difference_scores,
)
from dpaudit.attacks.membership.upload_attacks import UPLOAD_ASSUMPTION
from dpaudit.vocabulary.errors import InvalidArgument

ROUNDS, RECORDS, WIDTH = 3, 60, 200
Attack = Callable[..., RecordScores]


def regression(sums: object, gradients: object, deviations: object) -> RecordScores:
    return gradient_regression_scores(sums, gradients, deviations, joins=1.0)  # type: ignore[arg-type]


def federation(noise: float, common: float = 0.0) -> tuple[list, list, np.ndarray]:  # type: ignore[type-arg]
    """Return the sums of the members' gradients, the gradients, and who is a member."""
    rng = np.random.default_rng(3)
    member = rng.permutation(RECORDS) < RECORDS // 2
    shared = common * rng.standard_normal(WIDTH)
    gradients = [shared + rng.standard_normal((RECORDS, WIDTH)) for _ in range(ROUNDS)]
    sums = [g[member].sum(axis=0) + noise * rng.standard_normal(WIDTH) for g in gradients]
    return sums, gradients, member


def auc(scores: RecordScores, member: np.ndarray) -> float:
    split = scores.split(member.astype(int))
    return evaluate("upload", split, confidence=0.95, assumes=UPLOAD_ASSUMPTION).auc


@pytest.mark.parametrize("attack", [gradient_alignment_scores, regression])
def test_members_score_higher(attack: Attack) -> None:
    sums, gradients, member = federation(noise=1.0)
    assert auc(attack(sums, gradients, [1.0] * ROUNDS), member) > 0.95


def test_regression_is_not_confused_by_gradients_that_resemble_each_other() -> None:
    sums, gradients, member = federation(noise=1.0, common=10.0)
    assert auc(regression(sums, gradients, [1.0] * ROUNDS), member) == 1.0


@pytest.mark.parametrize("attack", [gradient_alignment_scores, regression])
def test_large_noise_hides_members(attack: Attack) -> None:
    sums, gradients, member = federation(noise=1e6)
    assert abs(auc(attack(sums, gradients, [1e6] * ROUNDS), member) - 0.5) < 0.3


def test_noisier_rounds_weigh_less() -> None:
    gradients = [np.eye(2), np.eye(2)]
    sums = [np.array([1.0, 0.0]), np.array([0.0, 1.0])]
    first, second = gradient_alignment_scores(sums, gradients, [1.0, 10.0]).values
    assert first > second


def test_loss_that_an_upload_lowers_means_member() -> None:
    before = np.ones((2, 4))
    after = before - np.array([0.5, 0.4, 0.0, 0.1])
    assert loss_difference_scores(before, after).values.argmax() == 0


@pytest.mark.parametrize("attack", [gradient_alignment_scores, regression])
@pytest.mark.parametrize(
    ("sums", "gradients", "deviations", "name"),
    [
        ([], [], [], "sums"),
        ([np.ones(3)], [np.ones((2, 3))], [], "deviations"),
        ([np.ones(3)], [np.ones((2, 3))], [0.0], "deviations"),
        ([np.ones(3)], [np.ones((2, 4))], [1.0], "gradients"),
        ([np.ones(3)], [np.ones(3)], [1.0], "gradients"),
        ([np.ones(3)] * 2, [np.ones((2, 3))], [1.0] * 2, "gradients"),
        ([np.ones(3)] * 2, [np.ones((2, 3)), np.ones((4, 3))], [1.0] * 2, "gradients"),
        ([np.full(3, np.nan)], [np.ones((2, 3))], [1.0], "gradients"),
    ],
)
def test_rounds_that_do_not_match_are_refused(
    attack: Attack,
    sums: list,
    gradients: list,
    deviations: list,
    name: str,  # type: ignore[type-arg]
) -> None:
    with pytest.raises(InvalidArgument, match=name):
        attack(sums, gradients, deviations)


def test_losses_of_other_shapes_are_refused() -> None:
    with pytest.raises(InvalidArgument, match="losses"):
        loss_difference_scores(np.ones((2, 3)), np.ones((2, 4)))


def test_joins_must_be_positive() -> None:
    sums, gradients, _ = federation(noise=1.0)
    with pytest.raises(InvalidArgument, match="joins"):
        gradient_regression_scores(sums, gradients, [1.0] * ROUNDS, joins=0.0)
