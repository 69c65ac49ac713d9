"""A waiver keeps one rule from counting until its day, and fails after it."""

from __future__ import annotations

from datetime import date, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpaudit.gate.policy import Policy, Waiver
from dpaudit.gate.policy_evaluation import apply_waivers, unused_waivers
from dpaudit.vocabulary.errors import InvalidArgument
from dpaudit.vocabulary.verdict import Outcome, RuleOutcome, Verdict

LAST = date(2027, 1, 31)
WAIVER = Waiver(rule="audit.max_tpr_at_fpr", reason="ticket 123", expires=LAST)


def rule(name: str, outcome: Outcome) -> RuleOutcome:
    return RuleOutcome(name, outcome, "why")


def verdict(rules: list[RuleOutcome], today: date, *waivers: Waiver) -> Verdict:
    return Verdict(tuple(apply_waivers(rules, Policy(waiver=waivers or (WAIVER,)), today)), "h")


@pytest.mark.parametrize("outcome", [Outcome.FAIL, Outcome.INCONCLUSIVE])
def test_waived_rule_is_reported_and_does_not_count(outcome: Outcome) -> None:
    rules = [rule("claim.sampling", Outcome.PASS), rule("audit.max_tpr_at_fpr.0.01", outcome)]
    found = verdict(rules, LAST)
    assert found.outcome is Outcome.PASS
    _, one = found.rules
    assert one.outcome is outcome
    assert one.waived is not None
    assert one.waived.reason == "ticket 123"


@given(st.integers(-365, 1000), st.sampled_from(Outcome))
def test_a_waiver_holds_through_its_last_day_and_is_a_violation_after(
    days: int, outcome: Outcome
) -> None:
    rules = [rule("audit.max_tpr_at_fpr.0.01", outcome), rule("claim.sampling", Outcome.PASS)]
    found = verdict(rules, LAST + timedelta(days))
    if days > 0:
        assert found.outcome is Outcome.FAIL
        assert found.rules[0].waived is None
        assert "expired on 2027-01-31" in found.rules[-1].why
    else:
        assert found.outcome is Outcome.PASS
        assert len(found.rules) == 2


def test_where_every_rule_is_waived_nothing_was_shown() -> None:
    rules = [rule("audit.max_tpr_at_fpr.0.01", Outcome.FAIL)]
    assert verdict(rules, LAST).outcome is Outcome.INCONCLUSIVE


@pytest.mark.parametrize(
    "name", ["claim.max_epsilon", "audit.max_tpr_at_fprs", "audit.lower_bound"]
)
def test_other_rules_count_as_ever(name: str) -> None:
    assert verdict([rule(name, Outcome.FAIL)], LAST).outcome is Outcome.FAIL


def test_a_rule_that_holds_needs_no_waiver() -> None:
    assert verdict([rule("audit.max_tpr_at_fpr.0.1", Outcome.PASS)], LAST).rules[0].waived is None


def test_of_two_waivers_the_one_in_force_counts_and_the_expired_one_fails() -> None:
    old = Waiver(rule=WAIVER.rule, reason="old", expires=LAST - timedelta(400))
    found = verdict([rule("audit.max_tpr_at_fpr.0.1", Outcome.FAIL)], LAST, old, WAIVER)
    assert found.rules[0].waived is not None
    assert found.rules[0].waived.reason == "ticket 123"
    assert found.outcome is Outcome.FAIL


@pytest.mark.parametrize(
    "name", ["audit", "audit.max_tpr_at_fpr", "audit.max_tpr_at_fpr.0.01", "regression.baseline"]
)
def test_a_rule_a_key_and_a_section_can_be_waived(name: str) -> None:
    assert Waiver(rule=name, reason="why", expires=LAST).covers(f"{name}.x")


@pytest.mark.parametrize(
    "name",
    [
        "",
        "audit.max",
        "claims",
        "waiver.audit.lower_bound",
        "audit.max_tpr_at_fpr.often",
        "audit.max_tpr_at_fpr.nan",
        "claim.delta.0.1",
    ],
)
def test_a_waiver_of_no_rule_is_refused(name: str) -> None:
    with pytest.raises(InvalidArgument, match=r"waiver\.rule"):
        Waiver(rule=name, reason="why", expires=LAST)


@pytest.mark.parametrize(("most", "ahead"), [(365, 366), (365, 3650), (30, 31), (1, 2)])
def test_a_waiver_that_reaches_too_far_waives_nothing(most: int, ahead: int) -> None:
    rules = [rule("audit.max_tpr_at_fpr.0.01", Outcome.INCONCLUSIVE)]
    policy = Policy(waiver=(WAIVER,), waiver_max_days=most)
    first, *rest = apply_waivers(rules, policy, LAST - timedelta(ahead))
    assert first.waived is None
    assert [(one.rule, one.outcome) for one in rest] == [
        ("waiver.audit.max_tpr_at_fpr", Outcome.FAIL)
    ]
    assert f"{ahead} days from now" in rest[0].why
    (still,) = apply_waivers(rules, policy, LAST - timedelta(most))
    assert still.waived is not None


def test_a_waiver_that_nothing_needs_is_listed() -> None:
    used = Waiver(rule="claim.sampling", reason="known", expires=LAST)
    held = Waiver(rule="claim.unit", reason="was", expires=LAST)
    expired = Waiver(rule="audit", reason="old", expires=LAST - timedelta(1))
    rules = [rule("claim.sampling", Outcome.FAIL), rule("claim.unit", Outcome.PASS)]
    policy = Policy(waiver=(used, held, expired, WAIVER))
    assert unused_waivers(rules, policy, LAST) == (held, WAIVER)


@pytest.mark.parametrize("days", [0, -1, 3651, 10**12])
def test_an_endless_reach_is_refused(days: int) -> None:
    with pytest.raises(InvalidArgument, match="waiver_max_days"):
        Policy(waiver_max_days=days)
