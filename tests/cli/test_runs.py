"""``dpaudit run list`` and ``run show``: runs in any state, read and never written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from calling import Call

from dpaudit.vocabulary.errors import ExitCode

POLICY = "[claim]\nmax_epsilon = 10.0\ndelta = 1e-5\n"


@pytest.fixture
def runs(trained: Path, tmp_path: Path) -> Path:
    """One finished run with a verdict, one unfinished, one damaged, and another folder."""
    folder = tmp_path / "runs"
    for name in ("done", "halfway", "altered"):
        shutil.copytree(trained, folder / name)
    (folder / "other").mkdir()
    halfway = folder / "halfway"
    for name in ("claim.json", "model.safetensors", "observations.npz"):
        (halfway / name).unlink()
    lines = (halfway / "ledger.jsonl").read_text().splitlines(keepends=True)
    (halfway / "ledger.jsonl").write_text("".join(lines[:13]))
    altered = bytearray((folder / "altered" / "model.safetensors").read_bytes())
    altered[-1] ^= 1
    (folder / "altered" / "model.safetensors").write_bytes(altered)
    return folder


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    path = tmp_path / "policy.toml"
    path.write_text(POLICY)
    return path


def rows(text: str) -> dict[str, list[str]]:
    return {line.split()[0]: line.split()[1:] for line in text.splitlines() if line}


def test_list_shows_runs_in_every_state(call: Call, runs: Path, policy: Path) -> None:
    assert call("gate", runs / "done", "--policy", policy).code == ExitCode.PASS
    result = call("run", "list", runs)
    assert result.code == ExitCode.INTEGRITY
    table = rows(result.out.split("\n\n")[0])
    assert set(table) == {"run", "done", "halfway", "altered"}
    state, *steps, epsilon, delta = table["done"][:6]
    assert (state, steps, delta) == ("finished", ["30", "of", "30"], "1e-05")
    assert table["done"][6:] == ["PASS", "(another", "policy)"]  # than that of this project
    claim = json.loads((runs / "done" / "claim.json").read_text())
    assert float(epsilon) == pytest.approx(claim["epsilon"]["upper"], rel=1e-3)
    assert table["halfway"][0] == "unfinished"
    assert 0 < int(table["halfway"][1]) < 30
    assert 0 < float(table["halfway"][4]) < float(epsilon)
    assert table["altered"][0] == "damaged"
    assert table["altered"][1:] == ["-"] * 4
    assert "model.safetensors was altered" in result.out


def test_list_as_json(call: Call, runs: Path) -> None:
    result = call("run", "list", runs, "--format", "json")
    found = {one["run"]: one for one in json.loads(result.out)["runs"]}
    assert list(found) == ["altered", "done", "halfway"]
    assert found["done"]["state"] == "finished"
    assert found["done"]["outcome"] is None
    assert found["altered"]["epsilon_upper"] is None


def test_list_is_0_where_nothing_is_damaged(call: Call, runs: Path) -> None:
    shutil.rmtree(runs / "altered")
    assert call("run", "list", runs).code == ExitCode.PASS
    assert call("run", "list", runs / "done").out.count("finished") == 1


def test_list_of_no_runs(call: Call, tmp_path: Path) -> None:
    result = call("run", "list", tmp_path)
    assert (result.code, result.err) == (ExitCode.PASS, f"dpaudit: {tmp_path} holds no run\n")
    result = call("run", "list", tmp_path / "nowhere")
    assert result.code == ExitCode.USAGE
    assert "DPA101: folder must be a folder of runs that exists" in result.err


def test_show_prints_every_part(call: Call, runs: Path, policy: Path) -> None:
    assert call("gate", runs / "done", "--policy", policy).code == ExitCode.PASS
    result = call("run", "show", runs / "done")
    assert result.code == ExitCode.PASS
    headings = [line for line in result.out.splitlines() if line and not line.startswith(" ")]
    assert headings == ["run", "settings", "ledger", "files", "claim", "verdict"]
    for part in ("privacy.noise_multiplier", "claim.json", "epsilon is at most", "PASS"):
        assert part in result.out


def test_show_as_json(call: Call, runs: Path, policy: Path) -> None:
    assert call("gate", runs / "done", "--policy", policy).code == ExitCode.PASS
    found = json.loads(call("run", "show", runs / "done", "--format", "json").out)
    assert found["summary"]["outcome"] == "PASS"
    assert found["settings"]["privacy"]["noise_multiplier"] == 2.0
    assert found["claim"] == json.loads((runs / "done" / "claim.json").read_text())
    assert found["ledger"]["head"] == found["claim"]["ledger_head"]
    sizes = {one["name"]: one["size"] for one in found["files"]}
    assert sizes["ledger.jsonl"] == (runs / "done" / "ledger.jsonl").stat().st_size


def test_show_of_an_unfinished_run(call: Call, runs: Path) -> None:
    result = call("run", "show", runs / "halfway")
    assert result.code == ExitCode.PASS
    assert "unfinished" in result.out
    assert "upper bound" in result.out
    assert "no verified claim" in result.out


def test_show_of_a_damaged_run_names_the_problem(call: Call, runs: Path) -> None:
    result = call("run", "show", runs / "altered")
    assert result.code == ExitCode.INTEGRITY
    assert "damaged" in result.out
    assert "model.safetensors was altered" in result.out
    assert "privacy.noise_multiplier" in result.out
    assert "epsilon of the recorded releases" not in result.out


def test_show_of_a_torn_ledger(call: Call, runs: Path) -> None:
    ledger = runs / "done" / "ledger.jsonl"
    text = ledger.read_text()
    ledger.write_text(text.replace('"release"', '"releese"', 1))
    result = call("run", "show", runs / "done")
    assert result.code == ExitCode.INTEGRITY
    assert "ledger.jsonl" in result.out


def test_an_altered_claim_is_not_shown_as_one(call: Call, runs: Path) -> None:
    claim = runs / "done" / "claim.json"
    content = json.loads(claim.read_text())
    content["epsilon"]["upper"] *= 1.01
    claim.write_text(json.dumps(content))
    result = call("run", "show", runs / "done")
    assert result.code == ExitCode.INTEGRITY
    assert "does not match its ledger" in " ".join(result.out.split())
    assert "epsilon of the recorded releases" not in result.out


def test_a_verdict_that_is_out_of_date_is_not_shown(call: Call, runs: Path, policy: Path) -> None:
    run = runs / "done"
    assert call("gate", run, "--policy", policy).code == ExitCode.PASS
    assert call("audit", run).code == ExitCode.PASS
    found = json.loads(call("run", "show", run, "--format", "json").out)
    assert (found["summary"]["state"], found["verdict"]) == ("finished", None)
    assert "older than the newest measurement" in found["problems"][0]


def test_listing_and_showing_write_nothing(call: Call, runs: Path) -> None:
    before = {path: path.read_bytes() for path in runs.rglob("*") if path.is_file()}
    call("run", "list", runs)
    for name in ("done", "halfway", "altered"):
        call("run", "show", runs / name)
    assert before == {path: path.read_bytes() for path in runs.rglob("*") if path.is_file()}


def test_show_of_something_else_is_an_error(call: Call, tmp_path: Path) -> None:
    assert call("run", "show", tmp_path / "nowhere").code == ExitCode.USAGE
    assert call("run", "show", tmp_path).code == ExitCode.INTEGRITY
