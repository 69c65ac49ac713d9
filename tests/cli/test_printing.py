"""What commands print: one place, no raw control character, typed errors of the streams."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from calling import Call
from places import ROOT

from dpaudit.cli.printing import escaped, printable_path
from dpaudit.vocabulary.errors import ExitCode
from tests.cli.installed import WarmProgram, run, script

CLI = ROOT / "dpaudit" / "cli"
HOSTILE = ("\x1b]0;title\x07\x1b[31m\nHOLDS", "a\x9b31m\u202etxt.exe", "b\r\x08\x7f\u2028")
RAW = {*map(chr, (*range(9), *range(11, 32), *range(127, 160))), "\u202e", "\u2028"}


@pytest.mark.parametrize("path", sorted(CLI.glob("*.py")), ids=lambda path: path.stem)
def test_nothing_prints_elsewhere(path: Path) -> None:
    """click's own functions, print and the streams would let raw text through."""
    if path.stem == "printing":
        return
    calls = [
        ast.unparse(n.func)
        for n in ast.walk(ast.parse(path.read_text()))
        if isinstance(n, ast.Call)
    ]
    printing = {"click.echo", "click.secho", "print", "sys.stdout.write", "sys.stderr.write"}
    assert not printing & set(calls)


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_is_printed_on_one_line_and_json_stays_json(name: str) -> None:
    shown = printable_path(name)
    assert not RAW & set(shown)
    assert "\n" not in shown
    text = json.dumps({"name": name}, ensure_ascii=False)
    assert json.loads(escaped(text))["name"] == name


def test_plain_text_is_left_alone() -> None:
    text = "épsilon ≤ 3\n\tβ 数 🙂"
    assert escaped(text) == text
    assert escaped("\udce9") == "\\udce9"


def commands_on(folder: bytes, other: Path) -> tuple[list[str | bytes], ...]:
    return (
        ["gate", folder, "--policy", "p.toml"],
        ["gate", folder, "--policy", "p.toml", "--format", "json", "--history", "."],
        ["report", folder],
        ["watch", folder, "--once"],
        ["compare", folder, os.fsencode(other)],
        ["baseline", "write", folder, "-o", "b.json"],
        ["finish", folder],
        ["epsilon", os.path.join(folder, b"nowhere")],
    )


def copied(trained: Path, folder: Path, name: bytes) -> bytes:
    """Copy the run to a folder of some name, with a policy beside it."""
    path = os.path.join(os.fsencode(folder), name)
    shutil.copytree(os.fsencode(trained), path)
    (folder / "p.toml").write_text("[claim]\nmax_epsilon = 10.0\ndelta = 1e-5\n")
    return path


@pytest.mark.parametrize("name", HOSTILE)
def test_runs_of_any_name_are_evaluated_and_reported(
    trained: Path, tmp_path: Path, name: str, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copied(trained, tmp_path, os.fsencode(name))
    monkeypatch.chdir(tmp_path)
    for command in commands_on(folder, trained):
        result = call(*(os.fsdecode(word) for word in command))
        assert result.code in {0, 2}, result.err
        assert not RAW & set(result.out + result.err)
        assert "\nHOLDS'" not in result.out + result.err


@pytest.mark.slow
def test_run_whose_name_is_no_utf8_is_evaluated_by_the_installed_program(
    trained: Path, tmp_path: Path
) -> None:
    for command in commands_on(copied(trained, tmp_path, b"caf\xe9"), trained):
        done = subprocess.run([script(), *command], cwd=tmp_path, capture_output=True, check=False)
        assert done.returncode in {0, 2}, done.stderr
        said = (done.stdout + done.stderr).decode()
        assert not RAW & set(said)


COMMANDS = pytest.mark.parametrize(
    "command",
    [("gate", "run"), ("epsilon", "run"), ("--help",), ("gate", "--help"), ("--version",)],
)


@pytest.fixture
def project(trained: Path, tmp_path: Path) -> Path:
    shutil.copytree(trained, tmp_path / "run")
    (tmp_path / "dpaudit.toml").write_text("[claim]\nmax_epsilon = 10.0\ndelta = 1e-5\n")
    return tmp_path


@COMMANDS
def test_a_closed_pipe_is_141(project: Path, command: tuple[str, ...]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [script(), *command], cwd=project, stdout=writing, stderr=subprocess.PIPE, check=False
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (ExitCode.CLOSED_PIPE, b"")


def test_a_violated_policy_stays_one_where_the_pipe_closes_late(
    project: Path, program: WarmProgram
) -> None:
    done = run(
        ["sh", "-c", f"{script()} gate run --set claim.max_epsilon=0.01 | cat >/dev/null"], project
    )
    assert done.code == 0  # of cat
    (project / "dpaudit.toml").write_text("[claim]\nmax_epsilon = 0.01\ndelta = 1e-5\n")
    assert program(project, "gate", "run").code == ExitCode.FAIL


@COMMANDS
def test_a_full_device_is_5_and_one_line(project: Path, command: tuple[str, ...]) -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [script(), *command], cwd=project, stdout=full, stderr=subprocess.PIPE, check=False
        )
    assert done.returncode == ExitCode.IO
    assert done.stderr.count(b"\n") == 1
    assert b"No space left" in done.stderr


@pytest.mark.parametrize("closed", ["1", "2", "0"])
def test_a_closed_stream_is_no_file_of_the_run(
    project: Path, closed: str, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = f"exec {closed}>&-; exec {script()} gate run"
    done = run(["sh", "-c", command], project)
    assert done.code == (ExitCode.IO if closed == "1" else ExitCode.PASS)
    monkeypatch.chdir(project)
    assert call("gate", "run").code == ExitCode.PASS


@pytest.mark.parametrize("device", ["/dev/full", "nowhere/x", "x" * 300])
def test_an_output_that_cannot_be_written_is_one_line(
    project: Path, program: WarmProgram, device: str
) -> None:
    done = program(project, "epsilon", "run", "-o", device)
    assert done.code == (ExitCode.IO if device == "/dev/full" else ExitCode.USAGE)
    assert done.err.count("\n") == 1


def test_an_interrupt_is_130(project: Path) -> None:
    code = (
        "import sys, dpaudit.gate.policy_evaluation\n"
        "def stop(*_, **__): raise KeyboardInterrupt\n"
        "dpaudit.gate.policy_evaluation.evaluate_policy = stop\n"
        "sys.argv = ['dpaudit', 'gate', 'run']\n"
        "from dpaudit.cli.entry_point import main; main()"
    )
    done = run([sys.executable, "-c", code], project)
    assert (done.code, done.err) == (ExitCode.INTERRUPTED, "dpaudit: interrupted\n")
