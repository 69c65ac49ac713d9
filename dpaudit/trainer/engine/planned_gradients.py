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
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
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
from dpaudit.trainer.engine.generators import GeneratorStates, HeldGenerator
from dpaudit.trainer.engine.gradient_forms import (
    DenseGradients,
    GradientForm,
    merge_forms,
    share_inner_products,
)
from dpaudit.trainer.engine.gradient_plan import (
    GradientPlan,
    make_plan,
    plan_record_by_record,
    run_on_tape,
)
from dpaudit.trainer.engine.model_state import ModuleState
from dpaudit.trainer.engine.module_walk import ModuleWalk
from dpaudit.trainer.engine.parameter_functions import HALF, ParameterFunction
from dpaudit.trainer.engine.parameter_uses import ParameterUse
from dpaudit.trainer.engine.per_record_gradients import (
    USER_ERRORS,
    PerRecordGradients,
    PerSampleLoss,
    convert_user_errors,
    gradients_of,
)
from dpaudit.trainer.engine.pulled_back_gradients import PulledBackGradients
from dpaudit.trainer.engine.record_layouts import RecordLayout, record_dimension
from dpaudit.trainer.engine.rules.registry import Forms
from dpaudit.trainer.engine.tape import Tape
from dpaudit.vocabulary.errors import DpauditError, InvalidArgument

MAX_PLANS = 32
"""Plans that are kept, the newest first: a model may need one per length of records."""

SEARCHED_RECORDS = 8
"""Records that are run at once in search of some with finite losses."""

PLANNED_RECORDS = 5
"""Records on which a plan is made: a number that few dimensions of a model have."""

MAX_KEPT_NUMBERS = 20_000_000
"""Entries of output gradients that are held at once, until all norms are known."""

MAX_KEPT_OF_FREED = 2_000_000
"""The same for entries that activation checkpointing frees in plain training; or as many as
there are trained parameters, if there are more."""

MAX_RETRIES = 12
"""Times that parameters without a rule are planned again, 1, 2, 4, 8, ... steps after a plan."""

PLAN_CHECK_RECORDS = 3
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


@dataclass
class Retries:
    """When to plan again: after 1, 2, 4, 8, ... further steps, a bounded number of times.

    Attributes:
        steps: Steps since the first plan.
        made: Number of retries so far.
    """

    steps: int = 0
    made: int = 0

    def due(self) -> bool:
        """Count a step.

        Returns:
            Whether to plan again before it.
        """
        self.steps += 1
        if self.made >= MAX_RETRIES or self.steps < 2**self.made:
            return False
        self.made += 1
        return True


