"""The verdict: pure, its exit code from the same object; nothing passes for want of evidence."""

from __future__ import annotations

import math
from datetime import date

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpaudit.gate.evidence import DeclaredClaim, Evidence
from dpaudit.gate.policy import AuditPolicy, ClaimPolicy, Policy
from dpaudit.gate.policy_evaluation import evaluate_policy
from dpaudit.vocabulary.audit import (
    AttackReport,
    AuditReport,
    BoundKind,
    MembershipResult,
    TprAtFpr,
)
from dpaudit.vocabulary.claim import Claim
from dpaudit.vocabulary.conformance import ConformanceFinding, ConformanceResult, StepClaim
from dpaudit.vocabulary.errors import AccountingError, ExitCode, InvalidArgument
from dpaudit.vocabulary.ledger import Randomness, Sampling
from dpaudit.vocabulary.privacy_terms import Adjacency, Bound
from dpaudit.vocabulary.verdict import (
    AppliedWaiver,
    InconclusiveHandling,
    Outcome,
    RuleOutcome,
    Verdict,
)
from tests.gate.figures import BOUND, CLAIM

ATTACK = MembershipResult(
    "loss", 100, 100, 0.5, 0.5, (TprAtFpr(0.01, 0.01, Bound(0.0, 0.04), 0.99),), ((0.0, 0.0),)
)
AUDIT = AuditReport("a" * 64, 0.99, (BOUND,), (ATTACK,))
POLICY = Policy(
    claim=ClaimPolicy(max_epsilon=3.0, delta=1e-5),
    audit=AuditPolicy(confidence=0.95, min_power_epsilon=3.0, max_tpr_at_fpr={"0.01": 0.05}),
)
replace = msgspec.structs.replace


TODAY = date(2026, 11, 21)


def judged(
    policy: Policy,
    claim: Claim | DeclaredClaim,
    audit: AuditReport | None,
    conformance: ConformanceResult | None = None,
    attack: AttackReport | None = None,
) -> Verdict:
    evidence = Evidence(claim=claim, audit=audit, conformance=conformance, attack=attack)
    return evaluate_policy(policy, evidence, today=TODAY)


def outcomes(
    policy: Policy, claim: Claim | DeclaredClaim, audit: AuditReport | None
) -> dict[str, Outcome]:
    return {rule.rule: rule.outcome for rule in judged(policy, claim, audit).rules}


def test_good_evidence_holds() -> None:
    verdict = judged(POLICY, CLAIM, AUDIT)
    assert verdict.outcome is Outcome.PASS
    assert {rule.outcome for rule in verdict.rules} == {Outcome.PASS}


@pytest.mark.parametrize(
    ("rule", "changes"),
    [
        ("claim.max_epsilon", {"epsilon": Bound(2.9, 3.0000001)}),
        ("claim.adjacency", {"adjacency": Adjacency.ZERO_OUT}),
        ("claim.sampling", {"sampling": Sampling.SHUFFLED}),
        ("claim.require_secure_randomness", {"randomness": Randomness.SEEDED}),
        ("claim.allow_unaccounted", {"unaccounted": ("hyperparameter-tuning",)}),
    ],
)
def test_each_rule_of_the_claim_is_violated_by_its_own_fault(
    rule: str, changes: dict[str, object]
) -> None:
    found = outcomes(POLICY, replace(CLAIM, **changes), AUDIT)
    assert [name for name, outcome in found.items() if outcome is Outcome.FAIL] == [rule]


def test_a_claim_at_another_delta_or_by_another_accountant_does_not_count() -> None:
    for changes in ({"delta": 1e-4}, {"accountant": "rdp"}):
        found = outcomes(POLICY, replace(CLAIM, **changes), AUDIT)
        assert found["claim.max_epsilon"] is Outcome.INCONCLUSIVE


def test_a_certified_bound_above_the_claim_violates() -> None:
    audit = replace(AUDIT, bounds=(replace(BOUND, epsilon_lower=3.1),))
    assert outcomes(POLICY, CLAIM, audit)["audit.lower_bound"] is Outcome.FAIL


