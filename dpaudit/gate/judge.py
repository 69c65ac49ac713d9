"""The verdict: a pure function of policy, evidence, baseline and the day.

Comparisons are written so that NaN fails them, and missing evidence never passes.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date

from dpaudit.gate.audit_rules import audit_rules
from dpaudit.gate.claim_rules import claim_rules
from dpaudit.gate.evidence import Evidence
from dpaudit.gate.outcomes import unknown
from dpaudit.gate.policy import Policy
from dpaudit.gate.regression_rules import regression_rules
from dpaudit.gate.waivers import waive
from dpaudit.gate.warnings import warnings_on
from dpaudit.vocabulary.baseline import Baseline
from dpaudit.vocabulary.basis import Basis
from dpaudit.vocabulary.claim import Claim
from dpaudit.vocabulary.verdict import OnInconclusive, RuleOutcome, Verdict


def judge(
    policy: Policy,
    evidence: Evidence,
    baseline: Baseline | None = None,
    *,
    today: date,
    inconclusive: OnInconclusive = OnInconclusive.FAIL,
    basis: Basis | None = None,
) -> Verdict:
    """Return the outcome of every rule of ``policy``.

    Args:
        policy: What is demanded.
        evidence: The claim at the policy's delta, by the policy's accountant, and what was
            measured on the same run.
        baseline: What the run is compared with, where the policy has a section regression.
        today: On which waivers are in force or expired.
        inconclusive: What becomes of a verdict that cannot be told.
        basis: Where the policy and the evidence come from, for the record.
    """
    rules = tuple(_rules(policy, evidence, baseline))
    return Verdict(
        rules=tuple(waive(rules, policy, today)),
        ledger_head=evidence.stated.ledger_head,
        run="" if evidence.booked is None else evidence.booked.run,
        inconclusive=inconclusive,
        claim=evidence.claim if isinstance(evidence.claim, Claim) else None,
        basis=basis,
        warnings=tuple(warnings_on(rules, policy, evidence, today)),
    )


def _rules(policy: Policy, evidence: Evidence, baseline: Baseline | None) -> Iterator[RuleOutcome]:
    if policy.claim is not None:
        yield from claim_rules(policy.claim, evidence.claim)
    if policy.audit is not None:
        yield from audit_rules(policy.audit, evidence)
    if policy.regression is not None:
        yield from regression_rules(policy.regression, evidence, baseline)
    elif baseline is not None:
        why = "a baseline was given, and the policy has no section [regression] to compare by"
        yield unknown("regression.baseline", why)
