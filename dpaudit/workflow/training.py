"""From a trained run to its claim and its accuracy."""

from __future__ import annotations

from dpaudit.accountants.answers import claim_of
from dpaudit.runs.directory import RunDirectory
from dpaudit.runs.files import write_json
from dpaudit.trainer.data import Split
from dpaudit.trainer.evaluate import evaluate, load_trained_model
from dpaudit.trainer.run import heldout_records
from dpaudit.vocabulary.claim import Claim
from dpaudit.workflow.claims import CLAIMING_ACCOUNTANT


def heldout_accuracy(run: RunDirectory, split: Split) -> float:
    """Return the shipped model's accuracy on held-out records, which no claim protects."""
    model = load_trained_model(run, split)
    return evaluate(model, heldout_records(run, split)).accuracy


def write_claim(run: RunDirectory, delta: float, accountant: str = CLAIMING_ACCOUNTANT) -> Claim:
    """Compute the finished run's claim from its ledger, write it and return it."""
    claim = claim_of(run.read_finished(), delta, accountant)
    write_json(run.claim, claim)
    return claim
