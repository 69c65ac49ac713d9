"""One run against a trade-off curve: sharper than (epsilon, delta), for what has the curve.

Mahloujifar, Melis & Chaudhuri 2024, arXiv:2410.22235, Theorem 3.2 and Algorithm 3, for two
possible values of each bit. Nothing is assumed of the canaries; what is refuted is a curve,
and the epsilon is that of the least noisy curve of the family that is not.
"""

from __future__ import annotations

from collections.abc import Callable

from dpaudit.attacks.bounds.family import Family, Tradeoff, gaussian_tradeoff, least_refuted
from dpaudit.attacks.bounds.gaussian import GAUSSIAN, epsilon_of_mu
from dpaudit.attacks.bounds.one_run import LARGEST_EPSILON, require_guesses
from dpaudit.attacks.bounds.result import LowerBound, require_delta_or_zero
from dpaudit.attacks.bounds.search import RESOLUTION, largest
from dpaudit.vocabulary.audit import BoundKind
from dpaudit.vocabulary.errors import require_open_unit

LARGEST_MU = 12.0
OF_THE_FAMILY = "for its epsilon, a mechanism of the claimed family; to refute a curve, nothing"
CURVE_REFUTED = "the mechanism is not f-DP for the curve f of any smaller epsilon"
NOISE_REFUTED = "the mechanism is not f-DP for the claimed curve f with more noise than this"


def curve_is_refuted(
    *, canaries: int, guesses: int, correct: int, level: float, tradeoff: Tradeoff
) -> bool:
    """Return whether so many right guesses refute ``tradeoff`` at ``level``.

    Args:
        canaries: How many canaries had a fair coin, m.
        guesses: How many were guessed, c'.
        correct: How many guesses were right, c.
        level: Probability with which a true curve is refuted, at most, in (0, 1).
        tradeoff: From below; what it says too little costs power alone.
    """
    most = guesses / canaries
    right, wrong = level * correct / canaries, level * (guesses - correct) / canaries
    for i in range(correct - 1, -1, -1):
        # The least probability under one neighbour of what has probability `right` under the other.
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
    """Return the largest epsilon whose curve is refuted.

    Args:
        canaries: How many canaries had a fair coin, m.
        guesses: How many were guessed, c'; fixed before the scores were read.
        correct: How many guesses were right, c.
        delta: The delta at which ``curve`` counts epsilon, in [0, 1).
        confidence: Probability with which the bound holds, in (0, 1).
        curve: Takes an epsilon and returns the trade-off curve of the family's mechanism with
            that epsilon at ``delta``: a function from a false-positive rate to the least
            false-negative rate, no larger than the truth, and falling with epsilon.

    Raises:
        InvalidArgument: the counts contradict each other, or a number is out of range.
    """
    require_guesses(canaries, guesses, correct)
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

    epsilon = largest(refuted, 0.0, LARGEST_EPSILON)
    return LowerBound(epsilon, BoundKind.CONDITIONAL, confidence, OF_THE_FAMILY, CURVE_REFUTED)


def one_run_family(
    *, canaries: int, guesses: int, correct: int, confidence: float, family: Family
) -> LowerBound:
    """Return epsilon at the least noise factor whose curve is refuted, arguments as above."""
    require_guesses(canaries, guesses, correct)
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
    return LowerBound(epsilon, kind, confidence, OF_THE_FAMILY, NOISE_REFUTED, factor)


def one_run_gaussian(
    *, canaries: int, guesses: int, correct: int, delta: float, confidence: float
) -> LowerBound:
    """Return the bound within the family of Gaussian trade-offs.

    Arguments as above, but ``delta`` above 0.
    """
    require_guesses(canaries, guesses, correct)
    require_open_unit("confidence", confidence)
    mu = mu_of_guesses(canaries, guesses, correct, 1 - confidence)
    assumes = f"for its epsilon, {GAUSSIAN}; to refute a curve, nothing"
    return LowerBound(
        epsilon_of_mu(mu, delta), BoundKind.CONDITIONAL, confidence, assumes, CURVE_REFUTED
    )


def mu_of_guesses(
    canaries: int, guesses: int, correct: int, level: float, *, resolution: float = RESOLUTION
) -> float:
    """Return the largest mu whose curve so many right guesses refute at ``level``.

    It is rounded down by ``resolution`` times 1 + mu at most.
    """

    def refuted(mu: float) -> bool:
        return curve_is_refuted(
            canaries=canaries,
            guesses=guesses,
            correct=correct,
            level=level,
            tradeoff=gaussian_tradeoff(mu),
        )

    return largest(refuted, 0.0, LARGEST_MU, resolution)
