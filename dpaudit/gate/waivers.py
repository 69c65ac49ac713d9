"""Waivers: rules that need not hold for a time; expired, each is a violation of its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import date

import msgspec

from dpaudit.gate.outcomes import decided
from dpaudit.gate.policy import Waiver
from dpaudit.vocabulary.verdict import Outcome, RuleOutcome, Waived


def waive(
    rules: Sequence[RuleOutcome], waivers: Sequence[Waiver], today: date
) -> Iterator[RuleOutcome]:
    """Yield the rules, those that do not hold and are waived marked so, then what expired."""
    in_force = [waiver for waiver in waivers if today <= waiver.expires]
    for rule in rules:
        found = next((waiver for waiver in in_force if waiver.covers(rule.rule)), None)
        if found is None or rule.outcome is Outcome.HOLDS:
            yield rule
        else:
            yield msgspec.structs.replace(rule, waived=Waived(found.reason, found.expires))
    for waiver in waivers:
        if not today <= waiver.expires:
            yield _expired(waiver)


def _expired(waiver: Waiver) -> RuleOutcome:
    return decided(
        f"waiver.{waiver.rule}",
        False,
        f"the waiver ({waiver.reason}) expired on {waiver.expires}: mend what it waived and "
        "delete it, or decide anew",
    )
