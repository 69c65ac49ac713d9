"""What the policy demands of measurements; evidence that is missing or stale never passes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

from dpaudit.gate.evidence import Evidence, Stated
from dpaudit.gate.outcomes import OTHER_MACHINE, decided, unknown
from dpaudit.gate.policy import AuditPolicy
from dpaudit.vocabulary.audit import AuditReport, AuditResult, BoundKind
from dpaudit.vocabulary.baseline import AttackRate
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
    at = [bound for bound in audit.bounds if bound.delta == stated.delta]
    usable = [bound for bound in at if bound.inconclusive is None]
    if not any(bound.kind in policy.count for bound in usable):
        kinds = " or ".join(kind.value for kind in policy.count) or "any kind"
        why = f"no lower bound that is {kinds} at delta {stated.delta:g}"
        silent = [bound.inconclusive for bound in at if bound.inconclusive is not None]
        return unknown(rule, "; ".join([why, *(silent or ["canaries, or their scores, give one"])]))
    if not audit.confidence >= policy.confidence:
        return unknown(
            rule, f"confidence {audit.confidence:g} is below the demanded {policy.confidence:g}"
        )
    above = [bound for bound in usable if not bound.epsilon_lower <= stated.least]
    if above:
        return _contradicted(policy, stated, above)
    counted = [bound for bound in usable if bound.kind in policy.count]
    if not any(_could_contradict(bound, stated) for bound in counted):
        return unknown(
            rule,
            "nothing shows that this audit could have contradicted epsilon "
            f"{round_up(stated.least)}, however right its guesses: give it more canaries",
        )
    worst = max(usable, key=lambda bound: bound.epsilon_lower)
    return decided(
        rule,
        True,
        f"no bound contradicts the claim: the largest says epsilon is at least "
        f"{_described(worst)}, the claim at most {round_up(stated.least)}; this is no proof",
    )


def contradicting(evidence: Evidence) -> list[AuditResult]:
    """Return the bounds on this run, of any kind but an estimate, that lie above the claim."""
    audit, stated = evidence.audit, evidence.stated
    if audit is None or audit.ledger_head != stated.ledger_head:
        return []
    kinds = (BoundKind.CERTIFIED, BoundKind.CONDITIONAL)
    bounds = [one for one in audit.bounds if one.kind in kinds and one.delta == stated.delta]
    return [bound for bound in bounds if not bound.epsilon_lower <= stated.least]


def _could_contradict(bound: AuditResult, stated: Stated) -> bool:
    """Return whether some outcome of the audit would have contradicted the claim."""
    if bound.greatest_epsilon is not None:
        return bound.greatest_epsilon > stated.least
    return bound.detectable_epsilon is not None


def _contradicted(policy: AuditPolicy, stated: Stated, above: list[AuditResult]) -> RuleOutcome:
    counted = [bound for bound in above if bound.kind in policy.count]
    shown = max(counted or above, key=lambda bound: bound.epsilon_lower)
    return RuleOutcome(
        "audit.lower_bound",
        Outcome.VIOLATED if counted else Outcome.INCONCLUSIVE,
        f"epsilon is at least {_described(shown)}, but {stated.by} says at most "
        f"{round_up(stated.least)}: more is given away than is claimed",
    )


def _described(bound: AuditResult) -> str:
    return f"{round_down(bound.epsilon_lower)} ({bound.kind.value}: {bound.name})"


def _power(excess: float, policy: AuditPolicy, stated: Stated, audit: AuditReport) -> RuleOutcome:
    rule = "audit.min_power_epsilon"
    seen = powers([bound for bound in audit.bounds if bound.kind in policy.count], stated)
    if not seen:
        return unknown(rule, "the power of the audit against this claim is not known")
    least = min(seen)
    why = (
        f"the audit would have seen a true epsilon of {round_up(least)} 95 times in 100, "
        f"the policy asks for {round_up(stated.least + excess)}"
    )
    return decided(rule, True, why) if least - stated.least <= excess else unknown(rule, why)


def powers(bounds: Iterable[AuditResult], stated: Stated) -> list[float]:
    """Return the true epsilon at which each bound would refute this claim, or a larger one."""
    lowest = stated.least * (1 - OTHER_MACHINE)
    return [
        bound.detectable_epsilon
        for bound in bounds
        if bound.detectable_epsilon is not None
        and bound.delta == stated.delta
        and bound.refutes_epsilon is not None
        and bound.refutes_epsilon >= lowest
    ]


def _tpr(fpr: str, most: float, policy: AuditPolicy, evidence: Evidence) -> RuleOutcome:
    """Judge every attack that there is evidence of: a weak one does not answer for another."""
    rule = f"audit.max_tpr_at_fpr.{fpr}"
    rates = [rate for rate in evidence.rates if math.isclose(rate.fpr, float(fpr), rel_tol=1e-9)]
    above = [rate for rate in rates if not rate.tpr.upper <= most]
    if above:
        return decided(rule, False, _worst(above, fpr, most))
    missing = [*evidence.silent, *_not_at(fpr, rates, evidence), *_unsure(rates, policy)]
    if missing or not rates:
        why = f"no attack on this run was evaluated at a false-positive rate of {fpr}"
        return unknown(rule, "; ".join(missing) or why)
    return decided(rule, True, _worst(rates, fpr, most))


def _worst(rates: list[AttackRate], fpr: str, most: float) -> str:
    worst = max(rates, key=lambda rate: rate.tpr.upper)
    return (
        f"the true-positive rate at FPR {fpr} of the attack by {worst.attack} is at most "
        f"{round_up(worst.tpr.upper)}, the policy allows {most:g}"
    )


def _not_at(fpr: str, rates: list[AttackRate], evidence: Evidence) -> Iterator[str]:
    measured = {rate.attack for rate in rates}
    for attack in evidence.attacks:
        if attack not in measured:
            yield f"the attack by {attack} was not evaluated at a false-positive rate of {fpr}"


def _unsure(rates: list[AttackRate], policy: AuditPolicy) -> Iterator[str]:
    for rate in rates:
        if not rate.confidence >= policy.confidence:
            yield (
                f"the interval of the attack by {rate.attack} has confidence "
                f"{rate.confidence:g}, below the demanded {policy.confidence:g}"
            )
