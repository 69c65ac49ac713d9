"""A run may not be worse than its baseline; what cannot be compared never passes."""

from __future__ import annotations

import math
from datetime import date

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from dpaudit.gate.evidence import DeclaredClaim, Evidence
from dpaudit.gate.policy import ClaimPolicy, Policy, RegressionPolicy
from dpaudit.gate.policy_evaluation import evaluate_policy
from dpaudit.gate.run_differences import EpsilonEffect, find_differences
from dpaudit.vocabulary.audit import AuditReport, BoundKind, MembershipResult, TprAtFpr
from dpaudit.vocabulary.baseline import Baseline, ReleaseCount
from dpaudit.vocabulary.ledger import Randomness
from dpaudit.vocabulary.mechanism import Gaussian, PoissonSampled
from dpaudit.vocabulary.privacy_terms import Adjacency, Bound, ReleaseScope
from dpaudit.vocabulary.verdict import Outcome, RuleOutcome
from tests.gate.figures import BOUND, CLAIM, COUNT, RUN

TODAY = date(2026, 11, 21)
POLICY = Policy(
    regression=RegressionPolicy(
        max_epsilon_increase=0.1, max_tpr_increase=0.01, max_lower_bound_increase=0.5
    )
)


def audit(tpr: Bound, lower: float = 1.0, attack: str = "loss") -> AuditReport:
    rate = TprAtFpr(0.01, tpr.lower, tpr, 0.99)
    found = MembershipResult(attack, 100, 100, 0.5, 0.5, (rate,), ((0.0, 0.0),))
    return AuditReport("a" * 64, 0.99, (replace(BOUND, epsilon_lower=lower),), (found,))


def judged(
    now: Baseline, measured: AuditReport | None, baseline: Baseline | None = RUN
) -> dict[str, RuleOutcome]:
    evidence = Evidence(claim=now.claim, audit=measured, recorded=now)
    rules = evaluate_policy(POLICY, evidence, baseline, today=TODAY).rules
    return {rule.rule.removeprefix("regression."): rule for rule in rules}


SAME = audit(Bound(0.005, 0.03))


def with_epsilon(upper: float) -> Baseline:
    return replace(RUN, claim=replace(CLAIM, epsilon=Bound(0.0, upper)))


def test_the_same_run_is_no_regression() -> None:
    rules = judged(RUN, SAME)
    assert list(rules) == ["max_epsilon_increase", "max_tpr_increase", "max_lower_bound_increase"]
    assert {rule.outcome for rule in rules.values()} == {Outcome.PASS}


@given(st.floats(1e-3, 100))
def test_epsilon_may_grow_by_what_is_allowed_and_no_more(upper: float) -> None:
    rule = judged(with_epsilon(upper), SAME)["max_epsilon_increase"]
    grown = upper - CLAIM.epsilon.upper
    if grown > 0.1 + 1e-5:
        assert rule.outcome is Outcome.FAIL
    if grown < 0.1:
        assert rule.outcome is Outcome.PASS


def test_the_cause_of_a_growth_is_named() -> None:
    noisy = ReleaseCount("gradient sum", PoissonSampled(Gaussian(0.8), 0.01), 1000)
    now = replace(with_epsilon(5.0), recorded=(noisy, COUNT))
    rule = judged(now, SAME)["max_epsilon_increase"]
    assert rule.outcome is Outcome.FAIL
    assert "noise multiplier (gradient sum) was 1.1, is 0.8: raises epsilon" in rule.why


@pytest.mark.parametrize(
    "changes",
    [
        {"delta": 1e-6},
        {"accountant": "rdp"},
        {"adjacency": Adjacency.REPLACE_ONE},
        {"released": ReleaseScope.FINAL_MODEL},
        {"assumed_public": ("the labels",)},
        {"unit": "user"},
    ],
)
def test_claims_of_different_things_cannot_be_compared(changes: dict[str, object]) -> None:
    now = replace(RUN, claim=replace(CLAIM, epsilon=Bound(0.0, 0.1), **changes))
    assert judged(now, SAME)["max_epsilon_increase"].outcome is Outcome.INCONCLUSIVE


@pytest.mark.parametrize(
    ("tpr", "outcome"),
    [
        (Bound(0.0, 0.04), Outcome.PASS),
        (Bound(0.03, 0.05), Outcome.INCONCLUSIVE),
        (Bound(0.041, 0.05), Outcome.FAIL),
    ],
)
def test_growth_of_an_attack_is_compared_with_chance(tpr: Bound, outcome: Outcome) -> None:
    assert judged(RUN, audit(tpr))["max_tpr_increase"].outcome is outcome


@pytest.mark.parametrize(
    "measured",
    [None, audit(Bound(0.0, 0.01), attack="lira"), replace(SAME, ledger_head="b" * 64)],
)
def test_what_was_measured_for_the_baseline_alone_is_inconclusive(
    measured: AuditReport | None,
) -> None:
    assert judged(RUN, measured)["max_tpr_increase"].outcome is Outcome.INCONCLUSIVE


@pytest.mark.parametrize(("lower", "outcome"), [(1.5, "PASS"), (1.51, "FAIL")])
def test_a_lower_bound_may_grow_by_what_is_allowed(lower: float, outcome: str) -> None:
    rules = judged(RUN, audit(Bound(0.005, 0.03), lower))
    assert rules["max_lower_bound_increase"].outcome.value == outcome


