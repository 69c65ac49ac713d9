"""Sentences with secrets, and exposure by rank."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpaudit.attacks.canaries import exposure, make_secrets
from dpaudit.vocabulary.errors import InvalidArgument


@given(st.integers(1, 30), st.integers(0, 30), st.integers(4, 15), st.integers(0, 2**32))
def test_secrets_are_different_and_fill_the_template(
    count: int, references: int, digits: int, seed: int
) -> None:
    made = make_secrets(
        count, np.random.default_rng(seed), references=references, digits=digits,
        template="{user}: {secret}",
    )  # fmt: skip
    sentences = made.sentences + made.references
    secrets = [sentence.split(": ")[1] for sentence in sentences]
    assert (len(made.sentences), len(made.references)) == (count, references)
    assert len(set(secrets)) == len(secrets)
    assert all(len(secret) == digits and secret.isdigit() for secret in secrets)


def test_the_included_ones_carry_no_references() -> None:
    made = make_secrets(4, np.random.default_rng(0))
    kept = made[np.array([True, False, True, False])]
    assert kept.sentences == (made.sentences[0], made.sentences[2])
    assert kept.references == ()


@pytest.mark.parametrize(
    ("changes", "named"),
    [({"template": "no place"}, "secret"), ({"digits": 3}, "digits"), ({"digits": 16}, "digits")],
)
def test_what_leaves_no_room_for_secrets_is_refused(changes: dict[str, object], named: str) -> None:
    with pytest.raises(InvalidArgument, match=named):
        make_secrets(100, np.random.default_rng(0), **changes)  # type: ignore[arg-type]


def exposure_by_counting(score: float, references: np.ndarray) -> float:
    rank = (1 + sum(bool(other >= score) for other in references)) / (len(references) + 1)
    return -math.log2(rank)


@given(st.lists(st.integers(-5, 5), min_size=1, max_size=30), st.integers(-6, 6))
def test_exposure_is_the_rank_by_counting(references: list[int], score: int) -> None:
    others = np.array(references, dtype=float)
    found = exposure(np.array([float(score)]), others, 10**9)
    assert found[0] == pytest.approx(exposure_by_counting(float(score), others))


def test_scores_that_know_nothing_are_exposed_by_chance() -> None:
    rng = np.random.default_rng(1)
    found = exposure(rng.standard_normal(20_000), rng.standard_normal(20_000), 10**9)
    assert found.mean() == pytest.approx(1 / math.log(2), abs=0.06)


@pytest.mark.parametrize("bad", [[], [math.nan], [math.inf]])
def test_scores_that_are_no_numbers_are_refused(bad: list[float]) -> None:
    with pytest.raises(InvalidArgument, match="finite scores"):
        exposure(np.array(bad), np.zeros(3), 100)
    with pytest.raises(InvalidArgument, match="finite scores"):
        exposure(np.zeros(3), np.array(bad), 100)
