"""Participants that train with DP-SGD as subjects of the conformance tests of a client.

Those of corrected selective SGD train with noise of selected coordinates; all are selected here.
They do exactly what a participant of a federation does: ``PrivateTrainer`` takes the local steps.
Only the key comes from a seed, and releases are recorded in memory. A wrapper around the session
notes the noisy sum and the records of each local step.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dpaudit.trainer.conformance_trainers import (
    flatten_parameters,
    input_directions,
    parameter_slices,
)
from dpaudit.trainer.federated import fedavg
from dpaudit.trainer.federated import federation as federations
from dpaudit.trainer.federated.dssgd_corrected import SelectedEntries
from dpaudit.trainer.federated.federation import Federation, Participant, PreparedFederation
from dpaudit.trainer.federated.federation_run import public_records
from dpaudit.trainer.federated.ledgers import FederationLedger, federation_header
from dpaudit.trainer.federated.local_training import (
    PrivateTrainer,
    local_optimizer,
    schedule_learning_rate,
    set_trainable,
)
from dpaudit.trainer.models.factories import trained_part
from dpaudit.trainer.noise.randomness import Keystream
from dpaudit.vocabulary.conformance import StepClaim
from dpaudit.vocabulary.federation import DSSGD_CORRECTED
from dpaudit.vocabulary.ledger import Randomness

Record = tuple[Any, Any]
Update = NDArray[np.float64]

__all__ = ["ParticipantClientFactory"]


@dataclass(frozen=True)
class ParticipantClientFactory:
    """Makes participants of a federation, for given records, a seed and a number.

    Attributes:
        prepared: The prepared federation; its strategy is ``fedavg`` or ``dssgd-corrected``, with
            noise.

    Example:
        >>> from dpaudit.trainer.federated.federation_run import prepare_federation
        >>> from dpaudit.vocabulary.federation import (
        ...     FederatedConfig, FederatedPrivacy, FederationSettings, LocalTraining)
        >>> from dpaudit.vocabulary.settings import DataSettings, ModelSettings
        >>> prepared = prepare_federation(FederatedConfig(
        ...     DataSettings("digits"), FederationSettings("fedavg", participants=4, rounds=2),
        ...     FederatedPrivacy(delta=1e-5, noise_multiplier=1.0, clip_norm=0.1),
        ...     LocalTraining(local_steps=3), model=ModelSettings("linear")))
        >>> factory = ParticipantClientFactory(prepared)
        >>> client = factory(factory.records(20), seed=0, participant=1)
        >>> client.local_update(client.global_model).shape, client.noisy_sums.shape
        ((650,), (3, 650))
    """

    prepared: PreparedFederation

    @property
    def selects(self) -> bool:
        """Whether noise is that of selected coordinates; the tests select all of them.

        One record's gradient is clipped over all coordinates, so that it moves any selection by
        no more than all of them.
        """
        return self.prepared.config.federation.strategy == DSSGD_CORRECTED

    def claim(self) -> StepClaim:
        """Return the claim that the settings make about each local step.

        Returns:
            The claim on the recorded noisy sums, for the steps of all rounds.
        """
        config = self.prepared.config
        return StepClaim(
            noise_multiplier=config.privacy.noise_multiplier,
            clip_norm=config.privacy.clip_norm,
            sampling_rate=config.local.sampling_rate,
            steps=config.federation.rounds * config.local.local_steps,
            update_scale=1.0,
        )

    def records(self, most: int) -> list[Record]:
        """Return the first records of the first participant that has any.

        Args:
            most: Largest number of records.

        Returns:
            Pairs of features, as inputs of the trained part of the model, and label.
        """
        features, labels = next(own for own in self.prepared.records if len(own[1]))
        return list(zip(features[:most].numpy(), labels[:most].numpy(), strict=True))

    def __call__(self, records: Sequence[Record], seed: int, participant: int) -> ParticipantClient:
        """Return a participant before its first round.

        Args:
            records: Pairs of features and label.
            seed: Seed of the federation's keystream.
            participant: Number of the participant, from 0.

        Returns:
            The participant.
        """
        return ParticipantClient(self, records, Keystream.seeded(seed), participant)


class ParticipantClient:
    """One participant, with the noisy sums and records of its last round.

    Args:
        factory: The factory that makes it.
        records: Pairs of features and label.
        server: The server's keystream, from which the participant's is derived.
        number: Number of the participant, from 0.

    Attributes:
        global_model: The parameters of the first round, shape ``(d,)``.
        groups: The slice of an update for each parameter name.
        weight: The weight of its upload, which is public.

    """

    def __init__(
        self,
        factory: ParticipantClientFactory,
        records: Sequence[Record],
        server: Keystream,
        number: int,
    ) -> None:
        prepared = factory.prepared
        self._model = copy.deepcopy(trained_part(prepared.model))
        self._number = 0
        tensors = _tensors(records, factory.records(1)[0])
        # The tests compare more clients than a small federation has. Their numbers determine their
        # keystreams; a header allows only those of the federation.
        last = prepared.config.federation.participants - 1
        participant = Participant(
            number,
            tensors,
            federations.participant_stream(server, number),
            _ledger_in_memory(prepared, min(number, last)),
        )
        self._federation = Federation(
            prepared.config,
            self._model,
            prepared.split.shape,
            server,
            _ledger_in_memory(prepared, None),
            (participant,),
            0,
            public_records(prepared),
        )
        self._base = flatten_parameters(self._model)
        self.groups = parameter_slices(self._model)
        noise = None
        if factory.selects:
            noise = SelectedEntries(self._base.size)
            noise.select(np.arange(self._base.size))
        self._trainer = PrivateTrainer(self._federation, participant, noise=noise)
        self._steps = _ObservedSteps(self._trainer.private)
        self._trainer.private = self._steps  # type: ignore[assignment]
        self.global_model = self._base
        self.weight = 1.0

    @property
    def noisy_sums(self) -> Update:
        """The noisy sums of the last round's local steps, shape ``(steps, d)``."""
        return np.array(self._steps.noisy_sums)

    @property
    def sampled(self) -> list[list[int]]:
        """The positions of the records of each local step of the last round."""
        return list(self._steps.sampled)

    @property
    def constants(self) -> dict[str, float]:
        """Numbers that the local steps treat as public."""
        return {
            "the expected batch size": self._federation.expected_batch_size,
            "the sampling rate": self._federation.config.local.sampling_rate,
        }

    @property
    def input_directions(self) -> list[Update]:
        """Feature directions that leave some units of the first layer nearly unchanged."""
        features = self._federation.participants[0].records[0]
        return input_directions(self._model, features.shape[1:].numel())

    def local_update(self, model: Update) -> Update:
        """Take the local steps of one round.

        Args:
            model: The global model, shape ``(d,)``.

        Returns:
            The change of the parameters that is uploaded, shape ``(d,)``.
        """
        self._steps.begin_round()
        weights = self._weights(model)
        trained = self._trainer.train(weights, self._number)
        self._number += 1
        upload = fedavg.difference(trained, weights)
        return np.concatenate([part.ravel() for part in upload.values()]).astype(np.float64)

    def recompute(self, model: Update, noisy_sums: Update) -> Update:
        """Return the upload that noisy sums give, by the public optimizer alone.

        Args:
            model: The global model, shape ``(d,)``.
            noisy_sums: The noisy sums of the local steps, shape ``(steps, d)``.

        Returns:
            The change of the parameters, shape ``(d,)``.
        """
        copied = copy.deepcopy(self._model)
        set_trainable(copied, self._weights(model))
        optimizer = local_optimizer(copied, self._federation)
        before = flatten_parameters(copied)
        for step, row in enumerate(noisy_sums):
            schedule_learning_rate(optimizer, self._federation, self._number - 1, step)
            _set_gradients(copied, row / self._federation.expected_batch_size)
            optimizer.step()
        return flatten_parameters(copied) - before

    def _weights(self, model: Update) -> dict[str, Tensor]:
        """Return a flat model as tensors by parameter."""
        parameters = dict(self._model.named_parameters())
        return {
            name: torch.as_tensor(model[own], dtype=parameters[name].dtype).view(
                parameters[name].shape
            )
            for name, own in self.groups.items()
        }


