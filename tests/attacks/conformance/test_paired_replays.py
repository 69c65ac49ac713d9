"""The slack covers the rounding of a float32 trainer, and little more."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from dpaudit.attacks.conformance.paired_replays import rounding_slack

Row = NDArray[np.float32]


def change(parameters: Row, gradients: Row, noise: Row, rate: np.float32, batch: int) -> Row:
    """Take one step in float32, operation by operation."""
    total = np.zeros_like(parameters)
    for row in gradients:
        total += row
    return (parameters - (total + noise) / np.float32(batch) * rate) - parameters


@given(
    st.integers(0, 2**32),
    st.integers(1, 300),
    st.integers(0, 12),
    st.floats(-4, 1),
    st.floats(-3, 0),
    st.floats(0.1, 10),
)
@settings(max_examples=200)
def test_what_rounding_does_to_a_difference_is_within_the_slack(
    seed: int, dimension: int, others: int, size: float, rate: float, noise_multiplier: float
) -> None:
    rng = np.random.default_rng(seed)
    gradients = rng.normal(size=(others + 1, dimension))
    gradients /= np.linalg.norm(gradients, axis=1, keepdims=True)
    gradients = gradients.astype(np.float32)
    noise = (noise_multiplier * rng.normal(size=dimension)).astype(np.float32)
    parameters = (10**size * rng.normal(size=dimension)).astype(np.float32)
    step, batch = np.float32(10**rate), 8
    one = change(parameters, gradients[:-1], noise, step, batch)
    other = change(parameters, gradients, noise, step, batch)
    scale = -float(step) / batch
    sums = one.astype(np.float64) / scale, other.astype(np.float64) / scale
    off = np.linalg.norm(sums[1] - sums[0] - gradients[-1].astype(np.float64))
    # Where parameters are so large that a step is lost in them, nothing can be derived.
    if np.abs(parameters).max() * 2**-24 < 2**-13 * np.sqrt(np.square(one).mean()):
        assert off <= rounding_slack(*sums, others + 1, 1.0, scale)


def test_the_slack_of_a_usual_step_is_far_below_the_clip_norm() -> None:
    rng = np.random.default_rng(1)
    noise = 2 * rng.normal(size=(2, 1000)).astype(np.float32)
    assert rounding_slack(*noise.astype(np.float64), 8, 1.0, 1.0) < 2e-3


def test_rounding_does_not_explain_nan() -> None:
    assert rounding_slack(np.zeros(3), np.array([0.0, np.nan, 1.0]), 1, 1.0, 1.0) == 0.0
