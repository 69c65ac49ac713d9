"""Gradient plans: where each operation has its records, and which parameters have rules.

Layouts are found from gradients, not from shapes. The gradient of record i's loss is nonzero
in the rows of record i alone; the layout that this fits for all tested records is the one.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dpaudit.trainer.engine.batch_structure import Batch, batch_tensors, take_records
from dpaudit.trainer.engine.parameter_uses import BroadcastKey, ParameterUse
from dpaudit.trainer.engine.per_record_gradients import PerSampleLoss
from dpaudit.trainer.engine.record_layouts import (
    Ambiguous,
    InBlocks,
    Interleaved,
    Mixed,
    RecordLayout,
    Routed,
    Shared,
    counts_rows,
    find_layout,
    find_layout_of_groups,
    find_routed_layout,
    in_plan,
    in_run,
    reaches_only,
    record_dimension,
)
from dpaudit.trainer.engine.tape import Tape
from dpaudit.vocabulary.errors import InvalidArgument

MAX_PLAN_ATTEMPTS = 8
"""Runs until a plan must hold; each run gives up rules or spreads rows."""


@dataclass(frozen=True)
class GradientPlan:
    """How to take the per-record gradients of a model.

    Attributes:
        by_rule: Names of parameters whose every use has a rule.
        others: Names of parameters whose gradients are taken record by record.
        layouts: Layout of each use, in order of execution, but for those on chosen rows.
        spread: Numbers of the uses whose single row is repeated for every record.
        uses: Names and numbers of dimensions of all uses. A batch that differs needs its own
            plan.
        numbers: Entries of all output gradients of one record, held until norms are known.
        broadcasts: Dimension of the records where parameters are repeated for them.
        undecided: Those of the others that may get a rule later: no gradient has shown where
            the records of their operations are.
        freed: Entries of recomputed inputs and of their output gradients, of one record. A step
            holds them until norms are known; plain training holds one layer's at a time.
        routed: Names and numbers of dimensions of the uses on chosen rows, with their layout.
    """

    by_rule: tuple[str, ...]
    others: tuple[str, ...]
    layouts: tuple[RecordLayout, ...]
    spread: frozenset[int]
    uses: tuple[tuple[str, int], ...]
    numbers: int
    broadcasts: tuple[tuple[BroadcastKey, int], ...] = ()
    undecided: tuple[str, ...] = ()
    freed: int = 0
    routed: tuple[tuple[tuple[str, int], RecordLayout], ...] = ()

    def recorded_alike(self, other: GradientPlan) -> bool:
        """Return whether one recorded run serves both plans.

        Args:
            other: A plan for the same model.

        Returns:
            Whether both put the same parameters and uses under rules.
        """
        return (
            self.by_rule == other.by_rule
            and self.spread == other.spread
            and self.broadcasts == other.broadcasts
        )

    def fitting_layouts(
        self, uses: list[ParameterUse], records: int
    ) -> tuple[RecordLayout, ...] | None:
        """Return the layout of each use, if a run used its parameters as the plan assumes.

        Args:
            uses: The uses that were recorded, in order of execution.
            records: Number of records of the run.

        Returns:
            One layout per use; None unless operations, dimensions and layouts agree.
        """
        layouts = self.layouts_of(uses)
        if layouts is None:
            return None
        pairs = zip(uses, layouts, strict=True)
        return layouts if all(layout.holds(use.shape, records) for use, layout in pairs) else None

    def layouts_of(self, uses: list[ParameterUse]) -> tuple[RecordLayout, ...] | None:
        """Return the layout of each use in a run.

        Uses on rows that records choose may be fewer or more than in the run that was planned,
        as an expert that no token chooses may not run.

        Args:
            uses: The uses that were recorded, in order of execution.

        Returns:
            One layout per use; None if the run differs from the plan in another way.
        """
        if self.uses != uses_signature(uses):
            return None
        chosen = {signature for signature, layout in self.routed}
        routed = next((layout for _, layout in self.routed), Ambiguous())
        plain = iter(self.layouts)
        found = []
        for use in uses:
            if use.rows is None:
                found.append(layout := next(plain))
                if use.unequal and counts_rows(layout):
                    return None
            elif (use.name, len(use.shape)) in chosen:
                found.append(in_run(routed, use.rows))
            else:
                return None
        return tuple(found)


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
    tape.holds_records(batch_tensors(batch))
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
    return GradientPlan((), names, (), frozenset(), (), 0, undecided=names)


def uses_signature(uses: list[ParameterUse]) -> tuple[tuple[str, int], ...]:
    """Return operations and numbers of dimensions, which must be equal for a plan to fit.

    Args:
        uses: Recorded uses, in order of execution.

    Returns:
        One (name, dimensions) pair per use that is not on chosen rows.
    """
    return tuple((use.name, len(use.shape)) for use in uses if use.rows is None)


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
    by_rule, spread, kept = dict(named), frozenset[int](), frozenset[BroadcastKey]()
    undecided: set[int] = set()
    for _ in range(MAX_PLAN_ATTEMPTS):
        tape = Tape(by_rule.values(), spread, records, shared=kept)
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
            if use.rows is None
            else find_routed_layout(use.rows, {0: a, records - 1: b}, records)
            for use, a, b in zip(tape.uses, first, last, strict=True)
        ]
        layouts = [
            Ambiguous() if use.unequal and counts_rows(layout) else layout
            for use, layout in zip(tape.uses, layouts, strict=True)
        ]
        silent = _silent_uses(tape, first, last, losses)
        layouts = _confirmed_layouts(tape, _of_one_source(layouts), losses, silent)
        found = _find_broadcasts(tape.uses, layouts)
        unclear = [
            n
            for n, pair in enumerate(zip(first, last, strict=True))
            if isinstance(layouts[n], Ambiguous)
            or n in found.unclear
            or (any(map(_is_zero, pair)) and not (tape.uses[n].rows or n in silent))
        ]
        ours = {*unclear, *found.others}
        clear = [n for n in range(len(layouts)) if n not in ours]
        _require_apart([tape.uses[n] for n in clear], [layouts[n] for n in clear], named)
        unknown = {id(p) for p, hit in zip(named.values(), reached, strict=True) if hit}
        shared = [n for n in clear if isinstance(layouts[n], Shared)]
        # Where no gradient arrives, the layout is unknown: these parameters lose their rules.
        several = (n for n in shared if tape.uses[n].shape[0] != 1 or tape.uses[n].recomputed)
        undecided |= {source for n in unclear for source in tape.uses[n].sources} - unknown
        unknown |= {source for n in several for source in tape.uses[n].sources} | undecided
        left = {name: p for name, p in by_rule.items() if id(p) not in unknown}
        others = frozenset(key for n in found.others if (key := tape.uses[n].broadcast))
        if len(left) == len(by_rule) and not shared and not others:
            slow = tuple(name for name in named if name not in left)
            numbers = sum(
                _entries(use, layout) for use, layout in zip(tape.uses, layouts, strict=True)
            )
            plain, routed = _by_rows(tape.uses, layouts)
            return GradientPlan(
                tuple(left), slow, plain, spread, uses_signature(tape.uses),
                numbers // records, tuple(found.dimensions.items()),
                tuple(name for name in slow if id(named[name]) in undecided),
                sum(use.freed + use.shape.numel() for use in tape.uses if use.freed) // records,
                routed,
            )  # fmt: skip
        # Without some parameters, uses are numbered differently. So rows are spread only in
        # a run in which no parameter lost its rules.
        alike = len(left) == len(by_rule) and not others
        spread = spread | frozenset(shared) if alike else frozenset()
        by_rule, kept = left, kept | others
    raise InvalidArgument("model", type(model).__name__, "one that runs the same way twice")


@dataclass(frozen=True)
class _Broadcasts:
    """Where parameters are repeated for the records.

    Attributes:
        dimensions: Dimension of the records by use.
        others: Numbers of the uses that repeat a parameter for other ends.
        unclear: Numbers of the uses without one place of the records.
    """

    dimensions: dict[BroadcastKey, int]
    others: tuple[int, ...]
    unclear: frozenset[int]


def _find_broadcasts(uses: list[ParameterUse], layouts: list[RecordLayout]) -> _Broadcasts:
    """Find the dimension along which each broadcast parameter is repeated for the records."""
    dimensions: dict[BroadcastKey, int] = {}
    others, unclear = [], set()
    for n, (use, layout) in enumerate(zip(uses, layouts, strict=True)):
        if use.broadcast is None:
            continue
        found = record_dimension(layout)
        if found is None and use.may_be_shared and not isinstance(layout, Ambiguous):
            others.append(n)
        elif (
            found is None
            or not use.broadcast[1][found]  # it has rows of its own there
            or dimensions.setdefault(use.broadcast, found) != found
        ):
            unclear.add(n)
    return _Broadcasts(dimensions, tuple(others), frozenset(unclear))


def _entries(use: ParameterUse, layout: RecordLayout) -> int:
    """Return the number of gradients of a use that are held, of all records together."""
    dimension = record_dimension(layout)
    if use.broadcast is None or dimension is None:
        return use.shape.numel()
    return math.prod(
        1 if one and d != dimension else size
        for d, (size, one) in enumerate(zip(use.shape, use.broadcast[1], strict=True))
    )


def _by_rows(
    uses: list[ParameterUse], layouts: list[RecordLayout]
) -> tuple[tuple[RecordLayout, ...], tuple[tuple[tuple[str, int], RecordLayout], ...]]:
    """Return the layouts of uses on all rows, and names and layouts of those on chosen rows."""
    pairs = list(zip(uses, layouts, strict=True))
    plain = tuple(layout for use, layout in pairs if use.rows is None)
    routed = {
        (use.name, len(use.shape)): in_plan(layout) for use, layout in pairs if use.rows is not None
    }
    return plain, tuple(routed.items())


def _of_one_source(layouts: list[RecordLayout]) -> list[RecordLayout]:
    """Return the layouts; those of chosen rows only if all rows come from places of one kind."""
    kind = next((type(each.source) for each in layouts if isinstance(each, Routed)), None)
    return [
        Ambiguous() if isinstance(each, Routed) and type(each.source) is not kind else each
        for each in layouts
    ]


def _is_zero(gradient: Tensor | None) -> bool:
    """Return whether a loss has no gradient there."""
    return gradient is None or not bool((gradient != 0).any())


def _silent_uses(
    tape: Tape, first: Sequence[Tensor | None], last: Sequence[Tensor | None], losses: Tensor
) -> frozenset[int]:
    """Return the uses that the losses of the first or the last record do not reach, but others do.

    Such are the later times of a short sequence.
    """
    found = [n for n, pair in enumerate(zip(first, last, strict=True)) if any(map(_is_zero, pair))]
    found = [n for n in found if tape.uses[n].rows is None]
    if not found or len(losses) < 3:
        return frozenset()
    reached, _ = tape.gradients(losses[1:-1].sum(), retain_graph=True)
    return frozenset(n for n in found if not _is_zero(reached[n]))


def _confirmed_layouts(
    tape: Tape, layouts: list[RecordLayout], losses: Tensor, silent_uses: Collection[int]
) -> list[RecordLayout]:
    """Return the layouts; those by rows only if every record's loss reaches its own rows alone.

    The first and the last record do not show whether the others have as many rows, as tokens
    without padding may not. Each of a few others gets a pass of its own. Of many, for each bit of
    the record number, two passes take the losses of the records with and without that bit. Any
    two records differ in some bit.
    """
    by_rows = InBlocks | Interleaved | Routed
    rows = [n for n, layout in enumerate(layouts) if isinstance(layout, by_rows)]
    silent = {n for n in rows if isinstance(layouts[n], Routed)}
    found = list(layouts)
    records = len(losses)
    numbers = torch.arange(records, device=losses.device)
    seen: dict[int, list[tuple[Tensor, Tensor | None]]] = {n: [] for n in silent_uses}
    # The first and the last record were seen alone, unless it matters whom they do not reach.
    everyone = range(records) if silent or silent_uses else range(1, records - 1)
    alone = [numbers == record for record in everyone]
    bits = range((records - 1).bit_length())
    by_bits = [(numbers >> bit) & 1 == side for bit in bits for side in (1, 0)]
    for group in min(alone, by_bits, key=len) if rows or silent_uses else []:
        reached, _ = tape.gradients(losses[group].sum(), retain_graph=True)
        for n, pairs in seen.items():
            pairs.append((group, reached[n]))
        for n in rows:
            gradient = reached[n]
            if gradient is not None and not reaches_only(gradient, layouts[n], group):
                found[n] = Ambiguous()
            if n in silent and gradient is not None and bool((gradient != 0).any()):
                silent.remove(n)
    for n, pairs in seen.items():
        found[n] = find_layout_of_groups(tape.uses[n].shape, pairs, records)
    return [Ambiguous() if n in silent else layout for n, layout in enumerate(found)]


def _require_apart(
    uses: list[ParameterUse], layouts: list[RecordLayout], named: Mapping[str, Tensor]
) -> None:
    """Refuse uses in which the loss of one record reaches other records' rows."""
    for use, layout in zip(uses, layouts, strict=True):
        if isinstance(layout, Mixed):
            names = ", ".join(name for name, p in named.items() if id(p) in use.sources)
            raise InvalidArgument(
                "model",
                f"{use.name} with {names}",
                "without operations that mix records: the loss of one record depends on others "
                "(dpaudit.trainer.fix replaces batch normalization)",
            )
