"""The sum of clipped per-record gradients: one forward and one backward pass.

Book-keeping (Bu et al. 2023, arXiv:2210.00038): the backward pass stops at the outputs of
operations; each operation's per-record norms come from its input and that gradient, by
the cheaper of two ways; and the clipped sum is one product where plain training has the
weight's gradient. What has no rule is differentiated record by record.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor, nn

from dpaudit.trainer.engine.alone import Alone, Coins, chosen
from dpaudit.trainer.engine.batches import (
    Batch,
    blank,
    chunks,
    count,
    doubled,
    fresh,
    joined,
    part,
    shapes,
    taken,
)
from dpaudit.trainer.engine.clipping import Clipping, finite_records
from dpaudit.trainer.engine.comparison import same
from dpaudit.trainer.engine.forms import Dense, Form, merged
from dpaudit.trainer.engine.functional import (
    FAILURES,
    PerRecordGradients,
    PerSampleLoss,
    differentiated,
    typed_errors,
)
from dpaudit.trainer.engine.independence import Look, made_up
from dpaudit.trainer.engine.layout import Layout
from dpaudit.trainer.engine.plan import (
    Plan,
    make_plan,
    record_by_record,
    run,
)
from dpaudit.trainer.engine.premises import Premises, premises_of
from dpaudit.trainer.engine.state import (
    BufferGuard,
    ModuleState,
    parameter_marks,
    saved_state,
)
from dpaudit.trainer.engine.tape import Tape, Use
from dpaudit.vocabulary.errors import DpauditError, InvalidArgument, require_count

MOST_PLANS = 32  # models may have a plan for each length of records
MOST_TRIED = 32  # records that are looked at before a plan is made
MOST_NUMBERS = 20_000_000  # output gradients that are kept at once, until all norms are known
FEW = 2  # records that are looked at again where values have changed
FIRST_LOOK = 4  # steps after which they are anyway, then after twice as many, and so on
MOST_SHAPES = 4096
FIRST_ALONE, ALONE_EVERY = 8, 4  # of steps: the first after a look, then one in so many
FIRST_DRAWN, DRAWN_EVERY = 4, 64  # of steps with randomness: the first, then one in so many
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


class PlanCheck(Enum):
    """Whether plans give the gradients of records' own losses."""

    AGREES = "they do"
    DIFFERS = "they do not"
    DRAWS = "two passes over the same records differ, as with dropout"
    UNKNOWN = "no plan fits"


