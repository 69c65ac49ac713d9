"""Make a batch of records, and name the record and the field that do not fit."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dpaudit.trainer.engine.batch_structure import Batch
from dpaudit.vocabulary.errors import InvalidArgument

CollateFunction = Callable[[list[Any]], Batch]
"""Maps a list of at least one record to a batch with one row per record."""

NUMERIC_KINDS = "biufc"
"""Kinds of NumPy types that become tensors: booleans, integers, floats and complex numbers."""

PAD_HINT = (
    "of one length: pad them with collate_fn=PadTokens(length) to a length that is fixed in "
    "advance, or give another collate_fn"
)


def collate_records(
    records: Sequence[Any],
    numbers: Sequence[int] | None = None,
    *,
    floating: torch.dtype = torch.float32,
) -> Batch:
    """Return records of one structure as a batch.

    Numbers, arrays and tensors are stacked to tensors, and texts become lists. Tuples, dicts and
    dataclasses keep their structure. A list of numbers is a vector.

    Args:
        records: At least one record.
        numbers: Positions of the records in the data set, for messages; None: from 0.
        floating: Type of the model's parameters: float64 numbers of Python and NumPy become
            float32 for a model of float32. Tensors keep their type.

    Returns:
        The batch, records first.

    Raises:
        InvalidArgument: If records have different structures, lengths or types; the message names
            the record and the field.

    Example:
        >>> batch = collate_records([([1.0, 2.0], "a"), ([3.0, 4.0], "b")])
        >>> batch[0].shape, batch[1]
        (torch.Size([2, 2]), ['a', 'b'])
    """
    whose = list(range(len(records))) if numbers is None else [int(n) for n in numbers]
    return _Collation(whose, floating).join(list(records), "")


@dataclasses.dataclass(frozen=True)
class _Collation:
    """Joins records; ``numbers`` are their positions in the data set."""

    numbers: list[int]
    floating: torch.dtype

    def join(self, parts: list[Any], field: str) -> Batch:
        """Return one field of all records as a batch."""
        first = parts[0]
        match first:
            case None:
                self._require_all(parts, field, lambda part: part is None, "None")
                return None
            case str() | bytes():
                self._require_all(parts, field, lambda part: isinstance(part, str | bytes), "text")
                return parts
            case Mapping():
                return self._mapping(parts, field)
            case tuple() if hasattr(first, "_fields"):
                return type(first)(*self._positions(parts, field))
            case tuple():
                return tuple(self._positions(parts, field))
            case list() if not _is_numbers(first):
                return self._positions(parts, field)
            case _ if dataclasses.is_dataclass(first) and not isinstance(first, type):
                return self._dataclass(parts, field)
        return self._stacked(parts, field)

    def _stacked(self, parts: list[Any], field: str) -> Tensor:
        """Return numbers, arrays or tensors of one shape as a tensor."""
        if set(map(type, parts)) <= {int, float, bool}:
            return convert_floats(as_tensor(np.asarray(parts)), self.floating)
        tensors = [self._tensor(part, number, field) for part, number in self._pairs(parts)]
        for tensor, number in zip(tensors, self.numbers, strict=True):
            if tensor.shape != tensors[0].shape:
                raise self._refused(
                    number, field, f"shape {_shape(tensor)}, record {self.numbers[0]} has "
                    f"{_shape(tensors[0])}", PAD_HINT,
                )  # fmt: skip
        try:
            return torch.stack(tensors)
        except (RuntimeError, TypeError) as error:  # for example on two devices
            raise self._refused(self.numbers[0], field, str(error), "on one device") from error

    def _tensor(self, part: Any, number: int, field: str) -> Tensor:
        """Return one record's value as a tensor."""
        if isinstance(part, Tensor) and part.layout is torch.strided and not part.is_nested:
            return part
        allowed = (
            "numbers, arrays, dense tensors or texts, in tuples, dicts or dataclasses (convert "
            "others in the data set, or give collate_fn)"
        )
        if isinstance(part, list | int | float | complex | np.ndarray | np.generic):
            try:
                found = np.asarray(part)
            except ValueError as error:
                raise self._refused(
                    number, field, "lists of different lengths", PAD_HINT
                ) from error
            if found.dtype.kind in NUMERIC_KINDS and not isinstance(part, np.ma.MaskedArray):
                return convert_floats(as_tensor(found), self.floating)
        raise self._refused(number, field, f"a {type(part).__name__}", allowed)

    def _mapping(self, parts: list[Any], field: str) -> dict[Any, Batch]:
        """Return dicts with the same keys as one dict of batches."""
        keys = list(parts[0])
        for part, number in self._pairs(parts):
            if not isinstance(part, Mapping) or part.keys() != parts[0].keys():
                given = sorted(map(str, part)) if isinstance(part, Mapping) else type(part).__name__
                raise self._refused(number, field, given, f"dicts with the same keys, {keys}")
        return {key: self.join([part[key] for part in parts], _below(field, key)) for key in keys}

    def _positions(self, parts: list[Any], field: str) -> list[Batch]:
        """Return tuples of one length as a list with the batch of each position."""
        size = len(parts[0])
        for part, number in self._pairs(parts):
            if not isinstance(part, tuple | list) or len(part) != size:
                given = f"{len(part)} values" if isinstance(part, tuple | list) else type(part)
                raise self._refused(number, field, given, f"tuples of {size} values")
        return [self.join([part[n] for part in parts], _below(field, n)) for n in range(size)]

    def _dataclass(self, parts: list[Any], field: str) -> Any:
        """Return dataclasses of one type as a dataclass of batches."""
        first = parts[0]
        self._require_all(parts, field, lambda p: type(p) is type(first), type(first).__name__)
        names = [one.name for one in dataclasses.fields(first) if one.init]
        own = {n: self.join([getattr(p, n) for p in parts], _below(field, n)) for n in names}
        return dataclasses.replace(first, **own)

    def _require_all(
        self, parts: list[Any], field: str, fits: Callable[[Any], bool], allowed: str
    ) -> None:
        """Refuse a record whose value has another type than that of the first record."""
        for part, number in self._pairs(parts):
            if not fits(part):
                raise self._refused(number, field, type(part).__name__, f"{allowed} as the first's")

    def _pairs(self, parts: list[Any]) -> zip[tuple[Any, int]]:
        """Return the values with the positions of their records."""
        return zip(parts, self.numbers, strict=True)

    @staticmethod
    def _refused(number: int, field: str, given: object, allowed: str) -> InvalidArgument:
        """Return the error that names a record, a field and what was wrong."""
        where = f"record {number}" + (f", field {field}" if field else "")
        return InvalidArgument("data", f"{where}: {given}", f"records with values {allowed}")


