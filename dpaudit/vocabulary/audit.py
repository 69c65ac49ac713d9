"""What was measured: lower bounds on epsilon, and how well members can be told apart."""

from __future__ import annotations

import math
from enum import Enum

import msgspec

from dpaudit.vocabulary import SCHEMA_VERSION
from dpaudit.vocabulary.bound import Bound
from dpaudit.vocabulary.errors import InvalidArgument, require_open_unit

POWER = 0.95
"""How often an audit of some power would see what it is said to see."""


class BoundKind(Enum):
    """What a lower bound rests on; printed with every one."""

    CERTIFIED = "certified"
    """Holds with its confidence for any mechanism, by the fairness of the coins alone."""

    CONDITIONAL = "conditional"
    """Holds inside a named family or under a named independence."""

    ESTIMATE = "estimate"
    """A point estimate: no bound."""


class AuditResult(msgspec.Struct, frozen=True):
    """One lower bound on epsilon.

    Attributes:
        name: Which canaries were read, and how.
        method: The estimator and its source.
        kind: What the bound rests on.
        epsilon_lower: The bound, in nats.
        delta: The delta that it is for.
        confidence: Probability with which it holds.
        assumes: In words, what it assumes.
        states: In words, what exactly is refuted below the bound.
        trials: Canaries that were read.
        guesses: How many of them were guessed.
        correct: How many guesses were right.
        thresholds: How the guesses were fixed, in words.
        registered: Digest of what was fixed before a score was read.
        detectable_epsilon: The least true epsilon at which this audit, repeated, would have
            refuted the claim 95 times in 100; None where that is not known or unreachable.
        greatest_epsilon: The bound had every guess been right: no outcome of this audit could
            have shown more. None where that is not known.
        refutes_epsilon: The claim that ``detectable_epsilon`` is the power against.
        inconclusive: Why this bound is no evidence either way; None where it is.
    """

    name: str
    method: str
    kind: BoundKind
    epsilon_lower: float
    delta: float
    confidence: float
    assumes: str
    trials: int
    guesses: int
    correct: int
    thresholds: str
    states: str = ""
    registered: str | None = None
    detectable_epsilon: float | None = None
    greatest_epsilon: float | None = None
    refutes_epsilon: float | None = None
    inconclusive: str | None = None

    def __post_init__(self) -> None:
        require_open_unit("confidence", self.confidence)
        if not 0 <= self.epsilon_lower < math.inf:
            raise InvalidArgument("epsilon_lower", self.epsilon_lower, "at least 0 and finite")


class TprAtFpr(msgspec.Struct, frozen=True):
    """True-positive rate of an attack at a false-positive rate, with its exact interval.

    Attributes:
        fpr: The false-positive rate that was asked for.
        tpr: At the lowest threshold that lets no more of the non-members pass.
        interval: Of the rate that the attack has at ``fpr`` on all records, of which members
            and non-members are samples: the threshold is as uncertain as the rate.
        confidence: Of each interval by itself.
        given_threshold: Of the rate at that very threshold, as if it had been fixed before
            any score was read: Clopper and Pearson's; None where it was not computed.
        false_positives: How many non-members pass that threshold.
    """

    fpr: float
    tpr: float
    interval: Bound
    confidence: float
    given_threshold: Bound | None = None
    false_positives: int | None = None


class MembershipResult(msgspec.Struct, frozen=True):
    """How well an attack tells members from non-members.

    Attributes:
        attack: Its name.
        members: How many members were scored.
        nonmembers: How many non-members were scored.
        auc: Area under the ROC curve, in [0, 1].
        balanced_accuracy: Of the best threshold, in hindsight.
        tpr_at_fpr: Rates at small false-positive rates; empty where every score is the same.
        roc: Points (false-positive rate, true-positive rate), rising.
        auc_interval: Of the AUC, exact for any scores.
        balanced_accuracy_interval: Of the best threshold's, which pays for the choice.
        band: Points (false-positive rate, least, greatest true-positive rate), each by itself.
        unresolved: False-positive rates that too few non-members were there to see.
        assumes: In words, what the intervals assume.
        inconclusive: Why these figures are no evidence either way; None where they are.
    """

    attack: str
    members: int
    nonmembers: int
    auc: float
    balanced_accuracy: float
    tpr_at_fpr: tuple[TprAtFpr, ...]
    roc: tuple[tuple[float, float], ...]
    auc_interval: Bound | None = None
    balanced_accuracy_interval: Bound | None = None
    band: tuple[tuple[float, float, float], ...] = ()
    unresolved: tuple[float, ...] = ()
    assumes: str = ""
    inconclusive: str | None = None


class AttackReport(msgspec.Struct, frozen=True):
    """Attacks side by side on the same models and records.

    Attributes:
        attacked: In words, what was attacked and with what.
        confidence: Of each interval by itself.
        membership: One result an attack.
        ledger_head: Of the run that was attacked, if it was one.
    """

    attacked: str
    confidence: float
    membership: tuple[MembershipResult, ...]
    ledger_head: str = ""
    schema_version: str = SCHEMA_VERSION


class AuditReport(msgspec.Struct, frozen=True):
    """Everything that one audit measured on one run.

    ``bounds`` hold together with ``confidence``: the failure probability is shared out.
    """

    ledger_head: str
    confidence: float
    bounds: tuple[AuditResult, ...]
    membership: tuple[MembershipResult, ...]
    heldout_accuracy: float | None = None
    schema_version: str = SCHEMA_VERSION
