"""Rules of the policy section ``audit``: lower bounds, power, attack rates, conformance.

Comparisons are written so that NaN fails them. Missing or stale evidence never passes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from statistics import NormalDist

import msgspec

from dpaudit.gate.evidence import ClaimFigures, Evidence, MembershipEvidence, ReportSource
from dpaudit.gate.policy import AuditPolicy
from dpaudit.vocabulary.audit import (
    REFERENCE_ATTACKS,
    AuditReport,
    AuditResult,
    BoundKind,
    MembershipResult,
    TprAtFpr,
)
from dpaudit.vocabulary.rounding import (
    CROSS_MACHINE_TOLERANCE,
    bound_holds_at,
    round_down,
    round_up,
    same_number,
)
from dpaudit.vocabulary.verdict import Outcome, RuleOutcome, decided_outcome, inconclusive_outcome

# Number of records that would decide whether a true-positive rate is within its limit.

MAX_MULTIPLE = 1e6
"""Largest multiple of the scored records that is considered."""


class RecordCounts(msgspec.Struct, frozen=True):
    """Numbers of members and non-members.

    Attributes:
        members: Records that the model was trained on.
        nonmembers: Records that it was not trained on.
    """

    members: int
    nonmembers: int


def records_to_decide(
    result: MembershipResult, *, fpr: float, limit: float, confidence: float
) -> RecordCounts | None:
    """Compute how many records would put ``limit`` outside of the interval of the rate.

    The four statements of the interval (``TprAtFpr.interval``) each fail with a quarter of the
    failure probability. Binomial limits are taken as normal, which needs about five of each
    kind; the rates at the two thresholds are read off the measured ROC curve.

    Args:
        result: The attack that was measured.
        fpr: The false-positive rate.
        limit: The largest true-positive rate that is allowed.
        confidence: Of the interval, in (0, 1).

    Returns:
        The least multiple of the records that were scored; None where a million times as many
        would not decide, as the rate is at its limit.
    """
    quantile = NormalDist().inv_cdf(1 - (1 - confidence) / 4)

    def decides(times: float) -> bool:
        members, nonmembers = times * result.members, times * result.nonmembers
        # The threshold is estimated from non-members: its false-positive rate lies in
        # [below, above]. Without one expected non-member on each side there is no threshold.
        below = fpr - _error(fpr, nonmembers, quantile)
        above = fpr + _error(fpr, nonmembers, quantile)
        if min(below, 1 - above) * nonmembers < 1:
            return False
        # The rates at both ends, each off by the error of the members that were counted.
        least, greatest = _on_curve(result, below), _on_curve(result, above)
        lower = least - _error(least, members, quantile)
        upper = greatest + _error(greatest, members, quantile)
        return upper <= limit or lower > limit

    times = _least(decides)
    if times is None:
        return None
    return RecordCounts(math.ceil(times * result.members), math.ceil(times * result.nonmembers))


def _error(rate: float, trials: float, quantile: float) -> float:
    """Return how far a rate may be off: the limit of Wilson's interval where the rate is 0 or 1."""
    variance = max(rate * (1 - rate), 1 / (trials + 1))
    return quantile * math.sqrt(variance / trials)


def _on_curve(result: MembershipResult, fpr: float) -> float:
    """Interpolate the true-positive rate of the measured ROC curve at ``fpr``."""
    before = (0.0, 0.0)
    for point in result.roc:
        if point[0] > fpr:
            share = (fpr - before[0]) / (point[0] - before[0])
            return before[1] + share * (point[1] - before[1])
        before = point
    return before[1]


def _least(decides: Callable[[float], bool]) -> float | None:
    """Return the least multiple, to within 5%, that decides; None if it is over the maximum."""
    # Double until decided, then bisect on a logarithmic scale.
    low, high = 1.0, 2.0
    while not decides(high):
        if high > MAX_MULTIPLE:
            return None
        low, high = high, 2 * high
    while high / low > 1.05:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if decides(middle) else (middle, high)
    return high


