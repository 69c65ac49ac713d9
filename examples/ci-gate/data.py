"""Synthetic records instead of private ones: two noisy classes from a seed."""

from __future__ import annotations

import torch
from torch import Tensor

RECORDS, FEATURES, CLASSES = 1000, 8, 2


def make_records(seed: int) -> tuple[Tensor, Tensor]:
    """Return features, shape ``(RECORDS, FEATURES)``, and labels, shape ``(RECORDS,)``."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, CLASSES, (RECORDS,), generator=generator)
    noise = torch.randn(RECORDS, FEATURES, generator=generator)
    return noise + labels[:, None] * 0.8, labels


def training_records() -> tuple[Tensor, Tensor]:
    """Return the training records."""
    return make_records(seed=1)


def heldout_records() -> tuple[Tensor, Tensor]:
    """Return held-out records of the same distribution."""
    return make_records(seed=2)
