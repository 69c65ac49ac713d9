"""Selection of the figures of a page, and the text alternative of each."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from dpaudit.report import history_figures, membership_figures, privacy_figures
from dpaudit.report.evidence import (
    CanaryScoreHistogram,
    ComparisonEvidence,
    EpsilonCurve,
    ReportEvidence,
    TradeoffPoint,
    membership_attacks,
)
from dpaudit.report.page_labels import exact
from dpaudit.vocabulary.audit import AuditResult, MembershipResult
from dpaudit.vocabulary.claim import Claim
from dpaudit.vocabulary.rounding import round_down, round_nearest, round_up
from dpaudit.vocabulary.verdict import PastRun


def run_figures(evidence: ReportEvidence) -> dict[str, Markup]:
    """Draw all figures of the report on one run.

    Args:
        evidence: The data of the report.

    Returns:
        ``<svg>`` elements by name; what was not measured is not drawn.
    """
    claim, drawn = evidence.claim, {}
    curves = [curve for curve in evidence.curves if curve.steps]
    if curves:
        drawn["steps"] = privacy_figures.draw_epsilon_over_steps(
            curves, label=_curves_in_words(curves)
        )
    if any(one.epsilon is not None for one in evidence.participants):
        drawn["participants"] = privacy_figures.draw_participant_epsilons(
            evidence.participants, claim, label=_participants_in_words(evidence)
        )
    if evidence.profile:
        label = (
            f"The interval of epsilon falls as delta grows; the claim is marked at "
            f"delta {exact(claim.delta)}, upper bound {round_up(claim.epsilon.upper)}."
        )
        drawn["profile"] = privacy_figures.draw_privacy_profile(
            evidence.profile, claim, label=label
        )
    if evidence.tradeoff:
        attacks = membership_attacks(evidence)
        label = f"{_limit_in_words(evidence.tradeoff)} {_rates_in_words(attacks)}"
        drawn["tradeoff"] = membership_figures.draw_tradeoff(
            evidence.tradeoff, attacks, label=label
        )
    if evidence.history:
        label = _history_in_words(evidence.history)
        drawn["history"] = history_figures.draw_past_runs(evidence.history, label=label)
    return {**_as_markup(drawn), **measurement_figures(evidence)}


def measurement_figures(
    evidence: ReportEvidence, suffix: str = "", beside: tuple[ReportEvidence, ...] = ()
) -> dict[str, Markup]:
    """Draw the figures of an audit: lower bounds, canary scores and ROC curves.

    Args:
        evidence: The data of one run.
        suffix: Suffix of every id in the figures; distinguishes two runs on one page.
        beside: Runs whose figures are shown side by side; their axes are made equal.

    Returns:
        ``<svg>`` elements by name; what was not measured is not drawn.
    """
    claim, drawn = evidence.claim, {}
    if evidence.audit and evidence.audit.bounds:
        bounds = evidence.audit.bounds
        drawn["audit"] = privacy_figures.draw_audit_bounds(
            bounds,
            claim.epsilon.upper,
            claim.delta,
            label=_bounds_in_words(bounds, claim),
            name=f"audit{suffix}",
            furthest=_largest_epsilon(beside),
        )
    if evidence.canaries:
        label = _canaries_in_words(evidence.canaries)
        drawn["canaries"] = membership_figures.draw_canary_scores(
            evidence.canaries, label=label, name=f"canaries{suffix}", span=_score_range(beside)
        )
    attacks = [attack for attack in membership_attacks(evidence) if attack.roc]
    if attacks:
        label = _attacks_in_words(attacks)
        drawn["roc"] = membership_figures.draw_roc(
            attacks, evidence.tradeoff, label=label, name=f"roc{suffix}"
        )
    return _as_markup(drawn)


def _largest_epsilon(runs: tuple[ReportEvidence, ...]) -> float:
    """Return the largest claimed or measured epsilon of the runs; 0 without runs."""
    audits = [run.audit for run in runs if run.audit is not None]
    bounds = [bound.epsilon_lower for audit in audits for bound in audit.bounds]
    return max([run.claim.epsilon.upper for run in runs] + bounds, default=0.0)


def _score_range(runs: tuple[ReportEvidence, ...]) -> tuple[float, float] | None:
    """Return the range of the canary scores of all runs; None without canaries."""
    edges = [edge for run in runs if run.canaries for edge in run.canaries.edges]
    return (min(edges), max(edges)) if edges else None


def comparison_figures(runs: ComparisonEvidence, names: tuple[str, str]) -> dict[str, Markup]:
    """Draw the figures that show two runs on the same axes.

    Args:
        runs: The data of both runs.
        names: Names of the runs in the legends.

    Returns:
        ``<svg>`` elements by name; what was not measured is not drawn.
    """
    pair, drawn = list(zip(names, (runs.before, runs.after), strict=True)), {}
    curves = [curve for name, run in pair for curve in _claimed_curve(name, run)]
    if curves:
        drawn["steps"] = privacy_figures.draw_epsilon_over_steps(
            curves, label=_curves_in_words(curves)
        )
    profiles = [(name, run.profile, run.claim) for name, run in pair if run.profile]
    if profiles:
        ends = (f"{n} {round_up(c.epsilon.upper)} at {exact(c.delta)}" for n, _, c in profiles)
        label = f"Upper bound on epsilon against delta; the claims are: {'; '.join(ends)}."
        drawn["profile"] = privacy_figures.draw_privacy_profiles(profiles, label=label)
    limits = [(name, run.tradeoff) for name, run in pair if run.tradeoff]
    if limits:
        label = " ".join(f"{name}: {_limit_in_words(curve)}" for name, curve in limits)
        drawn["tradeoff"] = membership_figures.draw_tradeoffs(limits, label=label)
    return _as_markup(drawn)


def _as_markup(drawn: dict[str, str]) -> dict[str, Markup]:
    # Safe: the figures escape their text and contain drawing elements only.
    return {name: Markup(svg) for name, svg in drawn.items()}


def _claimed_curve(name: str, run: ReportEvidence) -> list[EpsilonCurve]:
    """Return the curve of the claim's accountant, named after the run; empty without one."""
    return [
        EpsilonCurve(name, curve.steps, curve.epsilon)
        for curve in run.curves
        if curve.accountant == run.claim.accountant and curve.steps
    ]


