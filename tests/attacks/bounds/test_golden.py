"""Every estimator against values from its definition at 40 digits, and published ones."""

from __future__ import annotations

import json
from typing import Any

import pytest

from dpaudit.attacks import bounds
from dpaudit.attacks.bounds.lower_bound import upper_limit
from dpaudit.vocabulary.audit import BoundKind
from tests.places import ROOT

GOLDEN = json.loads((ROOT / "tests" / "golden" / "lower_bounds.json").read_text())["values"]


@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: f"{case['estimator']}-{case['delta']}")
def test_a_bound_is_its_definition(case: dict[str, Any]) -> None:
    arguments = {k: v for k, v in case.items() if k not in ("estimator", "epsilon")}
    found = getattr(bounds, case["estimator"])(**arguments, confidence=0.95)
    assert found.epsilon == pytest.approx(float(case["epsilon"]), abs=1e-7)
    assert found.confidence == 0.95


def test_zanella_beguelin_on_perfect_counts_is_the_published_value() -> None:
    """7.21 where Clopper and Pearson give 5.60: an estimate says more, and promises less."""
    counts = {"true_positives": 1000, "false_positives": 0, "members": 1000, "nonmembers": 1000}
    found = bounds.zanella_beguelin(**counts, delta=1e-5, confidence=0.95)
    assert found.epsilon == pytest.approx(7.21, abs=0.005)
    assert found.kind is BoundKind.ESTIMATE
    other = bounds.zanella_beguelin(
        true_positives=980, false_positives=120, members=1000, nonmembers=1000, delta=1e-5,
        confidence=0.95,
    )  # fmt: skip
    assert other.epsilon == pytest.approx(3.43446686, abs=1e-6)


def test_one_direction_alone_is_the_literatures_one_sided_bound() -> None:
    level = 0.025
    epsilon = bounds.epsilon_of_rates(
        false_negative_rate=upper_limit(20, 1000, level),
        false_positive_rate=upper_limit(120, 1000, level),
        delta=1e-5,
    )
    assert epsilon == pytest.approx(1.92235927, abs=1e-8)


@pytest.mark.parametrize(("mu", "epsilon"), [(0.5, 1.9930914), (3.0, 16.6754944)])
def test_epsilon_of_mu(mu: float, epsilon: float) -> None:
    found = bounds.gaussian_epsilon(mu=mu, delta=1e-5)
    assert found.epsilon == pytest.approx(epsilon, abs=1e-7)
    assert found.kind is BoundKind.CONDITIONAL
