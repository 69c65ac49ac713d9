"""JUnit: what fails the build is red, what does not is not."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import replace

import pytest

from dpaudit.report.verdicts.gate_result import Durations
from dpaudit.report.verdicts.junit import verdict_junit
from dpaudit.vocabulary.verdict import RuleOutcome
from tests.report.verdicts.format_readers import junit_schema
from tests.report.verdicts.verdicts import (
    FAIL,
    NASTY,
    PASS,
    UNKNOWN,
    WAIVED,
    judged,
)


def report(*rules: RuleOutcome, warn: bool = False, durations: Durations | None = None) -> str:
    return verdict_junit(replace(judged(*rules, warn=warn), durations=durations))


def suite(*rules: RuleOutcome, warn: bool = False) -> ET.Element:
    (found,) = ET.fromstring(report(*rules, warn=warn))
    return found


def counts(found: ET.Element) -> dict[str, str | None]:
    return {name: found.get(name) for name in ("tests", "failures", "errors", "skipped")}


def test_each_outcome_has_its_element() -> None:
    found = suite(PASS, FAIL, UNKNOWN, WAIVED)
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


def test_the_root_is_testsuites_with_the_counts_of_its_suite() -> None:
    root = ET.fromstring(report(PASS, FAIL, UNKNOWN, WAIVED))
    assert (root.tag, [child.tag for child in root]) == ("testsuites", ["testsuite"])
    assert counts(root) == {"tests": "4", "failures": "1", "errors": "1", "skipped": None}


def test_times_are_those_that_were_measured() -> None:
    measured = Durations(1.25, {PASS.rule: 0.0000321, FAIL.rule: 0.5})
    written = report(PASS, FAIL, durations=measured)
    junit_schema().validate(written)
    root = ET.fromstring(written)
    assert [one.get("time") for one in (root, root[0])] == ["1.250", "1.250"]
    assert [case.get("time") for case in root.iter("testcase")] == ["0.000032", "0.500000"]


def test_case_for_all_rules_has_the_total_duration() -> None:
    (case,) = ET.fromstring(report(durations=Durations(1.25))).iter("testcase")
    assert case.get("time") == "1.250000"


def test_without_measured_times_none_are_written() -> None:
    written = report(PASS, FAIL)
    junit_schema().validate(written)
    assert "time=" not in written


def test_a_failure_names_the_line_of_the_policy() -> None:
    (failure,) = suite(FAIL).iter("failure")
    assert failure.text == "dpaudit.toml:2: epsilon is at most 4, allowed is 3"
    assert failure.get("message") == "epsilon is at most 4, allowed is 3"


def test_a_warning_is_skipped_and_says_why() -> None:
    found = suite(PASS, UNKNOWN, warn=True)
    assert counts(found) == {"tests": "2", "failures": "0", "errors": "0", "skipped": "1"}
    (skipped,) = found.iter("skipped")
    assert skipped.get("message") == "no attack on this run"


def test_no_rules_are_an_error_and_not_an_empty_suite() -> None:
    assert counts(suite()) == {"tests": "1", "failures": "0", "errors": "1", "skipped": "0"}


@pytest.mark.parametrize("text", NASTY)
def test_what_xml_cannot_carry_is_replaced(text: str) -> None:
    rule = RuleOutcome(text, FAIL.outcome, text)
    written = verdict_junit(judged(rule, run=text))
    assert written.isascii()
    junit_schema().validate(written)


def test_the_schema_refuses_what_is_no_report() -> None:
    assert not junit_schema().is_valid("<testsuite name='dpaudit'/>")
