"""Train models with a run's own trainer and settings again, on given records, in memory.

A black-box audit trains many models, with and without one record. Nothing is written, and
nothing of these models is released.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from dpaudit.trainer.attach import make_private
from dpaudit.trainer.models.factories import trained_part
from dpaudit.trainer.noise.randomness import Keystream
from dpaudit.trainer.run import (
    PreparedRun,
    noise_from_settings,
    optimizer_from_settings,
    set_learning_rate,
    viewed_batch,
)
from dpaudit.trainer.tasks import cross_entropies


@dataclass(frozen=True)
class RepeatedRun:
    """Trains models as a run does.

    Attributes:
        prepared: The prepared run; records with classes.
        expected_batch_size: The public constant that noisy sums are divided by, in records. It
            does not depend on the records that a model is trained on.
        weights: Initial parameters and buffers of the trained part; None: those of ``prepared``.
    """

    prepared: PreparedRun
    expected_batch_size: float
    weights: Mapping[str, Tensor] | None = None

    def initial_model(self) -> nn.Module:
        """Return the trained part with its initial weights, in training mode."""
        model = copy.deepcopy(trained_part(self.prepared.model)).train()
        if self.weights is not None:
            model.load_state_dict(dict(self.weights))
        return model

    def train(
        self, features: NDArray[np.float32], labels: NDArray[np.int64], seed: int
    ) -> nn.Module:
        """Train one model.

        Args:
            features: Inputs of the trained part, shape ``(records, ...)``.
            labels: Class of each record, shape ``(records,)``.
            seed: Seed of batches, noise and views.

        Returns:
            The final model's trained part, in evaluation mode.
        """
        prepared = replace(self.prepared, stream=Keystream.of(seed))
        settings, privacy = prepared.config, prepared.config.privacy
        model = self.initial_model()
        private = make_private(
            model,
            optimizer_from_settings(model, prepared),
            noise_multiplier=privacy.noise_multiplier,
            clip_norm=privacy.clip_norm,
            sampling_rate=privacy.sampling_rate,
            expected_batch_size=self.expected_batch_size,
            noise=noise_from_settings(privacy),
            physical_batch_size=settings.speed.physical_batch_size,
            seed=seed,
        )
        decay = settings.model.average_decay
        average = None
        if decay is not None:
            average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay))  # type: ignore[no-untyped-call]
        records = torch.from_numpy(features), torch.from_numpy(labels)
        for batch in private.batches(records, steps=privacy.steps):
            set_learning_rate(prepared, private)
            private.step(cross_entropies, viewed_batch(prepared, private, batch))
            if average is not None:
                average.update_parameters(model)
        final: nn.Module = model if average is None else average.module
        return final.eval()