class PlannedGradients:
    """Take per-record gradients of one model and loss by the plans that fit.

    Args:
        model: Model in the mode in which it trains.
        loss: Function of (model, batch) that returns one loss per record.

    Attributes:
        loss: The current loss function.
        walk: A walk over the model.
        reset: Sets the model's state back; called before every pass.
        held: Random generators that the model or the loss holds.
        taken_by_rule: Names of the parameters whose last gradients came from rules.
        numbers: States of random generators at which the losses of the next chunk are taken; None:
            the present ones.
        slow_seconds: CPU seconds that gradients by a backward pass per record have taken.
        plans: Plans in use, the newest first.
        differentiates: Whether the loss takes gradients itself. Then no rule applies.
    """

    def __init__(self, model: nn.Module, loss: PerSampleLoss) -> None:
        self._model, self.loss, self.walk = model, loss, ModuleWalk(model)
        self._named: dict[str, nn.Parameter] | None = None
        self.held: Sequence[HeldGenerator] = ()
        self.taken_by_rule: tuple[str, ...] = ()
        self.numbers: GeneratorStates | None = None
        self.slow_seconds = 0.0
        self.reset: Callable[[], None] = do_nothing
        self.forget()

    def forget(self) -> None:
        """Drop all plans, and assume that the loss takes no gradients itself."""
        self.plans: tuple[GradientPlan, ...] = ()
        self.differentiates = False
        self._retries = Retries()

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """The trainable parameters with their names; a tied parameter appears once."""
        if self._named is not None:
            return self._named
        self.walk.refresh()
        named = self.walk.named_parameters
        return {name: p for name, p in named.items() if p.requires_grad}

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
        with self.same_state():
            agrees = self._compare(lambda: self._agree_in_sum(sample))
        if agrees is PlanCheck.DIFFERS:
            self.plans = ()
        elif stale:
            self.plans = self.plans[:1]

    def plan_again(self, batch: Batch) -> None:
        """Plan again, now and then, if parameters have no rule for a reason that may pass.

        A low-rank adapter with one factor zero, or a residual that starts at zero, passes no
        gradient on at first. A loss may take gradients itself in some steps only.

        Args:
            batch: The records of the step.
        """
        slow = self.differentiates or (self.plans and self.plans[0].undecided)
        if not slow or count_records(batch) < 2 or not self._retries.due():
            return
        before, self.differentiates = self.differentiates, False
        with self.same_state() as generators:
            plan = self._planned(batch, generators)
        if plan is None:
            self.differentiates |= before
        elif not self.plans or len(plan.others) < len(self.plans[0].others):
            self.plans = (plan, *self.plans[: MAX_PLANS - 1])

    @contextmanager
    def same_state(self, generators: GeneratorStates | None = None) -> Iterator[GeneratorStates]:
        """Start every pass in the block from one state, and leave the model in the present one.

        Random generators are a part of the state: every pass draws the same numbers.

        Args:
            generators: Their states at the start of every pass; None for the present ones.

        Yields:
            These states, which are restored after the block, too.
        """
        state, before = ModuleState(self._model), self.reset
        numbers = generators or GeneratorStates(python=True, held=self.held)

        def start() -> None:
            state.restore()
            before()
            numbers.restore()

        self.reset = start
        try:
            yield numbers
        finally:
            state.restore()
            numbers.restore()
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
            self.taken_by_rule = ()
            return self._of_one(batch)
        found = None if self.differentiates else self._by_plan(batch)
        self.taken_by_rule = found[0].by_rule if found else ()
        if found is None:
            return self._one_by_one(batch)
        plan, losses, forms = found
        if plan.others:
            began = time.process_time()
            slow = self._per_record(plan.others)
            for name, values in zip(plan.others, slow(batch), strict=True):
                forms[name] = DenseGradients(at_least_float32(values))
            self.slow_seconds += time.process_time() - began
        return losses, forms

    def _by_plan(
        self, batch: Batch
    ) -> tuple[GradientPlan, Tensor, dict[str, GradientForm | None]] | None:
        """Return gradients by a plan, an existing or a new one; None if rules cannot be used."""
        try:
            found = self._by_rule(self.plans, batch)
            if found is None and not self.differentiates:
                plan = self._plan(batch)
                self._rewind()
                found = self._by_rule((plan,), batch) if plan is not None else None
        except (DpauditError, torch.OutOfMemoryError):
            raise
        except USER_ERRORS:  # what breaks on detached parameters may run record by record
            return None
        return found

    def _rewind(self) -> None:
        """Let the next pass draw what the first one drew: losses are compared with those alone."""
        if self.numbers is not None:
            self.numbers.restore()

    def _per_record(self, names: Iterable[str]) -> PerRecordGradients:
        """Return the slow way for some parameters."""
        at_once = not self.differentiates
        return PerRecordGradients(self._model, self.loss, names, self.reset, at_once=at_once)

    def chunk_size(self, batch: Batch) -> int:
        """Return how many records to take at once, so that memory stays bounded.

        A chunk holds at most about ``MAX_KEPT_NUMBERS`` output gradients, and chunks are even. It
        holds fewer of what activation checkpointing frees (``MAX_KEPT_OF_FREED``).

        Args:
            batch: The records of the step; a plan is made for them if there is none.

        Returns:
            Records per chunk, at least 1.
        """
        records = max(1, count_records(batch))
        if records > 1 and not self.plans and not self.differentiates:
            self._plan(batch)
        if not self.plans:
            return records
        parts = math.ceil(records * self.plans[0].numbers / MAX_KEPT_NUMBERS)
        if freed := self.plans[0].freed:
            most = max(MAX_KEPT_OF_FREED, sum(p.numel() for p in self.parameters.values()))
            parts = max(parts, math.ceil(records * freed / most))
        return math.ceil(records / max(1, min(parts, records)))

    def _plan(self, batch: Batch) -> GradientPlan | None:
        """Make a plan for a batch and keep it; None if none can be made."""
        with self.same_state() as generators:
            plan = self._planned(batch, generators)
        if plan is not None:
            self.plans = (plan, *self.plans[: MAX_PLANS - 1])
        return plan

    def _planned(self, batch: Batch, generators: GeneratorStates) -> GradientPlan | None:
        """Return a checked plan from the first records with finite losses; None if there are none.

        Zero times a value that is not finite is NaN, so such a record would appear to reach others.
        """
        for some in split_into_chunks(batch, SEARCHED_RECORDS):
            fine = (
                torch.isfinite(self._losses(some, count_records(some)).detach())
                .nonzero()
                .squeeze(1)
            )
            if len(fine):
                usable = take_records(some, fine[:PLANNED_RECORDS].cpu())
                usable = duplicate_record(usable) if len(fine) == 1 else usable
                return self._checked(usable, generators)
        return None

    def _checked(self, batch: Batch, generators: GeneratorStates) -> GradientPlan | None:
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
        agrees = self._compare(lambda: self._agrees(plan, some, generators))
        if agrees is PlanCheck.UNKNOWN:  # fewer records may be shorter, with fewer operations
            agrees = self._compare(lambda: self._agrees(plan, batch, generators))
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
        """Compare in training mode, or without it if two passes draw other random numbers."""
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

    def _agrees(self, plan: GradientPlan, batch: Batch, generators: GeneratorStates) -> PlanCheck:
        """Compare a plan's gradients of each record with those of the record's own loss.

        If the pass draws random numbers, the record alone would draw others. Its loss in a
        plain pass over the same batch, on the same numbers, is differentiated then.
        """
        names, records = plan.by_rule, count_records(batch)
        found = self._by_rule((plan,), batch)
        if found is None:
            return PlanCheck.UNKNOWN
        _, losses, forms = found
        again = self._losses(batch, records)
        if not _losses_agree(losses, again):
            return PlanCheck.DRAWS
        drawn = again if generators.advanced() else None
        del again  # its graph, if it is not differentiated
        # One record at a time, so that the gradients of one are held.
        agrees = all(
            _agree_on(record, records, forms, self._truth(record, names, batch, drawn))
            for record in range(records if names else 0)
        )
        return PlanCheck.AGREES if agrees else PlanCheck.DIFFERS

    def _truth(
        self, record: int, names: Sequence[str], batch: Batch, losses: Tensor | None
    ) -> dict[str, Tensor | None]:
        """Return a record's gradients by its loss among given losses, else by its own loss."""
        if losses is None:
            found = self.alone(slice_records(batch, record, record + 1))
            return {name: found[name] for name in names}
        parameters = [self.parameters[name] for name in names]
        gradients = torch.autograd.grad(
            losses[record], parameters, retain_graph=True, allow_unused=True
        )
        return dict(zip(names, gradients, strict=True))

    def _by_rule(
        self, plans: Sequence[GradientPlan], batch: Batch
    ) -> tuple[GradientPlan, Tensor, dict[str, GradientForm | None]] | None:
        """Return the plan that fits, the losses and the gradients; None if no plan fits."""
        if not plans:
            return None
        newest, records, named = plans[0], count_records(batch), self.parameters
        tape = Tape(
            (named[name] for name in newest.by_rule), newest.spread, records,
            dict(newest.broadcasts), None,
        )  # fmt: skip
        # What prepares the pass runs before the tape is active, which would watch it.
        self.reset()
        losses = run_on_tape(tape, self.loss, self._model, copy_containers(batch))
        if losses is None:
            self.differentiates = True
            return None
        self._required(losses, records)
        fitting = ((p, p.fitting_layouts(tape.uses, records)) for p in plans
                   if p is newest or p.recorded_alike(newest))  # fmt: skip
        plan, layouts = next(((p, found) for p, found in fitting if found is not None), (None, ()))
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
        found = _by_parameter(tape.uses, layouts, gradients, records)
        forms = {
            name: merge_forms(found[id(p)]) if id(p) in found else None for name, p in named.items()
        }
        return plan, losses, share_inner_products(forms)

    def _of_one(self, batch: Batch) -> tuple[Tensor, dict[str, GradientForm | None]]:
        """Return the gradient of a single record, which is that of the batch: no rule is needed."""
        named = self.parameters
        with convert_user_errors(batch):
            losses = self._losses(batch, 1)
            gradients = gradients_of(losses.sum(), list(named.values()))
        return losses, {
            name: None if g is None else DenseGradients(at_least_float32(g)[None])
            for name, g in zip(named, gradients, strict=True)
        }

    def alone(self, record: Batch) -> dict[str, Tensor | None]:
        """Return the gradients of a single record by its own loss, without any rule.

        Args:
            record: A batch of one record.

        Returns:
            Gradients by parameter name; None if the loss does not depend on the parameter.
        """
        if self.differentiates:  # such a loss may accumulate into .grad
            return dict(
                zip(self.parameters, self._per_record(self.parameters)(record), strict=True)
            )
        with torch.enable_grad():
            _, forms = self._of_one(record)
        return {name: None if form is None else form.dense() for name, form in forms.items()}

    def losses(self, batch: Batch) -> Tensor:
        """Return the losses of a plain pass, from the state at which passes start.

        Args:
            batch: The records.

        Returns:
            Shape ``(records,)``.

        Raises:
            InvalidArgument: If the loss does not run, or is not one number per record.
        """
        return self._losses(batch, count_records(batch))

    def _one_by_one(self, batch: Batch) -> tuple[Tensor, dict[str, GradientForm | None]]:
        """Return all gradients record by record."""
        began = time.process_time()
        gradients = self._per_record(self.parameters)
        forms: dict[str, GradientForm | None] = {
            name: DenseGradients(at_least_float32(values))
            for name, values in zip(self.parameters, gradients(batch), strict=True)
        }
        self._rewind()
        losses = self._losses(batch, count_records(batch))
        self.slow_seconds += time.process_time() - began
        return losses, forms

    def _losses(self, batch: Batch, records: int) -> Tensor:
        """Return losses of the expected shape, with errors of user code made typed."""
        with convert_user_errors(batch):
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


