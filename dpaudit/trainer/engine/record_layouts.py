"""Layouts: where an operation has its records.

Layouts are found from gradients, not from shapes. The gradient of record i's loss is nonzero
in the rows of record i alone; the layout that this fits for all tested records is the one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor

from dpaudit.trainer.engine.chosen_rows import ChosenRows


class RecordLayout(Protocol):
    """Protocol of a layout: how to bring the records of a tensor to the front."""

    def first(self, tensor: Tensor, records: int) -> Tensor:
        """Return the tensor with its records in front.

        The shape is ``(records, ...)`` if one dimension counts records alone, or if other
        dimensions lie in front of it. If each record has k rows of the first dimension, as several
        images of one record, the shape is ``(records * k, ...)``, record by record.

        Args:
            tensor: An operation's input, output or output gradient.
            records: Number of records in the batch.

        Returns:
            A view or a copy with the records first.

        Raises:
            ValueError: If the layout is not known.
        """

    def holds(self, shape: torch.Size, records: int) -> bool:
        """Return whether a shape can have that many records in this layout.

        Args:
            shape: Shape of an operation's output.
            records: Number of records in the batch.

        Returns:
            False for layouts without a known place of records.
        """


@dataclass(frozen=True)
class AlongDimension:
    """One dimension counts the records."""

    dimension: int

    def first(self, tensor: Tensor, records: int) -> Tensor:
        """Return the tensor with that dimension moved to the front."""
        return tensor.movedim(self.dimension, 0) if self.dimension else tensor

    def holds(self, shape: torch.Size, records: int) -> bool:
        """Return whether the dimension has length ``records``."""
        return shape[self.dimension] == records


@dataclass(frozen=True)
class InBlocks:
    """One dimension holds ``rows`` rows of the first record, then of the second, and so on."""

    dimension: int
    rows: int

    def first(self, tensor: Tensor, records: int) -> Tensor:
        """Return the tensor with blocks in front; it is so already in dimension 0."""
        if self.dimension == 0:
            return tensor
        shape = tensor.shape
        apart = (*shape[: self.dimension], records, self.rows, *shape[self.dimension + 1 :])
        return tensor.reshape(apart).movedim(self.dimension, 0)

    def holds(self, shape: torch.Size, records: int) -> bool:
        """Return whether the dimension has length ``records * rows``."""
        return shape[self.dimension] == records * self.rows


@dataclass(frozen=True)
class Interleaved:
    """One dimension holds the first row of all records, then the second of all, up to ``rows``."""

    dimension: int
    rows: int

    def first(self, tensor: Tensor, records: int) -> Tensor:
        """Return the tensor with the rows of each record brought together, in front."""
        shape = tensor.shape
        apart = (*shape[: self.dimension], self.rows, records, *shape[self.dimension + 1 :])
        found = tensor.reshape(apart).movedim(self.dimension + 1, 0)
        return found.flatten(0, 1) if self.dimension == 0 else found

    def holds(self, shape: torch.Size, records: int) -> bool:
        """Return whether the dimension has length ``records * rows``."""
        return shape[self.dimension] == records * self.rows


@dataclass(frozen=True)
class Shared:
    """The operation ran once for all records, as on positions; no record has rows of its own."""

    def first(self, tensor: Tensor, records: int) -> Tensor:
        """Return the single row, repeated for every record."""
        return tensor.expand(records, *tensor.shape[1:])

    def holds(self, shape: torch.Size, records: int) -> bool:
        """Return False: the plan spreads such rows, after which they have another layout."""
        return False


@dataclass(frozen=True)
class Routed:
    """The rows were chosen by their number, as tokens of an expert; a record may have none.

    Attributes:
        source: Layout of the rows from which they were chosen.
        dimension: Dimension of the rows.
        rows: Numbers of the rows of one run; None in a plan.
    """

    source: InBlocks | Interleaved
    dimension: int = 0
    rows: ChosenRows | None = field(default=None, compare=False)

    def first(self, tensor: Tensor, records: int) -> Tensor:
        """Return k rows per record, record by record, and zeros where a record has fewer."""
        if self.rows is None:
            raise ValueError("the rows of the records are unknown")
        moved = tensor.movedim(self.dimension, 0)
        owners = self.rows.owners(records, in_turns=isinstance(self.source, Interleaved))
        counts = torch.bincount(owners, minlength=records)
        most = max(1, int(counts.max())) if records else 1
        order = torch.argsort(owners, stable=True)
        owner = owners[order]
        number = torch.arange(len(owner), device=owner.device) - (counts.cumsum(0) - counts)[owner]
        padded = moved.new_zeros(records, most, *moved.shape[1:])
        padded[owner, number] = moved[order]
        return padded.flatten(0, 1)

    def holds(self, shape: torch.Size, records: int) -> bool:
        """Return whether the rows come from equally many rows of each record."""
        return (
            self.rows is not None
            and self.rows.total % records == 0
            and len(self.rows.numbers) == shape[self.dimension]
        )


def in_plan(layout: RecordLayout) -> RecordLayout:
    """Return a layout without the rows of one run.

    Args:
        layout: Any layout.

    Returns:
        The layout for other runs.
    """
    return replace(layout, rows=None) if isinstance(layout, Routed) else layout


def in_run(layout: RecordLayout, rows: ChosenRows | None) -> RecordLayout:
    """Return a plan's layout for one run, in which rows may have been chosen.

    Args:
        layout: Layout of an operation.
        rows: Rows that the operation got in this run; None if none were chosen.

    Returns:
        The layout with its rows; ``Ambiguous`` if only one of the two is about chosen rows.
    """
    if isinstance(layout, Routed):
        return Ambiguous() if rows is None else replace(layout, rows=rows)
    return layout if rows is None else Ambiguous()


@dataclass(frozen=True)
class Ambiguous:
    """More than one layout fits."""

    def first(self, tensor: Tensor, records: int) -> Tensor:
        """Raise ValueError, as the place of the records is unknown."""
        raise ValueError("the place of the records is unknown")

    def holds(self, shape: torch.Size, records: int) -> bool:
        """Return False: the place of the records is unknown."""
        return False


@dataclass(frozen=True)
class Mixed:
    """The loss of one record depends on the rows of other records."""

    def first(self, tensor: Tensor, records: int) -> Tensor:
        """Raise ValueError, as no record has rows of its own."""
        raise ValueError("records are mixed here")

    def holds(self, shape: torch.Size, records: int) -> bool:
        """Return False: no record has rows of its own."""
        return False


def _indices_with_gradient(gradient: Tensor, dimension: int) -> Tensor:
    """Return which indices of a dimension have a nonzero gradient; NaN counts as zero (0 * inf)."""
    others = tuple(d for d in range(gradient.dim()) if d != dimension)
    touched = (gradient != 0) & ~torch.isnan(gradient)
    return touched.any(dim=others) if others else touched


def reaches_only(gradient: Tensor, layout: RecordLayout, group: Tensor) -> bool:
    """Return whether a gradient is zero outside of the rows of some records.

    Args:
        gradient: Gradient of an operation's output.
        layout: Assumed layout of the output.
        group: Mask of the records that may have a gradient, shape ``(records,)``.

    Returns:
        False if any other record has a nonzero entry.
    """
    records = len(group)
    touched = _indices_with_gradient(layout.first(gradient, records).reshape(records, -1), 0)
    return not bool((touched & ~group).any())


def _fits(gradients: Mapping[int, Tensor], layout: RecordLayout, records: int) -> bool:
    """Return whether the loss of each tested record reaches that record's rows alone."""
    return all(
        reaches_only(gradient, layout, torch.arange(records, device=gradient.device) == record)
        for record, gradient in gradients.items()
    )


