"""The ROC of scores, and the interval of a true-positive rate at a false-positive rate.

The threshold that attains a false-positive rate is not known: non-members are a sample.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaincinv
from scipy.stats import binom

from dpaudit.attacks.membership.scores import Array, MembershipScores
from dpaudit.vocabulary.bound import Bound

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

    Above the k-th largest of n non-members lies a share of all non-members that is
    Beta(k, n - k + 1) distributed. Two of these order statistics are thresholds whose rates
    are at most, and at least, ``fpr``; Clopper & Pearson 1934 bound the members beyond them.
    Each of the four statements may fail with a quarter of 1 - ``confidence``. Nothing is
    assumed of the scores but that records are independent trials, given the model.
    """
    lower, upper = _intervals(scores, np.array([fpr]), confidence)
    return Bound(float(lower[0]), float(upper[0]))


def band(scores: MembershipScores, *, confidence: float) -> tuple[tuple[float, float, float], ...]:
    """Return (false-positive rate, least, greatest true-positive rate), each by itself."""
    rates = np.geomspace(1 / len(scores.nonmembers), 1, BAND_POINTS + 1)[:-1]
    columns = (rates, *_intervals(scores, rates, confidence))
    return tuple((float(x), float(y), float(z)) for x, y, z in zip(*columns, strict=True))


def _intervals(scores: MembershipScores, rates: Array, confidence: float) -> tuple[Array, Array]:
    share, count = (1 - confidence) / 4, len(scores.nonmembers)
    members, descending = np.sort(scores.members), -np.sort(-scores.nonmembers)
    strict = binom.ppf(share, count, rates).astype(np.int64)
    loose = binom.isf(share, count, rates).astype(np.int64) + 1
    # Scores that equal a threshold count where they widen the interval.
    beyond = np.searchsorted(members, descending[np.maximum(strict, 1) - 1], side="right")
    reached = np.searchsorted(members, descending[np.minimum(loose, count) - 1], side="left")
    least, greatest = len(members) - beyond, len(members) - reached
    lower = np.where(strict > 0, _lower_limit(least, len(members), share), 0.0)
    return lower, np.where(loose <= count, _upper_limit(greatest, len(members), share), 1.0)


def _lower_limit(hits: NDArray[np.int64], trials: int, share: float) -> Array:
    """Return Clopper and Pearson's lower limits, each of which fails with ``share``."""
    some = np.maximum(hits, 1)
    return np.where(hits > 0, betaincinv(some, trials - some + 1, share), 0.0)


def _upper_limit(hits: NDArray[np.int64], trials: int, share: float) -> Array:
    return 1 - _lower_limit(trials - hits, trials, share)