def test_an_audit_that_could_not_have_contradicted_the_claim_does_not_pass() -> None:
    for greatest, outcome in ((2.99, Outcome.INCONCLUSIVE), (3.0, Outcome.PASS)):
        audit = replace(AUDIT, bounds=(replace(BOUND, greatest_epsilon=greatest),))
        assert outcomes(POLICY, CLAIM, audit)["audit.lower_bound"] is outcome


def test_a_conditional_bound_above_the_claim_counts_only_where_the_policy_says_so() -> None:
    both = replace(BOUND, confidence=0.995)
    above = replace(both, kind=BoundKind.CONDITIONAL, epsilon_lower=3.1)
    audit = replace(AUDIT, bounds=(both, above))
    assert outcomes(POLICY, CLAIM, audit)["audit.lower_bound"] is Outcome.INCONCLUSIVE
    both = replace(POLICY.audit, count=(BoundKind.CERTIFIED, BoundKind.CONDITIONAL))
    found = outcomes(replace(POLICY, audit=both), CLAIM, audit)
    assert found["audit.lower_bound"] is Outcome.FAIL


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
    verdict = judged(POLICY, CLAIM, audit)
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
    finding = ConformanceFinding(
        check="replay", name="huge", outcome=outcome, tested="t", why="the reason", power="p"
    )
    return ConformanceResult(
        claim=steps, findings=(finding,), level=1e-4, verdict=outcome, ledger_head=head
    )


@pytest.mark.parametrize("outcome", list(Outcome))
def test_the_verdict_on_a_trainer_is_that_of_its_conformance(outcome: Outcome) -> None:
    policy = replace(POLICY, audit=replace(POLICY.audit, require_conformance=True))
    rules = judged(policy, CLAIM, AUDIT, checked(outcome)).rules
    (rule,) = (one for one in rules if one.rule == "audit.require_conformance")
    assert rule.outcome is outcome
    assert ("the reason" in rule.why) is (outcome is not Outcome.PASS)


def test_conformance_of_another_ledger_is_inconclusive() -> None:
    policy = replace(POLICY, audit=replace(POLICY.audit, require_conformance=True))
    rules = judged(policy, CLAIM, AUDIT, checked(Outcome.PASS, "ff" * 32)).rules
    found = {rule.rule: rule.outcome for rule in rules}
    assert found["audit.require_conformance"] is Outcome.INCONCLUSIVE


def test_inconclusive_attack_passes_no_rule() -> None:
    policy = replace(POLICY, audit=replace(POLICY.audit, max_tpr_at_fpr={"0.01": 0.9}))
    assert outcomes(policy, CLAIM, AUDIT)["audit.max_tpr_at_fpr.0.01"] is Outcome.PASS
    silent = tuple(replace(one, inconclusive="worse than chance") for one in AUDIT.membership)
    found = outcomes(policy, CLAIM, replace(AUDIT, membership=silent))
    assert found["audit.max_tpr_at_fpr.0.01"] is Outcome.INCONCLUSIVE


@pytest.mark.parametrize(
    ("interval", "outcome"),
    [
        (Bound(0.0, 0.05), Outcome.PASS),
        (Bound(0.0, 0.0500001), Outcome.INCONCLUSIVE),
        (Bound(0.05, 0.4), Outcome.INCONCLUSIVE),
        (Bound(0.0500001, 0.4), Outcome.FAIL),
    ],
)
def test_a_rate_is_decided_where_its_whole_interval_is_on_one_side(
    interval: Bound, outcome: Outcome
) -> None:
    rate = TprAtFpr(0.01, interval.upper, interval, 0.99)
    audit = replace(AUDIT, membership=(replace(ATTACK, tpr_at_fpr=(rate,)),))
    assert outcomes(POLICY, CLAIM, audit)["audit.max_tpr_at_fpr.0.01"] is outcome


