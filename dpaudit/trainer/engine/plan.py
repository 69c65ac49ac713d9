"""What the engine learns of a model from one batch: where records are, and what has no rule."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dpaudit.trainer.engine.batches import Batch, taken
from dpaudit.trainer.engine.functional import PerSampleLoss
from dpaudit.trainer.engine.layout import (
    InBlocks,
    InTurns,
    Layout,
    Mixed,
    Shared,
    Unclear,
    layout_of,
    reaches_only,
)
from dpaudit.trainer.engine.tape import Tape, Use
from dpaudit.vocabulary.errors import InvalidArgument

MOST_LOOKS = 8


@dataclass(frozen=True)
class Plan:
    """How to take a model's per-record gradients.

    Attributes:
        by_rule: Parameters whose every use has a rule.
        others: Parameters whose gradients are taken record by record.
        layouts: Where each use has its records.
        spread: Uses whose one row is repeated for every record.
        uses: Names and dimensions of all uses: a batch that differs needs a plan of its own.
        numbers: How many numbers a record's outputs have, whose gradients are kept until all
            norms are known.
    """

    by_rule: tuple[str, ...]
    others: tuple[str, ...]
    layouts: tuple[Layout, ...]
    spread: frozenset[int]
    uses: tuple[tuple[str, int], ...]
    numbers: int

    def asks_like(self, other: Plan) -> bool:
        """Return whether a run of the model is recorded in the same way for both."""
        return self.by_rule == other.by_rule and self.spread == other.spread

    def fits(self, uses: list[Use], records: int) -> bool:
        """Return whether a run of the model used its parameters in the same way."""
        return self.uses == signature(uses) and all(
            layout.holds(use.shape, records) for use, layout in zip(uses, self.layouts, strict=True)
        )


def run(tape: Tape, loss: PerSampleLoss, model: nn.Module, batch: Batch) -> Tensor | None:
    """Return the losses, recorded on a tape; None: the loss takes gradients itself.

    Rules run on detached parameters, and see no second derivatives.
    """
    try:
        with tape:
            losses = loss(model, batch)
    except Exception:
        if tape.differentiates:  # of a detached parameter, say
            return None
        raise
    return None if tape.differentiates else losses


def record_by_record(model: nn.Module) -> Plan:
    """Return the plan that is always right: every gradient is taken of a record's own loss."""
    names = tuple(name for name, p in model.named_parameters() if p.requires_grad)
    return Plan((), names, (), frozenset(), (), 0)


def signature(uses: list[Use]) -> tuple[tuple[str, int], ...]:
    """Return what must be equal for a plan to hold."""
    return tuple((use.name, len(use.shape)) for use in uses)


def make_plan(model: nn.Module, loss: PerSampleLoss, batch: Batch, records: int) -> Plan | None:
    """Look at a batch of at least two records; None: the loss takes gradients itself.

    Raises:
        InvalidArgument: an operation mixes records; it names the parameters.
    """
    try:
        return _look(model, loss, batch, records)
    except InvalidArgument:
        # As many positions as records: what all of them share looks as if it mixed them.
        more = taken(batch, torch.tensor([*range(records), 0]))
        return _look(model, loss, more, records + 1)


def _look(model: nn.Module, loss: PerSampleLoss, batch: Batch, records: int) -> Plan | None:
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    by_rule, spread = dict(named), frozenset[int]()
    for _ in range(MOST_LOOKS):
        tape = Tape(by_rule.values(), spread, records)
        losses = run(tape, loss, model, batch)
        if losses is None:
            return None
        looks = [
            tape.gradients(losses[record], list(named.values()), retain_graph=True)
            for record in (0, -1)
        ]
        (first, _), (last, _) = looks
        reached = [
            any(g is not None for g in pair) for pair in zip(*(o for _, o in looks), strict=True)
        ]
        layouts = [
            layout_of(use.shape, {0: a, records - 1: b}, records)
            for use, a, b in zip(tape.uses, first, last, strict=True)
        ]
        layouts = _sure(tape, layouts, losses)
        unseen = [
            n
            for n, found in enumerate(zip(first, last, strict=True))
            if any(g is None or not bool((g != 0).any()) for g in found)
            or isinstance(layouts[n], Unclear)
        ]
        seen = [n for n in range(len(layouts)) if n not in unseen]
        _require_apart([tape.uses[n] for n in seen], [layouts[n] for n in seen], named)
        unknown = {id(p) for p, seen in zip(named.values(), reached, strict=True) if seen}
        shared = [n for n, layout in enumerate(layouts) if isinstance(layout, Shared)]
        # Where no gradient arrives, nothing shows where records are.
        fixed = [*unseen, *(n for n in shared if tape.uses[n].shape[0] != 1)]
        unknown |= {id(p) for n in fixed for p in tape.uses[n].operation.parameters}
        left = {name: p for name, p in by_rule.items() if id(p) not in unknown}
        if len(left) == len(by_rule) and not shared:
            others = tuple(name for name in named if name not in left)
            numbers = sum(use.shape.numel() for use in tape.uses) // records
            uses = signature(tape.uses)
            return Plan(tuple(left), others, tuple(layouts), spread, uses, numbers)
        # Uses are numbered anew where parameters are given up: rows are spread after that.
        spread = spread | frozenset(shared) if len(left) == len(by_rule) else frozenset()
        by_rule = left
    raise InvalidArgument("model", type(model).__name__, "one that runs the same way twice")


def _sure(tape: Tape, layouts: list[Layout], losses: Tensor) -> list[Layout]:
    """Return the layouts, those by rows only if every record's loss reaches its own rows alone.

    The first and the last record say nothing of those between them, which may have more or
    fewer rows: as tokens do where padding was taken out. For every bit of their numbers, the
    records that have it are told from those that have not.
    """
    rows = [n for n, layout in enumerate(layouts) if isinstance(layout, InBlocks | InTurns)]
    found = list(layouts)
    records = len(losses)
    numbers = torch.arange(records, device=losses.device)
    for bit in range((records - 1).bit_length() if rows else 0):
        for group in ((numbers >> bit) & 1 == 1, (numbers >> bit) & 1 == 0):
            reached, _ = tape.gradients(losses[group].sum(), retain_graph=True)
            for n in rows:
                gradient = reached[n]
                if gradient is not None and not reaches_only(gradient, layouts[n], group):
                    found[n] = Unclear()
    return found


def _require_apart(uses: list[Use], layouts: list[Layout], named: Mapping[str, Tensor]) -> None:
    for use, layout in zip(uses, layouts, strict=True):
        if isinstance(layout, Mixed):
            ids = {id(p) for p in use.operation.parameters}
            names = ", ".join(name for name, p in named.items() if id(p) in ids)
            raise InvalidArgument(
                "model",
                f"{use.name} with {names}",
                "free of operations that mix records: one record's loss depends on others' "
                "(GroupNorm or LayerNorm can stand in for batch normalisation)",
            )
