"""Trainers whose gradients vanish on huge records, so that missing clipping is hard to detect."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpaudit.attacks.conformance import StepClaim

Array = NDArray[np.float64]
Gradient = Callable[[Array, Any], Array]

FEATURES, RATE, NOISE = 6, 0.25, 1.0


def claim(clip_norm: float, dimension: int = 1, **other: Any) -> StepClaim:
    return StepClaim(
        noise_multiplier=NOISE, clip_norm=clip_norm, sampling_rate=RATE, steps=24, update_scale=1.0,
        **other,
    )  # fmt: skip


def records(classes: int = 3, dtype: str = "f4") -> list[tuple[Any, int]]:
    rng = np.random.default_rng(3)
    labels = rng.integers(classes, size=24)
    return [(rng.normal(size=FEATURES).astype(dtype), int(y)) for y in labels]


def clipped_to(norm: float) -> Callable[[Array], Array]:
    def clip(gradient: Array) -> Array:
        length = float(np.linalg.norm(gradient))
        return gradient * min(1.0, norm / length) if length > 0 else gradient

    return clip


def trainer(
    gradient: Gradient,
    clip: Callable[[Array], Array],
    clip_norm: float,
    groups: dict[str, slice] | None = None,
) -> type:
    """Return a factory of trainers with a gradient, a clipping rule and noise for ``clip_norm``."""

    class Trainer:
        def __init__(self, known: Sequence[Any], seed: int) -> None:
            self.known, self.seed, self.number = list(known), seed, 0
            self.sampled: list[int] = []
            if groups is not None:
                self.groups = groups

        def step(self) -> Array:
            self.sampled = self.drawn()
            noise = np.random.default_rng([self.seed, self.number, 2])
            self.number += 1
            some = gradient(np.zeros(FEATURES), 0)
            total = NOISE * clip_norm * noise.normal(size=some.size)
            for i in self.sampled:
                x, y = self.known[i]
                if np.isfinite(np.asarray(x)).all():
                    with np.errstate(all="ignore"):
                        total = total + clip(gradient(np.asarray(x, dtype=float), y))
            return np.asarray(total)

        def drawn(self) -> list[int]:
            coins = np.random.default_rng([self.seed, self.number, 1]).random(len(self.known))
            return np.flatnonzero(coins < RATE).tolist()

    return Trainer


rng = np.random.default_rng(0)
HIDDEN, OUT = rng.normal(size=(8, FEATURES)) / 2, rng.normal(size=(3, 8)) / 2


def softmax(z: Array) -> Array:
    e = np.exp(z - z.max())
    return np.asarray(e / e.sum())


def tanh_network(x: Array, y: int) -> Array:
    """Three classes, weights of both layers and the last bias."""
    h = np.tanh(HIDDEN @ x)
    back = softmax(OUT @ h) - np.eye(3)[int(y) % 3]
    first = np.outer((OUT.T @ back) * (1 - h * h), x)
    return np.concatenate([first.ravel(), np.outer(back, h).ravel(), back])


TANH_GROUPS = {"hidden": slice(0, 48), "out": slice(48, 72), "bias": slice(72, 75)}


def squared_sigmoid(x: Array, y: int) -> Array:
    """One sigmoid unit under a squared loss: flat on both sides."""
    p = 1 / (1 + np.exp(-(HIDDEN[0] @ x)))
    return np.asarray((p - int(y) % 2) * p * (1 - p) * x)


def gaussian_bump(x: Array, y: int) -> Array:
    """A radial unit: its gradient vanishes in every direction."""
    value = np.exp(-float(x @ x) / 8)
    return np.asarray((value - int(y) % 2) * value * x)


def normalised(x: Array, y: int) -> Array:
    """Softmax regression on normalized features, which bounds every gradient."""
    z = (x - x.mean()) / (x.std() + 1e-5)
    back = softmax(OUT[:, :FEATURES] @ z) - np.eye(3)[int(y) % 3]
    return np.outer(back, z).ravel()


TABLE = np.random.default_rng(1).normal(size=(20, 4))


def embedding(tokens: Array, y: int) -> Array:
    """Softmax regression on the sum of embeddings of token ids, which cannot be scaled."""
    ids = np.asarray(tokens, dtype=int)
    summed = TABLE[ids].sum(axis=0)
    back = softmax(OUT[:, :4] @ summed) - np.eye(3)[int(y) % 3]
    rows = np.zeros_like(TABLE)
    np.add.at(rows, ids, OUT[:, :4].T @ back)
    return np.concatenate([rows.ravel(), np.outer(back, summed).ravel()])


EMBEDDING_GROUPS = {"table": slice(0, 80), "out": slice(80, 92)}


def token_records(length: int = 12) -> list[tuple[Any, int]]:
    drawn = np.random.default_rng(5)
    return [(drawn.integers(0, 20, length), int(drawn.integers(3))) for _ in range(24)]