def evaluate_audit_rules(policy: AuditPolicy, evidence: Evidence) -> Iterator[RuleOutcome]:
    """Evaluate the rules of the section ``audit``.

    Args:
        policy: The section.
        evidence: Claim and measurements of one run, which were verified.

    Yields:
        One outcome per rule. Without a current audit, ``audit.evidence`` is INCONCLUSIVE in
        place of the rules that read lower bounds.
    """
    if policy.require_conformance:
        yield _conformance(evidence)
    if policy.require_imitation:
        yield _imitation(evidence)
    figures, audit = evidence.claim_figures, evidence.audit
    if audit is None:
        yield inconclusive_outcome("audit.evidence", "the run was not audited: dpaudit audit RUN")
    elif audit.ledger_head != figures.ledger_head:
        why = "the audit is of another state of the ledger: audit the run again"
        yield inconclusive_outcome("audit.evidence", why)
    else:
        yield _lower_bounds(policy, evidence, audit)
        if policy.min_power_epsilon is not None:
            yield _power(policy.min_power_epsilon, policy, evidence, audit)
    for fpr, most in policy.max_tpr_at_fpr.items():
        yield _tpr(fpr, most, policy, evidence)


def _conformance(evidence: Evidence) -> RuleOutcome:
    """Pass on the verdict of the conformance check, if it is of the present ledger."""
    rule, conformance = "audit.require_conformance", evidence.conformance
    if conformance is None:
        return inconclusive_outcome(
            rule, "the run's trainer was not tested: dpaudit conformance RUN"
        )
    if (conformance.ledger_head or "") != evidence.claim_figures.ledger_head:
        return inconclusive_outcome(
            rule, "the trainer was tested for another state of the ledger: dpaudit conformance RUN"
        )
    decisive = [f for f in conformance.findings if f.outcome is conformance.verdict]
    if conformance.verdict is Outcome.PASS:
        why = f"{len(decisive)} tests of the run's trainer found nothing wrong; this is no proof"
    else:
        why = "; ".join(f"{finding.check}, {finding.name}: {finding.why}" for finding in decisive)
    return RuleOutcome(rule, conformance.verdict, why or "nothing was tested")


def _imitation(evidence: Evidence) -> RuleOutcome:
    """Pass if the run was attacked with references that were trained as it was."""
    rule, attack = "audit.require_imitation", evidence.attack
    again = "dpaudit attack RUN --reference-training dp-sgd"
    if attack is None or attack.ledger_head != evidence.claim_figures.ledger_head:
        return inconclusive_outcome(rule, f"the run was not attacked in its present state: {again}")
    if attack.reference_training != "dp-sgd":
        how = attack.reference_training or "no"
        why = f"attack.json is of {how} references, which do not imitate the run: {again}"
        return inconclusive_outcome(rule, why)
    used = [one for one in attack.membership if one.attack in REFERENCE_ATTACKS]
    if not any(one.inconclusive is None for one in used):
        why = (
            "its results with references are inconclusive" if used else "no result used references"
        )
        return inconclusive_outcome(rule, f"attack.json imitates the run, but {why}: {again}")
    return decided_outcome(rule, True, "references were trained by DP-SGD with the run's settings")


def _lower_bounds(policy: AuditPolicy, evidence: Evidence, audit: AuditReport) -> RuleOutcome:
    """Compare every lower bound with the claim; PASS needs an audit that could have failed."""
    rule, figures = "audit.lower_bound", evidence.claim_figures
    above = bounds_above_claim(evidence)
    if not audit.confidence >= policy.confidence:
        why = f"{ReportSource.AUDIT.file} has confidence {audit.confidence:g}, the policy demands "
        why += f"{policy.confidence:g}: {_again(ReportSource.AUDIT, policy)}"
        return inconclusive_outcome(rule, "; ".join([why, *map(_in_words, above)]))
    if above:
        return _contradicted(policy, figures, above)
    if evidence.missing:
        names = ", ".join(evidence.missing)
        return inconclusive_outcome(
            rule, f"the audit lacks {names}: {_again(ReportSource.AUDIT, policy)}"
        )
    usable, aside = _usable(evidence, audit)
    counted = [bound for bound in usable if bound.kind in policy.count]
    if not counted:
        kinds = " or ".join(kind.value for kind in policy.count) or "any kind"
        why = f"no lower bound that is {kinds} at delta {figures.delta:g}"
        return inconclusive_outcome(
            rule, "; ".join([why, *(aside or ["canaries, or their scores, give one"])])
        )
    if not any(_could_contradict(bound, figures) for bound in counted):
        why = (
            "nothing shows that this audit could have contradicted epsilon "
            f"{round_up(figures.sharpest)}, even if every guess were right: use more canaries"
        )
        return inconclusive_outcome(rule, "; ".join([why, *aside]))
    worst = max(usable, key=lambda bound: bound.epsilon_lower)
    why = (
        f"no lower bound contradicts the claim: the largest is {_described(worst)}, the claim's "
        f"upper bound is {round_up(figures.sharpest)}; this is no proof"
    )
    return decided_outcome(rule, True, "; ".join([why, *(f"not counted: {one}" for one in aside)]))


