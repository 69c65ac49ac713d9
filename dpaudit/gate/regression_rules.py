"""How much worse than its baseline a run may be."""

from __future__ import annotations

from collections.abc import Iterator

from dpaudit.gate.causes import differences, in_words
from dpaudit.gate.evidence import Evidence
from dpaudit.gate.outcomes import OTHER_MACHINE, decided, unknown
from dpaudit.gate.policy import RegressionPolicy
from dpaudit.vocabulary.audit import AuditResult
from dpaudit.vocabulary.baseline import AttackRate, Baseline
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
            yield _tpr(policy.max_tpr_increase, evidence.rates, baseline)
        if policy.max_lower_bound_increase is not None:
            yield _lower_bounds(policy.max_lower_bound_increase, evidence, baseline)


def _epsilon(most: float, now: Baseline, baseline: Baseline) -> RuleOutcome:
    rule, was = "regression.max_epsilon_increase", baseline.claim.epsilon.upper
    apart = [name for name in SAME if getattr(now.claim, name) != getattr(baseline.claim, name)]
    causes = in_words(differences(baseline, now))
    if apart:
        return unknown(rule, f"claims of different {' and '.join(apart)}: {causes}")
    allowed = was * (1 + OTHER_MACHINE) + most
    why = f"epsilon was at most {round_up(was)}, is at most {round_up(now.claim.epsilon.upper)}"
    if now.claim.epsilon.upper <= allowed:
        return decided(rule, True, why)
    return decided(rule, False, f"{why}, may grow by {most:g}; {causes}")


def _tpr(most: float, rates: tuple[AttackRate, ...], baseline: Baseline) -> RuleOutcome:
    rule = "regression.max_tpr_increase"
    if not baseline.rates:
        return unknown(rule, "the baseline holds no attack: write it from an audited run")
    now = {_key(rate): rate for rate in rates}
    each = [_one_rate(rule, most, was, now.get(_key(was))) for was in baseline.rates]
    return _worst(rule, each)


def _key(rate: AttackRate) -> tuple[str, str]:
    return rate.attack, f"{rate.fpr:.9g}"


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
    found = {bound.name: bound for bound in audit.bounds} if audit and current else {}
    each = [_one_bound(rule, most, was, found.get(was.name)) for was in baseline.bounds]
    return _worst(rule, each)


def _one_bound(rule: str, most: float, was: AuditResult, now: AuditResult | None) -> RuleOutcome:
    which = f"the lower bound by {was.name}"
    if now is None or now.delta != was.delta:
        return unknown(rule, f"{which} at delta {was.delta:g} is not there for this run")
    why = f"{which} was {round_down(was.epsilon_lower)}, is {round_down(now.epsilon_lower)}"
    return decided(
        rule, now.epsilon_lower <= was.epsilon_lower + most, f"{why}, may grow by {most:g}"
    )


def _worst(rule: str, each: list[RuleOutcome]) -> RuleOutcome:
    """Return one outcome for all, with the words of those that have it."""
    outcome = together(one.outcome for one in each)
    told = [one.why for one in each if one.outcome is outcome]
    return RuleOutcome(rule, outcome, "; ".join(told))
