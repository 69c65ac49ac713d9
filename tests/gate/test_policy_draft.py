"""A drafted policy is valid, whatever the run's words hold, and the run passes it."""

from __future__ import annotations

import tomllib
from datetime import date

import msgspec
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from dpaudit.gate.evidence import Evidence
from dpaudit.gate.policy import Policy
from dpaudit.gate.policy_evaluation import evaluate_policy
from dpaudit.vocabulary.audit import AuditReport, BoundKind, MembershipResult, TprAtFpr
from dpaudit.vocabulary.baseline import Baseline
from dpaudit.vocabulary.claim import Claim
from dpaudit.vocabulary.ledger import Sampling
from dpaudit.vocabulary.privacy_terms import Adjacency, Bound
from dpaudit.vocabulary.verdict import Outcome
from dpaudit.workflow.gate.policy_authoring import draft_policy_text
from tests.gate.figures import BOUND, CLAIM, RUN

TODAY = date(2026, 11, 21)

claims = st.builds(
    lambda upper, delta, adjacency, sampling, left_out: replace(
        CLAIM,
        epsilon=Bound(0.0, upper),
        delta=delta,
        adjacency=adjacency,
        sampling=sampling,
        unaccounted=tuple(left_out),
    ),
    st.floats(1e-6, 1e6),
    st.floats(1e-300, 0.5),
    st.sampled_from(Adjacency),
    st.sampled_from(Sampling),
    st.lists(st.text(), max_size=3),
)
intervals = st.tuples(st.floats(0, 1), st.floats(0, 1)).map(lambda ends: Bound(*sorted(ends)))


@st.composite
def measured(draw: st.DrawFn, claim: Claim) -> AuditReport:
    interval = draw(intervals)
    rate = TprAtFpr(draw(st.floats(1e-6, 0.9)), interval.lower, interval, 0.99)
    result = MembershipResult("loss", 9, 9, 0.5, 0.5, (rate,), ((0.0, 0.0),))
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


def test_without_an_audit_none_is_demanded() -> None:
    policy = msgspec.convert(
        tomllib.loads(draft_policy_text(CLAIM, Evidence(claim=CLAIM), None)), Policy
    )
    assert policy.audit is None
