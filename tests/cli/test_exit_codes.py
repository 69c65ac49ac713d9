"""Every exit code of the installed program, and what the shell sees beside it."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

import pytest

from dpaudit.vocabulary.errors import ExitCode
from tests.cli.installed import WarmProgram, dpaudit, run, script

CLAIM = "[claim]\nmax_epsilon = {}\ndelta = 1e-5\n"
HEAVY = {"torch", "pandas", "sklearn", "matplotlib", "jinja2"}
BROKEN = """\
import dpaudit.gate.policy_evaluation

def broken(*_, **__):
    raise ZeroDivisionError

dpaudit.gate.policy_evaluation.evaluate_policy = broken
"""


@pytest.fixture
def project(trained: Path, tmp_path: Path) -> Path:
    """A folder with a finished run and a policy that it passes."""
    shutil.copytree(trained, tmp_path / "run")
    (tmp_path / "dpaudit.toml").write_text(CLAIM.format(10.0))
    return tmp_path


def test_0_where_the_policy_holds(project: Path) -> None:
    done = dpaudit(project, "gate", "run")
    assert (done.code, done.out.split("\n")[0], done.err) == (ExitCode.PASS, "PASS", "")


def test_1_where_it_is_violated(project: Path, program: WarmProgram) -> None:
    (project / "dpaudit.toml").write_text(CLAIM.format(0.01))
    done = program(project, "gate", "run")
    assert (done.code, done.out.split("\n")[0], done.err) == (ExitCode.FAIL, "FAIL", "")
    assert "the policy allows 0.01" in done.out


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("gate", "run", "--forma", "json"), "--forma"),
        (("gate", "run", "--format", "pdf"), "pdf"),
        (("gate", "nowhere"), "nowhere"),
        (("gate", "run", "--policy", "none.toml"), "none.toml"),
        (("gate", "run", "--set", "claim.max_epsilom=3"), "max_epsilom"),
        (("gate", "run", "-o", "nowhere/verdict.txt"), "nowhere/verdict.txt"),
    ],
)
def test_2_with_one_line_that_names_what_was_given(
    project: Path, arguments: tuple[str, ...], named: str, program: WarmProgram
) -> None:
    done = program(project, *arguments)
    assert (done.code, done.out) == (ExitCode.USAGE, "")
    assert re.match(r"dpaudit: error DPA[12]\d\d: ", done.err)
    assert done.err.count("\n") == 1
    assert named in done.err


def test_3_where_evidence_is_missing_unless_a_warning_is_wished_for(
    project: Path, program: WarmProgram
) -> None:
    with (project / "dpaudit.toml").open("a") as file:
        file.write("\n[audit]\n")
    done = program(project, "gate", "run")
    assert (done.code, done.out.split("\n")[0]) == (ExitCode.INCONCLUSIVE, "INCONCLUSIVE")
    assert "dpaudit audit RUN" in done.out
    warned = program(project, "gate", "run", "--inconclusive", "warn")
    assert warned.code == ExitCode.PASS
    assert warned.out.startswith("INCONCLUSIVE (a warning only: --inconclusive warn)\n")
    told, asked = (one.out.partition("\n\n")[0].split("\n")[1:] for one in (warned, done))
    assert told == asked


def test_4_where_a_file_was_altered(project: Path, program: WarmProgram) -> None:
    ledger = project / "run" / "ledger.jsonl"
    ledger.write_text(ledger.read_text().replace(":2.0}", ":9.0}", 1))
    done = program(project, "gate", "run")
    assert (done.code, done.out) == (ExitCode.INTEGRITY, "")
    assert done.err.count("\n") == 1
    assert "ledger" in done.err


def test_70_where_the_program_has_a_bug(project: Path) -> None:
    (project / "planted").mkdir()
    (project / "planted" / "sitecustomize.py").write_text(BROKEN)
    done = dpaudit(project, "gate", "run", PYTHONPATH=str(project / "planted"))
    assert (done.code, done.out) == (ExitCode.BUG, "")
    assert "ZeroDivisionError" in done.err
    assert done.err.endswith("this is a bug of dpaudit; please report it with the lines above\n")


def test_the_gate_imports_nothing_heavy(project: Path) -> None:
    """The interpreter itself lists what it imports: name by name, the last field of a line."""
    done = run([sys.executable, "-X", "importtime", script(), "gate", "run"], project)
    imported = {line.rpartition("|")[2].strip() for line in done.err.split("\n")}
    assert done.code == ExitCode.PASS
    assert "dpaudit.gate.policy_evaluation" in imported
    assert not HEAVY & imported
