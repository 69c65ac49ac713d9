"""Audits that count correct guesses of the canaries' inclusion bits.

Three audits, by increasing assumptions:

- ``CertifiedAudit``: fair coins only (Steinke, Nasr & Jagielski 2023, Theorem 5.2).
- ``TradeoffCurveAudit``: the trade-off curve of the claimed family (Mahloujifar, Melis &
  Chaudhuri 2024). Canaries may interfere.
- ``TotalVariationAudit``: non-interfering canaries and the claimed family.

The numbers of guesses and the power come from simulating the claim, before a score is read.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property, partial

import msgspec
import numpy as np
from numpy.typing import NDArray

from dpaudit.attacks import bounds
from dpaudit.attacks.bounds.one_run_bounds import mu_of_guesses
from dpaudit.attacks.one_run.observations import ClaimedMechanism, ScoredCanaries
from dpaudit.attacks.one_run.registration import (
    Guesses,
    audit_result,
    best_guesses,
    least_refuting_count,
    register_guesses,
    registration_digest,
)
from dpaudit.attacks.one_run.simulation import REPETITIONS, SimulatedAudits, detectable_epsilon
from dpaudit.vocabulary.audit import AuditResult, ClaimedCurve, GuessCount, OneRun, TotalVariation
from dpaudit.vocabulary.errors import InvalidArgument

ONE_RUN_METHOD = "one run (Steinke, Nasr & Jagielski 2023, Theorem 5.2)"


@dataclass(frozen=True)
class CertifiedAudit:
    """The certified bound at two registered numbers of guesses.

    Each number has half of the failure probability, and the larger bound is the result.

    Attributes:
        claim: The claimed mechanism.
        canaries: Number of canaries, m.
        confidence: Probability with which the bound holds, in (0, 1).
        simulation: Simulated audits, for the numbers of guesses and the power.

    References:
        Steinke, Nasr & Jagielski (2023), arXiv:2305.08846, Theorem 5.2.
    """

    claim: ClaimedMechanism
    canaries: int
    confidence: float
    simulation: SimulatedAudits

    statistics = OneRun

    @staticmethod
    def name_of(observed: str) -> str:
        """Return the name of the bound, given what was observed."""
        return f"gradient canaries, {observed}"

    @cached_property
    def registered(self) -> tuple[Guesses, Guesses]:
        """Both numbers of guesses: a function of the claim, the canaries' number and the seed."""
        return register_guesses(self.simulation, self.canaries, self.claim, self._epsilon)

    def result(self, observations: ScoredCanaries) -> AuditResult:
        """Compute the larger of both bounds.

        Args:
            observations: The canaries' observations and their secret bits.

        Returns:
            The bound, with its power and the statistics that it is a function of.
        """
        counts = [guesses.count for guesses in self.registered]  # before a score is read
        outcomes = [
            (self._epsilon(guesses.count, correct), guesses.count, correct)
            for guesses in self.registered
            for correct in [guesses.correct(observations.scores, observations.included)]
        ]
        *others, (_, guessed, correct) = sorted(outcomes)
        # Each bound was computed at half of the failure probability; both hold together.
        bound = replace(self._bound(guessed, correct), confidence=self.confidence)
        return audit_result(
            bound,
            name=self.name_of(observations.name),
            method=ONE_RUN_METHOD,
            delta=self.claim.delta,
            canaries=self.canaries,
            guesses=guessed,
            correct=correct,
            thresholds=f"the {counts[0]} and {counts[1]} canaries with the largest absolute "
            "scores, fixed by simulating the claim",
            registered=registration_digest(
                audit=ONE_RUN_METHOD, canaries=self.canaries, guesses=counts
            ),
            detectable_epsilon=self.power(),
            greatest_epsilon=max(self._epsilon(count, count) for count in counts),
            estimator=OneRun(tuple(GuessCount(count, right) for _, count, right in others)),
        )

    def _bound(self, guesses: int, correct: int) -> bounds.LowerBound:
        """Return the one-run bound at half of the failure probability."""
        return bounds.one_run(
            canaries=self.canaries,
            guesses=guesses,
            correct=correct,
            delta=self.claim.delta,
            confidence=1 - (1 - self.confidence) / 2,
        )

    def _epsilon(self, guesses: int, correct: int) -> float:
        """Return the epsilon of ``_bound``."""
        return self._bound(guesses, correct).epsilon

    def power(self) -> float | None:
        """Compute the power of the audit.

        Returns:
            The smallest true epsilon, in nats, at which the audit refutes the claim with
            probability 95%. None if no simulated noise is low enough.
        """
        return detectable_epsilon(self.claim, self._share_refuted)

    def _share_refuted(self, noise_factor: float) -> float:
        """Return the share of simulated audits that refute the claim at a true noise factor."""
        counts = [guesses.count for guesses in self.registered]
        correct = self.simulation.right_guesses(noise_factor, REPETITIONS, counts)
        return float(np.mean((correct >= self._critical_counts).any(axis=1)))

    @cached_property
    def _critical_counts(self) -> NDArray[np.int64]:
        """The smallest refuting number of correct guesses, per registered number of guesses."""
        return np.array([self._critical_count(guesses.count) for guesses in self.registered])

    def _critical_count(self, guesses: int) -> int:
        """Return the smallest refuting number of correct guesses; ``guesses`` + 1 if none is."""
        p_value = partial(
            bounds.one_run_p_value,
            epsilon=self.claim.epsilon,
            canaries=self.canaries,
            guesses=guesses,
            delta=self.claim.delta,
        )
        level = (1 - self.confidence) / 2
        return least_refuting_count(lambda correct: p_value(correct=correct) <= level, guesses)


