"""Our own trainers, as the conformance tests want them: made anew for records and a seed.

What they do is what they do in training: the same draw, clipping, noise and descent. Only
the key is that of a seed, and releases are booked in memory.

A secure run draws a fresh key where it is resumed. Under a seed there is but one key: what
``resumed`` shows is that steps are numbered on, not that keys are fresh.
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

from dpaudit.trainer.added_noise import Moment
from dpaudit.trainer.attach import make_private
from dpaudit.trainer.engine import PerSampleLoss
from dpaudit.trainer.models import features_of, trained_part
from dpaudit.trainer.private import Private
from dpaudit.trainer.run import Prepared, cross_entropies, noise_of, optimizer_of
from dpaudit.vocabulary.conformance import StepClaim
from dpaudit.vocabulary.errors import require_positive

Record = tuple[Any, Any]
MakeTrainer = Callable[[Sequence[Record], int], Any]
Update = NDArray[np.float64]

MOST_FEATURES, UNITS = 2048, 2  # of a layer whose directions are looked for; units, one by one


@dataclass(frozen=True)
class Workbench:
    """Makes trainers of ``make_private`` under plain SGD, each for records and a seed.

    What ``step`` returns is the change of the parameters: the whole way of a step is seen.

    Attributes:
        model: Makes the model; it must make the same one every time.
        per_sample_loss: Of the model and (features, labels).
        like: A record, for the shapes of an empty data set.
        learning_rate: Of SGD without momentum.
        noise_multiplier: Standard deviation of the noise over the clip norm.
        clip_norm: Of each record's gradient.
        sampling_rate: Probability with which each record joins each step.
        expected_batch_size: What the noisy sum is divided by.
        options: Whatever else ``make_private`` takes.
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
        """Return what is claimed of ``steps`` steps of these trainers."""
        return StepClaim(
            noise_multiplier=self.noise_multiplier,
            clip_norm=self.clip_norm,
            sampling_rate=self.sampling_rate,
            steps=steps,
            update_scale=-self.learning_rate / self.expected_batch_size,
        )

    def __call__(self, records: Sequence[Record], seed: int) -> Bench:
        """Return a trainer on ``records``."""
        kind = Bench if distributed.is_initialized() else Resumable
        return kind(self, tuple(records), seed, self.private(seed))

    def private(self, seed: int, **options: Any) -> Private:
        """Return what takes the steps."""
        model = self.model()
        return make_private(
            model,
            torch.optim.SGD(model.parameters(), lr=self.learning_rate),
            noise_multiplier=self.noise_multiplier,
            clip_norm=self.clip_norm,
            sampling_rate=self.sampling_rate,
            expected_batch_size=self.expected_batch_size,
            seed=seed,
            **{**self.options, **options},
        )

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        """Return the losses of records that carry their index."""
        return self.per_sample_loss(model, batch[:2])


class Bench:
    """One trainer of ``make_private``, and what it did last.

    In a process group every rank makes it and takes its steps; all are told of the records of
    all, and of the first rank's update, so that all can go through one audit together.
    """

    def __init__(
        self, bench: Workbench, records: tuple[Record, ...], seed: int, private: Private
    ) -> None:
        self._bench, self._records, self._seed, self._private = bench, records, seed, private
        self._data = _tensors(records, bench.like)
        self.sampled: list[int] = []
        self.rank_updates: Update | None = None
        self.groups = groups_of(private.model)

    @property
    def input_directions(self) -> list[Update]:
        """Directions of features that the first layer hardly sees."""
        return input_directions(self._private.model, self._data[0].shape[1:].numel())

    def step(self) -> Update:
        """Take one step; return the change of the parameters, shape ``(d,)``."""
        before = flat_parameters(self._private.model)
        for batch in self._private.batches(self._data, steps=1):
            own: list[int] = batch[2].tolist()
            self._private.step(self._bench.loss, batch)
        update = flat_parameters(self._private.model) - before
        if not distributed.is_initialized():
            self.sampled = own
            return update
        ranks = gathered((own, update))
        self.sampled = [record for part, _ in ranks for record in part]
        self.rank_updates = np.array([row for _, row in ranks])
        return np.asarray(self.rank_updates[0])


class Resumable(Bench):
    """One trainer in one process, which can be resumed."""

    _folder: TemporaryDirectory[str] | None = None
    """Where the ledger of a resumed trainer is; it goes with the trainer."""

    def resumed(self) -> Resumable:
        """Return the trainer as it goes on from a checkpoint of this moment.

        A ledger must be there from the first step, and none is where steps are many: so the
        run is taken again, with one, and stopped here.
        """
        bench, steps = self._bench, self._private.steps
        folder = TemporaryDirectory()
        ledger, checkpoints = Path(folder.name, "ledger.jsonl"), Path(folder.name, "checkpoints")
        with bench.private(self._seed, ledger=ledger) as run:
            for batch in run.batches(self._data, steps=steps):
                run.step(bench.loss, batch)
            run.checkpoint(checkpoints)
        private = bench.private(self._seed, ledger=ledger, resume=checkpoints)
        found = Resumable(bench, self._records, self._seed, private)
        found._folder = folder
        return found


