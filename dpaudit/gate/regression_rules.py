"""How much worse than its baseline a run may be."""

from __future__ import annotations

from collections.abc import Iterator

from dpaudit.gate.audit_rules import in_records
from dpaudit.gate.causes import differences, in_words
from dpaudit.gate.evidence import Evidence, Measured
from dpaudit.gate.outcomes import decided, unknown
from dpaudit.gate.policy import RegressionPolicy
from dpaudit.vocabulary.audit import AuditReport, AuditResult, TprAtFpr
from dpaudit.vocabulary.baseline import AttackRate, Baseline
from dpaudit.vocabulary.claim import Claim
from dpaudit.vocabulary.ledger import Randomness
from dpaudit.vocabulary.rounding import round_down, round_up
from dpaudit.vocabulary.tolerance import OTHER_MACHINE, ROUNDED, same_number
from dpaudit.vocabulary.verdict import RuleOutcome, together

# Claims that differ in one of these are of different things: neither is the larger one.
SAME = ("accountant", "adjacency", "unit")


def regression_rules(
    policy: RegressionPolicy, evidence: Evidence, baseline: Baseline | None
) -> Iterator[RuleOutcome]:
    """Yield the outcome of each rule of the section ``regression``."""
    now = evidence.booked
    if baseline is None:
        yield unknown("regression.baseline", "no baseline was given: dpaudit gate RUN --baseline")
    elif now is None:
        yield unknown("regression.baseline", "no run was given to compare with the baseline")
    else:
        if policy.max_epsilon_increase is not None:
            yield _epsilon(policy.max_epsilon_increase, now, baseline)
        if policy.max_tpr_increase is not None:
            yield _tpr(policy.max_tpr_increase, evidence, baseline)
        if policy.max_lower_bound_increase is not None:
            yield _lower_bounds(policy.max_lower_bound_increase, evidence, baseline)


def _epsilon(most: float, now: Baseline, baseline: Baseline) -> RuleOutcome:
    rule, was = "regression.max_epsilon_increase", baseline.claim.epsilon.upper
    causes = in_words(differences(baseline, now))
    apart = list(_apart(now.claim, baseline.claim))
    if apart:
        return unknown(rule, f"claims of different {' and '.join(apart)}: {causes}")
    allowed = was * (1 + OTHER_MACHINE) + most
    why = f"epsilon was at most {round_up(was)}, is at most {round_up(now.claim.epsilon.upper)}"
    if now.claim.epsilon.upper <= allowed:
        return decided(rule, True, why)
    return decided(rule, False, f"{why}, may grow by {most:g}; {causes}")


def _apart(now: Claim, was: Claim) -> Iterator[str]:
    """Yield in what a claim says less than the one before it, whatever its epsilon is."""
    if not same_number(now.delta, was.delta):
        yield "delta"
    yield from (name for name in SAME if getattr(now, name) != getattr(was, name))
    if now.randomness is Randomness.SEEDED and was.randomness is Randomness.SECURE:
        yield "randomness"
    if not now.released.covers(was.released):
        yield "releases (the new one covers the final model alone)"
    if not set(now.leaves_out) <= set(was.leaves_out):
        yield "scope (the new one leaves out more)"
    if not set(now.takes_as_public) <= set(was.takes_as_public):
        yield "scope (the new one takes more as public)"


def _tpr(most: float, evidence: Evidence, baseline: Baseline) -> RuleOutcome:
    rule = "regression.max_tpr_increase"
    if not baseline.rates:
        return unknown(rule, "the baseline holds no attack: write it from an audited run")
    each = [_one_rate(rule, most, was, _highest(evidence.attacks, was)) for was in baseline.rates]
    known = {rate.attack for rate in baseline.rates}
    each += [
        unknown(
            rule, f"the attack by {one.result.attack} was not run on the baseline: write it anew"
        )
        for one in evidence.attacks
        if one.result.attack not in known
    ]
    return _worst(rule, each)


Found = tuple[Measured, TprAtFpr]


