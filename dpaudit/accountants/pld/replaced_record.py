"""Upper bounds for a replaced record, by way of a data set where it contributes zero.

The pair of a replaced record in a pass of random allocation has no loss of one dimension. With
``x`` and ``x'`` the two data sets and ``z`` the same one with a record of zeros,

    H_(s t)(M(x), M(x')) <= H_s(M(x), M(z)) + s H_t(M(z), M(x'))

for whole compositions ``M``. The first term is the delta of a record that is zeroed out, in the
direction "removed", and the second one in the direction "added". So any

    delta(e_1 + e_2) <= removed(e_1) + e^e_1 added(e_2)

is a bound (equation 24 of docs/mathematics/random_allocation.md).
"""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from dpaudit.accountants.numerics import CertifiedInterval
from dpaudit.accountants.releases import ReleaseCounts
from dpaudit.accountants.rounding_margins import ROUND_DOWN, ROUND_UP
from dpaudit.vocabulary.errors import AccountingError
from dpaudit.vocabulary.mechanism import (
    BinnedMatrixFactorization,
    Gaussian,
    PoissonSampled,
    RandomAllocation,
    Release,
)
from dpaudit.vocabulary.privacy_terms import Adjacency

Sufficient = Callable[[Sequence[CertifiedInterval]], float]
Directions = Callable[[float, Sufficient], tuple[CertifiedInterval, ...]]
"""Returns an interval per direction: first removed, last added; see ``PldProfile._epsilons``."""

MOST_SPLITS = 6
BALANCED = 0.02
"""Largest log ratio of both terms at which the sum is close to its least value."""
LEAST_DELTA = 1e-299


def zeroed_releases(releases: ReleaseCounts) -> ReleaseCounts | None:
    """Return the releases for a record that is zeroed out instead of replaced.

    Both records have at most the clip norm, so half of the distance between them.

    Args:
        releases: The elementary releases, each with its count.

    Returns:
        The same releases with noise in units of the clip norm; None if none of them is a random
        allocation, or one is no Gaussian.
    """
    counts: Counter[Release] = Counter()
    for release, times in releases.items():
        zeroed = _zeroed(release)
        if zeroed is None:
            return None
        counts[zeroed] += times  # several releases may be the same one in these units
    kinds = (RandomAllocation, BinnedMatrixFactorization)
    return counts if any(isinstance(release, kinds) for release in releases) else None


def _zeroed(release: Release) -> Release | None:
    """Return one release with noise in units of the clip norm; None where it is no Gaussian."""
    match release:
        case Gaussian():
            return _in_clip_norms(release)
        case PoissonSampled(Gaussian() as noise, rate):
            return PoissonSampled(_in_clip_norms(noise), rate)
        case RandomAllocation(noise, steps, selected):
            return RandomAllocation(_in_clip_norms(noise), steps, selected)
        case BinnedMatrixFactorization(noise, steps, bands, bins):
            return BinnedMatrixFactorization(_in_clip_norms(noise), steps, bands, bins)
        case _:
            return None


def _in_clip_norms(noise: Gaussian) -> Gaussian:
    """Return noise in units of the clip norm; less noise where twice as much overflows."""
    norms = 2 if noise.set_for is Adjacency.REPLACE_ONE else 1
    return Gaussian(min(noise.noise_multiplier * norms, sys.float_info.max))


@dataclass(frozen=True)
class ReplacedRecord:
    """Upper bounds for a replaced record from both directions of a record that is zeroed out.

    Attributes:
        epsilons: Intervals of epsilon at a delta, in both directions.
        deltas: Intervals of delta at an epsilon, in both directions.
    """

    epsilons: Directions
    deltas: Directions

    def epsilon(self, delta: float) -> float:
        """Return the upper bound of epsilon where both terms are half of delta.

        Args:
            delta: Above 0 and below 1.

        Returns:
            In nats; infinite where one direction has no bound, or half of delta is too small.
        """
        if delta / 2 <= LEAST_DELTA:
            return math.inf
        with suppress(AccountingError):
            first = self.epsilons(delta / 2, _first_alone)[0].upper
            rest = delta / 2 * math.exp(-first * ROUND_UP) * ROUND_DOWN
            if rest > LEAST_DELTA:
                return (first + self.epsilons(rest, _last_alone)[-1].upper) * ROUND_UP
        return math.inf

    def delta(self, epsilon: float) -> float:
        """Return the least upper bound of delta over some splits of epsilon.

        Args:
            epsilon: In nats, finite and at least 0.

        Returns:
            At most 1.
        """
        least, best, low, high = 1.0, epsilon / 2, 0.0, epsilon
        splits: list[tuple[float, float]] = []
        with suppress(AccountingError):
            for _ in range(MOST_SPLITS):
                first = _next_split(splits, low, high)
                removed = self._removed(first, _coarse)
                added = self._added(first, epsilon, _coarse)
                if (total := (removed + added) * ROUND_UP) < least:
                    least, best = total, first
                # The first term falls with its epsilon, and the second one rises.
                gap = math.log(max(removed, LEAST_DELTA)) - math.log(max(added, LEAST_DELTA))
                if abs(gap) <= BALANCED:
                    break
                splits.append((first, gap))
                low, high = (first, high) if gap > 0 else (low, first)
            narrow = self._removed(best, _first_alone) + self._added(best, epsilon, _last_alone)
            least = min(least, narrow * ROUND_UP)
        return least

    def _removed(self, first: float, sufficient: Sufficient) -> float:
        """Return the first term, rounded up."""
        return self.deltas(first, sufficient)[0].upper

    def _added(self, first: float, epsilon: float, sufficient: Sufficient) -> float:
        """Return the second term, rounded up."""
        added = self.deltas(max(0.0, (epsilon - first) * ROUND_DOWN), sufficient)[-1].upper
        log_added = first * ROUND_UP + math.log(max(added, LEAST_DELTA))
        return math.exp(min(log_added, 1.0)) * (1 + 1e-12 * (1 + abs(log_added)))


def _next_split(splits: Sequence[tuple[float, float]], low: float, high: float) -> float:
    """Return where the line through the last two log ratios is 0, or the middle."""
    if len(splits) >= 2:
        (one, its_gap), (other, other_gap) = splits[-2:]
        if its_gap != other_gap:
            found = other - other_gap * (other - one) / (other_gap - its_gap)
            if low < found < high:
                return found
    return (low + high) / 2


def _first_alone(answers: Sequence[CertifiedInterval]) -> float:
    """Narrow the first direction; whatever the other one is, it is not used."""
    return math.inf if answers else 0.0


def _last_alone(answers: Sequence[CertifiedInterval]) -> float:
    """Narrow the last direction."""
    return 0.0 if answers else math.inf


def _coarse(answers: Sequence[CertifiedInterval]) -> float:
    """Narrow no direction."""
    return math.inf
