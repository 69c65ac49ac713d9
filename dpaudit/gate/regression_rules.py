"""How much worse than its baseline a run may be."""

from __future__ import annotations

import math
from collections.abc import Iterator

from dpaudit.gate.causes import differences, in_words
from dpaudit.gate.evidence import Evidence
from dpaudit.gate.outcomes import OTHER_MACHINE, decided, unknown
from dpaudit.gate.policy import RegressionPolicy
from dpaudit.vocabulary.audit import AuditResult
from dpaudit.vocabulary.baseline import AttackRate, Baseline
from dpaudit.vocabulary.claim import Claim
from dpaudit.vocabulary.ledger import Randomness
from dpaudit.vocabulary.rounding import round_down, round_up
from dpaudit.vocabulary.verdict import RuleOutcome, together

# Claims that differ in one of these are of different things: neither is the larger one.
SAME = ("delta", "accountant", "adjacency", "unit")


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
    yield from (name for name in SAME if getattr(now, name) != getattr(was, name))
    if now.randomness is Randomness.SEEDED and was.randomness is Randomness.SECURE:
        yield "randomness"
    if not set(now.leaves_out) <= set(was.leaves_out):
        yield "scope (the new one leaves out more)"


def _tpr(most: float, evidence: Evidence, baseline: Baseline) -> RuleOutcome:
    rule = "regression.max_tpr_increase"
    if not baseline.rates:
        return unknown(rule, "the baseline holds no attack: write it from an audited run")
    each = [_one_rate(rule, most, was, _highest(evidence.rates, was)) for was in baseline.rates]
    known = {rate.attack for rate in baseline.rates}
    each += [
        unknown(rule, f"the attack by {name} was not run on the baseline: write it anew")
        for name in evidence.attacks
        if name not in known
    ]
    return _worst(rule, each)


def _highest(rates: tuple[AttackRate, ...], was: AttackRate) -> AttackRate | None:
    """Return the same attack's rate now, the highest where it was measured twice."""
    same = [r for r in rates if r.attack == was.attack and math.isclose(r.fpr, was.fpr)]
    return max(same, key=lambda rate: rate.tpr.upper, default=None)


def _one_rate(rule: str, most: float, was: AttackRate, now: AttackRate | None) -> RuleOutcome:
    """Compare upper ends; where they grew by chance perhaps, that cannot be told."""
    which = f"the true-positive rate of {was.attack} at FPR {was.fpr:g}"
    if now is None or not now.confidence >= was.confidence:
        return unknown(rule, f"{which} was measured for the baseline, not as surely for this run")
    limit = was.tpr.upper + most
    why = f"{which} was at most {round_up(was.tpr.upper)}, is at most {round_up(now.tpr.upper)}"
    if now.tpr.upper <= limit:
        return decided(rule, True, why)
    why += f", may grow by {most:g}"
    if now.tpr.lower > limit:
        return decided(rule, False, f"{why}, and is at least {round_down(now.tpr.lower)}")
    return unknown(rule, f"{why}; too few records were attacked to tell growth from chance")


def _lower_bounds(most: float, evidence: Evidence, baseline: Baseline) -> RuleOutcome:
    rule, audit = "regression.max_lower_bound_increase", evidence.audit
    if not baseline.bounds:
        return unknown(rule, "the baseline holds no lower bound: write it from an audited run")
    current = audit is not None and audit.ledger_head == evidence.stated.ledger_head
    found = audit.bounds if audit is not None and current else ()
    return _worst(rule, [_one_bound(rule, most, was, found) for was in baseline.bounds])


def _one_bound(
    rule: str, most: float, was: AuditResult, found: tuple[AuditResult, ...]
) -> RuleOutcome:
    which = f"the lower bound by {was.name}"
    alike = [bound for bound in found if _is_alike(bound, was)]
    if not alike:
        return unknown(
            rule,
            f"{which} (delta {was.delta:g}, confidence {was.confidence:.6g}, {was.trials} "
            "canaries) has no like for this run: audit it as the baseline was",
        )
    now = max(bound.epsilon_lower for bound in alike)
    why = f"{which} was {round_down(was.epsilon_lower)}, is {round_down(now)}"
    return decided(rule, now <= was.epsilon_lower + most, f"{why}, may grow by {most:g}")


def _is_alike(now: AuditResult, was: AuditResult) -> bool:
    """Return whether a bound would have shown as much as the one before it."""
    same = (now.name, now.kind, now.delta) == (was.name, was.kind, was.delta)
    sure = math.isclose(now.confidence, was.confidence, rel_tol=1e-9)
    return same and sure and now.trials >= was.trials and now.inconclusive is None


def _worst(rule: str, each: list[RuleOutcome]) -> RuleOutcome:
    """Return one outcome for all, with the words of those that have it."""
    outcome = together(one.outcome for one in each)
    told = [one.why for one in each if one.outcome is outcome]
    return RuleOutcome(rule, outcome, "; ".join(told))
