"""Evidence without a run: a claim that somebody states, and measurements in files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from msgspec.structs import replace

from dpaudit.gate.evidence import Declared, Evidence
from dpaudit.gate.policy import AuditPolicy, Policy
from dpaudit.runs.files import read_json
from dpaudit.vocabulary.audit import AttackReport, AuditReport, BoundKind
from dpaudit.vocabulary.conformance import ConformanceResult
from dpaudit.vocabulary.errors import InvalidArgument
from dpaudit.workflow.recomputed_bounds import Checked, checked_file, require_rates, with_counts

OWN_POLICY = Policy(audit=AuditPolicy(count=(BoundKind.CERTIFIED, BoundKind.CONDITIONAL)))
"""Where no policy is there: the measurement may not contradict the claim."""


@dataclass(frozen=True)
class Measured:
    """Files of measurements; what is None was not given.

    Attributes:
        scores: One score a canary or record, with who was a member.
        audit: What ``dpaudit audit --format json`` said.
        attack: What ``dpaudit attack --format json`` said.
        conformance: What ``dpaudit conformance --format json`` said.
    """

    scores: Path | None = None
    audit: Path | None = None
    attack: Path | None = None
    conformance: Path | None = None

    def __post_init__(self) -> None:
        if self.scores is not None and self.audit is not None:
            raise InvalidArgument("scores", str(self.scores), "given without --audit, or it alone")


def evidence_of_files(claim: Declared, measured: Measured, policy: Policy) -> Evidence:
    """Read every measurement that there is, and audit the scores if they are given.

    Raises:
        InvalidArgument: the scores cannot be used.
        IntegrityError: a file is missing or broken.
    """
    confidence = (policy.audit or AuditPolicy()).confidence
    audit = None if measured.audit is None else read_json(measured.audit, AuditReport)
    if measured.scores is not None:
        audit = _audited(measured.scores, claim, confidence)
    checked = Checked()
    if measured.audit is not None and audit is not None:
        checked = checked_file(measured.audit, audit)
    attack = None
    if measured.attack is not None:
        attack = read_json(measured.attack, AttackReport)
        require_rates(measured.attack, attack.membership)
        attack = replace(attack, membership=with_counts(attack.membership))
    if measured.audit is not None and audit is not None:
        audit = replace(audit, membership=with_counts(audit.membership))
    conformance = measured.conformance
    return Evidence(
        claim=claim,
        audit=audit,
        attack=attack,
        doubts=checked.doubts,
        conformance=None if conformance is None else read_json(conformance, ConformanceResult),
    )


def _audited(scores: Path, claim: Declared, confidence: float) -> AuditReport:
    from dpaudit.workflow.auditing_scores import ScoreAudit, audit_score_file  # noqa: PLC0415

    return audit_score_file(scores, ScoreAudit(claim.delta, confidence, claim.epsilon))
