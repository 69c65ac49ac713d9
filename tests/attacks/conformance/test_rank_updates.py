"""Rank rows in other units are inconclusive; a rank that takes a different step is rejected."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from dpaudit.attacks import conformance
from dpaudit.attacks.conformance.correlation import RankRows, RankRowsKind
from dpaudit.vocabulary.conformance import ConformanceFinding
from dpaudit.vocabulary.verdict import Outcome
from tests.attacks.conformance.reference_trainer import CLAIM, LITTLE, Array, records
from tests.attacks.conformance.test_all_checks import Shares

Change = Callable[[Array], Array]


def ranks(change: Change) -> ConformanceFinding:
    class Reports(Shares):
        def step(self) -> Array:
            update = super().step()
            self.rank_updates = change(self.rank_updates)
            return update

    result = conformance.check(Reports, CLAIM, records=records(), effort=LITTLE)
    (found,) = [finding for finding in result.findings if finding.name == "ranks"]
    return found


def noisy_sums(rows: Array) -> Array:
    return rows / CLAIM.update_scale


def without_learning_rate(rows: Array) -> Array:
    return rows * -20.0


@pytest.mark.parametrize(
    ("change", "factor"), [(noisy_sums, CLAIM.update_scale), (without_learning_rate, -0.05)]
)
def test_rows_in_other_units_are_inconclusive_with_the_factor(
    change: Change, factor: float
) -> None:
    found = ranks(change)
    assert found.outcome is Outcome.INCONCLUSIVE
    assert f"multiply them by {factor:.4g}" in found.why


def own_units_each(rows: Array) -> Array:
    return np.asarray(rows * np.array([[2.0], [3.0]]))


def one_missing(rows: Array) -> Array:
    return rows[:1]


@pytest.mark.parametrize("change", [own_units_each, one_missing, np.zeros_like])
def test_rows_of_unknown_units_are_inconclusive_with_the_requirement(change: Change) -> None:
    found = ranks(change)
    assert found.outcome is Outcome.INCONCLUSIVE
    assert "its clipped sum plus its noise, times the step's factor" in found.why
    assert "multiply" not in found.why


def test_rows_in_the_right_units_are_tested() -> None:
    assert ranks(lambda rows: rows).outcome is Outcome.PASS


def test_rank_with_another_step_has_diverged() -> None:
    update = np.array([1.0, -2.0, 0.5]) / CLAIM.update_scale
    row = update * CLAIM.update_scale
    assert RankRows.of(update, np.array([row, row]), CLAIM).kind is RankRowsKind.REPLICAS
    assert RankRows.of(update, np.array([row / 4, row * 0.75]), CLAIM).kind is RankRowsKind.SHARES
    diverged = RankRows.of(update, np.array([row, row * 0.5]), CLAIM)
    assert diverged.kind is RankRowsKind.DIVERGED
    assert "rank 1" in diverged.why
