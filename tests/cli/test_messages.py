"""Messages of common mistakes: what was given, what is allowed, what to do."""

from __future__ import annotations

import io
import sys
import types
import warnings
from pathlib import Path

import pytest
from calling import Call

from dpaudit.vocabulary.errors import ExitCode

POLICY = "[claim]\nmax_epsilon = {}\ndelta = 1e-5\n"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def plan(small_data: Path) -> Path:
    Path("plan.toml").write_text(
        f"[data]\nsource = '{small_data}'\n[privacy]\nnoise_multiplier = 6.0\n"
    )
    return Path("plan.toml")


@pytest.mark.parametrize(
    ("value", "key", "allowed"),
    [
        ('"0.1"', "max_epsilon", "must be a number, got text: write it without quotes"),
        ('"10"', "dataset_size", "must be a whole number, got text: write it without quotes"),
        ('"true"', "require_secure_randomness", "must be true or false, got text"),
    ],
)
def test_quoted_number_in_a_policy_is_named_with_its_line(
    call: Call, value: str, key: str, allowed: str
) -> None:
    Path("dpaudit.toml").write_text(
        f"{POLICY.format(3.0)}{key} = {value}\n" if key != "max_epsilon" else POLICY.format(value)
    )
    result = call("config", "check")
    line = 2 if key == "max_epsilon" else 4
    assert result.code == ExitCode.USAGE
    assert f"claim.{key} in dpaudit.toml:{line} {allowed}" in result.err


@pytest.mark.parametrize(
    ("given", "full"),
    [("max_epsilon=3", "claim.max_epsilon=3"), ("count=x", "audit.count=x")],
)
def test_assignment_without_a_section_names_the_full_key(call: Call, given: str, full: str) -> None:
    Path("dpaudit.toml").write_text(POLICY.format(3.0))
    result = call("config", "check", "--set", given)
    assert result.code == ExitCode.USAGE
    assert f"section of the key: {full}, got '{given}'" in result.err


def test_verdict_on_plans_says_that_nothing_was_trained(call: Call, plan: Path) -> None:
    Path("dpaudit.toml").write_text(POLICY.format(3.0))
    for command in (("config", "check", plan), ("train", plan, "--dry-run")):
        result = call(*command)
        assert result.code == ExitCode.PASS
        assert "PASS (of plans: nothing was trained)" in result.out
        assert "not recorded" not in result.out


@pytest.mark.parametrize("missing", ["nowhere.npz", "folder/of/images"])
def test_dry_run_refuses_data_that_do_not_exist(call: Call, missing: str) -> None:
    result = call("train", "--data", missing, "--noise-multiplier", 2, "--dry-run")
    assert result.code == ExitCode.USAGE
    assert missing in result.err


@pytest.mark.parametrize(
    ("options", "allowed"),
    [((), "a preset (dpaudit train --list-presets)"), (("--noise-multiplier", 0), "without noise")],
)
def test_training_without_noise_names_what_determines_it(
    call: Call, small_data: Path, options: tuple[object, ...], allowed: str
) -> None:
    result = call("train", "--data", small_data, *options, "--out", "run")
    assert result.code == ExitCode.USAGE
    assert "noise_multiplier must be" in result.err
    assert allowed in result.err


@pytest.mark.parametrize("command", ["epsilon", "tradeoff"])
def test_accounting_without_a_plan_lists_the_ways_to_give_one(call: Call, command: str) -> None:
    result = call(command)
    assert result.code == ExitCode.USAGE
    assert "give a RUN, a FILE, or a plan: --noise-multiplier with" in result.err


def test_existing_policy_is_named_with_the_option_for_another(call: Call, trained: Path) -> None:
    Path("dpaudit.toml").write_text(POLICY.format(3.0))
    result = call("init", trained)
    assert result.code == ExitCode.USAGE
    assert "name another one by --output, or remove it, got 'dpaudit.toml'" in result.err


def test_watching_a_finished_run_says_what_to_do(call: Call, trained: Path) -> None:
    result = call("watch", trained)
    assert result.code == ExitCode.PASS
    assert "is finished, so there is nothing to wait for; dpaudit run show" in result.err
    assert call("watch", trained, "--once").err == ""


def test_policy_of_standard_input_has_no_path(
    call: Call, run_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = types.SimpleNamespace(buffer=io.BytesIO(POLICY.format(9.0).encode()))
    monkeypatch.setattr(sys, "stdin", stream)
    result = call("gate", run_copy, "--policy", "-")
    assert result.code == ExitCode.PASS
    assert "--policy = standard input" in result.out
    assert "dpaudit-" not in result.out


def test_run_list_marks_a_verdict_by_another_policy(call: Call, run_copy: Path) -> None:
    Path("dpaudit.toml").write_text(POLICY.format(9.0))
    Path("other.toml").write_text(POLICY.format(99.0))
    assert call("gate", run_copy).code == ExitCode.PASS
    assert "another policy" not in call("run", "list", run_copy).out
    assert call("gate", run_copy, "--policy", "other.toml").code == ExitCode.PASS
    assert "PASS (another policy)" in call("run", "list", run_copy).out


@pytest.mark.parametrize("kept", [0, 0.5])
def test_cut_seal_is_a_damaged_run(call: Call, run_copy: Path, kept: float) -> None:
    ledger = run_copy / "ledger.jsonl"
    *lines, seal, _ = ledger.read_bytes().split(b"\n")
    assert b'"files"' in seal
    ledger.write_bytes(b"\n".join(lines) + b"\n" + seal[: int(kept * len(seal))])
    result = call("run", "show", run_copy)
    assert result.code == ExitCode.INTEGRITY
    assert "dpaudit finish" in result.out
    assert call("run", "list", run_copy).code == ExitCode.INTEGRITY


@pytest.mark.parametrize("action", ["default", "error"])
def test_old_names_are_one_warning_per_file_and_no_error(
    call: Call, run_copy: Path, action: str
) -> None:
    """As PYTHONWARNINGS=error, which every other Python warning obeys."""
    text = POLICY.format(9.0) + "may_leave_out = []\n"
    Path("dpaudit.toml").write_text(text)
    with warnings.catch_warnings():
        warnings.simplefilter(action)  # type: ignore[arg-type]
        result = call("gate", run_copy)
    assert result.code == ExitCode.PASS
    assert result.err.count("dpaudit.toml uses names of dpaudit 0.1") == 1


@pytest.mark.parametrize("view", ["xx", "every step"])
def test_unknown_view_is_refused_before_anything_is_measured(run_copy: Path, view: str) -> None:
    import dpaudit
    from dpaudit.vocabulary.errors import InvalidArgument

    with pytest.raises(InvalidArgument, match="view must be one of every-step, final-iterate"):
        dpaudit.audit_run(run_copy, view=view)
    assert not (run_copy / "audit.json").exists()
