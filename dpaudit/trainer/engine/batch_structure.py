"""Batches: tensors and columns with records first, in a tuple, list, mapping or dataclass.

A column holds one entry per record and no tensor: a list or tuple of strings, numbers or other
objects, or a NumPy array. Columns are split and indexed as tensors are. Any other object must
be a container of batches or None. Otherwise it is refused, as every record would get it whole.
"""

from __future__ import annotations

import copy
import dataclasses
from collections import UserDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from dpaudit.vocabulary.errors import InvalidArgument

Batch = Any
"""A tensor, a column, None, or a tuple, list, mapping or dataclass of batches."""

Column = Any
"""A list, tuple or NumPy array with one entry per record."""

ALLOWED_BATCHES = (
    "made of tensors, NumPy arrays, and lists with one entry per record, in a tuple, list, dict "
    "or dataclass (constants belong in the loss: a closure or functools.partial)"
)


def _same(column: Column) -> Column:
    """Return the column unchanged."""
    return column


def _is_column(batch: Batch) -> bool:
    """Return whether a list, tuple or array has one entry per record."""
    match batch:
        case np.ndarray():
            return batch.ndim > 0
        case tuple() if hasattr(batch, "_fields"):
            return False  # a named tuple is a container with one field per kind of data
        case list() | tuple():
            return not any(_holds_tensors(part) for part in batch)
        case _:
            return False


def _holds_tensors(batch: object) -> bool:
    """Return whether there is a tensor or array at any depth."""
    match batch:
        case Tensor() | np.ndarray():
            return True
        case list() | tuple():
            return any(map(_holds_tensors, batch))
        case Mapping():
            return any(map(_holds_tensors, batch.values()))
        case _ if dataclasses.is_dataclass(batch) and not isinstance(batch, type):
            return any(_holds_tensors(getattr(batch, f.name)) for f in dataclasses.fields(batch))
        case _:
            return False


def _is_tuple_of_tensors(batch: Batch) -> bool:
    """Return whether a batch is a plain tuple of plain tensors, at least one."""
    if type(batch) is not tuple or not batch:
        return False
    for part in batch:
        if type(part) is not Tensor or part.layout is not torch.strided or part.is_nested:
            return False
    return True


def map_tensors(
    batch: Batch,
    change: Callable[[Tensor], Tensor],
    change_column: Callable[[Column], Column] = _same,
) -> Batch:
    """Return the batch with every tensor, and every column, changed.

    Args:
        batch: Any batch.
        change: Function applied to each tensor.
        change_column: Function applied to each column; None of them changes by default.

    Returns:
        A batch of the same structure, in new containers.

    Raises:
        InvalidArgument: If a part is neither a tensor, a column, a container nor None.
    """
    if _is_tuple_of_tensors(batch):  # the usual batch; the rest below gives the same
        return tuple([change(part) for part in batch])
    own = partial(map_tensors, change=change, change_column=change_column)
    match batch:
        case Tensor() if batch.layout is torch.strided and not batch.is_nested:
            return change(batch)
        case None:
            return None
        case _ if _is_column(batch):
            return change_column(batch)
        case PackedSequence():
            pass  # refused: its tensors have times first, and records interleaved
        case tuple() if hasattr(batch, "_fields"):
            return type(batch)(*map(own, batch))
        case tuple() | list():
            return _of_type(batch, list(map(own, batch)))
        case Mapping():
            return _mapping(batch, {name: own(part) for name, part in batch.items()})
        case _ if dataclasses.is_dataclass(batch) and not isinstance(batch, type):
            return _dataclass(batch, own)
    raise InvalidArgument("batch", f"a {type(batch).__name__} in it", ALLOWED_BATCHES)


def _of_type(like: Sequence[Any], parts: list[Any]) -> Sequence[Any]:
    """Return parts as a list or tuple; a subclass that cannot be built so becomes its base."""
    if type(like) in {list, tuple}:
        return type(like)(parts)  # type: ignore[call-arg]
    try:
        return type(like)(parts)  # type: ignore[call-arg]
    except (TypeError, ValueError):
        return parts if isinstance(like, list) else tuple(parts)


def _mapping(like: Mapping[Any, Any], parts: dict[Any, Any]) -> Mapping[Any, Any]:
    """Return a mapping of the same type if it can be copied, else a dict."""
    if type(like) is dict or not isinstance(like, dict | UserDict):
        return parts
    copied = copy.copy(like)
    for name, value in parts.items():
        copied[name] = value
    return copied


