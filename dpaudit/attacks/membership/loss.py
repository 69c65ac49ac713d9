"""The loss threshold: the oldest attack, and the floor for all others.

Source: Yeom et al. 2018, arXiv:1709.01604, Adversary 1.
"""

from __future__ import annotations

from dpaudit.attacks.membership.scores import Array, MembershipScores, RecordScores


def loss_threshold(member_losses: Array, nonmember_losses: Array) -> MembershipScores:
    """Score by the loss alone: a smaller loss means member."""
    return MembershipScores(-member_losses, -nonmember_losses)


def by_loss(losses: Array) -> RecordScores:
    """Score records by their losses, shape ``(records,)``."""
    return RecordScores(-losses)


def by_confidence(confidences: Array) -> RecordScores:
    """Score records by their logit-scaled confidences, shape ``(records,)``.

    They order records as the losses do. The losses of very sure records round to 0; the
    confidences still tell them apart.
    """
    return RecordScores(confidences)
