"""Every setting that privacy depends on, and the claim."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Settings:
    """Settings of the training; the noise's deviation is ``noise_multiplier * clip_norm``."""

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
