"""Tests that records are independent, by running the model instead of listing layers.

Clipping bounds the effect of one record only if no operation mixes records and no state keeps
something of them. Some records of a batch are replaced. If the loss of another record changes,
the model or the loss mixes records.
"""

from __future__ import annotations

import math
import os
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress

import numpy as np
import torch
from torch import Tensor, nn

from dpaudit.trainer.engine.batch_structure import (
    Batch,
    blank_record,
    copy_containers,
    count_records,
    map_tensors,
    slice_records,
    take_records,
)
from dpaudit.trainer.engine.differentiation_watch import DifferentiationWatch
from dpaudit.trainer.engine.generators import GeneratorStates, HeldGenerator
from dpaudit.trainer.engine.model_state import (
    EXTRA_STATE,
    BufferGuard,
    ModuleState,
    copy_attributes,
    copy_saved_state,
    seed_torch,
    values_equal,
)
from dpaudit.trainer.engine.per_record_gradients import (
    PerSampleLoss,
    convert_user_errors,
    replaced_parameters,
)
from dpaudit.vocabulary.errors import InvalidArgument

PROBE_RECORDS = 6
"""Synthetic records on which a model without data is tried."""

OUTPUT_TOLERANCE = 1e-4
"""Rounding allowed between runs of the same kernels, relative to the size of the outputs."""

MAX_PERTURBED_RECORDS = 4
"""Records that are tried again with perturbed parameters."""

SMALL_PARAMETER = 4096
"""Entries up to which a parameter is perturbed as a whole, since it may be a gate."""

ModuleOutputs = list[tuple[str, str, Tensor]]
"""Name, class name and output of modules, in order of execution."""


def require_independent_records(model: nn.Module, shape: tuple[int, ...]) -> None:
    """Refuse a model in which one record changes the outputs of another.

    Args:
        model: Model in the mode in which it will train.
        shape: Shape of one record. The batches are synthetic; no real record is used.

    Raises:
        InvalidArgument: If records are mixed; the error names the first module that does.
    """
    generator = torch.Generator().manual_seed(0)
    batch = torch.rand(PROBE_RECORDS, *shape, generator=generator)
    changed = batch.clone()
    changed[0] = 1 - changed[0] * 3
    probe = IndependenceProbe(model, lambda net, records: net(records))
    watched = torch.arange(PROBE_RECORDS) > 0
    with probe:
        if others_moved(probe.losses(batch), probe.losses(changed), watched):
            probe.refuse_mixing(batch, changed, watched)


def require_independent_losses(model: nn.Module, loss: PerSampleLoss, batch: Batch) -> None:
    """Refuse a model or a loss in which one record changes the loss of another.

    A single record cannot show mixing. A model that keeps statistics of its records is refused,
    too, as they are saved with it and would be released without noise.

    Args:
        model: Model in the mode in which it will train.
        loss: Function of (model, batch) that returns one loss per record.
        batch: The records to try.

    Raises:
        InvalidArgument: If records are mixed or change a buffer; the error names the module or
            the buffer.
    """
    with IndependenceProbe(model, loss) as probe:
        probe.require_apart(batch)
        probe.require_no_statistics(batch)


