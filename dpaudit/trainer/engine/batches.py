"""Batches: tensors and columns with records first, in a tuple, list, dict or dataclass.

A column holds one entry per record and is no tensor: a list or tuple without a tensor in it
(strings, numbers, any objects), or a NumPy array. A column is split and indexed as tensors
are. Everything else is a container of batches, or None, or refused: what has no known
records would be given to every record whole.
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

ALLOWED = (
    "made of tensors, NumPy arrays, and lists with one entry per record, in a tuple, list, dict "
    "or dataclass (constants belong in the loss: a closure or functools.partial)"
)


def _same(column: Column) -> Column:
    return column


def _is_column(batch: Batch) -> bool:
    """Return whether a list, tuple or array has one entry per record."""
    match batch:
        case np.ndarray():
            return batch.ndim > 0
        case tuple() if hasattr(batch, "_fields"):
            return False
        case list() | tuple():
            return not any(_holds_tensors(part) for part in batch)
        case _:
            return False


def _holds_tensors(batch: object) -> bool:
    """Return whether there is a tensor or array anywhere inside."""
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


def mapped(
    batch: Batch,
    change: Callable[[Tensor], Tensor],
    change_column: Callable[[Column], Column] = _same,
) -> Batch:
    """Return the batch with every tensor, and every column, changed.

    Raises:
        InvalidArgument: If a part is neither a tensor, a column, a container nor None.
    """
    own = partial(mapped, change=change, change_column=change_column)
    match batch:
        case Tensor() if batch.layout is torch.strided and not batch.is_nested:
            return change(batch)
        case None:
            return None
        case _ if _is_column(batch):
            return change_column(batch)
        case PackedSequence():
            pass  # its tensors have time first, and records in between
        case tuple() if hasattr(batch, "_fields"):
            return type(batch)(*map(own, batch))
        case tuple() | list():
            return _of_type(batch, list(map(own, batch)))
        case Mapping():
            return _mapping(batch, {name: own(part) for name, part in batch.items()})
        case _ if dataclasses.is_dataclass(batch) and not isinstance(batch, type):
            return _dataclass(batch, own)
    raise InvalidArgument("batch", f"a {type(batch).__name__} in it", ALLOWED)


def _of_type(like: Sequence[Any], parts: list[Any]) -> Sequence[Any]:
    """Return parts as a list or tuple; a subclass that cannot be built so gives its base."""
    if type(like) in {list, tuple}:
        return type(like)(parts)  # type: ignore[call-arg]
    try:
        return type(like)(parts)  # type: ignore[call-arg]
    except (TypeError, ValueError):
        return parts if isinstance(like, list) else tuple(parts)


def _mapping(like: Mapping[Any, Any], parts: dict[Any, Any]) -> Mapping[Any, Any]:
    """Return a mapping of the same type where it can be copied, else a dict."""
    if type(like) is dict or not isinstance(like, dict | UserDict):
        return parts
    copied = copy.copy(like)
    for name, value in parts.items():
        copied[name] = value
    return copied


def _dataclass(batch: Any, own: Callable[[Batch], Batch]) -> Any:
    given = {f.name: (getattr(batch, f.name), f.default) for f in dataclasses.fields(batch)}
    # A field that has its default says nothing of the records.
    changed = {name: own(value) for name, (value, usual) in given.items() if value is not usual}
    try:
        return dataclasses.replace(batch, **changed)
    except (TypeError, ValueError) as error:
        raise InvalidArgument(
            "batch", f"a {type(batch).__name__} in it", "of dataclasses that can be replaced: all "
            "fields are arguments of __init__",
        ) from error  # fmt: skip


def fresh(batch: Batch) -> Batch:
    """Return the same tensors and columns in new containers, which a loss may take apart."""
    return mapped(batch, lambda tensor: tensor)


def tensors(batch: Batch) -> list[Tensor]:
    """Return all tensors of a batch, in a fixed order."""
    found: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    mapped(batch, keep)
    return found


def columns(batch: Batch) -> list[Column]:
    """Return all columns of a batch, in a fixed order."""
    found: list[Column] = []

    def keep(column: Column) -> Column:
        found.append(column)
        return column

    mapped(batch, lambda tensor: tensor, keep)
    return found


def with_tensors(batch: Batch, replacements: list[Tensor]) -> Batch:
    """Return the batch with other tensors, in the order of ``tensors``."""
    left = iter(replacements)
    return mapped(batch, lambda _: next(left))


def count(batch: Batch) -> int:
    """Return how many records a batch has.

    Raises:
        InvalidArgument: If it has no tensors or columns, or they disagree.
    """
    if _is_ambiguous(batch):
        raise InvalidArgument(
            "batch", f"a {type(batch).__name__} without any tensor", "a dict of columns, or of "
            "tensors and columns: one entry per record, or one per column, cannot be told here",
        )  # fmt: skip
    sizes = {tensor.shape[0] if tensor.dim() else -1 for tensor in tensors(batch)}
    sizes |= {len(column) for column in columns(batch)}
    if len(sizes) != 1 or -1 in sizes:
        raise InvalidArgument(
            "batch", sorted(sizes), "tensors and lists that all have the records as their first "
            "dimension",
        )  # fmt: skip
    return sizes.pop()


def _is_ambiguous(batch: Batch) -> bool:
    """Return whether a whole batch may be columns as well as records: it has no tensor.

    A list of strings or dicts is one entry per record.
    """
    if isinstance(batch, np.ndarray) or not _is_column(batch):
        return False
    parts = all(isinstance(part, list | tuple) for part in batch)
    return isinstance(batch, tuple) or (parts and len(batch) > 0)


def part(batch: Batch, start: int, end: int) -> Batch:
    """Return the records from ``start`` to before ``end``."""
    return mapped(batch, lambda tensor: tensor[start:end], lambda column: column[start:end])


def taken(batch: Batch, index: Tensor) -> Batch:
    """Return the records at some positions, a vector of integers on the processor."""
    where = index.tolist()
    array = np.asarray(where, dtype=np.int64)

    def entries(column: Column) -> Column:
        if isinstance(column, np.ndarray):
            return column[array]
        return _of_type(column, [column[i] for i in where])

    return mapped(batch, lambda tensor: tensor[index.to(tensor.device)], entries)


def folded(batch: Batch, records: int, rows: int) -> Batch:
    """Return a batch of ``records * rows`` as one of ``records``, with ``rows`` entries each."""

    def entries(column: Column) -> Column:
        if isinstance(column, np.ndarray):
            return column.reshape(records, rows, *column.shape[1:])
        own = [column[i * rows : (i + 1) * rows] for i in range(records)]
        return _of_type(column, own)

    return mapped(batch, lambda tensor: tensor.reshape(records, rows, *tensor.shape[1:]), entries)


def unfolded(batch: Batch) -> Batch:
    """Return what ``folded`` was given."""

    def entries(column: Column) -> Column:
        if isinstance(column, np.ndarray):
            return column.reshape(-1, *column.shape[2:])
        return _of_type(column, [entry for rows in column for entry in rows])

    return mapped(batch, lambda tensor: tensor.flatten(0, 1), entries)


def blank(batch: Batch) -> Batch:
    """Return one record of zeros in the shapes of a batch, which may be empty.

    A list keeps its first entry, as no other is known to be valid.
    """

    def entries(column: Column) -> Column:
        if isinstance(column, np.ndarray):
            return np.zeros_like(column, shape=(1, *column.shape[1:]))
        return column[:1]

    return mapped(batch, lambda tensor: tensor.new_zeros(1, *tensor.shape[1:]), entries)


def shapes(batch: Batch) -> tuple[object, ...]:
    """Return a record's shapes and types: what a model may tell batches apart by."""
    own = [(tensor.shape[1:], tensor.dtype, tensor.device) for tensor in tensors(batch)]
    others = [
        (column.shape[1:], column.dtype) if isinstance(column, np.ndarray) else type(column)
        for column in columns(batch)
    ]
    return (*own, *others)


def doubled(batch: Batch) -> Batch:
    """Return one record twice."""
    return taken(batch, torch.tensor([0, 0]))


def joined(one: Batch, other: Batch) -> Batch:
    """Return the records of one batch, then those of another of the same kind."""
    rest, more = iter(tensors(other)), iter(columns(other))

    def entries(column: Column) -> Column:
        if isinstance(column, np.ndarray):
            return np.concatenate([column, next(more)])
        return _of_type(column, [*column, *next(more)])

    return mapped(one, lambda tensor: torch.cat([tensor, next(rest)]), entries)


def chunks(batch: Batch, size: int) -> Iterator[Batch]:
    """Yield the batch in parts of at most ``size`` records; none of an empty batch."""
    for start in range(0, count(batch), size):
        yield part(batch, start, start + size)
