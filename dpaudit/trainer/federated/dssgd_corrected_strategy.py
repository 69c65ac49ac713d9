"""The strategy ``dssgd-corrected``: selective SGD whose participants' ledgers bound its cost.

See ``dssgd_corrected`` for the derivation. Every local step is recorded in the participant's
ledger before its noise is drawn, by the session of DP-SGD itself.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from dpaudit.accountants.schedules import coin_sampling
from dpaudit.trainer.federated.dssgd import Upload, Vector, upload_size
from dpaudit.trainer.federated.dssgd_corrected import (
    PublicScores,
    SelectedEntries,
    select_publicly,
)
from dpaudit.trainer.federated.fedavg import (
    is_private,
    local_release,
    require_federated_model,
)
from dpaudit.trainer.federated.federation import Federation
from dpaudit.trainer.federated.local_training import (
    LocalTrainer,
    PlainTrainer,
    PrivateTrainer,
)
from dpaudit.trainer.federated.selective_rounds import (
    SelectiveRounds,
    flatten_weights,
    split_vector,
)
from dpaudit.trainer.federated.strategy import StrategyDefinition
from dpaudit.vocabulary.errors import InvalidArgument, InvalidUpdate
from dpaudit.vocabulary.federation import OBSERVERS, FederatedConfig
from dpaudit.vocabulary.ledger import NoiseKind
from dpaudit.vocabulary.privacy_terms import Unit

STEPS, SQUARES, UPLOADS = "steps", "squared uploads", "uploads"


class CorrectedTurn:
    """DP-SGD on coordinates that were selected from public scores.

    Args:
        federation: The federation.
    """

    def __init__(self, federation: Federation) -> None:
        self._federation, self._weights = federation, federation.weights()
        self._size = sum(part.numel() for part in self._weights.values())
        self._count = upload_size(federation.config.selective.upload_fraction, self._size)
        self._scores = PublicScores.start(self._size)
        self._steps = [0] * len(federation.participants)
        self._made: dict[int, tuple[LocalTrainer, SelectedEntries]] = {}

    def has_budget(self, participant: int) -> bool:
        """Return whether a participant has budget for all steps of a turn."""
        config = self._federation.config
        ledger = self._federation.participants[participant].ledger
        return not is_private(config) or ledger.has_room(
            local_release(config), config.local.local_steps
        )

    def take(self, participant: int, number: int, local: Vector) -> tuple[Vector, Upload]:
        """Select coordinates publicly, train on them, and upload all of them.

        Args:
            participant: Number of the participant, from 0.
            number: Number of the round, from 0.
            local: The participant's parameters after its download, shape ``(d,)``.

        Returns:
            The participant's parameters after training, and its upload.

        Raises:
            InvalidUpdate: If the noisy change is not finite.
        """
        trainer, noise = self._trainer(participant)
        turn = number * len(self._federation.participants) + participant
        # The server's stream: the selection must not depend on a participant's secret words.
        positions = select_publicly(self._scores, self._count, self._federation.stream, turn)
        noise.select(positions)
        trained = flatten_weights(trainer.train(split_vector(local, self._weights), number))
        change = (trained - local)[positions]
        if not np.isfinite(change).all():
            raise InvalidUpdate(participant, "its change is NaN or infinite")
        kept = local.copy()
        kept[positions] = trained[positions]
        return kept, Upload(positions, change)

    def uploaded(self, upload: Upload) -> None:
        """Update the public scores by an upload that the server has added."""
        decay = self._federation.config.selective.counter_decay
        self._scores = self._scores.updated(upload, decay)

    def state(self) -> dict[str, Tensor]:
        """Return the number of steps of each participant, and the public scores."""
        steps = [
            self._made[k][0].steps if k in self._made else before
            for k, before in enumerate(self._steps)
        ]
        return {
            STEPS: torch.tensor(steps, dtype=torch.int64),
            SQUARES: torch.from_numpy(self._scores.squares.copy()),
            UPLOADS: torch.from_numpy(self._scores.uploads.copy()),
        }

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Continue from the steps and the scores of a checkpoint."""
        self._steps = [int(steps) for steps in state[STEPS]]
        self._scores = PublicScores(
            state[SQUARES].double().numpy().copy(), state[UPLOADS].double().numpy().copy()
        )

    def _trainer(self, participant: int) -> tuple[LocalTrainer, SelectedEntries]:
        """Return a participant's trainer and its noise, made when it first joins."""
        if participant not in self._made:
            federation, noise = self._federation, SelectedEntries(self._size)
            one, steps = federation.participants[participant], self._steps[participant]
            trainer: LocalTrainer
            if is_private(federation.config):
                trainer = PrivateTrainer(federation, one, steps=steps, noise=noise)
            else:
                trainer = PlainTrainer(federation, one, steps=steps)
            self._made[participant] = trainer, noise
        return self._made[participant]


def require_corrected_settings(config: FederatedConfig) -> None:
    """Refuse settings under which an unselected coordinate would change, or that are not used.

    Args:
        config: The settings of the run.

    Raises:
        InvalidArgument: If the optimizer is not SGD, or the published noise is set.
    """
    require_federated_model(config)
    if config.model.optimizer != "sgd":
        raise InvalidArgument("optimizer", config.model.optimizer, "sgd for dssgd-corrected")
    if config.selective.epsilon_per_epoch is not None:
        allowed = "None for dssgd-corrected, whose noise is set by noise_multiplier"
        raise InvalidArgument("epsilon_per_epoch", config.selective.epsilon_per_epoch, allowed)


DEFINITION = StrategyDefinition(
    unit=Unit.RECORD,
    protects_against=OBSERVERS,
    begin=lambda federation: SelectiveRounds(federation, CorrectedTurn(federation)),
    check=require_corrected_settings,
    noise=lambda config: NoiseKind.NORMAL if is_private(config) else None,
    is_private=is_private,
    sampling=lambda config: coin_sampling(config.local.sampling_rate),
    assumed_public=("expected batch size", "order of turns", "who joins a round"),
)
