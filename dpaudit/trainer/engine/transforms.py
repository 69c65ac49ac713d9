"""Transforms of batches between sampling and the step: tested to change each record by itself.

A transform that mixes records lets one record move the gradients of others, beyond the clip
norm. Mixup and standardization over the batch do so. As for the model, the transform is run
instead of read: some records are replaced, and the results of the others must stay equal, on
the same random numbers.
"""

from __future__ import annotations

import copy
import os
import random
from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from dpaudit.trainer.engine.batch_structure import (
    Batch,
    batch_columns,
    batch_tensors,
    concatenate_batches,
    count_records,
    map_tensors,
    record_shapes,
    slice_records,
    take_records,
)
from dpaudit.trainer.engine.generators import GeneratorStates
from dpaudit.trainer.engine.independence import others_moved, perturbed_records, random_index
from dpaudit.trainer.engine.model_snapshot import take_snapshot
from dpaudit.trainer.engine.model_state import seed_torch, values_equal
from dpaudit.vocabulary.errors import DpauditError, InvalidArgument

Transform = Callable[[Batch], Batch]
"""Function of a batch that returns a batch of as many records, in the same order."""

TESTED_RECORDS = 16
"""Records of a batch on which a transform is tested."""

FIRST_ROUNDS = 4
"""Rounds of the first test, each on other random numbers: a transform may mix at random."""

FIRST_TESTS, TEST_EVERY = 8, 16
"""After its first batch, a transform is tested on the next 8 batches, then on 1 of 16 at random."""


class TransformTest:
    """Tests transforms in full on their first batch, and again in part later."""

    def __init__(self) -> None:
        self._known: Transform | None = None
        self._shapes: set[tuple[object, ...]] = set()
        self._left = 0

    def require_independent(self, transform: Transform, batch: Batch) -> None:
        """Refuse a transform in which one record changes the result of another.

        Random generators, and the batch, are left as they were.

        Args:
            transform: The transform.
            batch: The batch that it is about to change.

        Raises:
            InvalidArgument: If records are mixed, added, left out or reordered, if the transform
                keeps a memory of records, or raises an exception.
        """
        if not count_records(batch):
            return
        if transform is not self._known:
            self._known, self._shapes = transform, set()
        new = record_shapes(batch) not in self._shapes
        if new:
            self._shapes.add(record_shapes(batch))
            self._left = FIRST_TESTS
        elif self._left:
            self._left -= 1
        elif random_index(TEST_EVERY):
            return
        trial = _Trial(transform, _sample(batch))
        try:
            for _ in range(FIRST_ROUNDS if new else 1):
                trial.require_apart(every=new)
            if new:
                trial.require_no_memory()
                trial.require_no_count()
        finally:
            trial.restore()


def _sample(batch: Batch) -> Batch:
    """Return some records of a batch; one record alone is joined by another."""
    records = count_records(batch)
    if records == 1:
        return concatenate_batches(batch, perturbed_records(batch))
    places = torch.linspace(0, records - 1, min(TESTED_RECORDS, records)).long()
    return take_records(batch, places)


