"""One-run audits of interfering canaries, whose coins are revealed one after the other.

The released sum is R = sum over j of S_j g_j + noise, with known directions g_j. The correlation
of R with g_i holds the effects of all other included canaries, which are noise to an auditor
who guesses all coins at once. An auditor who is told the coins before i subtracts their effects,
and the mean effects of the coins after i (Keinan, Shenfeld & Ligett 2025, arXiv:2503.07199). The
bound for such guesses is ``bounds.adaptive_one_run``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dpaudit.attacks.bounds.adaptive_guesses import adaptive_one_run
from dpaudit.attacks.one_run.registration import audit_result, registration_digest
from dpaudit.vocabulary.audit import AdaptiveGuesses, AuditResult
from dpaudit.vocabulary.errors import InvalidArgument

Array = NDArray[np.float64]
Bits = NDArray[np.bool_]


@dataclass(frozen=True)
class InterferingSum:
    """Correlations of a released sum with the directions of canaries that interfere.

    Attributes:
        correlations: The released sum along each direction, shape ``(m,)``, finite.
        products: Inner products of the directions, shape ``(m, m)``, symmetric.
        included: Coins of the canaries, shape ``(m,)``.

    Raises:
        InvalidArgument: If the shapes differ, or a number is not finite.

    Example:
        >>> products = np.array([[1.0, 0.5], [0.5, 1.0]])
        >>> round(InterferingSum(np.zeros(2), products, np.ones(2, dtype=bool)).interference, 3)
        0.25
    """

    correlations: Array
    products: Array
    included: Bits

    def __post_init__(self) -> None:
        count = len(self.included)
        fits = self.correlations.shape == (count,) and self.products.shape == (count, count)
        if count == 0 or not fits:
            given = f"shapes {self.correlations.shape} and {self.products.shape}"
            raise InvalidArgument("correlations", given, f"of {count} canaries, at least one")
        if not (np.isfinite(self.correlations).all() and np.isfinite(self.products).all()):
            raise InvalidArgument("correlations", "a number that is not finite", "finite numbers")

    @property
    def interference(self) -> float:
        """Standard deviation of the other coins' effects, over a canary's own effect, rms."""
        own = np.diag(self.products)
        others = self.products - np.diag(own)
        return float(np.sqrt(0.25 * (others**2).sum() / (own**2).sum()))


def simultaneous_guesses(observed: InterferingSum) -> Bits:
    """Guess every coin from the released sum alone, less the mean effects of the others.

    Args:
        observed: The correlations and products; the coins are not read.

    Returns:
        Whether each canary is guessed to be included, shape ``(m,)``.

    Example:
        >>> observed = InterferingSum(np.array([0.9]), np.eye(1), np.array([True]))
        >>> simultaneous_guesses(observed).tolist()
        [True]
    """
    own = np.diag(observed.products)
    others = observed.products - np.diag(own)
    return np.asarray(observed.correlations - 0.5 * others.sum(axis=1) > own / 2)


def adaptive_guesses(observed: InterferingSum) -> Bits:
    """Guess every coin in the order of the canaries, less the effects of the coins before it.

    Args:
        observed: The correlations, products and coins; a coin is read after its own guess.

    Returns:
        Whether each canary is guessed to be included, shape ``(m,)``.

    Example:
        >>> products = np.array([[1.0, 0.9], [0.9, 1.0]])
        >>> observed = InterferingSum(np.array([1.0, 0.9]), products, np.array([True, False]))
        >>> adaptive_guesses(observed).tolist()
        [True, False]
    """
    own = np.diag(observed.products)
    others = observed.products - np.diag(own)
    guessed = np.zeros(len(own), dtype=np.bool_)
    known = np.full(len(own), 0.5)
    for number, coin in enumerate(observed.included):
        rest = observed.correlations[number] - others[number] @ known
        guessed[number] = rest > own[number] / 2
        known[number] = float(coin)  # revealed after its guess
    return guessed


def audit_interfering_sums(
    observed: InterferingSum, *, delta: float, confidence: float
) -> AuditResult:
    """Bound epsilon from adaptive guesses of interfering canaries in one run.

    Args:
        observed: The correlations, products and coins; the order of the canaries was fixed before
            training.
        delta: The delta of the bound, in [0, 1).
        confidence: Probability with which the bound holds, in (0, 1).

    Returns:
        A certified bound: it assumes fair coins, and no independence of the canaries.

    Raises:
        InvalidArgument: If a number is out of range.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> included = rng.random(300) < 0.5
        >>> correlations = included + 0.1 * rng.standard_normal(300)
        >>> observed = InterferingSum(correlations, np.eye(300), included)
        >>> result = audit_interfering_sums(observed, delta=1e-5, confidence=0.95)
        >>> result.correct, result.kind.value
        (300, 'certified')
    """
    count = len(observed.included)
    guessed = adaptive_guesses(observed)
    correct = int((guessed == observed.included).sum())
    bound, best = (
        adaptive_one_run(
            canaries=count, guesses=count, correct=right, delta=delta, confidence=confidence
        )
        for right in (correct, count)
    )
    return audit_result(
        bound,
        name="interfering canaries, coins revealed in order",
        method="adaptive guesses in one run (Keinan et al. 2025)",
        delta=delta,
        canaries=count,
        guesses=count,
        correct=correct,
        thresholds="half of a canary's own effect, after the known effects of the others",
        registered=registration_digest(audit="adaptive", canaries=count),
        greatest_epsilon=best.epsilon,
        estimator=AdaptiveGuesses(),
    )
