"""The verdict: a pure function of policy, claim and audit.

Comparisons are written so that NaN fails them, and missing evidence never passes.
"""

from __future__ import annotations

import math

from dpaudit.gate.policy import AuditPolicy, ClaimPolicy, Policy
from dpaudit.vocabulary.audit import AuditReport, AuditResult
from dpaudit.vocabulary.claim import Claim
from dpaudit.vocabulary.conformance import ConformanceResult
from dpaudit.vocabulary.ledger import Randomness
from dpaudit.vocabulary.rounding import round_down, round_up
from dpaudit.vocabulary.verdict import Outcome, RuleOutcome, Verdict


def judge(
    policy: Policy,
    claim: Claim,
    audit: AuditReport | None,
    conformance: ConformanceResult | None = None,
) -> Verdict:
    """Return the outcome of every rule of ``policy``.

    Args:
        policy: What is demanded.
        claim: The claim at the policy's delta, by the policy's accountant.
        audit: What was measured on the same run; None where nothing was.
        conformance: Whether the run's trainer does what it claims; None where nobody looked.
    """
    rules = _claim_rules(policy.claim, claim)
    if policy.audit is not None:
        if policy.audit.require_conformance:
            rules.append(_conformance(claim, conformance))
        rules += _audit_rules(policy.audit, claim, audit)
    return Verdict(tuple(rules), claim.ledger_head)


def _rule(rule: str, holds: bool, why: str) -> RuleOutcome:
    return RuleOutcome(rule, Outcome.HOLDS if holds else Outcome.VIOLATED, why)


def _claim_rules(policy: ClaimPolicy, claim: Claim) -> list[RuleOutcome]:
    allowed = ", ".join(sampling.value for sampling in policy.sampling)
    left_out = [item for item in claim.leaves_out if item not in policy.may_leave_out]
    return [
        _max_epsilon(policy, claim),
        _rule(
            "claim.adjacency",
            claim.adjacency is policy.adjacency,
            f"the claim is for {claim.adjacency.value}, the policy demands "
            f"{policy.adjacency.value}",
        ),
        _rule(
            "claim.sampling",
            claim.sampling in policy.sampling,
            f"sampling was {claim.sampling.value}, allowed is {allowed}",
        ),
        _rule(
            "claim.require_secure_randomness",
            claim.randomness is Randomness.SECURE or not policy.require_secure_randomness,
            f"randomness was {claim.randomness.value}",
        ),
        _rule(
            "claim.may_leave_out",
            not left_out,
            f"the claim leaves out {', '.join(left_out) or 'nothing that it may not'}",
        ),
    ]


def _max_epsilon(policy: ClaimPolicy, claim: Claim) -> RuleOutcome:
    if (claim.delta, claim.accountant) != (policy.delta, policy.accountant):
        return RuleOutcome(
            "claim.max_epsilon",
            Outcome.INCONCLUSIVE,
            f"the claim is at delta {claim.delta:g} by {claim.accountant}, the policy asks for "
            f"delta {policy.delta:g} by {policy.accountant}",
        )
    return _rule(
        "claim.max_epsilon",
        claim.epsilon.upper <= policy.max_epsilon,
        f"epsilon is at most {round_up(claim.epsilon.upper)} at delta {claim.delta:g} "
        f"({claim.accountant}), the policy allows {policy.max_epsilon:g}",
    )


def _audit_rules(policy: AuditPolicy, claim: Claim, audit: AuditReport | None) -> list[RuleOutcome]:
    if audit is None:
        why = "the run was not audited: dpaudit audit RUN"
        return [RuleOutcome("audit.evidence", Outcome.INCONCLUSIVE, why)]
    if audit.ledger_head != claim.ledger_head:
        why = "the audit is of another state of the ledger: audit the run again"
        return [RuleOutcome("audit.evidence", Outcome.INCONCLUSIVE, why)]
    rules = [_lower_bounds(policy, claim, audit)]
    if policy.min_power_epsilon is not None:
        rules.append(_power(policy.min_power_epsilon, policy, claim, audit))
    rules += [_tpr(fpr, most, audit) for fpr, most in policy.max_tpr_at_fpr.items()]
    return rules


