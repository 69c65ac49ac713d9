"""A verdict as JUnit XML: one test suite in ``testsuites``, one test case per rule.

An inconclusive rule is an error, not a skipped test: CI services show skipped tests as passed.
Skipped are only rules that do not fail the build: waived ones, and warnings.

Times are measured. The suite's time includes reading and recomputing the evidence; the time of
a test case is that of its rule alone. Where nothing was measured, ``time`` is left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

from dpaudit.report.text import one_line
from dpaudit.report.verdicts.gate_result import (
    Durations,
    GateResult,
    RuleStatus,
    rule_location,
    rule_reason,
    rule_status,
    shown_rules,
    verdict_facts,
    verdict_headline,
)
from dpaudit.vocabulary.verdict import RuleOutcome, Verdict

ELEMENTS = {
    RuleStatus.FAIL: "failure",
    RuleStatus.INCONCLUSIVE: "error",
    RuleStatus.WARNING: "skipped",
    RuleStatus.WAIVED: "skipped",
}


def verdict_junit(judged: GateResult) -> str:
    """Write a verdict as a JUnit XML document.

    Args:
        judged: The verdict, its policy, and the measured times.

    Returns:
        An ASCII document with the root element ``testsuites``; the overall outcome is among
        the properties of its one suite.
    """
    root = Element("testsuites", name="dpaudit")
    suite = _suite(judged)
    root.append(suite)
    counts = _counts(suite)
    # The root has no attribute for skipped tests in the schema of Maven Surefire.
    root.attrib |= {name: counts[name] for name in ("tests", "failures", "errors")}
    suite.attrib |= counts
    if judged.durations is not None:
        root.set("time", _milliseconds(judged.durations.total))
        suite.set("time", _milliseconds(judged.durations.total))
    ElementTree.indent(root)
    written: bytes = ElementTree.tostring(root, encoding="us-ascii", xml_declaration=True)
    return written.decode()


def _milliseconds(seconds: float) -> str:
    """Return seconds with three decimals, the most that the schema allows for a suite."""
    return f"{seconds:.3f}"


def _suite(judged: GateResult) -> Element:
    """Build the test suite: the facts as properties, then one test case per rule."""
    verdict = judged.verdict
    suite = Element("testsuite", name="dpaudit")
    properties = SubElement(suite, "properties")
    for name, value in _properties(verdict):
        SubElement(properties, "property", name=name, value=one_line(value))
    for rule in shown_rules(verdict):
        suite.append(_case(rule, judged))
    return suite


def _properties(verdict: Verdict) -> Iterator[tuple[str, str]]:
    yield "outcome", verdict.outcome.value
    yield "exit_code", str(int(verdict.exit_code))
    yield "headline", verdict_headline(verdict)
    yield "run", verdict.run
    yield "ledger_head", verdict.ledger_head
    yield from (("warning", warning) for warning in verdict.warnings)
    yield from verdict_facts(verdict)


def _counts(suite: Element) -> dict[str, str]:
    """Count the test cases by result, as JUnit names the attributes."""
    elements = {"tests": "testcase", "failures": "failure", "errors": "error", "skipped": "skipped"}
    return {name: str(len(list(suite.iter(element)))) for name, element in elements.items()}


def _case(rule: RuleOutcome, judged: GateResult) -> Element:
    section = rule.rule.partition(".")[0]
    names = {"classname": f"dpaudit.{section}", "name": rule.rule}
    case = Element("testcase", {key: one_line(name) for key, name in names.items()})
    if judged.durations is not None:
        case.set("time", f"{_seconds(rule, judged.durations):.6f}")
    status = rule_status(rule, judged.verdict)
    if status in ELEMENTS:
        why = one_line(rule_reason(rule))
        found = SubElement(case, ELEMENTS[status], message=why, type=rule.outcome.value)
        place = rule_location(rule.rule, judged)
        found.text = why if place is None else f"{one_line(str(place))}: {why}"
    return case


def _seconds(rule: RuleOutcome, durations: Durations) -> float:
    """Return the time of a rule; the total time for the added rule ``policy``."""
    return durations.rules.get(rule.rule, durations.total)
