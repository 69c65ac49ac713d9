"""Per-record gradients of a batch: by rules where a checked plan exists, else per record.

Book-keeping (Bu et al. 2023, arXiv:2210.00038). The backward pass stops at the outputs of
operations. From the input a_i and the output gradient b_i of record i, a rule gives the norm
of the gradient g_i without writing g_i out. One product then gives sum_i c_i g_i. Parameters
that no rule covers are differentiated record by record.

A plan states which parameters have rules and where each operation has its records. It is
used only after its gradients agreed with those of the records' own losses.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from enum import Enum

import torch
from torch import Tensor, nn

from dpaudit.trainer.engine.batch_structure import (
    Batch,
    copy_containers,
    count_records,
    duplicate_record,
    slice_records,
    split_into_chunks,
    take_records,
)
from dpaudit.trainer.engine.gradient_forms import DenseGradients, GradientForm, merge_forms
from dpaudit.trainer.engine.gradient_plan import (
    GradientPlan,
    RecordLayout,
    make_plan,
    plan_record_by_record,
    run_on_tape,
)
from dpaudit.trainer.engine.model_state import ModuleState
from dpaudit.trainer.engine.per_record_gradients import (
    USER_ERRORS,
    PerRecordGradients,
    PerSampleLoss,
    convert_user_errors,
    gradients_of,
)
from dpaudit.trainer.engine.tape import ParameterUse, Tape
from dpaudit.vocabulary.errors import DpauditError, InvalidArgument

MAX_PLANS = 32
"""Plans that are kept, the newest first: a model may need one per length of records."""

MAX_VERIFIED_RECORDS = 32
"""Records on which independence is verified and a plan is made."""

MAX_KEPT_NUMBERS = 20_000_000
"""Entries of output gradients that are held at once, until all norms are known."""

PLAN_CHECK_RECORDS = 4
"""Records on which a plan is compared with record-by-record gradients."""

PLAN_TOLERANCE = 0.03
"""Relative gap allowed between the two: half precision stays below it, a wrong rule does not."""

Gradients = tuple[Tensor, dict[str, GradientForm | None]]
"""Losses of shape ``(records,)``, and gradients by parameter name; None where all are zero."""


class PlanCheck(Enum):
    """Result of comparing a plan's gradients with those of the records' own losses."""

    AGREES = "the gradients agree"
    DIFFERS = "the gradients differ"
    DRAWS = "two passes over the same records differ, as with dropout"
    UNKNOWN = "no plan fits"


class PlannedGradients:
    """Take per-record gradients of one model and loss by the plans that fit.

    Args:
        model: Model in the mode in which it trains.
        loss: Function of (model, batch) that returns one loss per record.

    Attributes:
        loss: The current loss function.
        reset: Sets the model's state back; called before every pass.
        plans: Plans in use, the newest first.
        differentiates: Whether the loss takes gradients itself. Then no rule applies.
    """

    def __init__(self, model: nn.Module, loss: PerSampleLoss) -> None:
        self._model, self.loss = model, loss
        self._named: dict[str, nn.Parameter] | None = None
        self.reset: Callable[[], None] = do_nothing
        self.forget()

    def forget(self) -> None:
        """Drop all plans, and assume that the loss takes no gradients itself."""
        self.plans: tuple[GradientPlan, ...] = ()
        self.differentiates = False

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """The trainable parameters with their names; a tied parameter appears once."""
        if self._named is not None:
            return self._named
        return {name: p for name, p in self._model.named_parameters() if p.requires_grad}

    @contextmanager
    def same_parameters(self) -> Iterator[None]:
        """List the trainable parameters once for the whole block, as for one sum.

        Yields:
            Nothing.
        """
        self._named = self.parameters
        try:
            yield
        finally:
            self._named = None

    def verify_plans(self, sample: Batch, *, stale: bool) -> None:
        """Compare the plans with autograd on a few records, and drop those that do not agree.

        Args:
            sample: Records to compare on; a weighted sum over them is compared.
            stale: Whether values have changed that code may branch on. Then only the newest plan,
                which was just compared, is kept.
        """
        if not self.plans or self.differentiates:
            return
        with self._same_state():
            agrees = self._compare(lambda: self._agree_in_sum(sample))
        if agrees is PlanCheck.DIFFERS:
            self.plans = ()
        elif stale:
            self.plans = self.plans[:1]

    @contextmanager
    def _same_state(self) -> Iterator[None]:
        """Start every pass in the block from one state, end in it, and draw no random numbers."""
        state, before = ModuleState(self._model), self.reset
        self.reset = state.restore
        try:
            with torch.random.fork_rng():
                yield
        finally:
            state.restore()
            self.reset = before

    @property
    def record_by_record(self) -> tuple[str, ...]:
        """Names of the parameters without a rule, as far as is known."""
        if self.differentiates:
            return tuple(self.parameters)
        return self.plans[0].others if self.plans else ()

    def take(self, batch: Batch) -> tuple[Tensor, dict[str, GradientForm | None]]:
        """Return losses and per-record gradients of a batch.

        Args:
            batch: At least one record.

        Returns:
            Losses, shape ``(records,)``, and the gradients by parameter name in the model's order.
            A gradient is None if no loss depends on the parameter.

        Raises:
            InvalidArgument: If the loss is not one number per record or cannot be differentiated,
                or an operation mixes records.
        """
        if count_records(batch) == 1:
            return self._of_one(batch)
        found = None if self.differentiates else self._by_plan(batch)
        if found is None:
            return self._one_by_one(batch)
        plan, losses, forms = found
        if plan.others:
            slow = self._per_record(plan.others)
            for name, values in zip(plan.others, slow(batch), strict=True):
                forms[name] = DenseGradients(at_least_float32(values))
        return losses, forms

    def _by_plan(
        self, batch: Batch
    ) -> tuple[GradientPlan, Tensor, dict[str, GradientForm | None]] | None:
        """Return gradients by a plan, an existing or a new one; None if rules cannot be used."""
        try:
            found = self._by_rule(self.plans, batch)
            if found is None and not self.differentiates:
                plan = self._plan(batch)
                found = self._by_rule((plan,), batch) if plan is not None else None
        except (DpauditError, torch.OutOfMemoryError):
            raise
        except USER_ERRORS:  # what breaks on detached parameters may run record by record
            return None
        return found

    def _per_record(self, names: Iterable[str]) -> PerRecordGradients:
        """Return the slow way for some parameters."""
        at_once = not self.differentiates
        return PerRecordGradients(self._model, self.loss, names, self.reset, at_once=at_once)

    def chunk_size(self, batch: Batch) -> int:
        """Return how many records to take at once, so that memory stays bounded.

        A chunk holds at most about ``MAX_KEPT_NUMBERS`` output gradients, and chunks are even.

        Args:
            batch: The records of the step; a plan is made for them if there is none.

        Returns:
            Records per chunk, at least 1.
        """
        records = max(1, count_records(batch))
        if records > 1 and not self.plans and not self.differentiates:
            self._plan(batch)
        numbers = self.plans[0].numbers if self.plans else 0
        parts = math.ceil(records * numbers / MAX_KEPT_NUMBERS)
        return math.ceil(records / max(1, min(parts, records)))

    def _plan(self, batch: Batch) -> GradientPlan | None:
        """Make a plan for a batch and keep it; None if none can be made."""
        with self._same_state():
            plan = self._planned(batch)
        if plan is not None:
            self.plans = (plan, *self.plans[: MAX_PLANS - 1])
        return plan

    def _planned(self, batch: Batch) -> GradientPlan | None:
        """Return a checked plan from the first records with finite losses; None if there are none.

        Zero times a value that is not finite is NaN, so such a record would appear to reach others.
        """
        for some in split_into_chunks(batch, MAX_VERIFIED_RECORDS):
            fine = (
                torch.isfinite(self._losses(some, count_records(some)).detach())
                .nonzero()
                .squeeze(1)
            )
            if len(fine):
                usable = take_records(some, fine.cpu())
                return self._checked(duplicate_record(usable) if len(fine) == 1 else usable)
        return None

    def _checked(self, batch: Batch) -> GradientPlan | None:
        """Return a plan that agrees with the records' own gradients, else one without any rule.

        An operation may behave in ways that no rule covers. None if the loss differentiates.
        """
        slow = plan_record_by_record(self._model)
        try:
            plan = make_plan(self._model, self.fresh_loss, batch, count_records(batch))
        except (RuntimeError, IndexError, ValueError):  # planning may fail where a run does not
            return slow
        if plan is None:
            self.differentiates = True
            return None
        some = slice_records(batch, 0, PLAN_CHECK_RECORDS)
        agrees = self._compare(lambda: self._agrees(plan, some))
        return plan if agrees is PlanCheck.AGREES else slow

    def fresh_loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the losses of a pass that starts from the model's current state.

        Args:
            model: The model to run.
            batch: The records; the loss gets them in new containers.

        Returns:
            Whatever the loss function returns, which should have shape ``(records,)``.
        """
        self.reset()
        return self.loss(model, copy_containers(batch))

    def _compare(self, agree: Callable[[], PlanCheck]) -> PlanCheck:
        """Compare in training mode, or without it if random numbers make two passes differ."""
        try:
            verdict = agree()
            if verdict is not PlanCheck.DRAWS:
                return verdict
            training = [module for module in self._model.modules() if module.training]
            # Only the flags: eval() of a user's module may do more, such as merging weights.
            for module in training:
                module.training = False
            try:
                verdict = agree()
                return PlanCheck.DIFFERS if verdict is PlanCheck.DRAWS else verdict
            finally:
                for module in training:
                    module.training = True
        except (RuntimeError, IndexError, ValueError):
            return PlanCheck.DIFFERS

    def _agree_in_sum(self, batch: Batch) -> PlanCheck:
        """Compare a weighted sum of the plans' gradients with autograd.

        Records are independent, so sum_i w_i g_i is the gradient of sum_i w_i loss_i.
        """
        found = self._by_rule(self.plans, batch)
        if found is None or not found[0].by_rule:
            return PlanCheck.UNKNOWN
        plan, losses, forms = found
        again = self._losses(batch, count_records(batch))
        if not _losses_agree(losses, again):
            return PlanCheck.DRAWS
        named = self.parameters
        weights = torch.linspace(1, -0.5, len(losses)).to(losses)
        truth = gradients_of((weights * again).sum(), [named[name] for name in plan.by_rule])
        gap = size = 0.0
        with torch.no_grad():
            for name, found_true in zip(plan.by_rule, truth, strict=True):
                form, zeros = forms[name], torch.zeros_like(named[name])
                own = zeros if form is None else form.weighted(weights).view_as(zeros)
                true = zeros if found_true is None else found_true
                gap += float(torch.linalg.vector_norm(own - true)) ** 2
                size += float(torch.linalg.vector_norm(true)) ** 2
        # |own - true|^2 > tolerance^2 |true|^2. A comparison with NaN is false: not DIFFERS.
        differs = gap > PLAN_TOLERANCE**2 * size + 1e-30
        return PlanCheck.DIFFERS if differs else PlanCheck.AGREES

    def _agrees(self, plan: GradientPlan, batch: Batch) -> PlanCheck:
        """Compare a plan's gradients of each record with those of the record's own loss."""
        names, records = plan.by_rule, count_records(batch)
        found = self._by_rule((plan,), batch)
        if found is None:
            return PlanCheck.DIFFERS
        _, losses, forms = found
        if not _losses_agree(losses, self._losses(batch, records)):
            return PlanCheck.DRAWS
        truth = self._per_record(names)(batch)
        gap, size = torch.zeros(records), torch.zeros(records)
        with torch.no_grad():
            for name, true in zip(names, truth, strict=True):
                form = forms[name]
                own = torch.zeros_like(true) if form is None else form.dense().view_as(true)
                gap += (own - true).reshape(records, -1).float().square().sum(dim=1).cpu()
                size += true.reshape(records, -1).float().square().sum(dim=1).cpu()
        # Per record: |own - true|^2 <= tolerance^2 |true|^2, where the true gradient is finite.
        fine = torch.isfinite(size)
        agrees = bool((gap[fine] <= PLAN_TOLERANCE**2 * size[fine] + 1e-30).all())
        return PlanCheck.AGREES if agrees else PlanCheck.DIFFERS

    def _by_rule(
        self, plans: Sequence[GradientPlan], batch: Batch
    ) -> tuple[GradientPlan, Tensor, dict[str, GradientForm | None]] | None:
        """Return the plan that fits, the losses and the gradients; None if no plan fits."""
        if not plans:
            return None
        newest, records, named = plans[0], count_records(batch), self.parameters
        tape = Tape((named[name] for name in newest.by_rule), newest.spread, records)
        losses = run_on_tape(tape, self.fresh_loss, self._model, batch)
        if losses is None:
            self.differentiates = True
            return None
        self._required(losses, records)
        plan = next(
            (p for p in plans if p.recorded_alike(newest) and p.fits(tape.uses, records)), None
        )
        if plan is None:
            return None
        if not plan.by_rule:
            return plan, losses, dict.fromkeys(named)
        # Records are independent: in record i's rows, the gradient of sum_j loss_j is that of
        # loss_i alone. So one backward pass gives the output gradients b_i of all records.
        parameters = [named[name] for name in plan.by_rule]
        gradients, unforeseen = tape.gradients(losses.sum(), parameters)
        if any(gradient is not None for gradient in unforeseen):
            return None  # a parameter was used in a way that has no rule
        found = _by_parameter(tape.uses, plan.layouts, gradients, records)
        forms = {
            name: merge_forms(found[id(p)]) if id(p) in found else None for name, p in named.items()
        }
        return plan, losses, forms

    def _of_one(self, batch: Batch) -> tuple[Tensor, dict[str, GradientForm | None]]:
        """Return the gradient of a single record, which is that of the batch: no rule is needed."""
        named = self.parameters
        with convert_user_errors():
            losses = self._losses(batch, 1)
            gradients = gradients_of(losses.sum(), list(named.values()))
        return losses, {
            name: None if g is None else DenseGradients(at_least_float32(g)[None])
            for name, g in zip(named, gradients, strict=True)
        }

    def _one_by_one(self, batch: Batch) -> tuple[Tensor, dict[str, GradientForm | None]]:
        """Return all gradients record by record."""
        gradients = self._per_record(self.parameters)
        forms: dict[str, GradientForm | None] = {
            name: DenseGradients(at_least_float32(values))
            for name, values in zip(self.parameters, gradients(batch), strict=True)
        }
        return self._losses(batch, count_records(batch)), forms

    def _losses(self, batch: Batch, records: int) -> Tensor:
        """Return losses of the expected shape, with errors of user code made typed."""
        with convert_user_errors():
            losses = self.fresh_loss(self._model, batch)
        return self._required(losses, records)

    @staticmethod
    def _required(losses: Tensor, records: int) -> Tensor:
        """Refuse losses that are not one number per record."""
        if losses.shape != (records,):
            raise InvalidArgument(
                "per_sample_loss",
                tuple(losses.shape),
                f"a function that returns one loss per record, shape ({records},): "
                "reduction='none'",
            )
        return losses


