"""Which figures a page shows, each with its words for those who do not see it."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from dpaudit.report import figure_membership, figure_past_runs, figures
from dpaudit.report.evidence import CanaryScores, Curve, RatePoint, ReportEvidence, TwoRuns
from dpaudit.report.findings import attacks_on
from dpaudit.report.page_words import exact
from dpaudit.vocabulary.audit import AuditResult, MembershipResult
from dpaudit.vocabulary.claim import Claim
from dpaudit.vocabulary.history import PastRun
from dpaudit.vocabulary.rounding import round_down, round_near, round_up


def figures_of_run(evidence: ReportEvidence) -> dict[str, Markup]:
    """Return the figures that there is evidence for, by the section that shows them."""
    claim, drawn = evidence.claim, {}
    curves = [curve for curve in evidence.curves if curve.steps]
    if curves:
        drawn["steps"] = figures.epsilon_against_steps(curves, label=_curves_in_words(curves))
    if evidence.profile:
        label = (
            f"The interval of epsilon falls as delta grows; the claim is marked at "
            f"delta {exact(claim.delta)}, epsilon at most {round_up(claim.epsilon.upper)}."
        )
        drawn["profile"] = figures.privacy_profile(evidence.profile, claim, label=label)
    if evidence.tradeoff:
        attacks = attacks_on(evidence)
        label = f"{_limit_in_words(evidence.tradeoff)} {_rates_in_words(attacks)}"
        drawn["tradeoff"] = figure_membership.tradeoff(evidence.tradeoff, attacks, label=label)
    if evidence.history:
        label = _history_in_words(evidence.history)
        drawn["history"] = figure_past_runs.past_runs(evidence.history, label=label)
    return {**_safe(drawn), **measurements_of(evidence)}


def measurements_of(
    evidence: ReportEvidence, suffix: str = "", beside: tuple[ReportEvidence, ...] = ()
) -> dict[str, Markup]:
    """Return the figures of what was measured.

    Args:
        evidence: On one run.
        suffix: Ends the names of their ids.
        beside: Runs whose figures stand beside these: axes are as long as theirs.
    """
    claim, drawn = evidence.claim, {}
    if evidence.audit and evidence.audit.bounds:
        bounds = evidence.audit.bounds
        drawn["audit"] = figures.audit_bounds(
            bounds,
            claim.epsilon.upper,
            claim.delta,
            label=_bounds_in_words(bounds, claim),
            name=f"audit{suffix}",
            furthest=_furthest(beside),
        )
    if evidence.canaries:
        label = _canaries_in_words(evidence.canaries)
        drawn["canaries"] = figure_membership.canary_scores(
            evidence.canaries, label=label, name=f"canaries{suffix}", span=_span(beside)
        )
    attacks = [attack for attack in attacks_on(evidence) if attack.roc]
    if attacks:
        label = _attacks_in_words(attacks)
        drawn["roc"] = figure_membership.roc(
            attacks, evidence.tradeoff, label=label, name=f"roc{suffix}"
        )
    return _safe(drawn)


def _furthest(runs: tuple[ReportEvidence, ...]) -> float:
    audits = [run.audit for run in runs if run.audit is not None]
    bounds = [bound.epsilon_lower for audit in audits for bound in audit.bounds]
    return max([run.claim.epsilon.upper for run in runs] + bounds, default=0.0)


def _span(runs: tuple[ReportEvidence, ...]) -> tuple[float, float] | None:
    edges = [edge for run in runs if run.canaries for edge in run.canaries.edges]
    return (min(edges), max(edges)) if edges else None


def figures_of_both(runs: TwoRuns, names: tuple[str, str]) -> dict[str, Markup]:
    """Return the figures in which two runs lie over each other."""
    pair, drawn = list(zip(names, (runs.before, runs.after), strict=True)), {}
    curves = [curve for name, run in pair for curve in _claimed_curve(name, run)]
    if curves:
        drawn["steps"] = figures.epsilon_against_steps(curves, label=_curves_in_words(curves))
    profiles = [(name, run.profile, run.claim) for name, run in pair if run.profile]
    if profiles:
        ends = (f"{n} {round_up(c.epsilon.upper)} at {exact(c.delta)}" for n, _, c in profiles)
        label = f"Epsilon at most, against delta; the claims are marked: {'; '.join(ends)}."
        drawn["profile"] = figures.privacy_profiles(profiles, label=label)
    limits = [(name, run.tradeoff) for name, run in pair if run.tradeoff]
    if limits:
        label = " ".join(f"{name}: {_limit_in_words(curve)}" for name, curve in limits)
        drawn["tradeoff"] = figure_membership.tradeoffs(limits, label=label)
    return _safe(drawn)


def _safe(drawn: dict[str, str]) -> dict[str, Markup]:
    # Safe: the figures escape what they draw, and hold no element but drawing.
    return {name: Markup(svg) for name, svg in drawn.items()}


def _claimed_curve(name: str, run: ReportEvidence) -> list[Curve]:
    """Return the curve of the accountant that claims, named after the run."""
    return [
        Curve(name, curve.steps, curve.epsilon)
        for curve in run.curves
        if curve.accountant == run.claim.accountant and curve.steps
    ]


def _curves_in_words(curves: Sequence[Curve]) -> str:
    ends = (
        f"{curve.accountant} {round_up(curve.epsilon[-1])} at step {curve.steps[-1]}"
        for curve in curves
    )
    return f"Epsilon grows with the steps. It is at most: {'; '.join(ends)}."


def _limit_in_words(curve: Sequence[RatePoint]) -> str:
    """Say what the claim allows at a few rates of the curve."""
    shown = [min(curve, key=lambda point: abs(point.fpr - at)) for at in (0.01, 0.1, 0.5)]
    limits = (
        f"{round_up(point.tpr.upper)} at a false-positive rate of {round_near(point.fpr)}"
        for point in dict.fromkeys(shown)
    )
    return f"By the claim no attacker's true-positive rate exceeds {', '.join(limits)}."


def _rates_in_words(attacks: Sequence[MembershipResult]) -> str:
    measured = [
        f"{attack.attack} {round_near(rate.tpr)} at {exact(rate.fpr)}"
        for attack in attacks
        for rate in attack.tpr_at_fpr
    ]
    return f"Attacks reached: {'; '.join(measured)}." if measured else "No attack is drawn."


def _bounds_in_words(bounds: Sequence[AuditResult], claim: Claim) -> str:
    each = (
        f"{bound.name} ({bound.kind.value}) {round_down(bound.epsilon_lower)}" for bound in bounds
    )
    upper = round_up(claim.epsilon.upper)
    return f"Epsilon at least, by audit: {'; '.join(each)}. The claim: at most {upper}."


def _canaries_in_words(scores: CanaryScores) -> str:
    parts = []
    for what, counts in (("included", scores.included), ("left out", scores.left_out)):
        if sum(counts):
            ends = figure_membership.middle(scores.edges, counts)
            low, high = map(round_near, ends)
            parts.append(f"{sum(counts)} {what}, the middle one between {low} and {high}")
    return f"Two histograms of the canaries' scores: {'; '.join(parts)}."


def _attacks_in_words(attacks: Sequence[MembershipResult]) -> str:
    areas = (f"{attack.attack} {round_near(attack.auc)}" for attack in attacks)
    return (
        "True-positive against false-positive rate on logarithmic axes, with the diagonal of "
        f"blind guessing. Area under the curve: {'; '.join(areas)}."
    )


def _history_in_words(history: Sequence[PastRun]) -> str:
    last = history[-1]
    return (
        f"Epsilon claimed and measured over {len(history)} verdicts, the oldest first; the last "
        f"claims at most {round_up(last.epsilon_upper)} and was found {last.outcome.value}."
    )