def _usable(evidence: Evidence, audit: AuditReport) -> tuple[list[AuditResult], list[str]]:
    """Return the bounds that can support the claim, and why the others cannot."""
    doubts, aside = dict(evidence.doubts), []
    usable = []
    for bound in _at(audit.bounds, evidence.claim_figures.delta):
        why = bound.inconclusive or doubts.get(bound.name)
        if why is None:
            usable.append(bound)
        else:
            aside.append(f"{bound.name}: {why}")
    return usable, aside


def _at(bounds: Iterable[AuditResult], delta: float) -> list[AuditResult]:
    return [bound for bound in bounds if same_number(bound.delta, delta)]


def _again(source: ReportSource, policy: AuditPolicy) -> str:
    return f"repeat it by {source.command} --confidence {policy.confidence:g}"


def bounds_above_claim(evidence: Evidence) -> list[AuditResult]:
    """Return the bounds on this run that are above the claim's upper bound.

    Estimates are left out. Bounds that cannot support a claim are included: scores of canaries
    that the ledger does not record cannot show that a run leaks little, but can show that it
    leaks much. A bound at a larger delta holds at the claim's delta, too.

    Args:
        evidence: Claim and measurements of one run.

    Returns:
        Certified and conditional bounds that exceed the claim, in the order of the audit; empty
        without a current audit. A bound that is NaN is included.
    """
    audit, figures = evidence.current_audit, evidence.claim_figures
    if audit is None:
        return []
    kinds = (BoundKind.CERTIFIED, BoundKind.CONDITIONAL)
    holds = [
        one
        for one in audit.bounds
        if one.kind in kinds and bound_holds_at(one.delta, figures.delta)
    ]
    return [bound for bound in holds if not bound.epsilon_lower <= figures.sharpest]


def _could_contradict(bound: AuditResult, figures: ClaimFigures) -> bool:
    """Return whether some outcome of the audit would have contradicted the claim."""
    if bound.greatest_epsilon is not None:
        return bound.greatest_epsilon > figures.sharpest
    return bool(refutable_epsilons([bound], figures))


def _contradicted(
    policy: AuditPolicy, figures: ClaimFigures, above: list[AuditResult]
) -> RuleOutcome:
    """Return FAIL for bounds of a kind that the policy counts, INCONCLUSIVE for other kinds."""
    counted = [bound for bound in above if bound.kind in policy.count]
    shown = max(counted or above, key=lambda bound: bound.epsilon_lower)
    return RuleOutcome(
        "audit.lower_bound",
        Outcome.FAIL if counted else Outcome.INCONCLUSIVE,
        f"{_in_words(shown)}, above the upper bound of {round_up(figures.sharpest)} by "
        f"{figures.source}: the run leaks more than is claimed",
    )


def _in_words(bound: AuditResult) -> str:
    return f"the lower bound on epsilon is {_described(bound)}"


def _described(bound: AuditResult) -> str:
    return f"{round_down(bound.epsilon_lower)} ({bound.kind.value}: {bound.name})"


def _power(
    excess: float, policy: AuditPolicy, evidence: Evidence, audit: AuditReport
) -> RuleOutcome:
    """Compare the smallest detectable epsilon of the audit with the claim plus ``excess``."""
    rule, figures = "audit.min_power_epsilon", evidence.claim_figures
    usable, aside = _usable(evidence, audit)
    detectable = refutable_epsilons(
        [bound for bound in usable if bound.kind in policy.count], figures
    )
    if evidence.missing:
        aside.append(f"the audit lacks {', '.join(evidence.missing)}: dpaudit audit RUN")
    if not detectable:
        why = (
            "which true epsilon the audit would detect above the claim of "
            f"{round_up(figures.sharpest)} is not known: gradient canaries have a known power"
        )
        return inconclusive_outcome(rule, "; ".join([why, *aside]))
    least, most = min(detectable), figures.sharpest + excess
    why = (
        f"a true epsilon of {round_up(least)} is detectable at 95% power; the policy demands "
        f"{round_up(most)} or less: the claim of {round_up(figures.sharpest)} plus "
        f"min_power_epsilon, {excess:g}"
    )
    if least - figures.sharpest <= excess and not evidence.missing:
        return decided_outcome(rule, True, why)
    return inconclusive_outcome(rule, "; ".join([why, *aside]))


