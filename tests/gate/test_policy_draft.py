"""A drafted policy is valid, whatever the run's words hold, and the run passes it."""

from __future__ import annotations

import tomllib
from datetime import date

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from dpaudit.gate.evidence import Evidence
from dpaudit.gate.policy import Policy
from dpaudit.gate.policy_evaluation import evaluate_policy
from dpaudit.vocabulary.audit import AuditReport, BoundKind, MembershipResult, TprAtFpr
from dpaudit.vocabulary.baseline import Baseline
from dpaudit.vocabulary.claim import Claim
from dpaudit.vocabulary.federation import OBSERVERS, FederationHeader
from dpaudit.vocabulary.ledger import Sampling
from dpaudit.vocabulary.privacy_terms import Adjacency, Bound
from dpaudit.vocabulary.verdict import Outcome
from dpaudit.workflow.gate.policy_authoring import draft_policy_text
from tests.gate.figures import BOUND, CLAIM, RUN

TODAY = date(2026, 11, 21)

claims = st.builds(
    lambda upper, delta, adjacency, sampling, left_out, observers: replace(
        CLAIM,
        epsilon=Bound(0.0, upper),
        delta=delta,
        adjacency=adjacency,
        sampling=sampling,
        unaccounted=tuple(left_out),
        federation=None if observers is None else FederationHeader("x", 5, tuple(observers)),
    ),
    st.floats(1e-6, 1e6),
    st.floats(1e-300, 0.5),
    st.sampled_from(Adjacency),
    st.sampled_from(Sampling),
    st.lists(st.text(), max_size=3),
    st.none() | st.lists(st.sampled_from(OBSERVERS), unique=True),
)
intervals = st.tuples(st.floats(0, 1), st.floats(0, 1)).map(lambda ends: Bound(*sorted(ends)))


@st.composite
def measured(draw: st.DrawFn, claim: Claim) -> AuditReport:
    interval = draw(intervals)
    rate = TprAtFpr(draw(st.floats(1e-6, 0.9)), interval.lower, interval, 0.99)
    count = draw(st.sampled_from([9, 100_000]))
    result = MembershipResult("loss", count, count, 0.5, 0.5, (rate,), ((0.0, 0.0),))
    bound = replace(
        BOUND,
        kind=draw(st.sampled_from([BoundKind.CERTIFIED, BoundKind.CONDITIONAL])),
        delta=claim.delta,
        epsilon_lower=claim.epsilon.upper * draw(st.floats(0, 1)),
        detectable_epsilon=draw(st.none() | st.floats(1e-6, 1e6)),
        refutes_epsilon=claim.epsilon.upper,
        greatest_epsilon=2 * claim.epsilon.upper,
    )
    return AuditReport(claim.ledger_head, 0.99, (bound,), (result,))


@given(st.data(), claims, st.text())
def test_a_run_passes_the_policy_that_was_drafted_from_it(
    data: st.DataObject, claim: Claim, name: str
) -> None:
    recorded: Baseline = replace(RUN, claim=claim, run=name, bounds=(), rates=())
    audit = data.draw(measured(claim))
    evidence = Evidence(claim=claim, audit=audit, recorded=recorded)
    compared = replace(recorded, bounds=audit.bounds, rates=evidence.rates)
    for baseline, named in ((None, None), (compared, name)):
        policy = msgspec.convert(tomllib.loads(draft_policy_text(claim, evidence, named)), Policy)
        verdict = evaluate_policy(policy, evidence, baseline, today=TODAY)
        failed = [rule.rule for rule in verdict.rules if rule.outcome is not Outcome.PASS]
        assert failed == []


def attack(name: str, records: int, fpr: float, interval: Bound) -> MembershipResult:
    rate = TprAtFpr(fpr, interval.lower, interval, 0.99)
    return MembershipResult(name, records, records, 0.5, 0.5, (rate,), ((0.0, 0.0),))


def drafted(*attacks: MembershipResult) -> tuple[Policy, str]:
    audit = AuditReport(CLAIM.ledger_head, 0.99, (), attacks)
    text = draft_policy_text(CLAIM, Evidence(claim=CLAIM, audit=audit), "b.json")
    return msgspec.convert(tomllib.loads(text), Policy), text


@pytest.mark.parametrize(("records", "interval"), [(30, Bound(0.0, 1.0)), (200, Bound(0.0, 0.95))])
def test_no_limit_is_drafted_that_a_perfect_attack_would_pass(
    records: int, interval: Bound
) -> None:
    policy, text = drafted(attack("loss", records, 0.01, interval))
    assert policy.audit is not None
    assert policy.regression is not None
    assert policy.audit.max_tpr_at_fpr == {}
    assert policy.regression.max_tpr_increase is None
    assert "# No max_tpr_at_fpr at FPR 0.01: the attacks of this run scored too few" in text
    assert "# No max_tpr_increase: " in text


def test_a_limit_that_one_of_two_attacks_lacks_is_not_drafted() -> None:
    """It would be INCONCLUSIVE for the run itself."""
    many = attack("reference", 5000, 0.001, Bound(0.0, 0.01))
    policy, text = drafted(many, attack("loss", 500, 0.1, Bound(0.05, 0.2)))
    assert policy.audit is not None
    assert policy.audit.max_tpr_at_fpr == {}
    assert "at FPR 0.001, 0.1: " in text


def test_a_limit_that_its_records_decide_is_drafted() -> None:
    policy, text = drafted(attack("loss", 5000, 0.1, Bound(0.08, 0.12)))
    assert policy.audit is not None
    assert policy.regression is not None
    assert policy.audit.max_tpr_at_fpr == {"0.1": pytest.approx(0.14)}
    assert policy.regression.max_tpr_increase == pytest.approx(0.02, rel=1e-3)
    assert "# No max_tpr" not in text


def test_without_an_audit_none_is_demanded() -> None:
    policy = msgspec.convert(
        tomllib.loads(draft_policy_text(CLAIM, Evidence(claim=CLAIM), None)), Policy
    )
    assert policy.audit is None
