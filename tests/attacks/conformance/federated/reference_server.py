"""A small server that conforms, with methods to override for each fault."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from dpaudit.attacks.conformance import StepClaim
from dpaudit.attacks.conformance.federated.server_protocol import Update

PARTICIPANTS, CLIP_NORM, NOISE_MULTIPLIER, RATE = 8, 0.5, 1.5, 0.5
DIMENSION = 60 + 12
CLAIM = StepClaim(
    noise_multiplier=NOISE_MULTIPLIER,
    clip_norm=CLIP_NORM,
    sampling_rate=RATE,
    steps=12,
    update_scale=1 / (RATE * PARTICIPANTS),
)


class ReferenceServer:
    """Poisson drawing, checked updates, a clipped sum, noise once, a fixed divisor."""

    participants = PARTICIPANTS

    def __init__(self, seed: int) -> None:
        self.seed, self.number, self.rejected = seed, 0, dict[int, str]()
        self.reference: Update = {
            "weight": np.zeros((12, 5), dtype=np.float32),
            "bias": np.zeros(12, dtype=np.float32),
        }

    @property
    def releases(self) -> int:
        return self.number

    def draw(self) -> Sequence[int]:
        coins = np.random.default_rng([self.seed, 1, self.number]).random(self.participants)
        return [int(one) for one in np.flatnonzero(coins < RATE)]

    def aggregate(self, updates: Mapping[int, Update], expected: Sequence[int]) -> Update | None:
        good = {who: u for who, u in updates.items() if self.accepts(u)}
        self.rejected = {who: "malformed" for who in updates if who not in good}
        rng = np.random.default_rng([*self.noise_key(), self.number])
        self.number += 1
        total = self.total(good, expected) + self.noise(rng, len(good), len(expected))
        return self.split(total / self.divisor(len(good)))

    def resumed(self) -> ReferenceServer:
        other = type(self)(self.seed)
        other.number = self.number
        return other

    # What faults override.

    def noise_key(self) -> Sequence[int]:
        return [self.seed, 0]

    def accepts(self, update: Update) -> bool:
        return (
            set(update) == set(self.reference)
            and all(
                np.asarray(update[name]).dtype == like.dtype and update[name].shape == like.shape
                for name, like in self.reference.items()
            )
            and all(np.isfinite(part).all() for part in update.values())
        )

    def factor(self, vector: np.ndarray) -> float:
        return min(1.0, CLIP_NORM / max(float(np.linalg.norm(vector)), 1e-12))

    def total(self, updates: Mapping[int, Update], expected: Sequence[int]) -> np.ndarray:
        total = np.zeros(DIMENSION)
        for update in updates.values():
            vector = self.flat(update)
            total += self.factor(vector) * vector
        return total

    def noise(self, rng: np.random.Generator, replies: int, expected: int) -> np.ndarray:
        return NOISE_MULTIPLIER * CLIP_NORM * rng.standard_normal(DIMENSION)

    def divisor(self, replies: int) -> float:
        return RATE * PARTICIPANTS

    def flat(self, update: Update) -> np.ndarray:
        return np.concatenate([update[name].ravel() for name in self.reference]).astype(float)

    def split(self, vector: np.ndarray) -> Update:
        return {"weight": vector[:60].reshape(12, 5), "bias": vector[60:]}
