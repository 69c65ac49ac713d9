"""Slices: each is evaluated by itself, and their intervals hold together."""

from __future__ import annotations

import numpy as np
import pytest

from dpaudit.attacks.membership.evaluation import measure
from dpaudit.attacks.membership.scores import MembershipScores, RecordScores
from dpaudit.attacks.membership.slices import MAX_SLICES, evaluate_slices
from dpaudit.vocabulary.errors import InvalidArgument


def test_a_slice_is_evaluated_as_its_records_alone_at_a_divided_level() -> None:
    generator = np.random.default_rng(0)
    values = generator.integers(0, 3, 900)
    member = generator.random(900) < 0.5
    scores = generator.standard_normal(900) + values * member
    found = evaluate_slices("loss", RecordScores(scores), member, values, confidence=0.94)
    assert list(found) == ["0", "1", "2"]
    for value, result in found.items():
        which = values == int(value)
        alone = MembershipScores(scores[which & member], scores[which & ~member])
        assert result == measure("loss", alone, confidence=0.98)
    assert found["0"].auc < found["1"].auc < found["2"].auc


def test_slices_without_one_class_are_left_out_and_divide_no_level() -> None:
    scores = RecordScores(np.arange(12.0))
    member = np.array([0, 1] * 4 + [1] * 2 + [0] * 2)
    found = evaluate_slices("x", scores, member, list("aabbaabbccdd"), confidence=0.9)
    assert list(found) == ["a", "b"]
    assert found["a"].auc_interval is not None
    alone = MembershipScores(scores.values[[1, 5]], scores.values[[0, 4]])
    assert found["a"] == measure("x", alone, confidence=0.95)


def test_numbers_are_ordered_as_numbers_and_missing_values_are_a_slice() -> None:
    scores, member = RecordScores(np.arange(12.0)), np.array([0, 1] * 6)
    numbers = evaluate_slices("x", scores, member, [10, 10, 9, 9] * 3, confidence=0.9)
    assert list(numbers) == ["9", "10"]
    words = evaluate_slices(
        "x", scores, member, np.array(["a", "a", None, None] * 3), confidence=0.9
    )
    assert list(words) == ["None", "a"]


def test_an_inverted_slice_is_inconclusive_and_costs_no_other() -> None:
    member = np.array([0, 1] * 400)
    values = np.arange(800) % 4 // 2
    noise = np.random.default_rng(0).standard_normal(800)
    scores = noise + np.where(values == 0, 3, -3) * member
    found = evaluate_slices("x", RecordScores(scores), member, values, confidence=0.9)
    assert found["0"].inconclusive is None
    assert "worse than chance" in str(found["1"].inconclusive)


@pytest.mark.parametrize("values", [range(400), ["a"] * 399, [["a"]] * 400, ["a", "b"] * 200])
def test_values_that_define_no_slices_are_refused(values: object) -> None:
    member = np.array([0, 1] * 200)
    with pytest.raises(InvalidArgument, match="by"):
        evaluate_slices("x", RecordScores(np.arange(400.0)), member, values, confidence=0.9)  # type: ignore[arg-type]
    assert MAX_SLICES < 400


@pytest.mark.slow
def test_the_intervals_of_all_slices_hold_together() -> None:
    """Of members and non-members with known normal laws, in ten slices of 200 records."""
    from scipy.stats import norm

    generator = np.random.default_rng(1)
    values = np.repeat(np.arange(10), 200)
    member = np.tile(np.arange(200) < 100, 10)
    shift = np.linspace(0, 2, 10)
    truth = norm.sf(norm.isf(0.1) - shift)
    failures = 0
    for _ in range(200):
        scores = RecordScores(generator.standard_normal(2000) + shift[values] * member)
        found = evaluate_slices("x", scores, member, values, confidence=0.8)
        bounds = [result.tpr_at_fpr[-1].interval for result in found.values()]
        right = [b.lower <= t <= b.upper for b, t in zip(bounds, truth, strict=True)]
        failures += not all(right)
    assert failures <= 40 + 5 * np.sqrt(200 * 0.2 * 0.8)
