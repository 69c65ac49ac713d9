"""Evaluate membership inference scores, our own or from another framework. No torch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import msgspec

from dpaudit.attacks.membership.evaluation import INDEPENDENT_RECORDS, evaluate
from dpaudit.attacks.membership.score_file import (
    REQUIRED_COLUMNS,
    ScoreColumns,
    read_scores,
    rows_by_group,
    scores_by_group,
)
from dpaudit.attacks.membership.scores import MembershipScores, RecordScores
from dpaudit.attacks.membership.slices import evaluate_slices, slice_values
from dpaudit.files.regular_files import utf8_name
from dpaudit.runs.directory import RunDirectory
from dpaudit.runs.file_io import PRIVATE, sha256, write_json
from dpaudit.vocabulary.audit import AttackReport, MembershipResult, SliceResult
from dpaudit.vocabulary.errors import InvalidArgument

if TYPE_CHECKING:  # score_file raises MissingExtra without pandas
    import pandas as pd

SEVERAL_MODELS_ASSUMPTION = (
    "given the models, every pair of a model and a record is an independent trial"
)


class Evaluation(Protocol):
    """Interface of a function that computes how well scores distinguish members."""

    def __call__(
        self, attack: str, scores: MembershipScores, *, confidence: float, assumes: str
    ) -> MembershipResult:
        """Compute the result of one attack, as ``evaluate`` does."""
        ...


MAX_NAMED = 5  # slices that a note names


@dataclass(frozen=True)
class AttackOutcome:
    """The result of membership inference attacks.

    Attributes:
        report: True-positive rates with intervals, by attack.
        scores: Every score, one row per attack, target and record.
        risks: Detection rate of each record; None if it was not asked for.
    """

    report: AttackReport
    scores: pd.DataFrame
    risks: pd.DataFrame | None = None


def attack_scores(
    path: Path,
    *,
    confidence: float,
    columns: ScoreColumns | None = None,
    by: str | None = None,
) -> AttackOutcome:
    """Evaluate a score file that any framework wrote.

    Args:
        path: The file, with the columns ``score`` and ``member``.
        confidence: Of each interval, in (0, 1).
        columns: Other names of the columns, and direction of the scores.
        by: Column of the file whose values define slices; None: no slices.

    Returns:
        The report and every score.

    Raises:
        InvalidArgument: If the file is broken, or its scores are unpaired, NaN, of one class,
            of a record twice, or of the wrong sign.
    """
    attacked = f"scores of {utf8_name(path)}"
    required = REQUIRED_COLUMNS if by is None else (*REQUIRED_COLUMNS, by)
    frame = read_scores(path, required, columns)
    if by is not None and by not in set(frame.columns) - set(REQUIRED_COLUMNS):
        raise InvalidArgument("by", by, "a column other than those of scores and memberships")
    return evaluate_scores(frame, attacked, confidence=confidence, by=by)


def attack_scores_of_run(
    run: RunDirectory,
    path: Path,
    *,
    confidence: float,
    columns: ScoreColumns | None = None,
    by: str | None = None,
) -> AttackOutcome:
    """Evaluate scores of a run's model, and write the report into the run.

    The caller asserts that the scores are of this model; nothing verifies it. The report holds
    the digests of the score file and of the model.

    Args:
        run: A finished run.
        path: The score file.
        confidence: Of each interval, in (0, 1).
        columns: As for ``attack_scores``.
        by: As for ``attack_scores``.

    Returns:
        The report and every score.

    Raises:
        IntegrityError: If the run is unfinished, or a file is missing or altered.
        InvalidArgument: If the scores cannot be used, as in ``attack_scores``.
    """
    ledger = run.read_finished()
    found = attack_scores(path, confidence=confidence, columns=columns, by=by)
    files = {"scores": sha256(path)}
    if ledger.seal is not None and run.model.name in ledger.seal.files:
        files["model"] = ledger.seal.files[run.model.name]
    report = msgspec.structs.replace(found.report, ledger_head=ledger.head, files=files)
    write_json(run.attack, report, PRIVATE)
    return replace(found, report=report)


def evaluate_scores(
    frame: pd.DataFrame,
    attacked: str,
    *,
    confidence: float,
    by: str | None = None,
    judge: Evaluation = evaluate,
) -> AttackOutcome:
    """Evaluate each attack, and each step, on all of its targets together.

    Args:
        frame: Scores, one row per attack, target and record.
        attacked: Description of the targets, for the report.
        confidence: Of each interval, in (0, 1).
        by: Column whose values define slices; None: no slices.
        judge: ``evaluate``, which refuses scores that look inverted, or ``measure``.

    Returns:
        The report, and ``frame``.
    """
    several = "target" in frame.columns and frame["target"].nunique() > 1
    assumes = SEVERAL_MODELS_ASSUMPTION if several else INDEPENDENT_RECORDS
    results = tuple(
        judge(name, scores, confidence=confidence, assumes=assumes)
        for name, scores in scores_by_group(frame).items()
    )
    report = AttackReport(attacked, confidence, results)
    if by is not None:
        slices, notes = _slices(frame, by, confidence, assumes)
        report = msgspec.structs.replace(report, slices=slices, notes=notes)
    return AttackOutcome(report, frame)


def _slices(
    frame: pd.DataFrame, by: str, confidence: float, assumes: str
) -> tuple[tuple[SliceResult, ...], tuple[str, ...]]:
    """Return the results of each attack by slice, and a note on slices that have none."""
    slices: list[SliceResult] = []
    without: dict[str, None] = {}
    for name, rows in rows_by_group(frame).items():
        found = evaluate_slices(
            name,
            RecordScores(rows["score"].to_numpy(dtype=float)),
            rows["member"].to_numpy(),
            rows[by].to_numpy(),
            confidence=confidence,
            assumes=assumes,
        )
        slices += [SliceResult(by, value, result) for value, result in found.items()]
        every = slice_values(rows[by].to_numpy(), len(rows))[0]
        without |= dict.fromkeys(value for value in every if value not in found)
    if not without:
        return tuple(slices), ()
    shown = ", ".join(list(without)[:MAX_NAMED]) + (", ..." if len(without) > MAX_NAMED else "")
    return tuple(slices), (f"slices without members or non-members, not evaluated: {shown}",)


def scores_by_attack(attacked: AttackOutcome) -> dict[str, MembershipScores]:
    """Return the scores of each attack, of all targets together."""
    return scores_by_group(attacked.scores)
