"""The interval of a true-positive rate at a false-positive rate, from counts alone.

The threshold that attains a false-positive rate is not known: non-members are a sample. Above the
k-th largest of n non-members lies a share of all non-members that is Beta(k, n - k + 1)
distributed. Two of these order statistics are thresholds whose rates are surely at most, and
surely at least, the one that was asked for; Clopper & Pearson 1934 bound the share of members
beyond them. Each of the four statements may fail with a quarter of the failure probability.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import bdtr, bdtrc, bdtrik, betaincinv

from dpaudit.vocabulary.bound import Bound

Array = NDArray[np.float64]
Counts = NDArray[np.int64]

PARTS = 4  # statements that share the failure probability


def interval_of_hits(
    hits: tuple[int, int], *, members: int, nonmembers: int, fpr: float, confidence: float
) -> Bound:
    """Return the interval of the rate at ``fpr``.

    Args:
        hits: Members above the thresholds whose false-positive rates are surely at most, and
            surely at least, ``fpr``.
        members: How many members were scored.
        nonmembers: How many non-members were scored.
        fpr: The false-positive rate, in (0, 1).
        confidence: Of the interval, in (0, 1).
    """
    ranks = threshold_ranks(nonmembers, np.array([fpr]), confidence)
    counts = np.array([hits[0]]), np.array([hits[1]])
    lower, upper = limits_of_hits(counts, members, ranks, nonmembers, confidence)
    return Bound(float(lower[0]), float(upper[0]))


def threshold_ranks(nonmembers: int, rates: Array, confidence: float) -> tuple[Counts, Counts]:
    """Return which of the largest non-members are thresholds surely below and above ``rates``.

    The first is 0, and the second above ``nonmembers``, where there are too few of them.
    """
    share = (1 - confidence) / PARTS
    strict = _lower_quantile(share, nonmembers, rates)
    return strict, _upper_quantile(share, nonmembers, rates) + 1


def limits_of_hits(
    hits: tuple[Counts, Counts],
    members: int,
    ranks: tuple[Counts, Counts],
    nonmembers: int,
    confidence: float,
) -> tuple[Array, Array]:
    """Return both ends of the interval at each rate, arguments as above."""
    share, (least, greatest), (strict, loose) = (1 - confidence) / PARTS, hits, ranks
    lower = np.where(strict > 0, _lower_limit(least, members, share), 0.0)
    return lower, np.where(loose <= nonmembers, _upper_limit(greatest, members, share), 1.0)


def _lower_limit(hits: Counts, trials: int, share: float) -> Array:
    """Return Clopper and Pearson's lower limits, each of which fails with ``share``."""
    some = np.maximum(hits, 1)
    return np.where(hits > 0, betaincinv(some, trials - some + 1, share), 0.0)


def _upper_limit(hits: Counts, trials: int, share: float) -> Array:
    return 1 - _lower_limit(trials - hits, trials, share)


def _lower_quantile(share: float, trials: int, rates: Array) -> Counts:
    """Return the least k with P[Bin(trials, rate) <= k] >= ``share``."""
    k = np.clip(np.ceil(bdtrik(share, trials, rates)), 0, trials)
    k = np.where((k > 0) & (bdtr(np.maximum(k - 1, 0), trials, rates) >= share), k - 1, k)
    k = np.where(bdtr(k, trials, rates) >= share, k, k + 1)  # rounding of the inverse
    return np.asarray(k, dtype=np.int64)


def _upper_quantile(share: float, trials: int, rates: Array) -> Counts:
    """Return the least k with P[Bin(trials, rate) > k] <= ``share``."""
    k = np.clip(np.ceil(bdtrik(1 - share, trials, rates)), 0, trials)
    k = np.where((k > 0) & (bdtrc(np.maximum(k - 1, 0), trials, rates) <= share), k - 1, k)
    k = np.where(bdtrc(k, trials, rates) <= share, k, k + 1)
    return np.asarray(k, dtype=np.int64)