def _conformance(claim: Claim, conformance: ConformanceResult | None) -> RuleOutcome:
    rule = "audit.require_conformance"
    if conformance is None:
        why = "nobody tested the run's trainer: dpaudit conformance RUN"
        return RuleOutcome(rule, Outcome.INCONCLUSIVE, why)
    if conformance.ledger_head != claim.ledger_head:
        why = "the trainer was tested for another state of the ledger: test it again"
        return RuleOutcome(rule, Outcome.INCONCLUSIVE, why)
    told = [f for f in conformance.findings if f.outcome is conformance.verdict]
    if conformance.verdict is Outcome.HOLDS:
        why = f"{len(told)} tests of the run's trainer found nothing wrong; this is no proof"
    else:
        why = "; ".join(f"{finding.check}, {finding.name}: {finding.why}" for finding in told)
    return RuleOutcome(rule, conformance.verdict, why or "nothing was tested")


def _lower_bounds(policy: AuditPolicy, claim: Claim, audit: AuditReport) -> RuleOutcome:
    rule = "audit.lower_bound"
    usable = [bound for bound in audit.bounds if bound.delta == claim.delta]
    if not any(bound.kind in policy.count for bound in usable):
        kinds = " or ".join(kind.value for kind in policy.count) or "any kind"
        why = f"no lower bound of {kinds} at delta {claim.delta:g}: train with --canaries"
        return RuleOutcome(rule, Outcome.INCONCLUSIVE, why)
    if not audit.confidence >= policy.confidence:
        why = f"confidence {audit.confidence:g} is below the demanded {policy.confidence:g}"
        return RuleOutcome(rule, Outcome.INCONCLUSIVE, why)
    worst = max(usable, key=lambda bound: bound.epsilon_lower)
    if all(bound.epsilon_lower <= claim.epsilon.upper for bound in usable):
        return RuleOutcome(
            rule,
            Outcome.HOLDS,
            f"no bound contradicts the claim: the largest says epsilon is at least "
            f"{_described(worst)}, the claim at most {round_up(claim.epsilon.upper)}; "
            "this is no proof",
        )
    above = [b for b in usable if not b.epsilon_lower <= claim.epsilon.upper]
    counted = [bound for bound in above if bound.kind in policy.count]
    shown = max(counted or above, key=lambda bound: bound.epsilon_lower)
    return RuleOutcome(
        rule,
        Outcome.VIOLATED if counted else Outcome.INCONCLUSIVE,
        f"epsilon is at least {_described(shown)}, but the claim says at most "
        f"{round_up(claim.epsilon.upper)}: the run gives away more than its ledger books",
    )


def _described(bound: AuditResult) -> str:
    return f"{round_down(bound.epsilon_lower)} ({bound.kind.value}: {bound.name})"


def _power(excess: float, policy: AuditPolicy, claim: Claim, audit: AuditReport) -> RuleOutcome:
    seen = [
        bound.detectable_epsilon
        for bound in audit.bounds
        if bound.kind in policy.count and bound.detectable_epsilon is not None
    ]
    least = min(seen, default=math.inf)
    enough = least - claim.epsilon.upper <= excess
    why = (
        f"the audit would have seen a true epsilon of {round_up(least)} 95 times in 100, "
        f"the policy asks for {round_down(claim.epsilon.upper + excess)}"
    )
    if not seen:
        why = "the power of the audit is not known"
    return RuleOutcome(
        "audit.min_power_epsilon", Outcome.HOLDS if enough else Outcome.INCONCLUSIVE, why
    )


def _tpr(fpr: str, most: float, audit: AuditReport) -> RuleOutcome:
    rule = f"audit.max_tpr_at_fpr.{fpr}"
    uppers = [
        rate.interval.upper
        for result in audit.membership
        if result.inconclusive is None
        for rate in result.tpr_at_fpr
        if math.isclose(rate.fpr, float(fpr), rel_tol=1e-9)
    ]
    if not uppers:
        silent = [one.inconclusive for one in audit.membership if one.inconclusive is not None]
        why = f"no attack was evaluated at a false-positive rate of {fpr}"
        why += "".join(f"; {reason}" for reason in silent)
        return RuleOutcome(rule, Outcome.INCONCLUSIVE, why)
    worst = max(uppers)
    return _rule(
        rule,
        worst <= most,
        f"an attack's true-positive rate at FPR {fpr} is at most {round_up(worst)}, "
        f"the policy allows {most:g}",
    )
