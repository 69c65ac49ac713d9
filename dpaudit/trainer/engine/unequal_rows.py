"""Tensors in which records may have different numbers of rows, as tokens without padding do.

A plan assumes equally many rows per record. The length of a tensor does not show whether they
are: 4 and 4 rows are as many as 3 and 5. What shows it is how the tensor was made. Results that
join, choose or count rows are noted here, and what is computed from them. Where the chosen rows
are known by their numbers (``chosen_rows.py``), they are not unequal in this sense.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any
from weakref import ref

import torch
from torch import Tensor
from torch.nn import functional

from dpaudit.trainer.engine.parameter_functions import is_basic, tensors_in, torch_functions

JOINING = torch_functions(("cat", "concat", "concatenate", "hstack", "vstack", "row_stack"))
CHOOSING = torch_functions((
    "masked_select", "index_select", "take", "take_along_dim", "gather", "__getitem__", "values",
)) | {functional.embedding}  # fmt: skip
COUNTING = torch_functions((
    "nonzero", "argwhere", "unique", "unique_consecutive", "_unique2",
)) | {torch.functional.unique, torch.functional.unique_consecutive}  # fmt: skip
FILLING = torch_functions((
    "index_add", "index_add_", "index_put", "index_put_", "index_copy", "index_copy_", "scatter",
    "scatter_", "scatter_add", "scatter_add_", "scatter_reduce", "scatter_reduce_", "index_fill",
    "index_fill_", "masked_scatter", "masked_scatter_",
))  # fmt: skip
"""Functions whose result has the rows of their first argument."""

INTEGERS = frozenset({torch.int32, torch.int64})
WHERE, STACK, REPEAT = torch.where, torch.stack, torch_functions(("repeat_interleave",))
GET_ITEM, SET_ITEM = Tensor.__getitem__, Tensor.__setitem__
PADDING = torch_functions(("_pad_packed_sequence",))
PACKING = torch_functions(("_pack_padded_sequence",))
ALONG_ROWS = torch_functions(("gather", "take_along_dim", "index_select"))

SUSPECTS = JOINING | CHOOSING | COUNTING | REPEAT | {WHERE, STACK, SET_ITEM} | FILLING
"""Functions that may make rows unequal."""


class UnequalRows:
    """Notes which tensors of a run may have different numbers of rows per record.

    Args:
        records: Number of records of the run.

    Attributes:
        records: The same.
    """

    def __init__(self, records: int) -> None:
        self.records = records
        self._known: dict[int, ref[Tensor]] = {}
        self._lengths: set[int] = set()

    @property
    def has_any(self) -> bool:
        """Whether any tensor was noted."""
        return bool(self._known)

    def holds(self, tensor: Tensor) -> bool:
        """Return whether records may have different numbers of rows in a tensor.

        Args:
            tensor: Any tensor.

        Returns:
            Whether it was noted.
        """
        known = self._known.get(id(tensor)) if self._known else None
        return known is not None and known() is tensor

    def among(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
        """Return whether an argument was noted.

        Args:
            args: Positional arguments of a call.
            kwargs: Its keyword arguments.

        Returns:
            Whether any tensor among them was noted.
        """
        return bool(self._known) and any(map(self.holds, tensors_in((*args, *kwargs.values()))))

    def follow(
        self,
        func: Any,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        output: Any,
        is_chosen: Callable[[Tensor], bool] | None,
    ) -> None:
        """Note the results of a call.

        Args:
            func: The function of torch that was called.
            args: Its positional arguments.
            kwargs: Its keyword arguments.
            output: Its result.
            is_chosen: Whether the rows of a tensor are known by their numbers; None: of none.
        """
        if not self._known and is_chosen is None and func not in SUSPECTS:
            return
        chosen = is_chosen or (lambda _: False)
        # A number alone, such as a length, does not have rows; nor does an index give any.
        given = args[:1] if func in CHOOSING - {functional.embedding} else (*args, *kwargs.values())
        inputs = [
            t for t in tensors_in(given)
            if (t.dim() or func is STACK) and (self.holds(t) or chosen(t))
        ]  # fmt: skip
        made = func in SUSPECTS and self._makes_unequal(func, args, kwargs, output)
        if args and (func in FILLING or func is SET_ITEM):
            # Rows of the first argument; a buffer as long as an unequal tensor was made for it.
            inputs = [t for t in inputs if t is args[0]]
            length = len(args[0]) if args[0].dim() else 0
            made = made or (length in self._lengths and length != self.records)
            made = made or (length == self.records and self._reorders(args, kwargs))
        if func is STACK and self._stacks_in_another_order(args[0] if args else ()):
            made = True
        elif self._stacks_records(func, args, kwargs):
            return
        if func in PADDING or not (made or inputs):
            return
        # Rows in the order of the records are restored where there were more or fewer before.
        restores = all(not t.dim() or len(t) != self.records for t in inputs)
        results = args[:1] if func is SET_ITEM else output[:1] if func in PACKING else (output,)
        for tensor in tensors_in(results):
            if chosen(tensor):
                self._lengths.add(len(tensor))
            elif made or not (restores and tensor.dim() and len(tensor) == self.records):
                self._known[id(tensor)] = ref(tensor)
                if tensor.dim():
                    self._lengths.add(len(tensor))

    def _stacks_records(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
        """Return whether a call makes one row of each record's own tensor."""
        first = (args[1] if len(args) > 1 else kwargs.get("dim", 0)) == 0
        return func is STACK and first and bool(args) and len(args[0]) == self.records

    def _reorders(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
        """Return whether one row is written per record, in another order than theirs."""
        indices = [t for t in tensors_in((*args[1:-1], *kwargs.values())) if t.dtype in INTEGERS]
        numbers = [t if t.dim() == 1 else t.flatten(1)[:, 0] for t in indices if t.dim()]
        return any(
            len(t) == self.records and not torch.equal(t, torch.arange(len(t)).to(t))
            for t in numbers
        )

    def _stacks_in_another_order(self, parts: Sequence[Tensor]) -> bool:
        """Return whether rows of a tensor of one row per record are joined out of order."""
        base = parts[0]._base if len(parts) == self.records > 1 else None
        if base is None or not base.dim() or len(base) != self.records:
            return False
        starts = [part.storage_offset() for part in parts if part._base is base]
        return len(starts) == len(parts) and starts != sorted(set(starts))

    def _makes_unequal(
        self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any
    ) -> bool:
        """Return whether a call may join, choose or count unequal rows."""
        if func in JOINING:
            return self._joins_unequal(args, kwargs)
        if func is SET_ITEM:
            return is_basic(args[1]) and self._writes_rows(args[0], args[1])
        if func in COUNTING:
            return True
        if func is STACK or func in FILLING:
            return False
        if func is WHERE:
            return len(args) + len(kwargs) == 1
        if func in REPEAT:
            return not isinstance(args[-1] if len(args) > 1 else kwargs.get("repeats"), int)
        return self._chooses_rows(func, args, kwargs, output)

    def _joins_unequal(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
        """Return whether tensors are joined that may have different numbers of rows per record."""
        parts = list(tensors_in((*args[:1], kwargs.get("tensors", ()))))
        if not parts or not parts[0].dim():
            return False
        dimensions = parts[0].dim()
        dimension = args[1] if len(args) > 1 else kwargs.get("dim", kwargs.get("axis", 0))
        dimension = dimension % dimensions if isinstance(dimension, int) else 0
        if dimension == dimensions - 1 > 0 and parts[0].is_floating_point():
            return False  # features
        if dimension == 0 and self._stacks_in_another_order(parts):
            return True
        sizes = [part.shape[dimension] for part in parts if part.dim() == dimensions]
        whole = len(parts) % self.records == 0 or sizes[0] % self.records == 0
        if len(set(sizes)) == 1 and whole:
            return False
        return not self._has_records(parts[0], dimension)

    def _has_records(self, tensor: Tensor, besides: int) -> bool:
        """Return whether another dimension may count records; the last one counts features."""
        return any(
            size and size % self.records == 0
            for d, size in enumerate(tensor.shape[:-1])
            if d != besides
        )

    def _writes_rows(self, tensor: Tensor, index: Any) -> bool:
        """Return whether a part of the rows is written to, as the tokens of one record."""
        first = index[0] if isinstance(index, tuple) and index else index
        some = isinstance(first, int) or (
            isinstance(first, slice) and (first.start, first.stop) != (None, None)
        )
        return (
            some
            and tensor.dim() > 0
            and len(tensor) != self.records
            and not self._has_records(tensor, 0)
        )

    def _chooses_rows(
        self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any
    ) -> bool:
        """Return whether rows are chosen, in whatever order, from those of an activation."""
        if not args:
            return True
        table = args[1] if func is functional.embedding and len(args) > 1 else args[0]
        if not isinstance(table, Tensor) or not isinstance(output, Tensor) or not table.dim():
            return False
        if func is functional.embedding:
            if not table.requires_grad or table.is_leaf:
                return False
        elif func in ALONG_ROWS:
            dimension = kwargs.get("dim", next((a for a in args[1:] if isinstance(a, int)), None))
            if isinstance(dimension, int) and dimension % table.dim():
                return False
        elif func is GET_ITEM:
            parts = args[1] if isinstance(args[1], tuple) else (args[1],)
            if not parts or not isinstance(parts[0], Tensor | list) or self._are_own(parts[0]):
                return False
        restored = output.dim() and len(output) == self.records != len(table)
        return not restored

    def _are_own(self, index: Any) -> bool:
        """Return whether an index takes entries of record i for row i, in the records' order."""
        if not isinstance(index, Tensor) or index.dim() < 2 or len(index) != self.records:
            return False
        numbers = torch.arange(self.records, device=index.device)
        return bool((index.flatten(1) == numbers[:, None]).all())
