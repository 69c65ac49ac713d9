"""Formats of a verdict, for people, programs and CI services, and their registry."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from importlib import import_module

import msgspec

from dpaudit.report.verdicts.gate_result import GateResult
from dpaudit.report.verdicts.github import verdict_github, verdict_markdown
from dpaudit.report.verdicts.junit import verdict_junit
from dpaudit.report.verdicts.sarif import verdict_sarif
from dpaudit.report.verdicts.text import verdict_text
from dpaudit.vocabulary.verdict import Verdict, VerdictDocument

# Registry of the formats of a verdict: the values of ``dpaudit gate --format``.

# JSON.


def verdict_json(verdict: Verdict) -> str:
    """Write a verdict as JSON.

    Args:
        verdict: The outcome of every rule.

    Returns:
        Indented JSON in ASCII, the content of verdict.json.
    """
    return json.dumps(msgspec.to_builtins(VerdictDocument.of(verdict)), indent=2)


def _html(judged: GateResult) -> str:
    """Return the HTML page; imported here, since only this format needs jinja2."""
    page: str = import_module("dpaudit.report.verdicts.html").verdict_html(judged.verdict)
    return page


VERDICT_FORMATS: Mapping[str, Callable[[GateResult], str]] = {
    "text": lambda judged: verdict_text(judged.verdict),
    "json": lambda judged: verdict_json(judged.verdict),
    "markdown": lambda judged: verdict_markdown(judged.verdict),
    "junit": verdict_junit,
    "sarif": verdict_sarif,
    "github": verdict_github,
    "html": _html,
}
