"""Where an operation has its records: found from gradients, not from shapes.

The loss of record j sends gradient to the rows of record j alone. So the loss of the first
record and that of the last show which dimension counts records, whether records come in
front of positions where both share a dimension, whether all records share one row, and
whether anything mixes them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Layout(Protocol):
    """How to bring a tensor's records to the front."""

    def first(self, tensor: Tensor, records: int) -> Tensor:
        """Return ``tensor`` with shape ``(records, ...)``."""

    def holds(self, shape: torch.Size, records: int) -> bool:
        """Return whether a tensor of that shape may have ``records`` records there."""


@dataclass(frozen=True)
class AlongDimension:
    """One dimension counts records."""

    dimension: int

    def first(self, tensor: Tensor, records: int) -> Tensor:
        """See ``Layout``."""
        return tensor.movedim(self.dimension, 0)

    def holds(self, shape: torch.Size, records: int) -> bool:
        """See ``Layout``."""
        return shape[self.dimension] == records


@dataclass(frozen=True)
class InBlocks:
    """One dimension holds all positions of the first record, then all of the second, ..."""

    dimension: int

    def first(self, tensor: Tensor, records: int) -> Tensor:
        """See ``Layout``."""
        shape = tensor.shape
        apart = (*shape[: self.dimension], records, -1, *shape[self.dimension + 1 :])
        return tensor.reshape(apart).movedim(self.dimension, 0)

    def holds(self, shape: torch.Size, records: int) -> bool:
        """See ``Layout``."""
        return shape[self.dimension] % records == 0


@dataclass(frozen=True)
class InTurns:
    """One dimension holds the first position of all records, then the second, ..."""

    dimension: int

    def first(self, tensor: Tensor, records: int) -> Tensor:
        """See ``Layout``."""
        shape = tensor.shape
        apart = (*shape[: self.dimension], -1, records, *shape[self.dimension + 1 :])
        return tensor.reshape(apart).movedim(self.dimension + 1, 0)

    def holds(self, shape: torch.Size, records: int) -> bool:
        """See ``Layout``."""
        return shape[self.dimension] % records == 0


@dataclass(frozen=True)
class Shared:
    """The operation ran once for all records, as on positions: nobody's share is known."""

    def first(self, tensor: Tensor, records: int) -> Tensor:
        """See ``Layout``."""
        return tensor.expand(records, *tensor.shape[1:])

    def holds(self, shape: torch.Size, records: int) -> bool:
        """See ``Layout``."""
        return False


@dataclass(frozen=True)
class Unclear:
    """Records may be in one place or another."""

    def first(self, tensor: Tensor, records: int) -> Tensor:
        """See ``Layout``."""
        raise ValueError("it is not known where records are here")

    def holds(self, shape: torch.Size, records: int) -> bool:
        """See ``Layout``."""
        return False


@dataclass(frozen=True)
class Mixed:
    """One record's loss reached other records' rows."""

    def first(self, tensor: Tensor, records: int) -> Tensor:
        """See ``Layout``."""
        raise ValueError("records are mixed here")

    def holds(self, shape: torch.Size, records: int) -> bool:
        """See ``Layout``."""
        return False


def _touched(gradient: Tensor, dimension: int) -> Tensor:
    """Return which indices of a dimension hold any gradient; NaN is none, as 0 inf is NaN."""
    others = tuple(d for d in range(gradient.dim()) if d != dimension)
    touched = (gradient != 0) & ~torch.isnan(gradient)
    return touched.any(dim=others) if others else touched


def _fits(gradients: Mapping[int, Tensor], layout: Layout, records: int) -> bool:
    """Return whether each record's loss reached that record's rows alone."""
    for record, gradient in gradients.items():
        touched = _touched(layout.first(gradient, records), 0)
        if bool(touched[:record].any()) or bool(touched[record + 1 :].any()):
            return False
    return True


def _candidates(shape: torch.Size, records: int) -> list[Layout]:
    """Return all layouts that a shape allows, the usual ones first.

    The last dimension counts features.
    """
    found: list[Layout] = []
    dimensions = range(max(1, len(shape) - 1))
    found += [AlongDimension(d) for d in dimensions if shape[d] == records]
    larger = [d for d in dimensions if shape[d] > records and shape[d] % records == 0]
    found += [InBlocks(d) for d in larger]
    found += [InTurns(d) for d in larger]
    return found


def layout_of(shape: torch.Size, gradients: Mapping[int, Tensor | None], records: int) -> Layout:
    """Return the layout of an operation's output.

    Args:
        shape: Of the output.
        gradients: For the first and the last record, its loss's gradient of the output;
            None: it has none.
        records: How many records the batch has; at least 2.
    """
    reached = {r: g for r, g in gradients.items() if g is not None and bool((g != 0).any())}
    fitting = [each for each in _candidates(shape, records) if _fits(reached, each, records)]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:  # too little gradient to tell which
        return Unclear()
    if len(reached) < len(gradients):
        return Mixed()
    rows = [_touched(g, 0) for g in reached.values()]
    shared = shape[0] != records and all(torch.equal(rows[0], row) for row in rows)
    return Shared() if shared else Mixed()
