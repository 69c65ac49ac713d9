"""Audits of one training run with canaries: lower bounds on epsilon, with their power.

A fair coin includes or excludes each canary. The auditor computes one score per canary from
what the run released, and guesses the coins. What is guessed is fixed before any score is read,
by simulating the claimed mechanism.

Gradient canaries are observed at every step (``audit_gradient_canaries``) or in the final model
(``audit_final_iterate``). Input canaries are records (``audit_input_canaries``). Canary
participants of a federation are observed in each round (``audit_canary_participants``). Scores from
any framework are audited by ``audit_scores`` and ``audit_random_split``.
"""

from dpaudit.attacks.one_run.adaptive_audits import (
    InterferingSum,
    adaptive_guesses,
    audit_interfering_sums,
    simultaneous_guesses,
)
from dpaudit.attacks.one_run.canary_participants import (
    audit_canary_participants,
    audit_interfering_participants,
    canary_directions,
)
from dpaudit.attacks.one_run.gradient_canary_audits import (
    FinalIterate,
    audit_final_iterate,
    audit_gradient_canaries,
    audit_interfering_canaries,
    audit_interfering_final_iterate,
)
from dpaudit.attacks.one_run.guess_audits import audit_input_canaries
from dpaudit.attacks.one_run.observations import CanaryObservations, ClaimedMechanism, ClaimedSteps
from dpaudit.attacks.one_run.score_file_audit import (
    audit_random_split,
    audit_scores,
    sizes_fit_fair_coins,
)

__all__ = [
    "CanaryObservations",
    "ClaimedMechanism",
    "ClaimedSteps",
    "FinalIterate",
    "InterferingSum",
    "adaptive_guesses",
    "audit_canary_participants",
    "audit_final_iterate",
    "audit_gradient_canaries",
    "audit_input_canaries",
    "audit_interfering_canaries",
    "audit_interfering_final_iterate",
    "audit_interfering_participants",
    "audit_interfering_sums",
    "audit_random_split",
    "audit_scores",
    "canary_directions",
    "simultaneous_guesses",
    "sizes_fit_fair_coins",
]
