"""A bound from one run whose guesses may use the coins that were revealed before.

The effects of canaries on a model interfere. An auditor who knows the earlier coins can subtract
their effects before the next guess (Keinan, Shenfeld & Ligett 2025, arXiv:2503.07199, call this
an adaptive one-run audit). The order of the canaries and the number of guesses r are fixed before
the scores are read. An abstention may use everything that is known so far.

Derivation. Given the coins before i, let P_1 and P_0 be the laws of what the run released, with
coin i up and down and the later coins random. They are (epsilon, delta)-close. With
q = e^epsilon/(1 + e^epsilon), a guess "up" is right with probability

    P_1/(P_0 + P_1) <= q + x,                                                                (1)
    x = max(P_1 - e^epsilon P_0, 0) / ((1 + e^epsilon) (P_0 + P_1)),

and E[x] <= delta/(2 (1 + e^epsilon)) under the law (P_0 + P_1)/2. Both guesses together give
E[x] <= delta/(1 + e^epsilon) <= delta/2. Couple each guess with an independent coin W of bias q:
a right guess has W = 1 or an extra success of probability x. So the number of right guesses V
satisfies V <= Bin(r, q) + F with E[F] <= m delta/2, and by Markov's inequality, for every k,

    P[V >= v] <= P[Bin(r, q) >= v - k] + m delta / (2 (k + 1)).                              (2)

The p-value is the least right-hand side. It rises with epsilon. For delta above 0, the order must
not depend on the scores. The proofs are equations 7 and 8 of docs/mathematics/sequential_bounds.md.
"""

from __future__ import annotations

import math

from dpaudit.attacks.bounds.lower_bound import (
    LowerBound,
    bisect_largest,
    require_delta_or_zero,
)
from dpaudit.attacks.bounds.one_run_bounds import (
    MAX_ONE_RUN_EPSILON,
    binomial_tail,
    require_guess_counts,
)
from dpaudit.vocabulary.audit import BoundKind
from dpaudit.vocabulary.errors import require_open_unit

ASSUMES_ADAPTIVE_COINS = (
    "nothing but fair, independent coins, guessed in an order that was fixed beforehand"
)
MAX_EXTRA_SUCCESSES = 64  # the k of equation (2) that are tried


def adaptive_p_value(
    *, epsilon: float, canaries: int, guesses: int, correct: int, delta: float
) -> float:
    """Compute the p-value of "the mechanism is (epsilon, delta)-DP" for adaptive guesses.

    Args:
        epsilon: The tested epsilon in nats, at least 0.
        canaries: Number of canaries with a fair coin, m.
        guesses: Number of guesses, r, fixed before the scores were read.
        correct: Number of correct guesses, v.
        delta: The tested delta, in [0, 1).

    Returns:
        The p-value of equation (2), at most 1.

    Example:
        >>> p_value = adaptive_p_value(
        ...     epsilon=1.0, canaries=1000, guesses=100, correct=95, delta=1e-5
        ... )
        >>> round(p_value, 6)
        0.0008
    """
    q = 1 / (1 + math.exp(-epsilon))
    extra = 0.5 * canaries * delta
    most = 0 if delta == 0 else min(correct, MAX_EXTRA_SUCCESSES)
    found = (binomial_tail(correct - k, guesses, q) + extra / (k + 1) for k in range(most + 1))
    return min(1.0, *found)


def adaptive_one_run(
    *, canaries: int, guesses: int, correct: int, delta: float, confidence: float
) -> LowerBound:
    """Compute the certified lower bound from guesses that may use earlier coins.

    Args:
        canaries: Number of canaries with a fair coin, m.
        guesses: Number of guesses, r, fixed before the scores were read.
        correct: Number of correct guesses, v; a guess that was not made counts as wrong.
        delta: The delta of the statement, in [0, 1).
        confidence: Probability with which the bound holds, in (0, 1).

    Returns:
        The bound. It is certified for fair, independent coins; canaries may interfere.

    Raises:
        InvalidArgument: If the counts contradict each other, or a number is out of range.

    References:
        Keinan, Shenfeld & Ligett (2025), arXiv:2503.07199, for adaptive guesses. The test is
        Theorem 3 of docs/mathematics/sequential_bounds.md.

    Example:
        >>> bound = adaptive_one_run(
        ...     canaries=1000, guesses=100, correct=95, delta=1e-5, confidence=0.95
        ... )
        >>> round(bound.epsilon, 4), bound.kind.value
        (2.1545, 'certified')
    """
    require_guess_counts(canaries, guesses, correct)
    require_delta_or_zero(delta)
    require_open_unit("confidence", confidence)

    def refuted(epsilon: float) -> bool:
        p_value = adaptive_p_value(
            epsilon=epsilon, canaries=canaries, guesses=guesses, correct=correct, delta=delta
        )
        return p_value <= 1 - confidence

    epsilon = bisect_largest(refuted, 0.0, MAX_ONE_RUN_EPSILON) if refuted(0.0) else 0.0
    return LowerBound(epsilon, BoundKind.CERTIFIED, confidence, ASSUMES_ADAPTIVE_COINS)
