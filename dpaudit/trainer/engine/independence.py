"""Does any operation mix records, or keep something of them? Found by trying, not by a list.

One record of a batch is replaced; if another record's loss moves, no clipping of
per-record gradients bounds what one record does.
"""

from __future__ import annotations

import math
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dpaudit.trainer.engine.batches import Batch, blank, count, fresh, mapped, part, taken
from dpaudit.trainer.engine.comparison import same
from dpaudit.trainer.engine.functional import PerSampleLoss, swapped, typed_errors
from dpaudit.trainer.engine.seeding import seed_torch
from dpaudit.trainer.engine.state import EXTRA, BufferGuard, ModuleState, attributes, saved_state
from dpaudit.trainer.engine.tape import Watch
from dpaudit.vocabulary.errors import InvalidArgument

BATCH = 6
TOLERANCE = 1e-4  # relative to the outputs' size; kernels are deterministic here
MOST_OPENED = 8  # records that are looked at once more, with other parameters
FEW_NUMBERS = 4096  # a parameter of at most so many is moved whole: it may be a gate

Seen = list[tuple[str, str, Tensor]]
"""Name, class and output of modules, in order of execution."""


def require_independent_records(model: nn.Module, shape: tuple[int, ...]) -> None:
    """Refuse a model in which one record changes the outputs of another.

    Args:
        model: In the mode in which it will train.
        shape: Shape of one record; the batches are made up, no record is touched.

    Raises:
        InvalidArgument: names the first module whose output mixes records.
    """
    generator = torch.Generator().manual_seed(0)
    batch = torch.rand(BATCH, *shape, generator=generator)
    changed = batch.clone()
    changed[0] = 1 - changed[0] * 3
    look = Look(model, lambda net, records: net(records))
    watched = torch.arange(BATCH) > 0
    with look:
        if _others_moved(look.losses(batch), look.losses(changed), watched):
            look.refuse_mixing(batch, changed, watched)


def require_independent_losses(model: nn.Module, loss: PerSampleLoss, batch: Batch) -> None:
    """Refuse a model or a loss in which one record changes the loss of another.

    A single record shows no mixing. Refused, too, is a model that keeps statistics of its
    records: they are part of it, and would be released without noise.

    Raises:
        InvalidArgument: names the first module whose output mixes records, or a buffer that
            records move.
    """
    with Look(model, loss) as look:
        look.require_apart(batch)
        look.require_no_statistics(batch)


def _numpy_moved(before: Any) -> bool:
    """Return whether NumPy's generator has moved from a state."""
    now: Any = np.random.get_state(legacy=True)  # noqa: NPY002
    return not all(np.array_equal(one, other) for one, other in zip(before, now, strict=True))