def _curves_in_words(curves: Sequence[EpsilonCurve]) -> str:
    ends = (
        f"{curve.accountant} {round_up(curve.epsilon[-1])} at step {curve.steps[-1]}"
        for curve in curves
    )
    return f"Epsilon grows with the steps. Upper bounds: {'; '.join(ends)}."


def _participants_in_words(evidence: ReportEvidence) -> str:
    upper = [one.epsilon.upper for one in evidence.participants if one.epsilon is not None]
    return (
        f"Upper bound on epsilon of each participant: from {round_up(min(upper))} to "
        f"{round_up(max(upper))}; the claim is {round_up(evidence.claim.epsilon.upper)}."
    )


def _limit_in_words(curve: Sequence[TradeoffPoint]) -> str:
    """Return the upper bounds of the claim at a few false-positive rates."""
    shown = [min(curve, key=lambda point: abs(point.fpr - at)) for at in (0.01, 0.1, 0.5)]
    limits = (
        f"{round_up(point.tpr.upper)} at a false-positive rate of {round_nearest(point.fpr)}"
        for point in dict.fromkeys(shown)
    )
    return f"Upper bounds of the claim on the true-positive rate: {', '.join(limits)}."


def _rates_in_words(attacks: Sequence[MembershipResult]) -> str:
    measured = [
        f"{attack.attack} {round_nearest(rate.tpr)} at {exact(rate.fpr)}"
        for attack in attacks
        for rate in attack.tpr_at_fpr
    ]
    return f"Measured attacks: {'; '.join(measured)}." if measured else "No attack is drawn."


def _bounds_in_words(bounds: Sequence[AuditResult], claim: Claim) -> str:
    each = (
        f"{bound.name} ({bound.kind.value}) {round_down(bound.epsilon_lower)}" for bound in bounds
    )
    upper = round_up(claim.epsilon.upper)
    return f"Lower bounds on epsilon by audit: {'; '.join(each)}. Upper bound: {upper}."


def _canaries_in_words(scores: CanaryScoreHistogram) -> str:
    parts = []
    for what, counts in (("included", scores.included), ("not included", scores.left_out)):
        if sum(counts):
            ends = membership_figures.median_bin(scores.edges, counts)
            low, high = map(round_nearest, ends)
            parts.append(f"{sum(counts)} {what}, median between {low} and {high}")
    return f"Two histograms of the scores of canaries: {'; '.join(parts)}."


def _attacks_in_words(attacks: Sequence[MembershipResult]) -> str:
    areas = (f"{attack.attack} {round_nearest(attack.auc)}" for attack in attacks)
    return (
        "True-positive against false-positive rate on logarithmic axes, with the diagonal of "
        f"random guessing. Area under the curve: {'; '.join(areas)}."
    )


def _history_in_words(history: Sequence[PastRun]) -> str:
    last = history[-1]
    return (
        f"Claimed upper bound on epsilon and measured lower bound over {len(history)} verdicts, "
        f"the oldest first; the last upper bound is {round_up(last.epsilon_upper)}, its outcome "
        f"{last.outcome.value}."
    )
