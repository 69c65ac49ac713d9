"""Regression models: their errors become confidences on which all attacks work."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpaudit.attacks.membership import ReferenceConfidences, evaluate, lira_online, random_halves
from dpaudit.attacks.membership.output_signals import cross_entropy
from dpaudit.attacks.membership.regression_signals import (
    regression_confidence,
    root_mean_square_error,
)
from dpaudit.vocabulary.errors import InvalidArgument


@given(st.floats(-50, 50), st.floats(-50, 50), st.floats(0.5, 10))
def test_the_loss_is_the_squared_error(prediction: float, truth: float, scale: float) -> None:
    square = (prediction - truth) ** 2 / (2 * scale**2)
    found = regression_confidence(np.array([prediction]), np.array([truth]), scale=scale)
    expected = min(max(square, 1e-12), 1e12)
    assert cross_entropy(found)[0] == pytest.approx(expected, rel=1e-9, abs=1e-9)
    if 1e-6 < square < 500:
        p = math.exp(-square)
        assert found[0] == pytest.approx(math.log(p / -math.expm1(-square)), rel=1e-9, abs=1e-9)


def test_exact_and_absurd_predictions_have_finite_confidences() -> None:
    found = regression_confidence(np.array([1.0, 1e200]), np.array([1.0, 0.0]), scale=1.0)
    assert np.isfinite(found).all()
    assert found[0] > 20
    assert found[1] < -20


def test_shapes_and_values_are_checked() -> None:
    good = np.zeros(3)
    for bad in (np.zeros(4), np.array([0.0, np.nan, 0.0]), np.array([0.0, np.inf, 0.0])):
        with pytest.raises(InvalidArgument, match="predictions"):
            regression_confidence(bad, good, scale=1.0)
    for scale in (0.0, -1.0, math.nan):
        with pytest.raises(InvalidArgument, match="scale"):
            regression_confidence(good, good, scale=scale)


def test_lira_finds_members_of_a_regression_model() -> None:
    """Models with smaller errors on the records that they trained on."""
    generator = np.random.default_rng(0)
    member = random_halves(18, 2000, seed=0)
    truth, bias = generator.normal(0, 5, 2000), generator.normal(0, 1, 2000)
    errors = bias * np.where(member, 0.3, 1.0) + 0.1 * generator.standard_normal((18, 2000))
    scale = root_mean_square_error(truth + errors[1:], truth)
    assert scale == pytest.approx(math.sqrt(np.square(errors[1:]).mean()))
    confidences = regression_confidence(truth + errors, truth, scale=scale)
    references = ReferenceConfidences(confidences[2:], member[2:])
    scores = lira_online(confidences[0], references).split(member[0])
    assert evaluate("lira", scores, confidence=0.95).auc > 0.85
