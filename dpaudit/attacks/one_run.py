"""Audits of one run: guesses fixed by simulating the claim, bounds with their power.

Nothing here reads a score before the numbers of guesses are fixed: they come from
simulating the claimed mechanism, as does the power of the audit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from dpaudit.attacks import bounds
from dpaudit.attacks.canary_scores import (
    ClaimedSteps,
    fitted_noise_factor,
    likelihood_ratio_scores,
    simulated_scores,
)
from dpaudit.vocabulary.audit import AuditResult, BoundKind
from dpaudit.vocabulary.errors import InvalidArgument, require_open_unit

Array = NDArray[np.float64]
Bits = NDArray[np.bool_]

SHARES = (0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0)  # of the canaries, the surest first
REFUTING_FACTORS = (0.8, 0.65, 0.5, 0.4, 0.33, 0.25, 0.2)  # of the claimed noise
SIMULATED_DRAWS = 20_000_000
REPETITIONS = 200
POWER = 0.95
LEAST_NOISE_FACTOR = 0.1

ONE_RUN = "one run (Steinke, Nasr & Jagielski 2023, Theorem 5.2)"
TOTAL_VARIATION = "total variation, inverted over the claimed family"
NOTHING = "nothing but fair, independent coins"
INDEPENDENT = (
    "canaries that do not touch each other's coordinates (so by construction here), and "
    "Poisson-sampled Gaussian steps at the claimed rates with all noise scaled by one factor"
)


@dataclass(frozen=True)
class Claimed:
    """What is claimed of the steps, and what follows from it by an accountant.

    The two functions take a factor on all noise multipliers and fall with it; they are
    handed in, as attacks share no code with the accountants that they may contradict.

    Attributes:
        steps: The claimed steps.
        epsilon: The claimed epsilon, its upper end.
        delta: The claimed delta.
        epsilon_at: Upper end and lower end of epsilon at a noise factor, as (lower, upper).
        total_variation_at: Upper end of the total variation at a noise factor.
    """

    steps: ClaimedSteps
    epsilon: float
    delta: float
    epsilon_at: Callable[[float], tuple[float, float]]
    total_variation_at: Callable[[float], float]


@dataclass(frozen=True, order=True)
class Guesses:
    """How many canaries are guessed, the surest first: a positive score in, a negative one out."""

    count: int

    def correct(self, scores: Array, included: Bits) -> int:
        """Return how many guesses are right; a tie counts against the guesser."""
        right = np.where(scores > 0, included, ~included) & (scores != 0)
        surest = np.lexsort((right, -np.abs(scores)))[: self.count]
        return int(right[surest].sum())


class Simulation:
    """Scores of the claimed steps at chosen noise factors, drawn once and resampled."""

    def __init__(self, steps: ClaimedSteps, canaries: int, seed: int) -> None:
        self._steps, self._canaries, self._seed = steps, canaries, seed
        self._size = int(np.clip(SIMULATED_DRAWS / len(steps.sampling_rates) / 2, 1000, 5000))

    @lru_cache(maxsize=32)  # noqa: B019  one simulation lives as long as one audit
    def _pool(self, noise_factor: float) -> tuple[Array, Array]:
        rng = np.random.default_rng([self._seed, int(1e9 * noise_factor)])
        out, included = (
            simulated_scores(self._steps, noise_factor, bit, self._size, rng)
            for bit in (False, True)
        )
        return out, included

    def audits(self, noise_factor: float, repetitions: int) -> list[tuple[Array, Bits]]:
        """Return scores and bits of as many simulated audits."""
        out, included = self._pool(noise_factor)
        rng = np.random.default_rng([self._seed, 1])
        audits = []
        for _ in range(repetitions):
            bits = rng.random(self._canaries) < 0.5
            picks = rng.integers(0, self._size, self._canaries)
            audits.append((np.where(bits, included[picks], out[picks]), bits))
        return audits


def register_guesses(
    simulation: Simulation, canaries: int, claimed: Claimed, confidence: float
) -> tuple[Guesses, Guesses]:
    """Return two numbers of guesses: the best if the claim is true, and the best against it.

    The second is the best one under the most noise at which a bound would, on average,
    rise above the claim: few sure guesses have a low ceiling.
    """

    def best(noise_factor: float) -> tuple[float, Guesses]:
        audits = simulation.audits(noise_factor, 20)

        def bound(guesses: Guesses) -> float:
            correct = int(np.mean([guesses.correct(*audit) for audit in audits]))
            return bounds.one_run(
                canaries=canaries,
                guesses=guesses.count,
                correct=correct,
                delta=claimed.delta,
                confidence=confidence,
            ).epsilon

        choices = [Guesses(max(1, int(share * canaries))) for share in SHARES]
        return max((bound(guesses), guesses) for guesses in choices)

    against = [best(noise_factor) for noise_factor in REFUTING_FACTORS]
    above = [guesses for bound, guesses in against if bound > claimed.epsilon]
    return best(1.0)[1], (above or [against[-1][1]])[0]


def audit_gradient_canaries(
    observations: Array,
    included: Bits,
    claimed: Claimed,
    *,
    confidences: tuple[float, float],
    seed: int,
) -> tuple[AuditResult, AuditResult]:
    """Return a certified and a conditional lower bound from gradient canaries.

    Args:
        observations: Shape ``(steps, m)``: what each noisy sum showed, over the clip norm.
        included: Shape ``(m,)``: the canaries' secret bits.
        claimed: What is claimed.
        confidences: Probabilities with which the certified and the conditional bound hold.
        seed: Of the simulation that fixes the guesses; any number but one that was chosen
            after looking at the scores.
    """
    for confidence in confidences:
        require_open_unit("confidence", confidence)
    if observations.ndim != 2 or observations.shape[1] != len(included) or len(included) == 0:
        raise InvalidArgument(
            "observations",
            f"shape {observations.shape}",
            f"one column for each of {len(included)} canaries",
        )
    simulation = Simulation(claimed.steps, len(included), seed)
    certified = _CertifiedAudit(claimed, len(included), confidences[0], simulation)
    conditional = _ConditionalAudit(claimed, len(included), confidences[1], simulation)
    fitted = fitted_noise_factor(observations, claimed.steps)
    scores = likelihood_ratio_scores(observations, claimed.steps.with_noise_factor(fitted))
    return certified.result(scores, included), conditional.result(scores, included)


def audit_input_canaries(
    scores: Array, included: Bits, *, delta: float, confidence: float
) -> AuditResult:
    """Return the certified lower bound from the final model's scores of input canaries.

    Every canary is guessed: in where its score is above the median of all, else out.
    """
    if scores.shape != included.shape or len(scores) == 0 or not np.isfinite(scores).all():
        raise InvalidArgument("scores", f"shape {scores.shape}", "finite, one for each canary")
    guesses = Guesses(len(scores))
    correct = guesses.correct(scores - np.median(scores), included)
    bound = bounds.one_run(
        canaries=len(scores),
        guesses=guesses.count,
        correct=correct,
        delta=delta,
        confidence=confidence,
    )
    return AuditResult(
        name="input canaries, final model",
        method=ONE_RUN,
        kind=bound.kind,
        epsilon_lower=bound.epsilon,
        delta=delta,
        confidence=confidence,
        assumes=NOTHING,
        trials=len(scores),
        guesses=guesses.count,
        correct=correct,
        thresholds="all are guessed: in where the score is above the median, else out",
    )


class _CertifiedAudit:
    """Steinke's bound at two registered numbers of guesses, each at half the failure budget."""

    def __init__(
        self, claimed: Claimed, canaries: int, confidence: float, simulation: Simulation
    ) -> None:
        self._claimed, self._canaries, self._confidence = claimed, canaries, confidence
        self._simulation = simulation
        self._each = 1 - (1 - confidence) / 2
        self._registered = register_guesses(simulation, canaries, claimed, self._each)

    def result(self, scores: Array, included: Bits) -> AuditResult:
        outcomes = [(self._bound(g, g.correct(scores, included)), g) for g in self._registered]
        epsilon, guesses = max(outcomes, key=lambda outcome: outcome[0])
        counts = " and ".join(str(g.count) for g in self._registered)
        return AuditResult(
            name="gradient canaries, every step",
            method=ONE_RUN,
            kind=BoundKind.CERTIFIED,
            epsilon_lower=epsilon,
            delta=self._claimed.delta,
            confidence=self._confidence,
            assumes=NOTHING,
            trials=self._canaries,
            guesses=guesses.count,
            correct=guesses.correct(scores, included),
            thresholds=f"the surest {counts} canaries, fixed by simulating the claim",
            detectable_epsilon=_detectable(self._claimed, self._simulation, self._refutes),
        )

    def _bound(self, guesses: Guesses, correct: int) -> float:
        return bounds.one_run(
            canaries=self._canaries,
            guesses=guesses.count,
            correct=correct,
            delta=self._claimed.delta,
            confidence=self._each,
        ).epsilon

    def _refutes(self, scores: Array, included: Bits) -> bool:
        return any(
            bounds.one_run_p_value(
                epsilon=self._claimed.epsilon,
                canaries=self._canaries,
                guesses=guesses.count,
                correct=guesses.correct(scores, included),
                delta=self._claimed.delta,
            )
            < 1 - self._each
            for guesses in self._registered
        )


