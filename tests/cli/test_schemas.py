"""Everything that the program writes as JSON fits the schema that is shipped for it."""

from __future__ import annotations

import json
import shutil
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jsonschema
import make_schemas
import numpy as np
import pytest
from calling import Call

PLAN = ("--sampling-rate", "0.01", "--steps", "100")
PRICED = (*PLAN, "--noise-multiplier", "1")
DELTA = ("--delta", "1e-5")
STEPS = """
noise_multiplier = 2.0
clip_norm = 0.5
sampling_rate = 0.25
steps = 24
update_scale = -0.008333333333333333
"""
OWN = "tests.attacks.conformance.reference_trainer:Plain"


class Place(NamedTuple):
    """Where something is written: the program, a folder, and a finished run in it."""

    call: Call
    folder: Path
    run: Path

    def json(self, *arguments: object) -> Any:
        """Call the program for JSON on standard output."""
        done = self.call(*arguments, "--format", "json")
        assert done.out, done.err
        return json.loads(done.out)

    def file(self, path: Path, *arguments: object) -> Any:
        """Call the program for a file."""
        assert self.call(*arguments).code in {0, 3}
        return json.loads(path.read_text())

    def scores(self) -> Path:
        """Return a file of scores that tell members from others at times."""
        rng, path = np.random.default_rng(0), self.folder / "scores.csv"
        rows = [f"{rng.standard_normal() + i % 2},{i % 2}" for i in range(300)]
        path.write_text("\n".join(["score,member", *rows]))
        return path


def ledger_entries(at: Place) -> list[Any]:
    lines = (at.run / "ledger.jsonl").read_text().splitlines()
    return [json.loads(line)["entry"] for line in lines]


def conformance(at: Place) -> Any:
    claim, records = at.folder / "claim.toml", at.folder / "records.npz"
    claim.write_text(STEPS)
    rng = np.random.default_rng(0)
    np.savez(records, x=rng.normal(size=(24, 30)), y=rng.normal(size=24))
    return at.json("conformance", OWN, "--claim", claim, "--records", records)


def history(at: Place) -> Any:
    policy = at.folder / "policy.toml"
    policy.write_text("[claim]\nmax_epsilon = 10.0\ndelta = 1e-5\n")
    assert at.call("gate", at.run, "--policy", policy).code == 0
    return at.json("history", at.folder)


def policy(at: Place) -> Any:
    path = at.folder / "dpaudit.toml"
    assert at.call("init", at.run, "-o", path).code == 0
    return json.loads(json.dumps(tomllib.loads(path.read_text()), default=str))


def baseline(at: Place) -> Any:
    path = at.folder / "baseline.json"
    return at.file(path, "baseline", "write", at.run, "-o", path)


def claimed_scores(at: Place) -> tuple[object, ...]:
    return ("--scores", at.scores(), "--claim-epsilon", "4", *DELTA)


# By kind of schema: documents that the program wrote just now.
WRITTEN: dict[str, Callable[[Place], list[Any]]] = {
    "attack": lambda at: [at.json("attack", "--scores", at.scores())],
    "audit": lambda at: [at.json("audit", *claimed_scores(at))],
    "baseline": lambda at: [baseline(at)],
    "claim": lambda at: [json.loads((at.run / "claim.json").read_text())],
    "comparison": lambda at: [at.json("compare", at.run, at.run)],
    "conformance": lambda at: [conformance(at)],
    "delta": lambda at: [at.json("delta", *PRICED, "--epsilon", "1")],
    "epsilon": lambda at: [at.json("epsilon", *PRICED, *DELTA, "--accountant", "naive")],
    "epsilon-all": lambda at: [at.json("epsilon", *PRICED, *DELTA)],
    "history": lambda at: [history(at)],
    "ledger-entry": ledger_entries,
    "mechanism": lambda at: [at.json("epsilon", *PRICED, *DELTA)["mechanism"]],
    "noise": lambda at: [at.json("noise", *PLAN, *DELTA, "--target-epsilon", "2")],
    "split": lambda at: [
        at.json("split", "sum=2", "count,noise=laplace", *DELTA, "--target-epsilon", "2"),
    ],
    "noise-risk": lambda at: [at.json("noise", *PLAN, "--target-advantage", "0.2")],
    "policy": lambda at: [policy(at)],
    "run-list": lambda at: [at.json("run", "list", at.folder)],
    "run-show": lambda at: [at.json("run", "show", at.run)],
    "tradeoff": lambda at: [at.json("tradeoff", *PRICED, "--fpr", "0.1")],
    "verdict": lambda at: [at.json("gate", *claimed_scores(at))],
}


@pytest.fixture
def place(call: Call, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.chdir(tmp_path)
    return Place(call, tmp_path, Path(shutil.copytree(trained, tmp_path / "run")))


@pytest.mark.parametrize("kind", make_schemas.KINDS)
def test_what_is_written_fits_its_schema(kind: str, place: Place) -> None:
    assert kind in WRITTEN, f"say in WRITTEN how the program writes a {kind}"
    schema = json.loads((make_schemas.FOLDER / f"{kind}.json").read_text())
    fits = jsonschema.validators.validator_for(schema)(schema)
    documents = WRITTEN[kind](place)
    assert documents
    for document in documents:
        fits.validate(document)
