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
        """Return ``tensor`` with its records in front.

        Where one dimension counts records alone, or what it counts besides lies in front of
        it, the shape is ``(records, ...)``. Where each record has k rows of the first
        dimension, as an operation on images has them of a record's several images, it is
        ``(records * k, ...)`` with all rows of the first record first.
        """

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
    """One dimension holds all ``rows`` of the first record, then all of the second, ..."""

    dimension: int
    rows: int

    def first(self, tensor: Tensor, records: int) -> Tensor:
        """See ``Layout``."""
        if self.dimension == 0:
            return tensor
        shape = tensor.shape
        apart = (*shape[: self.dimension], records, self.rows, *shape[self.dimension + 1 :])
        return tensor.reshape(apart).movedim(self.dimension, 0)

    def holds(self, shape: torch.Size, records: int) -> bool:
        """See ``Layout``."""
        return shape[self.dimension] == records * self.rows


@dataclass(frozen=True)
class InTurns:
    """One dimension holds the first row of all records, then the second, up to ``rows``."""

    dimension: int
    rows: int

    def first(self, tensor: Tensor, records: int) -> Tensor:
        """See ``Layout``."""
        shape = tensor.shape
        apart = (*shape[: self.dimension], self.rows, records, *shape[self.dimension + 1 :])
        found = tensor.reshape(apart).movedim(self.dimension + 1, 0)
        return found.flatten(0, 1) if self.dimension == 0 else found

    def holds(self, shape: torch.Size, records: int) -> bool:
        """See ``Layout``."""
        return shape[self.dimension] == records * self.rows


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


def reaches_only(gradient: Tensor, layout: Layout, group: Tensor) -> bool:
    """Return whether a gradient is zero but for the records in ``group``, shape ``(records,)``."""
    records = len(group)
    touched = _touched(layout.first(gradient, records).reshape(records, -1), 0)
    return not bool((touched & ~group).any())


def _fits(gradients: Mapping[int, Tensor], layout: Layout, records: int) -> bool:
    """Return whether each record's loss reached that record's rows alone."""
    return all(
        reaches_only(gradient, layout, torch.arange(records, device=gradient.device) == record)
        for record, gradient in gradients.items()
    )


def _candidates(shape: torch.Size, records: int) -> list[Layout]:
    """Return all layouts that a shape allows, the usual ones first.

    The last dimension counts features.
    """
    found: list[Layout] = []
    dimensions = range(max(1, len(shape) - 1))
    found += [AlongDimension(d) for d in dimensions if shape[d] == records]
    larger = [d for d in dimensions if shape[d] > records and shape[d] % records == 0]
    found += [InBlocks(d, shape[d] // records) for d in larger]
    found += [InTurns(d, shape[d] // records) for d in larger]
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
    one, other = reached.values()
    alike = all(
        torch.equal(_touched(one, d), _touched(other, d)) for d in range(max(1, len(shape) - 1))
    )
    return Shared() if alike and shape[0] != records else Mixed()
