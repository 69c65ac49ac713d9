"""Seed the global generators of Python, NumPy and torch for one call, and restore them.

A model's dropout and a data loader's augmentation draw from global generators. Two replays of
a step can be compared only where both draw the same numbers.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

MOST = 2**32


@contextmanager
def seeded(*labels: int) -> Iterator[None]:
    """Seed all global generators by ``labels``; restore their states afterwards.

    torch is seeded where it has been imported: what has not imported it cannot draw from it.
    """
    seed = int(np.random.SeedSequence(list(labels)).generate_state(1)[0]) % MOST
    kept = random.getstate(), np.random.get_state(), _torch_states()  # noqa: NPY002 - the global one
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    _seed_torch(seed)
    try:
        yield
    finally:
        random.setstate(kept[0])
        np.random.set_state(kept[1])  # noqa: NPY002
        _restore_torch(kept[2])


def _torch() -> Any:
    return sys.modules.get("torch")


def _torch_states() -> tuple[Any, Any] | None:
    torch = _torch()
    if torch is None:
        return None
    devices = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return torch.get_rng_state(), devices


def _seed_torch(seed: int) -> None:
    torch = _torch()
    if torch is None:
        return
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)


def _restore_torch(states: tuple[Any, Any] | None) -> None:
    if states is None:  # torch was imported meanwhile, or never: there is no state to restore
        return
    torch = _torch()
    torch.set_rng_state(states[0])
    if torch.cuda.is_initialized() and states[1]:
        torch.cuda.set_rng_state_all(states[1])
