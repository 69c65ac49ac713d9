"""Results as text for the terminal and as JSON for programs."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from datetime import UTC

import msgspec

from dpaudit.report.descriptions import (
    RELEASE_DESCRIPTIONS,
    UNIT_DESCRIPTIONS,
    guarantee_in_words,
    loss_in_words,
    observers_in_words,
    participants_in_words,
)
from dpaudit.report.participants import participant_table
from dpaudit.vocabulary import SCHEMA_VERSION
from dpaudit.vocabulary.audit import (
    FINAL_MODELS_NAME,
    AuditReport,
    AuditResult,
    ClassGuesses,
)
from dpaudit.vocabulary.claim import (
    DeltaAnswer,
    EpsilonAnswer,
    Explanation,
    NoiseAnswer,
    RiskAnswer,
    RiskNoiseAnswer,
    SplitAnswer,
)
from dpaudit.vocabulary.conformance import ConformanceResult
from dpaudit.vocabulary.conformance_words import conformance_details, conformance_summary
from dpaudit.vocabulary.federation import FederationHeader
from dpaudit.vocabulary.ledger import Sampling
from dpaudit.vocabulary.mechanism import Mechanism
from dpaudit.vocabulary.mechanism_words import mechanism_in_words
from dpaudit.vocabulary.privacy_terms import Adjacency
from dpaudit.vocabulary.rounding import round_down, round_up
from dpaudit.vocabulary.verdict import PastRun


class EpsilonAnswers(msgspec.Struct, frozen=True):
    """Results of several accountants for one mechanism, written as one JSON document."""

    results: tuple[EpsilonAnswer, ...]
    mechanism: Mechanism
    schema_version: str = SCHEMA_VERSION


def as_json(value: msgspec.Struct) -> str:
    """Encode a result as JSON.

    Args:
        value: The result.

    Returns:
        JSON indented by two blanks, in UTF-8 characters.
    """
    return msgspec.json.format(msgspec.json.encode(value), indent=2).decode()


def epsilon_text(
    mechanism: Mechanism, sampling: Sampling | None, answers: Sequence[EpsilonAnswer]
) -> str:
    """Format epsilon by accountant and method as a table.

    Args:
        mechanism: What was released.
        sampling: How batches were drawn; None where the mechanism defines it.
        answers: At least one, all at the same delta.

    Returns:
        A heading with the terms of the bounds, and one row per method.
    """
    first = answers[0]
    terms = [
        f"delta {first.delta:g}",
        f"neighbors: {first.adjacency.value}",
        f"unit: {UNIT_DESCRIPTIONS[first.unit]}",
        RELEASE_DESCRIPTIONS[first.released],
    ]
    if sampling is not None:
        terms.append(f"sampling: {sampling.value}")
    heading = [mechanism_in_words(mechanism), ", ".join(terms), ""]
    rows = [("accountant", "method", "epsilon: lower bound", "upper bound")]
    for one in answers:
        for method, bound in one.methods.items():
            least = round_down(bound.lower) if bound.lower > 0 else "-"
            rows.append((one.accountant, method, least, round_up(bound.upper)))
    return "\n".join(heading + table_lines(rows))


def participants_text(
    federation: FederationHeader,
    answers: Sequence[EpsilonAnswer],
    without_release: Sequence[str],
    notes: Sequence[str] = (),
) -> str:
    """Format epsilon of each participant of a federation, and whom the run protects against.

    Args:
        federation: What the server's ledger records.
        answers: At least one, with ``participants``; that of the tightest accountant is shown.
        without_release: Names of the ledgers that record no release.
        notes: What the reader must know; one line each.

    Returns:
        A heading, and one row per group of participants with equal bounds.
    """
    shown = min(answers, key=lambda one: one.epsilon.upper)
    heading = (
        f"federation of {participants_in_words(federation)} ({one_line(federation.strategy)}), "
        f"protects {UNIT_DESCRIPTIONS[shown.unit]} against {observers_in_words(federation)}; "
        f"{shown.accountant} accountant"
    )
    rows = participant_table(shown.participants, without_release, shown.epsilon)
    return "\n".join([heading, *table_lines(rows), *map(one_line, notes)])


def guarantee_text(mechanism: Mechanism, answers: Sequence[EpsilonAnswer]) -> str:
    """Format the guarantee of the last answer, then the method and errors of each interval.

    Args:
        mechanism: What was released.
        answers: At least one; an answer without an explanation adds no lines.

    Returns:
        Paragraphs separated by empty lines.
    """
    parts = [guarantee_in_words(mechanism, answers[-1])]
    parts += [explanation_text(one.explanation) for one in answers if one.explanation]
    return "\n\n".join(parts)


def explanation_text(explanation: Sequence[Explanation]) -> str:
    """Format the interval, the method and the error budget of each direction.

    Args:
        explanation: One entry per direction of the neighboring relation.

    Returns:
        A line per direction, followed by its errors in delta, rounded up.
    """
    lines = []
    for one in explanation:
        which = f"record {one.direction}: " if one.direction else ""
        lines.append(f"{which}{one.method}, interval {one.lower:.10g} to {one.upper:.10g}")
        lines += [f"  {name}: error in delta {round_up(size)}" for name, size in one.budget.items()]
    return "\n".join(lines)


def delta_text(answer: DeltaAnswer, sampling: Sampling | None) -> str:
    """Format the interval of delta at a given epsilon.

    Args:
        answer: The computed interval.
        sampling: How batches were drawn; None where the mechanism defines it.

    Returns:
        A heading with the mechanism, and one line with both bounds.
    """
    return "\n".join(
        [
            *_heading(answer.mechanism, answer.adjacency, sampling),
            f"delta at epsilon {answer.epsilon:g}: lower bound {round_down(answer.delta.lower)}, "
            f"upper bound {round_up(answer.delta.upper)} ({answer.accountant} accountant)",
        ]
    )


def noise_text(answer: NoiseAnswer) -> str:
    """Format a calibrated noise multiplier and the epsilon that it gives.

    Args:
        answer: The result of the calibration.

    Returns:
        The noise multiplier with all digits, so that it can be copied, and its upper bound.
    """
    return "\n".join(
        [
            f"noise multiplier {answer.noise_multiplier!r}",
            f"{mechanism_in_words(answer.mechanism)}: upper bound on epsilon "
            f"{round_up(answer.epsilon.upper)} at delta {answer.delta:g} "
            f"({answer.accountant} accountant, {answer.adjacency.value}); "
            f"target {answer.target_epsilon:g}",
        ]
    )


def split_text(answer: SplitAnswer) -> str:
    """Format the noise of queries that share a budget.

    Args:
        answer: The result of the split.

    Returns:
        A line per query, the noise with all digits, and the upper bound of all of them.
    """
    lines = []
    for name, query in answer.queries.items():
        kind = "scale" if query.noise == "laplace" else "standard deviation"
        each = f", each of {query.times} times" if query.times > 1 else ""
        lines.append(f"{name}: {query.noise} noise of {kind} {query.scale!r}{each}")
    return "\n".join(
        [
            *lines,
            f"all queries: upper bound on epsilon {round_up(answer.epsilon.upper)} at delta "
            f"{answer.delta:g} ({answer.accountant} accountant, {answer.adjacency.value}); "
            f"target {answer.target_epsilon:g}",
        ]
    )


RISK_WORDS = {
    "tpr": "upper bound on the true-positive rate",
    "advantage": "upper bound on the advantage",
    "bayes-risk": "lower bound on the Bayes risk",
    "reconstruction": "upper bound on the success of reconstruction",
}
GIVEN_WORDS = {
    "tpr": " at false-positive rate {:g}",
    "bayes-risk": " at prior {:g}",
    "reconstruction": " where {:g} is reached without the output",
}


def risk_noise_text(answer: RiskNoiseAnswer) -> str:
    """Format a noise multiplier that was calibrated to a risk.

    Args:
        answer: The result of the calibration.

    Returns:
        The noise multiplier with all digits, and the certified end of the risk.
    """
    least = answer.risk == "bayes-risk"
    shown = round_down(answer.interval.lower) if least else round_up(answer.interval.upper)
    given = "" if answer.given is None else GIVEN_WORDS[answer.risk].format(answer.given)
    return "\n".join(
        [
            f"noise multiplier {answer.noise_multiplier!r}",
            f"{mechanism_in_words(answer.mechanism)}: {RISK_WORDS[answer.risk]} {shown}{given} "
            f"({answer.accountant} accountant, {answer.adjacency.value}); "
            f"target {answer.target:g}",
        ]
    )


def risk_text(answer: RiskAnswer, sampling: Sampling | None) -> str:
    """Format the bounds on any attacker: a table of rates, the advantage and the accuracy.

    Args:
        answer: The computed bounds.
        sampling: How batches were drawn; None where the mechanism defines it.

    Returns:
        Lines for the terminal; upper bounds are rounded up and lower bounds down.
    """
    rows = [("false-positive rate", "true-positive rate: lower bound", "upper bound")]
    rows += [
        (f"{fpr:g}", round_down(tpr.lower), round_up(tpr.upper))
        for fpr, tpr in zip(answer.fpr, answer.tpr, strict=True)
    ]
    return "\n".join(
        [
            *_heading(answer.mechanism, answer.adjacency, sampling),
            "The best attacker, who knows all other records and all releases:",
            *table_lines(rows),
            "upper bound on the advantage (true-positive minus false-positive rate): "
            f"{round_up(answer.advantage.upper)}",
            "upper bound on the accuracy for a record included with probability 1/2: "
            f"{round_up(answer.accuracy.upper)}",
            *_gdp_lines(answer),
        ]
    )


def _gdp_lines(answer: RiskAnswer) -> list[str]:
    if answer.gdp is None:
        return []
    return [
        f"Gaussian DP with mu {round_up(answer.gdp.mu.upper)}: at each false-positive rate, the "
        f"true-positive rate is at most that of mu-GDP plus {answer.gdp.slack:g}; upper bound on "
        f"the regret, by which mu-GDP overstates the risk: {round_up(answer.gdp.regret.upper)}"
    ]


def _heading(mechanism: Mechanism, adjacency: Adjacency, sampling: Sampling | None) -> list[str]:
    terms = [f"neighbors: {adjacency.value}"]
    if sampling is not None:
        terms.append(f"sampling: {sampling.value}")
    return [mechanism_in_words(mechanism), ", ".join(terms), ""]


def _heldout_lines(report: AuditReport) -> Iterator[str]:
    """Yield what held-out records show of the model, if it was measured."""
    if report.heldout_accuracy is not None:
        yield f"held-out accuracy {report.heldout_accuracy:.1%}"
    if report.heldout_loss is not None:
        yield f"held-out {loss_in_words(report.heldout_loss)}"


def audit_text(report: AuditReport) -> str:
    """Format the measurements of an audit: accuracy, attacks and lower bounds.

    Args:
        report: The audit; a line says so where it has no lower bound.

    Returns:
        Lines for the terminal, with the assumptions and the power below each bound.
    """
    lines: list[str] = []
    lines += _heldout_lines(report)
    for attack in report.membership:
        lines.append(
            f"membership inference by {attack.attack}: AUC {attack.auc:.3f}, "
            f"balanced accuracy {attack.balanced_accuracy:.3f} "
            f"({attack.members} members, {attack.nonmembers} non-members)"
        )
        lines += [
            f"  true-positive rate at FPR {rate.fpr:g}: {rate.tpr:.3g}, "
            f"interval {round_down(rate.interval.lower)} to {round_up(rate.interval.upper)}"
            for rate in attack.tpr_at_fpr
        ]
        if attack.unresolved:
            rates = ", ".join(f"{rate:g}" for rate in attack.unresolved)
            lines.append(f"  too few non-members for an FPR of {rates}")
        if attack.inconclusive is not None:
            lines.append(f"  inconclusive: {attack.inconclusive}")
    if not report.bounds:
        lines.append("no lower bound on epsilon: the run has no canaries (train with --canaries)")
    for bound in report.bounds:
        lines.append(
            f"lower bound on epsilon {round_down(bound.epsilon_lower)} at delta {bound.delta:g} "
            f"[{bound.kind.value}, confidence {bound.confidence:.5g}]"
        )
        lines.append(f"  {bound.name}; {bound.method}")
        if bound.guesses:
            lines.append(
                f"  {bound.correct} of {bound.guesses} guesses correct on {_scored_in_words(bound)}"
            )
        else:
            lines.append(f"  {_scored_in_words(bound)}; threshold: {bound.thresholds}")
        lines.append(f"  assumptions: {bound.assumes}")
        if bound.states:
            lines.append(f"  conclusion: {bound.states}")
        if bound.inconclusive is not None:
            lines.append(f"  inconclusive: {bound.inconclusive}")
        if bound.detectable_epsilon is not None:
            lines.append(
                f"  power: a true epsilon of {round_up(bound.detectable_epsilon)} is detectable "
                "at 95% power"
            )
        elif bound.greatest_epsilon is not None:
            lines.append(
                "  power: not known; with all guesses correct, the lower bound is "
                f"{round_down(bound.greatest_epsilon)}"
            )
    if report.spot_checks:
        lines.append(f"gradients of the run: {report.spot_checks}")
    return "\n".join(lines)


def _scored_in_words(bound: AuditResult) -> str:
    """Return the number of scored canaries or records."""
    if isinstance(bound.estimator, ClassGuesses):
        counts = bound.estimator
        return f"{counts.members} members and {counts.nonmembers} non-members"
    if bound.name.startswith(FINAL_MODELS_NAME):
        return f"{bound.trials} models, half of them with the target record"
    return f"{bound.trials} canaries"


def conformance_text(result: ConformanceResult) -> str:
    """Format the summary of a conformance audit, then each finding.

    Args:
        result: Findings of the conformance tests.

    Returns:
        Lines for the terminal.
    """
    return f"{conformance_summary(result)}\n\n{conformance_details(result)}"


def table_lines(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Align the cells of each column at the left.

    Of rich, which takes 50 ms to import, a command that prints a table would need this alone.

    Args:
        rows: At least one row; all have the same number of cells.

    Returns:
        One line per row, without blanks at its end.
    """
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


