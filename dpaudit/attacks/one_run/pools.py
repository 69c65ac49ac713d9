"""Simulated audits by counts: how often each score of a pool was drawn, not which canary drew it.

A simulated audit draws a fair coin and a score for each canary, from a pool of scores of left
out canaries or from one of included ones. Only the number of right guesses is asked for. It
depends on how often each score of the pools was drawn, and these counts are multinomial. So an
audit takes as long for 100,000 canaries as for 1,000.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Bits = NDArray[np.bool_]
Counts = NDArray[np.int64]

MOST_AUDITS = 200


@lru_cache(maxsize=4)
def _drawn(canaries: int, scores: int, seed: int) -> Counts:
    """Return how often each of ``scores`` was drawn in each audit, shape (audits, scores)."""
    rng = np.random.default_rng([seed, 1])
    return rng.multinomial(canaries, np.full(scores, 1 / scores), size=MOST_AUDITS)


@dataclass(frozen=True)
class Pool:
    """Scores to draw from, half of them of left out canaries and half of included ones.

    Attributes:
        out: Scores of left out canaries, shape ``(size,)``.
        included: Scores of included ones, shape ``(size,)``.
    """

    out: Array
    included: Array

    def right_guesses(
        self, canaries: int, seed: int, repetitions: int, guesses: Sequence[int]
    ) -> Counts:
        """Return the right guesses of simulated audits, by the sign and the size of the score.

        The same draws serve every pool of this size. A tie counts against the guesser.

        Args:
            canaries: How many canaries each audit has.
            seed: Of the draws.
            repetitions: How many audits, at most ``MOST_AUDITS``.
            guesses: Numbers of guesses, each at most ``canaries``.

        Returns:
            Shape ``(repetitions, len(guesses))``.
        """
        scores = np.concatenate([self.out, self.included])
        right = np.concatenate([self.out < 0, self.included > 0])
        order = np.lexsort((right, -np.abs(scores)))
        return self._right(order, right, canaries, seed, repetitions, guesses)

    def right_ends(
        self, canaries: int, seed: int, repetitions: int, guesses: Sequence[int]
    ) -> Counts:
        """Return the same where the highest half of the guesses is in, the lowest half out."""
        scores = np.concatenate([self.out, self.included])
        is_in = np.arange(len(scores)) >= len(self.out)
        order = np.argsort(scores, kind="stable")
        lowest = [count // 2 for count in guesses]
        highest = [count - count // 2 for count in guesses]
        right_out = self._right(order, ~is_in, canaries, seed, repetitions, lowest)
        right_in = self._right(order[::-1], is_in, canaries, seed, repetitions, highest)
        return np.asarray(right_out + right_in)

    def _right(
        self,
        order: NDArray[np.intp],
        right: Bits,
        canaries: int,
        seed: int,
        repetitions: int,
        guesses: Sequence[int],
    ) -> Counts:
        """Return how many of the first guesses in ``order`` are right."""
        drawn = _drawn(canaries, len(order), seed)[:repetitions, order]
        ends, rows = np.cumsum(drawn, axis=1), np.arange(repetitions)
        ends_right = np.cumsum(drawn * right[order], axis=1)
        found = np.empty((repetitions, len(guesses)), dtype=np.int64)
        for column, count in enumerate(guesses):
            last = (ends < count).sum(axis=1)  # the score whose draws are guessed in part
            # Draws of one score are all right, or all wrong.
            unguessed = (ends[rows, last] - count) * right[order[last]]
            found[:, column] = ends_right[rows, last] - unguessed
        return found