class Look:
    """Runs a model and a loss to see what they do; leaves the model as it was.

    Every run starts from the same state and the same seed, which each look draws anew: a branch
    that a coin takes rarely is seen by some look. Gradients are enabled, as in a
    step: a loss may take them.

    Attributes:
        differentiates: Whether a run was seen to take gradients.
        writes: Whether the last one that was watched changed any state.
        requires_grad: Whether the losses of any run depend on what is trained.
        draws: Whether any run drew from Python's or NumPy's generator.
    """

    def __init__(self, model: nn.Module, loss: PerSampleLoss) -> None:
        self._model, self._loss = model, loss
        self._state = ModuleState(model)
        self._random = torch.random.fork_rng()
        self._seed = int.from_bytes(os.urandom(4), "big")
        self.differentiates = self.writes = self.requires_grad = self.draws = False

    def __enter__(self) -> Look:
        self._random.__enter__()
        self._drawn = random.getstate(), np.random.get_state()  # noqa: NPY002
        return self

    def __exit__(self, *error: object) -> None:
        self._random.__exit__(None, None, None)
        random.setstate(self._drawn[0])
        np.random.set_state(self._drawn[1])  # noqa: NPY002
        self._state.restore()

    def losses(self, batch: Batch) -> Tensor:
        """Return the losses of a batch, of a run like any other."""
        self._state.restore()
        return self._run(batch)

    def _run(self, batch: Batch) -> Tensor:
        seed_torch(self._seed)  # the same dropout in all passes
        random.seed(self._seed)
        np.random.seed(self._seed)  # noqa: NPY002 - what a model draws from is not ours to choose
        seeded = random.getstate(), np.random.get_state(legacy=True)  # noqa: NPY002
        with torch.enable_grad():
            losses: Tensor = self._loss(self._model, fresh(batch))
        self.draws |= seeded[0] != random.getstate() or _numpy_moved(seeded[1])
        self.requires_grad |= losses.requires_grad
        return losses.detach()

    def watch(self, batch: Batch) -> Tensor:
        """Return the losses of a batch, and note whether gradients are taken.

        Raises:
            InvalidArgument: If the model or the loss does not run.
        """
        self._state.restore()
        start, own = saved_state(self._model), attributes(self._model)
        guard = BufferGuard(self._model)
        with typed_errors(), Watch() as watch:
            losses = self.losses(batch)
        self.differentiates |= watch.differentiates
        moved = bool(guard.moved()) or _differ(start, saved_state(self._model))
        self.writes = moved or _differ(own, attributes(self._model))
        return losses

    def require_apart(self, batch: Batch) -> None:
        """Refuse a loss of one record that moves with another.

        For every bit of their numbers, the records that have it are replaced by their
        neighbours and the others watched, and the other way round: so any two are told
        apart once.
        """
        records = count(batch)
        numbers = torch.arange(records)
        before = self.watch(batch)
        if before.shape != (records,):
            return  # refused later, as what it is
        for bit in range(max(0, records - 1).bit_length()):
            for replaced in ((numbers >> bit) & 1 == 1, (numbers >> bit) & 1 == 0):
                changed = taken(batch, torch.where(replaced, numbers.roll(1), numbers))
                if _others_moved(before, self.losses(changed), ~replaced):
                    self.refuse_mixing(batch, changed, ~replaced)

    def require_apart_once_opened(self, batch: Batch) -> None:
        """Refuse a loss of one record that will move with another, once parameters have moved.

        What is multiplied by a gate that starts at zero shows nothing. So parameters that
        have zeros, and all small ones, are moved at random, as training moves them.
        """
        moved = moved_parameters(self._model)
        if not moved:
            return
        some = part(batch, 0, MOST_OPENED)
        with swapped(self._model, moved):
            try:
                self.losses(some)
            except InvalidArgument:
                raise
            except Exception:  # it does not run with other parameters: nothing can be seen
                return
            self.require_apart(some)

    def refuse_mixing(self, batch: Batch, changed: Batch, watched: Tensor) -> None:
        """Refuse the model, by the first module whose output mixed records.

        Raises:
            InvalidArgument: Always.
        """
        before, after = self._outputs(batch), self._outputs(changed)
        pairs = zip(before, after, strict=False)
        moved = ((n, k) for (n, k, one), (_, _, two) in pairs if _others_moved(one, two, watched))
        name, kind = next(moved, ("", type(self._model).__name__))
        raise InvalidArgument(
            "model",
            f"{kind} {name!r}",
            "free of operations that mix records (one record moved the outputs of "
            "others; GroupNorm or LayerNorm can stand in for batch normalisation)",
        )

    def _outputs(self, batch: Batch) -> Seen:
        """Return what every leaf module gave, and what the whole did."""
        seen: Seen = []
        with _recorded(self._model, seen):
            output = self.losses(batch)
        return [*seen, ("", type(self._model).__name__, output)]

    def require_no_statistics(self, batch: Batch) -> frozenset[str] | None:
        """Refuse a model with state that records move.

        The state after a run on the records is compared with that after runs on others, and
        on fewer.

        Returns:
            The buffers and extra states that every run writes to; None: nothing moves, not
            even an attribute.

        Raises:
            InvalidArgument: names the buffer.
        """
        self._state.restore()
        start, guard, own = (
            saved_state(self._model),
            BufferGuard(self._model),
            attributes(self._model),
        )
        with typed_errors():
            losses = self.losses(batch)
        after, changed = saved_state(self._model), _differ(own, attributes(self._model))
        written = set(guard.moved())
        written |= {name for name, value in after.items() if not same(value, start.get(name))}
        for other in _others(batch) if written else []:
            found = self._state_after(other, written)
            moved = [name for name in after if name in found and not same(after[name], found[name])]
            if moved:
                raise self._refused_statistics(moved[0])
        if changed:
            self._require_no_memory(batch, losses)
        self._state.restore()
        return frozenset(written) if written or changed else None

    def _state_after(self, batch: Batch, names: set[str]) -> dict[str, object]:
        """Return nothing where a model does not run on records that are made up."""
        try:
            self.losses(batch)
        except Exception:  # any error may come of it
            return {}
        return saved_state(self._model, names)

    def _require_no_memory(self, batch: Batch, losses: Tensor) -> None:
        """Refuse a model whose attributes carry something of a batch to the next one."""
        found = []
        for earlier in (batch, *_others(batch)[:2]):
            with suppress(Exception):  # it does not run on records that are made up
                self.losses(earlier)
                found.append(self._run(batch))
        watched = torch.ones(len(losses), dtype=torch.bool) if losses.dim() else None
        if watched is None:
            return
        for one in found[1:]:
            if _others_moved(found[0], one, watched):
                raise InvalidArgument(
                    "model",
                    type(self._model).__name__,
                    "without memory: what it keeps of one batch moves the losses of the next",
                )

    def _refused_statistics(self, name: str) -> InvalidArgument:
        prefix, _, last = name.rpartition(".")
        owner = f"{type(self._model.get_submodule(prefix)).__name__} {prefix!r}"
        what = "an extra state" if last == EXTRA else f"the buffer {name!r}"
        return InvalidArgument(
            "model",
            f"{owner} with {what}",
            "free of running statistics of its records (they are released with it, without "
            "noise: dpaudit.trainer.fix takes them out)",
        )


