"""A private training loop in plain torch, as a user would write it, with faults to plant."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader

from dpaudit.attacks.conformance import Effort, StepClaim, TorchLoop

NOISE, CLIP, RATE, BATCH, SIZE, LEARNING_RATE = 2.0, 0.5, 0.25, 6, 24, 0.05
EFFORT = Effort(noise_samples=20_000, replays=1, sampler_steps=60, search_steps=600)
CLAIM = StepClaim(
    noise_multiplier=NOISE, clip_norm=CLIP, sampling_rate=RATE, steps=12,
    update_scale=-LEARNING_RATE / BATCH,
)  # fmt: skip


def records() -> list[Any]:
    rng = np.random.default_rng(3)
    return [
        (torch.tensor(rng.normal(size=8), dtype=torch.float32), int(rng.integers(3)))
        for _ in range(SIZE)
    ]


class PoissonBatches:
    """Draws each record with probability ``RATE``, with a generator of its own for each batch."""

    def __init__(self, size: int, seed: int) -> None:
        self.size, self.seed = size, seed

    def __iter__(self) -> Iterator[list[int]]:
        for step in range(10_000):
            coins = np.random.default_rng([self.seed, step]).random(self.size)
            yield np.flatnonzero(coins < RATE).tolist()


class Script:
    """The script; a subclass overrides the part that is faulty."""

    optimizer: Any = torch.optim.SGD

    def __init__(self, known: Sequence[Any], seed: int) -> None:
        self.model = nn.Sequential(nn.Linear(8, 24), nn.Tanh(), nn.Linear(24, 3))
        self.inner = self.optimizer(self.model.parameters(), lr=LEARNING_RATE)
        self.noise = torch.Generator().manual_seed(seed)
        self.loader = DataLoader(known, batch_sampler=PoissonBatches(len(known), seed))  # type: ignore[arg-type]

    def gradient(self, x: Any, y: Any) -> torch.Tensor:
        loss = nn.functional.cross_entropy(self.model(x[None]), y[None])
        parts = torch.autograd.grad(loss, list(self.model.parameters()))
        return torch.cat([part.flatten() for part in parts])

    def clipped(self, gradient: torch.Tensor) -> torch.Tensor:
        if not torch.isfinite(gradient).all():
            return torch.zeros_like(gradient)
        return gradient * min(1.0, CLIP / max(float(gradient.norm()), 1e-12))

    def total(self, features: Any, labels: Any) -> torch.Tensor:
        rows = [self.clipped(self.gradient(x, y)) for x, y in zip(features, labels, strict=True)]
        size = sum(p.numel() for p in self.model.parameters())
        return sum(rows, torch.zeros(size))

    def divisor(self, rows: int) -> float:
        return BATCH

    def train_step(self, batch: Any) -> None:
        features, labels = batch
        total = self.total(features, labels)
        total = total + NOISE * CLIP * torch.randn(total.shape, generator=self.noise)
        start = 0
        for parameter in self.model.parameters():
            own = total[start : start + parameter.numel()] / self.divisor(len(labels))
            parameter.grad, start = own.view_as(parameter).clone(), start + parameter.numel()
        self.inner.step()


def build(known: Sequence[Any], seed: int, script: type[Script] = Script) -> TorchLoop:
    made = script(known, seed)
    return TorchLoop(made.model, made.loader, made.train_step, made.inner)
