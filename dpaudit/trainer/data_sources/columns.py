"""Data in memory by columns: tensors, NumPy arrays, pandas frames and lists.

Numbers become tensors when a batch is taken, so that a memory-mapped array stays on the disk.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dpaudit.trainer.data_sources.collate import (
    NUMERIC_KINDS,
    PAD_HINT,
    as_tensor,
    convert_floats,
)
from dpaudit.trainer.engine.batch_structure import (
    Batch,
    count_records,
    map_tensors,
    take_records,
)
from dpaudit.vocabulary.errors import InvalidArgument


@dataclass(frozen=True)
class Columns:
    """Columns with one entry per record, in a tuple, list, mapping or dataclass.

    Attributes:
        columns: Tensors, arrays and lists, records first.
        records: Number of records.
        floating: Type of the model's parameters, to which float64 arrays are converted.
    """

    columns: Batch
    records: int
    floating: torch.dtype
    in_memory = True

    def take(self, which: NDArray[np.int64], seed: int) -> Batch:
        """Return the batch of some records.

        Args:
            which: Positions of the records, shape ``(batch,)``; may be empty.
            seed: Not used: nothing is random.

        Returns:
            The records; arrays of numbers as tensors.
        """
        taken = take_records(self.columns, torch.from_numpy(which))
        return map_tensors(taken, lambda tensor: tensor, self._converted)

    def _converted(self, column: Any) -> Any:
        """Return an array of numbers as a tensor, and any other column as it is."""
        if isinstance(column, np.ndarray) and column.dtype.kind in NUMERIC_KINDS:
            return convert_floats(as_tensor(column), self.floating)
        return column


def make_columns(data: Any, floating: torch.dtype) -> Columns:
    """Return data by columns as a source of batches.

    Args:
        data: Tensors, arrays, pandas objects and lists, records first.
        floating: Type of the model's parameters.

    Returns:
        The source.

    Raises:
        InvalidArgument: If columns have different numbers of records, or one cannot be used.
    """
    columns = _columns_of(data, "", top=True)
    return Columns(columns, count_records(columns), floating)


def is_frame(data: object) -> bool:
    """Return whether data is a DataFrame or a Series of pandas, which is not imported here.

    Args:
        data: Anything.

    Returns:
        True for both.
    """
    module = type(data).__module__
    return module.split(".")[0] == "pandas" and hasattr(data, "iloc")


def _columns_of(data: Any, name: str, *, top: bool = False) -> Batch:
    """Return tensors, arrays and lists in the structure of ``data``."""
    match data:
        case np.ndarray() if hasattr(data, "mask"):  # numpy.ma takes time to import
            raise _refused(name, "a masked array", "arrays without a mask, as array.filled(0)")
        case Tensor() | np.ndarray() | None:
            return data
        case _ if is_frame(data):
            return _frame(data, name, top=top)
        case list() if _is_ragged_column(data):
            return _list_of_lists(data, name)
        case Mapping():
            return {key: _columns_of(part, _below(name, key)) for key, part in data.items()}
        case tuple() | list() if _holds_columns(data):
            return _sequence(data, [_columns_of(part, _below(name, n)) for n, part in _named(data)])
        case _ if dataclasses.is_dataclass(data) and not isinstance(data, type):
            return data
    return data


def _named(data: Any) -> list[tuple[object, Any]]:
    """Return the parts of a sequence with their names or positions."""
    names = getattr(data, "_fields", range(len(data)))
    return list(zip(names, data, strict=True))


def _sequence(like: Any, parts: list[Any]) -> Any:
    """Return parts in a tuple, named tuple or list."""
    if hasattr(like, "_fields"):
        return type(like)(*parts)
    return tuple(parts) if isinstance(like, tuple) else parts


def _holds_columns(data: Any) -> bool:
    """Return whether a part is a column that is not a list, at any depth."""
    return any(
        isinstance(part, Tensor | np.ndarray)
        or is_frame(part)
        or (isinstance(part, Mapping | tuple | list) and _holds_columns(_parts(part)))
        for part in data
    )


def _parts(data: Any) -> Any:
    """Return the parts of a container."""
    return data.values() if isinstance(data, Mapping) else data


def _is_ragged_column(data: list[Any]) -> bool:
    """Return whether a list has one list of numbers per record, as tokens."""
    return bool(data) and all(
        isinstance(one, list) and all(isinstance(n, int | float | np.generic) for n in one)
        for one in data
    )


def _list_of_lists(data: list[list[Any]], name: str) -> np.ndarray[Any, Any]:
    """Return lists of numbers of one length as an array; refuse other lengths."""
    for number, one in enumerate(data):
        if len(one) != len(data[0]):
            given = f"record {number} with {len(one)} values, record 0 with {len(data[0])}"
            raise _refused(name, given, PAD_HINT)
    return np.asarray(data)


def _frame(data: Any, name: str, *, top: bool) -> Batch:
    """Return a pandas object as columns.

    A frame is a dict of its columns. Beside other columns, as in ``(X, y)``, a frame of numbers
    is a matrix.
    """
    if not hasattr(data, "columns"):  # a Series
        return _series(data, name)
    labels = list(data.columns)
    if len(set(labels)) != len(labels):
        raise _refused(name, f"columns {labels}", "frames with one name per column")
    own = {str(label): _series(data[label], _below(name, label)) for label in labels}
    arrays = [one for one in own.values() if isinstance(one, np.ndarray)]
    if top or len(arrays) < len(own):
        return own
    return np.stack(arrays, axis=1)


def _series(data: Any, name: str) -> Any:
    """Return a column of pandas as an array of numbers, or a list of other values."""
    nullable = not isinstance(data.dtype, np.dtype) and data.dtype.kind in NUMERIC_KINDS
    if nullable and data.isna().any():
        raise _refused(name, "missing values", "numbers in every row, as column.fillna(0)")
    array = data.to_numpy()
    return array if array.dtype.kind in NUMERIC_KINDS else data.tolist()


def _refused(name: str, given: str, allowed: str) -> InvalidArgument:
    """Return the error that names a column."""
    where = f"column {name}: " if name else ""
    return InvalidArgument("data", where + given, allowed)


def _below(name: str, part: object) -> str:
    """Return the path of a part of a column."""
    return f"{name}.{part}" if name else str(part)
