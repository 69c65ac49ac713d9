"""Where batches come from: tensors, or anything with records by index; whole users, if asked."""

from __future__ import annotations

from collections.abc import Callable, Sized
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import TensorDataset, default_collate

from dpaudit.trainer.bags import Bags, Users
from dpaudit.trainer.engine.batches import Batch, count, mapped, tensors
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
        apart = mapped(flat, lambda tensor: tensor.reshape(*chosen.shape, *tensor.shape[1:]))
        return Bags(apart, weights)


def source_of(dataset: Any, users: Users | None) -> Source:
    """Return where batches come from: how many there are, and how to take some of them."""
    if isinstance(dataset, TensorDataset):
        dataset = dataset.tensors
    records, rows = _tensor_rows(dataset) if tensors(dataset) else _indexed_rows(dataset)
    if users is None:
        return Source(records, rows)
    if users.records != records:
        raise InvalidArgument("owners", users.records, f"one for each of {records} records")
    return Source(len(users), rows, users)


def _tensor_rows(dataset: Batch) -> tuple[int, Rows]:
    return count(dataset), lambda which: mapped(dataset, lambda t: t[torch.from_numpy(which)])


def _indexed_rows(dataset: Any) -> tuple[int, Rows]:
    if not isinstance(dataset, Sized) or len(dataset) == 0:
        raise InvalidArgument("dataset", type(dataset).__name__, "tensors, or records by index")
    one = default_collate([dataset[0]])  # type: ignore[index]
    nothing = mapped(one, lambda tensor: tensor[:0])

    def take(which: NDArray[np.int64]) -> Batch:
        return default_collate([dataset[int(i)] for i in which]) if len(which) else nothing  # type: ignore[index]

    return len(dataset), take
