"""A verdict for the terminal."""

from __future__ import annotations

from dpaudit.report.text import table
from dpaudit.report.verdicts.judged import explained, facts, headline, label, shown_rules
from dpaudit.report.verdicts.printable import one_line
from dpaudit.vocabulary.verdict import Verdict


def verdict_text(verdict: Verdict) -> str:
    """Return the outcome, every rule with its reason, warnings, then claim and evidence."""
    rows = [
        (label(rule), one_line(rule.rule), one_line(explained(rule)))
        for rule in shown_rules(verdict)
    ]
    known = [(name, one_line(value)) for name, value in facts(verdict)]
    warnings = [("warning", one_line(warning)) for warning in verdict.warnings]
    below = [*warnings, *known]
    more = ["", *table(below)] if below else []
    return "\n".join([headline(verdict), *table(rows), *more])
