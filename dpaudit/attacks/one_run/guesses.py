"""How many canaries are guessed: fixed by simulating the claim, before a score is read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dpaudit.attacks.one_run.claimed import Claimed
from dpaudit.attacks.one_run.simulation import Audits

Array = NDArray[np.float64]
Bits = NDArray[np.bool_]

SHARES = (0.02, 0.05, 0.1, 0.15, 0.2, 0.35, 0.5, 0.75, 1.0)  # of the canaries, the surest first
REFUTING_FACTORS = (0.8, 0.65, 0.5, 0.4, 0.33, 0.25, 0.2)  # of the claimed noise
AUDITS = 20

Bounds = Callable[[int, int], float]
"""A bound from how many were guessed and how many of these were right."""


@dataclass(frozen=True, order=True)
class Guesses:
    """How many canaries are guessed, the surest first: a positive score in, a negative one out."""

    count: int

    def correct(self, scores: Array, included: Bits) -> int:
        """Return how many guesses are right; a tie counts against the guesser."""
        right = np.where(scores > 0, included, ~included) & (scores != 0)
        if self.count >= len(scores):
            return int(np.count_nonzero(right))
        sureness = np.abs(scores)
        last = np.partition(sureness, len(scores) - self.count)[len(scores) - self.count]
        surer, tied = sureness > last, sureness == last
        needed = self.count - int(np.count_nonzero(surer))
        wrong = int(np.count_nonzero(tied & ~right))
        return int(np.count_nonzero(surer & right)) + max(0, needed - wrong)


def best_guesses(
    simulation: Audits, canaries: int, noise_factor: float, bound: Bounds
) -> tuple[float, Guesses]:
    """Return the number of guesses whose bound is largest on average, and that bound."""
    choices = [max(1, int(share * canaries)) for share in SHARES]
    correct = simulation.right_guesses(noise_factor, AUDITS, choices).mean(axis=0)
    averages = [bound(count, int(right)) for count, right in zip(choices, correct, strict=True)]
    return max(zip(averages, map(Guesses, choices), strict=True))


def register(
    simulation: Audits, canaries: int, claimed: Claimed, bound: Bounds
) -> tuple[Guesses, Guesses]:
    """Return two numbers of guesses: the best if the claim is true, and the best against it.

    The second is the best one under the most noise at which a bound would, on average,
    rise above the claim: few sure guesses have a low ceiling.
    """
    against = [best_guesses(simulation, canaries, f, bound) for f in REFUTING_FACTORS]
    above = [guesses for average, guesses in against if average > claimed.epsilon]
    honest = best_guesses(simulation, canaries, 1.0, bound)[1]
    return honest, (above or [against[-1][1]])[0]


def digest(**registered: object) -> str:
    """Return what binds an audit to what it registered, to be written beside its result.

    Whoever repeats the registration from the claim alone, without a score, finds the same.
    """
    text = json.dumps(registered, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def fewest(refutes: Callable[[int], bool], most: int) -> int:
    """Return the least number that ``refutes``, as all larger ones do; ``most`` + 1 if none."""
    low, high = -1, most + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if refutes(middle) else (middle, high)
    return high
