"""A verdict as JUnit XML: one test case a rule.

What cannot be told is an error and not a skipped test, which services show as green. Skipped
is what does not fail the build: a waived rule, and what is a warning only.
"""

from __future__ import annotations

from collections.abc import Iterator
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

from dpaudit.report.verdicts.judged import (
    Judged,
    Standing,
    explained,
    facts,
    headline,
    shown_rules,
    standing,
)
from dpaudit.report.verdicts.places import place_of
from dpaudit.report.verdicts.printable import one_line
from dpaudit.vocabulary.verdict import RuleOutcome, Verdict

ELEMENTS = {
    Standing.VIOLATED: "failure",
    Standing.INCONCLUSIVE: "error",
    Standing.WARNING: "skipped",
    Standing.WAIVED: "skipped",
}
NO_TIME = "0"  # rules take none worth measuring; some readers demand the attribute


def verdict_junit(judged: Judged) -> str:
    """Return one test suite in ASCII, the overall outcome among its properties."""
    verdict = judged.verdict
    suite = Element("testsuite", name="dpaudit", time=NO_TIME)
    properties = SubElement(suite, "properties")
    for name, value in _properties(verdict):
        SubElement(properties, "property", name=name, value=one_line(value))
    for rule in shown_rules(verdict):
        suite.append(_case(rule, judged))
    suite.attrib |= _counts(suite)
    ElementTree.indent(suite)
    written: bytes = ElementTree.tostring(suite, encoding="us-ascii", xml_declaration=True)
    return written.decode()


def _properties(verdict: Verdict) -> Iterator[tuple[str, str]]:
    yield "outcome", verdict.outcome.value
    yield "exit_code", str(int(verdict.exit_code))
    yield "headline", headline(verdict)
    yield "run", verdict.run
    yield "ledger_head", verdict.ledger_head
    yield from (("warning", warning) for warning in verdict.warnings)
    yield from facts(verdict)


def _counts(suite: Element) -> dict[str, str]:
    elements = {"tests": "testcase", "failures": "failure", "errors": "error", "skipped": "skipped"}
    return {name: str(len(list(suite.iter(element)))) for name, element in elements.items()}


def _case(rule: RuleOutcome, judged: Judged) -> Element:
    section = rule.rule.partition(".")[0]
    names = {"classname": f"dpaudit.{section}", "name": rule.rule}
    case = Element("testcase", {key: one_line(name) for key, name in names.items()}, time=NO_TIME)
    stands = standing(rule, judged.verdict)
    if stands in ELEMENTS:
        why = one_line(explained(rule))
        found = SubElement(case, ELEMENTS[stands], message=why, type=rule.outcome.value)
        place = place_of(rule.rule, judged)
        found.text = why if place is None else f"{one_line(str(place))}: {why}"
    return case
