"""Evaluation of membership scores: ROC curve, AUC and true-positive rates with intervals."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.stats import mannwhitneyu

from dpaudit.attacks.bounds import clopper_pearson_interval
from dpaudit.attacks.bounds.lower_bound import (
    threshold_ranks,
    tpr_interval_of_counts,
    tpr_limits_of_counts,
)
from dpaudit.attacks.membership.scores import MembershipScores
from dpaudit.vocabulary.arrays import FloatArray, IntArray
from dpaudit.vocabulary.audit import MembershipResult, TprAtFpr
from dpaudit.vocabulary.errors import InvalidArgument, require_open_unit
from dpaudit.vocabulary.privacy_terms import Bound

# ROC curve, and intervals of the true-positive rate at a false-positive rate.

ROC_POINTS = 400  # stored of a curve, at most
BAND_POINTS = 60  # false-positive rates of the confidence band


@dataclass(frozen=True)
class RocCurve:
    """False and true positives at every distinct threshold, from no record to all records.

    Attributes:
        false_positives: Non-members at or above each threshold, rising, shape ``(thresholds,)``.
        true_positives: Members at or above each threshold, rising, shape ``(thresholds,)``.
    """

    false_positives: IntArray
    true_positives: IntArray

    @property
    def fpr(self) -> FloatArray:
        """False-positive rate at each threshold, rising from 0 to 1."""
        return np.asarray(self.false_positives / self.false_positives[-1])

    @property
    def tpr(self) -> FloatArray:
        """True-positive rate at each threshold, rising from 0 to 1."""
        return np.asarray(self.true_positives / self.true_positives[-1])

    def at(self, fpr: float) -> int:
        """Return the index of the lowest threshold that a false-positive rate allows.

        Args:
            fpr: The largest allowed false-positive rate, in [0, 1].

        Returns:
            Index into both arrays; 0 is the threshold that no record passes.
        """
        return int(np.searchsorted(self.fpr, fpr, side="right")) - 1

    def points(self) -> tuple[tuple[float, float], ...]:
        """Return at most ``ROC_POINTS`` points (fpr, tpr), denser at small false-positive rates."""
        fpr, tpr = self.fpr, self.tpr
        if len(fpr) > ROC_POINTS:
            marks = np.unique(np.geomspace(1, len(fpr), ROC_POINTS).astype(int)) - 1
            fpr, tpr = fpr[marks], tpr[marks]
        return tuple((float(x), float(y)) for x, y in zip(fpr, tpr, strict=True))


def roc_curve(scores: MembershipScores) -> RocCurve:
    """Compute the ROC curve of scores.

    Args:
        scores: Scores of members and non-members.

    Returns:
        Counts at every distinct score, thresholds falling; the first point has no positives.
    """
    values = np.concatenate([scores.members, scores.nonmembers])
    is_member = np.arange(len(values)) < len(scores.members)
    order = np.argsort(-values, kind="stable")
    values, is_member = values[order], is_member[order]
    # Equal scores share a threshold: they pass it together or not at all.
    ends = np.append(np.flatnonzero(np.diff(values)), len(values) - 1)
    true_positives = np.concatenate([[0], np.cumsum(is_member)[ends]])
    false_positives = np.concatenate([[0], np.cumsum(~is_member)[ends]])
    return RocCurve(false_positives, true_positives)


def tpr_interval(scores: MembershipScores, *, fpr: float, confidence: float) -> Bound:
    """Compute an interval of the true-positive rate of an attack at a false-positive rate.

    The rate is that on the population, at the best threshold that ``fpr`` allows there. Given
    the model, records must be independent trials; nothing else is assumed of the scores. See
    ``bounds.error_rates`` for the method.

    Args:
        scores: Scores of members and non-members.
        fpr: The false-positive rate; above 0 and below 1.
        confidence: Probability with which the interval holds.

    Returns:
        The interval, inside [0, 1].
    """
    return tpr_interval_of_counts(
        true_positive_limits(scores, fpr=fpr, confidence=confidence),
        members=len(scores.members),
        nonmembers=len(scores.nonmembers),
        fpr=fpr,
        confidence=confidence,
    )


def true_positive_limits(
    scores: MembershipScores, *, fpr: float, confidence: float
) -> tuple[int, int]:
    """Return how many members pass each of the two thresholds of ``tpr_interval``.

    With confidence, the false-positive rate of the first threshold is at most ``fpr``, and that
    of the second is at least ``fpr``.

    Args:
        scores: Scores of members and non-members.
        fpr: The false-positive rate; above 0 and below 1.
        confidence: Confidence of ``tpr_interval``.

    Returns:
        Numbers of members above the first and at or above the second threshold.
    """
    ranks = threshold_ranks(len(scores.nonmembers), np.array([fpr]), confidence)
    least, greatest = _true_positives(scores, *ranks)
    return int(least[0]), int(greatest[0])


def roc_band(
    scores: MembershipScores, *, confidence: float
) -> tuple[tuple[float, float, float], ...]:
    """Compute intervals of the true-positive rate at a grid of false-positive rates.

    Args:
        scores: Scores of members and non-members.
        confidence: Confidence of each interval by itself.

    Returns:
        Points (false-positive rate, lower, upper bound of the true-positive rate). The rates
        run from ``1 / nonmembers`` to below 1, evenly spaced in their logarithm.
    """
    rates = np.geomspace(1 / len(scores.nonmembers), 1, BAND_POINTS + 1)[:-1]
    columns = (rates, *_tpr_limits(scores, rates, confidence))
    return tuple((float(x), float(y), float(z)) for x, y, z in zip(*columns, strict=True))


def _tpr_limits(
    scores: MembershipScores, rates: FloatArray, confidence: float
) -> tuple[FloatArray, FloatArray]:
    """Return lower and upper bounds of the true-positive rate at each false-positive rate."""
    members, nonmembers = len(scores.members), len(scores.nonmembers)
    ranks = threshold_ranks(nonmembers, rates, confidence)
    return tpr_limits_of_counts(
        _true_positives(scores, *ranks), members, ranks, nonmembers, confidence
    )


def _true_positives(
    scores: MembershipScores, strict: IntArray, loose: IntArray
) -> tuple[IntArray, IntArray]:
    """Return how many members pass the thresholds of each strict and each loose rank.

    A rank k is the k-th largest score of the non-members.
    """
    count = len(scores.nonmembers)
    members, descending = np.sort(scores.members), -np.sort(-scores.nonmembers)
    # Members that tie with a threshold count on the side that widens the interval.
    beyond = np.searchsorted(members, descending[np.maximum(strict, 1) - 1], side="right")
    reached = np.searchsorted(members, descending[np.minimum(loose, count) - 1], side="left")
    return len(members) - beyond, len(members) - reached


FALSE_POSITIVE_RATES = (0.0001, 0.001, 0.01, 0.1)
"""False-positive rates that ``evaluate`` reports, if there are enough non-members."""

INDEPENDENT_RECORDS = "given the model, records are independent trials"

# The one-sided p-value of an attack that guesses is this small once in a million evaluations.
BELOW_CHANCE_P_VALUE = 1e-6
INVERTED_AUC = 0.4  # below it, a wrong sign is the likely reason


def evaluate(
    attack: str, scores: MembershipScores, *, confidence: float, assumes: str = INDEPENDENT_RECORDS
) -> MembershipResult:
    """Compute how well scores distinguish members from non-members.

    The ``interval`` of a true-positive rate includes the uncertainty of the threshold, which
    non-members determine; ``given_threshold`` does not. False-positive rates that need more
    non-members are listed as ``unresolved``. Scores that are all equal, or significantly worse
    than chance, are no evidence of privacy: ``inconclusive`` has the reason.

    Args:
        attack: Name of the attack, for the result.
        scores: Scores of members and non-members.
        confidence: Confidence of each interval by itself; above 0 and below 1.
        assumes: The assumptions of the intervals, as text.

    Returns:
        AUC, balanced accuracy, true-positive rates and ROC curve, with intervals.

    Raises:
        InvalidArgument: If ``confidence`` is out of range, or if an AUC significantly below
            one half and below ``INVERTED_AUC`` shows that the scores have the wrong sign.

    Example:
        >>> scores = MembershipScores(np.arange(100.0, 600.0), np.arange(0.0, 500.0))
        >>> result = evaluate("loss", scores, confidence=0.95)
        >>> round(result.auc, 9), [rate.fpr for rate in result.tpr_at_fpr], result.unresolved
        (0.68, [0.01, 0.1], (0.0001, 0.001))
    """
    result = measure(attack, scores, confidence=confidence, assumes=assumes)
    if result.inconclusive is not None and result.auc < INVERTED_AUC:
        allowed = (
            "larger for members: the sign looks inverted (use the negative of a loss, or "
            "--smaller-means-member)"
        )
        raise InvalidArgument("scores", f"an AUC of {result.auc:.3f}", allowed)
    return result


def measure(
    attack: str, scores: MembershipScores, *, confidence: float, assumes: str = INDEPENDENT_RECORDS
) -> MembershipResult:
    """Compute what ``evaluate`` computes, also for scores that look inverted.

    Args:
        attack: Name of the attack, for the result.
        scores: Scores of members and non-members.
        confidence: Confidence of each interval by itself; above 0 and below 1.
        assumes: The assumptions of the intervals, as text.

    Returns:
        The result; ``inconclusive`` says if the scores are significantly worse than chance.

    Raises:
        InvalidArgument: If ``confidence`` is out of range.
    """
    require_open_unit("confidence", confidence)
    curve, nonmembers = roc_curve(scores), len(scores.nonmembers)
    auc = float(np.trapezoid(curve.tpr, curve.fpr))
    # A rate below one in the number of non-members cannot be observed.
    resolved = [rate for rate in FALSE_POSITIVE_RATES if nonmembers >= 1 / rate]
    inconclusive = _inconclusive(scores, curve, auc)
    constant = len(curve.fpr) == 2  # one distinct score
    return MembershipResult(
        attack=attack,
        members=len(scores.members),
        nonmembers=nonmembers,
        auc=auc,
        balanced_accuracy=float(((1 + curve.tpr - curve.fpr) / 2).max()),
        tpr_at_fpr=()
        if constant
        else tuple(rate_at(scores, curve, r, confidence) for r in resolved),
        roc=curve.points(),
        auc_interval=_auc_interval(scores, auc, confidence),
        balanced_accuracy_interval=_accuracy_interval(scores, curve, confidence),
        band=() if constant else roc_band(scores, confidence=confidence),
        unresolved=tuple(rate for rate in FALSE_POSITIVE_RATES if rate not in resolved),
        assumes=assumes,
        inconclusive=inconclusive,
    )


def rate_at(scores: MembershipScores, curve: RocCurve, fpr: float, confidence: float) -> TprAtFpr:
    """Compute the true-positive rate at one false-positive rate, with both intervals.

    Args:
        scores: Scores of members and non-members.
        curve: Their ROC curve.
        fpr: The false-positive rate; above 0 and below 1.
        confidence: Confidence of each interval by itself.

    Returns:
        The rate at the lowest threshold that ``fpr`` allows.
    """
    index, members = curve.at(fpr), len(scores.members)
    hits = int(curve.true_positives[index])
    around = true_positive_limits(scores, fpr=fpr, confidence=confidence)
    return TprAtFpr(
        fpr=fpr,
        tpr=hits / members,
        interval=tpr_interval_of_counts(
            around,
            members=members,
            nonmembers=len(scores.nonmembers),
            fpr=fpr,
            confidence=confidence,
        ),
        confidence=confidence,
        given_threshold=clopper_pearson_interval(
            successes=hits, trials=members, confidence=confidence
        ),
        false_positives=int(curve.false_positives[index]),
        least_hits=around[0],
        greatest_hits=around[1],
    )


def _inconclusive(scores: MembershipScores, curve: RocCurve, auc: float) -> str | None:
    """Return why these scores are no evidence either way; None if they are evidence."""
    if len(curve.fpr) == 2:
        return "every score is the same: such an attack has an AUC of 0.5 for any model"
    if auc >= 0.5:
        return None
    chance = mannwhitneyu(scores.members, scores.nonmembers, alternative="less").pvalue
    if not chance <= BELOW_CHANCE_P_VALUE:
        return None
    return (
        f"an AUC of {auc:.3f} is worse than chance (p = {chance:.1g}): members and non-members "
        "differ in other respects than membership, or the sign is wrong"
    )


def _auc_interval(scores: MembershipScores, auc: float, confidence: float) -> Bound:
    """Return a Hoeffding interval of the AUC, a two-sample U-statistic.

    With n the size of the smaller sample, P[|AUC - E| >= t] is at most 2 exp(-2 n t^2).
    Hoeffding 1963, section 5b.
    """
    smaller = min(len(scores.members), len(scores.nonmembers))
    return _interval_around(auc, math.sqrt(math.log(2 / (1 - confidence)) / (2 * smaller)))


def _accuracy_interval(scores: MembershipScores, curve: RocCurve, confidence: float) -> Bound:
    """Return an interval of the best balanced accuracy, valid for a threshold chosen afterwards.

    It holds at all thresholds at once. With probability 1 - a, an empirical distribution of n
    values is within sqrt(ln(2/a) / (2n)) of the true one everywhere (Massart 1990). Members
    and non-members get half of the failure probability each.
    """
    sizes = (len(scores.members), len(scores.nonmembers))
    errors = [math.sqrt(math.log(4 / (1 - confidence)) / (2 * size)) for size in sizes]
    best = float(((1 + curve.tpr - curve.fpr) / 2).max())
    return _interval_around(best, sum(errors) / 2)


def _interval_around(value: float, error: float) -> Bound:
    """Return ``value`` plus or minus ``error``, cut to [0, 1]."""
    return Bound(max(0.0, value - error), min(1.0, value + error))
