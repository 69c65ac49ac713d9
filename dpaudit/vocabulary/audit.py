"""What was measured: lower bounds on epsilon, and how well members can be told apart."""

from __future__ import annotations

import math
from enum import Enum

import msgspec

from dpaudit.vocabulary import SCHEMA_VERSION
from dpaudit.vocabulary.bound import Bound
from dpaudit.vocabulary.errors import InvalidArgument, require_open_unit


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
        assumes: In words, what a conditional bound assumes.
        trials: Canaries that were read.
        guesses: How many of them were guessed.
        correct: How many guesses were right.
        thresholds: How the guesses were fixed, in words.
        detectable_epsilon: The least true epsilon at which this audit, repeated, would have
            refuted the claim 95 times in 100; None where that is not known or unreachable.
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
    detectable_epsilon: float | None = None

    def __post_init__(self) -> None:
        require_open_unit("confidence", self.confidence)
        if not 0 <= self.epsilon_lower < math.inf:
            raise InvalidArgument("epsilon_lower", self.epsilon_lower, "at least 0 and finite")


class TprAtFpr(msgspec.Struct, frozen=True):
    """True-positive rate of an attack at a false-positive rate, with its exact interval."""

    fpr: float
    tpr: float
    interval: Bound
    confidence: float


class MembershipResult(msgspec.Struct, frozen=True):
    """How well an attack tells members from non-members.

    Attributes:
        attack: Its name.
        members: How many members were scored.
        nonmembers: How many non-members were scored.
        auc: Area under the ROC curve, in [0, 1].
        balanced_accuracy: Of the best threshold, in hindsight.
        tpr_at_fpr: Rates at small false-positive rates.
        roc: Points (false-positive rate, true-positive rate), rising.
    """

    attack: str
    members: int
    nonmembers: int
    auc: float
    balanced_accuracy: float
    tpr_at_fpr: tuple[TprAtFpr, ...]
    roc: tuple[tuple[float, float], ...]


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