def _dataclass(batch: Any, own: Callable[[Batch], Batch]) -> Any:
    """Return a dataclass with its fields changed, those at their default excepted."""
    given = {f.name: (getattr(batch, f.name), f.default) for f in dataclasses.fields(batch)}
    # A field at its default is a constant, which does not depend on the records.
    changed = {name: own(value) for name, (value, usual) in given.items() if value is not usual}
    try:
        return dataclasses.replace(batch, **changed)
    except (TypeError, ValueError) as error:
        raise InvalidArgument(
            "batch", f"a {type(batch).__name__} in it", "made of dataclasses whose fields are all "
            "arguments of __init__",
        ) from error  # fmt: skip


def copy_containers(batch: Batch) -> Batch:
    """Return the same tensors and columns in new containers, which a loss may modify.

    Args:
        batch: Any batch.

    Returns:
        An equal batch that shares tensors and columns.
    """
    if _is_tuple_of_tensors(batch):
        return (*batch,)
    return map_tensors(batch, lambda tensor: tensor)


def batch_tensors(batch: Batch) -> list[Tensor]:
    """Return all tensors of a batch.

    Args:
        batch: Any batch.

    Returns:
        The tensors, in the order of the structure.
    """
    if _is_tuple_of_tensors(batch):
        return list(batch)
    found: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    map_tensors(batch, keep)
    return found


def batch_columns(batch: Batch) -> list[Column]:
    """Return all columns of a batch.

    Args:
        batch: Any batch.

    Returns:
        The columns, in the order of the structure.
    """
    if _is_tuple_of_tensors(batch):
        return []
    found: list[Column] = []

    def keep(column: Column) -> Column:
        found.append(column)
        return column

    map_tensors(batch, lambda tensor: tensor, keep)
    return found


def replace_tensors(batch: Batch, replacements: list[Tensor]) -> Batch:
    """Return the batch with other tensors.

    Args:
        batch: Any batch.
        replacements: One tensor for each of ``batch_tensors``, in the same order.

    Returns:
        A batch of the same structure.
    """
    left = iter(replacements)
    return map_tensors(batch, lambda _: next(left))


MOST_SHOWN = 400
"""Number of characters of a structure that an error shows."""


