"""Results of membership, label and attribute inference as text for the terminal."""

from __future__ import annotations

from dpaudit.report.text import printable_name, table_lines
from dpaudit.vocabulary.audit import (
    AttackReport,
    InferenceResult,
    MembershipResult,
    SliceResult,
    TprAtFpr,
)
from dpaudit.vocabulary.language_models import ExtractionResult
from dpaudit.vocabulary.rounding import round_down, round_up


def attack_text(report: AttackReport) -> str:
    """Format one row per attack, then the assumptions and limits of the rates.

    Args:
        report: At least one attack.

    Returns:
        Lines for the terminal.
    """
    rates = sorted({rate.fpr for one in report.membership for rate in one.tpr_at_fpr})
    heading = ("attack", "AUC", "best accuracy", *(f"TPR at {100 * rate:g}% FPR" for rate in rates))
    rows = [heading, *(_attack_row(one, rates) for one in report.membership)]
    lines = [report.attacked, "", *table_lines(rows), "", *_attack_notes(report)]
    return "\n".join([*lines, *_slice_lines(report), *_inference_lines(report)])


def _slice_lines(report: AttackReport) -> list[str]:
    """Return one row per slice and attack, and what the intervals mean."""
    if not report.slices:
        return []
    column = report.slices[0].column
    rates = sorted({rate.fpr for one in report.slices for rate in one.result.tpr_at_fpr})
    heading = (
        *(column, "attack", "members", "non-members", "AUC"),
        *(f"TPR at {100 * rate:g}% FPR" for rate in rates),
    )
    rows = [_slice_row(one, rates) for one in report.slices]
    note = (
        f"intervals of the same rate hold in all slices together at confidence "
        f"{report.confidence:g}, for each attack"
    )
    doubts = [
        f"INCONCLUSIVE: {one.result.attack}, {one.column} {one.value}: {one.result.inconclusive}"
        for one in report.slices
        if one.result.inconclusive
    ]
    return ["", *table_lines([heading, *rows]), "", note, *doubts]


def _slice_row(one: SliceResult, rates: list[float]) -> tuple[str, ...]:
    by_rate = {rate.fpr: rate for rate in one.result.tpr_at_fpr}
    counts = (str(one.result.members), str(one.result.nonmembers))
    figures = (printable_name(one.value), one.result.attack, *counts, f"{one.result.auc:.3f}")
    return (*figures, *(_rate_cell(by_rate.get(rate)) for rate in rates))


def _inference_lines(report: AttackReport) -> list[str]:
    """Return two lines per inferred value: the rates, and whether they are leakage."""
    lines = [line for one in report.inference for line in _inference_pair(one)]
    return ["", *lines] if lines else []


def _inference_pair(one: InferenceResult) -> tuple[str, str]:
    shares = (
        f"{100 * one.correct_members / one.members:.1f}% of {one.members} members and "
        f"{100 * one.correct_nonmembers / one.nonmembers:.1f}% of {one.nonmembers} non-members"
    )
    alone = (
        f"{100 * one.baseline_members / one.members:.1f}% and "
        f"{100 * one.baseline_nonmembers / one.nonmembers:.1f}% without the model"
    )
    gap, above = (
        f"{round_down(100 * bound.lower)} to {round_up(100 * bound.upper)}"
        for bound in (one.gap_interval, one.above_baseline)
    )
    verdict = "leakage" if one.leaks else "no leakage is shown"
    return (
        f"{one.inferred} inferred, of {one.values} values: {shares}; {alone}",
        f"  {verdict}: members are {gap} points above non-members, and {above} points above the "
        f"guesses without the model, at confidence {one.confidence:g} each",
    )


def _attack_row(one: MembershipResult, rates: list[float]) -> tuple[str, ...]:
    by_rate = {rate.fpr: rate for rate in one.tpr_at_fpr}
    figures = (f"{one.auc:.3f}", f"{one.balanced_accuracy:.3f}")
    return (one.attack, *figures, *(_rate_cell(by_rate.get(rate)) for rate in rates))


def _rate_cell(rate: TprAtFpr | None) -> str:
    if rate is None:
        return "-"
    ends = (round_down(100 * rate.interval.lower), round_up(100 * rate.interval.upper))
    return f"{100 * rate.tpr:.3g}% ({ends[0]} to {ends[1]})"


def _attack_notes(report: AttackReport) -> list[str]:
    first = report.membership[0]
    lines = [
        f"{first.members} members, {first.nonmembers} non-members; intervals at confidence "
        f"{report.confidence:g} each; assumptions: {first.assumes}"
    ]
    if first.unresolved:
        needed = ", ".join(
            f"{100 * rate:g}% ({round(1 / rate)} needed)" for rate in first.unresolved
        )
        lines.append(f"too few non-members for an FPR of {needed}")
    lines += report.notes
    lines += [
        f"INCONCLUSIVE: {one.attack}: {one.inconclusive}"
        for one in report.membership
        if one.inconclusive
    ]
    if report.baselines:
        found = "; ".join(
            f"{one.name}, AUC {one.auc:.3f} (p = {one.p_value:.2g})" for one in report.baselines
        )
        lines.append(f"without the model: {found}")
    return [*lines, *map(_extraction_line, report.extraction)]


def _extraction_line(found: ExtractionResult) -> str:
    """Return the shares of extracted members and non-members."""
    shares = (("members", found.members), ("non-members", found.nonmembers))
    counts = ", ".join(
        f"{share.extracted} of {share.texts} {name} (share {round_down(share.interval.lower)} to "
        f"{round_up(share.interval.upper)})"
        for name, share in shares
    )
    how = f"{found.name} extraction of the last {found.suffix_tokens} tokens"
    if found.probability is not None:
        how += f", n = {found.queries}, p = {found.probability:g}, {found.scheme}"
    left = f"; {found.too_short} texts are too short" if found.too_short else ""
    return f"{how}: {counts}{left}"
