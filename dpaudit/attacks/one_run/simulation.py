"""Simulated audits of the claimed steps at any noise factor, for registration and power.

A pool of scores of included and of excluded canaries is drawn once per noise factor. Each
simulated audit draws its canaries from the pool with replacement. Only the number of draws per
score matters, so that many audits are evaluated by sorted ranks, or by cumulative sums where
there are more canaries than scores. The same draws serve every pool of a size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from dpaudit.attacks.one_run.observations import ClaimedMechanism, ClaimedSteps, simulated_scores
from dpaudit.vocabulary.audit import POWER

# Simulated audits by counts: how often each score of a pool was drawn.

Array = NDArray[np.float64]
Bits = NDArray[np.bool_]
Counts = NDArray[np.int64]

MAX_POOL_AUDITS = 200  # audits per pool


@lru_cache(maxsize=4)
def _score_draw_counts(canaries: int, scores: int, seed: int) -> Counts:
    """Return how often each score was drawn in each audit, shape ``(audits, scores)``."""
    rng = np.random.default_rng([seed, 1])
    return rng.multinomial(canaries, np.full(scores, 1 / scores), size=MAX_POOL_AUDITS)


@lru_cache(maxsize=4)
def _drawn_scores(canaries: int, scores: int, seed: int) -> NDArray[np.intp]:
    """Return which scores were drawn in each audit, shape ``(audits, canaries)``."""
    counts = _score_draw_counts(canaries, scores, seed)
    drawn = np.repeat(np.tile(np.arange(scores), len(counts)), counts.ravel())
    return drawn.reshape(len(counts), canaries)


@dataclass(frozen=True)
class ScorePool:
    """Scores to draw canaries from, half of them of excluded and half of included canaries.

    Attributes:
        excluded: Scores of excluded canaries, shape ``(size,)``.
        included: Scores of included canaries, shape ``(size,)``.
    """

    excluded: Array
    included: Array

    def right_guesses(
        self, canaries: int, seed: int, repetitions: int, guesses: Sequence[int]
    ) -> Counts:
        """Count the correct guesses of simulated audits, by sign and size of the score.

        Ties count against the auditor.

        Args:
            canaries: Number of canaries of each audit, m.
            seed: Seed of the draws.
            repetitions: Number of audits, at most ``MAX_POOL_AUDITS``.
            guesses: Numbers of guesses, each at most m.

        Returns:
            Correct guesses, shape ``(repetitions, len(guesses))``.
        """
        scores = np.concatenate([self.excluded, self.included])
        right = np.concatenate([self.excluded < 0, self.included > 0])
        order = np.lexsort((right, -np.abs(scores)))
        return self._count_right(order, right, canaries, seed, repetitions, guesses)

    def right_guesses_by_rank(
        self, canaries: int, seed: int, repetitions: int, guesses: Sequence[int]
    ) -> Counts:
        """Count the correct guesses of simulated audits, by rank of the score.

        The highest scores are guessed as included, the lowest as excluded, half of the guesses
        each.

        Args:
            canaries: Number of canaries of each audit, m.
            seed: Seed of the draws.
            repetitions: Number of audits, at most ``MAX_POOL_AUDITS``.
            guesses: Numbers of guesses, each at most m.

        Returns:
            Correct guesses, shape ``(repetitions, len(guesses))``.
        """
        scores = np.concatenate([self.excluded, self.included])
        is_in = np.arange(len(scores)) >= len(self.excluded)
        order = np.argsort(scores, kind="stable")
        lowest = [count // 2 for count in guesses]
        highest = [count - count // 2 for count in guesses]
        right_out = self._count_right(order, ~is_in, canaries, seed, repetitions, lowest)
        right_in = self._count_right(order[::-1], is_in, canaries, seed, repetitions, highest)
        return np.asarray(right_out + right_in)

    def _count_right(
        self,
        order: NDArray[np.intp],
        right: Bits,
        canaries: int,
        seed: int,
        repetitions: int,
        guesses: Sequence[int],
    ) -> Counts:
        """Return how many of the first guesses in ``order`` are correct."""
        if canaries < len(order):
            return self._count_right_of_few(order, right, canaries, seed, repetitions, guesses)
        drawn = _score_draw_counts(canaries, len(order), seed)[:repetitions, order]
        ends, rows = np.cumsum(drawn, axis=1), np.arange(repetitions)
        ends_right = np.cumsum(drawn * right[order], axis=1)
        correct = np.empty((repetitions, len(guesses)), dtype=np.int64)
        for column, count in enumerate(guesses):
            last = (ends < count).sum(axis=1)  # the score whose draws are only partly guessed
            # The draws of one score are all correct or all wrong: subtract those not guessed.
            unguessed = (ends[rows, last] - count) * right[order[last]]
            correct[:, column] = ends_right[rows, last] - unguessed
        return correct

    def _count_right_of_few(
        self,
        order: NDArray[np.intp],
        right: Bits,
        canaries: int,
        seed: int,
        repetitions: int,
        guesses: Sequence[int],
    ) -> Counts:
        """Count like ``_count_right``, one draw at a time: faster where most scores have none."""
        place = np.empty(len(order), dtype=np.min_scalar_type(len(order)))
        place[order] = np.arange(len(order))
        drawn = place[_drawn_scores(canaries, len(order), seed)[:repetitions]]
        drawn.sort(axis=1, kind="stable")  # draws of one score are all correct or all wrong
        correct = np.zeros((repetitions, canaries + 1), dtype=np.int64)
        np.cumsum(right[order][drawn], axis=1, out=correct[:, 1:])
        return correct[:, list(guesses)]


SIMULATED_DRAWS = 20_000_000  # of noise, per noise factor: steps times scores
REPETITIONS = 200  # simulated audits per noise factor
MIN_SIMULATED_NOISE_FACTOR = 0.1
RESOLUTION = 1.03  # of noise factors, as a ratio


class SimulatedAudits(Protocol):
    """Simulated audits of the claimed steps."""

    def right_guesses(
        self, noise_factor: float, repetitions: int, guesses: Sequence[int]
    ) -> NDArray[np.int64]:
        """Simulate audits, and count the correct guesses.

        Args:
            noise_factor: True noise over claimed noise.
            repetitions: Number of simulated audits.
            guesses: Numbers of guesses.

        Returns:
            Correct guesses, shape ``(repetitions, len(guesses))``.
        """


class Simulation:
    """Simulated audits by log-likelihood ratios of all steps.

    Args:
        steps: The claimed steps.
        canaries: Number of canaries, m.
        seed: Seed of the simulation.
    """

    def __init__(self, steps: ClaimedSteps, canaries: int, seed: int) -> None:
        self._steps, self._canaries, self._seed = steps, canaries, seed
        self._size = int(np.clip(SIMULATED_DRAWS / len(steps.sampling_rates) / 2, 1000, 5000))

    @lru_cache(maxsize=32)  # noqa: B019  one simulation lives as long as one audit
    def _pool(self, noise_factor: float) -> tuple[Array, Array]:
        """Draw scores of excluded and of included canaries."""
        rng = np.random.default_rng([self._seed, int(1e9 * noise_factor)])
        excluded, included = (
            simulated_scores(self._steps, noise_factor, bit, self._size, rng)
            for bit in (False, True)
        )
        return excluded, included

    def right_guesses(
        self, noise_factor: float, repetitions: int, guesses: Sequence[int]
    ) -> NDArray[np.int64]:
        """Simulate audits, and count the correct guesses by sign and size of the score.

        Args:
            noise_factor: True noise over claimed noise.
            repetitions: Number of simulated audits, at most ``MAX_POOL_AUDITS``.
            guesses: Numbers of guesses, each at most m.

        Returns:
            Correct guesses, shape ``(repetitions, len(guesses))``.
        """
        pool = ScorePool(*self._pool(noise_factor))
        return pool.right_guesses(self._canaries, self._seed, repetitions, guesses)

    def audits(self, noise_factor: float, repetitions: int) -> list[tuple[Array, Bits]]:
        """Simulate the scores and inclusion bits of audits.

        Args:
            noise_factor: True noise over claimed noise.
            repetitions: Number of simulated audits.

        Returns:
            Scores and inclusion bits of each audit, shape ``(m,)`` each. Exactly half of the
            canaries, rounded down, are included.
        """
        excluded, included = self._pool(noise_factor)
        rng = np.random.default_rng([self._seed, 1])
        audits = []
        for _ in range(repetitions):
            bits = rng.permutation(self._canaries) < self._canaries // 2
            picks = rng.integers(0, self._size, self._canaries)
            audits.append((np.where(bits, included[picks], excluded[picks]), bits))
        return audits


def detectable_epsilon(
    claim: ClaimedMechanism, shares_refuted: Callable[[float], float]
) -> float | None:
    """Compute the smallest epsilon at which an audit refutes the claim with probability 95%.

    Args:
        claim: The claimed mechanism.
        shares_refuted: Returns the probability that the claim is refuted at a true noise factor.

    Returns:
        The upper end of that epsilon in nats. None if the claim is not refuted that often at
        ``MIN_SIMULATED_NOISE_FACTOR``.
    """
    low, high = MIN_SIMULATED_NOISE_FACTOR, 1.0  # refuted often enough at low, not at high
    if not shares_refuted(low) >= POWER:
        return None
    while high / low > RESOLUTION:
        middle = float(np.sqrt(low * high))
        low, high = (middle, high) if shares_refuted(middle) >= POWER else (low, middle)
    return claim.family.epsilon(low).upper
