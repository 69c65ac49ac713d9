"""All commands: help that fits 80 columns, suggestions for misspelt words, -q and -v."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from calling import Call
from places import ROOT

from dpaudit.cli.commands import Command, Group
from dpaudit.cli.entry_point import SECTIONS, cli
from dpaudit.vocabulary.errors import ExitCode, InvalidArgument
from dpaudit.workflow.train.settings_layers import read_config_file

PLAN = ("--sampling-rate", "0.01", "--noise-multiplier", "1", "--steps", "10")


def below(command: click.Command, *path: str) -> Iterator[tuple[str, ...]]:
    yield path
    if isinstance(command, click.Group):
        for name, one in command.commands.items():
            yield from below(one, *path, name)


COMMANDS = list(below(cli))


def found(path: tuple[str, ...]) -> click.Command:
    command: click.Command = cli
    for name in path:
        assert isinstance(command, click.Group)
        command = command.commands[name]
    return command


# Help.


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_no_line_of_help_is_longer_than_80_columns(
    call: Call, monkeypatch: pytest.MonkeyPatch, path: tuple[str, ...]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    result = call(*path, "--help")
    assert result.code == 0
    assert [line for line in result.out.splitlines() if len(line) > 80] == []


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_no_summary_of_a_command_is_cut(call: Call, path: tuple[str, ...]) -> None:
    command = found(path)
    if path:
        lists = call(*path[:-1], "--help").out.splitlines()
        (line,) = (one for one in lists if one.split()[:1] == [path[-1]])
        assert line.endswith(".")
        assert not line.endswith("...")
    assert isinstance(command, Group if isinstance(command, click.Group) else Command)


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_every_option_has_a_help_text(path: tuple[str, ...]) -> None:
    options = [one for one in found(path).params if isinstance(one, click.Option)]
    assert [one.name for one in options if not one.help] == []


@pytest.mark.parametrize("path", COMMANDS)
def test_no_command_has_an_option_twice(path: tuple[str, ...]) -> None:
    options = [option for one in found(path).params for option in one.opts]
    assert len(options) == len(set(options))


def test_help_lists_the_commands_in_sections(call: Call) -> None:
    out = call("--help").out
    headings = re.findall(r"^(\w+):$", out, re.MULTILINE)
    assert headings == ["Options", "Train", "Account", "Audit", "Gate", "Report", "Other"]
    assert {command for commands in SECTIONS.values() for command in commands} == set(
        cli.commands.values()
    )


# Suggestions.


@pytest.mark.parametrize(
    ("arguments", "suggestion"),
    [
        (("epsilo",), "no such command epsilo; did you mean epsilon?"),
        (("canaries", "mak"), "no such command mak; did you mean make?"),
        (("export", "runs/demo"), "no such command runs/demo; there are mlflow, tensorboard"),
        (("train", "--tagret-epsilon", "3"), "; did you mean --target-epsilon?"),
        (("train", "--tagret-epsilon=3"), "; did you mean --target-epsilon?"),
        (("--versoin",), "no such option --versoin; did you mean --version?"),
        (("epsilon", *PLAN, "--accountant", "pdl"), "; did you mean pld?"),
        (("attack", "--attack", "lira-onlin"), "; did you mean lira-online?"),
        (("gate", "run", "--format", "sariff"), "; did you mean sarif?"),
    ],
)
def test_a_misspelt_word_gets_a_suggestion(
    call: Call, arguments: tuple[str, ...], suggestion: str
) -> None:
    result = call(*arguments)
    assert result.code == ExitCode.USAGE
    assert result.err.endswith(f"{suggestion}\n")
    assert result.err.count("\n") == 1


def test_a_word_that_is_close_to_none_gets_no_suggestion(call: Call) -> None:
    result = call("epsilon", *PLAN, "--accountant", "xyzzy")
    assert result.code == ExitCode.USAGE
    assert "did you mean" not in result.err
    assert "all, naive, rdp, pld, zcdp, gdp" in result.err


def test_a_choice_of_a_variable_is_checked_too(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DPAUDIT_EPSILON_ACCOUNTANT", "pdl")
    result = call("epsilon", *PLAN, "--delta", "1e-5")
    assert result.code == ExitCode.USAGE
    assert "did you mean pld?" in result.err


def test_a_misspelt_key_of_a_settings_file_gets_a_suggestion(tmp_path: Path) -> None:
    path = tmp_path / "settings.toml"
    path.write_text("[privacy]\nclip_nrom = 0.2\n")
    with pytest.raises(
        InvalidArgument, match=r"clip_nrom.*; did you mean clip_norm\?; allowed here: sampling_rate"
    ):
        read_config_file(path)
    path.write_text("[privcy]\n")
    with pytest.raises(
        InvalidArgument, match=r"privcy.*; did you mean privacy\?; allowed here: data, privacy"
    ):
        read_config_file(path)


# -q and -v.


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    path = tmp_path / "policy.toml"
    path.write_text("[claim]\nmax_epsilon = 1.0\ndelta = 1e-5\n")
    return path


def without_times(text: str) -> str:
    return re.sub(r"\d\d:\d\d(:\d\d)?", "", text)


@pytest.fixture
def old_run(tmp_path: Path) -> Path:
    """Return a run of 0.1, whose names are read with a warning."""
    shutil.copytree(ROOT / "tests" / "golden" / "version_0_1" / "run", tmp_path / "old")
    return tmp_path / "old"


@pytest.mark.parametrize("place", ["before", "after"])
def test_quiet_hides_warnings_and_changes_nothing_else(
    call: Call, old_run: Path, place: str
) -> None:
    arguments = ("epsilon", old_run)
    loud = call(*arguments)
    quiet = call("-q", *arguments) if place == "before" else call(*arguments, "--quiet")
    assert "uses names of dpaudit 0.1" in loud.err
    assert (quiet.code, quiet.err) == (loud.code, "") == (ExitCode.PASS, "")
    assert quiet.out == loud.out


def test_quiet_does_not_hide_what_loosens_a_gate(call: Call, run_copy: Path, policy: Path) -> None:
    arguments = ("gate", run_copy, "--policy", policy, "--set", "claim.max_epsilon=99")
    loud = call(*arguments)
    assert loud.err == "dpaudit: claim.max_epsilon is set by --set claim.max_epsilon\n"
    assert call("-q", *arguments).err == loud.err


def test_quiet_does_not_hide_errors(call: Call) -> None:
    result = call("-q", "epsilon", "nowhere")
    assert result.code == ExitCode.USAGE
    assert result.err.startswith("dpaudit: error DPA101: run must be")


def test_quiet_ends_with_the_command(call: Call, old_run: Path) -> None:
    assert call("-q", "epsilon", old_run).err == ""
    assert call("epsilon", old_run).err != ""


def test_no_variable_makes_a_command_quiet(
    call: Call, run_copy: Path, policy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else an environment could hide that it loosens a gate."""
    monkeypatch.setenv("DPAUDIT_QUIET", "1")
    monkeypatch.setenv("DPAUDIT_GATE_QUIET", "1")
    monkeypatch.setenv("DPAUDIT_GATE_INCONCLUSIVE", "warn")
    assert "DPAUDIT_GATE_INCONCLUSIVE" in call("gate", run_copy, "--policy", policy).err


@pytest.mark.parametrize("place", ["before", "after"])
def test_verbose_names_the_files_that_are_read(
    call: Call, run_copy: Path, policy: Path, place: str
) -> None:
    arguments = ("gate", run_copy, "--policy", policy)
    usual = call(*arguments)
    result = call("-v", *arguments) if place == "before" else call(*arguments, "-v")
    assert result.code == usual.code
    assert without_times(result.out) == without_times(usual.out)
    for path in (policy, run_copy / "ledger.jsonl", run_copy / "claim.json"):
        assert re.search(rf"^dpaudit: \[[\d.]+ s\] read {path}$", result.err, re.MULTILINE)


def test_verbose_shows_where_an_error_was_raised(call: Call) -> None:
    arguments = ("epsilon", *PLAN, "--delta", "2")
    result = call(*arguments, "-v")
    assert result.code == ExitCode.USAGE
    assert "Traceback (most recent call last)" in result.err
    assert result.err.splitlines()[-1] == call(*arguments).err.strip()
