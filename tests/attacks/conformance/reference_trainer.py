"""DP-SGD in the slow, obvious way, by numpy alone: linear regression with a bias.

Noise has a generator for each step, and coins another, of which record i takes the i-th draw.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpaudit.attacks.conformance import Effort, StepClaim

Array = NDArray[np.float64]
Record = tuple[Array, float]

WIDTH, RECORDS = 30, 24
NOISE, CLIP, RATE, STEPS, LEARNING_RATE, BATCH = 2.0, 0.5, 0.25, 24, 0.05, 6
CLAIM = StepClaim(
    noise_multiplier=NOISE,
    clip_norm=CLIP,
    sampling_rate=RATE,
    steps=STEPS,
    update_scale=-LEARNING_RATE / BATCH,
)
LITTLE = Effort(noise_samples=10_000, replays=1, sampler_steps=72)


def records() -> list[Record]:
    rng = np.random.default_rng(2)
    return [(rng.normal(size=WIDTH), float(rng.normal())) for _ in range(RECORDS)]


class Plain:
    """A conforming trainer; a subclass overrides the part that is faulty."""

    def __init__(self, known: Sequence[Record], seed: int) -> None:
        self.known, self.seed, self.number = list(known), seed, 0
        self.weights = np.zeros(WIDTH + 1)
        self.groups = {"layer.weight": slice(0, WIDTH), "layer.bias": slice(WIDTH, WIDTH + 1)}
        self.sampled: Any = []

    def step(self) -> Array:
        self.sampled = self.draw()
        total = np.zeros(WIDTH + 1)
        for i in self.sampled:
            total += self.clipped(self.gradient(*self.known[i]))
        update = CLAIM.update_scale * (total + self.noise())
        self.weights = self.weights + update
        self.number += 1
        return update

    def draw(self) -> list[int]:
        coins = np.random.default_rng([self.seed, self.number, 1]).random(len(self.known))
        return np.flatnonzero(coins < RATE).tolist()

    def gradient(self, x: Array, y: float) -> Array:
        row = np.append(x, 1.0)
        return (row @ self.weights - y) * row

    def clipped(self, gradient: Array) -> Array:
        norm = float(np.linalg.norm(gradient))
        if not np.isfinite(norm):
            return np.zeros_like(gradient)
        return gradient * min(1.0, CLIP / norm) if norm > 0 else gradient

    def noise(self) -> Array:
        rng = np.random.default_rng([self.seed, self.number, 2])
        return NOISE * CLIP * rng.normal(size=WIDTH + 1)


def scaled(factor: float) -> Callable[[Sequence[Record], int], Plain]:
    class Scaled(Plain):
        def noise(self) -> Array:
            return factor * super().noise()

    return Scaled
