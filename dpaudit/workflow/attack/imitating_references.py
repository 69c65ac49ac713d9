"""Reference models that imitate a run: trained by DP-SGD with its settings.

References that are trained without noise overfit more than a private model. Their confidences say
little about those of the target. A reference here is trained on half of the records with the run's
clip norm, noise, optimizer and steps, and with the run's expected batch size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from msgspec.structs import replace as with_fields
from numpy.typing import NDArray
from torch import nn

from dpaudit.attacks.membership.private_training import (
    PrivateTraining,
    TrainedPrivately,
    train_privately,
)
from dpaudit.attacks.membership.reference_training import Executor
from dpaudit.trainer.conformance_trainers import RunTrainerFactory
from dpaudit.trainer.models.factories import make_model, trained_part
from dpaudit.trainer.run import prepare_run
from dpaudit.vocabulary.arrays import BoolArray, IntArray
from dpaudit.vocabulary.errors import InvalidArgument
from dpaudit.vocabulary.settings import Progress, RunConfig
from dpaudit.workflow.audit.final_model_runs import imitated_training

REFERENCE_TRAINING = ("plain", "dp-sgd")
"""How references are trained: without noise, or by DP-SGD with the run's settings."""


def require_reference_training(name: str) -> None:
    """Refuse an unknown way to train references.

    Args:
        name: The way.

    Raises:
        InvalidArgument: If it is unknown.
    """
    if name not in REFERENCE_TRAINING:
        allowed = f"one of {', '.join(REFERENCE_TRAINING)}"
        raise InvalidArgument("reference_training", name, allowed)


@dataclass(frozen=True)
class ImitatingReferences:
    """Trains references with a run's settings.

    Attributes:
        config: The run's settings.
        seed: Seed of the references.
        executor: Trains single models, where stacking is slower.
        processes: Number of processes of the executor.
    """

    config: RunConfig
    seed: int
    executor: Executor
    processes: int

    def train(
        self,
        features: NDArray[np.float32],
        labels: IntArray,
        member: BoolArray,
        progress: Progress | None = None,
    ) -> TrainedPrivately:
        """Train one reference for each row of ``member``.

        Args:
            features: Inputs of the trained part, shape ``(records, ...)``.
            labels: Class of each record, shape ``(records,)``.
            member: Whether the reference may train on the record, shape ``(models, records)``.
            progress: Receives each finished reference.

        Returns:
            The references, and how they were trained.

        Raises:
            InvalidArgument: If the run's settings cannot be imitated.
        """
        return train_privately(
            self._settings(int(member[0].sum())),
            features,
            labels,
            member,
            executor=self.executor,
            processes=self.processes,
            progress=progress,
        )

    def _settings(self, records: int) -> PrivateTraining:
        """Return the run's settings for ``records`` records, with the same expected batch."""
        privacy = with_fields(self.config.privacy, seed=self.seed)
        prepared = prepare_run(with_fields(self.config.without_canary_file(), privacy=privacy))
        split: Any = prepared.split  # of records with classes, as the factory below requires
        trained = len(split.train)
        rate = min(1.0, privacy.sampling_rate * trained / records)
        # The public constant of the run, scaled to the batch that the reference really has.
        batch = RunTrainerFactory.of(prepared).expected_batch_size
        scale = rate * records / (privacy.sampling_rate * trained)
        found = imitated_training(prepared, scale * batch, self.seed)
        shape, classes = split.shape, len(split.classes)
        name = self.config.model.model
        initial: Callable[[int], nn.Module] = partial(_untrained, name, shape, classes)
        return replace(found, sampling_rate=rate, make_model=initial)


def _untrained(name: str, shape: tuple[int, ...], classes: int, seed: int) -> nn.Module:
    """Return the trained part of a model with new initial weights."""
    return trained_part(make_model(name, shape, classes, seed))