# Correct guesses against the trade-off curve of the claimed mechanism.

MU_RESOLUTION = 0.005  # relative to 1 + mu, of the bounds that compare numbers of guesses
CURVE_METHOD = "one run against the claimed trade-off curve (Mahloujifar, Melis & Chaudhuri 2024)"


@dataclass(frozen=True)
class TradeoffCurveAudit:
    """Inverts the test of the claimed trade-off curve over the noise; canaries may interfere.

    Attributes:
        claim: The claimed mechanism.
        canaries: Number of canaries, m.
        confidence: Probability with which the bound holds, in (0, 1).
        simulation: Simulated audits, for the number of guesses and the power.

    References:
        Mahloujifar, Melis & Chaudhuri (2024).
    """

    claim: ClaimedMechanism
    canaries: int
    confidence: float
    simulation: SimulatedAudits

    statistics = ClaimedCurve

    @staticmethod
    def name_of(observed: str) -> str:
        """Return the name of the bound, given what was observed."""
        return f"claimed curve, {observed}"

    @cached_property
    def registered(self) -> Guesses:
        """The number of guesses with the largest average mu, if the claim is true."""

        def mu(guesses: int, correct: int) -> float:
            """Return the largest refuted mu of Gaussian trade-off curves."""
            level = 1 - self.confidence
            return mu_of_guesses(self.canaries, guesses, correct, level, resolution=MU_RESOLUTION)

        return best_guesses(self.simulation, self.canaries, 1.0, mu)[1]

    def result(self, observations: ScoredCanaries) -> AuditResult:
        """Compute the bound at the smallest refuted noise factor.

        Args:
            observations: The canaries' observations and their secret bits.

        Returns:
            The bound, with its power and the statistics that it is a function of.
        """
        guesses = self.registered
        correct = guesses.correct(observations.scores, observations.included)
        bound = bounds.one_run_family(
            canaries=self.canaries,
            guesses=guesses.count,
            correct=correct,
            confidence=self.confidence,
            family=self.claim.family,
        )
        return audit_result(
            bound,
            name=self.name_of(observations.name),
            method=CURVE_METHOD,
            delta=self.claim.delta,
            canaries=self.canaries,
            guesses=guesses.count,
            correct=correct,
            thresholds=f"the {guesses.count} canaries with the largest absolute scores, fixed by "
            "simulating the claim",
            registered=registration_digest(
                audit=CURVE_METHOD, canaries=self.canaries, guesses=guesses.count
            ),
            detectable_epsilon=self.power(),
            estimator=ClaimedCurve(bound.noise_factor),
        )

    def power(self) -> float | None:
        """Compute the power of the audit.

        Returns:
            The smallest true epsilon, in nats, at which the audit refutes the claim with
            probability 95%. None if no simulated noise is low enough.
        """
        return detectable_epsilon(self.claim, self._share_refuted)

    def _share_refuted(self, noise_factor: float) -> float:
        """Return the share of simulated audits that refute the claim at a true noise factor."""
        counts = [self.registered.count]
        correct = self.simulation.right_guesses(noise_factor, REPETITIONS, counts)
        return float(np.mean(correct >= self._critical_count))

    @cached_property
    def _critical_count(self) -> int:
        """The smallest number of correct guesses that refutes the claimed curve."""
        tradeoff = self.claim.family.tradeoff(1.0)

        def refutes(correct: int) -> bool:
            return bounds.curve_is_refuted(
                canaries=self.canaries,
                guesses=self.registered.count,
                correct=correct,
                level=1 - self.confidence,
                tradeoff=tradeoff,
            )

        return least_refuting_count(refutes, self.registered.count)


