"""Outcomes of one rule, with their words."""

from __future__ import annotations

from dpaudit.vocabulary.verdict import Outcome, RuleOutcome


def decided(rule: str, holds: bool, why: str) -> RuleOutcome:
    """Return HOLDS or VIOLATED; give ``holds`` a comparison that NaN fails."""
    return RuleOutcome(rule, Outcome.HOLDS if holds else Outcome.VIOLATED, why)


def unknown(rule: str, why: str) -> RuleOutcome:
    """Return INCONCLUSIVE: evidence is missing, weak or of something else."""
    return RuleOutcome(rule, Outcome.INCONCLUSIVE, why)
