"""Label-only and quantile attacks: constants are tuned without the target."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.metrics import mean_pinball_loss

from dpaudit.attacks.membership.attack_registry import (
    ATTACKS,
    RELATIVE_JITTERS,
    AttackTarget,
    ReferenceSignals,
)
from dpaudit.attacks.membership.learned_attacks import (
    QUANTILE_GRID,
    QuantileSettings,
    tune_quantile_regression,
)
from dpaudit.attacks.membership.reference_models import ReferenceConfidences
from dpaudit.vocabulary.errors import InvalidArgument

RECORDS = 300


class Ball:
    """Class 1 within a radius of each record: larger for those that it trained on."""

    def __init__(self, centers: Any, member: Any, radius: float) -> None:
        self.centers, self.member, self.radius = centers, member, radius

    def predict(self, features: Any) -> Any:
        moved = np.linalg.norm(features - self.centers, axis=1)
        inside = moved < self.radius * np.where(self.member, 1.0, 0.7)
        return np.stack([~inside, inside], axis=1).astype(float)


def target(radius: float, models: int) -> AttackTarget:
    generator = np.random.default_rng(0)
    features = generator.standard_normal((RECORDS, 20)).astype(np.float32)
    member = generator.random((models + 1, RECORDS)) < 0.5
    signals = ReferenceSignals(
        ReferenceConfidences(np.zeros((models, RECORDS)), member[1:]),
        np.zeros((models, RECORDS, 1), dtype=np.float32),
        tuple(Ball(features, row, radius) for row in member[1:]),
    )
    return AttackTarget(
        model=Ball(features, member[0], radius),
        features=features,
        labels=np.ones(RECORDS, dtype=np.int64),
        confidences=np.zeros(RECORDS),
        outputs=np.zeros((RECORDS, 1), dtype=np.float32),
        known_nonmembers=np.zeros(RECORDS, dtype=bool),
        reference_signals=signals,
        seed=0,
    )


@pytest.mark.parametrize("jitter", RELATIVE_JITTERS)
def test_label_only_uses_the_change_that_separates_members_of_references(jitter: float) -> None:
    """Which is the one between the radii: with others, all copies or none keep their label."""
    one = target(jitter * np.sqrt(20) * 1.2, models=3)
    scores = ATTACKS["label-only"](one).values
    member = one.model.member  # type: ignore[attr-defined]
    assert scores[member].mean() > scores[~member].mean() + 0.2


def test_label_only_without_references_uses_the_usual_change() -> None:
    one = target(0.2 * np.sqrt(20) * 1.2, models=3)  # for which the usual change is the best
    alone = ATTACKS["label-only"](replace(one, reference_signals=None)).values
    assert np.array_equal(alone, ATTACKS["label-only"](one).values)


def test_references_that_trained_on_every_record_tune_nothing() -> None:
    one = target(0.2 * np.sqrt(20) * 1.2, models=2)
    signals = one.require_references()
    whole = replace(
        signals,
        references=replace(signals.references, member=np.ones((2, RECORDS), dtype=bool)),
    )
    assert np.isfinite(ATTACKS["label-only"](replace(one, reference_signals=whole)).values).all()


def test_the_quantile_regression_has_the_least_pinball_loss_on_held_out_records() -> None:
    generator = np.random.default_rng(0)
    features = generator.random((400, 3)).astype(np.float32)
    confidences = np.where(features[:, 0] > 0.5, 3.0, 0.0) + generator.standard_normal(400)
    found = tune_quantile_regression(features, confidences, seed=5, fpr=0.2)
    order = np.random.default_rng([5, 2]).permutation(400)
    losses = {}
    for settings in QUANTILE_GRID:
        model = HistGradientBoostingRegressor(
            loss="quantile",
            quantile=0.8,
            max_iter=settings.trees,
            max_leaf_nodes=settings.leaves,
            min_samples_leaf=settings.records_per_leaf,
            random_state=5,
        ).fit(features[order[120:]], confidences[order[120:]])
        guessed = model.predict(features[order[:120]])
        losses[settings] = mean_pinball_loss(confidences[order[:120]], guessed, alpha=0.8)
    assert losses[found] == min(losses.values()) < losses[QuantileSettings()]


def test_few_known_records_choose_no_settings() -> None:
    features = np.random.default_rng(0).random((8, 2)).astype(np.float32)
    assert tune_quantile_regression(features, np.arange(8.0), seed=0) == QuantileSettings()
    with pytest.raises(InvalidArgument, match="fpr"):
        tune_quantile_regression(features, np.arange(8.0), seed=0, fpr=0.0)
    with pytest.raises(InvalidArgument, match="features"):
        tune_quantile_regression(features, np.arange(7.0), seed=0)