class _Name(str):
    """Text that is shown without quotes in a structure."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def describe_structure(batch: Batch) -> str:
    """Return what a batch is made of, for an error message.

    Args:
        batch: Tensors and columns in any structure.

    Returns:
        Its structure, with the shape of a record in place of a tensor, and ``a list`` in place of
        a column. The number of records is not in it.
    """

    def shape(tensor: Tensor) -> Any:
        return _Name(f"tensor of shape ({', '.join(map(str, ('records', *tensor.shape[1:])))})")

    try:
        whole = repr(map_tensors(batch, shape, lambda _: _Name("a list")))
    except Exception:  # a container of the user that checks its parts
        whole = f"of type {type(batch).__name__}"
    return whole if len(whole) <= MOST_SHOWN else f"{whole[:MOST_SHOWN]}..."


def count_records(batch: Batch) -> int:
    """Return the number of records of a batch.

    Args:
        batch: Any batch.

    Returns:
        The common first dimension of all tensors and columns.

    Raises:
        InvalidArgument: If there are no tensors or columns, or they disagree.
    """
    plain = _is_tuple_of_tensors(batch)
    if not plain and _is_ambiguous(batch):
        raise InvalidArgument(
            "batch", f"a {type(batch).__name__} without any tensor", "a dict of columns, or of "
            "tensors and columns (its entries may be records or columns)",
        )  # fmt: skip
    if plain:
        sizes = {tensor.shape[0] if tensor.dim() else -1 for tensor in batch}
    else:
        sizes = {tensor.shape[0] if tensor.dim() else -1 for tensor in batch_tensors(batch)}
        sizes |= {len(column) for column in batch_columns(batch)}
    if len(sizes) != 1 or -1 in sizes:
        given = ["a scalar" if size < 0 else size for size in sorted(sizes)]
        raise InvalidArgument(
            "batch", given, "tensors and lists that all have the records as their first "
            "dimension",
        )  # fmt: skip
    return sizes.pop()


def _is_ambiguous(batch: Batch) -> bool:
    """Return whether a batch without tensors may be a list of columns as well as of records.

    A list of strings or dicts has one entry per record.
    """
    if isinstance(batch, np.ndarray) or not _is_column(batch):
        return False
    parts = all(isinstance(part, list | tuple) for part in batch)
    return isinstance(batch, tuple) or (parts and len(batch) > 0)


def slice_records(batch: Batch, start: int, end: int) -> Batch:
    """Return consecutive records.

    Args:
        batch: Any batch.
        start: Position of the first record.
        end: Position after the last record.

    Returns:
        A batch of the same structure.
    """
    return map_tensors(batch, lambda tensor: tensor[start:end], lambda column: column[start:end])


def take_records(batch: Batch, index: Tensor) -> Batch:
    """Return the records at given positions, which may repeat.

    Args:
        batch: Any batch.
        index: Positions, a vector of integers on the CPU.

    Returns:
        A batch of the same structure with ``len(index)`` records.
    """
    where = index.tolist()
    array = np.asarray(where, dtype=np.int64)

    def entries(column: Column) -> Column:
        if isinstance(column, np.ndarray):
            return column[array]
        return _of_type(column, [column[i] for i in where])

    # index_select copies rows in half the time of indexing.
    return map_tensors(
        batch, lambda tensor: tensor.index_select(0, index.to(tensor.device)), entries
    )


def fold_rows(batch: Batch, records: int, rows: int) -> Batch:
    """Return a batch of ``records * rows`` entries as one of ``records``.

    Args:
        batch: Any batch.
        records: Number of records.
        rows: Entries per record, which are consecutive.

    Returns:
        Tensors of shape ``(records, rows, ...)``, and columns of lists.
    """

    def entries(column: Column) -> Column:
        if isinstance(column, np.ndarray):
            return column.reshape(records, rows, *column.shape[1:])
        own = [column[i * rows : (i + 1) * rows] for i in range(records)]
        return _of_type(column, own)

    return map_tensors(
        batch, lambda tensor: tensor.reshape(records, rows, *tensor.shape[1:]), entries
    )


def unfold_rows(batch: Batch) -> Batch:
    """Undo ``fold_rows``.

    Args:
        batch: Batch of tensors of shape ``(records, rows, ...)``.

    Returns:
        Batch with ``records * rows`` entries.
    """

    def entries(column: Column) -> Column:
        if isinstance(column, np.ndarray):
            return column.reshape(-1, *column.shape[2:])
        return _of_type(column, [entry for rows in column for entry in rows])

    return map_tensors(batch, lambda tensor: tensor.flatten(0, 1), entries)


def blank_record(batch: Batch) -> Batch:
    """Return one record of zeros.

    A list keeps its first entry, as no other value is known to be valid.

    Args:
        batch: Batch that gives shapes and types; it may be empty.

    Returns:
        A batch of one record, or of none in the lists of an empty batch.
    """

    def entries(column: Column) -> Column:
        if isinstance(column, np.ndarray):
            return np.zeros_like(column, shape=(1, *column.shape[1:]))
        return column[:1]

    return map_tensors(batch, lambda tensor: tensor.new_zeros(1, *tensor.shape[1:]), entries)


def record_shapes(batch: Batch) -> tuple[object, ...]:
    """Return shapes and types of one record, by which a model may branch.

    Args:
        batch: Any batch.

    Returns:
        A hashable value that does not depend on the number of records.
    """
    own = [(tensor.shape[1:], tensor.dtype, tensor.device) for tensor in batch_tensors(batch)]
    others = [
        (column.shape[1:], column.dtype) if isinstance(column, np.ndarray) else type(column)
        for column in batch_columns(batch)
    ]
    return (*own, *others)


def duplicate_record(batch: Batch) -> Batch:
    """Return the first record twice.

    Args:
        batch: At least one record.

    Returns:
        A batch of two equal records.
    """
    return take_records(batch, torch.tensor([0, 0]))


def concatenate_batches(one: Batch, other: Batch) -> Batch:
    """Return the records of one batch, then those of another.

    Args:
        one: First batch.
        other: Second batch, of the same structure.

    Returns:
        A batch of the same structure.
    """
    rest, more = iter(batch_tensors(other)), iter(batch_columns(other))

    def entries(column: Column) -> Column:
        if isinstance(column, np.ndarray):
            return np.concatenate([column, next(more)])
        return _of_type(column, [*column, *next(more)])

    return map_tensors(one, lambda tensor: torch.cat([tensor, next(rest)]), entries)


def split_into_chunks(batch: Batch, size: int) -> Iterator[Batch]:
    """Yield the batch in parts.

    Args:
        batch: Any batch.
        size: Records per part, at least 1; the last part may have fewer.

    Yields:
        Batches of consecutive records; none for an empty batch.
    """
    for start in range(0, count_records(batch), size):
        yield slice_records(batch, start, start + size)