def as_tensor(array: np.ndarray[Any, Any]) -> Tensor:
    """Return a tensor of an array of numbers, in the machine's byte order.

    Args:
        array: Numbers; shared with the tensor if that is possible.

    Returns:
        The tensor; ``longdouble`` becomes float64.
    """
    if array.dtype.kind == "f" and array.dtype.itemsize > 8:
        array = array.astype(np.float64)
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    if not array.flags.writeable or any(stride < 0 for stride in array.strides):
        array = array.copy()
    return torch.from_numpy(array)


def convert_floats(batch: Tensor, floating: torch.dtype) -> Tensor:
    """Return numbers of Python or NumPy with float64 converted to the model's type.

    Args:
        batch: A tensor that was made of Python's or NumPy's numbers.
        floating: The type of the model's parameters.

    Returns:
        The tensor; float64 becomes float32 for a model of float32, and is left for any other.
    """
    if batch.dtype is torch.float64 and floating is torch.float32:
        return batch.float()
    return batch


def _is_numbers(value: Sequence[Any]) -> bool:
    """Return whether a list holds numbers, or lists of numbers, alone."""
    return all(
        _is_numbers(one) if isinstance(one, list) else isinstance(one, int | float | np.generic)
        for one in value
    )


def _shape(tensor: Tensor) -> str:
    """Return the shape as text."""
    return str(tuple(tensor.shape))


def _below(field: str, name: object) -> str:
    """Return the path of a part of a field, as ``0.tokens``."""
    return f"{field}.{name}" if field else str(name)
