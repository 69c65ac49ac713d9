"""The interval of a true-positive rate, from counts alone."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from dpaudit.attacks.bounds.lower_bound import threshold_ranks, tpr_interval_of_counts
from dpaudit.attacks.membership.evaluation import tpr_interval, true_positive_limits
from dpaudit.attacks.membership.scores import MembershipScores


@given(st.integers(1, 10**6), st.floats(1e-5, 0.999), st.floats(0.5, 1 - 1e-6))
def test_ranks_are_quantiles_of_a_binomial(trials: int, rate: float, confidence: float) -> None:
    strict, loose = threshold_ranks(trials, np.array([rate]), confidence)
    share = (1 - confidence) / 4
    assert strict[0] == int(binom.ppf(share, trials, rate))
    assert loose[0] == int(binom.isf(share, trials, rate)) + 1


@pytest.mark.parametrize("sizes", [(60, 30), (500, 2000), (1, 1)])
@pytest.mark.parametrize("fpr", [0.001, 0.1, 0.5])
def test_counts_give_the_interval_of_the_scores(sizes: tuple[int, int], fpr: float) -> None:
    rng = np.random.default_rng(1)
    scores = MembershipScores(*(rng.standard_normal(size).round(1) for size in sizes))
    hits = true_positive_limits(scores, fpr=fpr, confidence=0.95)
    again = tpr_interval_of_counts(
        hits, members=sizes[0], nonmembers=sizes[1], fpr=fpr, confidence=0.95
    )
    assert again == tpr_interval(scores, fpr=fpr, confidence=0.95)
    assert 0 <= again.lower <= again.upper <= 1
