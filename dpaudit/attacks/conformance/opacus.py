"""Trainers of Opacus, as the conformance tests want them: those of ``PrivacyEngine.make_private``.

Model, optimizer and data loader are what the engine makes of them for the data set at hand. So
all that it derives from the data is tested: the sampling rate is one over the number of batches,
and the noisy sum is divided by that rate times the number of records, rounded down. Opacus 1.6
divides by 19, 20 and 16 for 99, 100 and 101 records in batches of 20. Under add-or-remove-one
adjacency neighbouring data sets then have other divisors: that violates the claim of a fixed
``update_scale``. Under replace-one adjacency the number of records is public.

Trainers are made with ``dataset_size`` records, or with one fewer. ``step(include=indices)`` gives
the engine's model and optimizer a batch of these records past the engine's loader: clipping,
noise and divisor are replayed, the sampler is not. ``step()`` alone takes the next batch of the
loader, and ``sampled`` says whose it is: the tests of the sampler see that one.

Control over randomness: ``noise_generator`` is seeded once; the loader's generator is seeded anew
before each batch, so that a batch depends on the seed and the step. An engine that ignores either
generator makes the replay INCONCLUSIVE. Secure mode refuses a generator.

Not seen: Opacus' accountant, its virtual steps over physical batches, several ranks, secure mode,
and a loader that starts its generator over.
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

from dpaudit.attacks.conformance.public_constants import RATE
from dpaudit.attacks.conformance.trainers import Record
from dpaudit.vocabulary.adjacency import Adjacency
from dpaudit.vocabulary.conformance import StepClaim
from dpaudit.vocabulary.errors import (
    InvalidArgument,
    MissingExtra,
    require_count,
    require_positive,
    require_sampling_rate,
)

Batch = tuple[Tensor, Tensor, Tensor]

OWN = frozenset(
    {"module", "optimizer", "data_loader", "noise_multiplier", "max_grad_norm", "noise_generator"}
)
LEAST_MADE = 3  # model, optimizer, loader; ghost clipping has a loss beside them


@dataclass(frozen=True)
class OpacusWorkbench:
    """Makes trainers of ``opacus.PrivacyEngine`` under plain SGD, for records and a seed.

    Attributes:
        model: Makes the model; it must make the same one every time.
        loss: The mean loss of outputs and labels, as Opacus wants it.
        learning_rate: Of SGD without momentum.
        noise_multiplier: Standard deviation of the noise over the clip norm.
        clip_norm: Of each record's gradient.
        sampling_rate: Times ``dataset_size`` this is the loader's batch size.
        dataset_size: Records of the data set that the claim is of, at least two.
        options: Whatever else ``make_private`` takes.
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
        own = sorted(OWN & set(self.options))
        if own:
            raise InvalidArgument("options", own, f"without {', '.join(sorted(OWN))}: they are set")

    @property
    def expected_batch_size(self) -> int:
        """The loader's batch size, by which the noisy sum is claimed to be divided."""
        return max(1, round(self.sampling_rate * self.dataset_size))

    def claim(self, steps: int, adjacency: Adjacency = Adjacency.ADD_OR_REMOVE_ONE) -> StepClaim:
        """Return what is claimed of ``steps`` steps of these trainers."""
        return StepClaim(
            noise_multiplier=self.noise_multiplier,
            clip_norm=self.clip_norm,
            sampling_rate=self.sampling_rate,
            steps=steps,
            update_scale=-self.learning_rate / self.expected_batch_size,
            adjacency=adjacency,
        )

    def __call__(self, records: Sequence[Record], seed: int) -> OpacusTrainer:
        """Return a trainer on ``records``.

        Raises:
            MissingExtra: Opacus is not installed.
        """
        return OpacusTrainer(self, records, seed)


class OpacusTrainer:
    """One trainer of Opacus."""

    def __init__(self, bench: OpacusWorkbench, records: Sequence[Record], seed: int) -> None:
        self._seed, self._number = seed, 0
        self._coins, self._data = torch.Generator(), _dataset(records)
        self._batches: Iterator[Batch] | None = None
        model = bench.model()
        engine = opacus_part("privacy_engine").PrivacyEngine()
        made = engine.make_private(
            module=model,
            optimizer=torch.optim.SGD(model.parameters(), lr=bench.learning_rate),
            data_loader=DataLoader(
                self._data, batch_size=bench.expected_batch_size, shuffle=True,
                generator=self._coins,
            ),
            noise_multiplier=bench.noise_multiplier,
            max_grad_norm=bench.clip_norm,
            noise_generator=torch.Generator().manual_seed(noise_seed(seed, 0)),
            **{"criterion": bench.loss, **bench.options},
        )  # fmt: skip
        self._model, self._optimizer, self._loader = made[0], made[1], made[-1]
        self._loss = made[2] if len(made) > LEAST_MADE else bench.loss  # of ghost clipping
        self.sampled: list[int] = []
        self.groups = _groups(self._model)
        self.constants = _constants(self._optimizer, self._loader)

    def step(self, include: Sequence[int] | None = None) -> NDArray[np.float64]:
        """Take one step, on drawn records or on those named; return the parameters' change."""
        self._number += 1
        if include is None:
            features, labels, indices = self._drawn()
        else:
            named = torch.tensor(list(include), dtype=torch.int64)
            features, labels, indices = self._data[named]
        before = self._flat()
        self._optimizer.zero_grad()
        loss: Any = self._loss(self._model(features), labels)
        loss.backward()
        self._optimizer.step()
        self.sampled = indices.tolist()
        return self._flat() - before

    def _drawn(self) -> Batch:
        """Return the next batch of the engine's loader, or the first one of its next epoch."""
        while True:
            if self._batches is None:
                self._batches = iter(self._loader)
            self._coins.manual_seed(noise_seed(self._seed, self._number))
            batch: Batch | None = next(self._batches, None)
            if batch is None:
                self._batches = None
            elif len(batch):
                return batch
            else:  # the first batch of a loader, if it is empty, has no shape
                nothing = torch.zeros(0, dtype=torch.int64)
                features, labels, indices = self._data[nothing]
                return features, labels, indices

    def _flat(self) -> NDArray[np.float64]:
        parts = [p.detach().flatten() for p in self._model.parameters() if p.requires_grad]
        return torch.cat(parts).numpy().astype(np.float64)


def _constants(optimizer: Any, loader: Any) -> dict[str, float]:
    """Return what the engine derived from the data set, and takes to be public."""
    found = {
        "the number of batches of an epoch": float(len(loader)),
        "the expected batch size": float(optimizer.expected_batch_size),
    }
    rate = getattr(loader, "sample_rate", None)
    return found if rate is None else {**found, RATE: float(rate)}


def opacus_part(name: str) -> Any:
    """Return a module of Opacus.

    Raises:
        MissingExtra: it is not installed.
    """
    try:
        return import_module(f"opacus.{name}")
    except ImportError as error:
        raise MissingExtra("opacus", "bench") from error


def noise_seed(seed: int, step: int) -> int:
    """Return a seed for the noise of one step."""
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
