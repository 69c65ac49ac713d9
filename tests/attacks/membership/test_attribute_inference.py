"""Inference of labels and features: imputation is not called leakage."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from dpaudit.attacks.bounds import clopper_pearson_interval
from dpaudit.attacks.membership.attribute_inference import (
    InferenceCase,
    infer_feature,
    infer_labels,
)
from dpaudit.vocabulary.errors import InvalidArgument

RECORDS = 1200
MEMBER, KNOWN = np.arange(RECORDS) < 400, np.arange(RECORDS) >= 800


class Table:
    """A model that knows the classes of given records, and predicts others by a rule."""

    def __init__(self, features: Any, labels: Any, rule: Any) -> None:
        self.known = {row.tobytes(): label for row, label in zip(features, labels, strict=True)}
        self.rule = rule

    def predict(self, features: Any) -> Any:
        classes = [
            self.known.get(row.tobytes(), guess)
            for row, guess in zip(features, self.rule(features), strict=True)
        ]
        return np.where(np.eye(2)[np.array(classes, dtype=int)] > 0, 3.0, -3.0)


def data(seed: int, noise: float) -> tuple[Any, Any]:
    """The label follows the first feature, and the second feature the label, but for noise."""
    generator = np.random.default_rng(seed)
    features = generator.standard_normal((RECORDS, 4)).astype(np.float32)
    labels = (features[:, 0] > 0) ^ (generator.random(RECORDS) < noise)
    features[:, 1] = labels ^ (generator.random(RECORDS) < noise)
    return features, labels.astype(np.int64)


def rule(features: Any) -> Any:
    return features[:, 0] > 0


def case(features: Any, labels: Any, model: Any) -> InferenceCase:
    return InferenceCase(model, features, labels, MEMBER, KNOWN, seed=0)


def test_a_model_of_the_distribution_leaks_no_labels() -> None:
    """Its guesses are right for 9 in 10 records, members or not: imputation, no leakage."""
    features, labels = data(0, 0.1)
    found = infer_labels(case(features, labels, Table([], [], rule)), confidence=0.95)
    assert found.correct_members / 400 > 0.85
    assert not found.leaks
    assert found.gap_interval.lower < 0 < found.gap_interval.upper


def test_a_model_that_memorized_labels_leaks_them() -> None:
    features, labels = data(1, 0.3)
    memory = Table(features[MEMBER], labels[MEMBER], rule)
    found = infer_labels(case(features, labels, memory), confidence=0.95)
    assert found.correct_members == 400
    assert found.leaks
    right = (rule(features) == labels)[~MEMBER & ~KNOWN]
    assert found.correct_nonmembers == right.sum()


def test_the_intervals_are_differences_of_exact_intervals() -> None:
    features, labels = data(1, 0.3)
    memory = Table(features[MEMBER], labels[MEMBER], rule)
    found = infer_labels(case(features, labels, memory), confidence=0.9)
    ends = [
        clopper_pearson_interval(successes=hits, trials=400, confidence=0.95)
        for hits in (found.correct_members, found.correct_nonmembers, found.baseline_members)
    ]
    for interval, other in ((found.gap_interval, ends[1]), (found.above_baseline, ends[2])):
        assert interval.lower == pytest.approx(ends[0].lower - other.upper, abs=1e-12)
        assert interval.upper == pytest.approx(ends[0].upper - other.lower, abs=1e-12)


def test_a_feature_that_other_columns_reveal_is_no_leakage() -> None:
    features, labels = data(2, 0.1)
    found = infer_feature(case(features, labels, Table([], [], rule)), 1, confidence=0.95)
    assert found.correct_members / 400 > 0.8  # by its correlation with the label
    assert found.baseline_members / 400 > 0.8
    assert not found.leaks


def test_a_feature_of_members_leaks_through_a_model_that_memorized_them() -> None:
    features, labels = data(3, 0.5)  # the second feature says nothing about the label
    memory = Table(features[MEMBER], labels[MEMBER], lambda rows: 1 - rule(rows))

    class Doubtful:
        """As the memory, and unsure of records that it does not know."""

        def predict(self, rows: Any) -> Any:
            known = np.array([row.tobytes() in memory.known for row in rows])
            return memory.predict(rows) * np.where(known, 1.0, 0.0)[:, None]

    found = infer_feature(case(features, labels, Doubtful()), 1, confidence=0.95)
    assert found.correct_members > 1.2 * found.correct_nonmembers
    assert found.leaks


def test_the_guess_is_the_value_of_the_largest_product() -> None:
    features, labels = data(4, 0.3)
    model = Table(features[MEMBER], labels[MEMBER], rule)
    found = infer_feature(case(features, labels, model), 1, confidence=0.95)
    from sklearn.ensemble import HistGradientBoostingClassifier

    others = np.column_stack([features[:, [0, 2, 3]], labels])
    imputer = HistGradientBoostingClassifier(random_state=0).fit(others[KNOWN], features[KNOWN, 1])
    guesses = []
    for record in np.flatnonzero(MEMBER)[:50]:
        products = []
        for value in (0, 1):
            row = features[[record]].copy()
            row[0, 1] = value
            logits = model.predict(row)[0]
            p = np.exp(logits[labels[record]]) / np.exp(logits).sum()
            products.append(p * imputer.predict_proba(others[[record]])[0, value])
        guesses.append(int(np.argmax(products)) == features[record, 1])
    only = InferenceCase(
        model, features, labels, np.isin(np.arange(RECORDS), np.flatnonzero(MEMBER)[:50]), KNOWN, 0
    )
    assert infer_feature(only, 1, confidence=0.95).correct_members == sum(guesses)
    assert found.values == 2


@pytest.mark.parametrize("column", [-1, 4, 0])
def test_features_that_cannot_be_inferred_are_refused(column: int) -> None:
    features, labels = data(0, 0.1)
    with pytest.raises(InvalidArgument, match="infer"):
        infer_feature(case(features, labels, Table([], [], rule)), column, confidence=0.95)


@pytest.mark.parametrize(
    ("member", "known"),
    [
        (MEMBER, MEMBER),
        (MEMBER, np.zeros(RECORDS, dtype=bool)),
        (np.zeros(RECORDS, dtype=bool), KNOWN),
        (~KNOWN, KNOWN),
        (MEMBER[:5], KNOWN),
    ],
)
def test_cases_without_a_comparison_are_refused(member: Any, known: Any) -> None:
    features, labels = data(0, 0.1)
    with pytest.raises(InvalidArgument):
        InferenceCase(Table([], [], rule), features, labels, member, known, seed=0)
