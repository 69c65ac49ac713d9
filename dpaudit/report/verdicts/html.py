"""A verdict as one HTML page, in the style of the report."""

from __future__ import annotations

from dpaudit.report.page_template import render_page
from dpaudit.report.text import one_line
from dpaudit.report.verdicts.gate_result import (
    outcome_style,
    rule_label,
    rule_reason,
    shown_rules,
    verdict_facts,
    verdict_headline,
)
from dpaudit.vocabulary.verdict import RuleOutcome, Verdict


def verdict_html(verdict: Verdict) -> str:
    """Write a verdict as an HTML page.

    Args:
        verdict: The outcome of every rule.

    Returns:
        A complete HTML document.
    """
    return render_page(
        "verdicts/verdict.html",
        run=one_line(verdict.run),
        headline=verdict_headline(verdict),
        tone=outcome_style(verdict),
        warnings=[one_line(warning) for warning in verdict.warnings],
        facts=[(name, one_line(value)) for name, value in verdict_facts(verdict)],
        exit_code=int(verdict.exit_code),
        rules=[_row(rule) for rule in shown_rules(verdict)],
    )


def _row(rule: RuleOutcome) -> dict[str, str]:
    """Return the template's variables for one rule."""
    return {
        "tone": "unjudged" if rule.waived else rule.outcome.value.lower(),
        "label": rule_label(rule),
        "rule": one_line(rule.rule),
        "why": one_line(rule_reason(rule)),
    }
