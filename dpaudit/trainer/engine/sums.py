"""The sum of clipped per-record gradients: one forward and one backward pass.

Book-keeping (Bu et al. 2023, arXiv:2210.00038): the backward pass stops at the outputs of
operations; each operation's per-record norms come from its input and that gradient, by
the cheaper of two ways; and the clipped sum is one product where plain training has the
weight's gradient. What has no rule is differentiated record by record.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dpaudit.trainer.engine.batches import Batch, chunks, count, mapped, part
from dpaudit.trainer.engine.clipping import Clipping, finite_records
from dpaudit.trainer.engine.forms import Dense, Form, merged
from dpaudit.trainer.engine.functional import PerRecordGradients, PerSampleLoss
from dpaudit.trainer.engine.independence import (
    require_independent_losses,
    require_no_statistics,
)
from dpaudit.trainer.engine.layout import Layout
from dpaudit.trainer.engine.plan import Plan, make_plan, record_by_record
from dpaudit.trainer.engine.tape import Tape, Use
from dpaudit.vocabulary.errors import InvalidArgument, require_count

MOST_PLANS = 32  # models may have a plan for each length of records
MOST_TRIED = 32  # records that are looked at before a plan is made
MOST_NUMBERS = 20_000_000  # output gradients that are kept at once, until all norms are known
CHECKED = 4  # records on which a plan is held against the slow way
AGREEMENT = (
    0.03  # of a record's gradient, which half precision may be off by; a wrong rule is further
)


@dataclass(frozen=True)
class Clipped:
    """The sum over some records.

    Attributes:
        sums: By parameter name, in its shape, float32.
        norms: Of the records' gradients before clipping, shape ``(records,)``, float64;
            secret, as are the losses.
        losses: Shape ``(records,)``.
        left_out: How many records were left out, as their gradients are not finite.
    """

    sums: dict[str, Tensor]
    norms: Tensor
    losses: Tensor
    left_out: int


class Engine:
    """Sums of clipped gradients of one model and loss."""

    def __init__(self, model: nn.Module, loss: PerSampleLoss) -> None:
        self._model, self._loss = model, loss
        self._plans: tuple[Plan, ...] = ()  # the newest first
        self._records_are_apart = False

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """The trainable parameters by name; a tied one once."""
        return {name: p for name, p in self._model.named_parameters() if p.requires_grad}

    def clipped_sum(self, batch: Batch, clipping: Clipping, chunk: int | None = None) -> Clipped:
        """Return the clipped sum, taking ``chunk`` records at a time.

        The chunk is a matter of memory and speed alone; None: about what plain training
        would need. No records give zeros.

        Raises:
            InvalidArgument: the loss is not one number a record, or records are mixed.
        """
        if chunk is not None:
            require_count("chunk", chunk)
        size = chunk or self._fitting(batch)
        parts = [self._sum(some, clipping) for some in chunks(batch, size)]
        if not parts:
            return self._nothing()
        first, *others = parts
        for other in others:
            for name in first.sums:
                first.sums[name] += other.sums[name]
        return Clipped(
            first.sums,
            torch.cat([part.norms for part in parts]),
            torch.cat([part.losses for part in parts]),
            sum(part.left_out for part in parts),
        )

    def require_independence(self, batch: Batch) -> None:
        """Try once, on the first batch that can show it, whether records are mixed or kept.

        Raises:
            InvalidArgument: they are.
        """
        if not self._records_are_apart and count(batch) > 0:
            require_independent_losses(self._model, self._loss, part(batch, 0, MOST_TRIED))
            self._records_are_apart = count(batch) > 1

    def _nothing(self) -> Clipped:
        sums = {name: _full(torch.zeros_like(p)) for name, p in self.parameters.items()}
        return Clipped(sums, torch.zeros(0, dtype=torch.float64), torch.zeros(0), 0)

    def _sum(self, batch: Batch, clipping: Clipping) -> Clipped:
        losses, forms = self._gradients(batch)
        with torch.no_grad(), torch.autocast(losses.device.type, enabled=False):
            squares = [self._squares(form, losses) for form in forms.values()]
            kept = finite_records(squares)
            left_out = len(kept) - int(kept.sum())
            if left_out:  # 0 times infinity is NaN: what is left out must not be multiplied
                forms = {name: form and form.only(kept) for name, form in forms.items()}
            factors = clipping.factors(torch.stack(squares)[:, kept])
            sums = {
                name: _full(torch.zeros_like(p)) if form is None else form.weighted(row).view_as(p)
                for (name, p), form, row in zip(
                    self.parameters.items(), forms.values(), factors, strict=True
                )
            }
            norms = torch.stack(squares).sum(dim=0).sqrt()
        return Clipped(sums, norms, losses.detach(), left_out)

    @staticmethod
    def _squares(form: Form | None, losses: Tensor) -> Tensor:
        if form is None:
            return torch.zeros(len(losses), dtype=torch.float64, device=losses.device)
        return form.square_norms()

    @property
    def record_by_record(self) -> tuple[str, ...]:
        """Names of parameters that no rule is found to hold for, as far as is known: slow."""
        return self._plans[0].others if self._plans else ()

    def _gradients(self, batch: Batch) -> tuple[Tensor, dict[str, Form | None]]:
        """Return the losses, and the per-record gradients by parameter; None: all zero."""
        if count(batch) == 1:
            self.require_independence(batch)
            return self._of_one(batch)
        found = self._by_rule(self._plans, batch)
        if found is None and (plan := self._plan(batch)) is not None:
            found = self._by_rule((plan,), batch)
        if found is None:
            return self._one_by_one(batch)
        plan, losses, forms = found
        if plan.others:
            slow = PerRecordGradients(self._model, self._loss, plan.others)
            for name, values in zip(plan.others, slow(batch), strict=True):
                forms[name] = Dense(_full(values))
        return losses, forms

    def _fitting(self, batch: Batch) -> int:
        """Return how many records are taken at once: even parts of at most so many numbers."""
        records = max(1, count(batch))
        if records > 1 and not self._plans:
            self._plan(batch)
        numbers = self._plans[0].numbers if self._plans else 0
        parts = math.ceil(records * numbers / MOST_NUMBERS)
        return math.ceil(records / max(1, min(parts, records)))

    def _plan(self, batch: Batch) -> Plan | None:
        plan = self._planned(batch)
        if plan is not None:
            self._plans = (plan, *self._plans[: MOST_PLANS - 1])
        return plan

    def _planned(self, batch: Batch) -> Plan | None:
        """Look at some records whose loss is finite; None if there is none.

        Zero times what is not finite is NaN, and looks as if a loss reached other records.
        """
        if not self._records_are_apart:
            require_no_statistics(self._model, self._loss, part(batch, 0, MOST_TRIED))
        with torch.random.fork_rng():  # looking draws no dropout that training would have drawn
            with torch.no_grad():
                fine = torch.isfinite(self._losses(batch, count(batch))).nonzero().squeeze(1)
            if not len(fine):
                return None
            usable = mapped(batch, lambda tensor: tensor[fine[:MOST_TRIED].to(tensor.device)])
            if len(fine) == 1:
                usable = mapped(usable, lambda tensor: torch.cat([tensor, tensor]))
            self.require_independence(usable)
            return self._checked(usable)

    def _checked(self, batch: Batch) -> Plan:
        """Return a plan whose gradients were seen to be those of records' own losses.

        Where it cannot be made, or gives others on a few records, as an operation may have
        ways that no rule foresees, every gradient is taken record by record.
        """
        slow = record_by_record(self._model)
        try:
            plan = make_plan(self._model, self._loss, batch, count(batch))
        except (RuntimeError, IndexError, ValueError):  # a look may break what a run does not
            return slow
        training = [module for module in self._model.modules() if module.training]
        self._model.eval()  # dropout draws what it likes, and would differ
        try:
            agrees = self._agrees(plan, part(batch, 0, CHECKED))
        except (RuntimeError, IndexError, ValueError):
            agrees = False
        finally:
            for module in training:
                module.training = True
        return plan if agrees else slow

    def _agrees(self, plan: Plan, batch: Batch) -> bool:
        names, records = plan.by_rule, count(batch)
        found = self._by_rule((plan,), batch)
        if found is None:
            return False
        _, _, forms = found
        truth = PerRecordGradients(self._model, self._loss, names)(batch)
        gap, size = torch.zeros(records), torch.zeros(records)
        with torch.no_grad():
            for name, true in zip(names, truth, strict=True):
                form = forms[name]
                own = torch.zeros_like(true) if form is None else form.dense().view_as(true)
                gap += (own - true).reshape(records, -1).float().square().sum(dim=1).cpu()
                size += true.reshape(records, -1).float().square().sum(dim=1).cpu()
        fine = torch.isfinite(size)
        return bool((gap[fine] <= AGREEMENT**2 * size[fine] + 1e-30).all())

    def _by_rule(
        self, plans: Sequence[Plan], batch: Batch
    ) -> tuple[Plan, Tensor, dict[str, Form | None]] | None:
        """Return the plan that fits, losses and the gradients that rules give; None: none fits."""
        if not plans:
            return None
        newest, records, named = plans[0], count(batch), self.parameters
        with Tape((named[name] for name in newest.by_rule), newest.spread, records) as tape:
            losses = self._losses(batch, records)
        plan = next((p for p in plans if p.asks_like(newest) and p.fits(tape.uses, records)), None)
        if plan is None:
            return None
        if not plan.by_rule:
            return plan, losses, dict.fromkeys(named)
        parameters = [named[name] for name in plan.by_rule]
        gradients, unforeseen = tape.gradients(losses.sum(), parameters)
        if any(gradient is not None for gradient in unforeseen):
            return None  # a parameter was used in a way that has no rule
        found = _by_parameter(tape.uses, plan.layouts, gradients, records)
        forms = {
            name: merged(found[id(p)]) if id(p) in found else None for name, p in named.items()
        }
        return plan, losses, forms

    def _of_one(self, batch: Batch) -> tuple[Tensor, dict[str, Form | None]]:
        """One record's gradient is the batch's: no rule is needed."""
        losses, named = self._losses(batch, 1), self.parameters
        gradients = torch.autograd.grad(losses.sum(), list(named.values()), allow_unused=True)
        return losses, {
            name: None if g is None else Dense(_full(g)[None])
            for name, g in zip(named, gradients, strict=True)
        }

    def _one_by_one(self, batch: Batch) -> tuple[Tensor, dict[str, Form | None]]:
        gradients = PerRecordGradients(self._model, self._loss, self.parameters)
        forms: dict[str, Form | None] = {
            name: Dense(_full(values))
            for name, values in zip(self.parameters, gradients(batch), strict=True)
        }
        return self._losses(batch, count(batch)), forms

    def _losses(self, batch: Batch, records: int) -> Tensor:
        losses = self._loss(self._model, batch)
        if losses.shape != (records,):
            raise InvalidArgument(
                "per_sample_loss",
                tuple(losses.shape),
                f"a function that returns a loss a record, shape ({records},): reduction='none'",
            )
        return losses


def _by_parameter(
    uses: list[Use],
    layouts: tuple[Layout, ...],
    gradients: Sequence[Tensor | None],
    records: int,
) -> dict[int, list[Form]]:
    """Return the forms of every use, by the identity of the parameter."""
    found: defaultdict[int, list[Form]] = defaultdict(list)
    with torch.no_grad(), torch.autocast(_device(gradients), enabled=False):
        for use, layout, gradient in zip(uses, layouts, gradients, strict=True):
            if gradient is None:
                continue
            operation = use.operation
            first = [_full(layout.first(t, records)) for t in (operation.input, gradient)]
            rows = len(first[0]) // records
            for parameter, form in operation.forms(*first):
                if parameter is not None and form is not None and parameter.requires_grad:
                    found[id(parameter)].append(form if rows == 1 else form.grouped(rows))
    return found


def _device(gradients: Sequence[Tensor | None]) -> str:
    return next((g.device.type for g in gradients if g is not None), "cpu")


def _full(tensor: Tensor) -> Tensor:
    """Return half precision in float32: norms are taken in it."""
    return tensor.float() if tensor.dtype in {torch.float16, torch.bfloat16} else tensor
