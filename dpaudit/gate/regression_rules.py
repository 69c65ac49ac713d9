"""Rules of the policy section ``regression``: compare a run with its baseline."""

from __future__ import annotations

from collections.abc import Iterator

from dpaudit.gate.audit_rules import records_needed_in_words
from dpaudit.gate.evidence import Evidence, MembershipEvidence
from dpaudit.gate.policy import RegressionPolicy
from dpaudit.gate.run_differences import differences_in_words, find_differences
from dpaudit.vocabulary.audit import AuditReport, AuditResult, TprAtFpr
from dpaudit.vocabulary.baseline import AttackRate, Baseline
from dpaudit.vocabulary.claim import Claim
from dpaudit.vocabulary.ledger import Randomness
from dpaudit.vocabulary.rounding import (
    CROSS_MACHINE_TOLERANCE,
    SAME_NUMBER_TOLERANCE,
    round_down,
    round_up,
    same_number,
)
from dpaudit.vocabulary.verdict import (
    RuleOutcome,
    combined_outcome,
    decided_outcome,
    inconclusive_outcome,
)

# Epsilons of claims that differ in one of these fields are not comparable.
SAME_CLAIM_FIELDS = ("accountant", "adjacency", "unit")


def evaluate_regression_rules(
    policy: RegressionPolicy, evidence: Evidence, baseline: Baseline | None
) -> Iterator[RuleOutcome]:
    """Evaluate the rules of the section ``regression``.

    Args:
        policy: The section.
        evidence: Claim, recorded figures and measurements of the run.
        baseline: Figures of an earlier run; None: the outcome is INCONCLUSIVE.

    Yields:
        One outcome per rule.
    """
    now = evidence.recorded
    if baseline is None:
        yield inconclusive_outcome(
            "regression.baseline", "no baseline was given: dpaudit gate RUN --baseline"
        )
    elif now is None:
        yield inconclusive_outcome(
            "regression.baseline", "no run was given to compare with the baseline"
        )
    else:
        if policy.max_epsilon_increase is not None:
            yield _epsilon(policy.max_epsilon_increase, now, baseline)
        if policy.max_tpr_increase is not None:
            yield _tpr(policy.max_tpr_increase, evidence, baseline)
        if policy.max_lower_bound_increase is not None:
            yield _lower_bounds(policy.max_lower_bound_increase, evidence, baseline)


def _epsilon(most: float, now: Baseline, baseline: Baseline) -> RuleOutcome:
    rule, was = "regression.max_epsilon_increase", baseline.claim.epsilon.upper
    causes = differences_in_words(find_differences(baseline, now))
    apart = list(_apart(now.claim, baseline.claim))
    if apart:
        return inconclusive_outcome(rule, f"claims of different {' and '.join(apart)}: {causes}")
    allowed = was * (1 + CROSS_MACHINE_TOLERANCE) + most
    why = f"epsilon was at most {round_up(was)}, is at most {round_up(now.claim.epsilon.upper)}"
    if now.claim.epsilon.upper <= allowed:
        return decided_outcome(rule, True, why)
    return decided_outcome(rule, False, f"{why}, may grow by {most:g}; {causes}")


def _apart(now: Claim, was: Claim) -> Iterator[str]:
    """Yield the aspects in which a claim differs from, or covers less than, the one before it."""
    if not same_number(now.delta, was.delta):
        yield "delta"
    yield from (name for name in SAME_CLAIM_FIELDS if getattr(now, name) != getattr(was, name))
    if now.randomness is Randomness.SEEDED and was.randomness is Randomness.SECURE:
        yield "randomness"
    if not now.released.covers(was.released):
        yield "releases (the new one covers the final model alone)"
    if not set(now.unaccounted) <= set(was.unaccounted):
        yield "scope (the new one leaves more unaccounted)"
    if not set(now.assumed_public) <= set(was.assumed_public):
        yield "scope (the new one assumes more to be public)"


def _tpr(most: float, evidence: Evidence, baseline: Baseline) -> RuleOutcome:
    rule = "regression.max_tpr_increase"
    if not baseline.rates:
        return inconclusive_outcome(
            rule, "the baseline holds no attack: write it from an audited run"
        )
    each = [_one_rate(rule, most, was, _highest(evidence.attacks, was)) for was in baseline.rates]
    known = {rate.attack for rate in baseline.rates}
    each += [
        inconclusive_outcome(
            rule,
            f"the attack by {one.result.attack} was not run on the baseline: write the baseline "
            "again",
        )
        for one in evidence.attacks
        if one.result.attack not in known
    ]
    return _worst(rule, each)


