"""Audits of one score per record, computed by any framework.

Two sampling designs are supported:

- Fair coins: each canary was included by an independent fair coin (``audit_scores``). The bound is
  the one-run bound of Steinke, Nasr & Jagielski (2023).
- A random split of fixed class sizes (``audit_random_split``). The bound conditions on both sizes,
  see ``bounds.fixed_class_sizes``.

The number of guesses is registered from the claim and the sizes, before a score is read: it is
the best one for the scores of a Gaussian mechanism with a larger epsilon than claimed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy.special import bdtr, ndtr

from dpaudit.attacks import bounds
from dpaudit.attacks.bounds.fixed_class_sizes import fixed_sizes_epsilon, greatest_epsilon
from dpaudit.attacks.bounds.gaussian_dp import mu_of_epsilon
from dpaudit.attacks.bounds.lower_bound import ASSUMES_FAIR_COINS, bisect_largest
from dpaudit.attacks.one_run.guess_audits import ONE_RUN_METHOD
from dpaudit.attacks.one_run.registration import (
    GUESS_SHARES,
    Guesses,
    audit_result,
    registration_digest,
)
from dpaudit.vocabulary.audit import AuditResult, BoundKind, ClassGuesses, OneRun
from dpaudit.vocabulary.errors import InvalidArgument, require_count, require_open_unit

# The expected numbers of correct guesses for the scores of a Gaussian mechanism.

MAX_SCORE_DEVIATIONS = 40.0  # end of the search for thresholds, in standard deviations


@dataclass(frozen=True)
class GaussianScores:
    """Scores with law N(mu, 1) for members and N(0, 1) for other records.

    Attributes:
        members: Share of members among the records, in (0, 1).
        mu: Distance between the means in standard deviations, at least 0.
    """

    members: float
    mu: float

    def right_in(self, share: float) -> float:
        """Compute the share of members among the highest scores.

        Args:
            share: Share of all records that is guessed, in (0, 1].

        Returns:
            Share of members among these, in [0, 1].
        """
        if share >= 1:
            return self.members
        threshold = bisect_largest(
            lambda t: self._above(t) >= share, -MAX_SCORE_DEVIATIONS, MAX_SCORE_DEVIATIONS + self.mu
        )
        return min(1.0, self.members * float(ndtr(self.mu - threshold)) / share)

    def right_out(self, share: float) -> float:
        """Compute the share of non-members among the lowest scores.

        Args:
            share: Share of all records that is guessed, in (0, 1].

        Returns:
            Share of non-members among these, in [0, 1].
        """
        return GaussianScores(1 - self.members, self.mu).right_in(share)

    def _above(self, threshold: float) -> float:
        """Return the share of all scores above ``threshold``."""
        tails = float(ndtr(self.mu - threshold)), float(ndtr(-threshold))
        return self.members * tails[0] + (1 - self.members) * tails[1]


def expected_count(expected: float) -> int:
    """Return an expected number of correct guesses as an integer, rounded down."""
    return math.floor(expected * (1 + 1e-12))


Array = NDArray[np.float64]
Bits = NDArray[np.bool_]

SCORE_AUDIT_NAME = "canaries, one score each"
Choice = TypeVar("Choice", int, float)

MAX_CLAIMED_EPSILON = 1000.0  # in nats; no audit can refute a larger claim
LEAK_FACTORS = (1.0, 1.25, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0)  # true mu over claimed mu
ASSUMES_FAIR_COINS_UNVERIFIED = (
    "that an independent fair coin included each record, which the scores do not show"
)


@lru_cache(maxsize=64)
def register_guess_count(*, canaries: int, epsilon: float, delta: float, confidence: float) -> int:
    """Choose the number of guesses that refutes a claim best.

    A few guesses at the extremes are mostly correct, but their bound has a low ceiling. The
    choice has the largest bound for the scores of a Gaussian mechanism: the one with the
    smallest of ``LEAK_FACTORS`` at which the bound of the expected correct guesses exceeds the
    claim. It depends on the arguments only, so that anyone can repeat it.

    Args:
        canaries: Number of canaries, m.
        epsilon: The claimed epsilon in nats.
        delta: The claimed delta, in (0, 1).
        confidence: Probability with which the bound holds, in (0, 1).

    Returns:
        The number of guesses, from 1 to m.

    Raises:
        InvalidArgument: If a number is out of range.
    """
    require_count("canaries", canaries)
    require_auditable_claim(epsilon)

    def bound(scores: GaussianScores, guesses: int) -> float:
        """Return the bound of the expected number of correct guesses."""
        correct = expected_count(guesses * scores.right_in(guesses / canaries / 2))
        return bounds.one_run(
            canaries=canaries,
            guesses=guesses,
            correct=correct,
            delta=delta,
            confidence=confidence,
        ).epsilon

    choices = [max(1, int(part * canaries)) for part in GUESS_SHARES]
    return choose_share(choices, bound, members=0.5, epsilon=epsilon, delta=delta)


def require_auditable_claim(epsilon: float) -> None:
    """Require a claimed epsilon that an audit can refute.

    Args:
        epsilon: The claimed epsilon in nats.

    Raises:
        InvalidArgument: If it is not above 0 and below ``MAX_CLAIMED_EPSILON``.
    """
    if not 0 < epsilon < MAX_CLAIMED_EPSILON:
        raise InvalidArgument(
            "claimed_epsilon", epsilon, f"above 0 and below {MAX_CLAIMED_EPSILON:g}"
        )


def choose_share(
    choices: Sequence[Choice],
    bound: Callable[[GaussianScores, Choice], float],
    *,
    members: float,
    epsilon: float,
    delta: float,
) -> Choice:
    """Choose how much to guess, for the Gaussian mechanism that is just refuted.

    Args:
        choices: Numbers or shares of guesses.
        bound: Computes the bound of a choice for the scores of a Gaussian mechanism.
        members: Share of members among the records, in (0, 1).
        epsilon: The claimed epsilon in nats.
        delta: The claimed delta, in (0, 1).

    Returns:
        The choice with the largest bound at the smallest of ``LEAK_FACTORS`` at which that bound
        exceeds the claim; at the largest factor if none exceeds it.
    """
    claimed = mu_of_epsilon(epsilon, delta)
    choice = choices[-1]
    for leak in LEAK_FACTORS:
        scores = GaussianScores(members, leak * claimed)
        best, choice = max((bound(scores, candidate), candidate) for candidate in choices)
        if best > epsilon:
            break
    return choice


def audit_scores(
    scores: Array,
    included: Bits,
    *,
    delta: float,
    confidence: float,
    claimed_epsilon: float | None,
    fair_coins: BoundKind,
) -> AuditResult:
    """Compute the one-run lower bound from one score per canary.

    The canaries farthest from the median rank are guessed: included above it, excluded below.

    Args:
        scores: One score per canary, shape ``(m,)``, finite; larger means included.
        included: The inclusion bits, shape ``(m,)``.
        delta: In (0, 1).
        confidence: Probability with which the bound holds, in (0, 1).
        claimed_epsilon: The claimed epsilon in nats, which fixes the number of guesses. None
            guesses all canaries.
        fair_coins: The kind of the bound: CERTIFIED if the bits are known to be independent
            fair coins, else CONDITIONAL.

    Returns:
        The bound.

    Raises:
        InvalidArgument: If the shapes differ, a score is not finite, all scores are equal, a
            class is empty, or a number is out of range.

    References:
        Steinke, Nasr & Jagielski (2023), arXiv:2305.08846, Theorem 5.2.

    Example:
        >>> included = np.arange(200) % 2 == 0
        >>> scores = 3.0 * included + np.random.default_rng(0).standard_normal(200)
        >>> claim = {"delta": 1e-5, "confidence": 0.95, "claimed_epsilon": 1.0}
        >>> result = audit_scores(scores, included, **claim, fair_coins=BoundKind.CERTIFIED)
        >>> result.guesses, result.epsilon_lower > 1
        (30, True)
    """
    require_scores(scores, included, delta, confidence)
    canaries = len(scores)
    count = canaries
    if claimed_epsilon is not None:
        count = register_guess_count(
            canaries=canaries, epsilon=claimed_epsilon, delta=delta, confidence=confidence
        )
    registered = registration_digest(audit=ONE_RUN_METHOD, canaries=canaries, guesses=count)
    guesses = Guesses(count)
    correct = guesses.correct(centred_ranks(scores), included)
    of_correct = partial(
        bounds.one_run,
        canaries=canaries,
        guesses=guesses.count,
        delta=delta,
        confidence=confidence,
    )
    assumes = (
        ASSUMES_FAIR_COINS if fair_coins is BoundKind.CERTIFIED else ASSUMES_FAIR_COINS_UNVERIFIED
    )
    return audit_result(
        replace(of_correct(correct=correct), kind=fair_coins, assumes=assumes),
        name=SCORE_AUDIT_NAME,
        method=ONE_RUN_METHOD,
        delta=delta,
        canaries=canaries,
        guesses=guesses.count,
        correct=correct,
        greatest_epsilon=of_correct(correct=guesses.count).epsilon,
        thresholds=f"the {guesses.count} canaries farthest from the median rank: included above "
        "it, excluded below",
        registered=registered,
        estimator=OneRun(),
    )


def centred_ranks(scores: Array) -> Array:
    """Return ranks minus their mean; equal scores have the same rank.

    Args:
        scores: Shape ``(m,)``.

    Returns:
        Centered ranks, shape ``(m,)``, rising with the score.
    """
    _, place, counts = np.unique(scores, return_inverse=True, return_counts=True)
    middle = np.cumsum(counts) - (counts + 1) / 2
    return np.asarray(middle[place] - (len(scores) - 1) / 2)


def require_scores(scores: Array, included: Bits, delta: float, confidence: float) -> None:
    """Require finite scores that pair with bits of both values, and differ.

    Args:
        scores: One score per record, shape ``(m,)``.
        included: The inclusion bits, shape ``(m,)``.
        delta: In (0, 1).
        confidence: In (0, 1).

    Raises:
        InvalidArgument: If the shapes differ, a score is not finite, all scores are equal, a
            class is empty, or a number is out of range.
    """
    require_open_unit("delta", delta)
    require_open_unit("confidence", confidence)
    if scores.shape != included.shape or scores.ndim != 1 or not np.isfinite(scores).all():
        given = f"shape {scores.shape}, {int((~np.isfinite(scores)).sum())} not finite"
        raise InvalidArgument("scores", given, "finite, one for each canary")
    if included.all() or not included.any():
        given = "every canary" if included.all() else "no canary"
        raise InvalidArgument("included", given, "True for some canaries and False for others")
    if np.ptp(scores) == 0:
        raise InvalidArgument("scores", "one value for all", "different for different canaries")


# Scores of a random split of given class sizes.

RANDOM_SPLIT_METHOD = "one run with a random split of fixed sizes (noncentral hypergeometric)"


FAIR_COIN_LEVEL = 1e-6  # probability that the test rejects fair coins


def sizes_fit_fair_coins(included: Bits) -> bool:
    """Test whether the class sizes are plausible for independent fair coins.

    The two-sided binomial test of the number of included canaries, at level 1e-6.

    Args:
        included: The inclusion bits, shape ``(m,)``.

    Returns:
        Whether fair coins are not rejected. This does not show that the coins were fair.

    Example:
        >>> sizes_fit_fair_coins(np.arange(1000) < 480)
        True
        >>> sizes_fit_fair_coins(np.arange(1000) < 800)
        False
    """
    canaries = len(included)
    rarer = min(int(np.count_nonzero(included)), int(np.count_nonzero(~included)))
    return 2 * float(bdtr(rarer, canaries, 0.5)) > FAIR_COIN_LEVEL


@lru_cache(maxsize=64)
def register_class_share(
    *, members: int, nonmembers: int, epsilon: float, delta: float, confidence: float
) -> float:
    """Choose the share of each class that is guessed, to refute a claim best.

    The choice depends on the claim and the sizes, as for ``register_guess_count``.

    Args:
        members: Number of members, n1.
        nonmembers: Number of non-members, n0.
        epsilon: The claimed epsilon in nats.
        delta: The claimed delta, in (0, 1).
        confidence: Probability with which the bound holds, in (0, 1).

    Returns:
        The share, one of ``GUESS_SHARES``.

    Raises:
        InvalidArgument: If a number is out of range.
    """
    require_auditable_claim(epsilon)
    records = members + nonmembers

    def bound(scores: GaussianScores, share: float) -> float:
        """Return the bound of the expected numbers of correct guesses."""
        guessed_in, guessed_out = class_guess_counts(members, nonmembers, share)
        right_in = expected_count(guessed_in * scores.right_in(guessed_in / records))
        right_out = expected_count(guessed_out * scores.right_out(guessed_out / records))
        # Each is rounded by itself, so both may need one record more than a class has.
        right_in = min(right_in, members - (guessed_out - right_out))
        right_out = min(right_out, nonmembers - (guessed_in - right_in))
        return fixed_sizes_epsilon(
            members=members,
            nonmembers=nonmembers,
            guessed_in=guessed_in,
            right_in=right_in,
            guessed_out=guessed_out,
            right_out=right_out,
            delta=delta,
            confidence=confidence,
        )

    return choose_share(
        GUESS_SHARES, bound, members=members / records, epsilon=epsilon, delta=delta
    )


def class_guess_counts(members: int, nonmembers: int, share: float) -> tuple[int, int]:
    """Return the numbers of records to guess as members and as non-members.

    Args:
        members: Number of members, n1.
        nonmembers: Number of non-members, n0.
        share: Share of each class, in (0, 1].

    Returns:
        Both numbers, rounded down, at least 1.
    """
    return max(1, int(share * members)), max(1, int(share * nonmembers))


def guess_classes(scores: Array, member: Bits, share: float) -> ClassGuesses:
    """Guess the highest scores as members and the lowest as non-members.

    Groups of equal scores are not divided: both numbers of guesses are the nearest possible
    ones. They depend on the multiset of scores and the class sizes only. Neither the membership
    nor the order of the rows can therefore choose between equal scores.

    Args:
        scores: One score per record, shape ``(n,)``, not all equal; larger means member.
        member: The membership, shape ``(n,)``.
        share: Share of each class that is guessed, in (0, 1].

    Returns:
        The class sizes, and the numbers of guesses and of correct guesses of each class.
    """
    order = np.argsort(-scores, kind="stable")
    members = int(np.count_nonzero(member))
    guessed_in, guessed_out = class_guess_counts(members, len(member) - members, share)
    gaps = np.flatnonzero(np.diff(scores[order])) + 1  # records above a gap between two scores
    first = _nearest_boundary(gaps, guessed_in)
    guessed_out = _nearest_boundary(len(scores) - gaps[::-1], guessed_out)
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


def _nearest_boundary(places: NDArray[np.int64], target: int) -> int:
    """Return the place nearest to ``target``; of two, the smaller one."""
    return int(places[np.argmin(np.abs(places - target))])


def audit_random_split(
    scores: Array,
    member: Bits,
    *,
    delta: float,
    confidence: float,
    claimed_epsilon: float | None,
) -> AuditResult:
    """Compute the lower bound from scores of a random split of given class sizes.

    The highest scores are guessed to be members, the lowest to be non-members.

    Args:
        scores: One score per record, shape ``(n,)``, finite; larger means member.
        member: The membership, shape ``(n,)``.
        delta: In (0, 1).
        confidence: Probability with which the bound holds, in (0, 1).
        claimed_epsilon: The claimed epsilon in nats, which fixes the share of guesses. None
            guesses all records.

    Returns:
        The bound, conditional on the random split.

    Raises:
        InvalidArgument: If the shapes differ, a score is not finite, all scores are equal, a
            class is empty, or a number is out of range.

    References:
        Derived in ``dpaudit.attacks.bounds.fixed_class_sizes``.

    Example:
        >>> member = np.arange(300) < 200
        >>> scores = 4.0 * member + np.random.default_rng(0).standard_normal(300)
        >>> result = audit_random_split(
        ...     scores, member, delta=1e-5, confidence=0.95, claimed_epsilon=1.0
        ... )
        >>> result.kind.value, result.epsilon_lower > 1
        ('conditional', True)
    """
    require_scores(scores, member, delta, confidence)
    members = int(np.count_nonzero(member))
    nonmembers, share = len(member) - members, 1.0
    if claimed_epsilon is not None:
        share = register_class_share(
            members=members,
            nonmembers=nonmembers,
            epsilon=claimed_epsilon,
            delta=delta,
            confidence=confidence,
        )
    counts = guess_classes(scores, member, share)
    bound = bounds.fixed_sizes(counts, delta=delta, confidence=confidence)
    return audit_result(
        bound,
        name="records of a random split, one score each",
        method=RANDOM_SPLIT_METHOD,
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
        registered=registration_digest(
            audit=RANDOM_SPLIT_METHOD, members=members, nonmembers=nonmembers, share=share
        ),
        estimator=counts,
    )
