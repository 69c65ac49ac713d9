"""A verdict as one small page, in the frame of the report."""

from __future__ import annotations

from dpaudit.report.page import page
from dpaudit.report.verdicts.judged import explained, facts, headline, label, shown_rules, tone
from dpaudit.report.verdicts.printable import one_line
from dpaudit.vocabulary.verdict import RuleOutcome, Verdict


def verdict_html(verdict: Verdict) -> str:
    """Return the page as a complete HTML document."""
    return page(
        "verdicts/verdict.html",
        run=one_line(verdict.run),
        headline=headline(verdict),
        tone=tone(verdict),
        warnings=[one_line(warning) for warning in verdict.warnings],
        facts=[(name, one_line(value)) for name, value in facts(verdict)],
        exit_code=int(verdict.exit_code),
        rules=[_row(rule) for rule in shown_rules(verdict)],
    )


def _row(rule: RuleOutcome) -> dict[str, str]:
    return {
        "tone": "unjudged" if rule.waived else rule.outcome.value.lower(),
        "label": label(rule),
        "rule": one_line(rule.rule),
        "why": one_line(explained(rule)),
    }
