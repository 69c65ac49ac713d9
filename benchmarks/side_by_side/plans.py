"""What is priced: A to H with their true epsilons, and random plans from a seed."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np


@dataclass(frozen=True)
class Entry:
    """``steps`` Gaussians on Poisson samples."""

    sampling_rate: float
    noise_multiplier: float
    steps: int

    def __str__(self) -> str:
        return f"({self.sampling_rate:.6g}, {self.noise_multiplier:.6g}, {self.steps})"


@dataclass(frozen=True)
class Plan:
    """A ledger fixed in advance: (sampling rate, noise multiplier, steps), one or more."""

    entries: tuple[Entry, ...]

    def __str__(self) -> str:
        return " + ".join(map(str, self.entries))

    def nudged(self, times: int) -> Plan:
        """Return the same plan with noise changed beyond the 12th digit.

        Whatever a library remembers of an earlier call, it does not fit this one.
        """
        factor = 1 + times * 1e-13
        return Plan(
            tuple(
                replace(one, noise_multiplier=one.noise_multiplier * factor) for one in self.entries
            )
        )


def plan(sampling_rate: float, noise_multiplier: float, steps: int) -> Plan:
    """Return the plan of one entry."""
    return Plan((Entry(sampling_rate, noise_multiplier, steps),))


NAMED = {
    "A": plan(0.01, 1.0, 1_000),
    "B": plan(0.001, 0.6, 10_000),
    "C": plan(256 / 60000, 1.1, 14_063),
    "D": plan(0.02, 0.7, 2_000),
    "E": plan(1e-4, 0.5, 100_000),
    "F": plan(0.25, 5.0, 100),
    "G": plan(1.0, 10.0, 100),
    "H": plan(1e-5, 0.4, 1_000_000),
}

# To six decimals: 40-digit contour integrals; G is the closed form of one Gaussian.
TRUTHS = {
    1e-5: (1.828237, 2.456145, 2.381690, 12.882957, 2.057750, 2.069456, 4.377178, 3.074806),
    1e-12: (3.914298, 7.051822, 4.174618, 22.705417, 7.279110, 3.657129, 7.238494, 9.880492),
}
HALF_A_DIGIT = 5e-7


def truth(name: str, delta: float) -> float:
    """Return the true epsilon of A to H, to six decimals."""
    return TRUTHS[delta][list(NAMED).index(name)]


@dataclass(frozen=True)
class Question:
    """A plan and a delta."""

    plan: Plan
    delta: float

    def __str__(self) -> str:
        return f"{self.plan} at {self.delta:.3g}"


def random_questions(
    count: int,
    *,
    seed: int,
    deltas: tuple[float, float] = (1e-30, 1e-3),
    heterogeneous: float = 0.1,
) -> Iterator[Question]:
    """Yield questions spread evenly over the logarithms of everything."""
    rng = np.random.default_rng(seed)

    def between(low: float, high: float) -> float:
        return float(math.exp(rng.uniform(math.log(low), math.log(high))))

    for _ in range(count):
        entries = int(rng.integers(2, 4)) if rng.random() < heterogeneous else 1
        ledger = tuple(
            Entry(between(1e-6, 1), between(0.3, 100), round(between(1, 1e6)))
            for _ in range(entries)
        )
        yield Question(Plan(ledger), between(*deltas))


def different_releases(count: int, *, seed: int) -> Plan:
    """Return a ledger of ``count`` single releases, no two alike."""
    rng = np.random.default_rng(seed)
    rates = np.exp(rng.uniform(math.log(1e-3), math.log(0.1), count))
    noises = rng.uniform(0.8, 3, count)
    return Plan(tuple(Entry(float(q), float(s), 1) for q, s in zip(rates, noises, strict=True)))
