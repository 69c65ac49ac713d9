"""Where batches come from: tensors, or anything with records by index; whole users, if asked."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sized
from dataclasses import dataclass, is_dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import TensorDataset, default_collate

from dpaudit.trainer.bags import Bags, Users
from dpaudit.trainer.engine.batches import Batch, count, folded, part, taken, tensors
from dpaudit.trainer.randomness import Keystream
from dpaudit.vocabulary.errors import InvalidArgument

Rows = Callable[[NDArray[np.int64]], Batch]
"""From positions to the records there."""


@dataclass(frozen=True)
class Source:
    """Where batches come from.

    Attributes:
        records: How many records, or users, there are to draw from.
        rows: Takes the records at some positions.
        users: Whose they are, if users are drawn.
    """

    records: int
    rows: Rows
    users: Users | None = None

    def __call__(self, drawn: NDArray[np.int64], stream: Keystream, step: int) -> Batch:
        """Return the batch of what was drawn."""
        if self.users is None:
            return self.rows(drawn)
        chosen, weights = self.users.rows_of(drawn, stream, step)
        flat = self.rows(chosen.flatten())
        return Bags(folded(flat, *chosen.shape), weights)


def source_of(dataset: Any, users: Users | None) -> Source:
    """Return where batches come from: how many there are, and how to take some of them."""
    if isinstance(dataset, TensorDataset):
        dataset = dataset.tensors
    records, rows = _column_rows(dataset) if _has_columns(dataset) else _indexed_rows(dataset)
    if users is None:
        return Source(records, rows)
    if users.records != records:
        raise InvalidArgument("owners", users.records, f"one for each of {records} records")
    return Source(len(users), rows, users)


def _has_columns(dataset: Any) -> bool:
    """Return whether a data set has all records at hand: in tensors, arrays or a dict of lists."""
    match dataset:
        case Mapping() | Tensor() | np.ndarray():
            return True
        case list() if all(isinstance(record, tuple | Mapping) for record in dataset):
            return False  # a list of records
        case tuple() | list():
            return any(isinstance(part, list) or _has_columns(part) for part in dataset)
        case _ if is_dataclass(dataset) and not isinstance(dataset, type):
            return bool(tensors(dataset))
        case _:
            return False


def _column_rows(dataset: Batch) -> tuple[int, Rows]:
    return count(dataset), lambda which: taken(dataset, torch.from_numpy(which))


def _indexed_rows(dataset: Any) -> tuple[int, Rows]:
    by_index = isinstance(dataset, Sized) and hasattr(dataset, "__getitem__")
    if not by_index or len(dataset) == 0:
        raise InvalidArgument(
            "dataset", type(dataset).__name__, "tensors, a dict of columns, or records by index "
            "(of a DataLoader: its dataset)",
        )  # fmt: skip
    nothing = part(_collated([dataset[0]]), 0, 0)

    def take(which: NDArray[np.int64]) -> Batch:
        return _collated([dataset[int(i)] for i in which]) if len(which) else nothing

    return len(dataset), take


def _collated(records: list[Any]) -> Batch:
    try:
        return default_collate(records)
    except (RuntimeError, TypeError, KeyError, ValueError) as error:
        raise InvalidArgument(
            "dataset", f"{type(records[0]).__name__} records: {error}", "of records that torch's "
            "default_collate makes a batch of (pad them to one length, or give a dict of columns)",
        ) from error  # fmt: skip
