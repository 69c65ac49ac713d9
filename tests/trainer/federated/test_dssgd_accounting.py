"""The accounting statement of a published run: both figures, and what they assume."""

from __future__ import annotations

import math

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpaudit.trainer.federated.dssgd import SparseVectorScales
from dpaudit.trainer.federated.dssgd_accounting import account_for_run, upload_release
from dpaudit.vocabulary.errors import InvalidArgument
from dpaudit.vocabulary.mechanism import Mechanism


def kairouz_bound(epsilon: float, times: int, delta: float) -> float:
    """Kairouz, Oh & Viswanath (2015), Theorem 3.4: an upper bound of pure releases composed."""
    odds = math.expm1(epsilon) / (math.exp(epsilon) + 1)
    first = times * epsilon
    inner = math.log(math.e + epsilon * math.sqrt(times) / delta)
    second = odds * epsilon * times + epsilon * math.sqrt(2 * times * inner)
    third = odds * epsilon * times + epsilon * math.sqrt(2 * times * math.log(1 / delta))
    return min(first, second, third)


@given(st.floats(1e-4, 2.0), st.integers(1, 200), st.integers(1, 20), st.sampled_from([1e-9, 1e-5]))
@settings(max_examples=15)
def test_the_composed_figure_is_at_most_any_theorem_on_pure_releases(
    per_entry: float, entries: int, epochs: int, delta: float
) -> None:
    scales = SparseVectorScales(per_entry * entries, entries, sensitivity=0.002)
    found = account_for_run(scales, epochs=epochs, delta=delta)
    bound = kairouz_bound(per_entry, entries * epochs, delta)
    assert found.composed.lower <= found.composed.upper <= bound * (1 + 1e-9)
    assert found.pure >= scales.epsilon * epochs


def test_the_composed_figure_is_far_above_the_published_one() -> None:
    scales = SparseVectorScales(epsilon=1401 * 0.1, entries=1401, sensitivity=0.002)
    found = account_for_run(scales, epochs=10, delta=1e-5)
    assert found.epsilon_per_entry == pytest.approx(0.1)
    # 14,010 entries of epsilon 0.1 each; the lower end is attained by some neighbors.
    assert found.composed.lower > 10 * found.epsilon_per_entry
    assert found.composed.upper > 500 * found.epsilon_per_entry


def test_more_epochs_cost_more() -> None:
    scales = SparseVectorScales(epsilon=1.0, entries=10, sensitivity=0.5)
    costs = [account_for_run(scales, epochs=n, delta=1e-6).composed for n in (1, 2, 4)]
    assert costs[0].upper < costs[1].upper < costs[2].upper
    assert costs[0].lower < costs[1].lower < costs[2].lower


def test_the_statement_shows_both_figures_and_the_assumption() -> None:
    scales = SparseVectorScales(epsilon=2.0, entries=10, sensitivity=0.5)
    published, composed, *assumed = account_for_run(scales, epochs=3, delta=1e-5).lines()
    assert "0.2 per parameter and epoch" in published
    assert "epsilon at most" in composed
    assert "at delta 1e-05" in composed
    assert "2 gamma is assumed" in assumed[0]


def test_the_release_is_what_is_drawn_and_converts_to_json() -> None:
    scales = SparseVectorScales(epsilon=2.0, entries=10, sensitivity=0.5)
    release = upload_release(scales)
    assert (release.comparison.threshold_scale, release.comparison.query_scale) == (
        scales.threshold,
        scales.entry,
    )
    assert (release.value_scale, release.comparison.answers) == (scales.value, 10)
    encoded = msgspec.json.encode(release)
    assert msgspec.json.decode(encoded, type=Mechanism) == release


def test_impossible_runs_are_refused() -> None:
    scales = SparseVectorScales(epsilon=2.0, entries=10, sensitivity=0.5)
    with pytest.raises(InvalidArgument, match="epochs"):
        account_for_run(scales, epochs=0, delta=1e-5)
    with pytest.raises(InvalidArgument, match="delta"):
        account_for_run(scales, epochs=1, delta=0.0)
