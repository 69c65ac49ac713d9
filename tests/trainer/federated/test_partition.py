"""Partitions: disjoint and complete, or independent; each determined by its seed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpaudit.trainer.federated.partition import (
    Parts,
    draw_independently,
    partition_by_column,
    partition_by_dirichlet,
    partition_evenly,
    partition_into_shards,
)
from dpaudit.vocabulary.errors import InvalidArgument

FEW = settings(max_examples=40, deadline=None)
LABELS = st.lists(st.integers(0, 4), min_size=24, max_size=120).map(np.array)
COUNTS, SEEDS = st.integers(1, 6), st.integers(0, 2**32)


def require_division(parts: Parts, records: int) -> None:
    """Require that each record is in exactly one part, and each part ascends."""
    assert sorted(np.concatenate(parts).tolist()) == list(range(records))
    for part in parts:
        assert part.dtype == np.int64
        assert (np.diff(part) > 0).all()


def equal(one: Parts, other: Parts) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


@FEW
@given(st.integers(6, 200), COUNTS, SEEDS)
def test_even_parts_divide_the_records(records: int, participants: int, seed: int) -> None:
    parts = partition_evenly(records, participants, seed=seed)
    require_division(parts, records)
    sizes = [len(part) for part in parts]
    assert max(sizes) - min(sizes) <= 1
    assert equal(parts, partition_evenly(records, participants, seed=seed))


@FEW
@given(LABELS, COUNTS, st.integers(1, 4), SEEDS)
def test_shards_divide_the_records_and_hold_few_labels(
    labels: np.ndarray, participants: int, shards: int, seed: int
) -> None:
    parts = partition_into_shards(labels, participants, shards_per_participant=shards, seed=seed)
    require_division(parts, len(labels))
    again = partition_into_shards(labels, participants, shards_per_participant=shards, seed=seed)
    assert equal(parts, again)
    # A shard of consecutive sorted labels holds 1 + (labels that begin inside of it).
    pieces = np.array_split(np.sort(labels), participants * shards)
    most = sum(sorted((len(np.unique(piece)) for piece in pieces), reverse=True)[:shards])
    assert all(len(np.unique(labels[part])) <= most for part in parts)


def test_shards_of_equal_classes_give_each_participant_few_classes() -> None:
    labels = np.repeat(np.arange(10), 60)
    parts = partition_into_shards(labels, 4, shards_per_participant=3, seed=0)
    assert [len(part) for part in parts] == [150] * 4
    assert max(len(np.unique(labels[part])) for part in parts) <= 6  # two labels per shard


@FEW
@given(LABELS, COUNTS, st.sampled_from([0.5, 5.0]), SEEDS)
def test_dirichlet_parts_divide_the_records(
    labels: np.ndarray, participants: int, alpha: float, seed: int
) -> None:
    parts = partition_by_dirichlet(labels, participants, alpha=alpha, seed=seed)
    require_division(parts, len(labels))
    assert all(len(part) for part in parts)
    assert equal(parts, partition_by_dirichlet(labels, participants, alpha=alpha, seed=seed))


def test_a_large_concentration_gives_nearly_equal_shares_of_each_label() -> None:
    labels = np.repeat(np.arange(5), 1000)
    for part in partition_by_dirichlet(labels, 4, alpha=1e6, seed=3):
        assert (abs(np.bincount(labels[part]) - 250) < 10).all()


def test_a_concentration_that_starves_participants_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="each of 20 participants"):
        partition_by_dirichlet(np.zeros(20, dtype=np.int64), 20, alpha=1e-3, seed=0)


@FEW
@given(st.lists(st.sampled_from("abcdef"), min_size=1, max_size=60), COUNTS)
def test_a_value_of_the_column_belongs_to_one_participant(
    values: list[str], participants: int
) -> None:
    column = np.array(values)
    if len(set(values)) < participants:
        with pytest.raises(InvalidArgument, match="the values of the column"):
            partition_by_column(column, participants)
        return
    parts = partition_by_column(column, participants)
    require_division(parts, len(values))
    owners = [set(column[part]) for part in parts]
    assert sum(map(len, owners)) == len(set(values))


@FEW
@given(st.integers(20, 100), COUNTS, SEEDS)
def test_independent_draws_are_distinct_within_a_participant(
    records: int, participants: int, seed: int
) -> None:
    parts = draw_independently(records, participants, records_per_participant=20, seed=seed)
    assert len(parts) == participants
    for part in parts:
        assert len(np.unique(part)) == 20
        assert part.min() >= 0
        assert part.max() < records
    again = draw_independently(records, participants, records_per_participant=20, seed=seed)
    assert equal(parts, again)


def test_independent_draws_may_overlap() -> None:
    one, other = draw_independently(10, 2, records_per_participant=6, seed=0)
    assert set(one) & set(other)  # 12 draws of 10 records


def test_the_seed_changes_each_partition() -> None:
    labels = np.arange(100) % 10

    def all_of(seed: int) -> list[Parts]:
        return [
            partition_evenly(100, 4, seed=seed),
            partition_into_shards(labels, 4, shards_per_participant=3, seed=seed),
            partition_by_dirichlet(labels, 4, alpha=0.5, seed=seed),
            draw_independently(100, 4, records_per_participant=30, seed=seed),
        ]

    for one, other in zip(all_of(1), all_of(2), strict=True):
        assert [part.tolist() for part in one] != [part.tolist() for part in other]


@pytest.mark.parametrize("records", [0, 3])
def test_fewer_records_than_participants_are_refused(records: int) -> None:
    with pytest.raises(InvalidArgument):
        partition_evenly(records, 4, seed=0)
    with pytest.raises(InvalidArgument):
        draw_independently(records, 2, records_per_participant=4, seed=0)
