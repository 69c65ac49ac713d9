"""Signals, against the formula that overflows."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpaudit.attacks.membership.output_signals import (
    classifier_features,
    correct_predictions,
    cross_entropy,
    logit_scaled_confidence,
    logits_from_outputs,
    true_class_probability,
)
from dpaudit.vocabulary.errors import InvalidArgument

logits = st.lists(st.lists(st.floats(-8, 8), min_size=3, max_size=3), min_size=1, max_size=5)


@given(logits, st.integers(0, 2))
def test_one_signal_holds_probability_loss_and_label(rows: list[list[float]], true: int) -> None:
    values, labels = np.array(rows), np.full(len(rows), true)
    phi = logit_scaled_confidence(values, labels)
    for row, one in zip(rows, phi, strict=True):
        p = math.exp(row[true]) / sum(map(math.exp, row))
        assert one == pytest.approx(math.log(p / (1 - p)), abs=1e-6)
        assert cross_entropy(np.array([one]))[0] == pytest.approx(-math.log(p))
        assert true_class_probability(np.array([one]))[0] == pytest.approx(p)
    assert correct_predictions(values, labels).tolist() == [
        row.index(max(row)) == true for row in rows
    ]


def test_a_confidence_does_not_saturate() -> None:
    phi = logit_scaled_confidence(np.array([[800.0, 0.0], [900.0, 0.0]]), np.array([0, 0]))
    assert phi.tolist() == [800.0, 900.0]


def test_many_models_are_read_like_one_by_one() -> None:
    values = np.random.default_rng(0).standard_normal((3, 4, 5))
    labels = np.array([0, 4, 2, 1])
    together = logit_scaled_confidence(values, labels)
    assert np.array_equal(
        together, np.stack([logit_scaled_confidence(one, labels) for one in values])
    )
    assert classifier_features(values, labels).shape == (3, 4, 5)
    assert classifier_features(values[..., :2], np.zeros(4, dtype=int)).shape == (3, 4, 5)


def test_probabilities_are_known_from_logits() -> None:
    values = np.array([[0.2, 0.8], [1.0, 0.0]])
    phi = logit_scaled_confidence(logits_from_outputs(values), np.array([0, 0]))
    assert phi[0] == pytest.approx(math.log(0.2 / 0.8))
    assert np.isfinite(phi[1])
    assert np.array_equal(logits_from_outputs(values - 3), values - 3)


@pytest.mark.parametrize("bad", [[1.0, 2.0], [[1.0], [2.0]], [[math.nan, 1.0]]])
def test_outputs_that_are_no_classes_are_refused(bad: list[float]) -> None:
    with pytest.raises(InvalidArgument, match="outputs"):
        logits_from_outputs(np.array(bad))


@pytest.mark.parametrize("labels", [[0], [0, 3], [-1, 0]])
def test_labels_that_are_no_classes_are_refused(labels: list[int]) -> None:
    with pytest.raises(InvalidArgument, match="labels"):
        logit_scaled_confidence(np.zeros((2, 3)), np.array(labels))
