"""A small client that conforms, with methods to override for each fault. NumPy alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from dpaudit.attacks.conformance import StepClaim

WIDTH, LOCAL_STEPS, RATE, CLIP_NORM, NOISE_MULTIPLIER = 20, 3, 0.4, 0.5, 2.0
LEARNING_RATE, BATCH = 0.1, 8.0
CLAIM = StepClaim(
    noise_multiplier=NOISE_MULTIPLIER,
    clip_norm=CLIP_NORM,
    sampling_rate=RATE,
    steps=6 * LOCAL_STEPS,
    update_scale=1.0,
)


def records(count: int = 16) -> list[tuple[np.ndarray, int]]:
    rng = np.random.default_rng(4)
    return [(rng.standard_normal(WIDTH), int(i % 2)) for i in range(count)]


class ReferenceClient:
    """Logistic regression by DP-SGD: Poisson batches, clipping, noise, public constants."""

    def __init__(self, data: Sequence[tuple[Any, int]], seed: int, participant: int) -> None:
        self.rows = np.array([x for x, _ in data], dtype=float).reshape(-1, WIDTH)
        self.labels = np.array([y for _, y in data], dtype=float)
        self.key, self.number = self.seeds(seed, participant), 0
        self.global_model = np.zeros(WIDTH)
        self.noisy_sums: Any = []
        self.sampled: list[np.ndarray] = []

    def local_update(self, model: np.ndarray) -> np.ndarray:
        self.noisy_sums, self.sampled = [], []
        weights = model.copy()
        for _ in range(LOCAL_STEPS):
            rng = np.random.default_rng([*self.key, self.number])
            noise = self.noise(rng)
            chosen = np.flatnonzero(rng.random(1000)[: len(self.rows)] < RATE)
            total = self.clipped_sum(weights, chosen) + noise
            self.noisy_sums.append(total)
            self.sampled.append(chosen)
            weights = weights - LEARNING_RATE / BATCH * total
            self.number += 1
        return self.upload(weights - model)

    def recompute(self, model: np.ndarray, noisy_sums: np.ndarray) -> np.ndarray:
        return np.asarray(-LEARNING_RATE / BATCH * np.sum(noisy_sums, axis=0))

    # What faults override.

    weight = 1.0

    def seeds(self, seed: int, participant: int) -> list[int]:
        return [seed, participant]

    def noise(self, rng: np.random.Generator) -> np.ndarray:
        return NOISE_MULTIPLIER * CLIP_NORM * rng.standard_normal(WIDTH)

    def clipped_sum(self, weights: np.ndarray, chosen: np.ndarray) -> np.ndarray:
        rows = self.rows[chosen]
        with np.errstate(over="ignore", invalid="ignore"):
            predicted = 1 / (1 + np.exp(-rows @ weights))
            gradients = (predicted - self.labels[chosen])[:, None] * rows
        gradients = gradients[np.isfinite(gradients).all(axis=1)]
        norms = np.linalg.norm(gradients, axis=1, keepdims=True)
        return np.asarray((gradients * self.factors(norms)).sum(axis=0))

    def factors(self, norms: np.ndarray) -> np.ndarray:
        return np.minimum(1.0, CLIP_NORM / np.maximum(norms, 1e-12))

    def upload(self, change: np.ndarray) -> np.ndarray:
        return change
