"""What the gate is told of a run: claims, measurements, and what it books."""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

import msgspec

from dpaudit.vocabulary.audit import AttackReport, AuditReport, MembershipResult, TprAtFpr
from dpaudit.vocabulary.baseline import AttackRate, Baseline, rates_of
from dpaudit.vocabulary.claim import Claim
from dpaudit.vocabulary.conformance import ConformanceResult
from dpaudit.vocabulary.errors import require_delta, require_positive
from dpaudit.vocabulary.tolerance import same_number


class Declared(msgspec.Struct, frozen=True):
    """An epsilon and delta that somebody states; no ledger stands behind them."""

    epsilon: float
    delta: float

    def __post_init__(self) -> None:
        require_positive("claim_epsilon", self.epsilon)
        require_delta("delta", self.delta)


class Stated(NamedTuple):
    """What a claim of either kind says.

    Attributes:
        epsilon: At most this, by whoever the policy asks.
        delta: At this delta.
        ledger_head: Of the ledger behind it; empty where there is none.
        least: At most this, by the sharpest accountant: what measurements must not exceed,
            or the ledger is not true.
    """

    epsilon: float
    delta: float
    ledger_head: str
    least: float

    @property
    def by(self) -> str:
        """Who says ``least``."""
        return "the claim" if self.least == self.epsilon else "its ledger, by the pld accountant,"


class Source(Enum):
    """Where a measurement is, and what makes it anew."""

    AUDIT = "audit"
    ATTACK = "attack"

    @property
    def file(self) -> str:
        """The name of the file in a run directory."""
        return f"{self.value}.json"

    @property
    def command(self) -> str:
        """What writes the file."""
        return f"dpaudit {self.value} RUN"


class Measured(NamedTuple):
    """One attack and the file that it is in."""

    source: Source
    result: MembershipResult

    def rate_at(self, fpr: float) -> TprAtFpr | None:
        """Return its rate at a false-positive rate; None where it was not evaluated there."""
        same = (one for one in self.result.tpr_at_fpr if same_number(one.fpr, fpr))
        return next(same, None)


class Evidence(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that is known of what is judged; what is None was not measured.

    Attributes:
        claim: By a ledger, or declared.
        sharpest: Of the same ledger, by the sharpest accountant at the same delta; None: the
            claim itself.
        audit: What was measured: lower bounds, membership.
        attack: Further membership attacks.
        conformance: Whether the trainer does what it claims.
        booked: The run's own figures, as a later run would be compared with them.
        model_digest: SHA-256 of the model, by the ledger's seal; empty without a run.
        missing: Names of lower bounds that a complete audit of the run holds, and ``audit``
            lacks.
        missing_attacks: Names of membership attacks that it lacks.
        doubts: Why a lower bound is no evidence that the claim is true, by its name.
    """

    claim: Claim | Declared
    sharpest: Claim | None = None
    audit: AuditReport | None = None
    attack: AttackReport | None = None
    conformance: ConformanceResult | None = None
    booked: Baseline | None = None
    model_digest: str = ""
    missing: tuple[str, ...] = ()
    missing_attacks: tuple[str, ...] = ()
    doubts: tuple[tuple[str, str], ...] = ()

    @property
    def stated(self) -> Stated:
        """What is claimed, whoever claims it."""
        match self.claim:
            case Claim(epsilon=epsilon, delta=delta, ledger_head=head):
                least = epsilon if self.sharpest is None else self.sharpest.epsilon
                return Stated(epsilon.upper, delta, head, min(epsilon.upper, least.upper))
            case Declared(epsilon=epsilon, delta=delta):
                return Stated(epsilon, delta, "", epsilon)

    @property
    def measured(self) -> tuple[Measured, ...]:
        """Every attack on this very run, with the file that it is in; also what is no evidence."""
        return tuple(
            Measured(source, result)
            for source, report in self._reports
            if report.ledger_head == self.stated.ledger_head
            for result in report.membership
        )

    @property
    def attacks(self) -> tuple[Measured, ...]:
        """Every attack on this very run that is evidence, whatever it could see."""
        return tuple(one for one in self.measured if one.result.inconclusive is None)

    @property
    def rates(self) -> tuple[AttackRate, ...]:
        """Every true-positive rate that was measured on this very run."""
        return rates_of(one.result for one in self.measured)

    @property
    def silent(self) -> tuple[str, ...]:
        """Why further attacks that were made are no evidence: of another ledger, or nothing."""
        stale = [
            f"{source.file} is of another state of the ledger: {source.command}"
            for source, report in self._reports
            if report.ledger_head != self.stated.ledger_head
        ]
        nothing = [
            f"{one.result.attack}: {one.result.inconclusive}"
            for one in self.measured
            if one.result.inconclusive is not None
        ]
        return (*stale, *nothing)

    @property
    def current_audit(self) -> AuditReport | None:
        """The audit, if it is of this very ledger."""
        current = self.audit is not None and self.audit.ledger_head == self.stated.ledger_head
        return self.audit if current else None

    @property
    def _reports(self) -> tuple[tuple[Source, AuditReport | AttackReport], ...]:
        reports = ((Source.AUDIT, self.audit), (Source.ATTACK, self.attack))
        return tuple((source, report) for source, report in reports if report is not None)
