"""Trainers that Opacus' ``PrivacyEngine.make_private`` builds, for the conformance tests.

Model, optimizer and data loader are those that the engine returns for the given data set. So
everything that the engine derives from the data is tested. Its sampling rate is one over the number
of batches. It divides the noisy sum by that rate times the number of records, rounded down.
Opacus 1.6 divides by 19, 20 and 16 for 99, 100 and 101 records in batches of 20. Under
add-or-remove-one adjacency, neighboring data sets then have different divisors, which violates the
claim of a fixed ``update_scale``. Under replace-one adjacency the number of records is public.

Trainers are made with ``dataset_size`` records, or with one fewer. ``step(include=indices)`` passes
a batch of these records to the engine's model and optimizer and bypasses the engine's loader. It
replays clipping, noise and divisor, but not the sampler. ``step()`` takes the next batch of the
loader, and ``sampled`` has its indices, for the tests of the sampler.

Randomness: ``noise_generator`` is seeded once. The loader's generator is seeded before each batch,
so that a batch depends only on the seed and the step. If an engine ignores either generator, the
replay is INCONCLUSIVE. Secure mode does not accept a generator.

Not tested: Opacus' accountant, virtual steps over physical batches, several ranks, secure mode,
and a loader that restarts its generator.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from dpaudit.attacks.conformance import SAMPLING_RATE_CONSTANT
from dpaudit.attacks.conformance.trainer_protocol import Record
from dpaudit.vocabulary.conformance import StepClaim
from dpaudit.vocabulary.errors import (
    InvalidArgument,
    MissingExtra,
    require_count,
    require_positive,
    require_sampling_rate,
)
from dpaudit.vocabulary.privacy_terms import Adjacency

Batch = tuple[Tensor, Tensor, Tensor]

RESERVED_OPTIONS = frozenset(
    {"module", "optimizer", "data_loader", "noise_multiplier", "max_grad_norm", "noise_generator"}
)
MIN_ENGINE_PARTS = 3  # model, optimizer, loader; with ghost clipping, a loss too


@dataclass(frozen=True)
class OpacusTrainerFactory:
    """A factory of trainers that ``opacus.PrivacyEngine`` builds, under plain SGD.

    Attributes:
        model: Makes the model, with the same weights at every call.
        loss: Mean loss of outputs and labels, as Opacus expects it.
        learning_rate: Learning rate of SGD without momentum.
        noise_multiplier: Noise standard deviation divided by the clip norm.
        clip_norm: Upper bound of the L2 norm of each record's gradient.
        sampling_rate: Claimed inclusion probability; times ``dataset_size``, rounded, it is the
            loader's batch size.
        dataset_size: Number of records of the claim's data set, at least two.
        options: Further keyword arguments of ``make_private``.

    Example:
        >>> from torch import nn
        >>> factory = OpacusTrainerFactory(
        ...     model=lambda: nn.Linear(2, 2), loss=nn.functional.cross_entropy,
        ...     learning_rate=0.5, noise_multiplier=1.0, clip_norm=1.0, sampling_rate=0.1,
        ...     dataset_size=50,
        ... )
        >>> factory.expected_batch_size, factory.claim(steps=100).update_scale
        (5, -0.1)
    """

    model: Callable[[], nn.Module]
    loss: Callable[[Tensor, Tensor], Tensor]
    learning_rate: float
    noise_multiplier: float
    clip_norm: float
    sampling_rate: float
    dataset_size: int
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        require_positive("learning_rate", self.learning_rate)
        require_sampling_rate("sampling_rate", self.sampling_rate)
        require_count("dataset_size", self.dataset_size, least=2)
        reserved = sorted(RESERVED_OPTIONS & set(self.options))
        if reserved:
            raise InvalidArgument(
                "options",
                reserved,
                f"without {', '.join(sorted(RESERVED_OPTIONS))}: the factory sets them",
            )

    @property
    def expected_batch_size(self) -> int:
        """The loader's batch size, and the claimed divisor of the noisy sum."""
        return max(1, round(self.sampling_rate * self.dataset_size))

    def claim(self, steps: int, adjacency: Adjacency = Adjacency.ADD_OR_REMOVE_ONE) -> StepClaim:
        """Return the claim that matches this factory's settings.

        Args:
            steps: Number of steps of a run.
            adjacency: Neighboring relation of the claim.

        Returns:
            A claim of Poisson sampling, with minus the learning rate over the expected batch size
            as its update scale.
        """
        return StepClaim(
            noise_multiplier=self.noise_multiplier,
            clip_norm=self.clip_norm,
            sampling_rate=self.sampling_rate,
            steps=steps,
            update_scale=-self.learning_rate / self.expected_batch_size,
            adjacency=adjacency,
        )

    def __call__(self, records: Sequence[Record], seed: int) -> OpacusTrainer:
        """Build a trainer. ``MissingExtra`` is raised if Opacus is not installed.

        Args:
            records: Pairs of features and label that torch can convert to tensors.
            seed: Seed of the noise and of the sampler.

        Returns:
            A trainer whose ``step`` accepts ``include``.
        """
        return OpacusTrainer(self, records, seed)


