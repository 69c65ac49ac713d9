"""Evaluate membership inference scores, our own or from another framework. No torch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from dpaudit.attacks.membership.evaluation import INDEPENDENT_RECORDS, evaluate
from dpaudit.attacks.membership.score_file import read_scores, scores_by_group
from dpaudit.attacks.membership.scores import MembershipScores
from dpaudit.files.regular_files import utf8_name
from dpaudit.runs.directory import RunDirectory
from dpaudit.runs.file_io import PRIVATE, sha256, write_json
from dpaudit.vocabulary.audit import AttackReport

if TYPE_CHECKING:  # score_file raises MissingExtra without pandas
    import pandas as pd

SEVERAL_MODELS_ASSUMPTION = (
    "given the models, every pair of a model and a record is an independent trial"
)


@dataclass(frozen=True)
class AttackOutcome:
    """The result of membership inference attacks.

    Attributes:
        report: True-positive rates with intervals, by attack.
        scores: Every score, one row per attack, target and record.
    """

    report: AttackReport
    scores: pd.DataFrame


def attack_scores(path: Path, *, confidence: float) -> AttackOutcome:
    """Evaluate a score file that any framework wrote.

    Args:
        path: The file, with the columns ``score`` and ``member``.
        confidence: Of each interval, in (0, 1).

    Returns:
        The report and every score.

    Raises:
        InvalidArgument: If the file is broken, or its scores are unpaired, NaN, of one class,
            of a record twice, or of the wrong sign.
    """
    attacked = f"scores of {utf8_name(path)}"
    return evaluate_scores(read_scores(path), attacked, confidence=confidence)


def attack_scores_of_run(run: RunDirectory, path: Path, *, confidence: float) -> AttackOutcome:
    """Evaluate scores of a run's model, and write the report into the run.

    The caller asserts that the scores are of this model; nothing verifies it. The report holds
    the digests of the score file and of the model.

    Args:
        run: A finished run.
        path: The score file.
        confidence: Of each interval, in (0, 1).

    Returns:
        The report and every score.

    Raises:
        IntegrityError: If the run is unfinished, or a file is missing or altered.
        InvalidArgument: If the scores cannot be used, as in ``attack_scores``.
    """
    ledger = run.read_finished()
    found = attack_scores(path, confidence=confidence)
    files = {"scores": sha256(path)}
    if ledger.seal is not None and run.model.name in ledger.seal.files:
        files["model"] = ledger.seal.files[run.model.name]
    report = msgspec.structs.replace(found.report, ledger_head=ledger.head, files=files)
    write_json(run.attack, report, PRIVATE)
    return replace(found, report=report)


def evaluate_scores(frame: pd.DataFrame, attacked: str, *, confidence: float) -> AttackOutcome:
    """Evaluate each attack, and each step, on all of its targets together.

    Args:
        frame: Scores, one row per attack, target and record.
        attacked: Description of the targets, for the report.
        confidence: Of each interval, in (0, 1).

    Returns:
        The report, and ``frame``.
    """
    several = "target" in frame.columns and frame["target"].nunique() > 1
    assumes = SEVERAL_MODELS_ASSUMPTION if several else INDEPENDENT_RECORDS
    results = tuple(
        evaluate(name, scores, confidence=confidence, assumes=assumes)
        for name, scores in scores_by_group(frame).items()
    )
    return AttackOutcome(AttackReport(attacked, confidence, results), frame)


def scores_by_attack(attacked: AttackOutcome) -> dict[str, MembershipScores]:
    """Return the scores of each attack, of all targets together."""
    return scores_by_group(attacked.scores)
