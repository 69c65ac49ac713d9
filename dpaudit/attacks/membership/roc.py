"""The ROC of scores, and the interval of a true-positive rate at a false-positive rate.

The threshold that attains a false-positive rate is not known: non-members are a sample.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dpaudit.attacks.bounds.rate_intervals import (
    interval_of_hits,
    limits_of_hits,
    threshold_ranks,
)
from dpaudit.attacks.membership.scores import Array, MembershipScores
from dpaudit.vocabulary.bound import Bound

Counts = NDArray[np.int64]

ROC_POINTS = 400
BAND_POINTS = 60


@dataclass(frozen=True)
class Roc:
    """Counts at every distinct threshold, from one that takes none to one that takes all."""

    false_positives: NDArray[np.int64]
    true_positives: NDArray[np.int64]

    @property
    def fpr(self) -> Array:
        """False-positive rates, rising."""
        return np.asarray(self.false_positives / self.false_positives[-1])

    @property
    def tpr(self) -> Array:
        """True-positive rates, rising."""
        return np.asarray(self.true_positives / self.true_positives[-1])

    def at(self, fpr: float) -> int:
        """Return the place of the lowest threshold whose false-positive rate is allowed."""
        return int(np.searchsorted(self.fpr, fpr, side="right")) - 1

    def points(self) -> tuple[tuple[float, float], ...]:
        """Return at most a few hundred points, denser at small false-positive rates."""
        fpr, tpr = self.fpr, self.tpr
        if len(fpr) > ROC_POINTS:
            marks = np.unique(np.geomspace(1, len(fpr), ROC_POINTS).astype(int)) - 1
            fpr, tpr = fpr[marks], tpr[marks]
        return tuple((float(x), float(y)) for x, y in zip(fpr, tpr, strict=True))


def roc(scores: MembershipScores) -> Roc:
    """Return false and true positives at every distinct threshold."""
    values = np.concatenate([scores.members, scores.nonmembers])
    is_member = np.arange(len(values)) < len(scores.members)
    order = np.argsort(-values, kind="stable")
    values, is_member = values[order], is_member[order]
    # Equal scores share a threshold: they are taken all together or not at all.
    ends = np.append(np.flatnonzero(np.diff(values)), len(values) - 1)
    true_positives = np.concatenate([[0], np.cumsum(is_member)[ends]])
    false_positives = np.concatenate([[0], np.cumsum(~is_member)[ends]])
    return Roc(false_positives, true_positives)


def tpr_interval(scores: MembershipScores, *, fpr: float, confidence: float) -> Bound:
    """Return an interval of the best true-positive rate that ``fpr`` allows, over all thresholds.

    See ``bounds.rate_intervals``. Nothing is assumed of the scores but that records are
    independent trials, given the model.
    """
    return interval_of_hits(
        hits_around(scores, fpr=fpr, confidence=confidence),
        members=len(scores.members),
        nonmembers=len(scores.nonmembers),
        fpr=fpr,
        confidence=confidence,
    )


def hits_around(scores: MembershipScores, *, fpr: float, confidence: float) -> tuple[int, int]:
    """Return how many members pass the two thresholds that ``tpr_interval`` reads.

    Their false-positive rates are surely at most, and surely at least, ``fpr``.
    """
    ranks = threshold_ranks(len(scores.nonmembers), np.array([fpr]), confidence)
    least, greatest = _hits(scores, *ranks)
    return int(least[0]), int(greatest[0])


def band(scores: MembershipScores, *, confidence: float) -> tuple[tuple[float, float, float], ...]:
    """Return (false-positive rate, least, greatest true-positive rate), each by itself."""
    rates = np.geomspace(1 / len(scores.nonmembers), 1, BAND_POINTS + 1)[:-1]
    columns = (rates, *_intervals(scores, rates, confidence))
    return tuple((float(x), float(y), float(z)) for x, y, z in zip(*columns, strict=True))


def _intervals(scores: MembershipScores, rates: Array, confidence: float) -> tuple[Array, Array]:
    members, nonmembers = len(scores.members), len(scores.nonmembers)
    ranks = threshold_ranks(nonmembers, rates, confidence)
    return limits_of_hits(_hits(scores, *ranks), members, ranks, nonmembers, confidence)


def _hits(scores: MembershipScores, strict: Counts, loose: Counts) -> tuple[Counts, Counts]:
    """Return how many members pass both thresholds."""
    count = len(scores.nonmembers)
    members, descending = np.sort(scores.members), -np.sort(-scores.nonmembers)
    # Scores that equal a threshold count where they widen the interval.
    beyond = np.searchsorted(members, descending[np.maximum(strict, 1) - 1], side="right")
    reached = np.searchsorted(members, descending[np.minimum(loose, count) - 1], side="left")
    return len(members) - beyond, len(members) - reached