def _candidates(shape: torch.Size, records: int) -> list[RecordLayout]:
    """Return all layouts that a shape allows, the most common first.

    The last dimension is not a candidate, as it counts features.
    """
    found: list[RecordLayout] = []
    dimensions = range(max(1, len(shape) - 1))
    found += [AlongDimension(d) for d in dimensions if shape[d] == records]
    larger = [d for d in dimensions if shape[d] > records and shape[d] % records == 0]
    found += [InBlocks(d, shape[d] // records) for d in larger]
    found += [Interleaved(d, shape[d] // records) for d in larger]
    return found


def find_routed_layout(
    rows: ChosenRows, gradients: Mapping[int, Tensor | None], records: int
) -> RecordLayout:
    """Return the layout of an operation on rows that were chosen by their number.

    Args:
        rows: The rows.
        gradients: The output's gradient of the loss of some records, by record number.
        records: Number of records in the batch.

    Returns:
        The first layout that fits; ``Ambiguous`` if none does.
    """
    if rows.total % records:
        return Ambiguous()
    each = rows.total // records
    reached = {r: g for r, g in gradients.items() if g is not None}
    for source in (InBlocks(0, each), Interleaved(0, each)):
        layout = Routed(source, rows=rows)
        if _fits(reached, layout, records):
            return layout
    return Ambiguous()


def find_layout_of_groups(
    shape: torch.Size, gradients: Sequence[tuple[Tensor, Tensor | None]], records: int
) -> RecordLayout:
    """Return the layout of an output that the losses of some records do not reach.

    Args:
        shape: Shape of the output.
        gradients: Masks of groups of records that tell any two records apart, shape
            ``(records,)``, and the output's gradient of the sum of their losses.
        records: Number of records in the batch.

    Returns:
        The only layout that fits; ``Ambiguous`` if there is none.
    """
    reached = [(group, g) for group, g in gradients if g is not None and bool((g != 0).any())]
    fitting = [
        each
        for each in _candidates(shape, records)
        if reached and all(reaches_only(g, each, group) for group, g in reached)
    ]
    return fitting[0] if len(fitting) == 1 else Ambiguous()


def find_layout(
    shape: torch.Size, gradients: Mapping[int, Tensor | None], records: int
) -> RecordLayout:
    """Return the layout of an operation's output.

    Args:
        shape: Shape of the output.
        gradients: The output's gradient of the loss of the first and of the last record, by
            record number; None if the loss does not depend on the output.
        records: Number of records in the batch, at least 2.

    Returns:
        The only layout that fits; otherwise ``Ambiguous``, ``Shared`` or ``Mixed``.
    """
    reached = {r: g for r, g in gradients.items() if g is not None and bool((g != 0).any())}
    fitting = [each for each in _candidates(shape, records) if _fits(reached, each, records)]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:  # too few nonzero gradients to decide
        return Ambiguous()
    if len(reached) < len(gradients):
        return Mixed()
    # Both losses reach the same indices. The operation ran once for all, unless its first
    # dimension could count the records: then its records are mixed.
    one, other = reached.values()
    alike = all(
        torch.equal(_indices_with_gradient(one, d), _indices_with_gradient(other, d))
        for d in range(max(1, len(shape) - 1))
    )
    return Shared() if alike and shape[0] != records else Mixed()


def counts_rows(layout: RecordLayout) -> bool:
    """Return whether a layout holds only where records have equally many rows.

    Args:
        layout: Any layout.

    Returns:
        Whether owners of rows follow from the number of rows, or rows are records themselves.
    """
    return isinstance(layout, InBlocks | Interleaved) or layout == AlongDimension(0)


def record_dimension(layout: RecordLayout) -> int | None:
    """Return the dimension that counts records.

    Args:
        layout: Any layout.

    Returns:
        The dimension; None if none is known.
    """
    return getattr(layout, "dimension", None)
