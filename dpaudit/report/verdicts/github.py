"""Formats of a verdict for code hosts: GitHub annotations, job summary, Markdown.

Strings of the run occur only inside of workflow commands, escaped: GitHub could interpret any
other line as a command.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from dpaudit.files.regular_files import PUBLIC, write_error
from dpaudit.report.text import one_line
from dpaudit.report.verdicts.gate_result import (
    GateResult,
    RuleStatus,
    rule_label,
    rule_location,
    rule_reason,
    rule_status,
    shown_rules,
    verdict_facts,
    verdict_headline,
)
from dpaudit.vocabulary.verdict import RuleOutcome, Verdict

COMMAND_BY_STATUS = {
    RuleStatus.FAIL: "error",
    RuleStatus.INCONCLUSIVE: "error",
    RuleStatus.WARNING: "warning",
    RuleStatus.WAIVED: "notice",
}
WARNING_TITLE, EVIDENCE_TITLE = "policy warning", "claim and evidence"
DATA_ESCAPES = str.maketrans({"%": "%25", "\r": "%0D", "\n": "%0A"})
PROPERTY_ESCAPES = DATA_ESCAPES | str.maketrans({":": "%3A", ",": "%2C"})


def verdict_github(judged: GateResult) -> str:
    """Write a verdict as GitHub workflow commands.

    Args:
        judged: The verdict and its policy.

    Returns:
        The outcome, then one command per rule that is not met, then warnings and evidence.
    """
    statuses = ((rule, rule_status(rule, judged.verdict)) for rule in shown_rules(judged.verdict))
    commands = [
        _command(COMMAND_BY_STATUS[status], rule, judged)
        for rule, status in statuses
        if status in COMMAND_BY_STATUS
    ]
    notes = [
        f"::warning title={WARNING_TITLE}::{_escaped(warning, DATA_ESCAPES)}"
        for warning in judged.verdict.warnings
    ]
    return "\n".join(
        [f"dpaudit gate: {verdict_headline(judged.verdict)}", *commands, *notes, *_evidence(judged)]
    )


def _evidence(judged: GateResult) -> list[str]:
    """Return one notice for all facts: GitHub shows at most ten notices."""
    lines = [
        f"{name}: {_escaped(value, DATA_ESCAPES)}" for name, value in verdict_facts(judged.verdict)
    ]
    return [f"::notice title={EVIDENCE_TITLE}::{'%0A'.join(lines)}"] if lines else []


def _command(name: str, rule: RuleOutcome, judged: GateResult) -> str:
    properties = _location_properties(rule, judged) | {"title": f"{rule_label(rule)} {rule.rule}"}
    listed = ",".join(
        f"{key}={_escaped(value, PROPERTY_ESCAPES)}" for key, value in properties.items()
    )
    return f"::{name} {listed}::{_escaped(rule_reason(rule), DATA_ESCAPES)}"


def _location_properties(rule: RuleOutcome, judged: GateResult) -> dict[str, str]:
    place = rule_location(rule.rule, judged)
    if place is None:
        return {}
    line = {} if place.line is None else {"line": str(place.line)}
    return {"file": place.file.as_posix(), **line}


def _escaped(text: str, escapes: Mapping[int, str]) -> str:
    return one_line(text).translate(escapes)


# The job summary.


def append_job_summary(path: Path, text: str) -> None:
    """Append a text to the job summary, separated from the output of earlier steps.

    Args:
        path: The file that ``GITHUB_STEP_SUMMARY`` names.
        text: Markdown.

    Raises:
        InvalidArgument: If the file cannot be written.
        InputOutputError: If the disk is full or fails.
    """
    # O_NONBLOCK: a named pipe without a reader must fail, not wait.
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_NONBLOCK", 0)
    try:
        with open(
            path, "a", encoding="utf-8", opener=lambda name, _: os.open(name, flags, PUBLIC)
        ) as file:
            file.write(f"\n\n{text}\n")
    except (OSError, ValueError) as error:
        raise write_error("GITHUB_STEP_SUMMARY", path, error) from error


# A verdict as Markdown tables for a pull request. Strings of the run are escaped.

MARKDOWN_ENTITIES = str.maketrans({char: f"&#{ord(char)};" for char in "\\`*_{}[]<>|~$&"})

# Code hosts link people, issues, addresses, labels and milestones after these characters, or draw
# an emoji. They do so in the rendered text, so entities do not prevent it; a zero-width space does.
LINK_TRIGGERS = re.compile(
    r"[@#!%~$&](?=[\w\"])|:(?=//|[\w+-]+:)|\bGH-(?=\d)|\bwww(?=\.)", re.IGNORECASE
)
ZERO_WIDTH_SPACE = "\u200b"


def verdict_markdown(verdict: Verdict) -> str:
    """Write a verdict as Markdown.

    Args:
        verdict: The outcome of every rule.

    Returns:
        A heading with the outcome, a table of the rules, and a table of the evidence.
    """
    heading = f"## dpaudit: {verdict_headline(verdict)}"
    run = [f"Run {as_markdown(verdict.run)}", ""] if verdict.run else []
    rows = [
        f"| {rule_label(rule)} | {as_markdown(rule.rule)} | {as_markdown(rule_reason(rule))} |"
        for rule in shown_rules(verdict)
    ]
    head = ["| Outcome | Rule | Reason |", "| --- | --- | --- |"]
    return "\n".join([heading, "", *run, *head, *rows, *_below(verdict)])


def _below(verdict: Verdict) -> list[str]:
    warnings = [("warning", warning) for warning in verdict.warnings]
    rows = [
        f"| {name} | {as_markdown(value)} |" for name, value in (*warnings, *verdict_facts(verdict))
    ]
    return ["", "| Claim and evidence | |", "| --- | --- |", *rows] if rows else []


def as_markdown(text: str) -> str:
    """Escape a string of the run for Markdown on a code host.

    Args:
        text: Any string.

    Returns:
        One line that is rendered as the same text, without links, mentions or markup.
    """
    unlinked = LINK_TRIGGERS.sub(rf"\g<0>{ZERO_WIDTH_SPACE}", one_line(text))
    return unlinked.translate(MARKDOWN_ENTITIES).replace(ZERO_WIDTH_SPACE, "&#8203;")
