"""Sums of clipped per-record gradients of one model and loss.

For records i with gradients g_i, the engine returns sum_i c_i g_i, where the factor c_i
depends on the norm of g_i alone (``clipping.py``). ``planned_gradients.py`` takes the
gradients. This module verifies the premises: records are independent, parameters are not
written to, and buffers do not depend on records.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dpaudit.trainer.engine.batch_structure import (
    Batch,
    blank_record,
    concatenate_batches,
    count_records,
    duplicate_record,
    record_shapes,
    slice_records,
    split_into_chunks,
    take_records,
)
from dpaudit.trainer.engine.checkpointing import checkpointing_without_reentry
from dpaudit.trainer.engine.clipping import Clipping, finite_records
from dpaudit.trainer.engine.freed_memory import keep_freed_memory
from dpaudit.trainer.engine.generators import GeneratorStates
from dpaudit.trainer.engine.gradient_forms import square_norms_of_all
from dpaudit.trainer.engine.independence import (
    IndependenceProbe,
    SingleRecordCheck,
    perturbed_records,
    random_index,
)
from dpaudit.trainer.engine.model_snapshot import ModelSnapshot, take_snapshot
from dpaudit.trainer.engine.model_state import (
    BufferGuard,
    ModuleState,
    ParameterGuard,
    copy_saved_state,
    values_equal,
)
from dpaudit.trainer.engine.per_record_gradients import PerSampleLoss
from dpaudit.trainer.engine.planned_gradients import (
    PlannedGradients,
    at_least_float32,
    do_nothing,
    without_autocast,
)
from dpaudit.trainer.engine.spot_checks import CheckSchedule, SpotCheck, TakenGradients
from dpaudit.trainer.engine.transforms import Transform, TransformTest
from dpaudit.vocabulary.errors import GradientsDisagree, InvalidArgument, require_count

VERIFIED_RECORDS = 6
"""Records on which independence is verified in full. In the steps that follow, single records
are compared with the whole batch; so these few need not show what only many records do."""

REVERIFIED_RECORDS = 2
"""Records that are verified again after values have changed that the code may branch on."""

FIRST_REVERIFICATION = 4
"""Steps until the first unconditional verification; it is repeated when steps have doubled."""

MAX_SHAPES = 4096
"""Shapes of records that are remembered; a shape beyond these is verified at every step."""

FIRST_SINGLE_CHECKS, SINGLE_CHECK_EVERY = 8, 4
"""After a full verification, one record is run alone in 8 steps, then in 1 of 4 at random."""

FIRST_REPEATED_CHECKS, REPEATED_CHECK_EVERY = 4, 64
"""Where the model draws random numbers, a record's own loss may differ. The batch is then run
again in the first 4 such steps, later in 1 of 64 at random."""


@dataclass(frozen=True)
class ClippedSums:
    """The sum of clipped gradients over a batch.

    Attributes:
        sums: Sum per parameter name, in the parameter's shape, float32 or wider.
        norms: Gradient norms of the records before clipping, shape ``(records,)``, float64.
            Secret, as they are released without noise.
        losses: Losses of the records, shape ``(records,)``. Secret for the same reason.
        left_out: Number of records that contribute zero because their gradient is not finite.

    Example:
        >>> import torch
        >>> empty = torch.zeros(0)
        >>> ClippedSums({"bias": torch.zeros(2)}, empty.double(), empty, left_out=0).left_out
        0
    """

    sums: dict[str, Tensor]
    norms: Tensor
    losses: Tensor
    left_out: int


class Engine:
    """Compute sums of clipped per-record gradients of one model and loss.

    The premises are verified in full on the first batch, and again when the model or the loss
    has changed (``model_snapshot.py``). Each later sum only compares a snapshot, which is cheap.

    Args:
        model: Model in the mode in which it trains.
        loss: Function of (model, batch) that returns one loss per record.
        schedule: Which steps get a spot check (``spot_checks.py``); None: no step does.

    Attributes:
        checked: Whether the last sum was drawn for a spot check, whatever its batch was.
        compared: Records whose gradients that check compared; 0 without one.
        slow_share: Share of the last sum's CPU time for backward passes per record.
        disagreement: The spot check that failed, after which no sum is taken; None: none did.

    Example:
        Two records with gradients of norms 70 and 0.7; only the first is clipped:

        >>> import torch
        >>> from dpaudit.trainer.engine import Flat
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> _ = torch.nn.init.ones_(model.weight)
        >>> engine = Engine(model, lambda model, x: model(x).squeeze(1).square())
        >>> found = engine.clipped_sum(torch.tensor([[3.0, 4.0], [0.3, 0.4]]), Flat(1.0))
        >>> found.sums["weight"]
        tensor([[1.0200, 1.3600]])
        >>> found.norms
        tensor([70.0000,  0.7000], dtype=torch.float64)
    """

    def __init__(
        self, model: nn.Module, loss: PerSampleLoss, schedule: CheckSchedule | None = None
    ) -> None:
        keep_freed_memory()
        self._model, self._schedule = model, schedule
        self.disagreement: GradientsDisagree | None = None
        self.checked, self.compared = False, 0
        self.slow_share, self._check_seconds = 0.0, 0.0
        self._gradients = PlannedGradients(model, loss)
        self._snapshot: ModelSnapshot | None = None
        self._transforms = TransformTest()
        self._forget()
        self._real_record: Batch = None  # of a model whose state moves, if zeros do not run
        self._steps, self._next_verification = 0, FIRST_REVERIFICATION
        self._draws_otherwise = False  # than from torch's generator: then others are saved, too
        self._single_checks_until = FIRST_SINGLE_CHECKS  # a step number
        self._random_differences = 0  # records whose own loss differed, as by dropout

    def _forget(self) -> None:
        """Drop everything that was learned of the model and the loss."""
        self._gradients.forget()
        self._records_are_apart = self._stale = False
        self._shapes: set[tuple[object, ...]] = set()
        self._moving: frozenset[str] | None = None  # state that every pass writes; None: nothing

    @property
    def loss(self) -> PerSampleLoss:
        """The per-record loss; it may be replaced between steps.

        A function of the same code, with equal values in its closure, counts as unchanged.
        """
        return self._gradients.loss

    @loss.setter
    def loss(self, loss: PerSampleLoss) -> None:
        self._gradients.loss = loss

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """The trainable parameters with their names; a tied parameter appears once."""
        return self._gradients.parameters

    @property
    def record_by_record(self) -> tuple[str, ...]:
        """Names of the parameters that currently need a backward pass per record, which is slow."""
        return self._gradients.record_by_record

    def clipped_sum(
        self, batch: Batch, clipping: Clipping, chunk: int | None = None
    ) -> ClippedSums:
        """Return the sum of clipped per-record gradients of a batch.

        An empty batch gives zeros. Buffers that every forward pass moves, such as counters, move
        as by one pass, whatever the number of records and chunks is.

        Args:
            batch: The records (``batch_structure.py``).
            clipping: Rule that turns gradient norms into factors.
            chunk: Records per forward and backward pass; affects memory and speed alone. None
                chooses a size near the memory of plain training.

        Returns:
            The sum over all records that have finite gradients, with norms and losses.

        Raises:
            InvalidArgument: If the loss is not one number per record, records are mixed, the
                forward pass writes to a parameter, or a buffer depends on records.
            GradientsDisagree: If a spot check fails, in this or an earlier call.
        """
        if chunk is not None:
            require_count("chunk", chunk)
        if self.disagreement is not None:
            raise self.disagreement
        self.compared, began = 0, time.process_time()
        self.checked = self._schedule is not None and self._schedule.due(self._steps)
        before = self._check_seconds, self._gradients.slow_seconds
        with self._gradients.same_parameters():
            self.require_independence(batch)
            self._steps += 1
            found = self._verified_sum(batch, clipping, chunk)
        self._note_costs(time.process_time() - began, *before)
        return found

    def _verified_sum(self, batch: Batch, clipping: Clipping, chunk: int | None) -> ClippedSums:
        """Return the sum over a batch whose records are known to be independent."""
        self._gradients.walk.refresh()  # for both guards; the inner one does so after the passes
        with (
            checkpointing_without_reentry(),
            self._one_pass(batch),
            self._unwritten_parameters(),
        ):
            self._gradients.plan_again(batch)
            size = chunk or self._gradients.chunk_size(batch)
            parts = self._sums(batch, size, clipping)
        if not parts:
            return self._nothing()
        first, *others = parts
        if not others:
            return first
        for other in others:
            for name in first.sums:
                first.sums[name] += other.sums[name]
        return ClippedSums(
            first.sums,
            torch.cat([part.norms for part in parts]),
            torch.cat([part.losses for part in parts]),
            sum(part.left_out for part in parts),
        )

    def _sums(self, batch: Batch, size: int, clipping: Clipping) -> list[ClippedSums]:
        """Return the sum of each chunk; the loss of one random record is compared with its own."""
        records, parts = count_records(batch), []
        checks = self._steps <= self._single_checks_until or random_index(SINGLE_CHECK_EVERY) == 0
        checked = random_index(records) if records > 1 and checks else None
        # Counted from 0; the chunk with a random record is the one that gets the spot check.
        spotted = random_index(records) if records > 1 and self.checked else None
        for number, some in enumerate(split_into_chunks(batch, size)):
            holds = checked is not None and number == checked // size
            looks = spotted is not None and number == spotted // size
            # Saved before the chunk runs, so that the record can be run on the same numbers.
            generators = self._generators() if holds or looks else None
            self._gradients.numbers = generators
            losses, taken = self._take(some, clipping)
            if looks and generators is not None:
                self._spot_check(some, taken, generators)
            found = self._sum(losses, taken)
            if holds and generators is not None and checked is not None:
                alone = SingleRecordCheck(
                    self._model,
                    self._gradients.fresh_loss,
                    self._gradients.reset,
                    takes_gradients=self._gradients.differentiates,
                )
                again = (
                    self._random_differences < FIRST_REPEATED_CHECKS
                    or random_index(REPEATED_CHECK_EVERY) == 0
                )
                self._random_differences += alone.require_same(
                    some, found.losses, checked % size, generators, again=again
                )
            parts.append(found)
        return parts

    def _note_costs(self, seconds: float, checks: float, slow: float) -> None:
        """Note what a step has cost, given the costs of checks and slow gradients before it."""
        seconds -= self._check_seconds - checks
        self.slow_share = (self._gradients.slow_seconds - slow) / max(seconds, 1e-9)
        if self._schedule is not None:
            self._schedule.note_step(seconds)

    def _spot_check(self, batch: Batch, taken: TakenGradients, generators: GeneratorStates) -> None:
        """Compare what was taken of a chunk with the slow way; a fault ends the run."""
        assert self._schedule is not None
        began = time.process_time()
        try:
            if count_records(batch) > 1:
                check = SpotCheck(self._gradients, batch, generators)
                self.compared = check.require_right(taken)
        except GradientsDisagree as error:
            self.disagreement = error
            raise
        finally:
            spent = time.process_time() - began
            self._check_seconds += spent
            self._schedule.note_check(spent)

    @contextmanager
    def _unwritten_parameters(self) -> Iterator[None]:
        """Refuse a pass that writes to parameters: the change would be released without noise.

        Yields:
            Nothing; the versions of all parameters are compared before and after the block.

        Raises:
            InvalidArgument: If a parameter was written to; the error names it.
        """
        walk = self._gradients.walk
        guard = ParameterGuard(self._model, walk)
        yield
        walk.refresh()
        if written := guard.moved():
            raise InvalidArgument(
                "model",
                f"one whose forward pass writes to {written[0]!r}",
                "without parameters that records change without noise (an averaged codebook "
                "or teacher, Embedding(max_norm=...))",
            )

    def forget(self) -> None:
        """Verify everything again before the next sum, as after a change from outside."""
        self._snapshot = None

    def require_independent_transform(self, transform: Transform, batch: Batch) -> None:
        """Refuse a transform of batches that mixes records, before it changes a batch.

        Args:
            transform: Function of a batch that returns a batch of as many records.
            batch: The batch that it is about to change; it is left as it is.

        Raises:
            InvalidArgument: If records are mixed, added, left out or reordered, or the transform
                remembers records.
        """
        self._transforms.require_independent(transform, batch)

    def require_independence(self, batch: Batch) -> None:
        """Verify that records are independent, as far as this is not known yet.

        The verification is complete on the first batch, and whenever modules, training flags,
        hooks, ``requires_grad`` or the loss's code have changed. It covers few records if the code
        may branch on changed values, if shapes are new, and at steps 4, 8, 16 and so on.
        Otherwise it is cheap, so it may be called before every step.

        Args:
            batch: The records of the step; an empty batch is allowed.

        Raises:
            InvalidArgument: If records are mixed, state depends on them, no parameter is trained,
                or a parameter has a gradient hook.
        """
        records, shape = count_records(batch), record_shapes(batch)
        if not self.parameters:
            raise InvalidArgument(
                "model",
                f"{type(self._model).__name__} without a trained parameter",
                "one with a parameter that requires_grad",
            )
        self._require_no_hooks()
        found, known = take_snapshot(self._model, self.loss), self._snapshot
        if known is None or found.structure != known.structure:
            self._forget()
        values = known is not None and found.values != known.values
        self._snapshot, self._gradients.held = found, found.generators
        self._stale = self._stale or values
        if not records:
            if not self._records_are_apart:
                self._find_moving_state(batch)
        elif not self._records_are_apart:
            self._verify(batch)
            self._records_are_apart, self._stale = records > 1, False
            self._single_checks_until = self._steps + FIRST_SINGLE_CHECKS
            self._next_verification = self._steps + FIRST_REVERIFICATION
        elif self._stale or shape not in self._shapes or self._steps >= self._next_verification:
            self._verify_again(batch)
            self._stale, self._next_verification = (
                False,
                max(2 * self._steps, self._next_verification),
            )
        if records and len(self._shapes) < MAX_SHAPES:
            self._shapes.add(shape)

    def _probe(self) -> IndependenceProbe:
        """Return a probe of the model and the loss."""
        return IndependenceProbe(self._model, self.loss, self._gradients.held)

    def _generators(self) -> GeneratorStates:
        """Return the present states of the generators from which a pass draws."""
        others = self._draws_otherwise
        return GeneratorStates(python=others, held=self._gradients.held if others else ())

    def _require_no_hooks(self) -> None:
        """Refuse hooks on parameters: they would not be called with per-record gradients."""
        for name, parameter in self.parameters.items():
            if parameter._backward_hooks:
                raise InvalidArgument(
                    "model",
                    f"one with a gradient hook on {name!r}",
                    "without hooks on parameters: change the loss, or the gradients after the "
                    "noise, in the optimizer",
                )

    def _sample(self, batch: Batch, most: int) -> Batch:
        """Return records from all over the batch; one record alone is paired with another."""
        records = count_records(batch)
        if records > 1:
            return take_records(batch, torch.linspace(0, records - 1, min(most, records)).long())
        another = concatenate_batches(batch, perturbed_records(batch))
        with suppress(Exception), self._probe() as probe:
            probe.losses(another)
            return another
        return duplicate_record(batch)

    def _verify(self, batch: Batch) -> None:
        """Verify independence, state and differentiability in full."""
        sample = self._sample(batch, VERIFIED_RECORDS)
        self._gradients.walk.refresh()
        with self._unwritten_parameters(), self._probe() as probe:
            probe.require_apart(sample)
            self._moving = probe.require_no_statistics(sample) if probe.writes else None
            probe.require_apart_once_opened(sample)
        self._gradients.differentiates |= probe.differentiates
        self._draws_otherwise |= probe.draws
        if not probe.requires_grad:
            raise InvalidArgument(
                "per_sample_loss",
                "losses that depend on no trained parameter",
                "differentiable in a trained parameter: without torch.no_grad or detach",
            )

    def _verify_again(self, batch: Batch) -> None:
        """Verify independence on few records, and drop plans that no longer agree."""
        sample = self._sample(batch, REVERIFIED_RECORDS)
        with self._probe() as probe:
            probe.require_apart(sample)
            self._moving = probe.require_no_statistics(sample) if probe.writes else None
        self._gradients.differentiates |= probe.differentiates
        self._draws_otherwise |= probe.draws
        with checkpointing_without_reentry():
            self._gradients.verify_plans(sample, stale=self._stale)

    def _find_moving_state(self, batch: Batch) -> None:
        """Find which buffers a pass moves when the first batch is empty."""
        with suppress(Exception), self._probe() as probe:
            self._moving = probe.require_no_statistics(blank_record(batch))

    @contextmanager
    def _one_pass(self, batch: Batch) -> Iterator[None]:
        """Move the model's state as by one pass, whatever passes run and on how many records.

        The state after the step comes from a pass on a record of zeros, so it depends on no
        record. It must equal the state that the passes on the records left.

        Args:
            batch: The records of the step.

        Yields:
            Nothing; passes inside of the block start from the state at its beginning.

        Raises:
            InvalidArgument: If a buffer moved that did not move before, or to another value.
        """
        moving, guard = self._moving, BufferGuard(self._model, self._gradients.walk)
        # No pass moved anything when it was verified: only make sure that this stays so.
        if moving is None:
            yield
            self._require_unmoved(guard, frozenset())
            return
        state = ModuleState(self._model, moving)
        self._gradients.reset = state.restore
        try:
            yield
            self._require_unmoved(guard, moving)
            by_records = copy_saved_state(self._model, moving) if count_records(batch) else None
            if moving or by_records is None:
                state.restore()
                self._advance(batch)
                self._require_same(by_records, copy_saved_state(self._model, moving))
        except BaseException:
            state.restore()
            raise
        finally:
            self._gradients.reset = do_nothing

    def _advance(self, batch: Batch) -> None:
        """Run one pass on a record of zeros, or on a real record if zeros do not run."""
        if count_records(batch):
            self._real_record = slice_records(batch, 0, 1)
        with torch.random.fork_rng():
            try:
                self._gradients.fresh_loss(self._model, blank_record(batch))
            except Exception as error:  # a model may refuse zeros in any way
                if self._real_record is None:
                    raise InvalidArgument(
                        "model",
                        f"{type(self._model).__name__}: {type(error).__name__}: {error}",
                        "one that runs on a record of zeros: its buffers change in every pass, "
                        "and must change without any record",
                    ) from error
                self._gradients.fresh_loss(self._model, self._real_record)

    def _require_unmoved(self, guard: BufferGuard, moving: frozenset[str]) -> None:
        """Refuse a buffer that moved although no pass moved it when it was verified."""
        for name in guard.moved():
            if name not in moving:
                raise self._refused_buffer(name)

    def _require_same(self, by_records: dict[str, object] | None, own: dict[str, object]) -> None:
        """Refuse a buffer whose value after the records differs from that after zeros."""
        for name, value in (by_records or {}).items():
            if not values_equal(value, own.get(name)):
                raise self._refused_buffer(name)

    @staticmethod
    def _refused_buffer(name: str) -> InvalidArgument:
        return InvalidArgument(
            "model",
            f"one whose buffer {name!r} this batch changed as no batch before",
            "without buffers that records change (they are released without noise)",
        )

    def _nothing(self) -> ClippedSums:
        """Return the sum of an empty batch: zeros."""
        sums = {name: at_least_float32(torch.zeros_like(p)) for name, p in self.parameters.items()}
        return ClippedSums(sums, torch.zeros(0, dtype=torch.float64), torch.zeros(0), 0)

    def _take(self, batch: Batch, clipping: Clipping) -> tuple[Tensor, TakenGradients]:
        """Return losses, gradients and clip factors of one chunk."""
        losses, forms = self._gradients.take(batch)
        with torch.no_grad(), without_autocast(losses.device.type):
            squares = square_norms_of_all([*forms.values()], losses)
            kept = finite_records(squares)
            every = bool(kept.all())
            factors = clipping.factors(squares if every else squares[:, kept])
        rules = self._gradients.taken_by_rule
        taken = TakenGradients(forms, squares, factors, kept, rules, clipping.sensitivity, every)
        return losses.detach(), taken

    def _sum(self, losses: Tensor, taken: TakenGradients) -> ClippedSums:
        """Return sum_i c_i g_i for each parameter; the gradients are dropped one by one."""
        sums: dict[str, Tensor] = {}
        left_out = 0 if taken.every else len(taken.kept) - int(taken.kept.sum())
        named = self.parameters
        with torch.no_grad(), without_autocast(losses.device.type):
            rows = _rows_of(taken.factors, named.values())
            for (name, p), row in zip(named.items(), rows, strict=True):
                form = taken.forms.pop(name)
                # A factor of 0 is not enough: 0 times infinity is NaN, which would reveal the
                # record. So records that are not finite are removed before the sum.
                if form is None:
                    sums[name] = at_least_float32(torch.zeros_like(p))
                else:
                    finite = form.only(taken.kept) if left_out else form
                    found = finite.weighted(row)
                    sums[name] = found if found.shape == p.shape else found.view_as(p)
            # |g|^2 over all parameters is the sum of the parameters' squared norms.
            norms = taken.squares.sum(dim=0).sqrt()
        return ClippedSums(sums, norms, losses, left_out)


def _rows_of(factors: Tensor, parameters: Iterable[Tensor]) -> Iterable[Tensor]:
    """Return the factors of each parameter; common ones are converted to float32 once for all."""
    if len(factors) < 2 or factors.stride(0):
        return factors
    wide = any(p.dtype is torch.float64 for p in parameters)
    return [factors[0] if wide else factors[0].float()] * len(factors)
