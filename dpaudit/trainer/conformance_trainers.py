"""Our own trainers as subjects of the conformance tests: made for given records and a seed.

They do exactly what training does: the same sampling, clipping, noise and update. Only the
key comes from a seed, and releases are recorded in memory.

A secure run draws a fresh key when it is resumed. Under a seed there is one key only: a test
of ``resumed`` shows that steps are numbered on, not that keys are fresh.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, distributed, nn

from dpaudit.trainer.attach import make_private
from dpaudit.trainer.engine import PerSampleLoss
from dpaudit.trainer.models.factories import compute_features, trained_part
from dpaudit.trainer.noise.gradient_noise import Independent, NoiseContext
from dpaudit.trainer.private import Private
from dpaudit.trainer.run import (
    PreparedRun,
    noise_from_settings,
    optimizer_from_settings,
)
from dpaudit.trainer.tasks import cross_entropies
from dpaudit.vocabulary.conformance import StepClaim
from dpaudit.vocabulary.errors import InvalidArgument, require_positive

Record = tuple[Any, Any]
MakeTrainer = Callable[[Sequence[Record], int], Any]
Update = NDArray[np.float64]

MAX_FEATURES = 2048  # of a layer whose directions are computed
PROBED_UNITS = 2  # units with the largest weights, for each of which a direction is computed


@dataclass(frozen=True)
class PrivateTrainerFactory:
    """Makes trainers of ``make_private`` with plain SGD, for given records and a seed.

    Their ``step`` returns the change of the parameters, so the whole step is observed.

    Attributes:
        model: Makes the model; it must make the same one every time.
        per_sample_loss: (model, (features, labels)) to losses of shape ``(records,)``.
        like: A record, for the shapes of an empty data set.
        learning_rate: Learning rate of SGD without momentum.
        noise_multiplier: Noise standard deviation over the clip norm.
        clip_norm: Largest L2 norm of one record's gradient.
        sampling_rate: Probability with which each record joins each step.
        expected_batch_size: The public constant that noisy sums are divided by, in records.
        options: Further arguments of ``make_private``; without ``noise``, it is ``Independent``,
            whose deviation is exactly the claimed one.
    """

    model: Callable[[], nn.Module]
    per_sample_loss: PerSampleLoss
    like: Record
    learning_rate: float
    noise_multiplier: float
    clip_norm: float
    sampling_rate: float
    expected_batch_size: float
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        require_positive("learning_rate", self.learning_rate)

    def claim(self, steps: int) -> StepClaim:
        """Return the claim about steps of these trainers.

        Args:
            steps: Number of steps.

        Returns:
            The claim.
        """
        return StepClaim(
            noise_multiplier=self.noise_multiplier,
            clip_norm=self.clip_norm,
            sampling_rate=self.sampling_rate,
            steps=steps,
            update_scale=-self.learning_rate / self.expected_batch_size,
        )

    def __call__(self, records: Sequence[Record], seed: int) -> PrivateTrainer:
        """Return a trainer on ``records``.

        Args:
            records: Pairs of features and label.
            seed: Seed of coins and noise.

        Returns:
            A trainer; one that can be resumed, unless there is a process group.
        """
        kind = PrivateTrainer if distributed.is_initialized() else ResumableTrainer
        return kind(self, tuple(records), seed, self.private(seed))

    def private(self, seed: int, **options: Any) -> Private:
        """Return the trainer that takes the steps.

        Args:
            seed: Seed of coins and noise.
            **options: Further arguments of ``make_private``, which override the factory's.

        Returns:
            A trainer on a new model.
        """
        model = self.model()
        return make_private(
            model,
            torch.optim.SGD(model.parameters(), lr=self.learning_rate),
            noise_multiplier=self.noise_multiplier,
            clip_norm=self.clip_norm,
            sampling_rate=self.sampling_rate,
            expected_batch_size=self.expected_batch_size,
            seed=seed,
            **{"noise": Independent(), **self.options, **options},
        )

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        """Return the losses of records that carry their index.

        Args:
            model: The model.
            batch: Features, labels and indices.

        Returns:
            Losses, shape ``(records,)``.
        """
        return self.per_sample_loss(model, batch[:2])


class PrivateTrainer:
    """A trainer of ``make_private``, with the batch and update of its last step.

    In a process group every rank makes it and takes its steps. All ranks hold the sampled records
    of all ranks, and the first rank's update, so that all can run one audit together.

    Args:
        factory: The factory that makes it.
        records: Pairs of features and label.
        seed: Seed of coins and noise.
        private: The trainer that takes the steps.

    Attributes:
        sampled: Positions of the records in the last batch.
        rank_updates: The update of each rank, shape ``(ranks, d)``; None in one process.
        groups: The slice of an update for each parameter name.
        passes_seed: True: the seed is that of ``make_private``.
    """

    passes_seed = True

    def __init__(
        self,
        factory: PrivateTrainerFactory,
        records: tuple[Record, ...],
        seed: int,
        private: Private,
    ) -> None:
        self._factory, self._records, self._seed, self._private = factory, records, seed, private
        self._data = _tensors(records, factory.like)
        self.sampled: list[int] = []
        self.rank_updates: Update | None = None
        self.groups = parameter_slices(private.model)

    @property
    def input_directions(self) -> list[Update]:
        """Feature directions that leave some units of the first layer nearly unchanged."""
        return input_directions(self._private.model, self._data[0].shape[1:].numel())

    def step(self) -> Update:
        """Take one step.

        Returns:
            The change of the parameters, shape ``(d,)``; in a process group, the first rank's.
        """
        before = flatten_parameters(self._private.model)
        for batch in self._private.batches(self._data, steps=1):
            own: list[int] = batch[2].tolist()
            self._private.step(self._factory.loss, batch)
        update = flatten_parameters(self._private.model) - before
        if not distributed.is_initialized():
            self.sampled = own
            return update
        ranks = gather_from_ranks((own, update))
        self.sampled = [record for part, _ in ranks for record in part]
        self.rank_updates = np.array([row for _, row in ranks])
        return np.asarray(self.rank_updates[0])


class ResumableTrainer(PrivateTrainer):
    """A trainer in one process, which can be resumed."""

    _folder: TemporaryDirectory[str] | None = None
    """The folder of a resumed trainer's ledger; it is removed with the trainer."""

    def resumed(self) -> ResumableTrainer:
        """Return a trainer that continues from a checkpoint of the present step.

        Resuming needs a ledger from the first step on, which would slow down long tests. So the run
        is repeated with a ledger up to the present step.

        Returns:
            The resumed trainer; its ledger lives as long as it does.
        """
        factory, steps = self._factory, self._private.steps
        folder = TemporaryDirectory()
        ledger, checkpoints = Path(folder.name, "ledger.jsonl"), Path(folder.name, "checkpoints")
        with factory.private(self._seed, ledger=ledger) as run:
            for batch in run.batches(self._data, steps=steps):
                run.step(factory.loss, batch)
            run.checkpoint(checkpoints)
        private = factory.private(self._seed, ledger=ledger, resume=checkpoints)
        found = ResumableTrainer(factory, self._records, self._seed, private)
        found._folder = folder
        return found