def test_a_lower_bound_that_is_gone_or_at_another_delta_is_inconclusive() -> None:
    for bounds in ((), (replace(BOUND, delta=1e-6),)):
        rules = judged(RUN, replace(SAME, bounds=bounds))
        assert rules["max_lower_bound_increase"].outcome is Outcome.INCONCLUSIVE


def test_a_baseline_without_measurements_is_no_yardstick_for_them() -> None:
    rules = judged(RUN, SAME, replace(RUN, rates=(), bounds=()))
    assert rules["max_tpr_increase"].outcome is Outcome.INCONCLUSIVE
    assert rules["max_lower_bound_increase"].outcome is Outcome.INCONCLUSIVE


def test_a_seeded_run_or_one_that_leaves_out_more_is_no_match_for_its_baseline() -> None:
    for changes in (
        {"randomness": Randomness.SEEDED},
        {"unaccounted": ("hyperparameter-tuning",)},
    ):
        now = replace(RUN, claim=replace(CLAIM, **changes))
        assert judged(now, SAME)["max_epsilon_increase"].outcome is Outcome.INCONCLUSIVE


@pytest.mark.parametrize(
    "changes", [{"confidence": 0.999}, {"trials": 99}, {"kind": BoundKind.CONDITIONAL}]
)
def test_a_bound_that_would_have_shown_less_is_not_compared(changes: dict[str, object]) -> None:
    weaker = replace(SAME, bounds=(replace(BOUND, epsilon_lower=0.1, **changes),))
    rules = judged(RUN, weaker)
    assert rules["max_lower_bound_increase"].outcome is Outcome.INCONCLUSIVE


def test_of_two_bounds_or_rates_of_one_name_the_worse_one_counts() -> None:
    worse = replace(BOUND, epsilon_lower=3.0)
    high = audit(Bound(0.5, 0.6)).membership[0]
    twice = replace(
        SAME,
        confidence=0.98,
        bounds=(worse, BOUND),
        membership=(high, *audit(Bound(0.0, 0.01)).membership),
    )
    rules = judged(RUN, twice)
    assert rules["max_lower_bound_increase"].outcome is Outcome.FAIL
    assert rules["max_tpr_increase"].outcome is Outcome.FAIL


def test_an_attack_that_the_baseline_does_not_know_cannot_be_compared() -> None:
    new = audit(Bound(0.9, 0.95), attack="lira").membership
    rules = judged(RUN, replace(SAME, membership=(*SAME.membership, *new)))
    assert rules["max_tpr_increase"].outcome is Outcome.INCONCLUSIVE


def test_a_baseline_that_no_section_asks_for_is_not_passed_over() -> None:
    policy = Policy(claim=ClaimPolicy(max_epsilon=3.0, delta=1e-5))
    evidence = Evidence(claim=CLAIM, recorded=RUN)
    assert evaluate_policy(policy, evidence, None, today=TODAY).outcome is Outcome.PASS
    assert evaluate_policy(policy, evidence, RUN, today=TODAY).outcome is Outcome.INCONCLUSIVE


def test_without_a_baseline_or_a_run_nothing_can_be_told() -> None:
    assert judged(RUN, SAME, None)["baseline"].outcome is Outcome.INCONCLUSIVE
    evidence = Evidence(claim=DeclaredClaim(2.0, 1e-5), audit=SAME)
    (rule,) = evaluate_policy(POLICY, evidence, RUN, today=TODAY).rules
    assert rule.outcome is Outcome.INCONCLUSIVE


@pytest.mark.parametrize("joint", [0.999, 0.98])
def test_bound_at_another_confidence_names_the_command_to_repeat(joint: float) -> None:
    other = replace(BOUND, confidence=joint)
    found = judged(RUN, replace(SAME, confidence=joint, bounds=(other,)))
    rule = found["max_lower_bound_increase"]
    assert rule.outcome is Outcome.INCONCLUSIVE
    assert f"audit.json has confidence {joint:g}" in rule.why
    assert "dpaudit audit RUN --confidence 0.99" in rule.why


@pytest.mark.parametrize("confidence", [0.5, 0.98])
def test_rate_at_lower_confidence_names_the_command_to_repeat(confidence: float) -> None:
    rate = TprAtFpr(0.01, 0.01, Bound(0.0, 0.02), confidence)
    (attack,) = SAME.membership
    rule = judged(RUN, replace(SAME, membership=(replace(attack, tpr_at_fpr=(rate,)),)))
    why = rule["max_tpr_increase"].why
    assert rule["max_tpr_increase"].outcome is Outcome.INCONCLUSIVE
    assert "dpaudit audit RUN --confidence 0.99" in why


def test_claims_whose_deltas_differ_in_the_last_digits_are_compared() -> None:
    near = replace(RUN, claim=replace(CLAIM, delta=math.nextafter(1e-5, 1.0)))
    assert judged(near, SAME)["max_epsilon_increase"].outcome is Outcome.PASS


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({"data": {"source": "b.csv"}}, "data (source)"),
        ({"model": {"architecture": "SHA-256 00"}}, "model (architecture)"),
        ({"model": {"name": "cnn"}}, "model (name)"),
    ],
)
def test_data_and_model_are_causes(changes: dict[str, object], cause: str) -> None:
    before = replace(
        RUN, data={"source": "a.csv"}, model={"name": "mlp", "architecture": "SHA-256 ff"}
    )
    after = replace(
        before, **{name: {**getattr(before, name), **new} for name, new in changes.items()}
    )
    (found,) = find_differences(before, after)
    assert found.cause == cause
    assert found.effect is EpsilonEffect.NONE
