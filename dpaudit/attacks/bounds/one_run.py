"""One run with fair inclusion bits: how many right guesses a private mechanism allows.

Steinke, Nasr & Jagielski 2023, arXiv:2305.08846. Nothing is assumed but the coins: canaries
may interfere as they like. How many guesses there are is fixed before the scores are read.
"""

from __future__ import annotations

import math

from scipy.special import betainc

from dpaudit.attacks.bounds.result import COINS, LowerBound, require_delta_or_zero
from dpaudit.attacks.bounds.search import largest
from dpaudit.vocabulary.audit import BoundKind
from dpaudit.vocabulary.errors import InvalidArgument, require_count, require_open_unit

LARGEST_EPSILON = 60.0  # beyond it a one-run bound would need more guesses than there are atoms


def _at_least(successes: int, trials: int, probability: float) -> float:
    """Return P[Bin(trials, probability) >= successes]."""
    if successes <= 0:
        return 1.0
    if successes > trials:
        return 0.0
    return float(betainc(successes, trials - successes + 1, probability))


def one_run_p_value(
    *, epsilon: float, canaries: int, guesses: int, correct: int, delta: float
) -> float:
    """Return the p-value of "the mechanism is (epsilon, delta)-DP" after one run.

    Steinke, Nasr & Jagielski 2023, arXiv:2305.08846, Theorem 5.2: with q = e^eps/(1 + e^eps),
    P[Bin(r, q) >= v] + 2 m delta max_i P[v - i <= Bin(r, q) < v] / i.
    """
    q = 1 / (1 + math.exp(-epsilon))
    beyond = _at_least(correct, guesses, q)
    if delta == 0 or correct == 0:
        return min(1.0, beyond)
    average = _largest_average(correct, guesses, q, beyond)
    return min(1.0, beyond + 2 * canaries * delta * average)


def _largest_average(correct: int, guesses: int, q: float, beyond: float) -> float:
    """Return the largest P[v - i <= Bin(r, q) < v] / i, over i from 1 to v.

    These are averages of binomial probabilities from v - 1 downwards. The probabilities first
    rise and then fall, and so do their averages: a bisection finds the largest.
    """

    def average(i: int) -> float:
        return max(_at_least(correct - i, guesses, q) - beyond, 0.0) / i

    low, high = 1, correct
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if average(middle) >= average(middle - 1) else (low, middle - 1)
    return average(low)


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
    require_guesses(canaries, guesses, correct)
    require_delta_or_zero(delta)
    require_open_unit("confidence", confidence)

    def refuted(epsilon: float) -> bool:
        p_value = one_run_p_value(
            epsilon=epsilon, canaries=canaries, guesses=guesses, correct=correct, delta=delta
        )
        return p_value <= 1 - confidence

    epsilon = largest(refuted, 0.0, LARGEST_EPSILON)
    return LowerBound(epsilon, BoundKind.CERTIFIED, confidence, COINS)


def require_guesses(canaries: int, guesses: int, correct: int) -> None:
    """Refuse counts that contradict each other."""
    require_count("canaries", canaries)
    require_count("guesses", guesses, least=0)
    require_count("correct", correct, least=0)
    if guesses > canaries:
        raise InvalidArgument("guesses", guesses, f"at most the {canaries} canaries")
    if correct > guesses:
        raise InvalidArgument("correct", correct, f"at most the {guesses} guesses")
