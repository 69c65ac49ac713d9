"""Scores of members and non-members of a random split: the sizes of both classes are given."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.special import bdtr

from dpaudit.attacks import bounds
from dpaudit.attacks.bounds.fixed_sizes import epsilon_lower, greatest_epsilon
from dpaudit.attacks.one_run.expected import GaussianScores, whole
from dpaudit.attacks.one_run.guesses import SHARES, digest
from dpaudit.attacks.one_run.results import audit_result
from dpaudit.attacks.one_run.scored import check_scores, choose_share, require_claim
from dpaudit.vocabulary.audit import AuditResult
from dpaudit.vocabulary.estimators import ClassGuesses

Array = NDArray[np.float64]
Bits = NDArray[np.bool_]

RANDOM_SPLIT = "one run with a random split of fixed sizes (noncentral hypergeometric)"


UNFAIR = 1e-6  # how often fair coins give sizes that are taken for those of other coins


def sizes_of_fair_coins(included: Bits) -> bool:
    """Return whether the number of included canaries is one that fair coins give.

    The two-sided binomial test at level ``UNFAIR``.
    """
    canaries = len(included)
    rarer = min(int(np.count_nonzero(included)), int(np.count_nonzero(~included)))
    return 2 * float(bdtr(rarer, canaries, 0.5)) > UNFAIR


@lru_cache(maxsize=64)
def register_split(
    *, members: int, nonmembers: int, epsilon: float, delta: float, confidence: float
) -> float:
    """Return the share of each class that is guessed, to refute a claim best.

    It is chosen from the claim and the sizes, as ``register_share`` chooses for fair coins.
    """
    require_claim(epsilon)
    records = members + nonmembers

    def bound(scores: GaussianScores, share: float) -> float:
        guessed_in, guessed_out = targets(members, nonmembers, share)
        right_in = whole(guessed_in * scores.right_in(guessed_in / records))
        right_out = whole(guessed_out * scores.right_out(guessed_out / records))
        # Rounded by themselves, they may hold a record more than a class has.
        right_in = min(right_in, members - (guessed_out - right_out))
        right_out = min(right_out, nonmembers - (guessed_in - right_in))
        return epsilon_lower(
            members=members,
            nonmembers=nonmembers,
            guessed_in=guessed_in,
            right_in=right_in,
            guessed_out=guessed_out,
            right_out=right_out,
            delta=delta,
            confidence=confidence,
        )

    return choose_share(SHARES, bound, members=members / records, epsilon=epsilon, delta=delta)


def targets(members: int, nonmembers: int, share: float) -> tuple[int, int]:
    """Return how many records should be guessed in and out: a share of each class."""
    return max(1, int(share * members)), max(1, int(share * nonmembers))


def guess(scores: Array, member: Bits, share: float) -> ClassGuesses:
    """Return the guesses of a share of each class: the highest scores in, the lowest out.

    No group of equal scores is cut: both numbers are the nearest that are possible. They depend
    on the multiset of scores alone, so that neither the membership nor the order of the rows
    can choose between equal scores.
    """
    order = np.argsort(-scores, kind="stable")
    members = int(np.count_nonzero(member))
    guessed_in, guessed_out = targets(members, len(member) - members, share)
    gaps = np.flatnonzero(np.diff(scores[order])) + 1  # records above a gap between two scores
    first = _nearest(gaps, guessed_in)
    guessed_out = _nearest(len(scores) - gaps[::-1], guessed_out)
    last = len(scores) - guessed_out
    above = np.cumsum(member[order])
    return ClassGuesses(
        members=members,
        nonmembers=len(member) - members,
        guessed_in=first,
        right_in=int(above[first - 1]),
        guessed_out=guessed_out,
        right_out=guessed_out - (members - int(above[last - 1])),
    )


def _nearest(places: NDArray[np.int64], target: int) -> int:
    """Return the place nearest to ``target``; of two, the lower one."""
    return int(places[np.argmin(np.abs(places - target))])


def audit_random_split(
    scores: Array,
    member: Bits,
    *,
    delta: float,
    confidence: float,
    claimed_epsilon: float | None,
) -> AuditResult:
    """Return the lower bound from scores of a random split, its class sizes given.

    The highest scores are guessed to be members, the lowest to be non-members.

    Args:
        scores: Shape ``(records,)``, finite; larger means member.
        member: Shape ``(records,)``.
        delta: In (0, 1).
        confidence: In (0, 1).
        claimed_epsilon: Fixes which share is guessed; without one, all records are.

    Raises:
        InvalidArgument: shapes differ, a score is not finite, all are equal, or a class is
            empty.
    """
    check_scores(scores, member, delta, confidence)
    members = int(np.count_nonzero(member))
    nonmembers, share = len(member) - members, 1.0
    if claimed_epsilon is not None:
        share = register_split(
            members=members,
            nonmembers=nonmembers,
            epsilon=claimed_epsilon,
            delta=delta,
            confidence=confidence,
        )
    counts = guess(scores, member, share)
    bound = bounds.fixed_sizes(counts, delta=delta, confidence=confidence)
    return audit_result(
        bound,
        name="records of a random split, one score each",
        method=RANDOM_SPLIT,
        delta=delta,
        canaries=len(scores),
        guesses=counts.guessed_in + counts.guessed_out,
        correct=counts.right_in + counts.right_out,
        greatest_epsilon=greatest_epsilon(
            members=members,
            nonmembers=nonmembers,
            guessed_in=counts.guessed_in,
            guessed_out=counts.guessed_out,
            delta=delta,
            confidence=confidence,
        ),
        thresholds=f"the {counts.guessed_in} highest scores are guessed to be members, the "
        f"{counts.guessed_out} lowest non-members; equal scores are guessed alike",
        registered=digest(audit=RANDOM_SPLIT, members=members, nonmembers=nonmembers, share=share),
        estimator=counts,
    )
