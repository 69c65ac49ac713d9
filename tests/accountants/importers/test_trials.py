"""The law of a number of trials is found from its mean, never with a smaller mean."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpaudit.accountants import NegativeBinomialTrials, PoissonTrials
from dpaudit.accountants.importers.dp_event import trials_from_mean
from dpaudit.vocabulary.errors import InvalidArgument


def mean_by_summing(shape: float, success: float) -> float:
    """Return the mean by the definition: P(k) proportional to G(k + shape)/k! (1-success)^k."""
    k = np.arange(1, 200_000)
    # P(k + 1) = P(k) (1 - success) (k + shape)/(k + 1)
    log_weight = np.cumsum(np.log((k + shape) / (k + 1))) + k * math.log1p(-success)
    weight = np.exp(np.concatenate(([0.0], log_weight[:-1])))
    return float((k * weight).sum() / weight.sum())


@pytest.mark.parametrize("shape", [-0.5, 0.0, 0.5, 1.0, 3.0])
@pytest.mark.parametrize("mean", [1.01, 2.0, 10.0, 300.0])
def test_the_law_has_the_mean_that_was_recorded(shape: float, mean: float) -> None:
    trials = trials_from_mean(shape=shape, mean=mean)
    assert isinstance(trials, NegativeBinomialTrials)
    assert trials.shape == shape
    if trials.success > 1e-3:  # else the sum is too short
        assert mean_by_summing(shape, trials.success) == pytest.approx(mean, rel=1e-8)


@given(st.floats(1.001, 1e12))
def test_the_geometric_law_is_rounded_towards_more_trials(mean: float) -> None:
    trials = trials_from_mean(shape=1.0, mean=mean)
    assert isinstance(trials, NegativeBinomialTrials)
    assert 1 - 1e-11 <= trials.success * mean <= 1


def test_an_infinite_shape_is_a_poisson_number() -> None:
    assert trials_from_mean(shape=math.inf, mean=2.5) == PoissonTrials(2.5)


@pytest.mark.parametrize("shape", [-0.5, 0.0, 1e-300, 1.0, 50.0])
def test_a_mean_of_one_is_one_trial(shape: float) -> None:
    assert trials_from_mean(shape=shape, mean=1.0) is None


@pytest.mark.parametrize(
    ("shape", "mean"),
    [
        (1.0, 0.5),
        (1.0, math.nan),
        (1.0, math.inf),
        (1e300, math.inf),
        (-0.999, 1e9),
        (-1.0, 2.0),
        (math.nan, 2.0),
        (math.inf, 0.0),
        (math.inf, math.nan),
    ],
)
def test_what_is_no_law_is_refused(shape: float, mean: float) -> None:
    with pytest.raises(InvalidArgument, match=r"shape|mean"):
        trials_from_mean(shape=shape, mean=mean)
