"""Evidence that the rules of a policy are evaluated on: claims, measurements, recorded figures."""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

import msgspec

from dpaudit.vocabulary.audit import AttackReport, AuditReport, MembershipResult, TprAtFpr
from dpaudit.vocabulary.baseline import AttackRate, Baseline, measured_rates
from dpaudit.vocabulary.claim import Claim
from dpaudit.vocabulary.conformance import ConformanceResult
from dpaudit.vocabulary.errors import require_delta, require_positive
from dpaudit.vocabulary.rounding import same_number


class DeclaredClaim(msgspec.Struct, frozen=True):
    """An epsilon and a delta that the user declares, without a ledger that supports them.

    Attributes:
        epsilon: The declared upper bound, in nats, above 0.
        delta: The declared delta, in (0, 1).
    """

    epsilon: float
    delta: float

    def __post_init__(self) -> None:
        require_positive("claim_epsilon", self.epsilon)
        require_delta("delta", self.delta)


class ClaimFigures(NamedTuple):
    """The figures of a claim of either kind.

    Attributes:
        epsilon: Upper bound by the policy's accountant, in nats.
        delta: The delta of both upper bounds.
        ledger_head: Head of the ledger that the claim is computed from; empty if declared.
        sharpest: Upper bound by the sharpest accountant. If a valid lower bound exceeds it, the
            ledger is not true.
    """

    epsilon: float
    delta: float
    ledger_head: str
    sharpest: float

    @property
    def source(self) -> str:
        """The source of ``sharpest``, for messages."""
        return "the claim" if self.sharpest == self.epsilon else "its ledger (pld accountant)"


class ReportSource(Enum):
    """The file that holds a measurement, and the command that writes it."""

    AUDIT = "audit"
    ATTACK = "attack"

    @property
    def file(self) -> str:
        """Name of the file in a run directory."""
        return f"{self.value}.json"

    @property
    def command(self) -> str:
        """The command that writes the file."""
        return f"dpaudit {self.value} RUN"


class MembershipEvidence(NamedTuple):
    """The result of one membership attack, and the file that holds it.

    Attributes:
        source: The file.
        result: The attack's result.
    """

    source: ReportSource
    result: MembershipResult

    def rate_at(self, fpr: float) -> TprAtFpr | None:
        """Find the rate at a false-positive rate.

        Args:
            fpr: The false-positive rate.

        Returns:
            The true-positive rate with its interval; None where the attack was not evaluated at
            ``fpr``.
        """
        same = (one for one in self.result.tpr_at_fpr if same_number(one.fpr, fpr))
        return next(same, None)


class Evidence(msgspec.Struct, frozen=True, kw_only=True):
    """All evidence on one run, or on measurements without a run; None means not measured.

    Attributes:
        claim: Computed from a ledger, or declared.
        sharpest: Claim of the same ledger by the sharpest accountant at the same delta; None:
            ``claim`` itself.
        audit: Lower bounds and membership attacks of ``dpaudit audit``.
        attack: Further membership attacks, of ``dpaudit attack``.
        conformance: Result of the conformance check of the trainer.
        recorded: The run's own figures, as a later run would be compared with them.
        model_digest: SHA-256 of the model, by the ledger's seal; empty without a run.
        missing: Names of lower bounds that a complete audit of the run holds, and ``audit``
            lacks.
        missing_attacks: Names of membership attacks that ``audit`` lacks.
        doubts: Pairs of a bound's name and the reason why it cannot support the claim.
    """

    claim: Claim | DeclaredClaim
    sharpest: Claim | None = None
    audit: AuditReport | None = None
    attack: AttackReport | None = None
    conformance: ConformanceResult | None = None
    recorded: Baseline | None = None
    model_digest: str = ""
    missing: tuple[str, ...] = ()
    missing_attacks: tuple[str, ...] = ()
    doubts: tuple[tuple[str, str], ...] = ()

    @property
    def claim_figures(self) -> ClaimFigures:
        """The figures of the claim, whether declared or computed from a ledger."""
        match self.claim:
            case Claim(epsilon=epsilon, delta=delta, ledger_head=head):
                least = epsilon if self.sharpest is None else self.sharpest.epsilon
                return ClaimFigures(epsilon.upper, delta, head, min(epsilon.upper, least.upper))
            case DeclaredClaim(epsilon=epsilon, delta=delta):
                return ClaimFigures(epsilon, delta, "", epsilon)

    @property
    def measured(self) -> tuple[MembershipEvidence, ...]:
        """Every attack on the present ledger, with its file; inconclusive ones are included."""
        return tuple(
            MembershipEvidence(source, result)
            for source, report in self._reports
            if report.ledger_head == self.claim_figures.ledger_head
            for result in report.membership
        )

    @property
    def attacks(self) -> tuple[MembershipEvidence, ...]:
        """Every attack on the present ledger that is not inconclusive."""
        return tuple(one for one in self.measured if one.result.inconclusive is None)

    @property
    def rates(self) -> tuple[AttackRate, ...]:
        """Every true-positive rate that was measured on the present ledger."""
        return measured_rates(one.result for one in self.measured)

    @property
    def inconclusive_reasons(self) -> tuple[str, ...]:
        """Reasons why attacks are no evidence: they are of another ledger, or inconclusive."""
        stale = [
            f"{source.file} is of another state of the ledger: {source.command}"
            for source, report in self._reports
            if report.ledger_head != self.claim_figures.ledger_head
        ]
        nothing = [
            f"{one.result.attack}: {one.result.inconclusive}"
            for one in self.measured
            if one.result.inconclusive is not None
        ]
        return (*stale, *nothing)

    @property
    def current_audit(self) -> AuditReport | None:
        """The audit if it is of the present ledger, else None."""
        current = (
            self.audit is not None and self.audit.ledger_head == self.claim_figures.ledger_head
        )
        return self.audit if current else None

    @property
    def _reports(self) -> tuple[tuple[ReportSource, AuditReport | AttackReport], ...]:
        reports = ((ReportSource.AUDIT, self.audit), (ReportSource.ATTACK, self.attack))
        return tuple((source, report) for source, report in reports if report is not None)
