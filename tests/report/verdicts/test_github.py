"""Workflow commands: what GitHub's runner makes of them."""

from __future__ import annotations

import pytest

from dpaudit.report.verdicts.gate_result import GateResult
from dpaudit.report.verdicts.github import EVIDENCE_TITLE, verdict_github
from dpaudit.vocabulary.verdict import Outcome, RuleOutcome, Verdict
from tests.report.verdicts.format_readers import Command, commands
from tests.report.verdicts.verdicts import (
    FAIL,
    NASTY,
    PASS,
    UNKNOWN,
    WAIVED,
    judged,
    loaded_policy,
)


def commands_of(one: GateResult) -> list[Command]:
    found = commands(verdict_github(one).split("\n")[1:])
    return [command for command in found if command.properties["title"] != EVIDENCE_TITLE]


def test_each_rule_that_does_not_hold_is_a_command() -> None:
    *lines, evidence = verdict_github(judged(PASS, FAIL, UNKNOWN, WAIVED)).split("\n")
    assert evidence.startswith("::notice title=claim and evidence::policy: dpaudit.toml")
    assert lines == [
        "dpaudit gate: FAIL (1 of 2 rules of audit waived)",
        "::error file=dpaudit.toml,line=2,title=FAIL claim.max_epsilon"
        "::epsilon is at most 4, allowed is 3",
        "::error file=dpaudit.toml,line=6,title=INCONCLUSIVE audit.max_tpr_at_fpr.0.01"
        "::no attack on this run",
        "::notice file=dpaudit.toml,line=5,title=WAIVED audit.evidence"
        "::INCONCLUSIVE: the run was not audited; waived until 2027-01-31: audited by hand",
    ]


def test_a_warning_is_a_warning() -> None:
    assert [one.name for one in commands_of(judged(UNKNOWN, warn=True))] == ["warning"]


def test_no_rules_are_an_error() -> None:
    assert [one.name for one in commands_of(judged())] == ["error"]


def test_what_would_end_a_property_is_escaped() -> None:
    rule = RuleOutcome("claim.max_epsilon", Outcome.FAIL, "100% of a, b: c")
    loaded = loaded_policy("a,b:c%.toml")
    line = verdict_github(GateResult(Verdict((rule,), ""), loaded)).split("\n")[1]
    assert "file=a%2Cb%3Ac%25.toml" in line or "/a%2Cb%3Ac%25.toml" in line
    assert line.endswith("::100%25 of a, b: c")


@pytest.mark.parametrize("text", NASTY)
def test_foreign_words_make_no_command_of_their_own(text: str) -> None:
    rule = RuleOutcome(text, Outcome.FAIL, text)
    written = verdict_github(judged(rule, run=text))
    assert len(written.splitlines()) == 3
    (command,) = commands_of(judged(rule, run=text))
    assert command.name == "error"
    assert set(command.properties) <= {"file", "line", "title"}
