"""Audits of one training run: canaries with fair coins, lower bounds with their power."""

from dpaudit.attacks.one_run.claimed import Claimed
from dpaudit.attacks.one_run.final import (
    FinalIterate,
    audit_final_iterate,
    audit_interfering_final_iterate,
)
from dpaudit.attacks.one_run.gradient import audit_gradient_canaries, audit_interfering_canaries
from dpaudit.attacks.one_run.inputs import audit_input_canaries
from dpaudit.attacks.one_run.likelihood import ClaimedSteps
from dpaudit.attacks.one_run.random_split import audit_random_split, sizes_of_fair_coins
from dpaudit.attacks.one_run.scored import audit_scores
from dpaudit.attacks.one_run.seen import Seen

__all__ = [
    "Claimed",
    "ClaimedSteps",
    "FinalIterate",
    "Seen",
    "audit_final_iterate",
    "audit_gradient_canaries",
    "audit_input_canaries",
    "audit_interfering_canaries",
    "audit_interfering_final_iterate",
    "audit_random_split",
    "audit_scores",
    "sizes_of_fair_coins",
]