def _differ(one: dict[str, object], other: dict[str, object]) -> bool:
    return one.keys() != other.keys() or not all(same(one[name], other[name]) for name in one)


def _others(batch: Batch) -> list[Batch]:
    """Return batches of other records of the same number, and of fewer records."""
    records = count(batch)
    everyone = torch.zeros(records, dtype=torch.long)
    found = [
        made_up(batch),
        taken(batch, everyone),
        taken(blank(batch), everyone),
        part(batch, 0, 1),
    ]
    if records > 2:
        found.append(part(batch, 0, records // 2))
    return found


def made_up(batch: Batch) -> Batch:
    """Return other records: real numbers moved, integers taken from another place."""

    def change(tensor: Tensor) -> Tensor:
        if tensor.is_floating_point() or tensor.is_complex():
            return 1 - 3 * tensor
        return tensor.roll(1, dims=-1) if tensor.dim() > 1 else tensor.roll(1)

    return mapped(batch, change)


def moved_parameters(model: nn.Module) -> dict[int, Tensor]:
    """Return, by identity, trained parameters with other values where these may hide something.

    Zeros become numbers of the size that layers start with, others move by about a third of
    themselves. The model's own are not written to.
    """
    generator = torch.Generator().manual_seed(0)
    found: dict[int, Tensor] = {}
    with torch.no_grad():
        for parameter in model.parameters():
            if not (parameter.requires_grad and parameter.is_floating_point()):
                continue
            if parameter.numel() == 0:
                continue
            zeros = parameter == 0
            if parameter.numel() > FEW_NUMBERS and not bool(zeros.any()):
                continue
            noise = torch.randn(parameter.shape, generator=generator).to(parameter)
            if parameter.numel() == 1:
                noise = noise.abs() + 0.5  # a gate that opens one way
            inputs = math.prod(parameter.shape[1:])
            size = torch.where(zeros, inputs**-0.5, 0.3 * parameter.abs())
            found[id(parameter)] = (parameter + noise * size).to(parameter.dtype)
    return found


def _others_moved(one: Tensor, other: Tensor, watched: Tensor) -> bool:
    if one.shape != other.shape:
        return True
    if one.ndim == 0 or one.shape[0] != len(watched):
        return False  # not a module whose rows are known to be records
    watched = watched.to(one.device)
    one, other = one[watched], other[watched]
    fine = torch.isfinite(one)  # a record that is not finite says nothing of the others
    gap = (one - other)[fine].abs()
    if not len(gap):
        return False
    most = TOLERANCE * (1 + one[fine].abs().amax())
    return not bool((gap <= most).all())  # NaN counts as moved


@contextmanager
def _recorded(model: nn.Module, seen: Seen) -> Iterator[None]:
    def record(name: str, module: nn.Module, output: object) -> None:
        if isinstance(output, Tensor) and output.is_floating_point():
            seen.append((name, type(module).__name__, output.detach().clone()))

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