CURVE = ((0.0, 0.0), (0.01, 0.02), (0.1, 0.15), (1.0, 1.0))


@pytest.mark.parametrize(("limit", "decides"), [(0.05, True), (0.004, True), (0.02, False)])
def test_undecided_rate_states_how_many_records_decide(limit: float, decides: bool) -> None:
    few = replace(ATTACK, roc=CURVE, tpr_at_fpr=(TprAtFpr(0.01, 0.02, Bound(0.0, 0.2), 0.99),))
    policy = replace(POLICY, audit=replace(POLICY.audit, max_tpr_at_fpr={"0.01": limit}))
    rules = judged(policy, CLAIM, replace(AUDIT, membership=(few,))).rules
    (rule,) = (one for one in rules if one.rule == "audit.max_tpr_at_fpr.0.01")
    assert rule.outcome is Outcome.INCONCLUSIVE
    assert "100 members and 100 non-members are too few to decide" in rule.why
    assert ("would decide" in rule.why) is decides
    assert ("a million times as many" in rule.why) is not decides


def test_without_an_audit_section_no_audit_is_demanded() -> None:
    policy = replace(POLICY, audit=None)
    assert judged(policy, CLAIM, None).outcome is Outcome.PASS


def attack(upper: float, **changes: object) -> AttackReport:
    rate = TprAtFpr(0.01, 0.01, Bound(0.0, upper), 0.99)
    results = (replace(ATTACK, attack="lira", tpr_at_fpr=(rate,)),)
    return replace(AttackReport("run", 0.99, results, CLAIM.ledger_head), **changes)


def test_the_strongest_of_all_attacks_counts() -> None:
    rate = TprAtFpr(0.01, 0.1, Bound(0.06, 0.2), 0.99)
    strong = attack(0.06, membership=(replace(ATTACK, attack="lira", tpr_at_fpr=(rate,)),))
    verdict = judged(POLICY, CLAIM, AUDIT, attack=strong)
    (rule,) = (one for one in verdict.rules if one.rule == "audit.max_tpr_at_fpr.0.01")
    assert rule.outcome is Outcome.FAIL
    assert "lira" in rule.why


@pytest.mark.parametrize("stale", ["", "b" * 64])
def test_an_attack_on_something_else_is_no_evidence(stale: str) -> None:
    other = attack(0.02, ledger_head=stale)
    verdict = judged(POLICY, CLAIM, replace(AUDIT, membership=()), attack=other)
    assert verdict.outcome is Outcome.INCONCLUSIVE


def test_an_interval_that_is_less_sure_than_demanded_is_no_evidence() -> None:
    policy = replace(POLICY, audit=replace(POLICY.audit, confidence=0.99))
    unsure = replace(ATTACK, tpr_at_fpr=(TprAtFpr(0.01, 0.01, Bound(0.0, 0.02), 0.98),))
    found = outcomes(policy, CLAIM, replace(AUDIT, membership=(unsure,)))
    assert found["audit.max_tpr_at_fpr.0.01"] is Outcome.INCONCLUSIVE


@pytest.mark.parametrize("interval", [Bound(0.4, 0.6), Bound(0.0, 0.02)])
def test_lower_confidence_interval_is_inconclusive_with_remedy(interval: Bound) -> None:
    unsure = replace(ATTACK, tpr_at_fpr=(TprAtFpr(0.01, interval.upper, interval, 0.5),))
    verdict = judged(POLICY, CLAIM, AUDIT, attack=attack(0.02, membership=(unsure,)))
    (rule,) = (one for one in verdict.rules if one.rule == "audit.max_tpr_at_fpr.0.01")
    assert rule.outcome is Outcome.INCONCLUSIVE
    assert "attack.json" in rule.why
    assert "dpaudit attack RUN --confidence 0.95" in rule.why


