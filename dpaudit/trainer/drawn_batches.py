"""The batches of a training: drawn by the key, loaded, transformed, and checked."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing
from typing import Any

import numpy as np
import torch
from torch import nn

from dpaudit.trainer.batches.grouped_records import Users
from dpaudit.trainer.batches.samplers import Sampler
from dpaudit.trainer.canaries.canary_file import CanaryFile
from dpaudit.trainer.data_sources.batch_source import BatchRequest, BatchSource, identity_of
from dpaudit.trainer.data_sources.bound_data import BoundData, BoundSource
from dpaudit.trainer.data_sources.indexed import seeded_generators
from dpaudit.trainer.data_sources.loading import LoadedBatch, load_batches
from dpaudit.trainer.data_sources.mixing_check import MixingCheck
from dpaudit.trainer.data_sources.padding_check import PaddingCheck
from dpaudit.trainer.engine import Engine, PerSampleLoss
from dpaudit.trainer.engine.batch_structure import Batch, count_records, slice_records
from dpaudit.trainer.noise.randomness import Purpose
from dpaudit.trainer.session.training_session import Session
from dpaudit.vocabulary.errors import InvalidArgument, require_count

Transform = Callable[[Batch], Batch]
"""Function of a batch that changes each record by itself."""


class DrawnBatches:
    """Draws the batches of a session, and checks the data that they are drawn from.

    Args:
        session: The training session.
        sampler: Draws the records, or the users.
        data: The data of ``make_private``, and how data are loaded.
        canary_file: The trainer's canary file, if records include canaries.
    """

    def __init__(
        self, session: Session, sampler: Sampler, data: BoundData, canary_file: CanaryFile | None
    ) -> None:
        self._session, self._sampler, self._data = session, sampler, data
        self._canary_file = canary_file
        self._padding, self._mixing = PaddingCheck(), MixingCheck()
        self._checked_data: Any = None  # the last data found to hold the file's canaries
        # Identity of the columns that are drawn by position; the data set keeps them alive.
        self._positioned: tuple[tuple[int, ...], Any] | None = None

    def bind(self, data: Any, users: Users | None, steps: int) -> BoundSource:
        """Return the source of data, after all ranks agree on them.

        Args:
            data: The data; None: those of ``make_private``.
            users: The owners of the records, if users are drawn; else None.
            steps: Number of steps that are to be taken.

        Returns:
            The source.

        Raises:
            InvalidArgument: If the data cannot be used, lack canaries, or differ between ranks,
                or other data are given within one release that draws by position.
        """
        session, bound = self._session, self._data.source_of(data, users)
        self._require_same_records(bound.data)
        if self._canary_file is not None and bound.data is not self._checked_data:
            self._canary_file.require_among(bound.data)
            self._checked_data = bound.data
        records = str(bound.source.records)
        compared = {"records": records, "steps": str(steps), "step": str(session.steps)}
        if session.ranks.world > 1:
            compared["data"] = bound.digest(session.stream)
        session.ranks.require_same_settings(compared)
        return bound

    def load(self, bound: BoundSource, steps: int) -> AbstractContextManager[Iterator[LoadedBatch]]:
        """Return the batches of the next steps; the end of the block ends their processes.

        Args:
            bound: The source.
            steps: Number of steps.

        Returns:
            A context of an iterator, one batch per step.
        """
        session, source, began = self._session, bound.source, self._session.steps

        def request(number: int) -> BatchRequest:
            drawn = self._sampler.draw(session.stream, began + number, source.records)
            return source.request(session.ranks.share(drawn), session.stream, began + number)

        return closing(load_batches(source.source, request, steps, bound.loading))

    def prepare(
        self, loaded: LoadedBatch, bound: BoundSource, transform: Transform | None, engine: Engine
    ) -> Batch:
        """Return a loaded batch as it is yielded.

        Args:
            loaded: The batch.
            bound: Its source.
            transform: Changes the batch; None: it is yielded as it was loaded.
            engine: Tests the transform.

        Returns:
            The batch, transformed on random numbers that depend on the key and the step alone.

        Raises:
            InvalidArgument: If the transform, the data set or its ``collate_fn`` mixes records.
        """
        self._mixing.require_apart(bound.source.source, loaded.positions)
        if bound.users is None:
            self._padding.note(bound.source.source, loaded.positions, loaded.batch)
        if transform is None:
            return loaded.batch
        engine.require_independent_transform(transform, loaded.batch)
        seed = self._session.stream.seed_for(Purpose.BATCH_TRANSFORM, self._session.steps)
        with seeded_generators(seed + self._session.ranks.rank):
            if count_records(loaded.batch) or not bound.source.records:
                return transform(loaded.batch)
            return self._transformed_nothing(bound.source, transform)

    def require_loss_without_padding(
        self, model: nn.Module, loss: PerSampleLoss, batch: Batch
    ) -> None:
        """Refuse a loss that depends on padding, and so on other records.

        Args:
            model: The model; it is left as it was.
            loss: (model, batch) to losses of shape ``(records,)``.
            batch: The batch of the step.

        Raises:
            InvalidArgument: If a record has another loss with the padding of its batch.
        """
        self._padding.require_same(model, loss, batch)

    def _transformed_nothing(self, source: BatchSource, transform: Transform) -> Batch:
        """Return an empty batch in the structure that the transform makes of one record."""
        one = source(np.zeros(1, dtype=np.int64), self._session.stream, self._session.steps)
        return slice_records(transform(one), 0, 0)

    def _require_same_records(self, data: Any) -> None:
        """Refuse other records in the middle of a release that draws by position.

        Where one release covers a pass or the run, each record is assigned its steps by its
        position. In another order, a record could join twice.
        """
        if self._sampler.steps_per_release == 1:
            return
        # The columns are compared: another tuple of the same tensors is the same data set.
        columns = identity_of(data)
        begins = self._session.steps % self._sampler.steps_per_release == 0
        if self._positioned and columns != self._positioned[0] and not begins:
            raise InvalidArgument(
                "dataset", "another one than before", "the same object, in the same order, within "
                "one release: this sampler draws by position",
            )  # fmt: skip
        self._positioned = (columns, data)


def floating_type(model: nn.Module) -> torch.dtype:
    """Return the type of a model's parameters.

    Args:
        model: The model.

    Returns:
        The type of its first parameter of floats; float32 without one.
    """
    types = (p.dtype for p in model.parameters() if p.is_floating_point())
    return next(types, torch.float32)


def count_of_steps(steps: object) -> int:
    """Return a number of steps as an int; integers of Python and NumPy are accepted.

    Args:
        steps: What was given.

    Returns:
        The number, at least 0.

    Raises:
        InvalidArgument: If it is no whole number of at least 0.
    """
    try:
        times = operator.index(steps)  # type: ignore[arg-type]
    except TypeError as error:
        raise InvalidArgument("steps", steps, "a whole number of at least 0") from error
    require_count("steps", times, least=0)
    return times
