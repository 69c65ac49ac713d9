"""What the policy demands of measurements; evidence that is missing or stale never passes."""

from __future__ import annotations

import math
from collections.abc import Iterator

from dpaudit.gate.evidence import Evidence, Stated
from dpaudit.gate.outcomes import decided, unknown
from dpaudit.gate.policy import AuditPolicy
from dpaudit.vocabulary.audit import AuditReport, AuditResult
from dpaudit.vocabulary.rounding import round_down, round_up
from dpaudit.vocabulary.verdict import Outcome, RuleOutcome


def audit_rules(policy: AuditPolicy, evidence: Evidence) -> Iterator[RuleOutcome]:
    """Yield the outcome of each rule of the section ``audit``."""
    if policy.require_conformance:
        yield _conformance(evidence)
    stated, audit = evidence.stated, evidence.audit
    if audit is None:
        yield unknown("audit.evidence", "the run was not audited: dpaudit audit RUN")
    elif audit.ledger_head != stated.ledger_head:
        why = "the audit is of another state of the ledger: audit the run again"
        yield unknown("audit.evidence", why)
    else:
        yield _lower_bounds(policy, stated, audit)
        if policy.min_power_epsilon is not None:
            yield _power(policy.min_power_epsilon, policy, stated, audit)
    for fpr, most in policy.max_tpr_at_fpr.items():
        yield _tpr(fpr, most, policy, evidence)


def _conformance(evidence: Evidence) -> RuleOutcome:
    rule, conformance = "audit.require_conformance", evidence.conformance
    if conformance is None:
        return unknown(rule, "nobody tested the run's trainer: dpaudit conformance RUN")
    if (conformance.ledger_head or "") != evidence.stated.ledger_head:
        return unknown(
            rule, "the trainer was tested for another state of the ledger: test it again"
        )
    told = [f for f in conformance.findings if f.outcome is conformance.verdict]
    if conformance.verdict is Outcome.HOLDS:
        why = f"{len(told)} tests of the run's trainer found nothing wrong; this is no proof"
    else:
        why = "; ".join(f"{finding.check}, {finding.name}: {finding.why}" for finding in told)
    return RuleOutcome(rule, conformance.verdict, why or "nothing was tested")


def _lower_bounds(policy: AuditPolicy, stated: Stated, audit: AuditReport) -> RuleOutcome:
    rule = "audit.lower_bound"
    usable = [bound for bound in audit.bounds if bound.delta == stated.delta]
    if not any(bound.kind in policy.count for bound in usable):
        kinds = " or ".join(kind.value for kind in policy.count) or "any kind"
        return unknown(
            rule, f"no lower bound of {kinds} at delta {stated.delta:g}: train with --canaries"
        )
    if not audit.confidence >= policy.confidence:
        return unknown(
            rule, f"confidence {audit.confidence:g} is below the demanded {policy.confidence:g}"
        )
    above = [bound for bound in usable if not bound.epsilon_lower <= stated.epsilon]
    if above:
        return _contradicted(policy, stated, above)
    counted = [bound for bound in usable if bound.kind in policy.count]
    if not any(_could_contradict(bound, stated) for bound in counted):
        return unknown(
            rule,
            f"no outcome of this audit could have contradicted epsilon {round_up(stated.epsilon)}, "
            "not even if every guess had been right: give it more canaries",
        )
    worst = max(usable, key=lambda bound: bound.epsilon_lower)
    return decided(
        rule,
        True,
        f"no bound contradicts the claim: the largest says epsilon is at least "
        f"{_described(worst)}, the claim at most {round_up(stated.epsilon)}; this is no proof",
    )


def _could_contradict(bound: AuditResult, stated: Stated) -> bool:
    return bound.greatest_epsilon is None or bound.greatest_epsilon > stated.epsilon


def _contradicted(policy: AuditPolicy, stated: Stated, above: list[AuditResult]) -> RuleOutcome:
    counted = [bound for bound in above if bound.kind in policy.count]
    shown = max(counted or above, key=lambda bound: bound.epsilon_lower)
    return RuleOutcome(
        "audit.lower_bound",
        Outcome.VIOLATED if counted else Outcome.INCONCLUSIVE,
        f"epsilon is at least {_described(shown)}, but the claim says at most "
        f"{round_up(stated.epsilon)}: more is given away than is claimed",
    )


def _described(bound: AuditResult) -> str:
    return f"{round_down(bound.epsilon_lower)} ({bound.kind.value}: {bound.name})"


def _power(excess: float, policy: AuditPolicy, stated: Stated, audit: AuditReport) -> RuleOutcome:
    rule = "audit.min_power_epsilon"
    seen = [
        bound.detectable_epsilon
        for bound in audit.bounds
        if bound.kind in policy.count and bound.detectable_epsilon is not None
    ]
    if not seen:
        return unknown(rule, "the power of the audit is not known")
    least = min(seen)
    why = (
        f"the audit would have seen a true epsilon of {round_up(least)} 95 times in 100, "
        f"the policy asks for {round_up(stated.epsilon + excess)}"
    )
    return decided(rule, True, why) if least - stated.epsilon <= excess else unknown(rule, why)


def _tpr(fpr: str, most: float, policy: AuditPolicy, evidence: Evidence) -> RuleOutcome:
    rule = f"audit.max_tpr_at_fpr.{fpr}"
    at = [rate for rate in evidence.rates if math.isclose(rate.fpr, float(fpr), rel_tol=1e-9)]
    uppers = {rate.tpr.upper: rate for rate in at if rate.confidence >= policy.confidence}
    if not uppers:
        return unknown(rule, _no_rate(fpr, policy, evidence, bool(at)))
    worst = max(uppers)
    return decided(
        rule,
        worst <= most,
        f"the true-positive rate at FPR {fpr} of the attack by {uppers[worst].attack} is at most "
        f"{round_up(worst)}, the policy allows {most:g}",
    )


def _no_rate(fpr: str, policy: AuditPolicy, evidence: Evidence, unsure: bool) -> str:
    if unsure:
        return f"no interval at FPR {fpr} has the demanded confidence of {policy.confidence:g}"
    reports = [report for report in (evidence.audit, evidence.attack) if report is not None]
    silent = [
        one.inconclusive
        for report in reports
        for one in report.membership
        if one.inconclusive is not None
    ]
    missing = f"no attack on this run was evaluated at a false-positive rate of {fpr}"
    return "; ".join([missing, *silent])