class _Trial:
    """Runs of one transform on some records, each from the same state."""

    def __init__(self, transform: Transform, batch: Batch) -> None:
        self._transform, self._batch = transform, batch
        self._records = count_records(batch)
        held = take_snapshot(nn.Identity(), transform).generators
        self._numbers = self._start = GeneratorStates(python=True, held=held)

    def restore(self) -> None:
        """Set the generators back."""
        self._start.restore()

    def require_apart(self, *, every: bool) -> None:
        """Replace some records by others, and compare the results of the rest."""
        self._draw_seed()
        before = self._run([self._batch])
        self._require_alike(before, self._run([self._batch]), torch.ones(self._records).bool())
        numbers = torch.arange(self._records)
        bits = range(max(1, (self._records - 1).bit_length()))
        masks = [(numbers >> bit) & 1 == side for bit in bits for side in (0, 1)]
        if not every:
            masks = [numbers == random_index(self._records)]
        for replaced in masks:
            changed = take_records(self._batch, torch.where(replaced, numbers.roll(1), numbers))
            if results_moved(before, self._run([changed]), ~replaced):
                raise self._refused(
                    "one that changes a record's result with other records",
                    "without operations over the batch (such as mixup, cutmix, or a mean or "
                    "deviation over records; use constants, or statistics of public data)",
                )

    def require_no_memory(self) -> None:
        """Compare results after different earlier batches."""
        other = take_records(self._batch, torch.zeros(self._records, dtype=torch.long))
        after_same = self._run([self._batch, self._batch])
        after_other = self._run([other, self._batch])
        if results_moved(after_same, after_other, torch.ones(self._records).bool()):
            raise self._refused(
                "one whose result depends on earlier batches", "without memory of records, such "
                "as running statistics",
            )  # fmt: skip

    def require_no_count(self) -> None:
        """Compare results with those of one record less, if no random numbers are drawn."""
        before = self._run([self._batch])
        self._draw_seed()
        everyone = torch.ones(self._records).bool()
        if self._records < 2 or results_moved(before, self._run([self._batch]), everyone):
            return
        fewer = self._run([slice_records(self._batch, 0, self._records - 1)])
        if results_moved(slice_records(before, 0, self._records - 1), fewer, everyone[1:]):
            raise self._refused(
                "one that changes a record's result with the number of records", "without the "
                "number of records, which another record changes: use the expected batch size",
            )  # fmt: skip

    def _draw_seed(self) -> None:
        """Draw other random numbers for the runs that follow."""
        seed = int.from_bytes(os.urandom(4), "big")
        seed_torch(seed)
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002 - what a transform draws from is not ours to choose
        self._numbers = self._numbers.now()

    def _run(self, batches: list[Batch]) -> Batch:
        """Return the result for the last batch, by a fresh copy of the transform if possible."""
        self._numbers.restore()
        own = _copied(self._transform)
        for batch in batches:
            try:
                found = own(map_tensors(batch, torch.clone, copy.deepcopy))
            except DpauditError:
                raise
            except Exception as error:  # a transform is user code
                raise self._refused(
                    f"{type(error).__name__}: {error}", "one that runs on a batch of any records"
                ) from error
        records = count_records(batches[-1])
        if count_records(found) != records:
            raise self._refused(
                f"one that makes {count_records(found)} records of {records}",
                "one result per record, in the order of the batch",
            )
        return found

    def _require_alike(self, one: Batch, other: Batch, watched: torch.Tensor) -> None:
        """Refuse a transform that gives other results for the same batch."""
        if results_moved(one, other, watched):
            raise self._refused(
                "one that gives another result when it runs again",
                "one that draws from the generators of torch, NumPy or Python, or from one that "
                "it holds, so that a test can repeat its numbers",
            )

    @staticmethod
    def _refused(given: str, allowed: str) -> InvalidArgument:
        """Return the error for a transform."""
        return InvalidArgument("transform", given, allowed)


def results_moved(one: Batch, other: Batch, watched: torch.Tensor) -> bool:
    """Return whether the results of watched records differ by more than rounding.

    Args:
        one: A batch.
        other: A batch of as many records.
        watched: Mask of the records that are compared, shape ``(records,)``.

    Returns:
        Whether any of them differs, or the batches have different structures.
    """
    tensors = list(zip(batch_tensors(one), batch_tensors(other), strict=False))
    columns = list(zip(batch_columns(one), batch_columns(other), strict=False))
    places = watched.nonzero().squeeze(1).tolist()
    return (
        len(batch_tensors(one)) != len(batch_tensors(other))
        or any(others_moved(_numbers(a), _numbers(b), watched) for a, b in tensors)
        or any(not values_equal(a[i], b[i]) for a, b in columns for i in places)
    )


def _numbers(tensor: torch.Tensor) -> torch.Tensor:
    """Return real numbers of any tensor, in float64."""
    return torch.view_as_real(tensor).double() if tensor.is_complex() else tensor.double()


def _copied(transform: Transform) -> Transform:
    """Return a copy with a state of its own; the transform itself if it cannot be copied."""
    try:
        return copy.deepcopy(transform)
    except Exception:  # any class may be copied as it likes
        return transform
