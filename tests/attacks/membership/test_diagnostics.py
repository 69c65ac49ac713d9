"""Diagnostics that need no attack: normality of confidences, and the tail of the losses."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import beta

from dpaudit.attacks.membership.loss_tail import loss_tail_rate
from dpaudit.attacks.membership.normality import TAIL, normality_diagnostics
from dpaudit.attacks.membership.reference_models import ReferenceConfidences
from dpaudit.attacks.membership.scores import MembershipScores
from dpaudit.vocabulary.errors import InvalidArgument


def references(draws: np.ndarray, seed: int = 0) -> ReferenceConfidences:
    member = np.random.default_rng(seed).random(draws.shape) < 0.5
    return ReferenceConfidences(draws, member)


def slow_tails(found: ReferenceConfidences) -> tuple[int, float, float]:
    """Residual by residual, each with its own probability."""
    signs = []
    for record in range(found.member.shape[1]):
        values = found.confidences[found.member[:, record], record]
        n = len(values)
        if n < 4:
            continue
        residuals = (values - values.mean()) / values.std(ddof=1)
        beyond = beta.sf(residuals**2 * n / (n - 1) ** 2, 0.5, n / 2 - 1) < 2 * TAIL
        signs += (np.sign(residuals) * beyond).tolist()
    return len(signs), signs.count(-1) / len(signs), signs.count(1) / len(signs)


@pytest.mark.parametrize("models", [9, 32])
def test_tails_are_those_of_each_residual(models: int) -> None:
    generator = np.random.default_rng(models)
    found = references(generator.standard_t(3, (models, 200)) + generator.normal(0, 9, 200))
    tails = normality_diagnostics(found, found.member)
    assert (tails.residuals, tails.lower_tail, tails.upper_tail) == pytest.approx(slow_tails(found))


@pytest.mark.parametrize("models", [8, 12, 40])
def test_normal_confidences_have_the_expected_tails(models: int) -> None:
    draws = np.random.default_rng(models).standard_normal((models, 20_000))
    found = references(7 + 3 * draws)
    tails = normality_diagnostics(found, found.member)
    error = 6 * np.sqrt(TAIL / tails.residuals * 2)  # residuals of a record depend on each other
    assert abs(tails.lower_tail - TAIL) < error
    assert abs(tails.upper_tail - TAIL) < error
    assert not tails.heavy_tails


def test_skewed_confidences_have_one_heavy_tail() -> None:
    found = references(np.random.default_rng(0).exponential(1, (32, 2000)))
    tails = normality_diagnostics(found, found.member)
    assert tails.upper_tail > 2 * TAIL > TAIL > tails.lower_tail
    assert tails.heavy_tails


def test_few_models_or_equal_confidences_have_no_residual() -> None:
    few = ReferenceConfidences(np.random.default_rng(0).random((3, 5)), np.ones((3, 5), dtype=bool))
    equal = ReferenceConfidences(np.ones((8, 5)), np.ones((8, 5), dtype=bool))
    for found in (few, equal):
        assert normality_diagnostics(found, found.member).residuals == 0
    with pytest.raises(InvalidArgument, match="which"):
        normality_diagnostics(few, few.member[:2])


def slow_loss_tail(members: list[float], others: list[float], fnr: float) -> float:
    """The largest share of larger losses over thresholds that at most fnr of the members exceed.

    By enumeration: every loss, and a number below all, is tried as the threshold.
    """
    best = 0.0
    for limit in [min(*members, *others) - 1, *members, *others]:
        missed = sum(one > limit for one in members)
        if missed <= fnr * len(members) * (1 + 1e-12):
            best = max(best, sum(one > limit for one in others) / len(others))
    return best


@given(
    st.lists(st.integers(-5, 5).map(float), min_size=2, max_size=12),
    st.lists(st.integers(-5, 8).map(float), min_size=2, max_size=12),
    st.integers(1, 9),
)
def test_the_loss_tail_is_the_best_threshold_of_all(
    members: list[float], others: list[float], tenths: int
) -> None:
    """Equal losses, and shares that no threshold attains, included."""
    scores = MembershipScores(-np.array(members), -np.array(others))
    rate = loss_tail_rate(scores, fnr=tenths / 10, confidence=0.9)
    assert rate.tpr == pytest.approx(slow_loss_tail(members, others, tenths / 10), abs=1e-9)


def test_the_loss_tail_is_the_share_of_larger_losses() -> None:
    generator = np.random.default_rng(0)
    members, others = generator.exponential(1, 1000), generator.exponential(2, 700)
    rate = loss_tail_rate(MembershipScores(-members, -others), fnr=0.01, confidence=0.9)
    limit = np.sort(members)[-11]  # ten of the thousand members have a larger loss
    assert rate.tpr == (others > limit).mean()
    assert rate.fpr == 0.01
    assert rate.interval.lower <= rate.tpr <= rate.interval.upper
    with pytest.raises(InvalidArgument, match="fnr"):
        loss_tail_rate(MembershipScores(-members, -others), fnr=1.0, confidence=0.9)
