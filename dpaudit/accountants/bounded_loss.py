"""Largest privacy losses: pure epsilon, and what it says of delta.

The loss of a pure mechanism never exceeds an epsilon. A composition's loss never exceeds the sum
S of these, and S is its epsilon at delta 0. As 1 - e^(epsilon - L) rises with the loss L,

    delta(epsilon) <= 1 - e^(epsilon - S)  for epsilon < S, and delta(epsilon) = 0 from S on.

Sums are exact fractions, so that a user who asks for exactly S gets 0.

References:
    Dwork & Roth (2014), Theorem 3.16; Balle, Barthe & Gaboardi (2018), arXiv:1807.01647.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

from dpaudit.accountants.naive import release_epsilon
from dpaudit.accountants.releases import ReleaseCounts
from dpaudit.accountants.rounding_margins import ROUND_DOWN, ROUND_UP
from dpaudit.accountants.sparse_vector import attained_parts, guarantee_parts
from dpaudit.vocabulary.errors import AccountingError
from dpaudit.vocabulary.mechanism import (
    DiscreteLaplace,
    Exponential,
    FixedThresholdSparseVector,
    Laplace,
    MonotoneSparseVector,
    NumericSparseVector,
    PoissonSampled,
    PureDP,
    RandomizedResponse,
    Release,
    SampledWithoutReplacement,
    Shuffled,
    SparseVector,
    SparseVectorMechanism,
)
from dpaudit.vocabulary.pairs import DominatingPair, PairMasses
from dpaudit.vocabulary.privacy_terms import Adjacency, Bound

PAIR_ROUNDING = 1e-11
"""Error of a loss: masses may be 1e-12 from a sum of 1, by which they are divided."""
PURE_RELEASES = (Laplace, DiscreteLaplace, RandomizedResponse, PureDP, Exponential)


@dataclass(frozen=True)
class LargestLoss:
    """Bounds of the least upper bound of a loss, over all neighbors.

    Attributes:
        lower: In nats; some neighbors come arbitrarily close to it.
        upper: In nats.
    """

    lower: Fraction
    upper: Fraction

    @property
    def epsilon(self) -> Bound:
        """Epsilon at delta 0, rounded outward."""
        return Bound(_float_below(self.lower), _float_above(self.upper))

    def delta(self, epsilon: float) -> float:
        """Bound delta from above.

        Args:
            epsilon: Privacy loss in nats, finite and at least 0.

        Returns:
            1 - e^(epsilon - S), rounded up; exactly 0 from S on.
        """
        left = self.upper - Fraction(epsilon)
        return min(1.0, -math.expm1(-_float_above(left)) * ROUND_UP) if left > 0 else 0.0


def largest_loss(releases: ReleaseCounts, adjacency: Adjacency) -> LargestLoss | None:
    """Bound the loss of a composition of pure mechanisms.

    Args:
        releases: The elementary releases, each with its count.
        adjacency: Neighbor relation.

    Returns:
        Bounds of the sum; None where the loss of a release is unbounded, or no bound is known.
    """
    lower = upper = Fraction(0)
    for release, times in releases.items():
        own = _release_loss(release, adjacency)
        if own is None:
            return None
        lower, upper = lower + times * own.lower, upper + times * own.upper
    return LargestLoss(lower, upper)


def _release_loss(release: Release, adjacency: Adjacency) -> LargestLoss | None:
    """Return the bounds of one release; None if its loss is unbounded."""
    match release:
        case Laplace(scale, sensitivity) | DiscreteLaplace(scale, sensitivity):
            return _exactly(Fraction(sensitivity) / Fraction(scale))
        case PureDP(epsilon) | Exponential(epsilon):
            return _exactly(Fraction(epsilon))
        case Shuffled(inner):  # attained where every report is one that the others rarely send
            return _release_loss(inner, adjacency)
        case RandomizedResponse():
            above = Fraction(release_epsilon(release, 0.0, adjacency))
            return LargestLoss(above * Fraction(ROUND_DOWN) ** 2, above)
        case DominatingPair(upper, lower, _, error):
            most, least = _pair_loss(upper), _pair_loss(lower)
            if most is None or least is None:
                return None
            slack = Fraction(PAIR_ROUNDING + 2.01 * error)
            return LargestLoss(max(Fraction(0), Fraction(least) - slack), Fraction(most) + slack)
        case PoissonSampled(inner) | SampledWithoutReplacement(inner):
            return _sampled_loss(release, inner, adjacency)
        case SparseVector() | MonotoneSparseVector() | FixedThresholdSparseVector():
            return _sparse_vector_loss(release, adjacency)
        case NumericSparseVector():
            return _sparse_vector_loss(release, adjacency)
        case _:
            return None


def _sparse_vector_loss(release: SparseVectorMechanism, adjacency: Adjacency) -> LargestLoss | None:
    """Return the sum of a sparse vector technique's guarantees, and of what it attains."""
    above = largest_loss(dict(guarantee_parts(release)), adjacency)
    below = largest_loss(dict(attained_parts(release)), adjacency)
    if above is None or below is None:
        return None
    return LargestLoss(min(below.lower, above.upper), above.upper)


def _pair_loss(masses: PairMasses) -> float | None:
    """Return the largest loss of either direction, about; None if one outcome lacks a mass."""
    pairs = [(p, q) for p, q in zip(masses.p, masses.q, strict=True) if p > 0 or q > 0]
    if not all(p > 0 and q > 0 for p, q in pairs):
        return None
    return max(abs(math.log(p) - math.log(q)) for p, q in pairs)


def _sampled_loss(release: Release, inner: Release, adjacency: Adjacency) -> LargestLoss | None:
    """Return the bounds of a sampled release, which are the same for Poisson sampling of records.

    A removed record's loss reaches log(1 - q + q e^epsilon), as some outputs have loss epsilon.
    """
    if not isinstance(inner, PURE_RELEASES):
        return None
    try:
        above = Fraction(release_epsilon(release, 0.0, adjacency))
    except AccountingError:
        return None
    attained = isinstance(release, PoissonSampled) and adjacency is Adjacency.ADD_OR_REMOVE_ONE
    return LargestLoss(above * Fraction(ROUND_DOWN) ** 4 if attained else Fraction(0), above)


def _exactly(loss: Fraction) -> LargestLoss:
    return LargestLoss(loss, loss)


def _float_above(value: Fraction) -> float:
    """Return the least double of at least ``value``."""
    try:
        near = float(value)
    except OverflowError:
        return math.inf
    return near if Fraction(near) >= value else math.nextafter(near, math.inf)


def _float_below(value: Fraction) -> float:
    """Return the largest double of at most ``value``."""
    try:
        near = float(value)
    except OverflowError:
        return math.nextafter(math.inf, 0.0)
    return near if Fraction(near) <= value else math.nextafter(near, 0.0)
