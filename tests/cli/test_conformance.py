"""The command: a run, or a trainer of one's own; text and JSON; its exit code."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from dpaudit.cli.audit import conformance_command
from dpaudit.cli.printing import Verbosity, set_verbosity
from dpaudit.vocabulary.conformance import Assumption
from dpaudit.vocabulary.errors import InvalidArgument

CLAIM = """
noise_multiplier = 2.0
clip_norm = 0.5
sampling_rate = 0.25
steps = 24
update_scale = -0.008333333333333333
"""
PLAIN = "tests.attacks.conformance.reference_trainer:Plain"


def called(*arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(conformance_command, arguments)
    set_verbosity(Verbosity.NORMAL)  # -v is for one command
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, done.output


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str]:
    claim, records = tmp_path / "claim.toml", tmp_path / "records.npz"
    claim.write_text(CLAIM)
    rng = np.random.default_rng(0)
    np.savez(records, x=rng.normal(size=(24, 30)), y=rng.normal(size=24))
    return str(claim), str(records)


def test_custom_trainer_is_checked(files: tuple[str, str]) -> None:
    claim, records = files
    code, said = called(PLAIN, "--claim", claim, "--records", records, "--format", "json")
    result = json.loads(said)
    assert (code, result["verdict"], result["schema_version"]) == (0, "PASS", "2.0")


def test_a_claim_that_is_not_kept(files: tuple[str, str]) -> None:
    claim, records = files
    Path(claim).write_text(CLAIM.replace("2.0", "3.0"))
    code, said = called(PLAIN, "--claim", claim, "--records", records)
    assert code == 1
    assert said.startswith("FAIL")
    assert "0.667 times the claimed standard deviation" in said


def test_custom_trainer_is_compared_with_the_ledger_of_its_run(
    files: tuple[str, str], run_copy: Path
) -> None:
    claim, records = files
    code, said = called(PLAIN, "--claim", claim, "--records", records, "--run", str(run_copy))
    assert code == 1
    assert "30 steps are recorded, 24 are claimed" in said
    written = json.loads((run_copy / "conformance.json").read_text())
    lines = (run_copy / "ledger.jsonl").read_text().splitlines()
    assert written["verdict"] == "FAIL"
    assert written["ledger_head"] == json.loads(lines[-1])["hash"]
    # What the run does is claimed of the trainer: nothing is left that contradicts the ledger.
    own = CLAIM.replace("0.25", "0.1").replace("24", "30")
    Path(claim).write_text(own)
    _, said = called(PLAIN, "--claim", claim, "--records", records, "--run", str(run_copy), "-v")
    assert "the claim covers all recorded releases" in said


def test_a_run_has_a_trainer_of_its_own(trained: Path) -> None:
    code, said = called(str(trained), "--run", str(trained))
    assert code == 2
    assert "--run goes with make_trainer" in said


def test_unknown_key_of_a_claim_is_named_with_the_nearest_and_all_allowed_ones(
    files: tuple[str, str],
) -> None:
    Path(files[0]).write_text(CLAIM.replace("clip_norm", "clipnorm"))
    with pytest.raises(InvalidArgument) as refused:
        called(PLAIN, "--claim", files[0], "--records", files[1])
    message = str(refused.value)
    assert "without the unknown key clipnorm; did you mean clip_norm?; allowed here: " in message
    for key in ("noise_multiplier", "sampling_rate", "steps", "update_scale", "adjacency"):
        assert key in message


def test_text_is_a_summary_and_has_details_with_verbose(files: tuple[str, str]) -> None:
    arguments = (PLAIN, "--claim", files[0], "--records", files[1])
    code, summary = called(*arguments)
    assert code == 0
    assert summary.startswith("PASS: ")
    assert "tested: " not in summary
    assert len(summary.splitlines()) <= 8
    detailed = called(*arguments, "-v")[1]
    assert summary.splitlines()[0] in detailed
    assert "    tested: noise on an empty data set" in detailed


def test_number_of_probes_replays_records_besides_the_usual_ones(files: tuple[str, str]) -> None:
    claim, records = files
    arguments = (PLAIN, "--claim", claim, "--records", records, "--format", "json")
    code, said = called(*arguments, "--probes", "3")
    names = {finding["name"] for finding in json.loads(said)["findings"]}
    assert code == 0
    assert {"record 0", "record 23", "huge features"} <= names
    assert called(*arguments, "--probes", "0")[0] == 2


def test_file_of_probes_replaces_the_usual_ones(files: tuple[str, str]) -> None:
    claim, records = files
    arguments = (PLAIN, "--claim", claim, "--records", records, "--format", "json")
    _, said = called(*arguments, "--probes", records)
    names = {finding["name"] for finding in json.loads(said)["findings"]}
    assert "given, number 23" in names
    assert "huge features" not in names


FACTORY = """
from tests.attacks.conformance.reference_trainer import Plain, records

class PassesNaN(Plain):
    def clipped(self, gradient):
        norm = (gradient**2).sum() ** 0.5
        return gradient * min(1.0, 0.5 / norm) if norm > 0 else gradient

records = records()
"""


def test_factory_of_the_working_folder_and_the_stated_assumption(
    files: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "folder_trainer.py").write_text(FACTORY)
    monkeypatch.chdir(tmp_path)
    factory = ("folder_trainer:PassesNaN", "--claim", files[0])
    code, said = called(*factory)
    assert code == 1
    assert "FAIL  replay, NaN features" in said
    code, said = called(*factory, "--assume", "no-nan")
    assert (code, said.splitlines()[-2]) == (0, f"assumed: {Assumption.NO_NAN.statement}")
    code, said = called(*factory, "--assume", "no-nan", "--format", "json")
    assert json.loads(said)["assumptions"] == [Assumption.NO_NAN.statement]


def test_claim_without_an_update_scale_is_measured(files: tuple[str, str]) -> None:
    claim, records = files
    Path(claim).write_text("\n".join(CLAIM.splitlines()[:-1]))
    code, said = called(PLAIN, "--claim", claim, "--records", records, "--format", "json")
    assert code == 0
    assert json.loads(said)["claim"]["update_scale"] == pytest.approx(0.05 / 6, rel=1e-6)
