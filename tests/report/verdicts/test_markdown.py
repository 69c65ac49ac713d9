"""The table for a pull request: GitHub's own parser finds no markup in foreign words."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given

from dpaudit.report.text import one_line
from dpaudit.report.verdicts.github import append_job_summary, as_markdown, verdict_markdown
from dpaudit.vocabulary.errors import InvalidArgument
from tests.report.verdicts.format_readers import rendered, words_of
from tests.report.verdicts.verdicts import FAIL, NASTY, WAIVED, judged, words

# What GitHub links, or draws, in words that are rendered already.
LINKED = re.compile(r"@\w|#\d|\bGH-\d|://|\bwww\.|:[\w+-]+:", re.IGNORECASE)


def test_the_heading_is_the_outcome() -> None:
    lines = verdict_markdown(judged(FAIL, WAIVED, run="mnist").verdict).split("\n")
    assert lines[8:11] == ["", "| Claim and evidence | |", "| --- | --- |"]
    assert f"| policy | dpaudit.toml (SHA-256 {'cd' * 32}) |" in lines
    assert lines[:8] == [
        "## dpaudit: FAIL (every rule of audit is waived)",
        "",
        "Run mnist",
        "",
        "| Outcome | Rule | Reason |",
        "| --- | --- | --- |",
        "| FAIL | claim.max&#95;epsilon | epsilon is at most 4, allowed is 3 |",
        "| WAIVED | audit.evidence | INCONCLUSIVE: the run was not audited; "
        "waived until 2027-01-31: audited by hand |",
    ]


@given(words)
def test_foreign_words_are_rendered_as_they_are(text: str) -> None:
    cell = rendered(f"| a |\n| --- |\n| {as_markdown(text)} |").find(".//td")
    assert cell is not None
    assert len(cell) == 0
    assert words_of(cell) == one_line(text).replace("\u200b", "").strip()
    assert not LINKED.search("".join(cell.itertext()))


def test_unprotected_words_would_have_been_linked() -> None:
    text = next(text for text in NASTY if text.startswith("@user"))
    assert len(LINKED.findall(text)) >= 8
    page = rendered(f"| a |\n| --- |\n| {text} |")
    assert page.find(".//a") is not None


def test_a_summary_is_added_to_what_is_there(tmp_path: Path) -> None:
    path = tmp_path / "summary.md"
    path.write_text("from an earlier step")
    append_job_summary(path, "## dpaudit: PASS")
    append_job_summary(path, "## dpaudit: größer")
    assert path.read_text(encoding="utf-8") == (
        "from an earlier step\n\n## dpaudit: PASS\n\n\n## dpaudit: größer\n"
    )


def test_a_summary_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="GITHUB_STEP_SUMMARY must be writable") as error:
        append_job_summary(tmp_path, "text")
    assert str(tmp_path) in str(error.value)
