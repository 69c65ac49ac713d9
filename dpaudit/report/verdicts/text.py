"""A verdict for the terminal."""

from __future__ import annotations

from dpaudit.report.text import table
from dpaudit.report.verdicts.judged import explained, headline, label, shown_rules
from dpaudit.report.verdicts.printable import one_line
from dpaudit.vocabulary.verdict import Verdict


def verdict_text(verdict: Verdict) -> str:
    """Return the outcome, then every rule with its reason."""
    rows = [
        (label(rule), one_line(rule.rule), one_line(explained(rule)))
        for rule in shown_rules(verdict)
    ]
    return "\n".join([headline(verdict), *table(rows)])
