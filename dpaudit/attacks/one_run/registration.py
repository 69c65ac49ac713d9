"""Registration: what an audit fixes before it reads a score, and the result that states it.

The number of guessed canaries decides how much a one-run bound can show: a few guesses with the
largest absolute scores are mostly correct, but their bound has a low ceiling. Two numbers are
chosen by simulating the claimed mechanism. A digest of the registered values is written beside
the result. The same claim and seed give the same values, so that anyone can check them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dpaudit.attacks.bounds import LowerBound
from dpaudit.attacks.one_run.observations import ClaimedMechanism
from dpaudit.attacks.one_run.simulation import SimulatedAudits
from dpaudit.vocabulary.audit import AuditResult, BoundStatistics

Array = NDArray[np.float64]
Bits = NDArray[np.bool_]

GUESS_SHARES = (
    0.02,
    0.05,
    0.1,
    0.15,
    0.2,
    0.35,
    0.5,
    0.75,
    1.0,
)  # of the canaries, by falling absolute score
REFUTING_NOISE_FACTORS = (0.8, 0.65, 0.5, 0.4, 0.33, 0.25, 0.2)  # of the claimed noise
AUDITS_PER_CHOICE = 20  # simulated audits per number of guesses

BoundOfGuesses = Callable[[int, int], float]
"""Computes a bound from the numbers of guesses and of correct guesses."""


@dataclass(frozen=True, order=True)
class Guesses:
    """A number of guesses, made for the canaries with the largest absolute scores.

    A positive score is guessed as included, a negative one as excluded.

    Attributes:
        count: Number of guesses, r.
    """

    count: int

    def correct(self, scores: Array, included: Bits) -> int:
        """Count the correct guesses.

        Equal absolute scores at the last guess are resolved against the auditor: wrong guesses
        come first. A score of 0 is a wrong guess.

        Args:
            scores: Scores around zero, shape ``(m,)``.
            included: The inclusion bits, shape ``(m,)``.

        Returns:
            The number of correct guesses, v, at most r.
        """
        right = np.where(scores > 0, included, ~included) & (scores != 0)
        if self.count >= len(scores):
            return int(np.count_nonzero(right))
        sizes = np.abs(scores)
        last = np.partition(sizes, len(scores) - self.count)[len(scores) - self.count]
        larger, tied = sizes > last, sizes == last
        remaining = self.count - int(np.count_nonzero(larger))
        wrong = int(np.count_nonzero(tied & ~right))
        return int(np.count_nonzero(larger & right)) + max(0, remaining - wrong)


def best_guesses(
    simulation: SimulatedAudits, canaries: int, noise_factor: float, bound: BoundOfGuesses
) -> tuple[float, Guesses]:
    """Find the number of guesses with the largest bound at the average number correct.

    Args:
        simulation: Simulated audits.
        canaries: Number of canaries, m.
        noise_factor: True noise over claimed noise.
        bound: Computes the bound from both numbers.

    Returns:
        The largest bound, and the number of guesses that gives it.
    """
    choices = [max(1, int(share * canaries)) for share in GUESS_SHARES]
    correct = simulation.right_guesses(noise_factor, AUDITS_PER_CHOICE, choices).mean(axis=0)
    averages = [bound(count, int(right)) for count, right in zip(choices, correct, strict=True)]
    return max(zip(averages, map(Guesses, choices), strict=True))


def register_guesses(
    simulation: SimulatedAudits, canaries: int, claim: ClaimedMechanism, bound: BoundOfGuesses
) -> tuple[Guesses, Guesses]:
    """Choose two numbers of guesses from the claim.

    The first is the best one if the claim is true. The second is the best one at the largest of
    ``REFUTING_NOISE_FACTORS`` whose best bound exceeds the claim, or at the smallest factor if
    none does.

    Args:
        simulation: Simulated audits of the claim.
        canaries: Number of canaries, m.
        claim: The claimed mechanism.
        bound: Computes the bound from the numbers of guesses and of correct guesses.

    Returns:
        Both numbers of guesses.
    """
    against = [best_guesses(simulation, canaries, f, bound) for f in REFUTING_NOISE_FACTORS]
    refuting = [guesses for average, guesses in against if average > claim.epsilon]
    under_claim = best_guesses(simulation, canaries, 1.0, bound)[1]
    return under_claim, (refuting or [against[-1][1]])[0]


def registration_digest(**registered: object) -> str:
    """Compute the SHA-256 digest of what an audit registered before it read a score.

    Anyone can repeat the registration from the claim, without the scores, and compare.

    Args:
        **registered: The registered values, which JSON can represent.

    Returns:
        The digest, in hexadecimal.
    """
    text = json.dumps(registered, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def least_refuting_count(refutes: Callable[[int], bool], most: int) -> int:
    """Find the smallest number that refutes, by bisection.

    Args:
        refutes: A monotone test: if it refutes a number, it refutes every larger one.
        most: The largest number to test.

    Returns:
        The smallest refuting number from 0 to ``most``; ``most`` + 1 if none is.
    """
    low, high = -1, most + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if refutes(middle) else (middle, high)
    return high


# The result of an audit.


def audit_result(
    bound: LowerBound,
    *,
    name: str,
    method: str,
    delta: float,
    canaries: int,
    thresholds: str,
    registered: str,
    guesses: int = 0,
    correct: int = 0,
    detectable_epsilon: float | None = None,
    greatest_epsilon: float | None = None,
    estimator: BoundStatistics | None = None,
) -> AuditResult:
    """Return a lower bound as an audit result, with its method and statistics.

    Args:
        bound: The lower bound.
        name: The canaries and the observation.
        method: The estimator and its source.
        delta: The delta of the bound.
        canaries: Number of scored canaries.
        thresholds: How guesses or thresholds were fixed, as text for reports.
        registered: Digest of what was fixed before a score was read.
        guesses: Number of guesses; 0 where none is made.
        correct: Number of correct guesses.
        detectable_epsilon: The power of the audit, where it is known.
        greatest_epsilon: The bound if every guess had been correct.
        estimator: The statistics that the bound is a function of.

    Returns:
        The result.
    """
    return AuditResult(
        name=name,
        method=method,
        kind=bound.kind,
        epsilon_lower=bound.epsilon,
        delta=delta,
        confidence=bound.confidence,
        assumes=bound.assumes,
        states=bound.states,
        trials=canaries,
        guesses=guesses,
        correct=correct,
        thresholds=thresholds,
        registered=registered,
        detectable_epsilon=detectable_epsilon,
        greatest_epsilon=greatest_epsilon,
        estimator=estimator,
    )
