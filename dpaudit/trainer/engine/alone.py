"""One record of a real batch: its loss in the batch must be its own.

What was verified on a sample may not hold in this step: a gate has opened, a coin fell, a
value changed that nobody sees change. So one record, drawn at random, is run alone under the
coins of its batch, before anything is released: at the first steps after a look at the model,
and at one in four, at random, later. It costs one forward pass of one record.

A loss that draws random numbers, as dropout does, may be another one alone. Then the whole
batch is run again under the same coins with all other records replaced by their neighbours,
which must leave this record's loss as it was. That costs a forward pass: it is done at the
first steps, and at random ones later.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from contextlib import nullcontext

import numpy as np
import torch
from torch import Tensor, nn

from dpaudit.trainer.engine.batches import Batch, count, part, taken
from dpaudit.trainer.engine.functional import PerSampleLoss
from dpaudit.trainer.engine.state import ModuleState
from dpaudit.vocabulary.errors import InvalidArgument

TOLERANCE = 1e-3  # of a loss in float32, whose kernels may differ by batch size
LOW_TOLERANCE = 0.05  # in half precision, or on an accelerator that rounds products
LEAST_SHARE = 1e-2  # of the mean loss: a loss below it is rounding of larger numbers


class Coins:
    """The states of the generators that a forward pass draws from, at one moment.

    Args:
        python: Whether Python's and NumPy's are among them: to read them takes time.
    """

    def __init__(self, *, python: bool) -> None:
        self._torch = torch.get_rng_state()
        self._python = random.getstate() if python else None
        self._numpy = np.random.get_state() if python else None  # noqa: NPY002

    def were_drawn(self) -> bool:
        """Return whether any number was drawn since."""
        if not torch.equal(self._torch, torch.get_rng_state()):
            return True
        if self._python is None or self._numpy is None:
            return False
        pairs = zip(self._numpy, np.random.get_state(), strict=True)  # noqa: NPY002
        same = all(np.array_equal(one, other) for one, other in pairs)
        return not same or self._python != random.getstate()

    def restore(self) -> None:
        """Let the same numbers be drawn again."""
        torch.set_rng_state(self._torch)
        if self._python is not None and self._numpy is not None:
            random.setstate(self._python)
            np.random.set_state(self._numpy)  # noqa: NPY002


def chosen(records: int) -> int:
    """Return the number of a record, drawn by the operating system's generator."""
    return int.from_bytes(os.urandom(8), "big") % records


class Alone:
    """Compares a record's loss in a batch with its own.

    Args:
        model: In the mode in which it trains; it is left as it was.
        loss: Of (model, batch), per record.
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
        self, batch: Batch, losses: Tensor, record: int, coins: Coins, *, again: bool
    ) -> bool:
        """Refuse a loss in the batch that is not the record's own.

        Args:
            batch: The records that were run together.
            losses: Their losses, shape ``(records,)``.
            record: The one that is looked at.
            coins: The generators before the batch was run.
            again: Whether to run a batch again whose model draws random numbers.

        Returns:
            Whether the loss alone was another one, as the model draws random numbers.

        Raises:
            InvalidArgument: The record's loss depends on other records.
        """
        inside = float(losses[record])
        if not np.isfinite(inside):
            return False
        drawn = coins.were_drawn()  # by the batch
        state = ModuleState(self._model)
        after = Coins(python=True) if drawn else coins
        try:
            if drawn:
                coins.restore()
            own = part(batch, record, record + 1)
            alone = self._run(own, state)
            if alone is None or self._close(inside, float(alone[0]), losses):
                return False
            if drawn or coins.were_drawn():
                return True if not again else self._explained(batch, losses, record, coins, state)
            repeated = self._run(own, state)
            if repeated is None or not torch.equal(repeated, alone):
                return True  # it draws from a generator of its own
        finally:
            if drawn:
                after.restore()
            state.restore()
        raise self._refused()

    def _explained(
        self, batch: Batch, losses: Tensor, record: int, coins: Coins, state: ModuleState
    ) -> bool:
        """Run the batch again, with other records in place of all others."""
        source = torch.arange(len(losses)).roll(1)
        source[record] = record
        coins.restore()
        found = self._run(taken(batch, source), state)
        if found is None or self._close(float(losses[record]), float(found[record]), losses):
            return True
        raise self._refused()

    @staticmethod
    def _refused() -> InvalidArgument:
        return InvalidArgument(
            "model",
            "one that gives a record another loss in its batch than alone",
            "free of operations that mix records, in every step (a gate that has opened, mixup, "
            "statistics of the batch; GroupNorm or LayerNorm can stand in for batch "
            "normalisation)",
        )

    def _run(self, records: Batch, state: ModuleState) -> Tensor | None:
        """Return the losses of some records; None where the model does not run on them."""
        state.restore()
        self._reset()
        try:
            with nullcontext() if self._takes_gradients else torch.no_grad():
                losses = self._loss(self._model, records)
        except Exception:  # a model may need more than one record in any way
            return None
        return losses.detach() if losses.shape == (count(records),) else None

    @staticmethod
    def _close(one: float, other: float, losses: Tensor) -> bool:
        low = losses.dtype in {torch.float16, torch.bfloat16} or losses.device.type != "cpu"
        low |= torch.is_autocast_enabled(losses.device.type)
        sizes = losses[torch.isfinite(losses)].double().abs()
        scale = max(abs(one), abs(other), LEAST_SHARE * float(sizes.mean()))
        return abs(one - other) <= (LOW_TOLERANCE if low else TOLERANCE) * scale
