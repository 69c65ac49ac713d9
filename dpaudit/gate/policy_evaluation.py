"""Evaluate a policy: a pure function of policy, evidence, baseline and the current day.

Comparisons are written so that NaN fails them, and missing evidence never passes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import date, timedelta

import msgspec

from dpaudit.gate.audit_rules import evaluate_audit_rules
from dpaudit.gate.claim_rules import evaluate_claim_rules
from dpaudit.gate.evidence import Evidence
from dpaudit.gate.policy import Policy, Waiver
from dpaudit.gate.regression_rules import evaluate_regression_rules
from dpaudit.vocabulary.baseline import Baseline
from dpaudit.vocabulary.claim import Claim
from dpaudit.vocabulary.mechanism import Composed, Mechanism, Repeated, Selected
from dpaudit.vocabulary.verdict import (
    AppliedWaiver,
    InconclusiveHandling,
    Outcome,
    RuleOutcome,
    Verdict,
    VerdictBasis,
    decided_outcome,
    inconclusive_outcome,
)

# Waivers: rules that need not hold until a given day.
#
# A waiver that has expired, or that expires later than the policy allows, waives nothing and is
# a FAIL by itself.


def apply_waivers(
    rules: Sequence[RuleOutcome], policy: Policy, today: date
) -> Iterator[RuleOutcome]:
    """Mark the rules that do not pass and are waived, and add a rule for each invalid waiver.

    Args:
        rules: Outcomes of the rules.
        policy: Its waivers, and how far ahead they may expire.
        today: The current day, in UTC.

    Yields:
        Every rule, in the same order; then a FAIL for each waiver that has expired or expires
        too far ahead.
    """
    in_force = _in_force(policy, today)
    for rule in rules:
        found = next((waiver for waiver in in_force if waiver.covers(rule.rule)), None)
        if found is None or rule.outcome is Outcome.PASS:
            yield rule
        else:
            yield msgspec.structs.replace(rule, waived=AppliedWaiver(found.reason, found.expires))
    for waiver in policy.waiver:
        if not today <= waiver.expires:
            yield _expired(waiver)
        elif waiver not in in_force:
            yield _too_far(waiver, policy.waiver_max_days, today)


def unused_waivers(rules: Sequence[RuleOutcome], policy: Policy, today: date) -> tuple[Waiver, ...]:
    """Find the waivers in force that no rule needed.

    Args:
        rules: Outcomes of the rules.
        policy: Its waivers.
        today: The current day, in UTC.

    Returns:
        The waivers whose rules all pass, or do not exist.
    """
    needed = [rule for rule in rules if rule.outcome is not Outcome.PASS]
    return tuple(
        waiver
        for waiver in _in_force(policy, today)
        if not any(waiver.covers(rule.rule) for rule in needed)
    )


def _in_force(policy: Policy, today: date) -> list[Waiver]:
    last = today + timedelta(days=policy.waiver_max_days)
    return [waiver for waiver in policy.waiver if today <= waiver.expires <= last]


def _expired(waiver: Waiver) -> RuleOutcome:
    return decided_outcome(
        f"waiver.{waiver.rule}",
        False,
        f"the waiver ({waiver.reason}) expired on {waiver.expires}: fix what it waived and "
        "delete it, or decide again",
    )


def _too_far(waiver: Waiver, most: int, today: date) -> RuleOutcome:
    ahead = (waiver.expires - today).days
    return decided_outcome(
        f"waiver.{waiver.rule}",
        False,
        f"the waiver ({waiver.reason}) expires on {waiver.expires}, {ahead} days "
        f"from now: it may expire within {most} days (waiver_max_days), so choose an earlier date",
    )


# Warnings of a verdict, which change no outcome.

LARGE_DELTA = 1e-3
"""The largest delta that raises no warning where the size of the data set is not public."""


def verdict_warnings(
    rules: Sequence[RuleOutcome], policy: Policy, evidence: Evidence, today: date
) -> Iterator[str]:
    """Collect warnings, which change no outcome.

    Args:
        rules: Outcomes of the rules, before waivers are applied.
        policy: The policy.
        evidence: Claim and recorded releases of the run.
        today: The day on which waivers are in force or expired, in UTC.

    Yields:
        A message for each unused waiver, and one if delta is too large for the data set.
    """
    for waiver in unused_waivers(rules, policy, today):
        yield (
            f"the waiver of {waiver.rule} ({waiver.reason}) is not used: no rule that it covers "
            "fails; delete it"
        )
    size = policy.claim.dataset_size if policy.claim is not None else None
    if size is None and evidence.recorded is not None:
        size = smallest_dataset(
            Composed(tuple(one.mechanism for one in evidence.recorded.recorded))
        )
    yield from delta_warning(evidence.claim_figures.delta, size)


def smallest_dataset(mechanism: Mechanism) -> int | None:
    """Find the smallest data set size that a mechanism contains, which is then public.

    Args:
        mechanism: A mechanism; compositions, repetitions and selections are searched.

    Returns:
        The number of records; None if no part of the mechanism fixes one.
    """
    parts: Sequence[Mechanism] = ()
    if isinstance(mechanism, Composed):
        parts = mechanism.mechanisms
    elif isinstance(mechanism, Repeated | Selected):
        parts = (mechanism.mechanism,)
    sizes = [getattr(mechanism, "dataset_size", None), *map(smallest_dataset, parts)]
    return min((size for size in sizes if size is not None), default=None)


def delta_warning(delta: float, dataset_size: int | None) -> Iterator[str]:
    """Warn if ``delta`` allows the release of whole records.

    A mechanism that publishes each record with probability delta is (0, delta)-DP: of n
    records it publishes n delta on average.

    Args:
        delta: Of the claim.
        dataset_size: Number of records n, if it is public.

    Yields:
        One message if delta exceeds 1/n; without a public n, if it exceeds ``LARGE_DELTA``.

    References:
        Dwork & Roth (2014), section 2.3.
    """
    if dataset_size is not None and not delta * dataset_size <= 1:
        yield (
            f"delta {delta:g} is above 1/n = {1 / dataset_size:.3g} for {dataset_size} records: "
            "publishing whole records can satisfy it; choose a delta well below 1/n"
        )
    elif dataset_size is None and not delta <= LARGE_DELTA:
        yield (
            f"delta {delta:g} is above {LARGE_DELTA:g}: publishing whole records can satisfy it "
            "unless the data set is very small; choose a delta well below 1/n"
        )


Watch = Callable[[Iterable[RuleOutcome]], Iterator[RuleOutcome]]
"""Passes the outcomes of rules on, unchanged, as they are evaluated."""


def evaluate_policy(
    policy: Policy,
    evidence: Evidence,
    baseline: Baseline | None = None,
    *,
    today: date,
    inconclusive: InconclusiveHandling = InconclusiveHandling.FAIL,
    basis: VerdictBasis | None = None,
    watch: Watch = iter,
) -> Verdict:
    """Evaluate every rule of a policy.

    Args:
        policy: The policy.
        evidence: The claim at the policy's delta, by the policy's accountant, and what was
            measured on the same run.
        baseline: Figures of an earlier run, for the section ``regression``.
        today: The day on which waivers are in force or expired, in UTC.
        inconclusive: How an INCONCLUSIVE verdict is handled.
        basis: Where the policy and the evidence come from, for the record.
        watch: Called with the lazily evaluated rules and again with the lazily evaluated
            waivers, for instance to time them. It must not change an outcome.

    Returns:
        The verdict, with one outcome per rule.
    """
    rules = tuple(watch(_rules(policy, evidence, baseline)))
    return Verdict(
        rules=tuple(watch(apply_waivers(rules, policy, today))),
        ledger_head=evidence.claim_figures.ledger_head,
        run="" if evidence.recorded is None else evidence.recorded.run,
        inconclusive=inconclusive,
        claim=evidence.claim if isinstance(evidence.claim, Claim) else None,
        basis=basis,
        warnings=tuple(verdict_warnings(rules, policy, evidence, today)),
    )


def _rules(policy: Policy, evidence: Evidence, baseline: Baseline | None) -> Iterator[RuleOutcome]:
    if policy.claim is not None:
        yield from evaluate_claim_rules(policy.claim, evidence.claim)
    if policy.audit is not None:
        yield from evaluate_audit_rules(policy.audit, evidence)
    if policy.regression is not None:
        yield from evaluate_regression_rules(policy.regression, evidence, baseline)
    elif baseline is not None:
        why = "a baseline was given, and the policy has no section [regression] to compare by"
        yield inconclusive_outcome("regression.baseline", why)
