"""Membership inference from scores: larger always means member."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dpaudit.attacks.bounds import clopper_pearson_interval
from dpaudit.vocabulary.audit import MembershipResult, TprAtFpr
from dpaudit.vocabulary.errors import InvalidArgument

Array = NDArray[np.float64]

FALSE_POSITIVE_RATES = (0.001, 0.01, 0.1)
ROC_POINTS = 400


@dataclass(frozen=True)
class MembershipScores:
    """Scores of members and of non-members, each shape ``(records,)``, finite."""

    members: Array
    nonmembers: Array

    def __post_init__(self) -> None:
        for name, scores in (("members", self.members), ("nonmembers", self.nonmembers)):
            if scores.ndim != 1 or len(scores) == 0 or not np.isfinite(scores).all():
                raise InvalidArgument(
                    name, f"scores of shape {scores.shape}", "a finite, non-empty list of scores"
                )


def loss_threshold(member_losses: Array, nonmember_losses: Array) -> MembershipScores:
    """Score by the loss alone: a smaller loss means member (Yeom et al. 2018, arXiv:1709.01604)."""
    return MembershipScores(-member_losses, -nonmember_losses)


def evaluate(attack: str, scores: MembershipScores, *, confidence: float) -> MembershipResult:
    """Return how well ``scores`` tell members from non-members.

    The interval of a TPR is exact given the threshold, which the non-members set.
    """
    false_positives, true_positives = _roc(scores)
    members, nonmembers = len(scores.members), len(scores.nonmembers)
    fpr, tpr = false_positives / nonmembers, true_positives / members
    rates = []
    for wanted in FALSE_POSITIVE_RATES:
        last = int(np.searchsorted(fpr, wanted, side="right")) - 1
        hits = int(true_positives[last])
        interval = clopper_pearson_interval(successes=hits, trials=members, confidence=confidence)
        rates.append(TprAtFpr(wanted, hits / members, interval, confidence))
    return MembershipResult(
        attack=attack,
        members=members,
        nonmembers=nonmembers,
        auc=float(np.sum(np.diff(fpr) * (tpr[1:] + tpr[:-1]) / 2)),
        balanced_accuracy=float(((1 + tpr - fpr) / 2).max()),
        tpr_at_fpr=tuple(rates),
        roc=_thinned(fpr, tpr),
    )


def _roc(scores: MembershipScores) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return false and true positives at every distinct threshold, from none to all."""
    values = np.concatenate([scores.members, scores.nonmembers])
    is_member = np.arange(len(values)) < len(scores.members)
    order = np.argsort(-values, kind="stable")
    values, is_member = values[order], is_member[order]
    # Equal scores share a threshold: they are taken all together or not at all.
    ends = np.append(np.flatnonzero(np.diff(values)), len(values) - 1)
    true_positives = np.concatenate([[0], np.cumsum(is_member)[ends]])
    false_positives = np.concatenate([[0], np.cumsum(~is_member)[ends]])
    return false_positives, true_positives


def _thinned(fpr: Array, tpr: Array) -> tuple[tuple[float, float], ...]:
    """Return at most a few hundred points of the ROC, denser at small false-positive rates."""
    if len(fpr) > ROC_POINTS:
        marks = np.unique(np.geomspace(1, len(fpr), ROC_POINTS).astype(int)) - 1
        fpr, tpr = fpr[marks], tpr[marks]
    return tuple((float(x), float(y)) for x, y in zip(fpr, tpr, strict=True))
