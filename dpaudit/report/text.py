"""Results for the terminal and for programs: text and JSON."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from dpaudit.report.words import RELEASED, UNITS, guarantee_in_words, mechanism_in_words
from dpaudit.vocabulary import SCHEMA_VERSION
from dpaudit.vocabulary.adjacency import Adjacency
from dpaudit.vocabulary.answers import DeltaAnswer, Explanation, NoiseAnswer, RiskAnswer
from dpaudit.vocabulary.audit import AuditReport, AuditResult
from dpaudit.vocabulary.claim import EpsilonAnswer
from dpaudit.vocabulary.conformance import ConformanceResult
from dpaudit.vocabulary.estimators import ClassGuesses
from dpaudit.vocabulary.ledger import Sampling
from dpaudit.vocabulary.mechanism import Mechanism
from dpaudit.vocabulary.rounding import round_down, round_up


class EpsilonAnswers(msgspec.Struct, frozen=True):
    """The JSON of several accountants side by side."""

    results: tuple[EpsilonAnswer, ...]
    mechanism: Mechanism
    schema_version: str = SCHEMA_VERSION


def as_json(value: msgspec.Struct) -> str:
    """Return indented JSON."""
    return msgspec.json.format(msgspec.json.encode(value), indent=2).decode()


def epsilon_text(
    mechanism: Mechanism, sampling: Sampling | None, answers: Sequence[EpsilonAnswer]
) -> str:
    """Return a table of what each accountant says, by each of its methods."""
    first = answers[0]
    terms = [
        f"delta {first.delta:g}",
        f"neighbours: {first.adjacency.value}",
        f"unit: {UNITS[first.unit]}",
        RELEASED[first.released],
    ]
    if sampling is not None:
        terms.append(f"sampling: {sampling.value}")
    heading = [mechanism_in_words(mechanism), ", ".join(terms), ""]
    rows = [("accountant", "method", "epsilon at least", "epsilon at most")]
    for one in answers:
        for method, bound in one.methods.items():
            least = round_down(bound.lower) if bound.lower > 0 else "-"
            rows.append((one.accountant, method, least, round_up(bound.upper)))
    return "\n".join(heading + table(rows))


def guarantee_text(mechanism: Mechanism, answers: Sequence[EpsilonAnswer]) -> str:
    """Return the statement in plain words, and how its numbers were come by."""
    parts = [guarantee_in_words(mechanism, answers[-1])]
    parts += [explanation_text(one.explanation) for one in answers if one.explanation]
    return "\n\n".join(parts)


def explanation_text(explanation: Sequence[Explanation]) -> str:
    """Return each direction's interval, its method, and the errors inside it."""
    lines = []
    for one in explanation:
        which = f"the record {one.direction}: " if one.direction else ""
        lines.append(f"{which}{one.method}, from {one.lower:.10g} to {one.upper:.10g}")
        lines += [f"  {name}: {round_up(size)} of delta" for name, size in one.budget.items()]
    return "\n".join(lines)


def delta_text(answer: DeltaAnswer, sampling: Sampling | None) -> str:
    """Return the interval of delta at an epsilon."""
    return "\n".join(
        [
            *_heading(answer.mechanism, answer.adjacency, sampling),
            f"at epsilon {answer.epsilon:g}, delta is at least {round_down(answer.delta.lower)} "
            f"and at most {round_up(answer.delta.upper)} ({answer.accountant} accountant)",
        ]
    )


def noise_text(answer: NoiseAnswer) -> str:
    """Return the noise multiplier, in all of its digits, and what it costs."""
    return "\n".join(
        [
            f"noise multiplier {answer.noise_multiplier!r}",
            f"{mechanism_in_words(answer.mechanism)} costs an epsilon of at most "
            f"{round_up(answer.epsilon.upper)} at delta {answer.delta:g} "
            f"({answer.accountant} accountant, {answer.adjacency.value}); "
            f"asked for was {answer.target_epsilon:g}",
        ]
    )


def risk_text(answer: RiskAnswer, sampling: Sampling | None) -> str:
    """Return what the best attacker can do, as a table and two numbers."""
    rows = [("false-positive rate", "true-positive rate at least", "at most")]
    rows += [
        (f"{fpr:g}", round_down(tpr.lower), round_up(tpr.upper))
        for fpr, tpr in zip(answer.fpr, answer.tpr, strict=True)
    ]
    return "\n".join(
        [
            *_heading(answer.mechanism, answer.adjacency, sampling),
            "The best attacker, who knows every record but one and all that was released:",
            *table(rows),
            "advantage (true- less false-positive rate) at most "
            f"{round_up(answer.advantage.upper)}",
            "accuracy on a record that is in half of the time at most "
            f"{round_up(answer.accuracy.upper)}",
        ]
    )


def _heading(mechanism: Mechanism, adjacency: Adjacency, sampling: Sampling | None) -> list[str]:
    terms = [f"neighbours: {adjacency.value}"]
    if sampling is not None:
        terms.append(f"sampling: {sampling.value}")
    return [mechanism_in_words(mechanism), ", ".join(terms), ""]


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
        if attack.unresolved:
            unseen = ", ".join(f"{rate:g}" for rate in attack.unresolved)
            lines.append(f"  too few non-members to see an FPR of {unseen}")
        if attack.inconclusive is not None:
            lines.append(f"  inconclusive: {attack.inconclusive}")
    if not report.bounds:
        lines.append("no lower bound on epsilon: the run has no canaries (train with --canaries)")
    for bound in report.bounds:
        lines.append(
            f"epsilon is at least {round_down(bound.epsilon_lower)} at delta {bound.delta:g} "
            f"[{bound.kind.value}, confidence {bound.confidence:.5g}]"
        )
        lines.append(f"  {bound.name}; {bound.method}")
        if bound.guesses:
            lines.append(f"  {bound.correct} of {bound.guesses} guesses right on {_read(bound)}")
        else:
            lines.append(f"  {_read(bound)}; threshold: {bound.thresholds}")
        lines.append(f"  assumes {bound.assumes}")
        if bound.states:
            lines.append(f"  states that {bound.states}")
        if bound.inconclusive is not None:
            lines.append(f"  inconclusive: {bound.inconclusive}")
        if bound.detectable_epsilon is not None:
            lines.append(
                f"  power: a true epsilon of {round_up(bound.detectable_epsilon)} would have been "
                "seen above the claim 95 times in 100"
            )
        elif bound.greatest_epsilon is not None:
            lines.append(
                "  power: not known; had every guess been right, epsilon would be at least "
                f"{round_down(bound.greatest_epsilon)}"
            )
    return "\n".join(lines)


def _read(bound: AuditResult) -> str:
    """Return what was scored, in words."""
    if isinstance(bound.estimator, ClassGuesses):
        counts = bound.estimator
        return f"{counts.members} members and {counts.nonmembers} non-members"
    return f"{bound.trials} canaries"


def conformance_text(result: ConformanceResult) -> str:
    """Return the verdict, then each finding with what it saw and what it could have seen."""
    lines = [
        result.verdict.value,
        f"(a trainer that does what it claims is convicted with probability {result.level:g} "
        "at most)",
    ]
    for finding in result.findings:
        p_value = "" if finding.p_value is None else f" (p = {finding.p_value:.3g})"
        lines += [
            f"{finding.outcome.value}  {finding.check}, {finding.name}: {finding.why}{p_value}",
            f"    tested: {finding.tested}",
            f"    power: {finding.power}",
        ]
    return "\n".join(lines)


def table(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Return the rows in columns as wide as they need."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
