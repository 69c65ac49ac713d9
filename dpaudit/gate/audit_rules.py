"""What the policy demands of measurements; evidence that is missing or stale never passes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

from dpaudit.gate.deciding import records_that_decide
from dpaudit.gate.evidence import Evidence, Measured, Source, Stated
from dpaudit.gate.outcomes import decided, unknown
from dpaudit.gate.policy import AuditPolicy
from dpaudit.vocabulary.audit import (
    AuditReport,
    AuditResult,
    BoundKind,
    MembershipResult,
    TprAtFpr,
)
from dpaudit.vocabulary.rounding import round_down, round_up
from dpaudit.vocabulary.tolerance import OTHER_MACHINE, holds_at, same_number
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
        yield _lower_bounds(policy, evidence, audit)
        if policy.min_power_epsilon is not None:
            yield _power(policy.min_power_epsilon, policy, evidence, audit)
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


def _lower_bounds(policy: AuditPolicy, evidence: Evidence, audit: AuditReport) -> RuleOutcome:
    rule, stated = "audit.lower_bound", evidence.stated
    above = contradicting(evidence)
    if not audit.confidence >= policy.confidence:
        why = f"{Source.AUDIT.file} has confidence {audit.confidence:g}, the policy demands "
        why += f"{policy.confidence:g}: {_again(Source.AUDIT, policy)}"
        return unknown(rule, "; ".join([why, *map(_in_words, above)]))
    if above:
        return _contradicted(policy, stated, above)
    if evidence.missing:
        names = ", ".join(evidence.missing)
        return unknown(rule, f"the audit lacks {names}: {_again(Source.AUDIT, policy)}")
    usable, aside = _usable(evidence, audit)
    counted = [bound for bound in usable if bound.kind in policy.count]
    if not counted:
        kinds = " or ".join(kind.value for kind in policy.count) or "any kind"
        why = f"no lower bound that is {kinds} at delta {stated.delta:g}"
        return unknown(rule, "; ".join([why, *(aside or ["canaries, or their scores, give one"])]))
    if not any(_could_contradict(bound, stated) for bound in counted):
        why = (
            "nothing shows that this audit could have contradicted epsilon "
            f"{round_up(stated.least)}, however right its guesses: give it more canaries"
        )
        return unknown(rule, "; ".join([why, *aside]))
    worst = max(usable, key=lambda bound: bound.epsilon_lower)
    why = (
        f"no bound contradicts the claim: the largest says epsilon is at least "
        f"{_described(worst)}, the claim at most {round_up(stated.least)}; this is no proof"
    )
    return decided(rule, True, "; ".join([why, *(f"not counted: {one}" for one in aside)]))


def _usable(evidence: Evidence, audit: AuditReport) -> tuple[list[AuditResult], list[str]]:
    """Return the bounds that can show that the claim is true, and why others cannot."""
    doubts, aside = dict(evidence.doubts), []
    usable = []
    for bound in _at(audit.bounds, evidence.stated.delta):
        why = bound.inconclusive or doubts.get(bound.name)
        if why is None:
            usable.append(bound)
        else:
            aside.append(f"{bound.name}: {why}")
    return usable, aside


def _at(bounds: Iterable[AuditResult], delta: float) -> list[AuditResult]:
    return [bound for bound in bounds if same_number(bound.delta, delta)]


def _again(source: Source, policy: AuditPolicy) -> str:
    return f"repeat it by {source.command} --confidence {policy.confidence:g}"


def contradicting(evidence: Evidence) -> list[AuditResult]:
    """Return the bounds on this run, of any kind but an estimate, that are above the claim.

    Also those that are no evidence that a claim is true: scores of canaries that nobody recorded
    cannot show that a run leaks little, and can show that it leaks much. A bound at a larger
    delta holds at the claim's, too.
    """
    audit, stated = evidence.current_audit, evidence.stated
    if audit is None:
        return []
    kinds = (BoundKind.CERTIFIED, BoundKind.CONDITIONAL)
    holds = [one for one in audit.bounds if one.kind in kinds and holds_at(one.delta, stated.delta)]
    return [bound for bound in holds if not bound.epsilon_lower <= stated.least]


def _could_contradict(bound: AuditResult, stated: Stated) -> bool:
    """Return whether some outcome of the audit would have contradicted the claim."""
    if bound.greatest_epsilon is not None:
        return bound.greatest_epsilon > stated.least
    return bool(powers([bound], stated))


def _contradicted(policy: AuditPolicy, stated: Stated, above: list[AuditResult]) -> RuleOutcome:
    counted = [bound for bound in above if bound.kind in policy.count]
    shown = max(counted or above, key=lambda bound: bound.epsilon_lower)
    return RuleOutcome(
        "audit.lower_bound",
        Outcome.VIOLATED if counted else Outcome.INCONCLUSIVE,
        f"{_in_words(shown)}, but {stated.by} says at most "
        f"{round_up(stated.least)}: more is given away than is claimed",
    )


def _in_words(bound: AuditResult) -> str:
    return f"epsilon is at least {_described(bound)}"


def _described(bound: AuditResult) -> str:
    return f"{round_down(bound.epsilon_lower)} ({bound.kind.value}: {bound.name})"


def _power(
    excess: float, policy: AuditPolicy, evidence: Evidence, audit: AuditReport
) -> RuleOutcome:
    """Compare the least true epsilon that the audit detects with the claim plus the excess."""
    rule, stated = "audit.min_power_epsilon", evidence.stated
    usable, aside = _usable(evidence, audit)
    seen = powers([bound for bound in usable if bound.kind in policy.count], stated)
    if evidence.missing:
        aside.append(f"the audit lacks {', '.join(evidence.missing)}: dpaudit audit RUN")
    if not seen:
        why = (
            "which true epsilon the audit would detect above the claim of "
            f"{round_up(stated.least)} is not known: gradient canaries have a known power"
        )
        return unknown(rule, "; ".join([why, *aside]))
    least, most = min(seen), stated.least + excess
    why = (
        f"a true epsilon of {round_up(least)} would have been detected 95 times in 100; the policy "
        f"asks for one of at most {round_up(most)}: the claim of {round_up(stated.least)} plus "
        f"min_power_epsilon, {excess:g}"
    )
    if least - stated.least <= excess and not evidence.missing:
        return decided(rule, True, why)
    return unknown(rule, "; ".join([why, *aside]))


def powers(bounds: Iterable[AuditResult], stated: Stated) -> list[float]:
    """Return the true epsilon at which each bound would refute this claim, or a larger one.

    One that is not above the claim is no excess, and is left out.
    """
    lowest = stated.least * (1 - OTHER_MACHINE)
    return [
        bound.detectable_epsilon
        for bound in _at(bounds, stated.delta)
        if bound.detectable_epsilon is not None
        and bound.detectable_epsilon >= lowest
        and bound.refutes_epsilon is not None
        and bound.refutes_epsilon >= lowest
    ]


def _tpr(fpr: str, most: float, policy: AuditPolicy, evidence: Evidence) -> RuleOutcome:
    """Judge every attack that there is evidence of: a weak one does not answer for another."""
    rule = f"audit.max_tpr_at_fpr.{fpr}"
    found = [(one, one.rate_at(float(fpr))) for one in evidence.attacks]
    rates = [(one, rate) for one, rate in found if rate is not None]
    sure = [(one, rate) for one, rate in rates if rate.confidence >= policy.confidence]
    above = [(one, rate) for one, rate in sure if rate.interval.lower > most]
    if above:
        one, rate = max(above, key=lambda pair: pair[1].interval.lower)
        why = f"{_rate(one, fpr)} is at least {round_down(rate.interval.lower)}, the policy allows "
        return decided(rule, False, f"{why}{most:g}")
    open_ = [
        *evidence.silent,
        *(
            f"the audit lacks the attack by {name}: {Source.AUDIT.command}"
            for name in evidence.missing_attacks
        ),
        *(_not_at(one, fpr) for one, rate in found if rate is None),
        *(_unsure(one, rate, policy) for one, rate in rates if (one, rate) not in sure),
        *(
            _undecided(one, rate, fpr, most)
            for one, rate in sure
            if not rate.interval.upper <= most
        ),
    ]
    if open_ or not rates:
        why = f"no attack on this run was evaluated at a false-positive rate of {fpr}"
        return unknown(rule, "; ".join(open_) or why)
    one, rate = max(rates, key=lambda pair: pair[1].interval.upper)
    why = (
        f"{_rate(one, fpr)} is at most {round_up(rate.interval.upper)}, the policy allows {most:g}"
    )
    return decided(rule, True, why)


def _rate(one: Measured, fpr: str) -> str:
    return f"the true-positive rate at FPR {fpr} of the attack by {one.result.attack}"


def _not_at(one: Measured, fpr: str) -> str:
    few = [rate for rate in one.result.unresolved if same_number(rate, float(fpr))]
    why = f"the attack by {one.result.attack} was not evaluated at a false-positive rate of {fpr}"
    if not few:
        return why
    return (
        f"{why}: it has {one.result.nonmembers} non-members, which needs "
        f"{math.ceil(1 / float(fpr))} at least"
    )


def _unsure(one: Measured, rate: TprAtFpr, policy: AuditPolicy) -> str:
    return (
        f"{one.source.file}: the interval of the attack by {one.result.attack} has confidence "
        f"{rate.confidence:g}, the policy demands {policy.confidence:g}: "
        f"{_again(one.source, policy)}"
    )


def _undecided(one: Measured, rate: TprAtFpr, fpr: str, most: float) -> str:
    """Say that too few records were scored, and how many would decide."""
    return (
        f"{_rate(one, fpr)} is between {round_down(rate.interval.lower)} and "
        f"{round_up(rate.interval.upper)}, the policy allows {most:g}: "
        f"{in_records(one.result, rate, most)}"
    )


def in_records(result: MembershipResult, rate: TprAtFpr, limit: float) -> str:
    """Say how many records would decide whether a rate is within a limit."""
    had = f"{result.members} members and {result.nonmembers} non-members are too few to tell"
    needed = records_that_decide(result, fpr=rate.fpr, limit=limit, confidence=rate.confidence)
    if needed is None:
        return f"{had}, and it is so close to the limit that a million times as many would be"
    return (
        f"{had}; if more are like them, about {needed.members} and {needed.nonmembers} would decide"
    )
