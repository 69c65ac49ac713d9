"""Seed torch's own generators, which dropout draws from."""

from __future__ import annotations

import torch


def seed_torch(seed: int) -> None:
    """Seed the processor's generator, and a GPU's where one is in use.

    ``torch.manual_seed`` keeps a stack trace for every kind of device that is not in use: at
    2 ms a call, that is more than a step of a small model takes.
    """
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.manual_seed_all(seed)
