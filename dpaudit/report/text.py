"""Results for the terminal and for programs: text and JSON."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from dpaudit.report.words import mechanism_in_words
from dpaudit.vocabulary import SCHEMA_VERSION
from dpaudit.vocabulary.audit import AuditReport
from dpaudit.vocabulary.claim import EpsilonAnswer
from dpaudit.vocabulary.ledger import Sampling
from dpaudit.vocabulary.mechanism import Mechanism
from dpaudit.vocabulary.rounding import round_down, round_up
from dpaudit.vocabulary.verdict import Verdict


class EpsilonAnswers(msgspec.Struct, frozen=True):
    """The JSON of several accountants side by side."""

    results: tuple[EpsilonAnswer, ...]
    mechanism: Mechanism
    schema_version: str = SCHEMA_VERSION


def as_json(value: msgspec.Struct) -> str:
    """Return indented JSON."""
    return msgspec.json.format(msgspec.json.encode(value), indent=2).decode()


def epsilon_text(mechanism: Mechanism, sampling: Sampling, answers: Sequence[EpsilonAnswer]) -> str:
    """Return a table of what each accountant says, by each of its methods."""
    first = answers[0]
    heading = [
        mechanism_in_words(mechanism),
        f"delta {first.delta:g}, neighbours: {first.adjacency.value}, sampling: {sampling.value}",
        "",
    ]
    rows = [("accountant", "method", "epsilon at least", "epsilon at most")]
    for one in answers:
        for method, bound in one.methods.items():
            least = round_down(bound.lower) if bound.lower > 0 else "-"
            rows.append((one.accountant, method, least, round_up(bound.upper)))
    return "\n".join(heading + _table(rows))


def audit_text(report: AuditReport) -> str:
    """Return what was measured, in words."""
    lines = []
    if report.heldout_accuracy is not None:
        lines.append(f"held-out accuracy {report.heldout_accuracy:.1%}")
    for attack in report.membership:
        lines.append(
            f"membership inference by {attack.attack}: AUC {attack.auc:.3f}, "
            f"balanced accuracy {attack.balanced_accuracy:.3f} "
            f"({attack.members} members, {attack.nonmembers} non-members)"
        )
        lines += [
            f"  true-positive rate at FPR {rate.fpr:g}: {rate.tpr:.3g}, "
            f"between {round_down(rate.interval.lower)} and {round_up(rate.interval.upper)}"
            for rate in attack.tpr_at_fpr
        ]
    if not report.bounds:
        lines.append("no lower bound on epsilon: the run has no canaries (train with --canaries)")
    for bound in report.bounds:
        lines.append(
            f"epsilon is at least {round_down(bound.epsilon_lower)} at delta {bound.delta:g} "
            f"[{bound.kind.value}, confidence {bound.confidence:.5g}]"
        )
        lines.append(f"  {bound.name}; {bound.method}")
        lines.append(
            f"  {bound.correct} of {bound.guesses} guesses right on {bound.trials} canaries"
        )
        lines.append(f"  assumes {bound.assumes}")
        if bound.detectable_epsilon is not None:
            lines.append(
                f"  power: a true epsilon of {round_up(bound.detectable_epsilon)} would have been "
                "seen above the claim 95 times in 100"
            )
    return "\n".join(lines)


def verdict_text(verdict: Verdict) -> str:
    """Return the verdict, then every rule with its reason."""
    rows = [(rule.outcome.value, rule.rule, rule.why) for rule in verdict.rules]
    return "\n".join([verdict.outcome.value, *_table(rows)])


def _table(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