@torch.no_grad()
def _agree_on(
    record: int,
    records: int,
    forms: Mapping[str, GradientForm | None],
    truth: Mapping[str, Tensor | None],
) -> bool:
    """Return whether |own - true| <= tolerance |true| of a record, if its gradient is finite."""
    gap = size = 0.0
    for name, found in truth.items():
        form, own = forms[name], None
        true = None if found is None else at_least_float32(found).flatten()
        if true is not None:
            size += float(torch.linalg.vector_norm(true)) ** 2
        if form is not None:
            device = None if true is None else true.device
            own = form.only(torch.arange(records, device=device) == record).dense().flatten()
        difference = true if own is None else own if true is None else own - true
        if difference is not None:
            gap += float(torch.linalg.vector_norm(difference)) ** 2
    return not math.isfinite(size) or gap <= PLAN_TOLERANCE**2 * size + 1e-30


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
    functions: dict[int, ParameterFunction] = {}
    with torch.no_grad(), without_autocast(_device(gradients)):
        for use, layout, gradient in zip(uses, layouts, gradients, strict=True):
            if gradient is None:
                continue
            # With k rows per record, the rule treats rows as records; ``grouped`` adds them.
            inside, forms = layout, use.operation.forms
            if use.operation.at is not None:
                inside, forms = _place(layout, use.operation.at)
            x = at_least_float32(inside.first(use.operation.input, records))
            g = at_least_float32(layout.first(gradient, records))
            rows = len(g) // records
            functions.update(use.functions)
            for parameter, form in forms(x, g):
                if parameter is not None and form is not None and id(parameter) in use.functions:
                    found[id(parameter)].append(form if rows == 1 else form.grouped(rows))
    return _pulled_back({key: merge_forms(forms) for key, forms in found.items()}, functions)


