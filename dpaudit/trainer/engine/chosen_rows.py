"""Rows that records choose: tokens of an expert, masked positions, packed sequences.

Where a tensor is indexed by numbers of rows, the owner of each row follows from the numbers.
Operations that treat rows one by one keep the owners.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from weakref import ref

import torch
from torch import Tensor
from torch.nn import functional

from dpaudit.trainer.engine.broadcast_uses import ELEMENTWISE, IN_PLACE
from dpaudit.trainer.engine.parameter_functions import (
    CASTING,
    is_basic,
    tensors_in,
    torch_functions,
)
from dpaudit.trainer.engine.unequal_rows import SUSPECTS, UnequalRows


@dataclass(frozen=True, eq=False)
class ChosenRows:
    """Rows along the first dimension of a tensor, by their numbers in another tensor.

    Attributes:
        numbers: Numbers of the rows, shape ``(rows,)``.
        total: Number of rows from which they were chosen.
    """

    numbers: Tensor
    total: int

    @property
    def are_all(self) -> bool:
        """Whether these are all rows in their order."""
        numbers = self.numbers
        return len(numbers) == self.total and torch.equal(
            numbers, torch.arange(self.total, device=numbers.device, dtype=numbers.dtype)
        )

    def owners(self, records: int, *, in_turns: bool) -> Tensor:
        """Return the record of each row.

        Args:
            records: Number of records.
            in_turns: Whether the rows were the first ones of all records, then the second ones.

        Returns:
            Record numbers, shape ``(rows,)``.

        Raises:
            ValueError: If the records had different numbers of rows.
        """
        if self.total % records:
            raise ValueError("records have different numbers of rows")
        if in_turns:
            return self.numbers % records
        return self.numbers // (self.total // records)

    def chosen(self, places: Tensor) -> ChosenRows:
        """Return some of the rows.

        Args:
            places: Their places among these rows.

        Returns:
            The rows at these places.
        """
        return ChosenRows(self.numbers[places], self.total)


INTEGERS = frozenset({torch.int32, torch.int64})

BY_ROW = (
    ELEMENTWISE
    | IN_PLACE
    | CASTING
    | torch_functions((
        "neg", "exp", "log", "sqrt", "rsqrt", "square", "abs", "sigmoid", "tanh", "relu", "silu",
        "gelu", "erf", "sin", "cos", "softplus", "clone", "contiguous", "chunk", "split",
        "unsqueeze", "squeeze", "reshape", "view", "flatten", "dropout", "mean", "sum", "softmax",
        "log_softmax", "matmul", "__matmul__", "mm", "addmm", "selu", "prelu", "masked_fill",
        "layer_norm", "rms_norm", "relu_", "sigmoid_", "tanh_", "__getitem__", "_grouped_mm",
    ))
    | {
        getattr(functional, name)
        for name in (
            "linear", "gelu", "relu", "silu", "dropout", "softmax", "layer_norm", "rms_norm",
            "softplus", "leaky_relu", "elu", "selu", "hardswish", "mish", "logsigmoid", "glu",
            "log_softmax", "embedding", "sigmoid", "tanh", "relu6",
        )
    }
)  # fmt: skip
"""Functions that keep the rows of their first dimension, if the result has as many."""

GET_ITEM, SORT = Tensor.__getitem__, torch_functions(("sort",))
PADDING = torch_functions(("_pad_packed_sequence",))
PACKING = torch_functions(("_pack_padded_sequence",))
SELECTING = torch_functions(("index_select",))
BEGINNINGS = SUSPECTS | SORT | PADDING | PACKING | SELECTING | {GET_ITEM}
"""Functions whose results may have chosen or unequal rows although no argument has them."""


class RowsOfRun:
    """Follows which rows tensors of a run consist of.

    Args:
        records: Number of records of the run.

    Attributes:
        unequal: Tensors whose rows are not known by their numbers, and may be unequal.
    """

    def __init__(self, records: int) -> None:
        self.unequal = UnequalRows(records)
        self._known: dict[int, tuple[ref[Tensor], ChosenRows]] = {}
        self._second: dict[int, ChosenRows] = {}  # along the second dimension
        self._held: list[Tensor] = []  # so that no other tensor gets their identity

    def find(self, tensor: Any) -> ChosenRows | None:
        """Return the rows of a tensor.

        Args:
            tensor: Any argument of a call.

        Returns:
            Its rows if they were chosen by their number.
        """
        known = self._known.get(id(tensor)) if self._known else None
        return known[1] if known is not None and known[0]() is tensor else None

    def among(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> ChosenRows | None:
        """Return the rows of the first argument that consists of chosen rows.

        Args:
            args: Positional arguments of a call.
            kwargs: Its keyword arguments.

        Returns:
            The rows, or None.
        """
        if not self._known:
            return None
        found = (self.find(t) for t in tensors_in((*args, *kwargs.values())))
        return next((rows for rows in found if rows is not None), None)

    def follow(
        self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any
    ) -> None:
        """Note the rows of a call's results.

        Args:
            func: The function of torch that was called.
            args: Its positional arguments.
            kwargs: Its keyword arguments.
            output: Its result.
        """
        if not self._known and func not in BEGINNINGS and not self.unequal.has_any:
            return
        if self._follow_numbers(func, args, kwargs, output):
            return
        known = (lambda tensor: self.find(tensor) is not None) if self._known else None
        self.unequal.follow(func, args, kwargs, output, known)

    def _follow_numbers(
        self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any
    ) -> bool:
        """Note the numbers of the rows of results; return whether they are all, in their order."""
        if func in SELECTING and len(args) == 3 and args[1] == 1:
            self._second[id(output)] = ChosenRows(args[2], args[0].shape[1])
            self._held.append(output)
        rows = self._chosen(func, args, output)
        by_row = func in BY_ROW and (func is not GET_ITEM or is_basic(args[1]))
        if rows is None and self._known and by_row:
            rows = self.among(args, kwargs)
        if rows is None:
            return func is GET_ITEM and self._restores(args[0], args[1])
        if rows.are_all:
            return True
        for tensor in tensors_in([output]):
            if tensor.dim() and len(tensor) == len(rows.numbers):
                self._known[id(tensor)] = ref(tensor), rows
        return False

    def _restores(self, tensor: Tensor, index: Any) -> bool:
        """Return whether an index takes the rows of each record in turn, as padding does."""
        known, records = self.find(tensor), self.unequal.records
        if known is None or not isinstance(index, Tensor) or index.dtype not in INTEGERS:
            return False
        if index.dim() < 2 or len(index) != records or known.total % records:
            return False
        first = index.flatten(1)[:, 0]
        numbers = torch.arange(records, device=first.device)
        return any(
            torch.equal(known.owners(records, in_turns=turns)[first], numbers)
            for turns in (False, True)
        )

    def _chosen(self, func: Any, args: tuple[Any, ...], output: Any) -> ChosenRows | None:
        """Return the rows that a call chooses from its first argument."""
        if func is GET_ITEM:
            found = _numbers(args[0], args[1])
        elif func in SELECTING and len(args) == 3 and args[1] == 0:
            found = args[2], len(args[0])
        elif func in PACKING:
            return self._packed(args, output)
        elif func in PADDING:
            return self._padded(args)
        elif func in SORT and len(args) == 1 and args[0].dim() == 1:
            found = output[1], len(args[0])
        else:
            return None
        if found is None:
            return None
        known = self.find(args[0])
        if known is None:  # of unequal rows, a number does not show the owner
            return None if self.unequal.holds(args[0]) else ChosenRows(*found)
        return known.chosen(found[0]) if found[1] == len(known.numbers) else None

    def _packed(self, args: tuple[Any, ...], output: Any) -> ChosenRows | None:
        """Return the rows of packed sequences: at each time, those that are not at their end."""
        padded, _, batch_first = args
        sizes = output[1].to(output[0].device)
        known = self.find(padded) if batch_first else self._second.get(id(padded))
        sequence = torch.cat([torch.arange(int(size)) for size in sizes]).to(output[0].device)
        if known is not None:
            return known.chosen(sequence)
        if self.unequal.holds(padded):
            return None
        return ChosenRows(sequence, padded.shape[0 if batch_first else 1])

    def _padded(self, args: tuple[Any, ...]) -> ChosenRows | None:
        """Return the rows of sequences that are padded again, of which each is one record's."""
        rows, sizes, batch_first = args[:3]
        known, sequences = self.find(rows), int(sizes[0])
        if known is None or not batch_first or known.total % sequences:
            return None
        return ChosenRows(known.numbers[:sequences] // (known.total // sequences), sequences)


def _numbers(tensor: Tensor, index: Any) -> tuple[Tensor, int] | None:
    """Return the numbers of the rows that an index chooses, and of how many."""
    parts = index if isinstance(index, tuple) else (index,)
    chosen = [part for part in parts if isinstance(part, Tensor)]
    rest = parts[len(chosen) :]
    if not chosen or not all(part is c for part, c in zip(parts, chosen, strict=False)):
        return None
    if not is_basic(rest):
        return None
    if len(chosen) == 1 and chosen[0].dtype == torch.bool:
        mask = chosen[0].detach()
        return mask.flatten().nonzero().squeeze(1), mask.numel()
    if any(part.dim() != 1 or part.dtype not in INTEGERS for part in chosen):
        return None
    number = torch.zeros_like(chosen[0])
    for part, size in zip(chosen, tensor.shape, strict=False):
        number = number * size + torch.where(part < 0, part + size, part)
    return number, math.prod(tensor.shape[: len(chosen)])