def test_an_audit_at_another_confidence_says_which_and_what_to_repeat() -> None:
    policy = replace(POLICY, audit=replace(POLICY.audit, confidence=0.995))
    (rule,) = (one for one in judged(policy, CLAIM, AUDIT).rules if one.rule == "audit.lower_bound")
    assert rule.outcome is Outcome.INCONCLUSIVE
    assert "audit.json has confidence 0.99" in rule.why
    assert "dpaudit audit RUN --confidence 0.995" in rule.why


@pytest.mark.parametrize(
    "changes",
    [
        {"inconclusive": "worse than chance"},
        {"tpr_at_fpr": ()},
        {"tpr_at_fpr": (TprAtFpr(0.01, 0.01, Bound(0.0, 0.02), 0.5),)},
    ],
)
def test_inconclusive_attack_is_not_replaced_by_a_conclusive_one(
    changes: dict[str, object],
) -> None:
    other = replace(ATTACK, attack="lira", **changes)
    found = outcomes(POLICY, CLAIM, replace(AUDIT, membership=(ATTACK, other)))
    assert found["audit.max_tpr_at_fpr.0.01"] is Outcome.INCONCLUSIVE


def test_power_is_against_this_claim_at_this_delta() -> None:
    for changes in ({"refutes_epsilon": 1.0}, {"refutes_epsilon": None}, {"delta": 1e-3}):
        half = replace(BOUND, confidence=0.995)
        audit = replace(AUDIT, bounds=(half, replace(half, **changes)))
        assert outcomes(POLICY, CLAIM, audit)["audit.min_power_epsilon"] is Outcome.PASS
        audit = replace(AUDIT, bounds=(replace(BOUND, **changes),))
        assert outcomes(POLICY, CLAIM, audit)["audit.min_power_epsilon"] is Outcome.INCONCLUSIVE


def test_a_ledger_is_refuted_even_where_a_blunt_accountant_claims_more() -> None:
    blunt = replace(CLAIM, epsilon=Bound(0.0, 15.0), accountant="naive")
    policy = Policy(
        claim=replace(POLICY.claim, accountant="naive", max_epsilon=20.0), audit=AuditPolicy()
    )
    audit = replace(AUDIT, bounds=(replace(BOUND, epsilon_lower=9.0),))
    evidence = Evidence(claim=blunt, sharpest=CLAIM, audit=audit)
    rules = {r.rule: r for r in evaluate_policy(policy, evidence, today=TODAY).rules}
    assert rules["audit.lower_bound"].outcome is Outcome.FAIL
    assert "by its ledger (pld accountant)" in rules["audit.lower_bound"].why


def test_a_bound_from_scores_that_are_no_evidence_does_not_pass() -> None:
    silent = replace(BOUND, inconclusive="worse than chance")
    verdict = judged(POLICY, CLAIM, replace(AUDIT, bounds=(silent,)))
    (rule,) = (one for one in verdict.rules if one.rule == "audit.lower_bound")
    assert rule.outcome is Outcome.INCONCLUSIVE
    assert "worse than chance" in rule.why


@pytest.mark.parametrize("ulps", [-1, 1, 3])
def test_a_delta_with_other_last_digits_hides_no_bound(ulps: int) -> None:
    delta = 1e-5
    for _ in range(abs(ulps)):
        delta = math.nextafter(delta, math.copysign(1.0, ulps))
    above = replace(AUDIT, bounds=(replace(BOUND, delta=delta, epsilon_lower=3.1),))
    found = outcomes(POLICY, CLAIM, above)
    assert found["audit.lower_bound"] is Outcome.FAIL
    below = replace(AUDIT, bounds=(replace(BOUND, delta=delta),))
    found = outcomes(POLICY, CLAIM, below)
    assert found["audit.lower_bound"] is Outcome.PASS
    assert found["audit.min_power_epsilon"] is Outcome.PASS


