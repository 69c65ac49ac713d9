"""Records by index: data sets of torch and Hugging Face, and lists of records.

The random numbers of a record, such as those of an augmentation, depend on the seed of its
batch alone. So they are the same in a worker process, in the background and after a resume.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dpaudit.trainer.data_sources.collate import CollateFunction, collate_records
from dpaudit.trainer.engine.batch_structure import Batch, count_records, slice_records
from dpaudit.vocabulary.errors import DpauditError, InvalidArgument, UserCodeError

RETURN_REMEDY = "it must return a record for every index from 0 to len(data) - 1"


@dataclass(frozen=True)
class IndexedRecords:
    """Records by index, collated to batches.

    Attributes:
        data: A data set with a length, and records by index.
        records: Number of records.
        floating: Type of the model's parameters.
        collate_fn: Makes a batch of records; None: ``collate_records``.
    """

    data: Any
    records: int
    floating: torch.dtype
    collate_fn: CollateFunction | None = None
    in_memory: bool = field(default=False, init=False)

    def take(self, which: NDArray[np.int64], seed: int) -> Batch:
        """Return the batch of some records.

        Args:
            which: Positions of the records, shape ``(batch,)``; may be empty.
            seed: Seed of torch, NumPy and Python while records are read.

        Returns:
            The records. An empty batch has the structure of one record's batch, without rows.

        Raises:
            UserCodeError: If the data set or ``collate_fn`` raises an exception.
            InvalidArgument: If records do not make a batch, or not one row per record.
        """
        if not len(which):
            return self._nothing
        with seeded_generators(seed):
            return self.collated(self.read([int(n) for n in which]), which.tolist())

    @cached_property
    def _nothing(self) -> Batch:
        """A batch without records: the first record's batch without its row."""
        with seeded_generators(0):
            return slice_records(self.collated(self.read([0]), [0]), 0, 0)

    @property
    def reads_together(self) -> bool:
        """Whether the data set has a method that reads several records."""
        return callable(getattr(self.data, "__getitems__", None))

    def read(self, which: list[int]) -> list[Any]:
        """Return records, read together where the data set has a method for it.

        Args:
            which: Positions of the records.

        Returns:
            One record per position.

        Raises:
            UserCodeError: If the data set raises an exception.
        """
        several = getattr(self.data, "__getitems__", None)
        if callable(several):
            try:
                found = several(which)
                if isinstance(found, Sequence) and len(found) == len(which):
                    return list(found)
            except DpauditError:
                raise
            except Exception:  # one by one below, so that the message names the record
                pass
        return [self._record(number) for number in which]

    def _record(self, number: int) -> Any:
        """Return one record."""
        try:
            return self.data[number]
        except DpauditError:
            raise
        except Exception as error:
            raise UserCodeError(f"data[{number}]", _text(error), RETURN_REMEDY) from error

    def collated(self, records: list[Any], which: list[int]) -> Batch:
        """Return records as a batch with one row each.

        Args:
            records: The records.
            which: Their positions, for messages.

        Returns:
            The batch.

        Raises:
            UserCodeError: If ``collate_fn`` raises an exception.
            InvalidArgument: If records do not make a batch, or not one row per record.
        """
        if self.collate_fn is None:
            return collate_records(records, which, floating=self.floating)
        name = f"collate_fn, given {len(records)} records ({_listed(which)}),"
        try:
            batch = self.collate_fn(records)
        except DpauditError:
            raise
        except Exception as error:
            allowed = "it must make a batch of any number of records, at least 1"
            raise UserCodeError(name, _text(error), allowed) from error
        rows = count_records(batch)
        if rows != len(records):
            raise InvalidArgument(
                "collate_fn", f"a function that returned {rows} rows for {len(records)} records",
                "a function that returns one row per record, in their order",
            )  # fmt: skip
        return batch


@contextmanager
def seeded_generators(seed: int) -> Iterator[None]:
    """Seed the global generators of torch (CPU), NumPy and Python inside a ``with`` block.

    Args:
        seed: The seed.

    Yields:
        Nothing; the generators are as before after the block.
    """
    state, numbers = random.getstate(), np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng(devices=[]):
        try:
            torch.default_generator.manual_seed(seed)
            random.seed(seed)
            np.random.seed(seed % 2**32)  # noqa: NPY002
            yield
        finally:
            random.setstate(state)
            np.random.set_state(numbers)  # noqa: NPY002


def _text(error: Exception) -> str:
    """Return type and text of an exception."""
    return f"{type(error).__name__}: {error}"


def _listed(which: list[int]) -> str:
    """Return positions as text, at most three of them."""
    return ", ".join(map(str, which[:3])) + (", ..." if len(which) > 3 else "")
