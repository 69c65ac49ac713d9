"""Source of batches: the records, or the records of users, at drawn positions."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeGuard

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import TensorDataset

from dpaudit.trainer.batches.grouped_records import RecordGroups, Users
from dpaudit.trainer.data_sources.collate import CollateFunction
from dpaudit.trainer.data_sources.columns import is_frame, make_columns
from dpaudit.trainer.data_sources.data_loaders import require_no_stream
from dpaudit.trainer.data_sources.indexed import IndexedRecords
from dpaudit.trainer.engine.batch_structure import Batch, batch_tensors, fold_rows
from dpaudit.trainer.noise.randomness import Keystream, Purpose
from dpaudit.vocabulary.errors import InvalidArgument

ALLOWED_DATA = (
    "tensors, NumPy arrays or pandas objects with records first, alone or in a tuple or dict; or "
    "records by index with a length: a list, a map-style Dataset of torch or of Hugging Face, or "
    "a DataLoader of one"
)


class RecordSource(Protocol):
    """A number of records, and the batch of any of them."""

    @property
    def records(self) -> int:
        """The number of records."""

    @property
    def in_memory(self) -> bool:
        """Whether no code of the user runs and no random number is drawn to take records."""

    def take(self, which: NDArray[np.int64], seed: int) -> Batch:
        """Return the batch of some records.

        Args:
            which: Positions of the records, shape ``(batch,)``; may be empty.
            seed: Seed of the random numbers that records may draw.

        Returns:
            The records.
        """


@dataclass(frozen=True)
class BatchRequest:
    """What is loaded for one step.

    Attributes:
        drawn: Number of drawn records, or users.
        positions: Positions of the records to load, shape ``(rows,)``.
        seed: Seed of the random numbers that records may draw.
        weights: Weights of each user's records, shape ``(users, rows)``; None: records are drawn.
    """

    drawn: int
    positions: NDArray[np.int64]
    seed: int
    weights: Tensor | None = None

    def fold(self, rows: Batch) -> Batch:
        """Return loaded rows as the batch of the step.

        Args:
            rows: The records at ``positions``.

        Returns:
            The records; ``RecordGroups`` if users are drawn.
        """
        if self.weights is None:
            return rows
        users, own = self.weights.shape
        return RecordGroups(fold_rows(rows, users, own), self.weights)


@dataclass(frozen=True)
class BatchSource:
    """A data set as a source of batches.

    Attributes:
        source: Takes the records at some positions.
        users: The owners of the records, if users are drawn; else None.
    """

    source: RecordSource
    users: Users | None = None

    @property
    def records(self) -> int:
        """The number of records, or of users, to draw from."""
        return self.source.records if self.users is None else len(self.users)

    def request(self, drawn: NDArray[np.int64], stream: Keystream, step: int) -> BatchRequest:
        """Return what is to be loaded for drawn records or users.

        Args:
            drawn: Positions of records, or of users, shape ``(batch,)``.
            stream: Keystream that decides which records of a large user are taken.
            step: Number of the step, from 0.

        Returns:
            The request, which holds nothing of the key but a seed.
        """
        seed = 0 if self.source.in_memory else stream.seed_for(Purpose.RECORD_LOADING, step)
        if self.users is None:
            return BatchRequest(len(drawn), drawn, seed)
        chosen, weights = self.users.rows_of(drawn, stream, step)
        return BatchRequest(len(drawn), chosen.flatten(), seed, weights)

    def __call__(self, drawn: NDArray[np.int64], stream: Keystream, step: int) -> Batch:
        """Return the batch of the drawn records or users.

        Args:
            drawn: Positions of records, or of users, shape ``(batch,)``.
            stream: Keystream that decides which records of a large user are taken.
            step: Number of the step, from 0.

        Returns:
            The records; ``RecordGroups`` if users are drawn.
        """
        request = self.request(drawn, stream, step)
        return request.fold(self.source.take(request.positions, request.seed))


def make_batch_source(
    data: Any,
    users: Users | None,
    *,
    collate_fn: CollateFunction | None = None,
    floating: torch.dtype = torch.float32,
) -> BatchSource:
    """Return data as a source of batches.

    Args:
        data: Columns, records first: tensors, arrays, pandas objects or lists, in a tuple, list,
            dict or dataclass, or a ``TensorDataset``. Or records by index, with a length.
        users: The owners of the records, if users are drawn; else None.
        collate_fn: Makes a batch of a list of records; None: they are stacked.
        floating: Type of the model's parameters, for float64 arrays.

    Returns:
        The source, with the number of records or users to draw from.

    Raises:
        InvalidArgument: If the data are empty or of no known form, or ``users`` has another
            number of records.
    """
    source = _record_source(data, collate_fn, floating)
    if users is not None and users.records != source.records:
        raise InvalidArgument("owners", users.records, f"one for each of {source.records} records")
    return BatchSource(source, users)


def identity_of(data: Any) -> tuple[int, ...]:
    """Return the identities of the columns of data, or of the data set itself.

    Another tuple of the same tensors is the same data set.

    Args:
        data: The data, which are kept alive by the caller.

    Returns:
        One number per column.
    """
    if isinstance(data, Mapping):
        return tuple(map(id, data.values()))
    if is_plain_tensor_data(data):
        return tuple(map(id, data.tensors))
    return tuple(map(id, data)) if isinstance(data, tuple) else (id(data),)


def is_plain_tensor_data(data: object) -> TypeGuard[TensorDataset]:
    """Return whether data is a ``TensorDataset`` whose records are the rows of its tensors.

    Args:
        data: Anything.

    Returns:
        False also for a subclass that changes records as they are read.
    """
    return isinstance(data, TensorDataset) and (
        type(data).__getitem__ is TensorDataset.__getitem__
        and type(data).__len__ is TensorDataset.__len__
        and not hasattr(data, "__getitems__")
    )


def _record_source(
    data: Any, collate_fn: CollateFunction | None, floating: torch.dtype
) -> RecordSource:
    """Return data as a source of records: by columns, or by index."""
    if is_plain_tensor_data(data):
        data = data.tensors
    require_no_stream(data)
    _require_one_data_set(data)
    if not _has_columns(data):
        return IndexedRecords(data, _length(data), floating, collate_fn)
    columns = make_columns(data, floating)
    if collate_fn is None or not columns.records:
        return columns
    return IndexedRecords(ColumnRecords(columns.columns), columns.records, floating, collate_fn)


@dataclass(frozen=True)
class ColumnRecords:
    """Records of columns, one by one, for a ``collate_fn``.

    Attributes:
        columns: Tensors, arrays and lists, records first.
    """

    columns: Batch

    def __getitem__(self, number: int) -> Any:
        """Return one record, in the structure of the columns."""
        return _entry(self.columns, number)


def _entry(columns: Batch, number: int) -> Any:
    """Return one entry of every column."""
    match columns:
        case Tensor() | np.ndarray():
            return columns[number]
        case None:
            return None
        case Mapping():
            return {name: _entry(part, number) for name, part in columns.items()}
        case tuple() | list() if _has_columns(columns):
            return tuple(_entry(part, number) for part in columns)
        case _ if dataclasses.is_dataclass(columns) and not isinstance(columns, type):
            names = [one.name for one in dataclasses.fields(columns)]
            own = {name: _entry(getattr(columns, name), number) for name in names}
            return dataclasses.replace(columns, **own)
    return columns[number]


def _has_columns(data: Any) -> bool:
    """Return whether data holds all records in columns: tensors, arrays, frames or lists."""
    match data:
        case Mapping() | Tensor() | np.ndarray():
            return True
        case _ if is_frame(data):
            return True
        case list() if _is_list_of_records(data):
            return False
        case tuple() | list():
            return any(isinstance(part, list) or _has_columns(part) for part in data)
        case _ if dataclasses.is_dataclass(data) and not isinstance(data, type):
            return bool(batch_tensors(data))
        case _:
            return False


def _is_list_of_records(data: list[Any]) -> bool:
    """Return whether a list has one record per entry, and not one column.

    A list of vectors of different lengths holds records, as columns have one length.
    """
    if all(isinstance(one, tuple | Mapping) for one in data):
        return True
    if all(dataclasses.is_dataclass(one) for one in data):
        return True
    if all(isinstance(one, Tensor | np.ndarray) for one in data):
        return _are_records(data)
    if not all(isinstance(one, list) for one in data):
        return False
    lengths = {len(one) for one in data}
    # Lists of one length that hold tensors are records, unless they may as well be columns.
    hold = all(any(isinstance(part, Tensor | np.ndarray) for part in one) for one in data)
    return len(lengths) > 1 or (hold and len(data) > max(lengths, default=0))


def _are_records(arrays: list[Any]) -> bool:
    """Return whether tensors in a list are records; refuse those that may as well be columns."""
    shapes = {tuple(one.shape) for one in arrays}
    if len(arrays) > 1 and len(shapes) == 1 and () not in shapes:
        raise InvalidArgument(
            "data", f"a list of {len(arrays)} tensors of one shape", "a tuple of columns, or one "
            "tensor of all records, as torch.stack(data): a list may hold columns or records",
        )  # fmt: skip
    return len({shape[:1] for shape in shapes}) > 1 or () in shapes


def _require_one_data_set(data: Any) -> None:
    """Refuse a dict of data sets, as of splits."""
    if isinstance(data, Mapping):
        for name, part in data.items():
            if hasattr(part, "__getitems__") or hasattr(part, "column_names"):
                allowed = f"one data set, as data[{name!r}]"
                raise InvalidArgument("data", f"a dict of data sets, {sorted(data)}", allowed)


def _length(data: Any) -> int:
    """Return the number of records of data by index."""
    if isinstance(data, str | bytes | set) or not hasattr(data, "__getitem__"):
        raise InvalidArgument("data", _kind(data), ALLOWED_DATA)
    try:
        records = len(data)
    except Exception as error:  # not Sized, or __len__ of the user fails
        raise InvalidArgument(
            "data", f"a {type(data).__name__} whose length fails: {error}", ALLOWED_DATA
        ) from error
    if not records:
        raise InvalidArgument("data", f"a {type(data).__name__} without records", ALLOWED_DATA)
    return records


def _kind(data: Any) -> str:
    """Return the type of data as text."""
    return "None" if data is None else f"an object of type {type(data).__name__}"
