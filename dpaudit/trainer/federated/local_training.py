"""Local training of one participant in one round: with DP-SGD, or plain SGD."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from dpaudit.trainer.batches.samplers import Poisson
from dpaudit.trainer.clip_rules import ConstantClipping
from dpaudit.trainer.distributed import SingleProcess
from dpaudit.trainer.engine import Flat
from dpaudit.trainer.engine.model_state import seed_torch
from dpaudit.trainer.federated.federation import Federation, Participant
from dpaudit.trainer.federated.ledgers import AheadRecorder
from dpaudit.trainer.noise.gradient_noise import GradientNoise, Independent
from dpaudit.trainer.noise.randomness import Purpose
from dpaudit.trainer.private import Private
from dpaudit.trainer.run import make_optimizer
from dpaudit.trainer.session.settings import AttachSettings, ConstantSchedule
from dpaudit.trainer.session.training_session import Session, SessionState
from dpaudit.trainer.tasks import cross_entropies

Weights = Mapping[str, Tensor]
"""One tensor per trainable parameter, by name."""


class LocalTrainer(Protocol):
    """Trains one participant's copy of the model."""

    @property
    def steps(self) -> int:
        """Number of steps taken in all rounds."""

    def train(self, weights: Weights, number: int) -> dict[str, Tensor]:
        """Train from the global model for one round.

        Args:
            weights: The trainable parameters of the global model.
            number: Number of the round, from 0.

        Returns:
            The trainable parameters after the local steps, copied.
        """


class PrivateTrainer:
    """DP-SGD on one participant's records: a session and a ledger of its own.

    The sums of local steps are divided by a public constant, not by a number of records. The
    optimizer's state, such as momentum, is reset in each round.

    Args:
        federation: The federation, for settings and the model.
        participant: The participant.
        steps: Number of steps taken before this process.
        noise: The kind of noise; None: independent normals on all coordinates.
    """

    def __init__(
        self,
        federation: Federation,
        participant: Participant,
        *,
        steps: int = 0,
        noise: GradientNoise | None = None,
    ) -> None:
        config = federation.config
        self._federation = federation
        self._records, self._local_steps = participant.records, config.local.local_steps
        self._device = next(federation.model.parameters()).device
        model = copy.deepcopy(federation.model).train()
        optimizer = local_optimizer(model, federation)
        settings = AttachSettings(
            sampler=Poisson(config.local.sampling_rate),
            noise_multiplier=ConstantSchedule(config.privacy.noise_multiplier),
            noise=noise or Independent(),
            rule=ConstantClipping(Flat(config.privacy.clip_norm)),
            expected_batch_size=federation.expected_batch_size,
            physical_batch_size=config.speed.physical_batch_size,
        )
        self._recorder = AheadRecorder(participant.ledger)
        session = Session(
            participant.ledger.header,
            participant.stream,
            SingleProcess(),
            SessionState(model, optimizer),
            self._recorder,
            step=steps,
        )
        step_settings = settings.step_settings(federation.expected_batch_size)
        texts = settings.settings_with(model, optimizer)
        self.private = Private(session, step_settings, settings.rule, texts)

    @property
    def steps(self) -> int:
        """Number of steps taken in all rounds."""
        return self.private.steps

    def train(self, weights: Weights, number: int) -> dict[str, Tensor]:
        """Take the private steps of one round from the global model.

        Args:
            weights: The trainable parameters of the global model.
            number: Number of the round, from 0.

        Returns:
            The trainable parameters after the local steps, copied.
        """
        private, device = self.private, self._device
        private.receive_model(weights)
        self._recorder.planned = self._local_steps
        batches = private.batches(self._records, steps=self._local_steps)
        for step, (features, labels) in enumerate(batches):
            schedule_learning_rate(private.optimizer, self._federation, number, step)
            private.step(cross_entropies, (features.to(device), labels.to(device)))
        return trainable_copy(private.model)


