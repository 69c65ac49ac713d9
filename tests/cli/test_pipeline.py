"""train, audit, gate and report on a real run, and on broken ones."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from calling import Call
from places import ROOT

SCHEMAS = ROOT / "dpaudit" / "vocabulary" / "schemas"
WritePolicy = Callable[..., Path]
POLICY = "[claim]\nmax_epsilon = {most}\ndelta = 1e-5\n{more}"


@pytest.fixture
def policy(tmp_path: Path) -> WritePolicy:
    def write(most: float = 10.0, more: str = "") -> Path:
        path = tmp_path / "policy.toml"
        path.write_text(POLICY.format(most=most, more=more))
        return path

    return write


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def check_schema(name: str, path: Path) -> None:
    schema = json.loads((SCHEMAS / f"{name}.json").read_text())
    jsonschema.validate(json.loads(path.read_text()), schema)


def test_the_run_directory_is_complete_and_its_json_valid(run_copy: Path, call: Call) -> None:
    names = {path.name for path in run_copy.iterdir()}
    assert names == {
        "config.toml",
        "ledger.jsonl",
        "model.safetensors",
        "canaries.npz",
        "canaries.secret.npz",
        "observations.npz",
        "claim.json",
    }
    check_schema("claim", run_copy / "claim.json")
    schema = json.loads((SCHEMAS / "ledger-entry.json").read_text())
    for line in (run_copy / "ledger.jsonl").read_text().splitlines():
        jsonschema.validate(json.loads(line)["entry"], schema)


def test_neither_ledger_nor_claim_names_the_number_of_records(run_copy: Path) -> None:
    for name in ("ledger.jsonl", "claim.json"):
        text = (run_copy / name).read_text()
        assert "dataset_size" not in text
        assert '"records"' not in text


def test_the_pipeline_ends_with_holds_and_exit_code_0(
    run_copy: Path, call: Call, policy: WritePolicy
) -> None:
    # A true claim is contradicted by the conditional bound once in 25,000 at this confidence.
    assert call("audit", run_copy, "--confidence", "0.999").code == 0
    check_schema("audit", run_copy / "audit.json")
    result = call("gate", run_copy, "--policy", policy(more="[audit]\n"))
    assert (result.code, result.out.split()[0]) == (0, "PASS")
    check_schema("verdict", run_copy / "verdict.json")
    assert call("report", run_copy).code == 0
    page = (run_copy / "report.html").read_text()
    assert "PASS" in page
    assert "<script" not in page


def test_failed_policy_exits_1_with_reasons(
    run_copy: Path, call: Call, policy: WritePolicy
) -> None:
    result = call("gate", run_copy, "--policy", policy(most=0.01))
    assert result.code == 1
    assert result.out.startswith("FAIL")
    assert "the policy allows 0.01" in result.out


def test_a_run_without_the_audit_that_is_demanded_exits_3(
    run_copy: Path,
    call: Call,
    policy: WritePolicy,
) -> None:
    result = call("gate", run_copy, "--policy", policy(more="[audit]\n"))
    assert result.code == 3
    assert "dpaudit audit RUN" in result.out


def test_a_seeded_run_does_not_pass_where_secure_randomness_is_demanded(
    call: Call,
    policy: WritePolicy,
    small_data: Path,
    tmp_path: Path,
) -> None:
    out = tmp_path / "seeded"
    plan = ("--noise-multiplier", "2", "--steps", "3", "--seed", "1")
    assert call("train", "--data", small_data, *plan, "--out", out).code == 0
    result = call("gate", out, "--policy", policy())
    assert result.code == 1
    assert "randomness was seeded" in result.out


def test_a_target_epsilon_is_met_from_below(call: Call, small_data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    plan = ("--target-epsilon", "2", "--steps", "20")
    assert call("train", "--data", small_data, *plan, "--out", out).code == 0
    epsilon = json.loads((out / "claim.json").read_text())["epsilon"]
    assert 1.97 < epsilon["upper"] <= 2.0


def test_a_run_that_exists_is_refused_and_left_as_it_was(
    call: Call, run_copy: Path, small_data: Path
) -> None:
    before = contents(run_copy)
    result = call("train", "--data", small_data, "--noise-multiplier", "2", "--out", run_copy)
    assert result.code == 2
    assert "--overwrite" in result.err
    assert contents(run_copy) == before


def test_overwrite_replaces_a_run_but_never_another_folder(
    call: Call, run_copy: Path, small_data: Path, tmp_path: Path
) -> None:
    plan = ("train", "--data", small_data, "--noise-multiplier", "2", "--steps", "3", "--overwrite")
    before = contents(run_copy)
    assert call(*plan, "--out", run_copy).code == 0
    assert contents(run_copy)["ledger.jsonl"] != before["ledger.jsonl"]
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.tex").write_text("years of work")
    assert call(*plan, "--out", precious).code == 2
    assert (precious / "thesis.tex").read_text() == "years of work"


def test_bad_data_leaves_the_run_that_it_would_have_overwritten(
    call: Call, run_copy: Path, tmp_path: Path
) -> None:
    before = contents(run_copy)
    bad = tmp_path / "bad.npz"
    np.savez(bad, x=np.full((20, 3), np.nan), y=np.arange(20) % 2)
    plan = ("--noise-multiplier", "2", "--overwrite", "--out", run_copy)
    result = call("train", "--data", bad, *plan)
    assert result.code == 2
    assert "NaN" in result.err
    assert result.err.count("\n") == 1
    assert contents(run_copy) == before


@pytest.mark.parametrize(
    ("option", "value", "named"),
    [
        ("--noise-multiplier", "-3", "noise_multiplier"),
        ("--noise-multiplier", "nan", "noise_multiplier"),
        ("--target-epsilon", "0", "target_epsilon"),
        ("--target-epsilon", "nan", "target_epsilon"),
        ("--sampling-rate", "1.7", "sampling_rate"),
        ("--clip-norm", "inf", "clip_norm"),
        ("--steps", "0", "steps"),
        ("--delta", "1", "delta"),
        ("--learning-rate", "nan", "learning_rate"),
        ("--momentum", "1", "momentum"),
        ("--canaries", "-1", "canaries"),
        ("--input-canaries", "100000", "input_canaries"),
        ("--expected-batch-size", "nan", "expected_batch_size"),
        ("--test-fraction", "0", "test_fraction"),
        ("--model", "transformer", "model"),
        ("--model", "nowhere.module:factory", "model"),
        ("--data", "nowhere.npz", "data"),
        ("--feature-range", "1 0", "feature_range"),
    ],
)
def test_bad_settings_are_named_in_one_line_and_make_no_run(
    call: Call, small_data: Path, tmp_path: Path, option: str, value: str, named: str
) -> None:
    out = tmp_path / "out"
    settings = {"--data": str(small_data), "--noise-multiplier": "2", "--steps": "2"}
    if option == "--target-epsilon":
        del settings["--noise-multiplier"]
    settings[option] = value
    arguments = [word for name, text in settings.items() for word in (name, *text.split())]
    result = call("train", *arguments, "--out", out)
    assert result.code == 2
    assert named in result.err
    assert result.err.count("\n") == 1
    assert not out.exists()


@pytest.mark.parametrize("command", ["epsilon", "audit", "gate", "report"])
@pytest.mark.parametrize(
    "damage",
    [
        "missing ledger",
        "torn ledger",
        "altered ledger",
        "altered model",
        "missing config",
        "not a run",
    ],
)
def test_a_damaged_run_exits_4_with_one_line(
    call: Call,
    run_copy: Path,
    policy: WritePolicy,
    command: str,
    damage: str,
) -> None:
    ledger = run_copy / "ledger.jsonl"
    match damage:
        case "missing ledger":
            ledger.unlink()
        case "torn ledger":
            ledger.write_bytes(ledger.read_bytes()[:-40])
        case "altered ledger":
            ledger.write_text(ledger.read_text().replace(":2.0}", ":9.0}", 1))
        case "altered model":
            content = bytearray((run_copy / "model.safetensors").read_bytes())
            content[-1] ^= 1
            (run_copy / "model.safetensors").write_bytes(content)
        case "missing config":
            (run_copy / "config.toml").unlink()
        case "not a run":
            shutil.rmtree(run_copy)
            run_copy.mkdir()
    before = contents(run_copy)
    more = ("--policy", policy()) if command == "gate" else ()
    result = call(command, run_copy, *more)
    assert result.code == 4
    assert result.err.count("\n") == 1
    assert str(run_copy) in result.err
    assert contents(run_copy) == before


def test_claim_of_another_ledger_is_refused(
    call: Call,
    run_copy: Path,
    policy: WritePolicy,
) -> None:
    claim = json.loads((run_copy / "claim.json").read_text())
    claim["epsilon"] = {"lower": 0.1, "upper": 0.2}
    (run_copy / "claim.json").write_text(json.dumps(claim))
    result = call("gate", run_copy, "--policy", policy())
    assert result.code == 4
    assert "claim.json" in result.err


def test_missing_policy_and_missing_run_exit_2(call: Call, trained: Path, tmp_path: Path) -> None:
    assert call("gate", trained, "--policy", tmp_path / "none.toml").code == 2
    assert call("gate", tmp_path / "nowhere").code == 2
    assert call("audit", tmp_path / "nowhere").code == 2


def test_resume_takes_no_settings_of_its_own(call: Call, trained: Path) -> None:
    result = call("train", "--resume", "--out", trained, "--noise-multiplier", "2")
    assert result.code == 2
    assert "--noise-multiplier" in result.err


def test_a_finished_run_cannot_be_resumed(call: Call, run_copy: Path) -> None:
    before = contents(run_copy)
    result = call("train", "--resume", "--out", run_copy)
    assert result.code == 2
    assert "finished" in result.err
    assert contents(run_copy) == before