def _place(
    layout: RecordLayout, at: Callable[[int], tuple[int, Forms]]
) -> tuple[RecordLayout, Forms]:
    """Return the layout of an operation's input, and its forms, for a layout of its output."""
    dimension = record_dimension(layout)
    if dimension is None:
        raise ValueError("the place of the records is unknown")
    inside, forms = at(dimension)
    return replace(layout, dimension=inside), forms  # type: ignore[type-var]


def _pulled_back(
    forms: Mapping[int, GradientForm], functions: Mapping[int, ParameterFunction]
) -> dict[int, list[GradientForm]]:
    """Return the gradients of parameters from those of functions of them."""
    found: defaultdict[int, list[GradientForm]] = defaultdict(list)
    entered: defaultdict[int, list[tuple[GradientForm, ParameterFunction]]] = defaultdict(list)
    parameters: dict[int, Tensor] = {}
    for key, form in forms.items():
        function = functions[key]
        if not function.is_current:
            raise ValueError("a function of parameters was changed in place after its use")
        for source in function.sources:
            if source is function.tensor:
                found[id(source)].append(form)
            else:
                parameters[id(source)] = source
                entered[id(source)].append((form, function))
    for key, pairs in entered.items():
        each, by = zip(*pairs, strict=True)
        found[key].append(PulledBackGradients(each, by, parameters[key]))
    return found


def _device(gradients: Sequence[Tensor | None]) -> str:
    """Return the device type of the gradients, for autocast."""
    return next((g.device.type for g in gradients if g is not None), "cpu")


def without_autocast(device: str) -> AbstractContextManager[object]:
    """Return a context in which nothing is cast; to enter that of torch takes 5 microseconds.

    Args:
        device: Type of the device, as ``cpu``.

    Returns:
        A context that does nothing where autocast is off.
    """
    return (
        torch.autocast(device, enabled=False)
        if torch.is_autocast_enabled(device)
        else nullcontext()
    )


def at_least_float32(tensor: Tensor) -> Tensor:
    """Return a tensor in float32 if it is in half precision: norms are taken in float32.

    Args:
        tensor: Any tensor.

    Returns:
        The tensor itself unless its type is float16 or bfloat16.
    """
    return tensor.float() if tensor.dtype in HALF else tensor
