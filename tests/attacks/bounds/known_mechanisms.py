"""Mechanisms whose epsilon is known exactly, and scores that they give to canaries."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dpaudit.accountants import pld
from dpaudit.vocabulary.mechanism import Gaussian, PoissonSampled, Repeated

Array = NDArray[np.float64]
DELTA = 1e-5


@dataclass(frozen=True)
class Law:
    """How a canary's score is drawn, by its bit; ``epsilon`` is the upper end at DELTA."""

    name: str
    epsilon: float
    draw: Callable[[np.random.Generator, bool, int], Array]


def randomized_response(epsilon: float) -> Law:
    truth = math.exp(epsilon) / (1 + math.exp(epsilon))

    def draw(rng: np.random.Generator, member: bool, size: int) -> Array:
        honest = rng.random(size) < truth
        return np.where(honest == member, 1.0, 0.0)

    return Law(f"randomized response {epsilon:g}", epsilon, draw)


def laplace(epsilon: float) -> Law:
    return Law(
        f"Laplace {epsilon:g}", epsilon, lambda rng, bit, n: bit + rng.laplace(0, 1 / epsilon, n)
    )


def gaussian(noise_multiplier: float) -> Law:
    epsilon = pld.profile(Gaussian(noise_multiplier)).epsilon(delta=DELTA).upper
    return Law(
        f"Gaussian {noise_multiplier:g}",
        epsilon,
        lambda rng, bit, n: bit + noise_multiplier * rng.standard_normal(n),
    )


def sampled_gaussian(noise_multiplier: float, rate: float, steps: int) -> Law:
    """Scores are the sum of all noisy sums: less than the ledger releases."""
    mechanism = Repeated(PoissonSampled(Gaussian(noise_multiplier), rate), steps)

    def draw(rng: np.random.Generator, member: bool, size: int) -> Array:
        joined = rng.binomial(steps, rate, size) if member else np.zeros(size)
        return np.asarray(joined + noise_multiplier * math.sqrt(steps) * rng.standard_normal(size))

    epsilon = pld.profile(mechanism).epsilon(delta=DELTA).upper
    return Law(f"sampled Gaussian {noise_multiplier:g}", epsilon, draw)


NOTHING = Law("no information", 0.0, lambda rng, bit, n: rng.standard_normal(n))
