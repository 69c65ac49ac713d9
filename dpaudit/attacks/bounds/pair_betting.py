"""A lower bound on epsilon from pairs of models that holds at every stopping time.

Pair k has the score X_k of a model without the target record and the score Y_k of one with it.
Under (epsilon, delta)-DP, and for every event A that the earlier pairs determine,

    Z_k = 1[Y_k in A] - exp(epsilon) 1[X_k in A] - delta                                   (1)

has a conditional mean of at most 0. So has the same expression with X and Y exchanged. For a bet
lambda in [0, 1/(exp(epsilon) + delta)) that the earlier pairs determine, the factors
1 + lambda Z_k are positive, and their product is a nonnegative supermartingale. The average of
the two directions is one, too. By Ville's inequality it ever reaches 1/alpha with probability at
most alpha. Then epsilon is rejected.

The bound is the largest epsilon of a grid up to which all are rejected. It is above the true
epsilon only if a grid point at or above the true one is rejected: the first one. So it fails with
probability at most alpha, however often one looks and whenever one stops.

Equation (1) and its test are derived in docs/mathematics/sequential_bounds.md. Sequential tests
of a whole trade-off curve are in Kutta et al. (2026), arXiv:2602.06518, and kernel tests in
Gonzalez et al. (2025), arXiv:2509.07055. They choose their statistics in another way.

The events are "score above t" and "score at or below t". The threshold t and the bet maximize
the growth that the rates of the earlier pairs imply. They depend on the ranks of the scores
alone, so the bound can be recomputed from ranks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from dpaudit.attacks.bounds.lower_bound import LowerBound, require_delta_or_zero
from dpaudit.vocabulary.audit import BoundKind, SequentialRanks
from dpaudit.vocabulary.errors import InvalidArgument, require_open_unit

Array = NDArray[np.float64]
Counts = NDArray[np.int64]

EPSILON_GRID = np.arange(0.0, 12.0001, 0.05)
"""Epsilons that are tested, in nats; a bound is one of them."""

LIKELIHOOD_RATIOS = np.exp(EPSILON_GRID)

BET_FRACTIONS = np.array([0.03, 0.08, 0.16, 0.3, 0.5, 0.7, 0.85, 0.95])
"""Bets, as shares of the largest bet that keeps all factors positive."""

MAX_THRESHOLDS = 24  # quantiles of the earlier scores that are tried
REPLAN_GROWTH = 1.1  # the bet is planned again when the pairs have grown by this factor

ASSUMES_INDEPENDENT_PAIRS = (
    "independent training runs with and without the target record; valid at any stopping time"
)


@dataclass(frozen=True)
class _Plan:
    """The bets on the next pairs, per direction and epsilon: ranks and sizes, ``(2, grid)``."""

    thresholds: Counts
    bets: Array


@dataclass
class PairTest:
    """The test of every epsilon of the grid, updated pair by pair.

    Attributes:
        delta: The delta of the bound, in [0, 1).
        confidence: Probability with which the bound holds at all times together.

    Example:
        >>> test = PairTest(1e-5, 0.95)
        >>> for _ in range(40):
        ...     test.update(member=1.0, nonmember=0.0)
        >>> round(test.epsilon, 2)
        2.2
    """

    delta: float
    confidence: float
    _members: list[float] = field(default_factory=list, repr=False)
    _nonmembers: list[float] = field(default_factory=list, repr=False)
    _log_wealth: Array = field(init=False, repr=False)
    _rejected: NDArray[np.bool_] = field(init=False, repr=False)
    _plan: _Plan | None = field(init=False, default=None, repr=False)
    _planned_at: int = field(init=False, default=0, repr=False)

    def __post_init__(self) -> None:
        require_delta_or_zero(self.delta)
        require_open_unit("confidence", self.confidence)
        self._log_wealth = np.zeros((2, len(EPSILON_GRID)))
        self._rejected = np.zeros(len(EPSILON_GRID), np.bool_)

    def update(self, member: float, nonmember: float) -> None:
        """Add one pair.

        Args:
            member: Score of a model that was trained with the target record, finite; larger
                means member.
            nonmember: Score of a model that was trained without it, finite.

        Raises:
            InvalidArgument: If a score is not finite.
        """
        for name, score in (("member", member), ("nonmember", nonmember)):
            if not math.isfinite(score):
                raise InvalidArgument(name, score, "finite")
        if self._plan is not None:
            self._bet(self._plan, member, nonmember)
        self._members.append(member)
        self._nonmembers.append(nonmember)
        pairs = len(self._members)
        if pairs == 1 or pairs >= REPLAN_GROWTH * self._planned_at:
            self._planned_at = pairs
            self._plan = _planned(np.array(self._members), np.array(self._nonmembers), self.delta)

    def _bet(self, plan: _Plan, member: float, nonmember: float) -> None:
        """Multiply the wealth of every epsilon by the factor of its bet."""
        above_in, above_out = member > plan.thresholds, nonmember > plan.thresholds
        more = LIKELIHOOD_RATIOS
        gain = np.stack([
            above_in[0] - more * above_out[0],
            ~above_out[1] - more * ~above_in[1],
        ]) - self.delta  # fmt: skip
        self._log_wealth += np.log1p(plan.bets * gain)
        average = np.logaddexp(*self._log_wealth) - math.log(2)
        self._rejected |= average >= -math.log(1 - self.confidence)

    @property
    def pairs(self) -> int:
        """Number of pairs so far."""
        return len(self._members)

    @property
    def epsilon(self) -> float:
        """The lower bound so far, in nats; 0 if nothing is rejected."""
        kept = np.flatnonzero(~self._rejected)
        first = int(kept[0]) if len(kept) else len(EPSILON_GRID)
        return float(EPSILON_GRID[first - 1]) if first else 0.0


def _planned(members: Array, nonmembers: Array, delta: float) -> _Plan:
    """Return the thresholds and bets with the largest growth, by the earlier pairs."""
    pooled = np.unique(np.concatenate([members, nonmembers]))
    places = np.unique(np.linspace(0, len(pooled) - 1, MAX_THRESHOLDS).astype(np.int64))
    thresholds = pooled[places]
    pairs = len(members)
    # Half a success and half a failure more: no rate is 0 or 1.
    in_above = ((members[:, None] > thresholds).sum(axis=0) + 0.5) / (pairs + 1)
    out_above = ((nonmembers[:, None] > thresholds).sum(axis=0) + 0.5) / (pairs + 1)
    chosen = [
        _best_bets(in_above, out_above, delta),
        _best_bets(1 - out_above, 1 - in_above, delta),
    ]
    return _Plan(
        np.stack([thresholds[place] for place, _ in chosen]),
        np.stack([bet for _, bet in chosen]),
    )


def _best_bets(hit: Array, false: Array, delta: float) -> tuple[Counts, Array]:
    """Return the place of the best threshold and the best bet for every epsilon.

    The rates are those of the event under the two worlds, per threshold. A bet without expected
    growth is 0.
    """
    bets, log_factors = _log_factors(delta)
    p, q = hit, false
    outcomes = np.stack([p * (1 - q), p * q, (1 - p) * q, (1 - p) * (1 - q)], axis=1)
    growth = np.tensordot(outcomes, log_factors, axes=1)  # (thresholds, grid, fractions)
    flat = growth.transpose(1, 0, 2).reshape(len(EPSILON_GRID), -1)
    best = flat.argmax(axis=1)
    rows = np.arange(len(EPSILON_GRID))
    size = bets[rows, best % len(BET_FRACTIONS)]
    return best // len(BET_FRACTIONS), np.where(flat[rows, best] > 0, size, 0.0)


@lru_cache(maxsize=8)
def _log_factors(delta: float) -> tuple[Array, Array]:
    """Return the bets, ``(grid, fractions)``, and the log factors of the four outcomes of a pair.

    The outcomes are: only the first score in the event, both, only the second, none.
    """
    more = LIKELIHOOD_RATIOS[:, None]
    bets = BET_FRACTIONS / (more + delta)
    gains = (1 - delta, 1 - more - delta, -more - delta, -delta)
    return bets, np.stack([np.log1p(bets * gain) for gain in gains])


def sequential_pairs(
    *, members: Array, nonmembers: Array, delta: float, confidence: float
) -> LowerBound:
    """Compute the certified lower bound from pairs of scores, valid at any stopping time.

    Args:
        members: Scores of models with the target record, shape ``(pairs,)``, in the order of
            training.
        nonmembers: Scores of models without it, shape ``(pairs,)``.
        delta: In [0, 1).
        confidence: Probability with which the bound holds at all times together, in (0, 1).

    Returns:
        The bound after the last pair.

    Raises:
        InvalidArgument: If the numbers of scores differ, a score is not finite, or a number is
            out of range.

    References:
        Theorem 2 of docs/mathematics/sequential_bounds.md.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> bound = sequential_pairs(
        ...     members=rng.normal(3, 1, 300), nonmembers=rng.normal(0, 1, 300),
        ...     delta=1e-5, confidence=0.95,
        ... )
        >>> 2.5 < bound.epsilon < 5
        True
    """
    if len(members) != len(nonmembers):
        given = f"{len(members)} and {len(nonmembers)} scores"
        raise InvalidArgument("members", given, "as many as nonmembers: they are pairs")
    test = PairTest(delta, confidence)
    for member, nonmember in zip(members.tolist(), nonmembers.tolist(), strict=True):
        test.update(member, nonmember)
    return LowerBound(test.epsilon, BoundKind.CERTIFIED, confidence, ASSUMES_INDEPENDENT_PAIRS)


def ranks_of_pairs(members: Array, nonmembers: Array) -> SequentialRanks:
    """Return the ranks from which ``sequential_pairs`` can be recomputed.

    Args:
        members: Scores of models with the target record, shape ``(pairs,)``.
        nonmembers: Scores of models without it, shape ``(pairs,)``.

    Returns:
        Ranks from 0; equal scores have equal ranks.

    Example:
        >>> ranks_of_pairs(np.array([2.5, 3.0]), np.array([1.0, 2.5])).nonmembers
        (0, 1)
    """
    _, ranks = np.unique(np.concatenate([members, nonmembers]), return_inverse=True)
    pairs = len(members)
    return SequentialRanks(tuple(ranks[:pairs].tolist()), tuple(ranks[pairs:].tolist()))