def _losses_agree(one: Tensor, other: Tensor) -> bool:
    """Return whether losses are equal up to rounding: a rule may compute in another order."""
    a, b = (each.detach().double().nan_to_num() for each in (one, other))
    return torch.allclose(a, b, rtol=PLAN_TOLERANCE, atol=1e-6)


def do_nothing() -> None:
    """Stand in for a reset where no state moves."""
    pass


def _by_parameter(
    uses: list[ParameterUse],
    layouts: tuple[RecordLayout, ...],
    gradients: Sequence[Tensor | None],
    records: int,
) -> dict[int, list[GradientForm]]:
    """Return the gradients of every use of each parameter, by the parameter's identity."""
    found: defaultdict[int, list[GradientForm]] = defaultdict(list)
    with torch.no_grad(), torch.autocast(_device(gradients), enabled=False):
        for use, layout, gradient in zip(uses, layouts, gradients, strict=True):
            if gradient is None:
                continue
            # With k rows per record, the rule treats rows as records; ``grouped`` adds them.
            operation = use.operation
            first = [
                at_least_float32(layout.first(t, records)) for t in (operation.input, gradient)
            ]
            rows = len(first[0]) // records
            for parameter, form in operation.forms(*first):
                if parameter is not None and form is not None and parameter.requires_grad:
                    found[id(parameter)].append(form if rows == 1 else form.grouped(rows))
    return found


def _device(gradients: Sequence[Tensor | None]) -> str:
    """Return the device type of the gradients, for autocast."""
    return next((g.device.type for g in gradients if g is not None), "cpu")


def at_least_float32(tensor: Tensor) -> Tensor:
    """Return a tensor in float32 if it is in half precision: norms are taken in float32.

    Args:
        tensor: Any tensor.

    Returns:
        The tensor itself unless its type is float16 or bfloat16.
    """
    return tensor.float() if tensor.dtype in {torch.float16, torch.bfloat16} else tensor
