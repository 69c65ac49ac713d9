"""A verdict as a table for a pull request; whatever its strings hold stays text."""

from __future__ import annotations

import re

from dpaudit.report.verdicts.judged import explained, facts, headline, label, shown_rules
from dpaudit.report.verdicts.printable import one_line
from dpaudit.vocabulary.verdict import Verdict

MARKUP = str.maketrans({char: f"&#{ord(char)};" for char in "\\`*_{}[]<>|~$&"})

# After these, services link people, issues, addresses, labels, milestones; or draw an emoji.
# Entities do not stop them: they read what is rendered. A blank of no width does.
LINKING = re.compile(r"[@#!%~$&](?=[\w\"])|:(?=//|[\w+-]+:)|\bGH-(?=\d)|\bwww(?=\.)", re.IGNORECASE)
NO_WIDTH = "\u200b"


def verdict_markdown(verdict: Verdict) -> str:
    """Return a heading with the outcome, a table of the rules, and one of the evidence."""
    heading = f"## dpaudit: {headline(verdict)}"
    run = [f"Run {inert(verdict.run)}", ""] if verdict.run else []
    rows = [
        f"| {label(rule)} | {inert(rule.rule)} | {inert(explained(rule))} |"
        for rule in shown_rules(verdict)
    ]
    head = ["| Outcome | Rule | Why |", "| --- | --- | --- |"]
    return "\n".join([heading, "", *run, *head, *rows, *_below(verdict)])


def _below(verdict: Verdict) -> list[str]:
    warnings = [("warning", warning) for warning in verdict.warnings]
    rows = [f"| {name} | {inert(value)} |" for name, value in (*warnings, *facts(verdict))]
    return ["", "| Claim and evidence | |", "| --- | --- |", *rows] if rows else []


def inert(text: str) -> str:
    """Return ``text`` as one line of Markdown that shows it, and links and runs nothing."""
    unlinked = LINKING.sub(rf"\g<0>{NO_WIDTH}", one_line(text))
    return unlinked.translate(MARKUP).replace(NO_WIDTH, "&#8203;")
