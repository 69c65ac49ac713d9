"""A trainer that claims epsilon 0.21 and is refuted above 2, by training it many times.

Tramer et al. 2022, arXiv:2202.12219, audited a published implementation that claimed 0.21 and
showed at least 2.79: its noise was calibrated to the sensitivity of a mean over the batch, for
gradients that it had averaged once more. In small: logistic regression on full batches, and a
trainer that divides its noise by the batch size once too often. Every run is an independent
trial, so the bound is certified.
"""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from dpaudit.accountants import calibrate, pld
from dpaudit.attacks import bounds
from dpaudit.vocabulary.audit import BoundKind
from dpaudit.vocabulary.mechanism import Gaussian, Repeated

Array = NDArray[np.float64]

CLAIMED, DELTA, CONFIDENCE = 0.21, 1e-5, 0.99
RUNS, RECORDS, FEATURES, STEPS, CLIP, RATE = 1000, 48, 8, 5, 1.0, 0.5


def claimed_noise() -> float:
    return calibrate.noise_multiplier(
        lambda noise: Repeated(Gaussian(noise), STEPS), target_epsilon=CLAIMED, delta=DELTA
    ).value


def trained(with_canary: bool, noise: float, rng: np.random.Generator) -> Array:
    """Return the weights of many runs on one batch, shape ``(runs, features)``."""
    data = np.random.default_rng(0)
    x = data.standard_normal((RECORDS, FEATURES)) / 3
    y = np.where(data.random(RECORDS) < 0.5, 1.0, -1.0)
    canary = np.full((1, FEATURES), 4.0)
    if with_canary:
        x, y = np.concatenate([x, canary]), np.append(y, -1.0)
    weights = np.zeros((RUNS, FEATURES))
    for _ in range(STEPS):
        margins = y * (weights @ x.T)
        gradients = -(y / (1 + np.exp(margins)))[:, :, None] * x  # (runs, records, features)
        norms = np.linalg.norm(gradients, axis=2, keepdims=True)
        clipped = gradients * np.minimum(1.0, CLIP / np.maximum(norms, 1e-12))
        mean = clipped.sum(axis=1) / RECORDS
        weights -= RATE * (mean + noise * rng.standard_normal(mean.shape))
    return weights


def refuted_epsilon(noise: float) -> float:
    """Audit by the loss of a canary, worst for the model; half of the runs choose the threshold."""
    rng = np.random.default_rng(1)
    scores = [-trained(joins, noise, rng).sum(axis=1) for joins in (True, False)]
    bound = bounds.from_scores(
        members=scores[0], nonmembers=scores[1], thresholds=bounds.SampleSplit(rng, delta=DELTA),
        delta=DELTA, confidence=CONFIDENCE,
    )  # fmt: skip
    assert bound.kind is BoundKind.CERTIFIED
    return bound.epsilon


def test_noise_divided_by_the_batch_size_once_too_often_is_refuted() -> None:
    deviation = claimed_noise() * CLIP / RECORDS
    assert refuted_epsilon(deviation / RECORDS) > 2.0


def test_the_trainer_as_it_was_meant_is_not() -> None:
    deviation = claimed_noise() * CLIP / RECORDS
    assert refuted_epsilon(deviation) <= CLAIMED


def test_the_claim_is_what_an_accountant_says() -> None:
    epsilon = pld.profile(Repeated(Gaussian(claimed_noise()), STEPS)).epsilon(delta=DELTA)
    assert epsilon.upper == pytest.approx(CLAIMED, rel=1e-3)
    assert epsilon.upper <= CLAIMED