@dataclass(frozen=True)
class RunTrainerFactory:
    """Makes trainers with the settings of a run, for given records and a seed.

    Their ``step`` returns the noisy sum; the optimizer's update is post-processing. Records are
    inputs of the trained part of the model.

    Attributes:
        prepared: The prepared run.
        expected_batch_size: The public constant that noisy sums are divided by, in records.
    """

    prepared: PreparedRun
    expected_batch_size: float

    @classmethod
    def of(cls, prepared: PreparedRun) -> RunTrainerFactory:
        """Return the factory of a run.

        Args:
            prepared: The prepared run. If it would release its batch size, the true value is used,
                which does not change what is tested.

        Returns:
            The factory.
        """
        if prepared.config.data.has_tokens:
            allowed = (
                "records with classes: to test your own trainer on text, use "
                "dpaudit conformance package.module:make_trainer"
            )
            raise InvalidArgument("data", prepared.config.data.source, allowed)
        privacy = prepared.config.privacy
        true = max(1.0, privacy.sampling_rate * len(prepared.split.train))
        return cls(prepared, privacy.expected_batch_size or true)

    def claim(self) -> StepClaim:
        """Return the claim that the run's settings make about its steps.

        On a grid, the rounded sum has slightly more sensitivity, and noise, than is set; the claim
        uses those.

        Returns:
            The claim.
        """
        privacy = self.prepared.config.privacy
        parameters = trained_part(self.prepared.model).parameters()
        dimension = sum(p.numel() for p in parameters if p.requires_grad)
        deviation = noise_from_settings(privacy).deviation(
            privacy.noise_multiplier,
            privacy.clip_norm,
            dimension,
            NoiseContext(self.prepared.stream, 0),
        )
        return StepClaim(
            noise_multiplier=privacy.noise_multiplier,
            clip_norm=deviation / privacy.noise_multiplier,
            sampling_rate=privacy.sampling_rate,
            steps=privacy.steps,
            update_scale=1.0,
        )

    def records(self, most: int) -> list[Record]:
        """Return the first training records, as inputs of the trained part.

        Args:
            most: Largest number of records.

        Returns:
            Pairs of features and label.
        """
        train: Any = self.prepared.split.train  # of records with classes, as ``of`` requires
        first = train[np.arange(min(most, len(train)))]
        return list(
            zip(compute_features(self.prepared.model, first.features), first.labels, strict=True)
        )

    def __call__(self, records: Sequence[Record], seed: int) -> RunTrainer:
        """Return a trainer on ``records``.

        Args:
            records: Pairs of features and label.
            seed: Seed of coins and noise.

        Returns:
            The trainer.
        """
        return RunTrainer(self, records, seed)


