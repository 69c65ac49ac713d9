"""Progress of long commands: on standard error, on a terminal only, with the time left."""

from __future__ import annotations

import io
import itertools
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from calling import Call

from dpaudit.attacks import conformance
from dpaudit.cli.printing import progress_bars
from dpaudit.vocabulary.errors import ExitCode, InvalidArgument
from dpaudit.workflow.audit import run_audit

ATTACK = ("--attack", "lira-offline", "--attack", "loss", "--references", "4", "--epochs", "3")


class Terminal(io.StringIO):
    """Standard error that is a terminal."""

    def isatty(self) -> bool:
        return True


OnTerminal = Callable[..., tuple[int, str]]


@pytest.fixture
def on_terminal(call: Call, monkeypatch: pytest.MonkeyPatch) -> OnTerminal:
    """Call the program; return its exit code and what a terminal shows of standard error."""

    def run(*arguments: object) -> tuple[int, str]:
        stream = Terminal()
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stderr", stream)
            code = call(*arguments).code
        return code, stream.getvalue()

    return run


def ends(text: str, stage: str) -> bool:
    """Return whether a bar of a stage came to its end."""
    return re.search(rf"{stage}  \[#+\]  100%", text) is not None


def test_an_attack_shows_training_and_attacks(run_copy: Path, on_terminal: OnTerminal) -> None:
    code, shown = on_terminal("attack", run_copy, *ATTACK)
    assert code in {ExitCode.PASS, ExitCode.INCONCLUSIVE}
    assert ends(shown, "training reference models")
    assert ends(shown, "running attacks")


def test_training_shows_progress(small_data: Path, tmp_path: Path, on_terminal: OnTerminal) -> None:
    plan = ("--noise-multiplier", "2", "--steps", "20", "--out", tmp_path / "out")
    code, shown = on_terminal("train", "--data", small_data, *plan)
    assert code == ExitCode.PASS
    assert ends(shown, "training")


def test_a_bar_shows_the_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    stream, clock = Terminal(), itertools.count(0, 2)
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr("time.time", lambda: float(next(clock)))
    with progress_bars() as bars:
        bars.start("a stage", 10)
        bars.advance()
        bars.advance(4)
    assert re.search(r"a stage  \[#+-+\]   50%  00:00:\d\d", stream.getvalue())


@pytest.mark.parametrize(
    ("command", "stage"), [("audit", "auditing"), ("report", "computing epsilon curves")]
)
def test_audit_and_report_show_progress(
    run_copy: Path, on_terminal: OnTerminal, command: str, stage: str
) -> None:
    code, shown = on_terminal(command, run_copy)
    assert code == ExitCode.PASS
    assert ends(shown, stage)


def test_conformance_shows_progress(
    run_copy: Path, on_terminal: OnTerminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    little = conformance.Effort(
        noise_samples=2_000, sampler_steps=20, longest_run=10, replays=1, longest_replay=20,
        search_steps=100,
    )  # fmt: skip
    monkeypatch.setattr(conformance, "Effort", lambda: little)
    assert ends(on_terminal("conformance", run_copy)[1], "conformance checks")


def test_no_bar_with_quiet(run_copy: Path, on_terminal: OnTerminal) -> None:
    assert on_terminal("-q", "report", run_copy) == (ExitCode.PASS, "")


def test_no_bar_without_a_terminal(call: Call, run_copy: Path) -> None:
    result = call("report", run_copy)
    assert (result.code, result.err) == (ExitCode.PASS, "")


def test_verbose_prints_the_time_of_each_stage(call: Call, run_copy: Path) -> None:
    err = call("report", run_copy, "-v").err
    assert re.search(r"^dpaudit: computing epsilon curves took [\d.]+ s$", err, re.MULTILINE)


def test_an_error_begins_on_a_line_of_its_own(
    run_copy: Path, on_terminal: OnTerminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise InvalidArgument("planted", 1, "2")

    monkeypatch.setattr(run_audit, "_of_model", fails)
    code, shown = on_terminal("audit", run_copy)
    assert code == ExitCode.USAGE
    assert shown.splitlines()[-1] == "dpaudit: error DPA101: planted must be 2, got 1"