class Engine:
    """Sums of clipped gradients of one model and loss.

    What is learned of them is verified on the first batch, and again when its premises
    change (``premises.py``). Before every sum the premises are compared, which is cheap.

    Args:
        model: In the mode in which it trains.
        loss: Of (model, batch), per record.

    Attributes:
        loss: May be set to another function before any step; one of the same code, with the
            same values in its closure, is the same.
    """

    def __init__(self, model: nn.Module, loss: PerSampleLoss) -> None:
        self._model, self.loss = model, loss
        self._premises: Premises | None = None
        self._forget()
        self._reset: Callable[[], None] = _nothing
        self._seen: Batch = None  # a record, of a model whose state moves
        self._taken, self._look_at = 0, FIRST_LOOK
        self._draws_by_python = False  # or by NumPy: whose generators are then kept in mind
        self._looked_until = FIRST_ALONE  # in all steps up to it, one record is run alone
        self._drawn = 0  # how often a record's loss was another one alone, as by dropout

    def _forget(self) -> None:
        self._plans: tuple[Plan, ...] = ()  # the newest first
        self._records_are_apart = self._stale = self._differentiates = False
        self._shapes: set[tuple[object, ...]] = set()
        self._moving: frozenset[str] | None = None  # what every pass writes to; None: nothing

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """The trainable parameters by name; a tied one once."""
        return {name: p for name, p in self._model.named_parameters() if p.requires_grad}

    def clipped_sum(self, batch: Batch, clipping: Clipping, chunk: int | None = None) -> Clipped:
        """Return the clipped sum, taking ``chunk`` records at a time.

        The chunk is a matter of memory and speed alone; None: about what plain training
        would need. No records give zeros. Buffers that a forward pass moves, whatever the
        records are, move as by one pass, whatever the number of records and chunks is.

        Raises:
            InvalidArgument: the loss is not one number a record, records are mixed, or a
                buffer keeps something of them.
        """
        if chunk is not None:
            require_count("chunk", chunk)
        self.require_independence(batch)
        self._taken += 1
        with self._one_pass(batch), self._unwritten_parameters():
            size = chunk or self._fitting(batch)
            parts = self._sums(batch, size, clipping)
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

    def _sums(self, batch: Batch, size: int, clipping: Clipping) -> list[Clipped]:
        """Return the sum of each chunk; a record of one of them is held against itself alone."""
        records, parts = count(batch), []
        looks = self._taken <= self._looked_until or chosen(ALONE_EVERY) == 0
        looked_at = chosen(records) if records > 1 and looks else None
        for number, some in enumerate(chunks(batch, size)):
            holds = looked_at is not None and number == looked_at // size
            coins = Coins(python=self._draws_by_python) if holds else None
            found = self._sum(some, clipping)
            if coins is not None and looked_at is not None:
                alone = Alone(
                    self._model,
                    self._fresh_loss,
                    self._reset,
                    takes_gradients=self._differentiates,
                )
                again = self._drawn < FIRST_DRAWN or chosen(DRAWN_EVERY) == 0
                self._drawn += alone.require_same(
                    some, found.losses, looked_at % size, coins, again=again
                )
            parts.append(found)
        return parts

    @contextmanager
    def _unwritten_parameters(self) -> Iterator[None]:
        """Refuse a pass that writes to parameters: that would be released without noise.

        Raises:
            InvalidArgument: Names the parameter.
        """
        before = parameter_marks(self._model)
        yield
        after = parameter_marks(self._model)
        written = [name for name in {**before, **after} if before.get(name) != after.get(name)]
        if written:
            raise InvalidArgument(
                "model",
                f"one whose forward pass writes to {written[0]!r}",
                "free of parameters that records move without noise (a codebook or a teacher "
                "that is averaged, Embedding(max_norm=...))",
            )

    def forget(self) -> None:
        """Verify everything again before the next sum, as after a change from outside."""
        self._premises = None

    def require_independence(self, batch: Batch) -> None:
        """Verify that records are neither mixed nor kept, where that is not known.

        In full on the first batch that can show it, and whenever modules, training flags,
        hooks, ``requires_grad`` or the loss's code have changed. On few records whenever
        values have changed that the code may branch on, or records have shapes that were not
        seen. Cheap otherwise: may be called before every step.

        Raises:
            InvalidArgument: they are.
        """
        records, shape = count(batch), shapes(batch)
        if not self.parameters:
            raise InvalidArgument(
                "model", f"{type(self._model).__name__} without one", "one with a trained parameter"
            )
        self._require_no_hooks()
        found, known = premises_of(self._model, self.loss), self._premises
        if known is None or found.structure != known.structure:
            self._forget()
        values = known is not None and found.values != known.values
        self._premises = found
        self._stale = self._stale or values
        if not records:
            if not self._records_are_apart:
                self._look_at_no_records(batch)
        elif not self._records_are_apart:
            self._verify(batch)
            self._records_are_apart, self._stale = records > 1, False
            self._looked_until = self._taken + FIRST_ALONE
            self._look_at = self._taken + FIRST_LOOK
        elif self._stale or shape not in self._shapes or self._taken >= self._look_at:
            self._verify_again(batch)
            self._stale, self._look_at = False, max(2 * self._taken, self._look_at)
        if records and len(self._shapes) < MOST_SHAPES:
            self._shapes.add(shape)

    def _require_no_hooks(self) -> None:
        """Refuse hooks on parameters: a gradient per record would not be given to them."""
        for name, parameter in self.parameters.items():
            if parameter._backward_hooks:
                raise InvalidArgument(
                    "model",
                    f"one with a gradient hook on {name!r}",
                    "without hooks on parameters: change the loss, or the gradients after the "
                    "noise, in the optimizer",
                )

    def _sample(self, batch: Batch, most: int) -> Batch:
        """Return some records from all over the batch; of one, it and another, or it twice."""
        records = count(batch)
        if records > 1:
            return taken(batch, torch.linspace(0, records - 1, min(most, records)).long())
        another = joined(batch, made_up(batch))
        with suppress(Exception), Look(self._model, self.loss) as look:
            look.losses(another)
            return another
        return doubled(batch)

    def _verify(self, batch: Batch) -> None:
        sample = self._sample(batch, MOST_TRIED)
        with self._unwritten_parameters(), Look(self._model, self.loss) as look:
            look.require_apart(sample)
            self._moving = look.require_no_statistics(sample)
            look.require_apart_once_opened(sample)
        self._differentiates |= look.differentiates
        self._draws_by_python |= look.draws
        if not look.requires_grad:
            raise InvalidArgument(
                "per_sample_loss",
                "losses that depend on no trained parameter",
                "differentiable: without torch.no_grad or detach, of what requires_grad",
            )

    def _verify_again(self, batch: Batch) -> None:
        """Look at few records; plans that do not hold any more are forgotten."""
        sample = self._sample(batch, FEW)
        with Look(self._model, self.loss) as look:
            look.require_apart(sample)
            self._moving = look.require_no_statistics(sample) if look.writes else None
        self._differentiates |= look.differentiates
        self._draws_by_python |= look.draws
        if self._plans and not self._differentiates:
            with self._looking():
                agrees = self._in_training_or_not(lambda: self._agree_in_sum(sample))
            if agrees is PlanCheck.DIFFERS:
                self._plans = ()
            elif self._stale:
                self._plans = self._plans[:1]

    def _look_at_no_records(self, batch: Batch) -> None:
        """Let a step without records move buffers as any other would."""
        with suppress(Exception), Look(self._model, self.loss) as look:
            self._moving = look.require_no_statistics(blank(batch))

    @contextmanager
    def _looking(self) -> Iterator[None]:
        """Start every pass from one state and end in it; draw no numbers."""
        state, before = ModuleState(self._model), self._reset
        self._reset = state.restore
        try:
            with torch.random.fork_rng():
                yield
        finally:
            state.restore()
            self._reset = before

    @contextmanager
    def _one_pass(self, batch: Batch) -> Iterator[None]:
        """Move the model's state as by one pass, whatever passes run and on how many records.

        What moves was verified to move the same for all records. It is taken from a pass on
        no record, so that it depends on none, and held against what the passes did.

        Raises:
            InvalidArgument: a buffer moved that did not before, or in another way.
        """
        moving, guard = self._moving, BufferGuard(self._model)
        if moving is None:
            yield
            self._require_unmoved(guard, frozenset())
            return
        state = ModuleState(self._model, moving)
        self._reset = state.restore
        try:
            yield
            self._require_unmoved(guard, moving)
            by_records = saved_state(self._model, moving) if count(batch) else None
            if moving or by_records is None:
                state.restore()
                self._advance(batch)
                self._require_same(by_records, saved_state(self._model, moving))
        except BaseException:
            state.restore()
            raise
        finally:
            self._reset = _nothing

    def _advance(self, batch: Batch) -> None:
        """Run one pass on a record of zeros; on one that was seen where zeros do not run."""
        if count(batch):
            self._seen = part(batch, 0, 1)
        with torch.random.fork_rng():
            try:
                self._fresh_loss(self._model, blank(batch))
            except Exception as error:  # a model may refuse zeros in any way
                if self._seen is None:
                    raise InvalidArgument(
                        "model",
                        f"{type(self._model).__name__}: {type(error).__name__}: {error}",
                        "one that runs on a record of zeros: its buffers move in every pass, "
                        "and must do so without any record",
                    ) from error
                self._fresh_loss(self._model, self._seen)

    def _require_unmoved(self, guard: BufferGuard, moving: frozenset[str]) -> None:
        for name in guard.moved():
            if name not in moving:
                raise self._refused_buffer(name)

    def _require_same(self, by_records: dict[str, object] | None, own: dict[str, object]) -> None:
        for name, value in (by_records or {}).items():
            if not same(value, own.get(name)):
                raise self._refused_buffer(name)

    @staticmethod
    def _refused_buffer(name: str) -> InvalidArgument:
        return InvalidArgument(
            "model",
            f"one whose buffer {name!r} a batch moved as no batch before",
            "free of buffers that records move (they are released with it, without noise)",
        )

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
        if self._differentiates:
            return tuple(self.parameters)
        return self._plans[0].others if self._plans else ()

    def _gradients(self, batch: Batch) -> tuple[Tensor, dict[str, Form | None]]:
        """Return the losses, and the per-record gradients by parameter; None: all zero."""
        if count(batch) == 1:
            return self._of_one(batch)
        found = None if self._differentiates else self._by_plan(batch)
        if found is None:
            return self._one_by_one(batch)
        plan, losses, forms = found
        if plan.others:
            slow = self._per_record(plan.others)
            for name, values in zip(plan.others, slow(batch), strict=True):
                forms[name] = Dense(_full(values))
        return losses, forms

    def _by_plan(self, batch: Batch) -> tuple[Plan, Tensor, dict[str, Form | None]] | None:
        """Return what a plan gives, of those there are or a new one; None: there is none."""
        try:
            found = self._by_rule(self._plans, batch)
            if found is None and not self._differentiates:
                plan = self._plan(batch)
                found = self._by_rule((plan,), batch) if plan is not None else None
        except (DpauditError, torch.OutOfMemoryError):
            raise
        except FAILURES:  # what breaks on detached parameters may run record by record
            return None
        return found

    def _per_record(self, names: Iterable[str]) -> PerRecordGradients:
        at_once = not self._differentiates
        return PerRecordGradients(self._model, self.loss, names, self._reset, at_once=at_once)

    def _fitting(self, batch: Batch) -> int:
        """Return how many records are taken at once: even parts of at most so many numbers."""
        records = max(1, count(batch))
        if records > 1 and not self._plans and not self._differentiates:
            self._plan(batch)
        numbers = self._plans[0].numbers if self._plans else 0
        parts = math.ceil(records * numbers / MOST_NUMBERS)
        return math.ceil(records / max(1, min(parts, records)))

    def _plan(self, batch: Batch) -> Plan | None:
        with self._looking():
            plan = self._planned(batch)
        if plan is not None:
            self._plans = (plan, *self._plans[: MOST_PLANS - 1])
        return plan

    def _planned(self, batch: Batch) -> Plan | None:
        """Look at some records whose loss is finite; None if there is none.

        Zero times what is not finite is NaN, and looks as if a loss reached other records.
        """
        for some in chunks(batch, MOST_TRIED):
            fine = torch.isfinite(self._losses(some, count(some)).detach()).nonzero().squeeze(1)
            if len(fine):
                usable = taken(some, fine.cpu())
                return self._checked(doubled(usable) if len(fine) == 1 else usable)
        return None

    def _checked(self, batch: Batch) -> Plan | None:
        """Return a plan whose gradients were seen to be those of records' own losses.

        Where it cannot be made, or gives others on a few records, as an operation may have
        ways that no rule foresees, every gradient is taken record by record.
        """
        slow = record_by_record(self._model)
        try:
            plan = make_plan(self._model, self._fresh_loss, batch, count(batch))
        except (RuntimeError, IndexError, ValueError):  # a look may break what a run does not
            return slow
        if plan is None:
            self._differentiates = True
            return None
        some = part(batch, 0, CHECKED)
        agrees = self._in_training_or_not(lambda: self._agrees(plan, some))
        return plan if agrees is PlanCheck.AGREES else slow

    def _fresh_loss(self, model: nn.Module, batch: Batch) -> Tensor:
        self._reset()
        return self.loss(model, fresh(batch))

    def _in_training_or_not(self, agree: Callable[[], PlanCheck]) -> PlanCheck:
        """Ask in training mode; without it if what is drawn there, as dropout, differs."""
        try:
            verdict = agree()
            if verdict is not PlanCheck.DRAWS:
                return verdict
            training = [module for module in self._model.modules() if module.training]
            # By the flags alone: eval() of a module of your own may do more, as merging weights.
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
        """Return whether the plans give a weighted sum over records.

        As records are apart, it is the gradient of the weighted sum of losses.
        """
        found = self._by_rule(self._plans, batch)
        if found is None or not found[0].by_rule:
            return PlanCheck.UNKNOWN
        plan, losses, forms = found
        again = self._losses(batch, count(batch))
        if not _equal(losses, again):
            return PlanCheck.DRAWS
        named = self.parameters
        weights = torch.linspace(1, -0.5, len(losses)).to(losses)
        truth = differentiated((weights * again).sum(), [named[name] for name in plan.by_rule])
        gap = size = 0.0
        with torch.no_grad():
            for name, found_true in zip(plan.by_rule, truth, strict=True):
                form, zeros = forms[name], torch.zeros_like(named[name])
                own = zeros if form is None else form.weighted(weights).view_as(zeros)
                true = zeros if found_true is None else found_true
                gap += float(torch.linalg.vector_norm(own - true)) ** 2
                size += float(torch.linalg.vector_norm(true)) ** 2
        differs = gap > AGREEMENT**2 * size + 1e-30  # NaN tells nothing
        return PlanCheck.DIFFERS if differs else PlanCheck.AGREES

    def _agrees(self, plan: Plan, batch: Batch) -> PlanCheck:
        names, records = plan.by_rule, count(batch)
        found = self._by_rule((plan,), batch)
        if found is None:
            return PlanCheck.DIFFERS
        _, losses, forms = found
        if not _equal(losses, self._losses(batch, records)):
            return PlanCheck.DRAWS
        truth = self._per_record(names)(batch)
        gap, size = torch.zeros(records), torch.zeros(records)
        with torch.no_grad():
            for name, true in zip(names, truth, strict=True):
                form = forms[name]
                own = torch.zeros_like(true) if form is None else form.dense().view_as(true)
                gap += (own - true).reshape(records, -1).float().square().sum(dim=1).cpu()
                size += true.reshape(records, -1).float().square().sum(dim=1).cpu()
        fine = torch.isfinite(size)
        agrees = bool((gap[fine] <= AGREEMENT**2 * size[fine] + 1e-30).all())
        return PlanCheck.AGREES if agrees else PlanCheck.DIFFERS

    def _by_rule(
        self, plans: Sequence[Plan], batch: Batch
    ) -> tuple[Plan, Tensor, dict[str, Form | None]] | None:
        """Return the plan that fits, losses and the gradients that rules give; None: none fits."""
        if not plans:
            return None
        newest, records, named = plans[0], count(batch), self.parameters
        tape = Tape((named[name] for name in newest.by_rule), newest.spread, records)
        losses = run(tape, self._fresh_loss, self._model, batch)
        if losses is None:
            self._differentiates = True
            return None
        self._required(losses, records)
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
        named = self.parameters
        with typed_errors():
            losses = self._losses(batch, 1)
            gradients = differentiated(losses.sum(), list(named.values()))
        return losses, {
            name: None if g is None else Dense(_full(g)[None])
            for name, g in zip(named, gradients, strict=True)
        }

    def _one_by_one(self, batch: Batch) -> tuple[Tensor, dict[str, Form | None]]:
        gradients = self._per_record(self.parameters)
        forms: dict[str, Form | None] = {
            name: Dense(_full(values))
            for name, values in zip(self.parameters, gradients(batch), strict=True)
        }
        return self._losses(batch, count(batch)), forms

    def _losses(self, batch: Batch, records: int) -> Tensor:
        with typed_errors():
            losses = self._fresh_loss(self._model, batch)
        return self._required(losses, records)

    @staticmethod
    def _required(losses: Tensor, records: int) -> Tensor:
        if losses.shape != (records,):
            raise InvalidArgument(
                "per_sample_loss",
                tuple(losses.shape),
                f"a function that returns a loss a record, shape ({records},): reduction='none'",
            )
        return losses


def _equal(one: Tensor, other: Tensor) -> bool:
    """Return whether losses are equal but for rounding: a rule may compute in another order."""
    a, b = (each.detach().double().nan_to_num() for each in (one, other))
    return torch.allclose(a, b, rtol=AGREEMENT, atol=1e-6)


def _nothing() -> None:
    pass


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
