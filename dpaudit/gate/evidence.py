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
    """

    claim: Claim | Declared
    sharpest: Claim | None = None
    audit: AuditReport | None = None
    attack: AttackReport | None = None
    conformance: ConformanceResult | None = None
    booked: Baseline | None = None

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
    def rates(self) -> tuple[AttackRate, ...]:
        """Every true-positive rate that was measured on this very run."""
        return tuple(rate for report in self._current for rate in rates_of(report.membership))

    @property
    def attacks(self) -> tuple[str, ...]:
        """The name of every attack on this very run that is evidence, whatever it could see."""
        return tuple(
            one.attack
            for report in self._current
            for one in report.membership
            if one.inconclusive is None
        )

    @property
    def silent(self) -> tuple[str, ...]:
        """Why further attacks that were made are no evidence: of another ledger, or nothing."""
        stale = [
            f"the {name} is of another state of the ledger: make it again"
            for name, report in (("audit", self.audit), ("attack", self.attack))
            if report is not None and report.ledger_head != self.stated.ledger_head
        ]
        nothing = [
            f"{one.attack}: {one.inconclusive}"
            for report in self._current
            for one in report.membership
            if one.inconclusive is not None
        ]
        return (*stale, *nothing)

    @property
    def _current(self) -> tuple[AuditReport | AttackReport, ...]:
        reports = (self.audit, self.attack)
        head = self.stated.ledger_head
        return tuple(one for one in reports if one is not None and one.ledger_head == head)