class _ObservedSteps:
    """A session's steps, with the noisy sum and the records of each noted."""

    def __init__(self, private: Any) -> None:
        self._private = private
        self.noisy_sums: list[Update] = []
        self.sampled: list[list[int]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._private, name)

    def begin_round(self) -> None:
        """Forget the steps of the last round."""
        self.noisy_sums, self.sampled = [], []

    def batches(
        self, records: tuple[Tensor, Tensor], *, steps: int
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the session's batches, and note which records they hold."""
        numbered = (*records, torch.arange(len(records[1])))
        for features, labels, numbers in self._private.batches(numbered, steps=steps):
            self.sampled.append(numbers.tolist())
            yield features, labels

    def step(self, *arguments: Any, **options: Any) -> Any:
        """Take the session's step, and note its noisy sum."""
        found = self._private.step(*arguments, **options)
        parts = [p.grad for p in self._private.model.parameters() if p.requires_grad]
        flat = torch.cat([part.flatten().cpu() for part in parts]).numpy().astype(np.float64)
        self.noisy_sums.append(flat * self._private.step_settings.expected_batch_size)
        return found


def _ledger_in_memory(prepared: PreparedFederation, number: int | None) -> FederationLedger:
    header = federation_header(prepared.config, prepared.definition, Randomness.SEEDED, number)
    return FederationLedger.begin(None, header)


def _set_gradients(model: nn.Module, flat: Update) -> None:
    """Set the gradients of all trainable parameters from one vector."""
    for name, own in parameter_slices(model).items():
        parameter = model.get_parameter(name)
        gradient = torch.as_tensor(flat[own], dtype=parameter.dtype, device=parameter.device)
        parameter.grad = gradient.view(parameter.shape)


def _tensors(records: Sequence[Record], like: Record) -> tuple[Tensor, Tensor]:
    """Return features and labels; for no records, in the shapes of ``like``."""
    rows = records or [like]
    features, labels = (
        torch.stack([torch.as_tensor(row[part]) for row in rows])[: len(records)] for part in (0, 1)
    )
    return features, labels