MeasuredRate = tuple[MembershipEvidence, TprAtFpr]


def _highest(attacks: tuple[MembershipEvidence, ...], was: AttackRate) -> MeasuredRate | None:
    """Return the same attack's rate now; the highest one where it was measured twice."""
    same = [
        (one, rate)
        for one in attacks
        if one.result.attack == was.attack and (rate := one.rate_at(was.fpr)) is not None
    ]
    return max(same, key=lambda found: found[1].interval.upper, default=None)


def _one_rate(rule: str, most: float, was: AttackRate, current: MeasuredRate | None) -> RuleOutcome:
    """Compare upper ends; where chance may explain the growth, the outcome is INCONCLUSIVE."""
    which = f"the true-positive rate of {was.attack} at FPR {was.fpr:g}"
    if current is None:
        return inconclusive_outcome(
            rule, f"{which} was measured for the baseline, not for this run"
        )
    one, rate = current
    if not rate.confidence >= was.confidence * (1 - SAME_NUMBER_TOLERANCE):
        return inconclusive_outcome(
            rule,
            f"{which} has confidence {was.confidence:g} in the baseline and {rate.confidence:g} "
            f"in {one.source.file}: repeat it by {one.source.command} --confidence "
            f"{was.confidence:g}",
        )
    limit, now = was.tpr.upper + most, rate.interval
    why = f"{which} was at most {round_up(was.tpr.upper)}, is at most {round_up(now.upper)}"
    if now.upper <= limit:
        return decided_outcome(rule, True, why)
    why += f", may grow by {most:g}"
    if now.lower > limit:
        return decided_outcome(rule, False, f"{why}, and is at least {round_down(now.lower)}")
    return inconclusive_outcome(rule, f"{why}; {records_needed_in_words(one.result, rate, limit)}")


def _lower_bounds(most: float, evidence: Evidence, baseline: Baseline) -> RuleOutcome:
    rule, audit = "regression.max_lower_bound_increase", evidence.current_audit
    if not baseline.bounds:
        return inconclusive_outcome(
            rule, "the baseline holds no lower bound: write it from an audited run"
        )
    return _worst(rule, [_one_bound(rule, most, was, audit) for was in baseline.bounds])


def _one_bound(rule: str, most: float, was: AuditResult, audit: AuditReport | None) -> RuleOutcome:
    which = f"the lower bound by {was.name}"
    found = () if audit is None else audit.bounds
    alike = [bound for bound in found if _is_alike(bound, was)]
    if not alike:
        return inconclusive_outcome(
            rule,
            f"{which} (delta {was.delta:g}, confidence {was.confidence:.6g}, {was.trials} "
            f"canaries) has no counterpart in this run: {_as_before(was, audit)}",
        )
    now = max(bound.epsilon_lower for bound in alike)
    why = f"{which} was {round_down(was.epsilon_lower)}, is {round_down(now)}"
    return decided_outcome(rule, now <= was.epsilon_lower + most, f"{why}, may grow by {most:g}")


def _is_alike(now: AuditResult, was: AuditResult) -> bool:
    """Return whether a bound has the same name, kind, delta and confidence, and enough canaries."""
    same = (now.name, now.kind) == (was.name, was.kind) and same_number(now.delta, was.delta)
    sure = same_number(now.confidence, was.confidence)
    return same and sure and now.trials >= was.trials and now.inconclusive is None


def _as_before(was: AuditResult, audit: AuditReport | None) -> str:
    """Describe how to audit the run as its baseline was audited."""
    if audit is None:
        return "audit it: dpaudit audit RUN"
    for now in audit.bounds:
        if now.name == was.name and not same_number(now.confidence, was.confidence):
            # Each bound has a fixed share of the audit's failure probability, so the joint
            # confidence follows from the confidence of one bound.
            part = (1 - now.confidence) / (1 - audit.confidence)
            joint = 1 - (1 - was.confidence) / part
            return (
                f"audit.json has confidence {audit.confidence:g}, repeat it by dpaudit audit RUN "
                f"--confidence {joint:.6g}"
            )
    return "audit it as the baseline was"


def _worst(rule: str, each: list[RuleOutcome]) -> RuleOutcome:
    """Combine outcomes into the worst one, with the reasons of those that have it."""
    outcome = combined_outcome(one.outcome for one in each)
    reasons = [one.why for one in each if one.outcome is outcome]
    return RuleOutcome(rule, outcome, "; ".join(reasons))