@pytest.mark.parametrize(("delta", "outcome"), [(1e-3, "FAIL"), (1e-7, "INCONCLUSIVE")])
def test_a_bound_at_a_larger_delta_contradicts_as_well(delta: float, outcome: str) -> None:
    above = replace(AUDIT, bounds=(replace(BOUND, delta=delta, epsilon_lower=3.1),))
    assert outcomes(POLICY, CLAIM, above)["audit.lower_bound"].value == outcome


@pytest.mark.parametrize(
    "told",
    [
        {"doubts": ((BOUND.name, "nobody recorded its canaries"),)},
        {"missing": ("ranks of canaries, every step",)},
    ],
)
def test_an_incomplete_or_doubtful_audit_passes_nothing_and_contradicts(
    told: dict[str, object],
) -> None:
    def rules(lower: float) -> dict[str, RuleOutcome]:
        audit = replace(AUDIT, bounds=(replace(BOUND, epsilon_lower=lower),))
        evidence = Evidence(claim=CLAIM, audit=audit, **told)
        return {one.rule: one for one in evaluate_policy(POLICY, evidence, today=TODAY).rules}

    low = rules(1.0)
    assert low["audit.lower_bound"].outcome is Outcome.INCONCLUSIVE
    assert low["audit.min_power_epsilon"].outcome is Outcome.INCONCLUSIVE
    assert any(
        words in low["audit.lower_bound"].why
        for words in ("nobody recorded its canaries", "lacks ranks of canaries")
    )
    assert rules(3.1)["audit.lower_bound"].outcome is Outcome.FAIL


def test_a_bound_that_is_called_inconclusive_contradicts_all_the_same() -> None:
    silenced = replace(BOUND, epsilon_lower=3.1, inconclusive="nothing to see")
    found = outcomes(POLICY, CLAIM, replace(AUDIT, bounds=(silenced,)))
    assert found["audit.lower_bound"] is Outcome.FAIL


@pytest.mark.parametrize("detectable", [0.5, 2.9])
def test_power_below_the_claim_is_not_reported(detectable: float) -> None:
    audit = replace(AUDIT, bounds=(replace(BOUND, detectable_epsilon=detectable),))
    assert outcomes(POLICY, CLAIM, audit)["audit.min_power_epsilon"] is Outcome.INCONCLUSIVE


def test_the_power_names_what_it_compares() -> None:
    (rule,) = (
        one for one in judged(POLICY, CLAIM, AUDIT).rules if one.rule == "audit.min_power_epsilon"
    )
    assert "a true epsilon of 5 is detectable at 95% power" in rule.why
    assert "the claim of 2.99 plus min_power_epsilon, 3" in rule.why


SCORED = replace(AUDIT, ledger_head="")


def test_declared_claim_is_compared_with_measurements() -> None:
    policy = replace(POLICY, claim=None)
    assert judged(policy, DeclaredClaim(3.0, 1e-5), SCORED).outcome is Outcome.PASS
    verdict = judged(policy, DeclaredClaim(0.9, 1e-5), SCORED)
    assert verdict.outcome is Outcome.FAIL


def test_a_declared_claim_never_passes_a_rule_of_the_claim() -> None:
    found = outcomes(POLICY, DeclaredClaim(2.0, 1e-5), SCORED)
    assert {found[rule] for rule in found if rule.startswith("claim.")} == {Outcome.INCONCLUSIVE}


@pytest.mark.parametrize(("epsilon", "delta"), [(3.1, 1e-5), (100.0, 1e-5)])
def test_a_declared_claim_above_the_policy_violates(epsilon: float, delta: float) -> None:
    found = outcomes(POLICY, DeclaredClaim(epsilon, delta), None)
    assert found["claim.max_epsilon"] is Outcome.FAIL


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0, -1.0])
def test_a_declared_claim_that_is_no_number_is_refused(value: float) -> None:
    with pytest.raises(InvalidArgument, match="claim_epsilon"):
        DeclaredClaim(value, 1e-5)
    with pytest.raises(InvalidArgument, match="delta"):
        DeclaredClaim(1.0, value if value != 0 else 1.0)