class IndependenceProbe:
    """Run a model and a loss to observe what they do; the model is left as it was.

    Every run starts from the same state and the same seed. Each probe draws a new seed, so that
    some probe takes a branch that is random and rare. Gradients are enabled, as in a step.

    Args:
        model: Model in the mode in which it will train.
        loss: Function of (model, batch) that returns one loss per record.
        held: Random generators that the model or the loss holds.

    Attributes:
        differentiates: Whether any watched run took gradients itself.
        writes: Whether the last watched run changed any state.
        requires_grad: Whether the losses of any run depend on a trained parameter.
        draws: Whether any run drew from another generator than torch's global one.
    """

    def __init__(
        self, model: nn.Module, loss: PerSampleLoss, held: Sequence[HeldGenerator] = ()
    ) -> None:
        self._model, self._loss, self._held = model, loss, held
        self._state = ModuleState(model)
        self._random = torch.random.fork_rng()
        self._seed = int.from_bytes(os.urandom(4), "big")
        self.differentiates = self.writes = self.requires_grad = self.draws = False

    def __enter__(self) -> IndependenceProbe:
        self._random.__enter__()
        self._drawn = GeneratorStates(python=True, held=self._held)
        return self

    def __exit__(self, *error: object) -> None:
        self._drawn.restore()
        self._random.__exit__(None, None, None)
        self._state.restore()

    def losses(self, batch: Batch) -> Tensor:
        """Return the losses of a batch, from the initial state and seed.

        Args:
            batch: The records.

        Returns:
            Whatever the loss returns, detached.
        """
        self._state.restore()
        return self._run(batch)

    def _run(self, batch: Batch) -> Tensor:
        """Run the loss with the probe's seed, from the model's current state."""
        # The same random numbers in all passes, so that only the records make a difference.
        self._drawn.restore()
        seed_torch(self._seed)
        random.seed(self._seed)
        np.random.seed(self._seed)  # noqa: NPY002 - what a model draws from is not ours to choose
        seeded = GeneratorStates(python=True, held=self._held)
        with torch.enable_grad():
            losses: Tensor = self._loss(self._model, copy_containers(batch))
        self.draws |= seeded.others_advanced()
        self.requires_grad |= losses.requires_grad
        return losses.detach()

    def watch(self, batch: Batch) -> Tensor:
        """Return the losses of a batch; note whether gradients are taken and state is written.

        Args:
            batch: The records.

        Returns:
            Whatever the loss returns, detached.

        Raises:
            InvalidArgument: If the model or the loss does not run.
        """
        self._state.restore()
        start, own = copy_saved_state(self._model), copy_attributes(self._model)
        guard = BufferGuard(self._model)
        with convert_user_errors(batch), DifferentiationWatch() as watch:
            losses = self.losses(batch)
        self.differentiates |= watch.differentiates
        moved = bool(guard.moved()) or _differ(start, copy_saved_state(self._model))
        self.writes = moved or _differ(own, copy_attributes(self._model))
        return losses

    def require_apart(self, batch: Batch) -> None:
        """Refuse a loss of one record that changes with another record.

        For each bit of the record number, the records with that bit are replaced by their
        neighbors, and the losses of the others are compared; then the other way round. Any two
        records differ in some bit, so 2 log2(records) runs test all ordered pairs.

        Args:
            batch: The records.

        Raises:
            InvalidArgument: If records are mixed; the error names the first module that does.
        """
        self._require_apart(batch, self.watch(batch))

    def _require_apart(self, batch: Batch, before: Tensor) -> None:
        """Compare the losses of a batch with those after each half of the records is replaced."""
        records = count_records(batch)
        numbers = torch.arange(records)
        if before.shape != (records,):
            return  # refused later, as what it is
        for bit in range(max(0, records - 1).bit_length()):
            for replaced in ((numbers >> bit) & 1 == 1, (numbers >> bit) & 1 == 0):
                changed = take_records(batch, torch.where(replaced, numbers.roll(1), numbers))
                if others_moved(before, self.losses(changed), ~replaced):
                    self.refuse_mixing(batch, changed, ~replaced)

    def require_apart_once_opened(self, batch: Batch) -> None:
        """Refuse a loss that will mix records once parameters have moved.

        A gate that starts at zero hides what it multiplies. So parameters with zeros, and all
        small ones, are perturbed at random, as training perturbs them.

        Args:
            batch: The records; the first few are used.

        Raises:
            InvalidArgument: If records are mixed with the perturbed parameters.
        """
        moved = perturbed_parameters(self._model)
        if not moved:
            return
        some = slice_records(batch, 0, MAX_PERTURBED_RECORDS)
        with replaced_parameters(self._model, moved):
            try:
                with DifferentiationWatch() as watch:
                    before = self.losses(some)
            except InvalidArgument:
                raise
            except Exception:  # the model does not run with other parameters: no finding
                return
            self.differentiates |= watch.differentiates
            self._require_apart(some, before)

    def refuse_mixing(self, batch: Batch, changed: Batch, watched: Tensor) -> None:
        """Raise an error that names the first module whose output mixed records.

        Args:
            batch: The records.
            changed: The same with some records replaced.
            watched: Mask of the records that were not replaced.

        Raises:
            InvalidArgument: Always.
        """
        before, after = self._outputs(batch), self._outputs(changed)
        pairs = zip(before, after, strict=False)
        moved = ((n, k) for (n, k, one), (_, _, two) in pairs if others_moved(one, two, watched))
        name, kind = next(moved, ("", type(self._model).__name__))
        raise InvalidArgument(
            "model",
            f"{kind} {name!r}",
            "without operations that mix records: one record changed the outputs of others "
            "(dpaudit.trainer.fix replaces batch normalization)",
        )

    def _outputs(self, batch: Batch) -> ModuleOutputs:
        """Return the output of every leaf module, and the losses."""
        outputs: ModuleOutputs = []
        with _recorded(self._model, outputs):
            output = self.losses(batch)
        return [*outputs, ("", type(self._model).__name__, output)]

    def require_no_statistics(self, batch: Batch) -> frozenset[str] | None:
        """Refuse a model with state that depends on records.

        The state after a run on the records is compared with that after runs on other records, and
        on fewer.

        Args:
            batch: The records.

        Returns:
            Names of buffers and extra states that every run writes; None if nothing changes, not
            even an attribute.

        Raises:
            InvalidArgument: If state depends on records; the error names the buffer.
        """
        self._state.restore()
        start, guard, own = (
            copy_saved_state(self._model),
            BufferGuard(self._model),
            copy_attributes(self._model),
        )
        with convert_user_errors(batch):
            losses = self.losses(batch)
        after, changed = copy_saved_state(self._model), _differ(own, copy_attributes(self._model))
        written = set(guard.moved())
        written |= {
            name for name, value in after.items() if not values_equal(value, start.get(name))
        }
        for other in _others(batch) if written else []:
            found = self._state_after(other, written)
            moved = [
                name
                for name in after
                if name in found and not values_equal(after[name], found[name])
            ]
            if moved:
                raise self._refused_statistics(moved[0])
        if changed:
            self._require_no_memory(batch, losses)
        self._state.restore()
        return frozenset(written) if written or changed else None

    def _state_after(self, batch: Batch, names: set[str]) -> dict[str, object]:
        """Return the saved state after a run; empty if the model does not run."""
        try:
            self.losses(batch)
        except Exception:  # a user's model may raise anything
            return {}
        return copy_saved_state(self._model, names)

    def _require_no_memory(self, batch: Batch, losses: Tensor) -> None:
        """Refuse a model whose attributes carry information from one batch to the next."""
        found = []
        for earlier in (batch, *_others(batch)[:2]):
            with suppress(Exception):  # a model need not run on synthetic records
                self.losses(earlier)
                found.append(self._run(batch))
        watched = torch.ones(len(losses), dtype=torch.bool) if losses.dim() else None
        if watched is None:
            return
        for one in found[1:]:
            if others_moved(found[0], one, watched):
                raise InvalidArgument(
                    "model",
                    type(self._model).__name__,
                    "without memory: an attribute set by one batch changes the losses of the next",
                )

    def _refused_statistics(self, name: str) -> InvalidArgument:
        """Return the error for a buffer or extra state that depends on records."""
        prefix, _, last = name.rpartition(".")
        owner = f"{type(self._model.get_submodule(prefix)).__name__} {prefix!r}"
        what = "an extra state" if last == EXTRA_STATE else f"the buffer {name!r}"
        return InvalidArgument(
            "model",
            f"{owner} with {what}",
            "without running statistics of its records, which are released without noise "
            "(dpaudit.trainer.fix removes them)",
        )