# Membership inference attacks as a table for the terminal.


# Past verdicts as a table for the terminal.

HISTORY_HEADING = (
    *("evaluated", "run", "outcome", "epsilon, upper bound", "lower bound", "delta"),
    *("TPR, upper bound", "accuracy", "steps"),
)
HISTORY_NOTE = (
    "times in UTC; TPR: of the strongest attack, upper end of its interval; -: not measured"
)


def history_text(runs: Sequence[PastRun]) -> str:
    """Format past verdicts as a table.

    Args:
        runs: Past verdicts, the oldest first.

    Returns:
        One row per verdict, and a note on the columns.
    """
    rows = [HISTORY_HEADING, *(_history_row(past) for past in runs)]
    return "\n".join([*table_lines(rows), "", HISTORY_NOTE])


def _history_row(past: PastRun) -> tuple[str, ...]:
    return (
        f"{past.judged.astimezone(UTC):%Y-%m-%d %H:%M}",
        printable_name(past.run),
        past.outcome.value,
        round_up(past.epsilon_upper),
        "-" if past.epsilon_lower is None else round_down(past.epsilon_lower),
        f"{past.delta:g}",
        "-" if past.tpr is None else f"{round_up(past.tpr)} at FPR {past.fpr:g}",
        "-" if past.accuracy is None else f"{past.accuracy:.1%}",
        str(past.steps),
    )


def printable_name(name: str) -> str:
    """Replace characters that are not printable by U+FFFD; an empty name becomes "unnamed"."""
    return "".join(c if c.isprintable() else "\ufffd" for c in name) or "unnamed"


# Strings of a run, such as its name, as one printable line.

# Terminal control characters, characters that change the text direction, and characters that
# XML or UTF-8 cannot hold.
UNPRINTABLE = re.compile(
    r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]"
)


def one_line(text: str) -> str:
    """Collapse white space to single blanks and replace unprintable characters by U+FFFD."""
    return UNPRINTABLE.sub("\ufffd", " ".join(text.split()))
