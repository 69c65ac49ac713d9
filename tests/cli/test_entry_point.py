"""The program as a whole: exit codes, variables, and what a person sees while it trains."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from calling import Call

from dpaudit.vocabulary.errors import ExitCode
from dpaudit.vocabulary.settings import PrivacySettings
from dpaudit.workflow import run_claims
from dpaudit.workflow.gate import run_evaluation


def test_internal_error_exits_70_and_asks_for_a_report(
    call: Call, trained: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(run_evaluation, "evaluate_policy", broken)
    policy = tmp_path / "dpaudit.toml"
    policy.write_text("[claim]\nmax_epsilon = 3.0\ndelta = 1e-5\n")
    result = call("gate", trained, "--policy", policy)
    assert result.code == ExitCode.BUG == 70
    assert "bug of dpaudit" in result.err


@pytest.mark.parametrize("asked", [None, 0, 1, "done"])
def test_code_that_ends_the_process_is_no_success(
    call: Call, trained: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, asked: object
) -> None:
    def ends(*_: object, **__: object) -> None:
        sys.exit(asked)  # type: ignore[arg-type]

    monkeypatch.setattr(run_evaluation, "evaluate_policy", ends)
    policy = tmp_path / "dpaudit.toml"
    policy.write_text("[claim]\nmax_epsilon = 3.0\ndelta = 1e-5\n")
    result = call("gate", trained, "--policy", policy)
    assert result.code == 2
    assert "raised SystemExit" in result.err
    assert result.err.count("\n") == 1


def test_options_can_be_set_by_variables(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DPAUDIT_EPSILON_DELTA", "1e-6")
    plan = ("--sampling-rate", "0.01", "--noise-multiplier", "1", "--steps", "10")
    result = call("epsilon", *plan, "--accountant", "naive", "--format", "json")
    assert json.loads(result.out)["delta"] == 1e-6


def test_the_budget_on_the_progress_bar_rises_and_ends_at_the_claim() -> None:
    privacy = PrivacySettings(
        sampling_rate=0.1, noise_multiplier=2.0, clip_norm=1.0, steps=50, delta=1e-5
    )
    spent = run_claims.epsilon_progress(privacy)
    shown = [spent(done) for done in range(1, 51)]
    assert shown == sorted(shown)
    for done in (1, 13, 50):
        assert spent(done) >= run_claims.planned_epsilon(privacy, done)
    assert spent(50) == run_claims.planned_epsilon(privacy)


def test_help_names_every_command(call: Call) -> None:
    result = call("--help")
    assert result.code == 0
    for command in ("train", "epsilon", "audit", "gate", "report"):
        assert command in result.out
        assert call(command, "--help").code == 0


def test_a_command_that_does_not_exist_exits_2_in_one_line(call: Call) -> None:
    result = call("certify")
    assert result.code == 2
    assert result.err.count("\n") == 1
    assert "certify" in result.err


@pytest.mark.parametrize("arguments", [(), ("run",)])
def test_a_group_without_a_command_prints_its_help(call: Call, arguments: tuple[str, ...]) -> None:
    result = call(*arguments)
    assert result.code == ExitCode.USAGE
    assert result.err.startswith("Usage: dpaudit")
    assert len(result.err.splitlines()) > 5
