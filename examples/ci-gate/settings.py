"""Every setting of the training that privacy depends on, and the claim that follows from them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Settings:
    """Of the training; ``noise_multiplier`` is over ``clip_norm``."""

    noise_multiplier: float = 1.5
    clip_norm: float = 1.0
    sampling_rate: float = 0.1
    expected_batch_size: int = 100
    steps: int = 60
    learning_rate: float = 1.0
    hidden_units: int = 16
    delta: float = 1e-5


SETTINGS = Settings()
MAX_EPSILON = 3.0  # as in dpaudit.toml