# Non-interfering canaries without recorded batches: all are guessed, and the test of total
# variation is inverted over the claimed family.

TOTAL_VARIATION_METHOD = "total variation, inverted over the claimed family"


@dataclass(frozen=True)
class TotalVariationAudit:
    """Inverts the binomial test of total variation, with all canaries guessed.

    The sign of the score is the guess.

    Attributes:
        claim: The claimed mechanism.
        canaries: Number of canaries, m.
        confidence: Probability with which the bound holds, in (0, 1).
        simulation: Simulated audits, for the power.
    """

    claim: ClaimedMechanism
    canaries: int
    confidence: float
    simulation: SimulatedAudits

    statistics = TotalVariation

    @staticmethod
    def name_of(observed: str) -> str:
        """Return the name of the bound, given what was observed."""
        return f"ranks of canaries, {observed}"

    def result(self, observations: ScoredCanaries) -> AuditResult:
        """Compute the bound from the number of correct guesses.

        Args:
            observations: The canaries' observations and their secret bits.

        Returns:
            The bound, with its power and the statistics that it is a function of.
        """
        correct = Guesses(self.canaries).correct(observations.scores, observations.included)
        bound = bounds.tv_all_guesses(
            canaries=self.canaries,
            correct=correct,
            confidence=self.confidence,
            family=self.claim.family,
        )
        return audit_result(
            bound,
            name=self.name_of(observations.name),
            method=TOTAL_VARIATION_METHOD,
            delta=self.claim.delta,
            canaries=self.canaries,
            guesses=self.canaries,
            correct=correct,
            thresholds="all are guessed: included where the score is positive, else excluded",
            registered=registration_digest(audit=TOTAL_VARIATION_METHOD, canaries=self.canaries),
            detectable_epsilon=self.power(),
            estimator=TotalVariation(bound.noise_factor),
        )

    def power(self) -> float | None:
        """Compute the power of the audit.

        Returns:
            The smallest true epsilon, in nats, at which the audit refutes the claim with
            probability 95%. None if no simulated noise is low enough.
        """
        return detectable_epsilon(self.claim, self._share_refuted)

    def _share_refuted(self, noise_factor: float) -> float:
        """Return the share of simulated audits that refute the claim at a true noise factor."""
        correct = self.simulation.right_guesses(noise_factor, REPETITIONS, [self.canaries])
        return float(np.mean(correct >= self._critical_count))

    @cached_property
    def _critical_count(self) -> int:
        """The smallest number of correct guesses that refutes the claimed total variation."""
        claimed = self.claim.family.total_variation(1.0)

        def refutes(correct: int) -> bool:
            distance = bounds.total_variation(
                canaries=self.canaries, correct=correct, confidence=self.confidence
            )
            return distance > claimed

        return least_refuting_count(refutes, self.canaries)


