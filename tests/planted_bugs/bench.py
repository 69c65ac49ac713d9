"""The trainer that bugs are planted in: dpaudit's, with a model of one millisecond per step."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from dpaudit.attacks.conformance import Effort
from dpaudit.trainer.conformance_trainers import PrivateTrainerFactory

WIDTH, CLASSES, RECORDS, STEPS = 12, 4, 24, 20

EFFORT = Effort(replays=1, sampler_steps=60)
"""Less than the default effort, which must suffice to detect every planted bug."""


def model() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        hidden = nn.Sequential(nn.Linear(WIDTH, 60), nn.Tanh(), nn.Linear(60, 30), nn.Tanh())
        return nn.Sequential(*hidden, nn.Linear(30, CLASSES))


def loss(net: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return nn.functional.cross_entropy(net(batch[0]), batch[1], reduction="none")


def records() -> list[tuple[np.ndarray, int]]:
    rng = np.random.default_rng(5)
    features = rng.normal(size=(RECORDS, WIDTH)).astype(np.float32)
    return [(x, int(y)) for x, y in zip(features, rng.integers(CLASSES, size=RECORDS), strict=True)]


def bench() -> PrivateTrainerFactory:
    return PrivateTrainerFactory(
        model,
        loss,
        records()[0],
        learning_rate=0.05,
        noise_multiplier=2.0,
        clip_norm=0.5,
        sampling_rate=0.25,
        expected_batch_size=6,
    )


def huge(record: tuple[np.ndarray, int]) -> tuple[np.ndarray, int]:
    return record[0] * np.float32(1e4), record[1]
