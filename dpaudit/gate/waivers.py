"""Waivers: rules that need not hold for a time.

An expired waiver, and one that reaches further ahead than the policy allows, waives nothing
and is a violation by itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import date, timedelta

import msgspec

from dpaudit.gate.outcomes import decided
from dpaudit.gate.policy import Policy, Waiver
from dpaudit.vocabulary.verdict import Outcome, RuleOutcome, Waived


def waive(rules: Sequence[RuleOutcome], policy: Policy, today: date) -> Iterator[RuleOutcome]:
    """Yield the rules, marking those that fail and are waived; then each invalid waiver."""
    in_force = _in_force(policy, today)
    for rule in rules:
        found = next((waiver for waiver in in_force if waiver.covers(rule.rule)), None)
        if found is None or rule.outcome is Outcome.HOLDS:
            yield rule
        else:
            yield msgspec.structs.replace(rule, waived=Waived(found.reason, found.expires))
    for waiver in policy.waiver:
        if not today <= waiver.expires:
            yield _expired(waiver)
        elif waiver not in in_force:
            yield _too_far(waiver, policy.waiver_max_days, today)


def unused(rules: Sequence[RuleOutcome], policy: Policy, today: date) -> tuple[Waiver, ...]:
    """Return the waivers in force that no rule of ``rules`` needed."""
    needed = [rule for rule in rules if rule.outcome is not Outcome.HOLDS]
    return tuple(
        waiver
        for waiver in _in_force(policy, today)
        if not any(waiver.covers(rule.rule) for rule in needed)
    )


def _in_force(policy: Policy, today: date) -> list[Waiver]:
    last = today + timedelta(days=policy.waiver_max_days)
    return [waiver for waiver in policy.waiver if today <= waiver.expires <= last]


def _expired(waiver: Waiver) -> RuleOutcome:
    return decided(
        f"waiver.{waiver.rule}",
        False,
        f"the waiver ({waiver.reason}) expired on {waiver.expires}: fix what it waived and "
        "delete it, or decide again",
    )


def _too_far(waiver: Waiver, most: int, today: date) -> RuleOutcome:
    ahead = (waiver.expires - today).days
    return decided(
        f"waiver.{waiver.rule}",
        False,
        f"the waiver ({waiver.reason}) expires on {waiver.expires}, {ahead} days "
        f"from now: it may expire within {most} days (waiver_max_days), so choose an earlier date",
    )
