"""Scores that are broken, unpaired or of one class are refused, never read as private."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from dpaudit.attacks.membership import MembershipScores, RecordScores, loss_scores, pool_scores
from dpaudit.vocabulary.errors import InvalidArgument

BITS = np.array([1, 0, 1, 0])


def scored(*values: float) -> RecordScores:
    return RecordScores(np.array(values))


def test_scores_are_split_by_what_is_true_of_each_record() -> None:
    parts = scored(5, 6, 7, 8).split(BITS, np.array(["a", "b", "c", "d"]))
    assert parts.members.tolist() == [5, 7]
    assert parts.nonmembers.tolist() == [6, 8]


@pytest.mark.parametrize("bad", [[], [math.nan], [math.inf, 0.0]])
def test_empty_or_infinite_scores_are_refused(bad: list[float]) -> None:
    with pytest.raises(InvalidArgument, match="nonmembers"):
        MembershipScores(np.ones(3), np.array(bad))
    with pytest.raises(InvalidArgument, match="scores"):
        RecordScores(np.array(bad))


def test_the_place_of_a_nan_is_named() -> None:
    with pytest.raises(InvalidArgument, match="nan at index 2"):
        scored(1, 2, math.nan)


@pytest.mark.parametrize(
    "member",
    [
        np.array([1, 0, 1]),
        np.array([1, 0, 1, 2]),
        np.array([1, 0, 1, -1]),
        np.array([1, 0, 1, 0.5]),
        np.array([1, 0, 1, math.nan]),
        np.array(["1", "0", "1", "0"]),
        np.array([[1, 0], [1, 0]]),
    ],
)
def test_memberships_that_are_unpaired_or_neither_0_nor_1_are_refused(member: Any) -> None:
    with pytest.raises(InvalidArgument, match="member"):
        scored(1, 2, 3, 4).split(member)


@pytest.mark.parametrize("member", [np.ones(4), np.zeros(4)])
def test_a_class_without_records_is_refused(member: Any) -> None:
    with pytest.raises(InvalidArgument, match="members"):
        scored(1, 2, 3, 4).split(member)


def test_a_record_that_comes_twice_is_refused_by_name() -> None:
    with pytest.raises(InvalidArgument, match="it occurs twice, got 'b'"):
        scored(1, 2, 3, 4).split(BITS, np.array(["a", "b", "b", "c"]))


def test_names_that_pair_with_no_record_are_refused() -> None:
    with pytest.raises(InvalidArgument, match="id"):
        scored(1, 2, 3, 4).split(BITS, np.arange(3))


def test_a_smaller_loss_scores_higher() -> None:
    assert np.argmax(loss_scores(np.array([0.1, 2.0])).values) == 0


def test_pooled_scores_keep_every_record() -> None:
    parts = [MembershipScores(np.array([1.0]), np.array([0.0])) for _ in range(3)]
    assert (len(pool_scores(parts).members), len(pool_scores(parts).nonmembers)) == (3, 3)
