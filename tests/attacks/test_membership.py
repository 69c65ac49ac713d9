"""Membership inference: larger always means member, ties are broken for nobody."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from dpaudit.attacks.membership import MembershipScores, evaluate, loss_threshold
from dpaudit.vocabulary.errors import InvalidArgument

scores = st.lists(st.integers(-5, 5), min_size=1, max_size=40)


@given(scores, scores)
def test_auc_is_that_of_scikit_learn_ties_included(members: list[int], others: list[int]) -> None:
    result = evaluate(
        "x",
        MembershipScores(np.array(members, float), np.array(others, float)),
        confidence=0.95,
    )
    truth = [1] * len(members) + [0] * len(others)
    assert result.auc == pytest.approx(roc_auc_score(truth, members + others))


@given(scores, scores)
def test_tpr_at_fpr_is_that_of_the_best_threshold_allowed(
    members: list[int], others: list[int]
) -> None:
    result = evaluate(
        "x",
        MembershipScores(np.array(members, float), np.array(others, float)),
        confidence=0.95,
    )
    for rate in result.tpr_at_fpr:
        allowed = [
            np.mean(np.array(members) >= t)
            for t in range(-6, 7)
            if np.mean(np.array(others) >= t) <= rate.fpr
        ]
        assert rate.tpr == pytest.approx(max(allowed, default=0.0))
        assert rate.interval.lower <= rate.tpr <= rate.interval.upper


def test_a_smaller_loss_means_member() -> None:
    result = evaluate("loss", loss_threshold(np.zeros(50), np.ones(50)), confidence=0.95)
    assert result.auc == 1.0


@pytest.mark.parametrize("bad", [[], [math.nan], [math.inf, 0.0]])
def test_empty_or_infinite_scores_are_refused(bad: list[float]) -> None:
    with pytest.raises(InvalidArgument, match="nonmembers"):
        MembershipScores(np.ones(3), np.array(bad))


def test_the_roc_is_kept_short_and_rising() -> None:
    rng = np.random.default_rng(0)
    result = evaluate(
        "x",
        MembershipScores(rng.standard_normal(5000), rng.standard_normal(5000)),
        confidence=0.95,
    )
    points = np.array(result.roc)
    assert len(points) <= 400
    assert (np.diff(points, axis=0) >= 0).all()
