"""Find losses that depend on the padding of a record, and so on the length of other records.

A ``collate_fn`` that pads to the longest sequence of a batch gives a record other padding when
another record joins. If the loss depends on padding, that record changes the gradients of all
others, and moves their sum by more than the clip norm.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dpaudit.trainer.data_sources.batch_source import RecordSource
from dpaudit.trainer.data_sources.indexed import IndexedRecords
from dpaudit.trainer.engine.batch_structure import (
    Batch,
    batch_columns,
    batch_tensors,
    count_records,
    record_shapes,
    replace_tensors,
)
from dpaudit.trainer.engine.independence import (
    LOSS_TOLERANCE,
    LOW_PRECISION_TOLERANCE,
    MIN_LOSS_SHARE,
    random_index,
)
from dpaudit.trainer.engine.model_state import ModuleState, seed_torch
from dpaudit.trainer.engine.per_record_gradients import PerSampleLoss
from dpaudit.vocabulary.errors import InvalidArgument

FIRST_CHECKS = 8
"""Number of first batches in which the loss of one record is compared."""

CHECK_EVERY = 16
"""Later, one batch in so many is checked, at random."""

SEEDS = 8
"""Number of seeds with which the records of a batch are read, to see whether they are random."""


class PaddingCheck:
    """Compares the loss of a record in its batch with its loss in a batch of its own.

    Only for batches of a ``collate_fn`` that gives the record another shape alone. Dropout is
    off. A loss or ``collate_fn`` that draws random numbers besides is not compared.
    """

    def __init__(self) -> None:
        self._noted, self._row = 0, 0
        self._alone: Batch = None
        self._repeat: Callable[[int], Batch] = _missing
        self._is_random = False

    def note(self, source: RecordSource, which: NDArray[np.int64], batch: Batch) -> None:
        """Keep a random record of a batch, collated alone, for the step on this batch.

        Args:
            source: Takes the records.
            which: Positions of the records of the batch, shape ``(batch,)``.
            batch: The batch.
        """
        self._alone = None
        if not isinstance(source, IndexedRecords) or source.collate_fn is None or len(which) < 2:
            return
        if self._is_random:
            return
        self._noted += 1
        if self._noted > FIRST_CHECKS and random_index(CHECK_EVERY) != 0:
            return
        row = random_index(len(which))
        alone = source.take(which[row : row + 1], 0)
        if record_shapes(alone) != record_shapes(batch):
            self._row, self._alone = row, alone
            self._repeat = lambda seed: source.take(which, seed)

    def require_same(self, model: nn.Module, loss: PerSampleLoss, batch: Batch) -> None:
        """Refuse a loss that depends on the padding of the record that was kept, if any.

        Args:
            model: The model; it is left as it was.
            loss: (model, batch) to losses of shape ``(records,)``.
            batch: The batch that the step was given.

        Raises:
            InvalidArgument: If the record has another loss alone than in its batch.
        """
        alone, self._alone = self._alone, None
        if alone is None or count_records(batch) <= self._row:
            return
        own = _on_devices_of(batch, alone)
        if own is None:
            return
        with _evaluation(model) as state:
            losses = _losses(model, loss, batch, state, 0)
            if losses is None or not bool(torch.isfinite(losses[self._row])):
                return
            again = _losses(model, loss, batch, state, 1)
            if again is None or not torch.equal(losses, again):
                return  # the loss draws random numbers
            found = _losses(model, loss, own, state, 0)
        if found is not None and not _close(losses, self._row, float(found[0])):
            self._is_random = self._draws_numbers()
            if self._is_random:
                return
            raise InvalidArgument(
                "collate_fn", "one whose padding changes the loss of a record", "one that pads "
                "to a fixed length, as PadTokens(length), or the loss must leave padding out "
                "(attention mask, mean over tokens alone): the padding depends on the longest "
                "record of the batch, so records would not be independent",
            )  # fmt: skip

    def _draws_numbers(self) -> bool:
        """Return whether the records of the batch are others with another seed."""
        first = self._repeat(0)
        return any(not _equal(first, self._repeat(seed)) for seed in range(1, SEEDS))


@contextmanager
def _evaluation(model: nn.Module) -> Iterator[ModuleState]:
    """Run a model without dropout inside a ``with`` block, and leave it as it was."""
    training = [(module, module.training) for module in model.modules()]
    state = ModuleState(model)
    with torch.random.fork_rng(devices=[]):
        try:
            for module, _ in training:
                module.training = False
            yield state
        finally:
            state.restore()
            for module, was in training:
                module.training = was


def _losses(
    model: nn.Module, loss: PerSampleLoss, batch: Batch, state: ModuleState, seed: int
) -> Tensor | None:
    """Return the losses of a batch; None if the model does not run on it so."""
    state.restore()
    for module in model.modules():
        module.training = False
    seed_torch(seed)
    try:
        with torch.no_grad():
            losses = loss(model, batch)
    except Exception:  # the step itself raises what is wrong
        return None
    return losses.detach() if losses.shape == (count_records(batch),) else None


def _on_devices_of(batch: Batch, alone: Batch) -> Batch | None:
    """Return a batch on the devices of another; None if their structures differ."""
    tensors, own = batch_tensors(batch), batch_tensors(alone)
    same = [(one.dim(), one.dtype) for one in tensors] == [(one.dim(), one.dtype) for one in own]
    if not same or type(batch) is not type(alone):
        return None
    return replace_tensors(alone, [b.to(a.device) for a, b in zip(tensors, own, strict=True)])


def _close(losses: Tensor, row: int, alone: float) -> bool:
    """Return whether a record's loss is equal alone, up to the rounding of its type."""
    low = losses.dtype in {torch.float16, torch.bfloat16} or losses.device.type != "cpu"
    low |= torch.is_autocast_enabled(losses.device.type)
    inside = float(losses[row])
    sizes = losses[torch.isfinite(losses)].double().abs()
    scale = max(abs(inside), abs(alone), MIN_LOSS_SHARE * float(sizes.mean()))
    return abs(inside - alone) <= (LOW_PRECISION_TOLERANCE if low else LOSS_TOLERANCE) * scale


def _missing(seed: int) -> Batch:
    """Placeholder until a record is kept."""
    raise InvalidArgument("batch", None, "one that batches yielded")


def _equal(one: Batch, other: Batch) -> bool:
    """Return whether two batches hold the same numbers and values."""
    if record_shapes(one) != record_shapes(other):
        return False
    pairs: list[tuple[Any, Any]] = list(zip(batch_tensors(one), batch_tensors(other), strict=True))
    columns = list(zip(batch_columns(one), batch_columns(other), strict=True))
    return all(torch.equal(a, b) for a, b in pairs) and all(list(a) == list(b) for a, b in columns)
