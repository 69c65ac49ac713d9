"""The verdict: pure, its exit code from the same object; nothing passes for want of evidence."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpaudit.gate.judge import judge
from dpaudit.gate.policy import AuditPolicy, ClaimPolicy, Policy
from dpaudit.vocabulary.adjacency import Adjacency
from dpaudit.vocabulary.audit import (
    AuditReport,
    AuditResult,
    BoundKind,
    MembershipResult,
    TprAtFpr,
)
from dpaudit.vocabulary.bound import Bound
from dpaudit.vocabulary.claim import Claim
from dpaudit.vocabulary.conformance import ConformanceResult, Finding, StepClaim
from dpaudit.vocabulary.errors import AccountingError, ExitCode, InvalidArgument
from dpaudit.vocabulary.ledger import Randomness, Sampling
from dpaudit.vocabulary.verdict import Outcome, RuleOutcome, Verdict

CLAIM = Claim(
    epsilon=Bound(2.97, 2.99),
    delta=1e-5,
    accountant="pld",
    adjacency=Adjacency.ADD_OR_REMOVE_ONE,
    sampling=Sampling.POISSON,
    randomness=Randomness.SECURE,
    releases=100,
    ledger_head="a" * 64,
    dpaudit_version="0",
)
BOUND = AuditResult(
    name="gradient canaries",
    method="one run",
    kind=BoundKind.CERTIFIED,
    epsilon_lower=1.0,
    delta=1e-5,
    confidence=0.99,
    assumes="nothing",
    trials=100,
    guesses=50,
    correct=40,
    thresholds="fixed",
    detectable_epsilon=5.0,
)
ATTACK = MembershipResult(
    "loss", 100, 100, 0.5, 0.5, (TprAtFpr(0.01, 0.01, Bound(0.0, 0.04), 0.99),), ((0.0, 0.0),)
)
AUDIT = AuditReport("a" * 64, 0.99, (BOUND,), (ATTACK,))
POLICY = Policy(
    ClaimPolicy(max_epsilon=3.0, delta=1e-5),
    AuditPolicy(confidence=0.95, min_power_epsilon=3.0, max_tpr_at_fpr={"0.01": 0.05}),
)
replace = msgspec.structs.replace


def outcomes(policy: Policy, claim: Claim, audit: AuditReport | None) -> dict[str, Outcome]:
    return {rule.rule: rule.outcome for rule in judge(policy, claim, audit).rules}


def test_good_evidence_holds() -> None:
    verdict = judge(POLICY, CLAIM, AUDIT)
    assert verdict.outcome is Outcome.HOLDS
    assert {rule.outcome for rule in verdict.rules} == {Outcome.HOLDS}


@pytest.mark.parametrize(
    ("rule", "changes"),
    [
        ("claim.max_epsilon", {"epsilon": Bound(2.9, 3.0000001)}),
        ("claim.adjacency", {"adjacency": Adjacency.ZERO_OUT}),
        ("claim.sampling", {"sampling": Sampling.SHUFFLED}),
        ("claim.require_secure_randomness", {"randomness": Randomness.SEEDED}),
        ("claim.may_leave_out", {"leaves_out": ("hyperparameter-tuning",)}),
    ],
)
def test_each_rule_of_the_claim_is_violated_by_its_own_fault(
    rule: str, changes: dict[str, object]
) -> None:
    found = outcomes(POLICY, replace(CLAIM, **changes), AUDIT)
    assert [name for name, outcome in found.items() if outcome is Outcome.VIOLATED] == [rule]


def test_a_claim_at_another_delta_or_by_another_accountant_does_not_count() -> None:
    for changes in ({"delta": 1e-4}, {"accountant": "rdp"}):
        found = outcomes(POLICY, replace(CLAIM, **changes), AUDIT)
        assert found["claim.max_epsilon"] is Outcome.INCONCLUSIVE


def test_a_certified_bound_above_the_claim_violates() -> None:
    audit = replace(AUDIT, bounds=(replace(BOUND, epsilon_lower=3.1),))
    assert outcomes(POLICY, CLAIM, audit)["audit.lower_bound"] is Outcome.VIOLATED


def test_a_conditional_bound_above_the_claim_counts_only_where_the_policy_says_so() -> None:
    above = replace(BOUND, kind=BoundKind.CONDITIONAL, epsilon_lower=3.1)
    audit = replace(AUDIT, bounds=(BOUND, above))
    assert outcomes(POLICY, CLAIM, audit)["audit.lower_bound"] is Outcome.INCONCLUSIVE
    both = replace(POLICY.audit, count=(BoundKind.CERTIFIED, BoundKind.CONDITIONAL))
    found = outcomes(replace(POLICY, audit=both), CLAIM, audit)
    assert found["audit.lower_bound"] is Outcome.VIOLATED


@pytest.mark.parametrize(
    ("rule", "audit"),
    [
        ("audit.evidence", None),
        ("audit.evidence", replace(AUDIT, ledger_head="b" * 64)),
        ("audit.lower_bound", replace(AUDIT, bounds=())),
        ("audit.lower_bound", replace(AUDIT, bounds=(replace(BOUND, delta=1e-6),))),
        ("audit.lower_bound", replace(AUDIT, confidence=0.9)),
        (
            "audit.lower_bound",
            replace(AUDIT, bounds=(replace(BOUND, kind=BoundKind.CONDITIONAL),)),
        ),
        (
            "audit.min_power_epsilon",
            replace(AUDIT, bounds=(replace(BOUND, detectable_epsilon=None),)),
        ),
        (
            "audit.min_power_epsilon",
            replace(AUDIT, bounds=(replace(BOUND, detectable_epsilon=6.1),)),
        ),
        ("audit.max_tpr_at_fpr.0.01", replace(AUDIT, membership=())),
    ],
)
def test_missing_weak_or_stale_evidence_is_inconclusive(
    rule: str, audit: AuditReport | None
) -> None:
    verdict = judge(POLICY, CLAIM, audit)
    found = {one.rule: one.outcome for one in verdict.rules}
    assert found[rule] is Outcome.INCONCLUSIVE
    assert verdict.exit_code is ExitCode.INCONCLUSIVE


def test_conformance_that_is_demanded_and_not_there_is_inconclusive() -> None:
    policy = replace(POLICY, audit=replace(POLICY.audit, require_conformance=True))
    found = outcomes(policy, CLAIM, AUDIT)
    assert found["audit.require_conformance"] is Outcome.INCONCLUSIVE


def checked(outcome: Outcome, head: str = CLAIM.ledger_head) -> ConformanceResult:
    steps = StepClaim(
        noise_multiplier=1.0, clip_norm=0.5, sampling_rate=0.1, steps=10, update_scale=-0.01
    )
    finding = Finding(
        check="replay", name="huge", outcome=outcome, tested="t", why="the reason", power="p"
    )
    return ConformanceResult(
        claim=steps, findings=(finding,), level=1e-4, verdict=outcome, ledger_head=head
    )


@pytest.mark.parametrize("outcome", list(Outcome))
def test_the_verdict_on_a_trainer_is_that_of_its_conformance(outcome: Outcome) -> None:
    policy = replace(POLICY, audit=replace(POLICY.audit, require_conformance=True))
    rules = judge(policy, CLAIM, AUDIT, checked(outcome)).rules
    (rule,) = (one for one in rules if one.rule == "audit.require_conformance")
    assert rule.outcome is outcome
    assert ("the reason" in rule.why) is (outcome is not Outcome.HOLDS)


def test_conformance_of_another_ledger_is_inconclusive() -> None:
    policy = replace(POLICY, audit=replace(POLICY.audit, require_conformance=True))
    rules = judge(policy, CLAIM, AUDIT, checked(Outcome.HOLDS, "ff" * 32)).rules
    found = {rule.rule: rule.outcome for rule in rules}
    assert found["audit.require_conformance"] is Outcome.INCONCLUSIVE


def test_an_attack_that_says_nothing_passes_no_rule() -> None:
    policy = replace(POLICY, audit=replace(POLICY.audit, max_tpr_at_fpr={"0.01": 0.9}))
    assert outcomes(policy, CLAIM, AUDIT)["audit.max_tpr_at_fpr.0.01"] is Outcome.HOLDS
    silent = tuple(replace(one, inconclusive="worse than chance") for one in AUDIT.membership)
    found = outcomes(policy, CLAIM, replace(AUDIT, membership=silent))
    assert found["audit.max_tpr_at_fpr.0.01"] is Outcome.INCONCLUSIVE


def test_the_upper_end_of_a_true_positive_rate_counts() -> None:
    policy = replace(POLICY, audit=replace(POLICY.audit, max_tpr_at_fpr={"0.01": 0.039}))
    assert outcomes(policy, CLAIM, AUDIT)["audit.max_tpr_at_fpr.0.01"] is Outcome.VIOLATED


def test_without_an_audit_section_no_audit_is_demanded() -> None:
    policy = replace(POLICY, audit=None)
    assert judge(policy, CLAIM, None).outcome is Outcome.HOLDS


def test_nan_is_refused_before_it_reaches_the_judge() -> None:
    with pytest.raises(AccountingError):
        Bound(0.0, float("nan"))
    with pytest.raises(InvalidArgument):
        replace(BOUND, epsilon_lower=float("nan"))


@given(st.lists(st.sampled_from(Outcome), max_size=8))
def test_outcome_and_exit_code_are_one(rules: list[Outcome]) -> None:
    verdict = Verdict(tuple(RuleOutcome("r", outcome, "") for outcome in rules), "h")
    expected = {
        Outcome.HOLDS: ExitCode.HOLDS,
        Outcome.VIOLATED: ExitCode.VIOLATED,
        Outcome.INCONCLUSIVE: ExitCode.INCONCLUSIVE,
    }[verdict.outcome]
    assert verdict.exit_code is expected
    assert (verdict.outcome is Outcome.HOLDS) == (bool(rules) and set(rules) == {Outcome.HOLDS})
    assert (verdict.outcome is Outcome.VIOLATED) == (Outcome.VIOLATED in rules)


def test_no_rules_are_no_evidence() -> None:
    assert Verdict((), "h").outcome is Outcome.INCONCLUSIVE
