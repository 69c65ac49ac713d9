"""Bounds from one training run, by the number of correct guesses of fair inclusion bits.

Each of m canaries is included by a fair, independent coin. The auditor guesses r of these bits
from the scores, and v guesses are correct. The number r is fixed before the scores are read.
Canaries may interfere: only the coins are assumed.

The first part is the certified test of (epsilon, delta)-DP by Steinke, Nasr & Jagielski 2023,
arXiv:2305.08846, Theorem 5.2. With q = e^epsilon / (1 + e^epsilon),

    p(epsilon) = P[Bin(r, q) >= v] + 2 m delta max over 1 <= i <= v of P[v - i <= Bin(r, q) < v]/i,

and the bound is the largest epsilon with p(epsilon) <= 1 - confidence.

The second part tests a trade-off curve f (Mahloujifar, Melis & Chaudhuri 2024): see
``curve_is_refuted``.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from scipy.special import betainc

from dpaudit.attacks.bounds.gaussian_dp import ASSUMES_GAUSSIAN_TRADEOFF, epsilon_of_mu
from dpaudit.attacks.bounds.lower_bound import (
    ASSUMES_FAIR_COINS,
    RESOLUTION,
    LowerBound,
    bisect_largest,
    require_delta_or_zero,
)
from dpaudit.attacks.bounds.mechanism_family import (
    MechanismFamily,
    Tradeoff,
    gaussian_tradeoff,
    least_refuted,
)
from dpaudit.vocabulary.audit import BoundKind
from dpaudit.vocabulary.errors import InvalidArgument, require_count, require_open_unit

MAX_ONE_RUN_EPSILON = 60.0  # in nats, end of the search; no practical number of canaries reaches it


def binomial_tail(successes: int, trials: int, probability: float) -> float:
    """Compute P[Bin(trials, probability) >= successes].

    Args:
        successes: Number of successes; 0 or less gives 1.
        trials: Number of trials.
        probability: Probability of a success, in [0, 1].

    Returns:
        The probability.
    """
    if successes <= 0:
        return 1.0
    if successes > trials:
        return 0.0
    return float(betainc(successes, trials - successes + 1, probability))


def one_run_p_value(
    *, epsilon: float, canaries: int, guesses: int, correct: int, delta: float
) -> float:
    """Compute the p-value of "the mechanism is (epsilon, delta)-DP" after one run.

    With q = e^epsilon / (1 + e^epsilon) it is

        P[Bin(r, q) >= v] + 2 m delta max over 1 <= i <= v of P[v - i <= Bin(r, q) < v] / i.

    Args:
        epsilon: The tested epsilon in nats, at least 0.
        canaries: Number of canaries with a fair coin, m.
        guesses: Number of guesses, r, fixed before the scores were read.
        correct: Number of correct guesses, v.
        delta: The tested delta, in [0, 1).

    Returns:
        The p-value, at most 1.

    References:
        Steinke, Nasr & Jagielski (2023), arXiv:2305.08846, Theorem 5.2.

    Example:
        >>> p_value = one_run_p_value(
        ...     epsilon=1.0, canaries=1000, guesses=100, correct=95, delta=1e-5
        ... )
        >>> round(p_value, 6)
        0.000664
    """
    q = 1 / (1 + math.exp(-epsilon))
    beyond = binomial_tail(correct, guesses, q)
    if delta == 0 or correct == 0:
        return min(1.0, beyond)
    average = _delta_coefficient(correct, guesses, q, beyond)
    return min(1.0, beyond + 2 * canaries * delta * average)


def _delta_coefficient(correct: int, guesses: int, q: float, beyond: float) -> float:
    """Return the largest P[v - i <= Bin(r, q) < v] / i, over i from 1 to v.

    These are averages of the binomial probabilities of v - 1, v - 2, ..., v - i. The
    probabilities first rise and then fall with i, and so do their averages. A bisection finds
    the largest average.
    """

    def average(i: int) -> float:
        """Return the average of the i probabilities below v."""
        return max(binomial_tail(correct - i, guesses, q) - beyond, 0.0) / i

    low, high = 1, correct
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if average(middle) >= average(middle - 1) else (low, middle - 1)
    return average(low)


def one_run(
    *, canaries: int, guesses: int, correct: int, delta: float, confidence: float
) -> LowerBound:
    """Compute the certified lower bound from one run with fair inclusion bits.

    The largest epsilon whose p-value is at most 1 - confidence, see ``one_run_p_value``.

    Args:
        canaries: Number of canaries with a fair coin, m.
        guesses: Number of guesses, r, fixed before the scores were read.
        correct: Number of correct guesses, v.
        delta: The delta of the statement, in [0, 1).
        confidence: Probability with which the bound holds, in (0, 1).

    Returns:
        The bound. It is certified for fair, independent coins; canaries may interfere.

    Raises:
        InvalidArgument: If the counts contradict each other, or a number is out of range.

    References:
        Steinke, Nasr & Jagielski (2023), arXiv:2305.08846, Theorem 5.2.

    Example:
        >>> bound = one_run(canaries=1000, guesses=100, correct=95, delta=1e-5, confidence=0.95)
        >>> round(bound.epsilon, 4), bound.kind.value
        (2.1652, 'certified')
    """
    require_guess_counts(canaries, guesses, correct)
    require_delta_or_zero(delta)
    require_open_unit("confidence", confidence)

    def refuted(epsilon: float) -> bool:
        p_value = one_run_p_value(
            epsilon=epsilon, canaries=canaries, guesses=guesses, correct=correct, delta=delta
        )
        return p_value <= 1 - confidence

    epsilon = bisect_largest(refuted, 0.0, MAX_ONE_RUN_EPSILON)
    return LowerBound(epsilon, BoundKind.CERTIFIED, confidence, ASSUMES_FAIR_COINS)


def require_guess_counts(canaries: int, guesses: int, correct: int) -> None:
    """Require 0 <= correct <= guesses <= canaries, and at least one canary.

    Args:
        canaries: Number of canaries.
        guesses: Number of guesses.
        correct: Number of correct guesses.

    Raises:
        InvalidArgument: If the counts contradict each other.
    """
    require_count("canaries", canaries)
    require_count("guesses", guesses, least=0)
    require_count("correct", correct, least=0)
    if guesses > canaries:
        raise InvalidArgument("guesses", guesses, f"at most the {canaries} canaries")
    if correct > guesses:
        raise InvalidArgument("correct", correct, f"at most the {guesses} guesses")


# Tests of a trade-off curve. They are sharper than tests of (epsilon, delta) within a family.

MAX_ONE_RUN_MU = 12.0  # end of the search for mu
ASSUMES_CLAIMED_FAMILY = (
    "for the epsilon, a mechanism of the claimed family; for the refuted curve, nothing"
)
STATES_CURVE_REFUTED = "the mechanism is not f-DP for the curve f of any smaller epsilon"
STATES_NOISE_REFUTED = "the mechanism is not f-DP for the claimed curve f with more noise than this"


def curve_is_refuted(
    *, canaries: int, guesses: int, correct: int, level: float, tradeoff: Tradeoff
) -> bool:
    """Test whether the number of correct guesses refutes a trade-off curve.

    With c of c' guesses correct among m canaries, and g(x) = f(1 - x) for the trade-off
    function f, start at r_c = level c / m and h_c = level (c' - c) / m. For i = c - 1, ..., 0,

        h_i = max(h_{i+1}, g(r_{i+1})),
        r_i = r_{i+1} + i / (c' - i) (h_i - h_{i+1}).

    The curve is refuted if r_i + h_i > c'/m for some i; the sum never falls as i does.

    Args:
        canaries: Number of canaries with a fair coin, m.
        guesses: Number of guesses, c', fixed before the scores were read.
        correct: Number of correct guesses, c.
        level: Upper bound on the probability that a true curve is refuted, in (0, 1).
        tradeoff: The tested trade-off function, or a lower bound on it. A lower bound keeps the
            level and loses power.

    Returns:
        Whether the curve is refuted.

    References:
        Mahloujifar, Melis & Chaudhuri (2024).

    Example:
        >>> from dpaudit.attacks.bounds import gaussian_tradeoff
        >>> counts = {"canaries": 1000, "guesses": 100, "correct": 95}
        >>> curve_is_refuted(**counts, level=0.05, tradeoff=gaussian_tradeoff(0.5))
        True
        >>> curve_is_refuted(**counts, level=0.05, tradeoff=gaussian_tradeoff(3.0))
        False
    """
    most = guesses / canaries
    right, wrong = level * correct / canaries, level * (guesses - correct) / canaries
    for i in range(correct - 1, -1, -1):
        # The smallest probability under one neighbor of an event whose probability is `right`
        # under the other one.
        least = max(wrong, tradeoff(1 - right))
        right = min(1.0, right + i / (guesses - i) * (least - wrong))
        wrong = least
        if right + wrong > most:
            return True
    return False


def one_run_curve(
    *,
    canaries: int,
    guesses: int,
    correct: int,
    delta: float,
    confidence: float,
    curve: Callable[[float], Tradeoff],
) -> LowerBound:
    """Compute the lower bound within any family of trade-off curves.

    The largest epsilon whose curve is refuted, see ``curve_is_refuted``.

    Args:
        canaries: Number of canaries with a fair coin, m.
        guesses: Number of guesses, c', fixed before the scores were read.
        correct: Number of correct guesses, c.
        delta: The delta at which ``curve`` measures epsilon, in [0, 1).
        confidence: Probability with which the bound holds, in (0, 1).
        curve: A function from epsilon to the trade-off function of the mechanism of the family
            with that epsilon at ``delta``. The result must not exceed the true trade-off
            function, and must fall with epsilon.

    Returns:
        The bound, conditional on the family.

    Raises:
        InvalidArgument: If the counts contradict each other, or a number is out of range.

    References:
        Mahloujifar, Melis & Chaudhuri (2024).

    Example:
        The family of curves of (epsilon, 0)-DP:

        >>> from dpaudit.attacks.bounds import PiecewiseLinearTradeoff
        >>> import numpy as np
        >>> bound = one_run_curve(
        ...     canaries=1000, guesses=100, correct=95, delta=0.0, confidence=0.95,
        ...     curve=lambda epsilon: PiecewiseLinearTradeoff(np.array([epsilon]), np.zeros(1)),
        ... )
        >>> round(bound.epsilon, 1)
        2.2
    """
    require_guess_counts(canaries, guesses, correct)
    require_delta_or_zero(delta)
    require_open_unit("confidence", confidence)

    def refuted(epsilon: float) -> bool:
        return curve_is_refuted(
            canaries=canaries,
            guesses=guesses,
            correct=correct,
            level=1 - confidence,
            tradeoff=curve(epsilon),
        )

    epsilon = bisect_largest(refuted, 0.0, MAX_ONE_RUN_EPSILON)
    return LowerBound(
        epsilon, BoundKind.CONDITIONAL, confidence, ASSUMES_CLAIMED_FAMILY, STATES_CURVE_REFUTED
    )


def one_run_family(
    *, canaries: int, guesses: int, correct: int, confidence: float, family: MechanismFamily
) -> LowerBound:
    """Compute the lower bound within the family of the claimed mechanism.

    Epsilon at the smallest noise factor whose trade-off curve is refuted, see
    ``curve_is_refuted``.

    Args:
        canaries: Number of canaries with a fair coin, m.
        guesses: Number of guesses, c', fixed before the scores were read.
        correct: Number of correct guesses, c.
        confidence: Probability with which the bound holds, in (0, 1).
        family: The claimed mechanism at every noise factor.

    Returns:
        The bound, conditional on the family, with the refuted noise factor.

    Raises:
        InvalidArgument: If the counts contradict each other, or a number is out of range.

    References:
        Mahloujifar, Melis & Chaudhuri (2024).

    Example:
        One full-batch step with a claimed noise multiplier of 1, at delta 1e-5:

        >>> from math import erf, sqrt
        >>> from dpaudit.attacks import bounds
        >>> from dpaudit.vocabulary.privacy_terms import Bound
        >>> def epsilon(factor):
        ...     bound = bounds.gaussian_epsilon(mu=1 / factor, delta=1e-5).epsilon
        ...     return Bound(bound, bound)
        >>> family = bounds.MechanismFamily(
        ...     epsilon=epsilon,
        ...     total_variation=lambda factor: erf(1 / factor / sqrt(8)),
        ...     tradeoff=lambda factor: bounds.gaussian_tradeoff(1 / factor),
        ... )
        >>> bound = one_run_family(
        ...     canaries=1000, guesses=200, correct=195, confidence=0.95, family=family
        ... )
        >>> round(bound.epsilon, 1)
        4.8
    """
    require_guess_counts(canaries, guesses, correct)
    require_open_unit("confidence", confidence)

    def refuted(noise_factor: float) -> bool:
        return curve_is_refuted(
            canaries=canaries,
            guesses=guesses,
            correct=correct,
            level=1 - confidence,
            tradeoff=family.tradeoff(noise_factor),
        )

    factor = least_refuted(refuted)
    epsilon, kind = family.epsilon_at(factor), BoundKind.CONDITIONAL
    return LowerBound(
        epsilon, kind, confidence, ASSUMES_CLAIMED_FAMILY, STATES_NOISE_REFUTED, factor
    )


def one_run_gaussian(
    *, canaries: int, guesses: int, correct: int, delta: float, confidence: float
) -> LowerBound:
    """Compute the lower bound within Gaussian trade-off curves.

    Epsilon at ``delta`` of the largest mu whose curve is refuted, see ``curve_is_refuted``.

    Args:
        canaries: Number of canaries with a fair coin, m.
        guesses: Number of guesses, c', fixed before the scores were read.
        correct: Number of correct guesses, c.
        delta: In (0, 1).
        confidence: Probability with which the bound holds, in (0, 1).

    Returns:
        The bound, conditional on a Gaussian trade-off curve.

    Raises:
        InvalidArgument: If the counts contradict each other, or a number is out of range.

    References:
        Mahloujifar, Melis & Chaudhuri (2024).

    Example:
        >>> bound = one_run_gaussian(
        ...     canaries=1000, guesses=100, correct=95, delta=1e-5, confidence=0.95
        ... )
        >>> round(bound.epsilon, 2)
        3.32
    """
    require_guess_counts(canaries, guesses, correct)
    require_open_unit("confidence", confidence)
    mu = mu_of_guesses(canaries, guesses, correct, 1 - confidence)
    assumes = f"for the epsilon, {ASSUMES_GAUSSIAN_TRADEOFF}; for the refuted curve, nothing"
    return LowerBound(
        epsilon_of_mu(mu, delta), BoundKind.CONDITIONAL, confidence, assumes, STATES_CURVE_REFUTED
    )


def mu_of_guesses(
    canaries: int, guesses: int, correct: int, level: float, *, resolution: float = RESOLUTION
) -> float:
    """Compute the largest mu whose Gaussian trade-off curve is refuted.

    Args:
        canaries: Number of canaries with a fair coin, m.
        guesses: Number of guesses, c'.
        correct: Number of correct guesses, c.
        level: Upper bound on the probability that a true curve is refuted, in (0, 1).
        resolution: Largest amount of rounding down, relative to 1 + mu.

    Returns:
        Mu, rounded down; 0 where no curve is refuted.
    """

    def refuted(mu: float) -> bool:
        return curve_is_refuted(
            canaries=canaries,
            guesses=guesses,
            correct=correct,
            level=level,
            tradeoff=gaussian_tradeoff(mu),
        )

    return bisect_largest(refuted, 0.0, MAX_ONE_RUN_MU, resolution)
