"""What was measured: lower bounds on epsilon, and how well members can be told apart."""

from __future__ import annotations

from enum import Enum

import msgspec

from dpaudit.vocabulary import SCHEMA_VERSION
from dpaudit.vocabulary.bound import Bound
from dpaudit.vocabulary.errors import (
    InvalidArgument,
    require_count,
    require_not_negative,
    require_open_unit,
    require_part,
    require_rate,
)
from dpaudit.vocabulary.estimators import Estimator
from dpaudit.vocabulary.tolerance import ROUNDED

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
        inconclusive: Why this bound is no evidence that the claim is true; None where it is.
        estimator: Which function of the data the bound is, with the statistics that it reads
            beside trials, guesses and correct: whoever judges the bound recomputes it. None
            where an older version wrote the file.
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
    estimator: Estimator | None = None

    def __post_init__(self) -> None:
        require_open_unit("confidence", self.confidence)
        require_not_negative("epsilon_lower", self.epsilon_lower)
        if not 0 <= self.delta < 1:
            raise InvalidArgument("delta", self.delta, "at least 0 and below 1")
        require_count("trials", self.trials, least=0)
        require_part("guesses", self.guesses, self.trials)
        require_part("correct", self.correct, self.guesses)
        for name in ("detectable_epsilon", "greatest_epsilon", "refutes_epsilon"):
            value = getattr(self, name)
            if value is not None:
                require_not_negative(name, value)


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
        least_hits: How many members pass the threshold whose false-positive rate is surely at
            most ``fpr``; None where an older version wrote the file.
        greatest_hits: How many pass the threshold whose rate is surely at least ``fpr``.
    """

    fpr: float
    tpr: float
    interval: Bound
    confidence: float
    given_threshold: Bound | None = None
    false_positives: int | None = None
    least_hits: int | None = None
    greatest_hits: int | None = None

    def __post_init__(self) -> None:
        require_open_unit("fpr", self.fpr)
        require_rate("tpr", self.tpr)
        require_open_unit("confidence", self.confidence)
        _require_interval("interval", self.interval, self.tpr)
        _require_interval("given_threshold", self.given_threshold, self.tpr)
        for name in ("false_positives", "least_hits", "greatest_hits"):
            count = getattr(self, name)
            if count is not None:
                require_count(name, count, least=0)


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

    def __post_init__(self) -> None:
        require_count("members", self.members)
        require_count("nonmembers", self.nonmembers)
        require_rate("auc", self.auc)
        require_rate("balanced_accuracy", self.balanced_accuracy)
        _require_interval("auc_interval", self.auc_interval, self.auc)
        _require_interval(
            "balanced_accuracy_interval", self.balanced_accuracy_interval, self.balanced_accuracy
        )
        for rate in (*self.unresolved, *_numbers(self.roc), *_numbers(self.band)):
            require_rate("rate", rate)
        for one in self.tpr_at_fpr:
            self._require_possible(one)

    def _require_possible(self, rate: TprAtFpr) -> None:
        """Refuse counts that these many members and non-members cannot have."""
        if rate.false_positives is not None:
            require_part("false_positives", rate.false_positives, self.nonmembers)
        for name in ("least_hits", "greatest_hits"):
            count = getattr(rate, name)
            if count is not None:
                require_part(name, count, self.members)


class AttackReport(msgspec.Struct, frozen=True):
    """Attacks side by side on the same models and records.

    Attributes:
        attacked: In words, what was attacked and with what.
        confidence: Of each interval by itself.
        membership: One result an attack.
        ledger_head: Of the run that was attacked, if it was one.
        files: SHA-256 of the files beside the run's own that were read, by what they are.
    """

    attacked: str
    confidence: float
    membership: tuple[MembershipResult, ...]
    ledger_head: str = ""
    files: dict[str, str] = {}
    schema_version: str = SCHEMA_VERSION

    def __post_init__(self) -> None:
        require_open_unit("confidence", self.confidence)


class AuditReport(msgspec.Struct, frozen=True):
    """Everything that one audit measured on one run.

    Attributes:
        ledger_head: Of the run that was measured; empty if it was none.
        confidence: Probability with which all ``bounds`` hold together: the failure
            probability is shared out.
        bounds: Lower bounds on epsilon.
        membership: Attacks.
        heldout_accuracy: Of the model, where it was measured.
        unseen_steps: Steps that were interrupted after their noise was drawn: they showed
            nothing, and bounds are held against the others.
        files: SHA-256 of the files beside the run's own that were measured, by what they are.
    """

    ledger_head: str
    confidence: float
    bounds: tuple[AuditResult, ...]
    membership: tuple[MembershipResult, ...]
    heldout_accuracy: float | None = None
    unseen_steps: int = 0
    files: dict[str, str] = {}
    schema_version: str = SCHEMA_VERSION

    def __post_init__(self) -> None:
        require_open_unit("confidence", self.confidence)
        if self.heldout_accuracy is not None:
            require_rate("heldout_accuracy", self.heldout_accuracy)
        require_count("unseen_steps", self.unseen_steps, least=0)
        of_bounds = [one.confidence for one in self.bounds if one.kind is not BoundKind.ESTIMATE]
        failure = sum(1 - confidence for confidence in of_bounds)
        if not failure <= (1 - self.confidence) * (1 + ROUNDED) + 1e-12:
            allowed = f"at most {1 - failure:.6g}, with which all of its bounds hold together"
            raise InvalidArgument("confidence", self.confidence, allowed)


def _numbers(points: tuple[tuple[float, ...], ...]) -> tuple[float, ...]:
    return tuple(number for point in points for number in point)


def _require_interval(name: str, interval: Bound | None, value: float) -> None:
    """Refuse an interval that does not hold the value that was found, or leaves [0, 1]."""
    if interval is None:
        return
    require_rate(f"{name}.lower", interval.lower)
    require_rate(f"{name}.upper", interval.upper)
    slack = ROUNDED  # of a share that was computed in another order
    if not interval.lower - slack <= value <= interval.upper + slack:
        given = f"{interval.lower:g} to {interval.upper:g}"
        raise InvalidArgument(name, given, f"one that holds the rate that was found, {value:g}")
