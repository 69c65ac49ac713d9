"""The table of false claims: few repetitions, and the figures that are committed."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import sequential_validity
import validity
from places import ROOT
from scipy.stats import binom

RESULTS = sorted((ROOT / "benchmarks" / "results").glob("validity-*.json"))


@pytest.mark.parametrize("scores", validity.SCORES, ids=lambda scores: scores.name)
@pytest.mark.parametrize("claim", [2.0])
def test_false_claims_are_rare_on_other_sizes_than_those_of_the_table(
    scores: validity.Scores, claim: float | None
) -> None:
    row = validity.split(scores, (700, 150), claim, 100)
    # Three standard errors of 100 repetitions above the nominal 5%.
    assert row["false"] <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 100)
    assert row["mean"] <= scores.epsilon + 0.1
    assert row["greatest"] > 0.5


def test_scores_of_a_mechanism_have_its_epsilon_and_no_more() -> None:
    """The likelihood ratio of each score value between member and non-member is at most e."""
    rng = np.random.default_rng(0)
    for scores in validity.SCORES:
        values = [scores.draw(rng, np.full(200_000, bit)) for bit in (False, True)]
        every = np.unique(np.concatenate(values))
        every = every[np.linspace(0, len(every) - 1, min(len(every), 40)).astype(int)]
        low, high = (np.array([(v <= x).mean() for x in every]) for v in values)
        # 200,000 draws: probabilities are known to 0.005 at four standard errors.
        assert (high <= math.exp(scores.epsilon) * low + 0.02).all()
        assert (low <= math.exp(scores.epsilon) * high + 0.02).all()


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_the_committed_figures_are_within_the_nominal_level(path: object) -> None:
    found = json.loads(path.read_text())
    assert found["facts"]["repetitions"] == 2000
    sizes = {row["split"] for row in found["split"]}
    assert {"1000 / 500", "5000 / 1000", "10000 / 200"} <= sizes
    ordered = [*found.get("adaptive", []), *found.get("pairs", []), *found.get("models", [])]
    for row in [*found["split"], *found["coins"], *ordered]:
        assert row["repetitions"] == 2000
        assert row["false"] <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 2000)


def test_there_are_committed_figures() -> None:
    newest = json.loads(RESULTS[-1].read_text())
    assert {row["mechanism"] for row in newest["adaptive"]} == {
        mechanism.name for mechanism in sequential_validity.ADAPTIVE
    }
    assert {row["scores"] for row in newest["pairs"]} == set(sequential_validity.PAIR_SCORES)
    assert {row["outputs"] for row in newest["models"]} == set(sequential_validity.MODEL_OUTPUTS)
    assert {row["delta"] for row in newest["adaptive"]} == set(sequential_validity.DELTAS)


REPETITIONS = 150
GREATEST_FALSE = binom.isf(1e-7, REPETITIONS, 0.05) / REPETITIONS
"""Share of false claims that a valid bound exceeds once in ten million times."""


@pytest.mark.parametrize("mechanism", sequential_validity.ADAPTIVE, ids=lambda one: one.name)
@pytest.mark.parametrize("delta", [1e-4, 3e-2])
def test_adaptive_guesses_are_rarely_false_at_other_deltas(
    mechanism: sequential_validity.Mechanism, delta: float
) -> None:
    row = sequential_validity.adaptive_row(mechanism, 2.0, delta, REPETITIONS)
    assert row["false"] <= GREATEST_FALSE


def test_guesses_of_leaking_coins_would_refute_a_bound_without_delta() -> None:
    """The mechanisms use their delta: a test that left it out would be false too often."""
    mechanism = sequential_validity.ADAPTIVE[1]  # each coin leaks, few guesses
    rng = np.random.default_rng(0)
    found = [mechanism.guess(rng, 1.0, 0.1) for _ in range(200)]
    false = [sequential_validity._p_value(one, 1.0, 0.0) <= 0.05 for one in found]
    assert np.mean(false) > 0.5
    assert not any(sequential_validity._p_value(one, 1.0, 0.1) <= 0.05 for one in found)


@pytest.mark.parametrize("name", sequential_validity.PAIR_SCORES)
def test_scores_of_pairs_have_their_epsilon_and_delta(name: str) -> None:
    """No threshold separates the classes by more than epsilon and delta; one comes near."""
    rng, epsilon, delta = np.random.default_rng(1), 1.0, 1e-2
    drawn = [sequential_validity.PAIR_SCORES[name](rng, epsilon, delta) for _ in range(2000)]
    members, nonmembers = (np.concatenate(one) for one in zip(*drawn, strict=True))
    thresholds = np.append(np.linspace(-3, 4, 60), 0.5)
    inside, outside = ((one[:, None] > thresholds).mean(axis=0) for one in (members, nonmembers))
    excess = inside - math.exp(epsilon) * outside
    # 240,000 scores each: the rates are known to 0.001, so the excess to 0.015 at four errors.
    assert (excess <= delta + 0.015).all()
    assert excess.max() > delta - 0.015