class PlainTrainer:
    """Plain SGD on one participant's records, without any privacy of a record.

    Batches are consecutive parts of a random order of the records, of the size that DP-SGD
    expects.

    Args:
        federation: The federation, for settings and the model.
        participant: The participant.
        steps: Number of steps taken before this process.
    """

    def __init__(self, federation: Federation, participant: Participant, *, steps: int = 0) -> None:
        config = federation.config
        self.steps = steps
        self._federation, self._participant = federation, participant
        self._local_steps = config.local.local_steps
        records = len(participant.records[1])
        self._batch = max(1, round(config.local.sampling_rate * records))

    def train(self, weights: Weights, number: int) -> dict[str, Tensor]:
        """Take the plain steps of one round from the global model.

        Args:
            weights: The trainable parameters of the global model.
            number: Number of the round, from 0; it determines the order of the records.

        Returns:
            The trainable parameters after the local steps, copied.
        """
        model = copy.deepcopy(self._federation.model).train()
        set_trainable(model, weights)
        optimizer = local_optimizer(model, self._federation)
        seed = self._participant.stream.seed_for(Purpose.LOCAL_ORDER, number)
        with torch.random.fork_rng(devices=[]):
            seed_torch(seed)  # of dropout; the order has its own generator
            for step, (features, labels) in enumerate(self._batches(seed)):
                schedule_learning_rate(optimizer, self._federation, number, step)
                optimizer.zero_grad(set_to_none=True)
                loss = nn.functional.cross_entropy(model(features), labels)
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                self.steps += 1
        return trainable_copy(model)

    def _batches(self, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the batches of one round: passes over the records in random orders."""
        features, labels = self._participant.records
        device = next(self._federation.model.parameters()).device
        generator = torch.Generator().manual_seed(seed)
        order, start = torch.randperm(len(labels), generator=generator), 0
        for _ in range(self._local_steps if len(labels) else 0):
            if start + self._batch > len(labels):
                order, start = torch.randperm(len(labels), generator=generator), 0
            rows = order[start : start + self._batch]
            start += self._batch
            yield features[rows].to(device), labels[rows].to(device)


@dataclass
class LocalTrainers:
    """The local trainers of a federation, each made when its participant first joins.

    Attributes:
        federation: The federation.
        kind: ``PrivateTrainer`` or ``PlainTrainer``.
        steps_before: Steps of each participant before this process.
    """

    federation: Federation
    kind: type[PrivateTrainer] | type[PlainTrainer]
    steps_before: list[int]

    def __post_init__(self) -> None:
        self._made: dict[int, LocalTrainer] = {}

    def trainer(self, number: int) -> LocalTrainer:
        """Return the trainer of a participant.

        Args:
            number: Number of the participant, from 0.

        Returns:
            The trainer, which keeps its session over the rounds.
        """
        if number not in self._made:
            participant = self.federation.participants[number]
            steps = self.steps_before[number]
            self._made[number] = self.kind(self.federation, participant, steps=steps)
        return self._made[number]

    @property
    def steps(self) -> Tensor:
        """Number of steps of each participant, shape ``(participants,)``, int64."""
        made = self._made
        counts = [
            made[k].steps if k in made else before for k, before in enumerate(self.steps_before)
        ]
        return torch.tensor(counts, dtype=torch.int64)


def local_optimizer(model: nn.Module, federation: Federation) -> torch.optim.Optimizer:
    """Return the optimizer of local training, as the settings select it.

    Args:
        model: The participant's copy of the model.
        federation: The federation, for its settings.

    Returns:
        The optimizer of the trainable parameters.
    """
    settings = federation.config.model
    return make_optimizer(model, settings.optimizer, federation.learning_rate, settings.momentum)


def schedule_learning_rate(
    optimizer: torch.optim.Optimizer, federation: Federation, number: int, step: int
) -> None:
    """Set the learning rate of a local step, by a schedule fixed before training.

    Args:
        optimizer: The optimizer of local training, which is changed.
        federation: The federation, for its settings.
        number: Number of the round, from 0.
        step: Number of the local step in the round, from 0.
    """
    if federation.config.model.learning_rate_schedule != "constant":
        rate = federation.learning_rate * federation.learning_rate_factor(number, step)
        for group in optimizer.param_groups:
            group["lr"] = rate


def trainable_copy(model: nn.Module) -> dict[str, Tensor]:
    """Return a copy of the trainable parameters, by name."""
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def set_trainable(model: nn.Module, weights: Weights) -> None:
    """Set the trainable parameters of a model."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(weights[name])
