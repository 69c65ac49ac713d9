"""JUnit: what fails the build is red, what does not is not."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest

from dpaudit.report.verdicts.junit import verdict_junit
from dpaudit.vocabulary.verdict import RuleOutcome
from tests.report.verdicts.reading import junit_schema
from tests.report.verdicts.verdicts import (
    HOLDS,
    NASTY,
    UNKNOWN,
    VIOLATED,
    WAIVED,
    judged,
)


def suite(*rules: RuleOutcome, warn: bool = False) -> ET.Element:
    return ET.fromstring(verdict_junit(judged(*rules, warn=warn)))


def counts(found: ET.Element) -> dict[str, str | None]:
    return {name: found.get(name) for name in ("tests", "failures", "errors", "skipped")}


def test_each_outcome_has_its_element() -> None:
    found = suite(HOLDS, VIOLATED, UNKNOWN, WAIVED)
    assert counts(found) == {"tests": "4", "failures": "1", "errors": "1", "skipped": "1"}
    cases = [
        (c.get("classname"), c.get("name"), [e.tag for e in c]) for c in found.iter("testcase")
    ]
    assert cases == [
        ("dpaudit.claim", "claim.sampling", []),
        ("dpaudit.claim", "claim.max_epsilon", ["failure"]),
        ("dpaudit.audit", "audit.max_tpr_at_fpr.0.01", ["error"]),
        ("dpaudit.audit", "audit.evidence", ["skipped"]),
    ]


def test_a_failure_names_the_line_of_the_policy() -> None:
    (failure,) = suite(VIOLATED).iter("failure")
    assert failure.text == "dpaudit.toml:2: epsilon is at most 4, allowed is 3"
    assert failure.get("message") == "epsilon is at most 4, allowed is 3"


def test_a_warning_is_skipped_and_says_why() -> None:
    found = suite(HOLDS, UNKNOWN, warn=True)
    assert counts(found) == {"tests": "2", "failures": "0", "errors": "0", "skipped": "1"}
    (skipped,) = found.iter("skipped")
    assert skipped.get("message") == "no attack on this run"


def test_no_rules_are_an_error_and_not_an_empty_suite() -> None:
    assert counts(suite()) == {"tests": "1", "failures": "0", "errors": "1", "skipped": "0"}


@pytest.mark.parametrize("text", NASTY)
def test_what_xml_cannot_carry_is_replaced(text: str) -> None:
    rule = RuleOutcome(text, VIOLATED.outcome, text)
    written = verdict_junit(judged(rule, run=text))
    assert written.isascii()
    junit_schema().validate(written)


def test_the_schema_refuses_what_is_no_report() -> None:
    assert not junit_schema().is_valid("<testsuite name='dpaudit'/>")
