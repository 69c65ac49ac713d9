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
