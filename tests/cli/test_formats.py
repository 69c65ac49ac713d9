"""Every format of the installed ``dpaudit gate``, read back and held against verdict.json."""

from __future__ import annotations

import os
import pty
import re
import shutil
import subprocess
import xml.etree.ElementTree as ET
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest

from dpaudit.report.verdicts.github import EVIDENCE_TITLE
from dpaudit.vocabulary.errors import ExitCode
from dpaudit.vocabulary.verdict import Verdict
from tests.cli.installed import WarmProgram, dpaudit, script
from tests.report.verdicts.format_readers import READERS, Line, Read, commands

TIME = re.compile(r"\d\d:\d\d:\d\d UTC|time=\"[\d.]+\"")  # when, and how long it took

# A rule of each kind: violated, holding, waived, and one that cannot be told.
POLICY = """\
[claim]
max_epsilon = 0.01
delta = 1e-5

[audit]
max_tpr_at_fpr = { "0.01" = 0.05 }

[[waiver]]
rule = "audit.evidence"
reason = "geprüft von Hand, | @team #7"
expires = {expires}
"""


@pytest.fixture(scope="module")
def project(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository of its own, with a finished run and its policy."""
    folder = tmp_path_factory.mktemp("project")
    (folder / ".git").mkdir()
    shutil.copytree(trained, folder / "run")
    expires = datetime.now(UTC).date() + timedelta(days=300)
    text = POLICY.replace("{expires}", str(expires))
    (folder / "dpaudit.toml").write_text(text, encoding="utf-8")
    return folder


def verdict_of(project: Path) -> Verdict:
    return msgspec.json.decode((project / "run" / "verdict.json").read_bytes(), type=Verdict)


def expected(project: Path, whole: bool) -> list[Line]:
    lines = [
        Line("WAIVED" if rule.waived else rule.outcome.value, rule.rule, rule.outcome.value)
        for rule in verdict_of(project).rules
    ]
    assert {line.label for line in lines} == {"FAIL", "PASS", "INCONCLUSIVE", "WAIVED"}
    return [line for line in lines if whole or line.label != "PASS"]


def check(project: Path, read: Read) -> None:
    assert (read.outcome, read.exit_code) == ("FAIL", ExitCode.FAIL)
    assert read.lines == expected(project, read.whole)


@pytest.mark.parametrize("name", READERS)
def test_each_format_agrees_with_the_verdict(
    project: Path, name: str, program: WarmProgram
) -> None:
    done = program(project, "gate", "run", "--format", name)
    assert (done.code, done.err) == (ExitCode.FAIL, "")
    check(project, READERS[name](done.out.removesuffix("\n")))


def test_annotations_name_the_lines_of_the_policy(project: Path, program: WarmProgram) -> None:
    (project / "models").mkdir(exist_ok=True)
    policy = ("--policy", "../dpaudit.toml")
    done = program(project / "models", "gate", "../run", *policy, "--format", "github")
    *found, evidence = commands(done.out.split("\n")[1:-1])
    assert evidence.properties == {"title": EVIDENCE_TITLE}
    assert [(one.name, one.properties["file"], one.properties["line"]) for one in found] == [
        ("error", "dpaudit.toml", "2"),
        ("notice", "dpaudit.toml", "5"),
        ("error", "dpaudit.toml", "6"),
    ]


def test_a_file_gets_what_standard_output_would_have_got(
    project: Path, program: WarmProgram
) -> None:
    printed = program(project, "gate", "run", "--format", "junit")
    done = program(project, "gate", "run", "--format", "junit", "-o", "junit.xml")
    said = "dpaudit: wrote junit.xml\n"
    assert (done.code, done.out, done.err) == (ExitCode.FAIL, "", said)
    one, other = (TIME.sub("", text) for text in ((project / "junit.xml").read_text(), printed.out))
    assert one == other


def test_times_in_junit_are_measured(project: Path, program: WarmProgram) -> None:
    """Reading and recomputing the evidence takes longer than any of the rules."""
    root = ET.fromstring(program(project, "gate", "run", "--format", "junit").out)
    assert root.tag == "testsuites"
    total = float(str(root.get("time")))
    cases = [float(str(case.get("time"))) for case in root.iter("testcase")]
    assert total > sum(cases) > 0
    assert len(set(cases)) > 1


def test_the_step_summary_is_added_to_and_never_replaced(
    project: Path, program: WarmProgram
) -> None:
    summary = project / "summary.md"
    summary.write_text("# Build\n")
    done = program(project, "gate", "run", GITHUB_STEP_SUMMARY=str(summary))
    assert done.code == ExitCode.FAIL
    assert done.out.startswith("FAIL (1 of 2 rules of audit waived)\n")
    before, heading, after = summary.read_text(encoding="utf-8").partition("## dpaudit: ")
    assert before.startswith("# Build\n")
    check(project, READERS["markdown"](heading + after.removesuffix("\n")))


def test_a_summary_that_cannot_be_written_is_said_in_a_line(
    project: Path, program: WarmProgram
) -> None:
    done = program(project, "gate", "run", GITHUB_STEP_SUMMARY=str(project))
    assert done.code == ExitCode.USAGE
    assert done.err.count("\n") == 1
    assert "GITHUB_STEP_SUMMARY" in done.err


@pytest.mark.parametrize("name", ["text", "html"])
def test_a_terminal_of_few_letters_changes_no_outcome(project: Path, name: str) -> None:
    done = dpaudit(project, "gate", "run", "--format", name, PYTHONIOENCODING="ascii")
    assert (done.code, done.err) == (ExitCode.FAIL, "")
    check(project, READERS[name](done.out.removesuffix("\n")))


def test_no_colour_even_on_a_terminal_where_none_is_wished_for(project: Path) -> None:
    ours, theirs = pty.openpty()
    done = subprocess.run(
        [script(), "gate", "run"],
        cwd=project,
        env=os.environ | {"NO_COLOR": "1", "TERM": "xterm-256color"},
        stdout=theirs,
        check=False,
    )
    os.close(theirs)
    shown = os.read(ours, 10_000).decode()
    os.close(ours)
    assert done.returncode == ExitCode.FAIL
    assert shown.startswith("FAIL (1 of 2 rules of audit waived)\r\n")
    assert "\x1b" not in shown


def test_measurements_without_a_run_are_written_too(tmp_path: Path, program: WarmProgram) -> None:
    rows = [f"{one},{member}" for one in range(20) for member in (0, 1)]
    (tmp_path / "scores.csv").write_text("\n".join(["score,member", *rows]))
    given = ("gate", "--scores", "scores.csv", "--claim-epsilon", "4", "--delta", "1e-5")
    done = program(tmp_path, *given, "--format", "sarif")
    assert READERS["sarif"](done.out).exit_code == done.code