class RunTrainer:
    """A trainer with the settings of a run.

    Args:
        factory: The factory that makes it.
        records: Pairs of features and label.
        seed: Seed of coins and noise.

    Attributes:
        sampled: Positions of the records in the last batch.
        groups: The slice of an update for each parameter name.
        passes_seed: True: the seed is that of ``make_private``.
    """

    passes_seed = True

    def __init__(self, factory: RunTrainerFactory, records: Sequence[Record], seed: int) -> None:
        prepared = factory.prepared
        privacy = prepared.config.privacy
        model = copy.deepcopy(trained_part(prepared.model))
        self._private = make_private(
            model,
            optimizer_from_settings(model, prepared),
            noise_multiplier=privacy.noise_multiplier,
            clip_norm=privacy.clip_norm,
            sampling_rate=privacy.sampling_rate,
            expected_batch_size=factory.expected_batch_size,
            noise=noise_from_settings(privacy),
            physical_batch_size=prepared.config.speed.physical_batch_size,
            seed=seed,
        )
        self._data = _tensors(records, factory.records(1)[0])
        self.sampled: list[int] = []
        self.groups = parameter_slices(model)

    @property
    def input_directions(self) -> list[Update]:
        """Feature directions that leave some units of the first layer nearly unchanged."""
        return input_directions(self._private.model, self._data[0].shape[1:].numel())

    def step(self) -> Update:
        """Take one step.

        Returns:
            The noisy sum, shape ``(d,)``.
        """
        for features, labels, numbers in self._private.batches(self._data, steps=1):
            self._private.step(cross_entropies, (features, labels))
            self.sampled = numbers.tolist()
        parts = [p.grad for p in self._private.model.parameters() if p.grad is not None]
        flat = torch.cat([part.flatten().cpu() for part in parts]).numpy().astype(np.float64)
        return np.asarray(flat * self._private.step_settings.expected_batch_size)


def gather_from_ranks(own: Any) -> list[Any]:
    """Return the value of every rank.

    Args:
        own: This rank's value.

    Returns:
        One value per rank, in their order.
    """
    found: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(found, own)
    return found


def flatten_parameters(model: nn.Module) -> Update:
    """Return all trainable parameters as one vector.

    Args:
        model: The model.

    Returns:
        Shape ``(d,)``, float64.
    """
    parts = [p.detach().flatten().cpu() for p in model.parameters() if p.requires_grad]
    return torch.cat(parts).numpy().astype(np.float64)


def parameter_slices(model: nn.Module) -> dict[str, slice]:
    """Return the slice of each trainable parameter in the vector of all.

    Args:
        model: The model.

    Returns:
        One slice per parameter name.
    """
    groups, start = {}, 0
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups[name] = slice(start, start + parameter.numel())
            start += parameter.numel()
    return groups


def input_directions(model: nn.Module, size: int) -> list[Update]:
    """Return feature directions along which long records leave some units nearly unchanged.

    For the first linear layer on ``size`` features: directions orthogonal to the weights of one
    unit, and those that the layer, or the layer minus its mean over the units, amplifies the
    least. The last one reaches a layer normalization with the smallest divisor.

    Args:
        model: The model that has the layer.
        size: Number of features of a record.

    Returns:
        Directions, shape ``(size,)`` each; none if there is no such layer, or a large one.
    """
    layers = (m for m in model.modules() if isinstance(m, nn.Linear) and m.in_features == size)
    layer = next(layers, None)
    if layer is None or not 1 < size <= MAX_FEATURES:
        return []
    weight = layer.weight.detach().double().cpu().numpy()
    found = [_least_amplified(weight), _least_amplified(weight - weight.mean(axis=0))]
    for row in weight[np.argsort(-np.linalg.norm(weight, axis=1))[:PROBED_UNITS]]:
        drawn = np.random.default_rng(0).standard_normal(size)
        found.append(drawn - row * (drawn @ row) / max(float(row @ row), 1e-300))
    return found


def _least_amplified(weight: Update) -> Update:
    """Return the right singular vector of the smallest singular value."""
    return np.asarray(np.linalg.svd(weight, full_matrices=True)[2][-1])


def _tensors(records: Sequence[Record], like: Record) -> tuple[Tensor, Tensor, Tensor]:
    """Return features, labels and indices; for no records, in the shapes of ``like``."""
    rows = records or [like]
    columns = [torch.stack([torch.as_tensor(row[part]) for row in rows]) for part in (0, 1)]
    features, labels = (column[: len(records)] for column in columns)
    return features, labels, torch.arange(len(records))
