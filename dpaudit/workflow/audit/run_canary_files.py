"""Audit a run on canaries of a file of ``dpaudit canaries make``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from msgspec.structs import replace

from dpaudit.attacks.membership.score_file import ScoreColumns
from dpaudit.attacks.one_run.score_file_audit import SCORE_AUDIT_NAME
from dpaudit.runs.directory import RunDirectory, read_canary_file_record
from dpaudit.runs.file_io import read_arrays, sha256
from dpaudit.trainer.data import RecordArrays
from dpaudit.trainer.tasks import CLASSIFICATION, load_trained_model
from dpaudit.vocabulary.audit import AuditReport, AuditResult, BoundKind
from dpaudit.vocabulary.claim import Claim
from dpaudit.vocabulary.errors import IntegrityError, InvalidArgument
from dpaudit.vocabulary.ledger import PrivacyLedger
from dpaudit.vocabulary.privacy_terms import Adjacency, Unit
from dpaudit.vocabulary.settings import RunConfig
from dpaudit.workflow.audit.audit_plan import claim_covers_canaries
from dpaudit.workflow.audit.external_scores import (
    AuditorCanaries,
    ScoreAuditSettings,
    audit_canary_model,
    audit_canary_scores,
    audit_scored_canaries,
    auditor_path,
    auditor_path_beside,
    read_auditor_canaries,
)
from dpaudit.workflow.audit.text_canary_scores import scores_of_run

UNRECORDED_COINS_ASSUMPTION = (
    "that the coins were tossed before training and the included canaries were trained on, which "
    "the run's ledger does not record"
)
OTHER_ADJACENCY_ASSUMPTION = (
    "that leaving a canary out changes no more than the claim's neighbors differ by"
)
OTHER_UNIT_ASSUMPTION = "that each canary is a unit of the claim by itself, with no other records"
MODEL_SCORES_ASSUMPTION = (
    "that the scores are those of the run's model, which their file does not show"
)

CANARY_ARRAYS = {"ids", "x", "y", "sentences"}
"""Arrays with one row per canary, of which the trainer's file holds those of included ones."""


@dataclass(frozen=True)
class CanaryScoring:
    """Canaries of a canary file, and how they are scored.

    Attributes:
        canaries: The canary file; the auditor's file is beside it.
        scores: File with one score per canary; None: the run's own model scores them. That of
            ``dpaudit train`` needs neither ``model`` nor ``checkpoint``.
        model: ``package.module:factory`` of the run's model.
        checkpoint: The model's file, if it is outside of the run: it must be the run's own.
        columns: Columns of the score file, and direction of its scores; None: the usual ones.
    """

    canaries: Path
    scores: Path | None = None
    model: str | None = None
    checkpoint: Path | None = None
    columns: ScoreColumns | None = None

    @property
    def by_own_model(self) -> bool:
        """Whether nothing but the run's settings says how its model is made."""
        return self.scores is None and self.model is None and self.checkpoint is None


def record_scores_of_run(auditor: AuditorCanaries, run: RunDirectory) -> dict[str, float]:
    """Score canaries that are records by the model of a run of ``dpaudit train``.

    Args:
        auditor: All canaries.
        run: A finished run on records with classes.

    Returns:
        The confidence in its label of each canary, under its name.

    Raises:
        InvalidArgument: If the canaries are no records of the run's kind.
    """
    data = run.read_config().data
    split = CLASSIFICATION.load(data)
    arrays = auditor.arrays
    if not {"x", "y"} <= arrays.keys() or arrays["x"].shape[1:] != split.shape:
        allowed = f"records of shape {split.shape}; for other canaries, give --scores"
        raise InvalidArgument("canaries", auditor.kind, allowed)
    inputs = RecordArrays(arrays["x"].astype(np.float32), arrays["y"].astype(np.int64))
    scores = CLASSIFICATION.canary_scores(load_trained_model(run, split), inputs)
    return dict(zip(auditor.ids, scores.tolist(), strict=True))


def canaries_beside(run: RunDirectory, ledger: PrivacyLedger) -> CanaryScoring | None:
    """Return the canary file that a run added to its records, if the auditor's file is beside it.

    Args:
        run: A finished run of ``dpaudit train``.
        ledger: Its ledger.

    Returns:
        The canaries, which the run's model scores; None if the ledger records no canary file, or
        its auditor's file is not readable beside the place where the run read it.

    Raises:
        IntegrityError: If the run's copy of the file is missing or altered.
    """
    recorded = read_canary_file_record(run, ledger)
    settings = run.read_settings() if run.config.exists() else None
    if recorded is None or not isinstance(settings, RunConfig) or settings.canaries.file is None:
        return None
    path = Path(settings.canaries.file)
    return CanaryScoring(path) if _has_digest(path, recorded.secret_sha256) else None


def _has_digest(path: Path, digest: str) -> bool:
    """Return whether the auditor's file beside a canary file is readable, and has a digest."""
    secret = auditor_path_beside(path)
    try:
        return secret.is_file() and sha256(secret) == digest
    except (OSError, IntegrityError):  # in a folder of the auditor alone
        return False