@dataclass(frozen=True)
class RunBench:
    """Makes trainers like that of a run, each for records and a seed.

    What ``step`` returns is the noisy sum: what an optimizer makes of it is post-processing.
    Records are given as the trained part of the model takes them.

    Attributes:
        prepared: The run, made ready.
        expected_batch_size: What its noisy sums are divided by.
    """

    prepared: Prepared
    expected_batch_size: float

    @classmethod
    def of(cls, prepared: Prepared) -> RunBench:
        """Return the bench of a run; of a released batch size its true value is as good here."""
        privacy = prepared.config.privacy
        true = max(1.0, privacy.sampling_rate * len(prepared.split.train))
        return cls(prepared, privacy.expected_batch_size or true)

    def claim(self) -> StepClaim:
        """Return what the run's settings claim of its steps.

        A sum on a grid is rounded, and has a hair more sensitivity, and noise, than is set.
        """
        privacy = self.prepared.config.privacy
        parameters = trained_part(self.prepared.model).parameters()
        dimension = sum(p.numel() for p in parameters if p.requires_grad)
        deviation = noise_of(privacy).deviation(
            privacy.noise_multiplier,
            privacy.clip_norm,
            dimension,
            Moment(self.prepared.stream, 0),
        )
        return StepClaim(
            noise_multiplier=privacy.noise_multiplier,
            clip_norm=deviation / privacy.noise_multiplier,
            sampling_rate=privacy.sampling_rate,
            steps=privacy.steps,
            update_scale=1.0,
        )

    def records(self, most: int) -> list[Record]:
        """Return the first training records, as the trained part takes them."""
        train = self.prepared.split.train
        first = train[np.arange(min(most, len(train)))]
        return list(
            zip(features_of(self.prepared.model, first.features), first.labels, strict=True)
        )

    def __call__(self, records: Sequence[Record], seed: int) -> RunStep:
        """Return a trainer on ``records``."""
        return RunStep(self, records, seed)


class RunStep:
    """One trainer like that of a run."""

    def __init__(self, bench: RunBench, records: Sequence[Record], seed: int) -> None:
        prepared = bench.prepared
        privacy = prepared.config.privacy
        model = copy.deepcopy(trained_part(prepared.model))
        self._private = make_private(
            model,
            optimizer_of(model, prepared),
            noise_multiplier=privacy.noise_multiplier,
            clip_norm=privacy.clip_norm,
            sampling_rate=privacy.sampling_rate,
            expected_batch_size=bench.expected_batch_size,
            noise=noise_of(privacy),
            physical_batch_size=prepared.config.speed.physical_batch_size,
            seed=seed,
        )
        self._data = _tensors(records, bench.records(1)[0])
        self.sampled: list[int] = []
        self.groups = groups_of(model)

    @property
    def input_directions(self) -> list[Update]:
        """Directions of features that the first layer hardly sees."""
        return input_directions(self._private.model, self._data[0].shape[1:].numel())

    def step(self) -> Update:
        """Take one step; return its noisy sum, shape ``(d,)``."""
        for features, labels, numbers in self._private.batches(self._data, steps=1):
            self._private.step(cross_entropies, (features, labels))
            self.sampled = numbers.tolist()
        parts = [p.grad for p in self._private.model.parameters() if p.grad is not None]
        flat = torch.cat([part.flatten().cpu() for part in parts]).numpy().astype(np.float64)
        return np.asarray(flat * self._private.recipe.expected_batch_size)


def gathered(own: Any) -> list[Any]:
    """Return what every rank has, in their order."""
    found: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(found, own)
    return found


def flat_parameters(model: nn.Module) -> Update:
    """Return all trainable parameters in one row, shape ``(d,)``."""
    parts = [p.detach().flatten().cpu() for p in model.parameters() if p.requires_grad]
    return torch.cat(parts).numpy().astype(np.float64)


def groups_of(model: nn.Module) -> dict[str, slice]:
    """Return where each trainable parameter is in that row."""
    groups, start = {}, 0
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups[name] = slice(start, start + parameter.numel())
            start += parameter.numel()
    return groups


def input_directions(model: nn.Module, size: int) -> list[Update]:
    """Return directions along which records can be long and leave some units as they are.

    Of the first linear layer that takes ``size`` numbers: those orthogonal to the weights of
    one unit, and those that the layer, or the layer less its mean over the units, shrinks the
    most. The last one passes a layer normalisation with the smallest divisor.

    Args:
        model: Of which the layer is.
        size: How many numbers the features of a record are.

    Returns:
        Directions, shape ``(size,)`` each; none where there is no such layer, or a large one.
    """
    layers = (m for m in model.modules() if isinstance(m, nn.Linear) and m.in_features == size)
    layer = next(layers, None)
    if layer is None or not 1 < size <= MOST_FEATURES:
        return []
    weight = layer.weight.detach().double().cpu().numpy()
    found = [_least_seen(weight), _least_seen(weight - weight.mean(axis=0))]
    for row in weight[np.argsort(-np.linalg.norm(weight, axis=1))[:UNITS]]:
        drawn = np.random.default_rng(0).standard_normal(size)
        found.append(drawn - row * (drawn @ row) / max(float(row @ row), 1e-300))
    return found


def _least_seen(weight: Update) -> Update:
    """Return the right singular vector of the least singular value."""
    return np.asarray(np.linalg.svd(weight, full_matrices=True)[2][-1])


def _tensors(records: Sequence[Record], like: Record) -> tuple[Tensor, Tensor, Tensor]:
    """Return features, labels and indices; of no records, in the shapes of ``like``."""
    rows = records or [like]
    columns = [torch.stack([torch.as_tensor(row[part]) for row in rows]) for part in (0, 1)]
    features, labels = (column[: len(records)] for column in columns)
    return features, labels, torch.arange(len(records))
