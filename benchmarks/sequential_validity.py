"""Mechanisms of known (epsilon, delta), to count false claims of bounds with a fixed order.

``validity.py`` runs them. Two bounds are tested: that of guesses which may use earlier coins
(``adaptive_one_run``), and that of pairs of models at any stopping time (``sequential_pairs``).
Their proofs are in docs/mathematics/sequential_bounds.md. A third table is of whole black-box
audits, whose three bounds share the failure probability.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpaudit.attacks.bounds import PairTest, adaptive_one_run, adaptive_p_value
from dpaudit.attacks.bounds.gaussian_dp import mu_of_epsilon
from dpaudit.attacks.bounds.pair_betting import EPSILON_GRID
from dpaudit.attacks.final_model import TrialOutputs, audit_trials
from dpaudit.attacks.one_run.adaptive_audits import InterferingSum, adaptive_guesses
from dpaudit.vocabulary.audit import BoundKind

Array = NDArray[np.float64]
Bits = NDArray[np.bool_]
Figures = dict[str, Any]

CONFIDENCE = 0.95
CANARIES, FEW_GUESSES = 300, 60
ADAPTIVE_EPSILONS = (0.0, 1.0, 4.0)
DELTAS = (0.0, 1e-5, 1e-3, 1e-2)
PAIRS = 120
PAIR_SETTINGS = ((1.0, 1e-5), (1.0, 1e-2), (4.0, 1e-5), (4.0, 1e-2))
WHOLE_AUDITS = 50  # repetitions in which the bound is computed, not its test at the truth alone


@dataclass(frozen=True)
class Guessed:
    """Numbers of adaptive guesses.

    Attributes:
        canaries: Number of canaries with a fair coin.
        guesses: Number of guesses that was fixed beforehand.
        correct: Right guesses.
    """

    canaries: int
    guesses: int
    correct: int


@dataclass(frozen=True)
class Mechanism:
    """A mechanism that is (epsilon, delta)-DP for the coin of each canary, with its guesser.

    Attributes:
        name: Name in the table.
        guess: Draws coins and releases, and guesses, from a generator, epsilon and delta.
        deltas: The deltas at which it is defined.
        epsilons: The epsilons at which it is defined.
    """

    name: str
    guess: Callable[[np.random.Generator, float, float], Guessed]
    deltas: tuple[float, ...] = DELTAS
    epsilons: tuple[float, ...] = ADAPTIVE_EPSILONS


def _right_of_response(rng: np.random.Generator, epsilon: float, count: int) -> int:
    """Return how many of ``count`` responses of randomized response are the coin."""
    return int(rng.binomial(count, 1 / (1 + math.exp(-epsilon))))


def leak_each(rng: np.random.Generator, epsilon: float, delta: float) -> Guessed:
    """Each coin is released with probability delta, otherwise by randomized response."""
    sure = int(rng.binomial(CANARIES, delta))
    return Guessed(CANARIES, CANARIES, sure + _right_of_response(rng, epsilon, CANARIES - sure))


def leak_few(rng: np.random.Generator, epsilon: float, delta: float) -> Guessed:
    """The same, but the guesser sees which coins were released, and abstains from others first."""
    sure = min(int(rng.binomial(CANARIES, delta)), FEW_GUESSES)
    right = sure + _right_of_response(rng, epsilon, FEW_GUESSES - sure)
    return Guessed(CANARIES, FEW_GUESSES, right)


def leak_all(rng: np.random.Generator, epsilon: float, delta: float) -> Guessed:
    """All coins are released together with probability delta, otherwise randomized response."""
    if rng.random() < delta:
        return Guessed(CANARIES, CANARIES, CANARIES)
    return Guessed(CANARIES, CANARIES, _right_of_response(rng, epsilon, CANARIES))


def parity(rng: np.random.Generator, epsilon: float, delta: float) -> Guessed:
    """Release the parity of each pair of coins: only the second one can be guessed.

    The parity is exact with probability delta, otherwise it passes randomized response.
    """
    pairs = CANARIES // 2
    coins = rng.random((pairs, 2)) < 0.5
    truthful = rng.random(pairs) < delta + (1 - delta) / (1 + math.exp(-epsilon))
    released = (coins[:, 0] ^ coins[:, 1]) == truthful
    guessed = released ^ coins[:, 0]  # the first coin is revealed after an abstention
    return Guessed(CANARIES, pairs, int((guessed == coins[:, 1]).sum()))


@lru_cache
def _directions() -> Array:
    """Return unit directions, each on five coordinates of a ring: neighbors overlap."""
    starts = np.eye(CANARIES)
    return np.asarray(sum(np.roll(starts, shift, axis=1) for shift in range(5)) / math.sqrt(5))


def noisy_sum(rng: np.random.Generator, epsilon: float, delta: float) -> Guessed:
    """Release a sum of overlapping unit directions with Gaussian noise of this (epsilon, delta)."""
    directions = _directions()
    included = rng.random(CANARIES) < 0.5
    noise = 1 / mu_of_epsilon(epsilon, delta)
    released = included @ directions + noise * rng.standard_normal(CANARIES)
    observed = InterferingSum(directions @ released, directions @ directions.T, included)
    right = int((adaptive_guesses(observed) == included).sum())
    return Guessed(CANARIES, CANARIES, right)


ADAPTIVE = (
    Mechanism("each coin leaks", leak_each),
    Mechanism("each coin leaks, few guesses", leak_few),
    Mechanism("all coins leak together", leak_all),
    Mechanism("parity of two coins", parity),
    Mechanism("interfering noisy sum", noisy_sum, DELTAS[1:], ADAPTIVE_EPSILONS[1:]),
)


def adaptive_row(mechanism: Mechanism, epsilon: float, delta: float, repetitions: int) -> Figures:
    """Return how often the bound of adaptive guesses exceeds the truth."""
    rng = np.random.default_rng([len(mechanism.name), round(1e6 * delta), repetitions])
    found = [mechanism.guess(rng, epsilon, delta) for _ in range(repetitions)]
    rejected = {one: _p_value(one, epsilon, delta) <= 1 - CONFIDENCE for one in set(found)}
    lower = [_adaptive_bound(one, delta) for one in found[:WHOLE_AUDITS]]
    if [bound > epsilon for bound in lower] != [rejected[one] for one in found[:WHOLE_AUDITS]]:
        raise AssertionError(f"the audits of {mechanism.name} are not the tests of their bounds")
    return {
        "mechanism": mechanism.name, "epsilon": epsilon, "delta": delta,
        "canaries": found[0].canaries, "guesses": found[0].guesses,
        "false": float(np.mean([rejected[one] for one in found])),
        "mean": float(np.mean(lower)), "repetitions": repetitions,
    }  # fmt: skip


def _p_value(found: Guessed, epsilon: float, delta: float) -> float:
    return adaptive_p_value(
        epsilon=epsilon, canaries=found.canaries, guesses=found.guesses, correct=found.correct,
        delta=delta,
    )  # fmt: skip


def _adaptive_bound(found: Guessed, delta: float) -> float:
    return adaptive_one_run(
        canaries=found.canaries, guesses=found.guesses, correct=found.correct, delta=delta,
        confidence=CONFIDENCE,
    ).epsilon  # fmt: skip


# Pairs of models.

ScorePairs = tuple[Array, Array]


def gaussian_pairs(rng: np.random.Generator, epsilon: float, delta: float) -> ScorePairs:
    """Draw normal scores whose distance is exactly (epsilon, delta)."""
    mu = mu_of_epsilon(epsilon, delta)
    return rng.normal(mu, 1, PAIRS), rng.normal(0, 1, PAIRS)


def leaking_pairs(rng: np.random.Generator, epsilon: float, delta: float) -> ScorePairs:
    """Draw the sharpest scores: a sure one with probability delta, else randomized response."""
    kept = 1 / (1 + math.exp(-epsilon))
    members = np.where(rng.random(PAIRS) < kept, 1.0, 0.0)
    nonmembers = np.where(rng.random(PAIRS) < kept, 0.0, 1.0)
    return (
        np.where(rng.random(PAIRS) < delta, 2.0, members),
        np.where(rng.random(PAIRS) < delta, -1.0, nonmembers),
    )


PAIR_SCORES = {"normal scores": gaussian_pairs, "leaking response": leaking_pairs}


def pair_row(name: str, epsilon: float, delta: float, repetitions: int) -> Figures:
    """Return how often pairs ever reject the true epsilon, which is a point of the grid."""
    rng = np.random.default_rng([len(name), round(1e6 * delta), repetitions])
    place = int(np.argmin(np.abs(EPSILON_GRID - epsilon)))
    found = []
    for _ in range(repetitions):
        test = PairTest(delta, CONFIDENCE)
        for member, nonmember in zip(*PAIR_SCORES[name](rng, epsilon, delta), strict=True):
            test.update(float(member), float(nonmember))
        found.append(test.epsilon)  # a rejection is never taken back
    return {
        "scores": name, "epsilon": epsilon, "delta": delta, "pairs": PAIRS,
        "false": float(np.mean(np.array(found) >= EPSILON_GRID[place])),
        "mean": float(np.mean(found)), "repetitions": repetitions,
    }  # fmt: skip


# Whole black-box audits: all bounds of one audit hold together.

MODEL_PAIRS = 60


def normal_logits(rng: np.random.Generator, epsilon: float, delta: float) -> TrialOutputs:
    """Draw logits of two classes whose gap is normal, at a distance of exactly (epsilon, delta)."""
    mu = mu_of_epsilon(epsilon, delta)
    gaps = rng.normal(mu, 1, MODEL_PAIRS), rng.normal(0, 1, MODEL_PAIRS)
    with_record, without = (np.stack([gap, np.zeros(MODEL_PAIRS)], axis=1) for gap in gaps)
    return TrialOutputs(with_record, without, label=0)


def leaking_logits(rng: np.random.Generator, epsilon: float, delta: float) -> TrialOutputs:
    """Draw logits from the sharpest scores, with a little noise that no score depends on."""
    members, nonmembers = leaking_pairs(rng, epsilon, delta)
    scores = members[:MODEL_PAIRS], nonmembers[:MODEL_PAIRS]
    found = (np.stack([one, rng.uniform(0, 1e-9, MODEL_PAIRS)], axis=1) for one in scores)
    return TrialOutputs(*found, label=0)


MODEL_OUTPUTS = {"normal logits": normal_logits, "leaking logits": leaking_logits}


def model_row(name: str, epsilon: float, delta: float, repetitions: int) -> Figures:
    """Return how often some bound of a whole audit exceeds the truth.

    A bound that is conditional on a Gaussian trade-off curve counts where the curve is Gaussian.
    """
    rng = np.random.default_rng([len(name), round(1e6 * delta), repetitions])
    counted = {BoundKind.CERTIFIED}
    if name == "normal logits":
        counted.add(BoundKind.CONDITIONAL)
    false, found = [], []
    for _ in range(repetitions):
        outputs = MODEL_OUTPUTS[name](rng, epsilon, delta)
        bounds = audit_trials(outputs, delta=delta, confidence=CONFIDENCE)
        largest = max(one.epsilon_lower for one in bounds if one.kind in counted)
        false.append(largest > epsilon)
        found.append(largest)
    return {
        "outputs": name, "epsilon": epsilon, "delta": delta, "pairs": MODEL_PAIRS,
        "false": float(np.mean(false)), "mean": float(np.mean(found)), "repetitions": repetitions,
    }  # fmt: skip


def sequential_rows(repetitions: int) -> dict[str, list[Figures]]:
    """Return the rows of all tables."""
    return {
        "adaptive": [
            adaptive_row(mechanism, epsilon, delta, repetitions)
            for mechanism in ADAPTIVE
            for epsilon in mechanism.epsilons
            for delta in mechanism.deltas
        ],
        "pairs": [
            pair_row(name, epsilon, delta, repetitions)
            for name in PAIR_SCORES
            for epsilon, delta in PAIR_SETTINGS
        ],
        "models": [
            model_row(name, epsilon, delta, repetitions)
            for name in MODEL_OUTPUTS
            for epsilon, delta in PAIR_SETTINGS[:3]
        ],
    }