def test_a_measurement_of_a_run_does_not_count_for_a_declared_claim() -> None:
    found = outcomes(replace(POLICY, claim=None), DeclaredClaim(3.0, 1e-5), AUDIT)
    assert found["audit.evidence"] is Outcome.INCONCLUSIVE


def test_nan_is_refused_before_it_reaches_the_judge() -> None:
    with pytest.raises(AccountingError):
        Bound(0.0, float("nan"))
    with pytest.raises(InvalidArgument):
        replace(BOUND, epsilon_lower=float("nan"))


@st.composite
def verdicts(draw: st.DrawFn) -> Verdict:
    waived = st.none() | st.just(AppliedWaiver("known", TODAY))
    rules = st.lists(
        st.builds(RuleOutcome, st.just("r"), st.sampled_from(Outcome), st.text(), waived),
        max_size=8,
    )
    return Verdict(tuple(draw(rules)), "h", "run", draw(st.sampled_from(InconclusiveHandling)))


@given(verdicts())
def test_outcome_and_exit_code_are_one(verdict: Verdict) -> None:
    counted = {rule.outcome for rule in verdict.rules if rule.counts}
    assert (verdict.outcome is Outcome.FAIL) == (Outcome.FAIL in counted)
    assert (verdict.outcome is Outcome.PASS) == (counted == {Outcome.PASS})
    codes = {
        Outcome.PASS: ExitCode.PASS,
        Outcome.FAIL: ExitCode.FAIL,
        Outcome.INCONCLUSIVE: ExitCode.INCONCLUSIVE,
    }
    assert verdict.exit_code is (ExitCode.PASS if verdict.warns else codes[verdict.outcome])


@given(verdicts())
def test_warning_replaces_only_inconclusive_outcomes(
    verdict: Verdict,
) -> None:
    if verdict.warns:
        assert verdict.outcome is Outcome.INCONCLUSIVE
        assert verdict.inconclusive is InconclusiveHandling.WARN
        assert verdict.rules


@pytest.mark.parametrize("wish", list(InconclusiveHandling))
def test_no_rules_are_no_evidence(wish: InconclusiveHandling) -> None:
    verdict = Verdict((), "h", inconclusive=wish)
    assert verdict.outcome is Outcome.INCONCLUSIVE
    assert verdict.exit_code is ExitCode.INCONCLUSIVE


LIRA = replace(ATTACK, attack="lira-online")
UNCLEAR = replace(LIRA, inconclusive="worse than chance")


@pytest.mark.parametrize(
    ("training", "attacks", "outcome"),
    [
        ("dp-sgd", (ATTACK, LIRA), Outcome.PASS),
        ("dp-sgd", (UNCLEAR, replace(LIRA, attack="classifier")), Outcome.PASS),
        ("dp-sgd", (ATTACK,), Outcome.INCONCLUSIVE),
        ("dp-sgd", (ATTACK, UNCLEAR), Outcome.INCONCLUSIVE),
        ("dp-sgd", (), Outcome.INCONCLUSIVE),
        ("plain", (LIRA,), Outcome.INCONCLUSIVE),
        (None, (LIRA,), Outcome.INCONCLUSIVE),
    ],
)
def test_imitation_is_what_the_attack_says_of_the_references_that_it_used(
    training: str | None, attacks: tuple[MembershipResult, ...], outcome: Outcome
) -> None:
    policy = replace(POLICY, audit=replace(POLICY.audit, require_imitation=True))
    attack = AttackReport("a model", 0.99, attacks, CLAIM.ledger_head)
    attack = replace(attack, reference_training=training)
    rules = judged(policy, CLAIM, AUDIT, attack=attack).rules
    found = {rule.rule: rule.outcome for rule in rules}
    assert found["audit.require_imitation"] is outcome
    without = judged(policy, CLAIM, AUDIT).rules
    found = {rule.rule: rule.outcome for rule in without}
    assert found["audit.require_imitation"] is Outcome.INCONCLUSIVE