def unscored_canaries_in_words(run: RunDirectory, report: AuditReport) -> str | None:
    """Describe which recorded canaries an audit did not score, and what would decide.

    Args:
        run: The audited run.
        report: Its audit.

    Returns:
        One clause, without a period; None if no recorded canary file is left out.
    """
    recorded = read_canary_file_record(run, run.read_finished())
    if recorded is None or any(one.name == SCORE_AUDIT_NAME for one in report.bounds):
        return None
    return (
        f"INCONCLUSIVE about the {recorded.count} canaries of the run's canary file, which were "
        "not scored: give --canaries FILE, beside which the auditor's file NAME.secret.npz is"
    )


def audit_canary_file(
    run: RunDirectory,
    ledger: PrivacyLedger,
    claim: Claim,
    canary_scoring: CanaryScoring,
    confidence: float,
) -> AuditReport:
    """Audit the canaries of a canary file against the claim of a run.

    Args:
        run: A finished run.
        ledger: Its ledger.
        claim: Its claim.
        canary_scoring: The canary file, and how the canaries are scored.
        confidence: Probability with which the lower bound holds.

    Returns:
        The audit, with the digests of the files that were read.

    Raises:
        IntegrityError: If the canary file is missing or broken, or is not the one that the
            run's ledger records, or the run's copy does not hold its included canaries.
        InvalidArgument: If scores or model cannot be used, or the model is not the run's.
    """
    secret = auditor_path(canary_scoring.canaries)
    digest = sha256(secret)
    recorded = read_canary_file_record(run, ledger)
    if recorded is not None and recorded.secret_sha256 != digest:
        raise IntegrityError(
            f"{secret} is not the auditor's file of the canaries that {run.path} was trained on: "
            "give that file, its ledger holds the digest"
        )
    if recorded is not None:
        _require_planted(run, read_auditor_canaries(canary_scoring.canaries))
    settings = ScoreAuditSettings(claim.delta, confidence, claim.epsilon.upper)
    files = {"canaries": digest}
    if canary_scoring.scores is not None:
        files["scores"] = sha256(canary_scoring.scores)
        report = audit_canary_scores(
            canary_scoring.canaries, canary_scoring.scores, settings, canary_scoring.columns
        )
    elif canary_scoring.by_own_model and run.config.exists():
        files["model"] = sha256(_own_model(run, ledger, None))
        auditor = read_auditor_canaries(canary_scoring.canaries)
        score = scores_of_run if is_text_run(run) else record_scores_of_run
        report = audit_scored_canaries(auditor, score(auditor, run), settings)
    else:
        model = _own_model(run, ledger, canary_scoring.checkpoint)
        files["model"] = sha256(model)
        report = audit_canary_model(canary_scoring.canaries, model, canary_scoring.model, settings)
    assumed = [
        *([] if recorded else [UNRECORDED_COINS_ASSUMPTION]),
        *([MODEL_SCORES_ASSUMPTION] if canary_scoring.scores is not None else []),
        *([] if claim.adjacency is Adjacency.ADD_OR_REMOVE_ONE else [OTHER_ADJACENCY_ASSUMPTION]),
        *([] if claim.unit is Unit.RECORD else [OTHER_UNIT_ASSUMPTION]),
    ]
    fixed = recorded is not None and claim_covers_canaries(ledger.header)
    bounds = tuple(_against(bound, claim, assumed, fixed=fixed) for bound in report.bounds)
    return replace(report, ledger_head=ledger.head, bounds=bounds, files=files)


def _require_planted(run: RunDirectory, auditor: AuditorCanaries) -> None:
    """Refuse a run's copy without the auditor's included canaries: they were not trained on."""
    planted = read_arrays(run.canary_file_copy)
    for name in CANARY_ARRAYS & auditor.arrays.keys():
        rows = np.asarray(auditor.arrays[name])
        fits = rows.shape[:1] == auditor.included.shape and name in planted
        if not fits or not np.array_equal(planted[name], rows[auditor.included]):
            raise IntegrityError(
                f"{run.canary_file_copy} does not hold the included canaries of the auditor's "
                f"file: its {name} differ. Their scores would show nothing about the run; make "
                "canaries and train again"
            )


def is_text_run(run: RunDirectory) -> bool:
    """Return whether a run of ``dpaudit train`` trained a language model.

    Args:
        run: The run.

    Returns:
        True if its settings name texts; False without settings.
    """
    return run.config.exists() and run.read_settings().data.has_tokens


def _against(bound: AuditResult, claim: Claim, assumed: list[str], *, fixed: bool) -> AuditResult:
    """Return a bound with its assumptions on this run; CERTIFIED only if the coins are recorded."""
    return replace(
        bound,
        kind=bound.kind if fixed else BoundKind.CONDITIONAL,
        assumes="; ".join([bound.assumes, *assumed]),
        refutes_epsilon=claim.epsilon.upper,
    )


def _own_model(run: RunDirectory, ledger: PrivacyLedger, checkpoint: Path | None) -> Path:
    """Return the run's model, or ``checkpoint`` if it is a copy of it."""
    assert ledger.seal is not None
    digest = ledger.seal.files.get(run.model.name)
    if digest is None:
        raise InvalidArgument("run", str(run.path), "one with a model, or give --scores")
    if checkpoint is None:
        return run.model
    if sha256(checkpoint) != digest:
        raise InvalidArgument(
            "checkpoint", str(checkpoint), "the model whose digest is in the run's ledger"
        )
    return checkpoint
