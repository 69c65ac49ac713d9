"""Estimate of a model's vulnerability from its losses alone, without reference models."""

from __future__ import annotations

from dpaudit.attacks.membership.evaluation import rate_at, roc_curve
from dpaudit.attacks.membership.scores import MembershipScores
from dpaudit.vocabulary.audit import TprAtFpr
from dpaudit.vocabulary.errors import require_open_unit


def loss_tail_rate(scores: MembershipScores, *, fnr: float, confidence: float) -> TprAtFpr:
    """Compute the true-negative rate of the loss attack at a false-negative rate.

    Training removes members from the tail of large losses. So the share of the non-members with
    a larger loss than all but ``fnr`` of the members predicts the true-positive rate of LiRA at
    the same false-positive rate. It is an estimate: nothing bounds LiRA's rate by it.

    Args:
        scores: Scores of the loss attack, such as negative losses; larger means member.
        fnr: The false-negative rate; above 0 and below 1.
        confidence: Confidence of the interval of the true-negative rate.

    Returns:
        ``tpr`` is the true-negative rate and ``fpr`` the false-negative rate.

    Raises:
        InvalidArgument: If a number is out of range.

    References:
        Dodd, Krco, Shilov & de Montjoye (2025), arXiv:2510.19773. Written from the abstract and
        summaries; the paper itself was not at hand.

    Example:
        >>> import numpy as np
        >>> scores = MembershipScores(-np.arange(100.0), -np.arange(50.0, 150.0))
        >>> loss_tail_rate(scores, fnr=0.01, confidence=0.95).tpr
        0.51
    """
    # Negated scores with exchanged roles: non-members are what is found, by large losses.
    require_open_unit("fnr", fnr)
    require_open_unit("confidence", confidence)
    exchanged = MembershipScores(-scores.nonmembers, -scores.members)
    return rate_at(exchanged, roc_curve(exchanged), fnr, confidence)
