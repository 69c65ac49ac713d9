"""Audit a run on canaries of ``dpaudit canaries make``: their scores, or its own model's."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from msgspec.structs import replace

from dpaudit.runs.directory import RunDirectory
from dpaudit.runs.files import sha256
from dpaudit.runs.planted import recorded_canaries
from dpaudit.vocabulary.adjacency import Adjacency
from dpaudit.vocabulary.audit import AuditReport, AuditResult, BoundKind
from dpaudit.vocabulary.claim import Claim
from dpaudit.vocabulary.errors import IntegrityError, InvalidArgument
from dpaudit.vocabulary.ledger import PrivacyLedger
from dpaudit.vocabulary.unit import Unit
from dpaudit.workflow.auditing_scores import (
    ScoreAudit,
    audit_canary_model,
    audit_canary_scores,
)
from dpaudit.workflow.planted import auditors_file
from dpaudit.workflow.promised_audits import protects_canaries

NOT_RECORDED = (
    "that the coins were tossed before training and the included canaries were trained on, which "
    "the run's ledger does not record"
)
OTHER_NEIGHBOURS = "that leaving a canary out changes no more than the claim's neighbours differ by"
OTHER_UNIT = "that each canary is a unit of the claim by itself, with no other records"
SCORES_OF_THE_MODEL = "that the scores are those of the run's model, as their file does not show"


@dataclass(frozen=True)
class Scored:
    """Canaries that a run was trained on, and how they are scored.

    Attributes:
        canaries: What ``dpaudit canaries make`` wrote; the auditor's file lies beside it.
        scores: One score a canary; None: the run's own model scores them.
        model: ``package.module:factory`` of the run's model.
        checkpoint: The model's file, where it lies elsewhere: it must be the run's own.
    """

    canaries: Path
    scores: Path | None = None
    model: str | None = None
    checkpoint: Path | None = None


def audit_planted(
    run: RunDirectory, ledger: PrivacyLedger, claim: Claim, given: Scored, confidence: float
) -> AuditReport:
    """Return the audit of the canaries in ``given`` against the claim of ``run``.

    Raises:
        IntegrityError: The canary file is missing or broken, or is not the one that the run's
            ledger records.
        InvalidArgument: Scores or model cannot be used, or the model is not the run's.
    """
    secret = auditors_file(given.canaries)
    digest = sha256(secret)
    recorded = recorded_canaries(run, ledger)
    if recorded is not None and recorded.secret_sha256 != digest:
        raise IntegrityError(
            f"{secret} is not the auditor's file of the canaries that {run.path} was trained on: "
            "give that file, its ledger holds the digest"
        )
    asked = ScoreAudit(claim.delta, confidence, claim.epsilon.upper)
    files = {"canaries": digest}
    if given.scores is not None:
        files["scores"] = sha256(given.scores)
        report = audit_canary_scores(given.canaries, given.scores, asked)
    else:
        model = _own_model(run, ledger, given.checkpoint)
        files["model"] = sha256(model)
        report = audit_canary_model(given.canaries, model, given.model, asked)
    assumed = [
        *([] if recorded else [NOT_RECORDED]),
        *([SCORES_OF_THE_MODEL] if given.scores is not None else []),
        *([] if claim.adjacency is Adjacency.ADD_OR_REMOVE_ONE else [OTHER_NEIGHBOURS]),
        *([] if claim.unit is Unit.RECORD else [OTHER_UNIT]),
    ]
    fixed = recorded is not None and protects_canaries(ledger.header)
    bounds = tuple(_against(bound, claim, assumed, fixed=fixed) for bound in report.bounds)
    return replace(report, ledger_head=ledger.head, bounds=bounds, files=files)


def _against(bound: AuditResult, claim: Claim, assumed: list[str], *, fixed: bool) -> AuditResult:
    """Return a bound with what it assumes of this run."""
    return replace(
        bound,
        kind=bound.kind if fixed else BoundKind.CONDITIONAL,
        assumes="; ".join([bound.assumes, *assumed]),
        refutes_epsilon=claim.epsilon.upper,
    )


def _own_model(run: RunDirectory, ledger: PrivacyLedger, checkpoint: Path | None) -> Path:
    """Return the run's model, or a copy of it."""
    assert ledger.seal is not None
    digest = ledger.seal.files.get(run.model.name)
    if digest is None:
        raise InvalidArgument("run", str(run.path), "one with a model, or give --scores")
    if checkpoint is None:
        return run.model
    if sha256(checkpoint) != digest:
        raise InvalidArgument(
            "checkpoint", str(checkpoint), "the model that the run's ledger holds the digest of"
        )
    return checkpoint
