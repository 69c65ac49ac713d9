"""Scores of membership inference, ours or from elsewhere, and what they come to. No torch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from dpaudit.attacks.membership.evaluation import ONE_MODEL, evaluate
from dpaudit.attacks.membership.score_file import groups_of, read_scores
from dpaudit.attacks.membership.scores import MembershipScores
from dpaudit.files.opening import name_in_text
from dpaudit.runs.directory import RunDirectory
from dpaudit.runs.files import PRIVATE, sha256, write_json
from dpaudit.vocabulary.audit import AttackReport

if TYPE_CHECKING:  # where pandas is missing, score_file names the extra
    import pandas as pd

SEVERAL_MODELS = "given the models, every pair of a model and a record is an independent trial"


@dataclass(frozen=True)
class Attacked:
    """What was found: the report, and every score, one row for each attack, target and record."""

    report: AttackReport
    scores: pd.DataFrame


def attack_scores(path: Path, *, confidence: float) -> Attacked:
    """Evaluate scores that any framework wrote.

    Raises:
        InvalidArgument: the file is broken, or its scores are unpaired, NaN, of one class,
            of a record twice, or of the wrong sign.
    """
    attacked = f"scores of {name_in_text(path)}"
    return evaluated(read_scores(path), attacked, confidence=confidence)


def attack_scores_of_run(run: RunDirectory, path: Path, *, confidence: float) -> Attacked:
    """Evaluate scores that a run's model was given, and write the report into the run.

    That they are of this model is the word of whoever calls; the report holds the digest of the
    file, and of the model.

    Raises:
        IntegrityError: The run is unfinished, or a file is missing or altered.
        InvalidArgument: See ``attack_scores``.
    """
    ledger = run.read_finished()
    found = attack_scores(path, confidence=confidence)
    files = {"scores": sha256(path)}
    if ledger.seal is not None and run.model.name in ledger.seal.files:
        files["model"] = ledger.seal.files[run.model.name]
    report = msgspec.structs.replace(found.report, ledger_head=ledger.head, files=files)
    write_json(run.attack, report, PRIVATE)
    return replace(found, report=report)


def evaluated(frame: pd.DataFrame, attacked: str, *, confidence: float) -> Attacked:
    """Evaluate each attack of ``frame``, and each step, on all of its targets together."""
    several = "target" in frame.columns and frame["target"].nunique() > 1
    assumes = SEVERAL_MODELS if several else ONE_MODEL
    results = tuple(
        evaluate(name, scores, confidence=confidence, assumes=assumes)
        for name, scores in groups_of(frame).items()
    )
    return Attacked(AttackReport(attacked, confidence, results), frame)


def scores_by_attack(attacked: Attacked) -> dict[str, MembershipScores]:
    """Return the scores of each attack, of all targets together."""
    return groups_of(attacked.scores)
