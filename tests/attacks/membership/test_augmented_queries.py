"""Several queries per record: their scores are averaged, and copies stay near the record."""

from __future__ import annotations

import numpy as np
import pytest

from dpaudit.attacks.membership import lira_online, rmia_offline
from dpaudit.attacks.membership.augmented_queries import mean_over_queries, query_copies
from dpaudit.attacks.membership.reference_models import ReferenceConfidences
from dpaudit.vocabulary.errors import InvalidArgument


@pytest.mark.parametrize("attack", [lira_online, rmia_offline])
def test_the_score_is_the_mean_of_those_of_the_queries(attack) -> None:  # type: ignore[no-untyped-def]
    generator = np.random.default_rng(0)
    member = generator.random((6, 30)) < 0.5
    target = generator.standard_normal((3, 30))
    references = [ReferenceConfidences(generator.standard_normal((6, 30)), member) for _ in "abc"]
    found = mean_over_queries(attack, target, references).values
    alone = [attack(one, some).values for one, some in zip(target, references, strict=True)]
    for record in range(30):
        expected = sum(scores[record] for scores in alone) / 3
        assert found[record] == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_unpaired_queries_are_refused() -> None:
    references = [ReferenceConfidences(np.zeros((2, 3)), np.eye(2, 3, dtype=bool))]
    for confidences in (np.zeros((2, 3)), np.zeros(3), np.zeros((0, 3))):
        with pytest.raises(InvalidArgument, match="confidences"):
            mean_over_queries(lira_online, confidences, references)


def test_copies_of_images_are_shifts_of_all_channels() -> None:
    images = np.random.default_rng(0).random((4, 3, 6, 5)).astype(np.float32)
    copies = list(query_copies(images, 9, seed=1))
    assert np.array_equal(copies[0], images)
    inner = images[:, :, 2:4, 2:3]
    places = set()
    for copy in copies[1:]:
        found = [
            (down, right)
            for down in (-1, 0, 1)
            for right in (-1, 0, 1)
            if np.array_equal(copy[:, :, 2 + down : 4 + down, 2 + right : 3 + right], inner)
        ]
        places.add(found[0])
        assert copy.dtype == np.float32
    assert len(places) == 8
    assert (0, 0) not in places


def test_copies_of_tables_are_near_and_those_of_bits_are_bits() -> None:
    generator = np.random.default_rng(0)
    table = generator.standard_normal((500, 20)).astype(np.float32)
    moved = [copy - table for copy in query_copies(table, 3, seed=0)]
    assert not moved[0].any()
    assert [round(float(change.std()), 2) for change in moved[1:]] == [0.05, 0.05]
    assert not np.array_equal(moved[1], moved[2])
    bits = (generator.random((500, 20)) < 0.3).astype(np.float32)
    copies = list(query_copies(bits, 3, seed=0))
    assert all(set(np.unique(copy)) == {0, 1} for copy in copies)
    assert 0 < np.mean(copies[1] != bits) < 0.03


def test_the_seed_alone_determines_the_copies() -> None:
    table = np.random.default_rng(0).random((9, 4)).astype(np.float32)
    first, again, other = (list(query_copies(table, 2, seed=seed)) for seed in (3, 3, 4))
    assert np.array_equal(first[1], again[1])
    assert not np.array_equal(first[1], other[1])


def test_impossible_numbers_of_queries_are_refused() -> None:
    images = np.zeros((2, 4, 4), dtype=np.float32)
    assert len(list(query_copies(images, 25, seed=0))) == 25
    for bad in (0, 26):
        with pytest.raises(InvalidArgument, match="queries"):
            list(query_copies(images, bad, seed=0))
