"""Every format that ``dpaudit gate`` writes a verdict in, by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module

from dpaudit.report.verdicts.github import verdict_github
from dpaudit.report.verdicts.json import verdict_json
from dpaudit.report.verdicts.judged import Judged
from dpaudit.report.verdicts.junit import verdict_junit
from dpaudit.report.verdicts.markdown import verdict_markdown
from dpaudit.report.verdicts.sarif import verdict_sarif
from dpaudit.report.verdicts.text import verdict_text


def _html(judged: Judged) -> str:
    """Return the page; only this format needs jinja2.

    Raises:
        MissingExtra: jinja2 is not installed.
    """
    page: str = import_module("dpaudit.report.verdicts.html").verdict_html(judged.verdict)
    return page


FORMATS: Mapping[str, Callable[[Judged], str]] = {
    "text": lambda judged: verdict_text(judged.verdict),
    "json": lambda judged: verdict_json(judged.verdict),
    "markdown": lambda judged: verdict_markdown(judged.verdict),
    "junit": verdict_junit,
    "sarif": verdict_sarif,
    "github": verdict_github,
    "html": _html,
}