def _highest(attacks: tuple[Measured, ...], was: AttackRate) -> Found | None:
    """Return the same attack's rate now, the highest where it was measured twice."""
    same = [
        (one, rate)
        for one in attacks
        if one.result.attack == was.attack and (rate := one.rate_at(was.fpr)) is not None
    ]
    return max(same, key=lambda found: found[1].interval.upper, default=None)


def _one_rate(rule: str, most: float, was: AttackRate, found: Found | None) -> RuleOutcome:
    """Compare upper ends; where they grew by chance perhaps, that cannot be told."""
    which = f"the true-positive rate of {was.attack} at FPR {was.fpr:g}"
    if found is None:
        return unknown(rule, f"{which} was measured for the baseline, not for this run")
    one, rate = found
    if not rate.confidence >= was.confidence * (1 - ROUNDED):
        return unknown(
            rule,
            f"{which} has confidence {was.confidence:g} in the baseline and {rate.confidence:g} "
            f"in {one.source.file}: repeat it by {one.source.command} --confidence "
            f"{was.confidence:g}",
        )
    limit, now = was.tpr.upper + most, rate.interval
    why = f"{which} was at most {round_up(was.tpr.upper)}, is at most {round_up(now.upper)}"
    if now.upper <= limit:
        return decided(rule, True, why)
    why += f", may grow by {most:g}"
    if now.lower > limit:
        return decided(rule, False, f"{why}, and is at least {round_down(now.lower)}")
    return unknown(rule, f"{why}; {in_records(one.result, rate, limit)}")


def _lower_bounds(most: float, evidence: Evidence, baseline: Baseline) -> RuleOutcome:
    rule, audit = "regression.max_lower_bound_increase", evidence.current_audit
    if not baseline.bounds:
        return unknown(rule, "the baseline holds no lower bound: write it from an audited run")
    return _worst(rule, [_one_bound(rule, most, was, audit) for was in baseline.bounds])


def _one_bound(rule: str, most: float, was: AuditResult, audit: AuditReport | None) -> RuleOutcome:
    which = f"the lower bound by {was.name}"
    found = () if audit is None else audit.bounds
    alike = [bound for bound in found if _is_alike(bound, was)]
    if not alike:
        return unknown(
            rule,
            f"{which} (delta {was.delta:g}, confidence {was.confidence:.6g}, {was.trials} "
            f"canaries) has no like for this run: {_as_before(was, audit)}",
        )
    now = max(bound.epsilon_lower for bound in alike)
    why = f"{which} was {round_down(was.epsilon_lower)}, is {round_down(now)}"
    return decided(rule, now <= was.epsilon_lower + most, f"{why}, may grow by {most:g}")


def _is_alike(now: AuditResult, was: AuditResult) -> bool:
    """Return whether a bound would have shown as much as the one before it."""
    same = (now.name, now.kind) == (was.name, was.kind) and same_number(now.delta, was.delta)
    sure = same_number(now.confidence, was.confidence)
    return same and sure and now.trials >= was.trials and now.inconclusive is None


def _as_before(was: AuditResult, audit: AuditReport | None) -> str:
    """Say how to audit a run as its baseline was."""
    if audit is None:
        return "audit it: dpaudit audit RUN"
    for now in audit.bounds:
        if now.name == was.name and not same_number(now.confidence, was.confidence):
            # Of the failure probability of an audit, the bound of one name has a fixed part.
            part = (1 - now.confidence) / (1 - audit.confidence)
            joint = 1 - (1 - was.confidence) / part
            return (
                f"audit.json has confidence {audit.confidence:g}, repeat it by dpaudit audit RUN "
                f"--confidence {joint:.6g}"
            )
    return "audit it as the baseline was"


def _worst(rule: str, each: list[RuleOutcome]) -> RuleOutcome:
    """Return one outcome for all, with the words of those that have it."""
    outcome = together(one.outcome for one in each)
    told = [one.why for one in each if one.outcome is outcome]
    return RuleOutcome(rule, outcome, "; ".join(told))