class _ConditionalAudit:
    """The binomial test of total variation, every canary guessed by the sign of its score."""

    def __init__(
        self, claimed: Claimed, canaries: int, confidence: float, simulation: Simulation
    ) -> None:
        self._claimed, self._canaries, self._confidence = claimed, canaries, confidence
        self._simulation = simulation
        self._guesses = Guesses(canaries)
        self._claimed_distance = claimed.total_variation_at(1.0)

    def result(self, scores: Array, included: Bits) -> AuditResult:
        correct = self._guesses.correct(scores, included)
        return AuditResult(
            name="gradient canaries, every step",
            method=TOTAL_VARIATION,
            kind=BoundKind.CONDITIONAL,
            epsilon_lower=self._epsilon(self._distance(correct)),
            delta=self._claimed.delta,
            confidence=self._confidence,
            assumes=INDEPENDENT,
            trials=self._canaries,
            guesses=self._canaries,
            correct=correct,
            thresholds="all are guessed: in where included is likelier under the fitted noise",
            detectable_epsilon=_detectable(self._claimed, self._simulation, self._refutes),
        )

    def _distance(self, correct: int) -> float:
        return bounds.total_variation(
            canaries=self._canaries, correct=correct, confidence=self._confidence
        )

    def _epsilon(self, distance: float) -> float:
        """Return epsilon, from below, at the most noise whose distance reaches ``distance``."""
        low, high = LEAST_NOISE_FACTOR, 64.0
        if distance <= self._claimed.total_variation_at(high):
            return 0.0
        if distance > self._claimed.total_variation_at(low):
            return self._claimed.epsilon_at(low)[0]
        while high / low > 1.002:
            middle = float(np.sqrt(low * high))
            if self._claimed.total_variation_at(middle) < distance:
                high = middle  # so much noise is refuted
            else:
                low = middle
        return self._claimed.epsilon_at(high)[0]

    def _refutes(self, scores: Array, included: Bits) -> bool:
        return self._distance(self._guesses.correct(scores, included)) > self._claimed_distance


def _detectable(
    claimed: Claimed, simulation: Simulation, refutes: Callable[[Array, Bits], bool]
) -> float | None:
    """Return the least epsilon at which ``refutes`` says so 95 times in 100, by simulation."""

    def seen(noise_factor: float) -> bool:
        audits = simulation.audits(noise_factor, REPETITIONS)
        return float(np.mean([refutes(*audit) for audit in audits])) >= POWER

    low, high = LEAST_NOISE_FACTOR, 1.0  # seen at low, not at high
    if not seen(low):
        return None
    while high / low > 1.03:
        middle = float(np.sqrt(low * high))
        low, high = (middle, high) if seen(middle) else (low, middle)
    return claimed.epsilon_at(low)[1]
