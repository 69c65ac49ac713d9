"""The table of false claims: few repetitions, and the figures that are committed."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import validity
from places import ROOT

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
    for row in [*found["split"], *found["coins"]]:
        assert row["repetitions"] == 2000
        assert row["false"] <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 2000)


def test_there_are_committed_figures() -> None:
    assert RESULTS
