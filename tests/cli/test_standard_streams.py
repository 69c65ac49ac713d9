"""``-`` for standard input and output, and colour on a terminal only."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from calling import Call

from dpaudit.cli import options, printing
from dpaudit.vocabulary.errors import ExitCode

OPACUS = "[[1.0, 0.01, 100]]"
PLAN = ("--sampling-rate", "0.01", "--noise-multiplier", "1", "--steps", "100")
Give = Callable[[str], None]
DELTA = ("--delta", "1e-5")
CLAIMED = ("--claim-epsilon", "4", *DELTA)


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Give]:
    """Set the text of standard input; temporary files are made in an empty folder."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    monkeypatch.chdir(tmp_path)

    def give(text: str) -> None:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text.encode())))

    yield give
    assert list(folder.iterdir()) == []


def scores() -> str:
    rows = [f"{i / 300 + i % 2},{i % 2}" for i in range(300)]
    return "\n".join(["score,member", *rows])


def test_output_to_a_dash_is_standard_output(call: Call, tmp_path: Path) -> None:
    usual = call("epsilon", *PLAN, *DELTA)
    assert call("epsilon", *PLAN, *DELTA, "-o", "-") == usual
    assert usual.out


def test_a_report_to_standard_output(call: Call, run_copy: Path) -> None:
    result = call("report", run_copy, "-o", "-")
    assert result.code == ExitCode.PASS
    assert result.out.startswith("<!")
    assert "wrote" not in result.out[-200:]


@pytest.mark.parametrize(
    "command", [("init", "run"), ("baseline", "write", "run"), ("canaries", "make")]
)
def test_other_commands_write_no_file_called_dash(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    result = call(*command, "-o", "-")
    assert result.code == ExitCode.USAGE
    assert "name a file" in result.err


def test_a_history_from_standard_input(call: Call, given: Give, tmp_path: Path) -> None:
    (tmp_path / "history.json").write_text(OPACUS)
    arguments = ("epsilon", "--from", "opacus", *DELTA, "--format", "json")
    expected = call(*arguments, "history.json")
    assert expected.code == ExitCode.PASS, expected.err
    given(OPACUS)
    assert call(*arguments, "-") == expected


def test_results_can_be_piped_into_the_gate(call: Call, given: Give, tmp_path: Path) -> None:
    (tmp_path / "scores.csv").write_text(scores())
    audit = call("audit", "--scores", "scores.csv", *CLAIMED, "--format", "json", "-o", "-")
    (tmp_path / "audit.json").write_text(audit.out)
    expected = call("gate", "--audit", "audit.json", *CLAIMED)
    given(audit.out)
    result = call("gate", "--audit", "-", *CLAIMED)
    assert result.code == expected.code
    assert len(result.out.splitlines()) == len(expected.out.splitlines())


@pytest.mark.parametrize("command", ["audit", "attack"])
def test_scores_from_standard_input(call: Call, given: Give, tmp_path: Path, command: str) -> None:
    (tmp_path / "scores.csv").write_text(scores())
    options_ = () if command == "attack" else CLAIMED
    expected = json.loads(
        call(command, "--scores", "scores.csv", *options_, "--format", "json").out
    )
    given(scores())
    found = json.loads(call(command, "--scores", "-", *options_, "--format", "json").out)
    for one in (found, expected):
        one.pop("attacked", None)
    assert found == expected


def test_a_policy_from_standard_input(call: Call, given: Give, run_copy: Path) -> None:
    given("[claim]\nmax_epsilon = 0.01\ndelta = 1e-5\n")
    assert call("gate", run_copy, "--policy", "-").code == ExitCode.FAIL
    given("[claim]\nmax_epsilom = 0.01\n")
    result = call("gate", run_copy, "--policy", "-")
    assert result.code == ExitCode.USAGE
    assert "standard input:2; did you mean max_epsilon?" in result.err


def test_standard_input_is_read_by_one_option(call: Call, given: Give) -> None:
    given("{}")
    result = call("gate", "--audit", "-", "--attack", "-", *CLAIMED)
    assert result.code == ExitCode.USAGE
    assert "can be read once" in result.err


def test_standard_input_has_a_limit(
    call: Call, given: Give, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert options.InputPath(".json").limit == 8 << 20
    given("x" * ((8 << 20) + 1))
    result = call("epsilon", "--from", "opacus", "-", *DELTA)
    assert result.code == ExitCode.USAGE
    assert "more than 8388608 bytes" in result.err


# Colour.


class Terminal(io.StringIO):
    """A stream that is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("stream", "variables", "coloured"),
    [
        (Terminal(), {}, True),
        (Terminal(), {"NO_COLOR": "1"}, False),
        (Terminal(), {"NO_COLOR": ""}, True),
        (Terminal(), {"TERM": "dumb"}, False),
        (io.StringIO(), {}, False),
        (None, {}, False),
    ],
)
def test_colour_is_for_a_terminal_without_no_color(
    monkeypatch: pytest.MonkeyPatch,
    stream: io.StringIO | None,
    variables: dict[str, str],
    coloured: bool,
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert printing.has_colour(stream) is coloured


def test_outcomes_are_coloured_and_nothing_else(
    call: Call, run_copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = tmp_path / "policy.toml"
    policy.write_text("[claim]\nmax_epsilon = 0.01\ndelta = 1e-5\n")
    arguments = ("gate", run_copy, "--policy", policy)
    plain = call(*arguments).out
    assert "\x1b" not in plain
    monkeypatch.setattr(printing, "has_colour", lambda stream: True)
    shown = call(*arguments).out
    assert "\x1b[31mFAIL\x1b[0m  claim.max_epsilon" in shown
    assert "\x1b[32mPASS\x1b[0m" in shown
    times = re.compile(r"\d\d:\d\d(:\d\d)?")
    without = re.sub(r"\x1b\[\d+m", "", shown)
    assert times.sub("", without) == times.sub("", plain)
    assert "\x1b" not in call(*arguments, "--format", "json").out


@pytest.mark.parametrize(
    "arguments",
    [
        ("epsilon", *PLAN, *DELTA),
        ("sweep", "--sampling-rate", "0.1", "--noise-multiplier", "2", "--steps", "9", *DELTA),
        ("attack", "--scores", "scores.csv", "--plot", "plot.svg"),
        ("audit", "--scores", "scores.csv", "--claim-epsilon", "40", "--plot", "plot.svg"),
    ],
)
def test_every_written_file_is_named_on_standard_error_unless_quiet(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "scores.csv").write_text(scores())
    output = "out.csv" if arguments[0] in {"attack", "sweep"} else "out.txt"
    for target in ["plot.svg"] if "--plot" in arguments else []:
        assert f"dpaudit: wrote {target}\n" in call(*arguments).err
    done = call(*arguments, "-o", output)
    assert done.code == 0, done.err
    assert f"dpaudit: wrote {output}\n" in done.err
    assert (tmp_path / output).stat().st_size > 0
    assert call(*arguments, "-o", output, "-q").err == ""
