"""What the gate is told of a run: claims, measurements, and what it books."""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from dpaudit.vocabulary.audit import AttackReport, AuditReport
from dpaudit.vocabulary.baseline import AttackRate, Baseline, rates_of
from dpaudit.vocabulary.claim import Claim
from dpaudit.vocabulary.conformance import ConformanceResult
from dpaudit.vocabulary.errors import require_delta, require_positive


class Declared(msgspec.Struct, frozen=True):
    """An epsilon and delta that somebody states; no ledger stands behind them."""

    epsilon: float
    delta: float

    def __post_init__(self) -> None:
        require_positive("claim_epsilon", self.epsilon)
        require_delta("delta", self.delta)


class Stated(NamedTuple):
    """What a claim of either kind says: epsilon is at most ``epsilon``."""

    epsilon: float
    delta: float
    ledger_head: str


class Evidence(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that is known of what is judged; what is None was not measured.

    Attributes:
        claim: By a ledger, or declared.
        audit: What was measured: lower bounds, membership.
        attack: Further membership attacks.
        conformance: Whether the trainer does what it claims.
        booked: The run's own figures, as a later run would be compared with them.
    """

    claim: Claim | Declared
    audit: AuditReport | None = None
    attack: AttackReport | None = None
    conformance: ConformanceResult | None = None
    booked: Baseline | None = None

    @property
    def stated(self) -> Stated:
        """What is claimed, whoever claims it."""
        match self.claim:
            case Claim(epsilon=epsilon, delta=delta, ledger_head=head):
                return Stated(epsilon.upper, delta, head)
            case Declared(epsilon=epsilon, delta=delta):
                return Stated(epsilon, delta, "")

    @property
    def rates(self) -> tuple[AttackRate, ...]:
        """Every true-positive rate that was measured on this very run."""
        of_this = (
            report
            for report in (self.audit, self.attack)
            if report is not None and report.ledger_head == self.stated.ledger_head
        )
        return tuple(rate for report in of_this for rate in rates_of(report.membership))
