"""One score a canary, from any framework: what a claim says of them fixes how many are guessed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from dpaudit.attacks import bounds
from dpaudit.attacks.bounds.gaussian import mu_of_epsilon
from dpaudit.attacks.bounds.result import COINS
from dpaudit.attacks.one_run.certified import ONE_RUN
from dpaudit.attacks.one_run.expected import GaussianScores, whole
from dpaudit.attacks.one_run.guesses import SHARES, Guesses, digest
from dpaudit.attacks.one_run.results import audit_result
from dpaudit.vocabulary.audit import AuditResult, BoundKind
from dpaudit.vocabulary.errors import InvalidArgument, require_count, require_open_unit
from dpaudit.vocabulary.estimators import OneRun

Array = NDArray[np.float64]
Bits = NDArray[np.bool_]

NAME = "canaries, one score each"
Choice = TypeVar("Choice", int, float)

MOST_CLAIMED = 1000.0  # beyond it no audit can say anything
LEAKS = (1.0, 1.25, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0)  # of the claimed mu
UNKNOWN_COINS = (
    "that each member was chosen by a fair coin of its own, which the scores do not show"
)


@lru_cache(maxsize=64)
def register_share(*, canaries: int, epsilon: float, delta: float, confidence: float) -> int:
    """Return how many guesses refute a claim best: few sure ones have a low ceiling.

    They say most of the Gaussian mechanism with the least epsilon at which a bound rises above
    the claim, with as many right guesses as that mechanism has on average. Whoever repeats it
    from the claim finds the same.
    """
    require_count("canaries", canaries)
    require_claim(epsilon)

    def bound(scores: GaussianScores, guesses: int) -> float:
        correct = whole(guesses * scores.right_in(guesses / canaries / 2))
        return bounds.one_run(
            canaries=canaries,
            guesses=guesses,
            correct=correct,
            delta=delta,
            confidence=confidence,
        ).epsilon

    choices = [max(1, int(part * canaries)) for part in SHARES]
    return choose_share(choices, bound, members=0.5, epsilon=epsilon, delta=delta)


def require_claim(epsilon: float) -> None:
    """Refuse a claim that no audit can say anything of."""
    if not 0 < epsilon < MOST_CLAIMED:
        raise InvalidArgument("claimed_epsilon", epsilon, f"above 0 and below {MOST_CLAIMED:g}")


def choose_share(
    choices: Sequence[Choice],
    bound: Callable[[GaussianScores, Choice], float],
    *,
    members: float,
    epsilon: float,
    delta: float,
) -> Choice:
    """Return the choice with the largest bound, at the least leak whose bound exceeds the claim.

    Args:
        choices: What may be guessed.
        bound: The bound that a choice gives on average, for scores of a Gaussian mechanism.
        members: Share of the records that are members.
        epsilon: The claim.
        delta: Of the claim.
    """
    claimed = mu_of_epsilon(epsilon, delta)
    found = choices[-1]
    for leak in LEAKS:
        scores = GaussianScores(members, leak * claimed)
        best, found = max((bound(scores, choice), choice) for choice in choices)
        if best > epsilon:
            break
    return found


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
    check_scores(scores, included, delta, confidence)
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
        name=NAME,
        method=ONE_RUN,
        delta=delta,
        canaries=canaries,
        guesses=guesses.count,
        correct=correct,
        greatest_epsilon=of_correct(correct=guesses.count).epsilon,
        thresholds=f"the {guesses.count} farthest from the median in rank: in above it, out below",
        registered=registered,
        estimator=OneRun(),
    )


def centred_ranks(scores: Array) -> Array:
    """Return ranks about zero, equal scores alike."""
    _, place, counts = np.unique(scores, return_inverse=True, return_counts=True)
    middle = np.cumsum(counts) - (counts + 1) / 2
    return np.asarray(middle[place] - (len(scores) - 1) / 2)


def check_scores(scores: Array, included: Bits, delta: float, confidence: float) -> None:
    """Refuse scores and bits that do not pair, or say nothing."""
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
