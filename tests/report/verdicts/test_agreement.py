"""Every format says the same: the outcome, the exit code, and the outcome of each rule."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest
from hypothesis import given

from dpaudit.report.text import one_line
from dpaudit.report.verdicts import VERDICT_FORMATS, verdict_json
from dpaudit.report.verdicts.gate_result import GateResult, shown_rules
from dpaudit.vocabulary.verdict import RuleOutcome, Verdict
from tests.report.verdicts.format_readers import READERS, Line
from tests.report.verdicts.verdicts import loaded_policy, verdicts


def visible(name: str) -> str:
    return one_line(name).replace("\u200b", "").strip()


def line_of(rule: RuleOutcome) -> Line:
    outcome = rule.outcome.value
    return Line("WAIVED" if rule.waived else outcome, visible(rule.rule), outcome)


def test_every_format_has_a_reader() -> None:
    assert set(READERS) == set(VERDICT_FORMATS)


@pytest.mark.parametrize("name", VERDICT_FORMATS)
@given(verdict=verdicts)
def test_what_is_read_is_the_verdict(name: str, verdict: Verdict) -> None:
    written = VERDICT_FORMATS[name](GateResult(verdict, loaded_policy(), Path.cwd()))
    read = READERS[name](written)
    assert read.outcome == verdict.outcome.value
    assert read.exit_code == verdict.exit_code
    rules = verdict.rules if name == "json" else shown_rules(verdict)
    expected = [line_of(rule) for rule in rules]
    shown = [line for line in expected if read.whole or line.label != "PASS"]
    assert [line._replace(name=visible(line.name)) for line in read.lines] == shown


@given(verdicts)
def test_the_json_is_the_whole_verdict(verdict: Verdict) -> None:
    assert msgspec.convert(json.loads(verdict_json(verdict)), Verdict) == verdict
