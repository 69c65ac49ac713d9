"""One score a canary, from any framework: what a claim says of them fixes how many are guessed."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from dpaudit.attacks import bounds
from dpaudit.attacks.bounds.gaussian import mu_of_epsilon
from dpaudit.attacks.bounds.result import COINS
from dpaudit.attacks.one_run.certified import ONE_RUN
from dpaudit.attacks.one_run.guesses import SHARES, Guesses, digest
from dpaudit.attacks.one_run.results import audit_result
from dpaudit.vocabulary.audit import AuditResult, BoundKind
from dpaudit.vocabulary.errors import InvalidArgument, require_count, require_open_unit

Array = NDArray[np.float64]
Bits = NDArray[np.bool_]

AUDITS = 40
MOST_CLAIMED = 1000.0  # beyond it no audit can say anything
LEAKS = (1.0, 1.25, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0)  # of the claimed mu
UNKNOWN_COINS = (
    "that each member was chosen by a fair coin of its own, which the scores do not show"
)


def register_share(*, canaries: int, epsilon: float, delta: float, confidence: float) -> int:
    """Return how many guesses refute a claim best: few sure ones have a low ceiling.

    They say most of the Gaussian mechanism with the least epsilon at which a bound rises above
    the claim on average, by simulation under a seed of the claim's own: whoever repeats it
    finds the same.
    """
    require_count("canaries", canaries)
    if not 0 < epsilon < MOST_CLAIMED:
        raise InvalidArgument("claimed_epsilon", epsilon, f"above 0 and below {MOST_CLAIMED:g}")
    rng = np.random.default_rng([canaries, int(1e6 * epsilon)])
    share = canaries
    for leak in LEAKS:
        audits = _simulated(canaries, leak * mu_of_epsilon(epsilon, delta), rng)

        def average(guesses: Guesses, audits: list[tuple[Array, Bits]] = audits) -> float:
            correct = int(np.mean([guesses.correct(*audit) for audit in audits]))
            return bounds.one_run(
                canaries=canaries,
                guesses=guesses.count,
                correct=correct,
                delta=delta,
                confidence=confidence,
            ).epsilon

        choices = [Guesses(max(1, int(part * canaries))) for part in SHARES]
        best, share = max((average(guesses), guesses.count) for guesses in choices)
        if best > epsilon:
            break
    return share


def _simulated(canaries: int, mu: float, rng: np.random.Generator) -> list[tuple[Array, Bits]]:
    bits = [rng.random(canaries) < 0.5 for _ in range(AUDITS)]
    return [(rng.standard_normal(canaries) + mu * (ins - 0.5), ins) for ins in bits]


def audit_scores(
    scores: Array,
    included: Bits,
    *,
    delta: float,
    confidence: float,
    claimed_epsilon: float | None,
    fair_coins: BoundKind,
) -> AuditResult:
    """Return the lower bound from one score of each canary.

    The highest scores are guessed in, the lowest out, as many of each.

    Args:
        scores: Shape ``(m,)``, finite; larger means included.
        included: Shape ``(m,)``.
        delta: In (0, 1).
        confidence: In (0, 1).
        claimed_epsilon: Fixes how many are guessed; without one, all are.
        fair_coins: CERTIFIED where the bits are known to be fair coins, else CONDITIONAL.

    Raises:
        InvalidArgument: shapes differ, a score is not finite, all are equal, or a class is
            empty.
    """
    _check(scores, included, delta, confidence)
    canaries = len(scores)
    share = canaries
    if claimed_epsilon is not None:
        share = register_share(
            canaries=canaries, epsilon=claimed_epsilon, delta=delta, confidence=confidence
        )
    registered = digest(audit=ONE_RUN, canaries=canaries, guesses=share)
    guesses = Guesses(share)
    correct = guesses.correct(centred_ranks(scores), included)
    of_correct = partial(
        bounds.one_run,
        canaries=canaries,
        guesses=guesses.count,
        delta=delta,
        confidence=confidence,
    )
    assumes = COINS if fair_coins is BoundKind.CERTIFIED else UNKNOWN_COINS
    return audit_result(
        replace(of_correct(correct=correct), kind=fair_coins, assumes=assumes),
        name="canaries, one score each",
        method=ONE_RUN,
        delta=delta,
        canaries=canaries,
        guesses=guesses.count,
        correct=correct,
        greatest_epsilon=of_correct(correct=guesses.count).epsilon,
        thresholds=f"the {guesses.count} farthest from the median in rank: in above it, out below",
        registered=registered,
    )


def centred_ranks(scores: Array) -> Array:
    """Return ranks about zero, equal scores alike."""
    _, place, counts = np.unique(scores, return_inverse=True, return_counts=True)
    middle = np.cumsum(counts) - (counts + 1) / 2
    return np.asarray(middle[place] - (len(scores) - 1) / 2)


def _check(scores: Array, included: Bits, delta: float, confidence: float) -> None:
    require_open_unit("delta", delta)
    require_open_unit("confidence", confidence)
    if scores.shape != included.shape or scores.ndim != 1 or not np.isfinite(scores).all():
        given = f"shape {scores.shape}, {int((~np.isfinite(scores)).sum())} not finite"
        raise InvalidArgument("scores", given, "finite, one for each canary")
    if included.all() or not included.any():
        given = "every canary" if included.all() else "no canary"
        raise InvalidArgument("included", given, "some in and some out")
    if np.ptp(scores) == 0:
        raise InvalidArgument("scores", "one value for all", "different for different canaries")