def refutable_epsilons(bounds: Iterable[AuditResult], figures: ClaimFigures) -> list[float]:
    """Return the true epsilon at which each bound would refute the claim, at 95% power.

    Args:
        bounds: Lower bounds of an audit.
        figures: The figures of the claim.

    Returns:
        Detectable epsilons of the bounds at the claim's delta that refute this claim or a
        larger one. Those that do not exceed the claim are left out.
    """
    lowest = figures.sharpest * (1 - CROSS_MACHINE_TOLERANCE)
    return [
        bound.detectable_epsilon
        for bound in _at(bounds, figures.delta)
        if bound.detectable_epsilon is not None
        and bound.detectable_epsilon >= lowest
        and bound.refutes_epsilon is not None
        and bound.refutes_epsilon >= lowest
    ]


def _tpr(fpr: str, most: float, policy: AuditPolicy, evidence: Evidence) -> RuleOutcome:
    """Compare every attack's true-positive rate with the limit; a weak attack excuses no other."""
    rule = f"audit.max_tpr_at_fpr.{fpr}"
    found = [(one, one.rate_at(float(fpr))) for one in evidence.attacks]
    rates = [(one, rate) for one, rate in found if rate is not None]
    sure = [(one, rate) for one, rate in rates if rate.confidence >= policy.confidence]
    above = [(one, rate) for one, rate in sure if rate.interval.lower > most]
    if above:
        one, rate = max(above, key=lambda pair: pair[1].interval.lower)
        why = f"{_rate(one, fpr)} is at least {round_down(rate.interval.lower)}, the policy allows "
        return decided_outcome(rule, False, f"{why}{most:g}")
    open_ = [
        *evidence.inconclusive_reasons,
        *(
            f"the audit lacks the attack by {name}: {ReportSource.AUDIT.command}"
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
        return inconclusive_outcome(rule, "; ".join(open_) or why)
    one, rate = max(rates, key=lambda pair: pair[1].interval.upper)
    why = (
        f"{_rate(one, fpr)} is at most {round_up(rate.interval.upper)}, the policy allows {most:g}"
    )
    return decided_outcome(rule, True, why)


def _rate(one: MembershipEvidence, fpr: str) -> str:
    return f"the true-positive rate at FPR {fpr} of the attack by {one.result.attack}"


def _not_at(one: MembershipEvidence, fpr: str) -> str:
    few = [rate for rate in one.result.unresolved if same_number(rate, float(fpr))]
    why = f"the attack by {one.result.attack} was not evaluated at a false-positive rate of {fpr}"
    if not few:
        return why
    return (
        f"{why}: it has {one.result.nonmembers} non-members, and needs at least "
        f"{math.ceil(1 / float(fpr))}"
    )


def _unsure(one: MembershipEvidence, rate: TprAtFpr, policy: AuditPolicy) -> str:
    return (
        f"{one.source.file}: the interval of the attack by {one.result.attack} has confidence "
        f"{rate.confidence:g}, the policy demands {policy.confidence:g}: "
        f"{_again(one.source, policy)}"
    )


def _undecided(one: MembershipEvidence, rate: TprAtFpr, fpr: str, most: float) -> str:
    """Explain that too few records were scored, and how many would decide."""
    return (
        f"{_rate(one, fpr)} is between {round_down(rate.interval.lower)} and "
        f"{round_up(rate.interval.upper)}, the policy allows {most:g}: "
        f"{records_needed_in_words(one.result, rate, most)}"
    )


def records_needed_in_words(result: MembershipResult, rate: TprAtFpr, limit: float) -> str:
    """Describe how many records would decide whether a rate is within a limit.

    Args:
        result: The attack that was measured.
        rate: Its rate at one false-positive rate.
        limit: The largest true-positive rate that is allowed.

    Returns:
        A clause for the reason of an INCONCLUSIVE rule.
    """
    had = f"{result.members} members and {result.nonmembers} non-members are too few to decide"
    needed = records_to_decide(result, fpr=rate.fpr, limit=limit, confidence=rate.confidence)
    if needed is None:
        return f"{had}; the rate is too close to the limit even for a million times as many"
    return (
        f"{had}; if more are like them, about {needed.members} and {needed.nonmembers} would decide"
    )