def _differ(one: dict[str, object], other: dict[str, object]) -> bool:
    """Return whether two states differ in names or values."""
    return one.keys() != other.keys() or not all(
        values_equal(one[name], other[name]) for name in one
    )


def _others(batch: Batch) -> list[Batch]:
    """Return batches of other records in the same number, and of fewer records."""
    records = count_records(batch)
    everyone = torch.zeros(records, dtype=torch.long)
    found = [
        perturbed_records(batch),
        take_records(batch, everyone),
        take_records(blank_record(batch), everyone),
        slice_records(batch, 0, 1),
    ]
    if records > 2:
        found.append(slice_records(batch, 0, records // 2))
    return found


def perturbed_records(batch: Batch) -> Batch:
    """Return other records: real numbers x become 1 - 3 x, integers are shifted by one place.

    Args:
        batch: The records.

    Returns:
        A batch of the same structure. Integers are values of the batch, so they stay valid.
    """

    def change(tensor: Tensor) -> Tensor:
        if tensor.is_floating_point() or tensor.is_complex():
            return 1 - 3 * tensor
        return tensor.roll(1, dims=-1) if tensor.dim() > 1 else tensor.roll(1)

    return map_tensors(batch, change)


def perturbed_parameters(model: nn.Module) -> dict[int, Tensor]:
    """Return other values for trained parameters that may hide a dependence.

    Zeros become numbers of the size of initial weights; other entries move by about a third of
    themselves. Large parameters without a zero are skipped. The model is not written to.

    Args:
        model: The model.

    Returns:
        New values by the identity of the parameter.
    """
    generator = torch.Generator().manual_seed(0)
    found: dict[int, Tensor] = {}
    with torch.no_grad():
        for parameter in model.parameters():
            if not (parameter.requires_grad and parameter.is_floating_point()):
                continue
            if parameter.numel() == 0:
                continue
            # Only a zero, or a small parameter that may be a gate, can hide a dependence.
            zeros = parameter == 0
            if parameter.numel() > SMALL_PARAMETER and not bool(zeros.any()):
                continue
            noise = torch.randn(parameter.shape, generator=generator).to(parameter)
            if parameter.numel() == 1:
                noise = noise.abs() + 0.5  # a gate may open in the positive direction alone
            inputs = math.prod(parameter.shape[1:])
            # Initial weights of a layer have the size 1 / sqrt(inputs).
            size = torch.where(zeros, inputs**-0.5, 0.3 * parameter.abs())
            found[id(parameter)] = (parameter + noise * size).to(parameter.dtype)
    return found


def others_moved(one: Tensor, other: Tensor, watched: Tensor) -> bool:
    """Return whether outputs of the watched records differ by more than rounding.

    Args:
        one: Outputs, with records first.
        other: Outputs of another run.
        watched: Mask of the records to compare.

    Returns:
        False if the first dimension does not count the records, or no finite output moved.
    """
    if one.shape != other.shape:
        return True
    if one.ndim == 0 or one.shape[0] != len(watched):
        return False  # not a module whose rows are known to be records
    watched = watched.to(one.device)
    one, other = one[watched], other[watched]
    fine = torch.isfinite(one)  # compare only entries that were finite before
    gap = (one - other)[fine].abs()
    if not len(gap):
        return False
    most = OUTPUT_TOLERANCE * (1 + one[fine].abs().amax())
    return not bool((gap <= most).all())  # NaN counts as moved


@contextmanager
def _recorded(model: nn.Module, outputs: ModuleOutputs) -> Iterator[None]:
    """Append the outputs of all leaf modules to a list while the block runs."""

    def record(name: str, module: nn.Module, output: object) -> None:
        if isinstance(output, Tensor) and output.is_floating_point():
            outputs.append((name, type(module).__name__, output.detach().clone()))

    handles = [
        module.register_forward_hook(lambda m, _, out, name=name: record(name, m, out))
        for name, module in model.named_modules()
        if not list(module.children())
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


# The check in every step: the loss of one record in its batch equals its loss alone.

LOSS_TOLERANCE = 1e-3
"""Relative gap allowed in float32, as kernels differ by batch size."""

LOW_PRECISION_TOLERANCE = 0.05
"""The same in half precision, or on an accelerator that rounds products."""

MIN_LOSS_SHARE = 1e-2
"""Smallest scale of the comparison, as a share of the mean loss."""


def random_index(records: int) -> int:
    """Return a uniform record number from the operating system's generator.

    Args:
        records: Number of records, at least 1.

    Returns:
        An integer in [0, records).
    """
    return int.from_bytes(os.urandom(8), "big") % records


class SingleRecordCheck:
    """Compares a record's loss within a batch with its loss alone.

    Args:
        model: Model in the mode in which it trains; it is left as it was.
        loss: Function of (model, batch) that returns one loss per record.
        reset: Sets back the buffers that every pass moves.
        takes_gradients: Whether the loss needs gradients to be enabled.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: PerSampleLoss,
        reset: Callable[[], None],
        *,
        takes_gradients: bool,
    ) -> None:
        self._model, self._loss, self._reset = model, loss, reset
        self._takes_gradients = takes_gradients

    def require_same(
        self, batch: Batch, losses: Tensor, record: int, generators: GeneratorStates, *, again: bool
    ) -> bool:
        """Refuse a loss in the batch that differs from the record's own.

        Args:
            batch: The records that were run together.
            losses: Their losses, shape ``(records,)``.
            record: Number of the record to check.
            generators: The generators' states before the batch was run.
            again: Whether to run the batch again if the model draws random numbers.

        Returns:
            Whether the losses differed and random numbers may be the reason.

        Raises:
            InvalidArgument: If the record's loss depends on other records.
        """
        inside = float(losses[record])
        if not np.isfinite(inside):
            return False
        # If the batch drew random numbers, the record runs on the same ones; afterwards the
        # generators continue where the batch left them.
        drawn = generators.advanced()
        state = ModuleState(self._model)
        after = generators.now() if drawn else generators
        try:
            if drawn:
                generators.restore()
            own = slice_records(batch, record, record + 1)
            alone = self._run(own, state)
            if alone is None or self._close(inside, float(alone[0]), losses):
                return False
            if drawn or generators.advanced():
                return (
                    True if not again else self._explained(batch, losses, record, generators, state)
                )
            repeated = self._run(own, state)
            if repeated is None or not torch.equal(repeated, alone):
                return True  # two equal runs differ: the model has its own random generator
        finally:
            if drawn:
                after.restore()
            state.restore()
        raise self._refused()

    def _explained(
        self,
        batch: Batch,
        losses: Tensor,
        record: int,
        generators: GeneratorStates,
        state: ModuleState,
    ) -> bool:
        """Refuse a record whose loss changes when all other records of the batch are permuted."""
        source = torch.arange(len(losses)).roll(1)
        source[record] = record
        generators.restore()
        found = self._run(take_records(batch, source), state)
        if found is None or self._close(float(losses[record]), float(found[record]), losses):
            return True
        raise self._refused()

    @staticmethod
    def _refused() -> InvalidArgument:
        """Return the error for a record whose loss depends on others."""
        return InvalidArgument(
            "model",
            "one that gives a record another loss in its batch than alone",
            "without operations that mix records, in every step (such as an opened gate, mixup "
            "or batch statistics; dpaudit.trainer.fix replaces batch normalization)",
        )

    def _run(self, records: Batch, state: ModuleState) -> Tensor | None:
        """Return the losses of some records; None if the model does not run on them."""
        state.restore()
        self._reset()
        try:
            with nullcontext() if self._takes_gradients else torch.no_grad():
                losses = self._loss(self._model, records)
        except Exception:  # a model may need more than one record in any way
            return None
        return losses.detach() if losses.shape == (count_records(records),) else None

    @staticmethod
    def _close(one: float, other: float, losses: Tensor) -> bool:
        """Return whether two losses are equal up to the rounding of their type and device."""
        low = losses.dtype in {torch.float16, torch.bfloat16} or losses.device.type != "cpu"
        low |= torch.is_autocast_enabled(losses.device.type)
        tolerance = LOW_PRECISION_TOLERANCE if low else LOSS_TOLERANCE
        gap, larger = abs(one - other), max(abs(one), abs(other))
        if gap <= tolerance * larger:  # whatever the mean loss is
            return True
        sizes = losses[torch.isfinite(losses)].double().abs()
        return gap <= tolerance * max(larger, MIN_LOSS_SHARE * float(sizes.mean()))
