"""Trainers of Opacus, as the conformance tests want them.

Opacus draws batches and noise from generators of its own. Noise can be made to depend on the
seed and the step alone: its generator is seeded anew before each step. Batches cannot: one
record more shifts the coins of all others. So ``step(include=indices)`` is offered, which
gives the optimizer a batch of these records past Opacus' sampler: clipping and noise are
replayed, the sampler is not. ``step()`` alone draws by Opacus' own loader, and ``sampled``
says whom: the tests of the sampler see that one.

Not seen: Opacus' accountant, its virtual steps over physical batches, several ranks, and the
secure mode, which has a generator that nobody can seed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from dpaudit.attacks.conformance.trainers import Record
from dpaudit.vocabulary.conformance import StepClaim
from dpaudit.vocabulary.errors import MissingExtra, require_positive

Batch = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class OpacusWorkbench:
    """Makes trainers of ``opacus.PrivacyEngine`` under plain SGD, for records and a seed.

    Attributes:
        model: Makes the model; it must make the same one every time.
        loss: The mean loss of outputs and labels, as Opacus wants it.
        learning_rate: Of SGD without momentum.
        noise_multiplier: Standard deviation of the noise over the clip norm.
        clip_norm: Of each record's gradient.
        sampling_rate: Opacus takes one over the loader's number of batches.
        dataset_size: Records of the data set that the claim is of: the noisy sum is divided by
            ``sampling_rate * dataset_size``.
    """

    model: Callable[[], nn.Module]
    loss: Callable[[Tensor, Tensor], Tensor]
    learning_rate: float
    noise_multiplier: float
    clip_norm: float
    sampling_rate: float
    dataset_size: int

    def __post_init__(self) -> None:
        require_positive("learning_rate", self.learning_rate)

    @property
    def expected_batch_size(self) -> int:
        """What the noisy sum is divided by."""
        return max(1, int(self.sampling_rate * self.dataset_size))

    def claim(self, steps: int) -> StepClaim:
        """Return what is claimed of ``steps`` steps of these trainers."""
        return StepClaim(
            noise_multiplier=self.noise_multiplier,
            clip_norm=self.clip_norm,
            sampling_rate=self.sampling_rate,
            steps=steps,
            update_scale=-self.learning_rate / self.expected_batch_size,
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
        self._bench, self._seed, self._number = bench, seed, 0
        self._noise = torch.Generator()
        self._model = opacus_part("grad_sample").GradSampleModule(
            bench.model(), loss_reduction="mean"
        )
        self._optimizer = opacus_part("optimizers").DPOptimizer(
            torch.optim.SGD(self._model.parameters(), lr=bench.learning_rate),
            noise_multiplier=bench.noise_multiplier,
            max_grad_norm=bench.clip_norm,
            expected_batch_size=bench.expected_batch_size,
            generator=self._noise,
        )
        self._data = _dataset(records)
        coins = torch.Generator().manual_seed(seed)
        loaders = opacus_part("data_loader")
        loader = loaders.DPDataLoader(self._data, sample_rate=bench.sampling_rate, generator=coins)
        self._batches = _again_and_again(loader)
        self.sampled: list[int] = []
        self.groups = _groups(self._model)

    def step(self, include: Sequence[int] | None = None) -> NDArray[np.float64]:
        """Take one step, on drawn records or on those named; return the parameters' change."""
        if include is None:
            features, labels, indices = next(self._batches)
        else:
            named = torch.tensor(list(include), dtype=torch.int64)
            features, labels, indices = self._data[named]
        self._noise.manual_seed(noise_seed(self._seed, self._number))
        before = self._flat()
        self._optimizer.zero_grad()
        loss: Any = self._bench.loss(self._model(features), labels)
        loss.backward()
        self._optimizer.step()
        self._number += 1
        self.sampled = indices.tolist()
        return self._flat() - before

    def _flat(self) -> NDArray[np.float64]:
        parts = [p.detach().flatten() for p in self._model.parameters()]
        return torch.cat(parts).numpy().astype(np.float64)


def opacus_part(name: str) -> Any:
    """Return a module of Opacus.

    Raises:
        MissingExtra: it is not installed.
    """
    try:
        return import_module(f"opacus.{name}")
    except ImportError as error:
        raise MissingExtra("opacus", "bench") from error


def _again_and_again(loader: Any) -> Iterator[Batch]:
    while True:
        yield from loader


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
        groups[name.removeprefix("_module.")] = slice(start, start + parameter.numel())
        start += parameter.numel()
    return groups
