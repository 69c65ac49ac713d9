"""Gradient plans: where each operation has its records, and which parameters have rules.

Layouts are found from gradients, not from shapes. The gradient of record i's loss is nonzero
in the rows of record i alone; the layout that this fits for all tested records is the one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from dpaudit.trainer.engine.batch_structure import Batch, take_records
from dpaudit.trainer.engine.per_record_gradients import PerSampleLoss
from dpaudit.trainer.engine.tape import ParameterUse, Tape
from dpaudit.vocabulary.errors import InvalidArgument

# Layouts: where an operation has its records.


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
        return tensor.movedim(self.dimension, 0)

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


# Plans.

MAX_PLAN_ATTEMPTS = 8
"""Runs until a plan must hold; each run gives up rules or spreads rows."""


@dataclass(frozen=True)
class GradientPlan:
    """How to take the per-record gradients of a model.

    Attributes:
        by_rule: Names of parameters whose every use has a rule.
        others: Names of parameters whose gradients are taken record by record.
        layouts: Layout of each use, in order of execution.
        spread: Numbers of the uses whose single row is repeated for every record.
        uses: Names and numbers of dimensions of all uses. A batch that differs needs its own
            plan.
        numbers: Entries of all output gradients of one record, held until norms are known.
    """

    by_rule: tuple[str, ...]
    others: tuple[str, ...]
    layouts: tuple[RecordLayout, ...]
    spread: frozenset[int]
    uses: tuple[tuple[str, int], ...]
    numbers: int

    def recorded_alike(self, other: GradientPlan) -> bool:
        """Return whether one recorded run serves both plans.

        Args:
            other: A plan for the same model.

        Returns:
            Whether both put the same parameters and uses under rules.
        """
        return self.by_rule == other.by_rule and self.spread == other.spread

    def fits(self, uses: list[ParameterUse], records: int) -> bool:
        """Return whether a run of the model used its parameters as the plan assumes.

        Args:
            uses: The uses that were recorded, in order of execution.
            records: Number of records of the run.

        Returns:
            True if operations, dimensions and layouts agree.
        """
        return self.uses == uses_signature(uses) and all(
            layout.holds(use.shape, records) for use, layout in zip(uses, self.layouts, strict=True)
        )


def run_on_tape(tape: Tape, loss: PerSampleLoss, model: nn.Module, batch: Batch) -> Tensor | None:
    """Return the losses of a run that is recorded on a tape.

    Rules run on detached parameters, so a second derivative would be lost.

    Args:
        tape: A new tape, which holds the uses afterwards.
        loss: Function of (model, batch) that returns one loss per record.
        model: The model to run.
        batch: The records.

    Returns:
        The losses; None if the loss takes gradients itself.

    Raises:
        Exception: Whatever the model or the loss raises.
    """
    try:
        with tape:
            losses = loss(model, batch)
    except Exception:
        if tape.differentiates:  # for example of a detached parameter
            return None
        raise
    return None if tape.differentiates else losses


def plan_record_by_record(model: nn.Module) -> GradientPlan:
    """Return the plan without rules, which is always right.

    Args:
        model: Model whose trained parameters are covered.

    Returns:
        A plan that differentiates the loss of each record.
    """
    names = tuple(name for name, p in model.named_parameters() if p.requires_grad)
    return GradientPlan((), names, (), frozenset(), (), 0)


def uses_signature(uses: list[ParameterUse]) -> tuple[tuple[str, int], ...]:
    """Return operations and numbers of dimensions, which must be equal for a plan to fit.

    Args:
        uses: Recorded uses, in order of execution.

    Returns:
        One (name, dimensions) pair per use.
    """
    return tuple((use.name, len(use.shape)) for use in uses)


def make_plan(
    model: nn.Module, loss: PerSampleLoss, batch: Batch, records: int
) -> GradientPlan | None:
    """Make a plan from a batch of at least two records.

    Args:
        model: The model to run.
        loss: Function of (model, batch) that returns one loss per record.
        batch: The records.
        records: Their number.

    Returns:
        The plan; None if the loss takes gradients itself.

    Raises:
        InvalidArgument: If an operation mixes records; the error names the parameters. Or if
            the model does not run the same way twice.
    """
    try:
        return _try_plan(model, loss, batch, records)
    except InvalidArgument:
        # With as many positions as records, a shared use appears to mix records.
        # One more record separates the two numbers.
        more = take_records(batch, torch.tensor([*range(records), 0]))
        return _try_plan(model, loss, more, records + 1)


def _try_plan(
    model: nn.Module, loss: PerSampleLoss, batch: Batch, records: int
) -> GradientPlan | None:
    """Repeat the run with fewer rules until every remaining rule holds; return that plan."""
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    by_rule, spread = dict(named), frozenset[int]()
    for _ in range(MAX_PLAN_ATTEMPTS):
        tape = Tape(by_rule.values(), spread, records)
        losses = run_on_tape(tape, loss, model, batch)
        if losses is None:
            return None
        # Gradients of the losses of the first and of the last record, with respect to the
        # outputs of all uses and to the parameters themselves.
        passes = [
            tape.gradients(losses[record], list(named.values()), retain_graph=True)
            for record in (0, -1)
        ]
        (first, _), (last, _) = passes
        # A parameter that still receives a gradient was used by an operation without a rule.
        reached = [
            any(g is not None for g in pair) for pair in zip(*(o for _, o in passes), strict=True)
        ]
        layouts = [
            find_layout(use.shape, {0: a, records - 1: b}, records)
            for use, a, b in zip(tape.uses, first, last, strict=True)
        ]
        layouts = _confirmed_layouts(tape, layouts, losses)
        unclear = [
            n
            for n, found in enumerate(zip(first, last, strict=True))
            if any(g is None or not bool((g != 0).any()) for g in found)
            or isinstance(layouts[n], Ambiguous)
        ]
        clear = [n for n in range(len(layouts)) if n not in unclear]
        _require_apart([tape.uses[n] for n in clear], [layouts[n] for n in clear], named)
        unknown = {id(p) for p, hit in zip(named.values(), reached, strict=True) if hit}
        shared = [n for n, layout in enumerate(layouts) if isinstance(layout, Shared)]
        # Where no gradient arrives, the layout is unknown: these parameters lose their rules.
        fixed = [*unclear, *(n for n in shared if tape.uses[n].shape[0] != 1)]
        unknown |= {id(p) for n in fixed for p in tape.uses[n].operation.parameters}
        left = {name: p for name, p in by_rule.items() if id(p) not in unknown}
        if len(left) == len(by_rule) and not shared:
            others = tuple(name for name in named if name not in left)
            numbers = sum(use.shape.numel() for use in tape.uses) // records
            uses = uses_signature(tape.uses)
            return GradientPlan(tuple(left), others, tuple(layouts), spread, uses, numbers)
        # Without some parameters, uses are numbered differently. So rows are spread only in
        # a run in which no parameter lost its rules.
        spread = spread | frozenset(shared) if len(left) == len(by_rule) else frozenset()
        by_rule = left
    raise InvalidArgument("model", type(model).__name__, "one that runs the same way twice")


def _confirmed_layouts(
    tape: Tape, layouts: list[RecordLayout], losses: Tensor
) -> list[RecordLayout]:
    """Return the layouts; those by rows only if every record's loss reaches its own rows alone.

    The first and the last record do not show whether the others have as many rows, as tokens
    without padding may not. For each bit of the record number, two passes take the losses of
    the records with and without that bit. Any two records differ in some bit.
    """
    rows = [n for n, layout in enumerate(layouts) if isinstance(layout, InBlocks | Interleaved)]
    found = list(layouts)
    records = len(losses)
    numbers = torch.arange(records, device=losses.device)
    for bit in range((records - 1).bit_length() if rows else 0):
        for group in ((numbers >> bit) & 1 == 1, (numbers >> bit) & 1 == 0):
            reached, _ = tape.gradients(losses[group].sum(), retain_graph=True)
            for n in rows:
                gradient = reached[n]
                if gradient is not None and not reaches_only(gradient, layouts[n], group):
                    found[n] = Ambiguous()
    return found


def _require_apart(
    uses: list[ParameterUse], layouts: list[RecordLayout], named: Mapping[str, Tensor]
) -> None:
    """Refuse uses in which the loss of one record reaches other records' rows."""
    for use, layout in zip(uses, layouts, strict=True):
        if isinstance(layout, Mixed):
            ids = {id(p) for p in use.operation.parameters}
            names = ", ".join(name for name, p in named.items() if id(p) in ids)
            raise InvalidArgument(
                "model",
                f"{use.name} with {names}",
                "without operations that mix records: the loss of one record depends on others "
                "(replace batch normalization by GroupNorm or LayerNorm)",
            )
