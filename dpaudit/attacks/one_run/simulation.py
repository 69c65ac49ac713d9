"""Audits of the claimed steps with more or less noise, simulated: for registration and power."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from dpaudit.attacks.one_run.claimed import Claimed
from dpaudit.attacks.one_run.likelihood import ClaimedSteps, simulated_scores
from dpaudit.attacks.one_run.pools import Pool
from dpaudit.vocabulary.audit import POWER

Array = NDArray[np.float64]
Bits = NDArray[np.bool_]

SIMULATED_DRAWS = 20_000_000
REPETITIONS = 200
LEAST_NOISE_FACTOR = 0.1
RESOLUTION = 1.03  # of noise factors


class Audits(Protocol):
    """Simulated audits."""

    def right_guesses(
        self, noise_factor: float, repetitions: int, guesses: Sequence[int]
    ) -> NDArray[np.int64]:
        """Return right guesses at a true noise factor, shape ``(repetitions, len(guesses))``."""


class Simulation:
    """Scores of the claimed steps at chosen noise factors, drawn once and resampled."""

    def __init__(self, steps: ClaimedSteps, canaries: int, seed: int) -> None:
        self._steps, self._canaries, self._seed = steps, canaries, seed
        self._size = int(np.clip(SIMULATED_DRAWS / len(steps.sampling_rates) / 2, 1000, 5000))

    @lru_cache(maxsize=32)  # noqa: B019  one simulation lives as long as one audit
    def _pool(self, noise_factor: float) -> tuple[Array, Array]:
        rng = np.random.default_rng([self._seed, int(1e9 * noise_factor)])
        out, included = (
            simulated_scores(self._steps, noise_factor, bit, self._size, rng)
            for bit in (False, True)
        )
        return out, included

    def right_guesses(
        self, noise_factor: float, repetitions: int, guesses: Sequence[int]
    ) -> NDArray[np.int64]:
        """Return right guesses of as many simulated audits."""
        pool = Pool(*self._pool(noise_factor))
        return pool.right_guesses(self._canaries, self._seed, repetitions, guesses)

    def audits(self, noise_factor: float, repetitions: int) -> list[tuple[Array, Bits]]:
        """Return scores and bits of as many simulated audits, half of the canaries included."""
        out, included = self._pool(noise_factor)
        rng = np.random.default_rng([self._seed, 1])
        audits = []
        for _ in range(repetitions):
            bits = rng.permutation(self._canaries) < self._canaries // 2
            picks = rng.integers(0, self._size, self._canaries)
            audits.append((np.where(bits, included[picks], out[picks]), bits))
        return audits


def detectable_epsilon(claimed: Claimed, shares_refuted: Callable[[float], float]) -> float | None:
    """Return the least epsilon at which an audit refutes the claim 95 times in 100.

    Args:
        claimed: What is claimed.
        shares_refuted: How often the claim is refuted at a true noise factor.

    Returns:
        The upper end of that epsilon; None where no noise factor is low enough.
    """
    low, high = LEAST_NOISE_FACTOR, 1.0  # seen at low, not at high
    if not shares_refuted(low) >= POWER:
        return None
    while high / low > RESOLUTION:
        middle = float(np.sqrt(low * high))
        low, high = (middle, high) if shares_refuted(middle) >= POWER else (low, middle)
    return claimed.family.epsilon(low).upper
