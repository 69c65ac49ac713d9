"""Attacks side by side, as a table for the terminal."""

from __future__ import annotations

from dpaudit.report.text import table
from dpaudit.vocabulary.audit import AttackReport, MembershipResult, TprAtFpr
from dpaudit.vocabulary.rounding import round_down, round_up


def attack_text(report: AttackReport) -> str:
    """Return a row an attack, and below it what the figures do not say."""
    rates = sorted({rate.fpr for one in report.membership for rate in one.tpr_at_fpr})
    heading = ("attack", "AUC", "best accuracy", *(f"TPR at {100 * rate:g}% FPR" for rate in rates))
    rows = [heading, *(_row(one, rates) for one in report.membership)]
    return "\n".join([report.attacked, "", *table(rows), "", *_notes(report)])


def _row(one: MembershipResult, rates: list[float]) -> tuple[str, ...]:
    by_rate = {rate.fpr: rate for rate in one.tpr_at_fpr}
    figures = (f"{one.auc:.3f}", f"{one.balanced_accuracy:.3f}")
    return (one.attack, *figures, *(_cell(by_rate.get(rate)) for rate in rates))


def _cell(rate: TprAtFpr | None) -> str:
    if rate is None:
        return "-"
    ends = (round_down(100 * rate.interval.lower), round_up(100 * rate.interval.upper))
    return f"{100 * rate.tpr:.3g}% ({ends[0]} to {ends[1]})"


def _notes(report: AttackReport) -> list[str]:
    first = report.membership[0]
    lines = [
        f"{first.members} members, {first.nonmembers} non-members; intervals at confidence "
        f"{report.confidence:g}, each by itself, {first.assumes}"
    ]
    if first.unresolved:
        rates = ", ".join(f"{100 * rate:g}%" for rate in first.unresolved)
        most = round(1 / min(first.unresolved))
        lines.append(f"too few non-members to see an FPR of {rates}: {most} would show all")
    lines += [
        f"INCONCLUSIVE: {one.attack}: {one.inconclusive}"
        for one in report.membership
        if one.inconclusive
    ]
    return lines
