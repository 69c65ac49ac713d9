"""The strategy ``dssgd``: selective SGD as published, with its assumption in every ledger.

A participant's ledger records each upload, with the scales that are drawn, before the noise. The
claim is the composition over all uploads. The ledger names the assumed sensitivity as a use of
the records that it does not account for, so no claim goes without it.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from torch import Tensor

from dpaudit.trainer.federated.dssgd import (
    SparseVectorScales,
    Upload,
    Vector,
    select_upload,
)
from dpaudit.trainer.federated.dssgd_accounting import ASSUMPTIONS, upload_release
from dpaudit.trainer.federated.fedavg import require_federated_model
from dpaudit.trainer.federated.federation import Federation
from dpaudit.trainer.federated.local_training import LocalTrainers, PlainTrainer
from dpaudit.trainer.federated.selective_rounds import (
    SelectiveRounds,
    flatten_weights,
    split_vector,
)
from dpaudit.trainer.federated.strategy import StrategyDefinition
from dpaudit.vocabulary.errors import InvalidArgument, InvalidUpdate
from dpaudit.vocabulary.federation import OBSERVERS, FederatedConfig
from dpaudit.vocabulary.ledger import SELECTED_ENTRIES, Sampling
from dpaudit.vocabulary.privacy_terms import Unit

STEPS = "steps"


class PublishedTurn:
    """Plain local SGD, then the published selection and noise.

    Args:
        federation: The federation.
    """

    def __init__(self, federation: Federation) -> None:
        self._federation, self._weights = federation, federation.weights()
        size = sum(part.numel() for part in self._weights.values())
        scales = SparseVectorScales.of(federation.config.selective, size)
        self._release = None if scales is None else upload_release(scales)
        count = len(federation.participants)
        self._trainers = LocalTrainers(federation, PlainTrainer, [0] * count)

    def has_budget(self, participant: int) -> bool:
        """Return whether a participant has budget for one more upload."""
        ledger = self._federation.participants[participant].ledger
        return self._release is None or ledger.has_room(self._release)

    def take(self, participant: int, number: int, local: Vector) -> tuple[Vector, Upload]:
        """Train one round of local steps, record the upload, and select it.

        Args:
            participant: Number of the participant, from 0.
            number: Number of the round, from 0.
            local: The participant's parameters after its download, shape ``(d,)``.

        Returns:
            The participant's parameters after training, and its upload.

        Raises:
            InvalidUpdate: If local training diverged.
        """
        one = self._federation.participants[participant]
        weights = split_vector(local, self._weights)
        trained = flatten_weights(self._trainers.trainer(participant).train(weights, number))
        change = trained - local
        if not np.isfinite(change).all():
            raise InvalidUpdate(participant, "its change is NaN or infinite")
        if self._release is not None:
            one.ledger.record(SELECTED_ENTRIES, self._release, step=number)
        selective = self._federation.config.selective
        return trained, select_upload(change, selective, one.stream, number)

    def uploaded(self, upload: Upload) -> None:
        """Take note of nothing: counters are all that the published server keeps."""

    def state(self) -> dict[str, Tensor]:
        """Return the number of steps of each participant."""
        return {STEPS: self._trainers.steps}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Continue from the numbers of steps of a checkpoint."""
        self._trainers.steps_before = [int(steps) for steps in state[STEPS]]


def is_noisy(config: FederatedConfig) -> bool:
    """Return whether settings add the published noise."""
    return config.selective.epsilon_per_epoch is not None


def require_published_settings(config: FederatedConfig) -> None:
    """Refuse settings that the published strategy cannot use.

    Args:
        config: The settings of the run.

    Raises:
        InvalidArgument: If Gaussian noise is set, the selection has no noise of its own, or the
            model's settings have no meaning in a federation.
    """
    require_federated_model(config)
    if config.privacy.noise_multiplier > 0:
        allowed = "0 for dssgd, whose noise is set by epsilon_per_epoch (or use dssgd-corrected)"
        raise InvalidArgument("noise_multiplier", config.privacy.noise_multiplier, allowed)
    SparseVectorScales.of(config.selective, 1)  # refuses noise with the largest entries


DEFINITION = StrategyDefinition(
    unit=Unit.RECORD,
    protects_against=OBSERVERS,
    begin=lambda federation: SelectiveRounds(federation, PublishedTurn(federation)),
    check=require_published_settings,
    is_private=is_noisy,
    sampling=lambda config: Sampling.FULL_BATCH,
    clip_norm=lambda config: 2 * config.selective.gradient_bound,  # per coordinate, as assumed
    unaccounted=lambda config: ASSUMPTIONS if is_noisy(config) else (),
    assumed_public=("order of turns", "who joins a round"),
)