# The audit of input canaries: records of the training set, scored by the final model.

Array = NDArray[np.float64]
Bits = NDArray[np.bool_]

INPUT_CANARY_AUDIT_NAME = "input canaries, final model"


def result_without_evidence(canaries: int, *, delta: float, confidence: float) -> AuditResult:
    """Return the trivial bound of canaries that all have the same score.

    Args:
        canaries: Number of canaries, m.
        delta: In [0, 1).
        confidence: Probability with which the bound holds, in (0, 1).

    Returns:
        The bound 0, marked as inconclusive.

    Raises:
        InvalidArgument: If a number is out of range.
    """
    bound = bounds.one_run(
        canaries=canaries, guesses=0, correct=0, delta=delta, confidence=confidence
    )
    result = audit_result(
        bound,
        name=INPUT_CANARY_AUDIT_NAME,
        method=ONE_RUN_METHOD,
        delta=delta,
        canaries=canaries,
        greatest_epsilon=0.0,
        thresholds="none is guessed",
        registered=registration_digest(audit=ONE_RUN_METHOD, canaries=canaries, guesses=0),
        estimator=OneRun(),
    )
    return msgspec.structs.replace(result, inconclusive="every canary has the same loss")


def audit_input_canaries(
    scores: Array, included: Bits, *, delta: float, confidence: float
) -> AuditResult:
    """Compute the certified lower bound from one score per canary.

    All canaries are guessed: included if the score is above the median of all, else excluded.

    Args:
        scores: One score per canary, shape ``(m,)``, finite; larger means included.
        included: The inclusion bits, fair independent coins, shape ``(m,)``.
        delta: In [0, 1).
        confidence: Probability with which the bound holds, in (0, 1).

    Returns:
        The bound.

    Raises:
        InvalidArgument: If the shapes differ, a score is not finite, all scores are equal, or a
            number is out of range.

    References:
        Steinke, Nasr & Jagielski (2023), arXiv:2305.08846, Theorem 5.2.

    Example:
        >>> included = np.arange(100) % 2 == 0
        >>> scores = included + 0.1 * np.random.default_rng(0).standard_normal(100)
        >>> result = audit_input_canaries(scores, included, delta=1e-5, confidence=0.95)
        >>> result.correct, round(result.epsilon_lower, 2)
        (100, 3.49)
    """
    if scores.shape != included.shape or len(scores) == 0 or not np.isfinite(scores).all():
        raise InvalidArgument("scores", f"shape {scores.shape}", "finite, one for each canary")
    if np.ptp(scores) == 0:
        raise InvalidArgument("scores", "one value for all", "different for different canaries")
    guesses = Guesses(len(scores))
    correct = guesses.correct(scores - np.median(scores), included)
    of_correct = partial(
        bounds.one_run,
        canaries=len(scores),
        guesses=guesses.count,
        delta=delta,
        confidence=confidence,
    )
    return audit_result(
        of_correct(correct=correct),
        name=INPUT_CANARY_AUDIT_NAME,
        method=ONE_RUN_METHOD,
        delta=delta,
        canaries=len(scores),
        guesses=guesses.count,
        correct=correct,
        greatest_epsilon=of_correct(correct=guesses.count).epsilon,
        thresholds="all are guessed: included if the score is above the median, else excluded",
        registered=registration_digest(
            audit=ONE_RUN_METHOD, canaries=len(scores), guesses=guesses.count
        ),
        estimator=OneRun(),
    )
