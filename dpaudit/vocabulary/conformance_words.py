"""Conformance results in words: a summary of a few lines, and the details of each test."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from dpaudit.vocabulary.verdict import Outcome

if TYPE_CHECKING:
    from dpaudit.vocabulary.conformance import ConformanceFinding, ConformanceResult

MOST_CAUSES = 8
"""Causes that a summary lists; a line tells how many more there are."""

REPEATED_PART = " (one record moved the sum by "
"""What follows the cause in findings that have one cause and differ in the record."""


def conformance_summary(result: ConformanceResult) -> str:
    """Summarize a result: the verdict, why it is not PASS, and what was tested and assumed.

    Args:
        result: The result of an audit.

    Returns:
        The verdict with counts; at most ``MOST_CAUSES`` causes of FAIL and INCONCLUSIVE, each with
        what would decide it; the tests of each check that passed; and the terms of the audit.
        One line each.
    """
    return "\n".join(
        [
            f"{result.verdict.value}: {_counted(result.findings)}",
            *_cause_lines(result.findings),
            *_passed_lines(result.findings),
            f"a trainer that implements its claim is rejected with a probability of at most "
            f"{result.level:g}",
            *(f"assumed: {one}" for one in result.assumptions),
        ]
    )


def conformance_details(result: ConformanceResult) -> str:
    """Describe each test: what was observed, what was tested, and the smallest detectable fault.

    Args:
        result: The result of an audit.

    Returns:
        Three lines for each finding, in the order of the tests.
    """
    lines = []
    for finding in result.findings:
        lines += [
            f"{_named(finding.outcome, finding.check, finding.name)}: {_observed(finding)}",
            f"    tested: {finding.tested}",
            f"    power: {finding.power}",
        ]
    return "\n".join(lines)


def _named(outcome: Outcome, check: str, names: str) -> str:
    return f"{outcome.value}  {check}, {names}"


def _observed(finding: ConformanceFinding) -> str:
    p_value = "" if finding.p_value is None else f" (p = {finding.p_value:.3g})"
    return f"{finding.why}{p_value}"


def _counted(findings: Sequence[ConformanceFinding]) -> str:
    """Return how many tests there were, and how many had each outcome."""
    counts = Counter(finding.outcome for finding in findings)
    parts = [f"{counts[one]} {one.value}" for one in Outcome if counts[one]]
    tests = "1 test" if len(findings) == 1 else f"{len(findings)} tests"
    return f"{tests} ({', '.join(parts)})" if parts else "nothing was tested"


def _cause_lines(findings: Sequence[ConformanceFinding]) -> list[str]:
    """Return a line for each cause of FAIL, then of INCONCLUSIVE; tests of one cause share it."""
    causes: dict[tuple[str, ...], list[ConformanceFinding]] = {}
    for outcome in (Outcome.FAIL, Outcome.INCONCLUSIVE):
        for one in findings:
            if one.outcome is outcome:
                cause = one.why.partition(REPEATED_PART)[0]
                causes.setdefault((outcome.value, one.check, cause), []).append(one)
    lines = [_cause_line(same) for same in causes.values()]
    more = len(lines) - MOST_CAUSES
    return lines if more <= 0 else [*lines[:MOST_CAUSES], f"and {more} more: see the details"]


def _cause_line(same: Sequence[ConformanceFinding]) -> str:
    first, others = same[0], len(same) - 1
    more = f" and {others} more test{'s' if others > 1 else ''}" if others else ""
    return f"{_named(first.outcome, first.check, first.name)}{more}: {_observed(first)}"


def _passed_lines(findings: Iterable[ConformanceFinding]) -> list[str]:
    """Return a line for each check with the tests that passed, and the power of the first."""
    passed: dict[str, list[ConformanceFinding]] = {}
    for one in findings:
        if one.outcome is Outcome.PASS:
            passed.setdefault(one.check, []).append(one)
    return [
        f"{Outcome.PASS.value}  {check}: {', '.join(one.name for one in own)}; power of "
        f"{own[0].name}: {own[0].power}"
        for check, own in passed.items()
    ]
