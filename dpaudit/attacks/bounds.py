"""Lower bounds on epsilon as pure functions of counts; larger counts never lower them.

Everything is for add-or-remove-one neighbours, and every threshold is the caller's to fix
before the scores are read.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.special import betainc, betaincinv

from dpaudit.vocabulary.audit import BoundKind
from dpaudit.vocabulary.bound import Bound
from dpaudit.vocabulary.errors import InvalidArgument, require_count, require_open_unit

LARGEST_EPSILON = 60.0  # beyond it a one-run bound would need more guesses than there are atoms
HALVINGS = 60


@dataclass(frozen=True)
class LowerBound:
    """A lower bound on epsilon, what it rests on, and how sure it is."""

    epsilon: float
    kind: BoundKind
    confidence: float


def _at_least(successes: np.ndarray | float, trials: int, probability: float) -> np.ndarray:
    """Return P[Bin(trials, probability) >= successes]."""
    k = np.asarray(successes, dtype=np.float64)
    inside = np.clip(k, 1, trials)
    tail = betainc(inside, trials - inside + 1, probability)
    return np.where(k <= 0, 1.0, np.where(k > trials, 0.0, tail))


def one_run_p_value(
    *, epsilon: float, canaries: int, guesses: int, correct: int, delta: float
) -> float:
    """Return the p-value of "the mechanism is (epsilon, delta)-DP" after one run.

    Steinke, Nasr & Jagielski 2023, arXiv:2305.08846, Theorem 5.2: with q = e^eps/(1 + e^eps),
    P[Bin(r, q) >= v] + 2 m delta max_i P[v - i <= Bin(r, q) < v] / i.
    """
    q = 1 / (1 + math.exp(-epsilon))
    beyond = float(_at_least(correct, guesses, q))
    if delta == 0 or correct == 0:
        return min(1.0, beyond)
    i = np.arange(1, correct + 1)
    within = np.maximum(_at_least(correct - i, guesses, q) - beyond, 0.0)
    return min(1.0, beyond + 2 * canaries * delta * float((within / i).max()))


def one_run(
    *, canaries: int, guesses: int, correct: int, delta: float, confidence: float
) -> LowerBound:
    """Return the certified lower bound of one run with fair, independent inclusion bits.

    Args:
        canaries: How many canaries had a coin, m.
        guesses: How many were guessed, r; fixed before the scores were read.
        correct: How many guesses were right, v.
        delta: The delta of the statement, in [0, 1).
        confidence: Probability with which the bound holds, in (0, 1).

    Raises:
        InvalidArgument: the counts contradict each other, or a number is out of range.
    """
    _check_counts(canaries, guesses, correct)
    if not 0 <= delta < 1:
        raise InvalidArgument("delta", delta, "at least 0 and below 1")
    require_open_unit("confidence", confidence)
    alpha = 1 - confidence

    def refuted(epsilon: float) -> bool:
        p_value = one_run_p_value(
            epsilon=epsilon, canaries=canaries, guesses=guesses, correct=correct, delta=delta
        )
        return p_value <= alpha

    low, high = 0.0, LARGEST_EPSILON
    if not refuted(0.0):
        return LowerBound(0.0, BoundKind.CERTIFIED, confidence)
    for _ in range(HALVINGS):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if refuted(middle) else (low, middle)
    return LowerBound(low, BoundKind.CERTIFIED, confidence)


def total_variation(*, canaries: int, correct: int, confidence: float) -> float:
    """Return a lower bound on the total variation between a canary's two laws.

    Given all scores of independent canaries, the bits are independent, and no rule is
    right on one of them with probability above (1 + TV)/2: so the number of right guesses
    is stochastically below Bin(m, (1 + TV)/2), however the guesses were chosen from the
    scores. This inverts that binomial test by Clopper and Pearson's limit.
    """
    _check_counts(canaries, canaries, correct)
    require_open_unit("confidence", confidence)
    if correct == 0:
        return 0.0
    accuracy = float(betaincinv(correct, canaries - correct + 1, 1 - confidence))
    return max(0.0, 2 * accuracy - 1)


def clopper_pearson_interval(*, successes: int, trials: int, confidence: float) -> Bound:
    """Return the exact two-sided interval of a probability (Clopper & Pearson 1934)."""
    _check_counts(trials, trials, successes)
    require_open_unit("confidence", confidence)
    side = (1 - confidence) / 2
    low = float(betaincinv(successes, trials - successes + 1, side)) if successes > 0 else 0.0
    high = (
        float(betaincinv(successes + 1, trials - successes, 1 - side))
        if successes < trials
        else 1.0
    )
    return Bound(low, high)


def _check_counts(canaries: int, guesses: int, correct: int) -> None:
    require_count("canaries", canaries)
    require_count("guesses", guesses, least=0)
    require_count("correct", correct, least=0)
    if guesses > canaries:
        raise InvalidArgument("guesses", guesses, f"at most the {canaries} canaries")
    if correct > guesses:
        raise InvalidArgument("correct", correct, f"at most the {guesses} guesses")