class OpacusTrainer:
    """One trainer with the model, optimizer and loader of a ``PrivacyEngine``.

    Attributes:
        sampled: Indices of the records of the last step.
        groups: Slices of coordinates by parameter name.
        constants: Numbers that the engine derived from the data set and treats as public.
    """

    def __init__(self, factory: OpacusTrainerFactory, records: Sequence[Record], seed: int) -> None:
        """Build model, optimizer and loader.

        Args:
            factory: The settings.
            records: Pairs of features and label.
            seed: Seed of the noise and of the sampler.
        """
        self._seed, self._number = seed, 0
        self._coins, self._data = torch.Generator(), _dataset(records)
        self._batches: Iterator[Batch] | None = None
        model = factory.model()
        engine = import_opacus_module("privacy_engine").PrivacyEngine()
        made = engine.make_private(
            module=model,
            optimizer=torch.optim.SGD(model.parameters(), lr=factory.learning_rate),
            data_loader=DataLoader(
                self._data, batch_size=factory.expected_batch_size, shuffle=True,
                generator=self._coins,
            ),
            noise_multiplier=factory.noise_multiplier,
            max_grad_norm=factory.clip_norm,
            noise_generator=torch.Generator().manual_seed(noise_seed(seed, 0)),
            **{"criterion": factory.loss, **factory.options},
        )  # fmt: skip
        self._model, self._optimizer, self._loader = made[0], made[1], made[-1]
        self._loss = made[2] if len(made) > MIN_ENGINE_PARTS else factory.loss  # of ghost clipping
        self.sampled: list[int] = []
        self.groups = _groups(self._model)
        self.constants = _constants(self._optimizer, self._loader)

    def step(self, include: Sequence[int] | None = None) -> NDArray[np.float64]:
        """Take one step on the loader's next batch, or on the given records.

        Args:
            include: Indices of the records; None for the batch that the loader samples.

        Returns:
            The change of all parameters, flat, shape ``(d,)``.
        """
        self._number += 1
        if include is None:
            features, labels, indices = self._sampled_batch()
        else:
            chosen = torch.tensor(list(include), dtype=torch.int64)
            features, labels, indices = self._data[chosen]
        before = self._flat()
        self._optimizer.zero_grad()
        loss: Any = self._loss(self._model(features), labels)
        loss.backward()
        self._optimizer.step()
        self.sampled = indices.tolist()
        return self._flat() - before

    def _sampled_batch(self) -> Batch:
        """Return the next batch of the engine's loader, across epochs."""
        while True:
            if self._batches is None:
                self._batches = iter(self._loader)
            self._coins.manual_seed(noise_seed(self._seed, self._number))
            batch: Batch | None = next(self._batches, None)
            if batch is None:
                self._batches = None
            elif len(batch):
                return batch
            else:  # an empty first batch of a loader has no feature shape: build one that has
                nothing = torch.zeros(0, dtype=torch.int64)
                features, labels, indices = self._data[nothing]
                return features, labels, indices

    def _flat(self) -> NDArray[np.float64]:
        parts = [p.detach().flatten() for p in self._model.parameters() if p.requires_grad]
        return torch.cat(parts).numpy().astype(np.float64)


def _constants(optimizer: Any, loader: Any) -> dict[str, float]:
    """Return the numbers that the engine derived from the data set and treats as public."""
    found = {
        "the number of batches of an epoch": float(len(loader)),
        "the expected batch size": float(optimizer.expected_batch_size),
    }
    rate = getattr(loader, "sample_rate", None)
    return found if rate is None else {**found, SAMPLING_RATE_CONSTANT: float(rate)}


def import_opacus_module(name: str) -> Any:
    """Import a module of Opacus.

    Args:
        name: Name of the module below ``opacus``.

    Returns:
        The module.

    Raises:
        MissingExtra: If Opacus is not installed.
    """
    try:
        return import_module(f"opacus.{name}")
    except ImportError as error:
        raise MissingExtra("opacus", "bench") from error


def noise_seed(seed: int, step: int) -> int:
    """Derive the generator seed of one step.

    Args:
        seed: Seed of the trainer.
        step: Number of the step.

    Returns:
        A seed in [0, 2**63).
    """
    return int(np.random.SeedSequence([seed, step]).generate_state(1, np.uint64)[0] >> 1)


def _dataset(records: Sequence[Record]) -> TensorDataset:
    features = torch.stack([torch.as_tensor(x) for x, _ in records])
    labels = torch.stack([torch.as_tensor(y) for _, y in records])
    return TensorDataset(features, labels, torch.arange(len(records)))


def _groups(model: nn.Module) -> dict[str, slice]:
    groups, start = {}, 0
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        groups[name.removeprefix("_module.")] = slice(start, start + parameter.numel())
        start += parameter.numel()
    return groups


OpacusWorkbench = OpacusTrainerFactory
"""Name of ``OpacusTrainerFactory`` before version 2.0."""
