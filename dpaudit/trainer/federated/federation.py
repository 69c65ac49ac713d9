"""A federation in one process: the global model, the server, and the participants."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dpaudit.trainer.data import DatasetSplit
from dpaudit.trainer.federated.ledgers import FederationLedger
from dpaudit.trainer.federated.partition import Parts
from dpaudit.trainer.federated.strategy import StrategyDefinition
from dpaudit.trainer.models.factories import default_learning_rate
from dpaudit.trainer.noise.randomness import Keystream, Purpose
from dpaudit.vocabulary.federation import FederatedConfig
from dpaudit.vocabulary.ledger import Randomness, participant_name
from dpaudit.vocabulary.mechanism import Release
from dpaudit.vocabulary.privacy_terms import Bound

KEY_BYTES = 32


@dataclass(frozen=True)
class PreparedFederation:
    """A federation whose settings, data and model were checked before any file is written.

    Attributes:
        config: The run's settings.
        definition: The run's strategy.
        split: Records that are divided among participants, and records held out.
        model: The global model, on its device.
        parts: Positions in ``split.train`` of each participant's records.
        stream: The server's keystream.
    """

    config: FederatedConfig
    definition: StrategyDefinition
    split: DatasetSplit
    model: nn.Module
    parts: Parts
    stream: Keystream

    @cached_property
    def records(self) -> tuple[tuple[Tensor, Tensor], ...]:
        """Each participant's records: inputs of the model's trained part, and labels."""
        from dpaudit.trainer.models.factories import compute_features  # noqa: PLC0415

        train = self.split.train
        return tuple(
            (
                torch.from_numpy(compute_features(self.model, train.features[part])),
                torch.from_numpy(train.labels[part]),
            )
            for part in self.parts
        )


@dataclass(frozen=True)
class Participant:
    """One participant of a federation in one process.

    Attributes:
        number: Number of the participant, from 0.
        records: Inputs of the model's trained part, and labels; records first.
        stream: The participant's keystream: no other participant, nor the server, has its key.
        ledger: The participant's ledger.
    """

    number: int
    records: tuple[Tensor, Tensor]
    stream: Keystream
    ledger: FederationLedger

    @property
    def name(self) -> str:
        """Name of the participant's folder, as ``000``."""
        return participant_name(self.number)


@dataclass(frozen=True)
class Federation:
    """What a strategy works on: the global model, the ledgers and the participants.

    Attributes:
        config: The run's settings.
        model: The global model, whose parameters a round moves in place.
        shape: Shape of one record.
        stream: The server's keystream.
        server: The server's ledger.
        participants: All participants, by number.
        first_round: The first round of this process: 0, or the round after a checkpoint.
        public_records: Public number of records of a participant, which is not the number that
            a participant has.
    """

    config: FederatedConfig
    model: nn.Module
    shape: tuple[int, ...]
    stream: Keystream
    server: FederationLedger
    participants: tuple[Participant, ...]
    first_round: int
    public_records: int

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """The trainable parameters of the global model, by name."""
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    @property
    def expected_batch_size(self) -> float:
        """The public constant that noisy sums of a local step are divided by, in records."""
        local = self.config.local
        return local.expected_batch_size or local.sampling_rate * self.public_records

    @property
    def learning_rate(self) -> float:
        """The learning rate of local training: that of the settings, or the model's default."""
        settings = self.config.model
        return settings.learning_rate or default_learning_rate(
            settings.model, self.shape, settings.optimizer
        )

    def learning_rate_factor(self, number: int, step: int) -> float:
        """Return the factor of the schedule on the learning rate of a local step.

        It depends on public numbers alone, so it changes no claim.

        Args:
            number: Number of the round, from 0.
            step: Number of the local step in the round, from 0.

        Returns:
            1 for a constant rate; for cosine decay, from 1 at the first step of the first round
            to 0 after the last step of the last round.
        """
        if self.config.model.learning_rate_schedule == "constant":
            return 1.0
        part = (number + step / self.config.local.local_steps) / self.config.federation.rounds
        return (1 + math.cos(math.pi * part)) / 2

    def weights(self) -> dict[str, Tensor]:
        """Return a copy of the trainable parameters of the global model, by name."""
        return {name: p.detach().clone() for name, p in self.parameters.items()}

    def reference(self) -> dict[str, NDArray[np.float32]]:
        """Return the trainable parameters as arrays, against which updates are checked."""
        return {name: p.detach().cpu().numpy().copy() for name, p in self.parameters.items()}

    def set_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Set the trainable parameters of the global model.

        Args:
            weights: One tensor per trainable parameter, by name.
        """
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(weights[name])

    def move(self, change: Mapping[str, NDArray[np.float32]], factor: float = 1.0) -> None:
        """Add a change, times a factor, to the trainable parameters of the global model.

        Args:
            change: One array per trainable parameter, by name.
            factor: The factor, such as the server's learning rate.
        """
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                own = torch.from_numpy(change[name]).to(parameter.device)
                parameter.add_(own, alpha=factor)

    def epsilons(self, delta: float) -> dict[str, Bound]:
        """Return certified bounds of epsilon of each participant's ledger so far.

        Equal compositions are computed once.

        Args:
            delta: Delta, in [1e-300, 1).

        Returns:
            Lower and upper bound by the participant's folder name, as ``000``.
        """
        known: dict[frozenset[tuple[Release, int]], Bound] = {}
        found = {}
        for one in self.participants:
            key = frozenset(one.ledger.recorded.items())
            if key not in known:
                known[key] = one.ledger.epsilon(delta)
            found[one.name] = known[key]
        return found


def participant_stream(server: Keystream, participant: int) -> Keystream:
    """Return the keystream of a participant.

    A secure one has a fresh key of the operating system. In seeded mode the key is derived from
    the server's, so that no two participants share noise.

    Args:
        server: The server's keystream.
        participant: Number of the participant, from 0.

    Returns:
        The participant's keystream.

    Example:
        >>> server = Keystream.seeded(7)
        >>> participant_stream(server, 0).key == participant_stream(server, 1).key
        False
    """
    if server.randomness is Randomness.SECURE:
        return Keystream.secure()
    key = bytes(server.bits(Purpose.PARTICIPANT_KEY, participant, KEY_BYTES))
    return Keystream(key, Randomness.SEEDED)


def draw_some(stream: Keystream, number: int, participants: int, rate: float) -> NDArray[np.int64]:
    """Draw floor(rate * participants) participants of a round, at least one, uniformly.

    For strategies that protect records: the draw amplifies nothing.

    Args:
        stream: The server's keystream.
        number: Number of the round, from 0.
        participants: Number of participants.
        rate: Fraction of participants in a round, in (0, 1].

    Returns:
        Numbers of participants, ascending.
    """
    count = max(1, math.floor(rate * participants + 1e-9))
    words = stream.words(Purpose.PARTICIPANT_SAMPLING, number, participants)
    return np.sort(words.argsort(kind="stable")[:count]).astype(np.int64)
