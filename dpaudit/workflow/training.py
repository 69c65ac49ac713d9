"""From a trained run to its claim and its accuracy."""

from __future__ import annotations

from dpaudit.runs.directory import RunDirectory
from dpaudit.runs.files import read_json
from dpaudit.trainer.data import Split
from dpaudit.trainer.evaluate import evaluate, load_trained_model
from dpaudit.trainer.run import heldout_records
from dpaudit.vocabulary.claim import Claim
from dpaudit.workflow.finishing import finish


def heldout_accuracy(run: RunDirectory, split: Split) -> float:
    """Return the shipped model's accuracy on held-out records, which no claim protects."""
    model = load_trained_model(run, split)
    return evaluate(model, heldout_records(run, split)).accuracy


def write_claim(run: RunDirectory, delta: float) -> Claim:
    """Return the finished run's claim; it is written if the trainer has not written it."""
    finish(run, delta)
    return read_json(run.claim, Claim)
