"""How many guesses are right on average, if the scores are those of a Gaussian mechanism."""

from __future__ import annotations

import math
from dataclasses import dataclass

from scipy.special import ndtr

from dpaudit.attacks.bounds.search import largest

FARTHEST = 40.0  # standard deviations beyond which no score lies


@dataclass(frozen=True)
class GaussianScores:
    """Scores that are N(mu, 1) for members and N(0, 1) for other records.

    Attributes:
        members: Share of the records that are members, in (0, 1).
        mu: Distance of the means in standard deviations, at least 0.
    """

    members: float
    mu: float

    def right_in(self, share: float) -> float:
        """Return the share of members among the highest ``share`` of all scores, in (0, 1]."""
        if share >= 1:
            return self.members
        threshold = largest(lambda t: self._above(t) >= share, -FARTHEST, FARTHEST + self.mu)
        return min(1.0, self.members * float(ndtr(self.mu - threshold)) / share)

    def right_out(self, share: float) -> float:
        """Return the share of non-members among the lowest ``share`` of all scores."""
        return GaussianScores(1 - self.members, self.mu).right_in(share)

    def _above(self, threshold: float) -> float:
        tails = float(ndtr(self.mu - threshold)), float(ndtr(-threshold))
        return self.members * tails[0] + (1 - self.members) * tails[1]


def whole(expected: float) -> int:
    """Return the whole number of right guesses that is expected, rounded down."""
    return math.floor(expected * (1 + 1e-12))
