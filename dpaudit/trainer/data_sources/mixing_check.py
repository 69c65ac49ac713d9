"""Find data sets and ``collate_fn`` that mix the records of a batch, as mixup does.

If a record's part of a batch depends on other records, one of them changes the gradients of
others, and moves their sum by more than the clip norm. Some records are replaced by others, and
the parts of the rest must stay equal, on the same random numbers.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from dpaudit.trainer.data_sources.batch_source import RecordSource
from dpaudit.trainer.data_sources.indexed import IndexedRecords, seeded_generators
from dpaudit.trainer.engine.batch_structure import Batch, record_shapes, slice_records
from dpaudit.trainer.engine.independence import random_index
from dpaudit.trainer.engine.transforms import results_moved
from dpaudit.vocabulary.errors import InvalidArgument

FIRST_CHECKS, CHECK_EVERY = 8, 16
"""The first 8 batches are checked, then one in 16 at random."""

CHECKED_RECORDS = 16
"""Records of a batch that are read again."""

T = TypeVar("T")

SEEDS = 4
"""Seeds of random numbers of one check: a ``collate_fn`` may mix at random."""


class MixingCheck:
    """Reads some records of a batch again, together with others in the place of some."""

    def __init__(self) -> None:
        self._noted = 0

    def require_apart(self, source: RecordSource, which: NDArray[np.int64]) -> None:
        """Refuse a data set or ``collate_fn`` that mixes records.

        Args:
            source: Takes the records.
            which: Positions of the records of a batch, shape ``(batch,)``.

        Raises:
            InvalidArgument: If a record's part of the batch changes with other records.
        """
        if not isinstance(source, IndexedRecords) or len(np.unique(which)) < 2:
            return
        together = source.reads_together
        if source.collate_fn is None and not together:
            return
        self._noted += 1
        if self._noted > FIRST_CHECKS and random_index(CHECK_EVERY) != 0:
            return
        places = np.linspace(0, len(which) - 1, min(CHECKED_RECORDS, len(which))).astype(int)
        trial = _Trial(source, which[places])
        if together:
            trial.require_read_apart()
        if source.collate_fn is not None:
            trial.require_collated_apart()


class _Trial:
    """Some records, read and collated with others in the place of some."""

    def __init__(self, source: IndexedRecords, which: NDArray[np.int64]) -> None:
        self._source, self._which = source, which
        count = len(which)
        numbers = np.arange(count)
        # The numbers that later records draw do not move those of earlier ones.
        self._late = numbers >= (count + 1) // 2
        self._other = np.where(self._late, numbers - (count + 1) // 2, numbers + count // 2)
        self._seeds = [random_index(2**32) for _ in range(SEEDS)]

    def require_read_apart(self) -> None:
        """Compare records that are read together with others."""
        self._compare(self._which, self._which[self._other], self._read, "data")

    def require_collated_apart(self) -> None:
        """Compare records that are collated together with others."""
        with seeded_generators(self._seeds[0]):
            records = self._source.read(self._which.tolist())
        others = [records[number] for number in self._other]
        self._compare(records, others, self._collated, "collate_fn")

    def _compare(
        self, given: Any, others: Any, make: Callable[[Any, int], Batch], name: str
    ) -> None:
        """Replace late records; and early ones, if no random numbers are drawn."""
        first, everyone = make(given, self._seeds[0]), np.ones(len(self._late), dtype=bool)
        if _moved(first, make(given, self._seeds[0]), everyone):
            return  # it draws from a generator that is not known
        late = _chosen(self._late, others, given)
        for seed in self._seeds:
            self._require_unmoved(make(given, seed), make(late, seed), ~self._late, name)
        if not _moved(first, make(given, self._seeds[1]), everyone):
            early = _chosen(~self._late, others, given)
            self._require_unmoved(first, make(early, self._seeds[0]), self._late, name)
            # Nor may the number of records matter, which another record changes.
            last = len(given) - 1
            rest = slice_records(first, 0, last)
            self._require_unmoved(rest, make(given[:last], self._seeds[0]), everyone[1:], name)

    def _read(self, which: NDArray[np.int64], seed: int) -> Batch:
        """Return the batch of some records that are read together."""
        return self._source.take(which, seed)

    def _collated(self, records: list[Any], seed: int) -> Batch:
        """Return the batch of copied records, by a fresh copy of ``collate_fn`` if possible."""
        source = replace(self._source, collate_fn=_copied(self._source.collate_fn))
        with seeded_generators(seed):
            return source.collated(
                [_copied(one) for one in records], self._which[: len(records)].tolist()
            )

    @staticmethod
    def _require_unmoved(
        before: Batch, after: Batch, watched: NDArray[np.bool_], name: str
    ) -> None:
        """Refuse parts of watched records that differ."""
        if _moved(before, after, watched):
            raise InvalidArgument(
                name, "one that changes a record's part of a batch with other records",
                "without operations over the batch (such as mixup, cutmix, or a mean or deviation "
                "over records; use constants, or statistics of public data)",
            )  # fmt: skip


def _copied(value: T) -> T:
    """Return a deep copy; the value itself if it cannot be copied."""
    try:
        return copy.deepcopy(value)
    except Exception:  # any class may be copied as it likes
        return value


def _chosen(replaced: NDArray[np.bool_], others: Any, given: Any) -> Any:
    """Return the others where records are replaced."""
    if isinstance(given, np.ndarray):
        return np.where(replaced, others, given)
    return [b if new else a for new, a, b in zip(replaced, given, others, strict=True)]


def _moved(one: Batch, other: Batch, watched: NDArray[np.bool_]) -> bool:
    """Return whether parts of watched records differ in batches of one shape.

    Other padding makes other shapes; the losses are then compared (``padding_check.py``).
    """
    if record_shapes(one) != record_shapes(other):
        return False
    return results_moved(one, other, torch.from_numpy(watched))
