"""SARIF: what code scanning shows, and where it points."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dpaudit.gate.policy import RULE_NAMES
from dpaudit.gate.policy_layers import LoadedPolicy, PolicyLayer, merge_layers
from dpaudit.report.verdicts.gate_result import GateResult
from dpaudit.report.verdicts.sarif import RULE_DESCRIPTIONS, rule_key, verdict_sarif
from dpaudit.vocabulary.verdict import Verdict
from tests.report.verdicts.format_readers import sarif_schema
from tests.report.verdicts.verdicts import (
    FAIL,
    PASS,
    UNKNOWN,
    WAIVED,
    judged,
    loaded_policy,
)


def run_of(one: GateResult) -> Any:
    (run,) = json.loads(verdict_sarif(one))["runs"]
    return run


def physical(loaded: LoadedPolicy, root: Path) -> Any:
    one = GateResult(Verdict((FAIL,), "head"), loaded, root)
    sarif_schema().validate(json.loads(verdict_sarif(one)))
    (result,) = run_of(one)["results"]
    (location,) = result["locations"]
    return location.get("physicalLocation")


def test_every_rule_has_its_words_and_no_other() -> None:
    assert set(RULE_DESCRIPTIONS) == {*RULE_NAMES, "waiver", "policy"}
    assert [rule["id"] for rule in run_of(judged())["tool"]["driver"]["rules"]] == list(
        RULE_DESCRIPTIONS
    )


def test_a_rule_is_of_its_key() -> None:
    assert [rule_key(rule) for rule in RULE_NAMES] == list(RULE_NAMES)
    assert rule_key("audit.max_tpr_at_fpr.0.001") == "audit.max_tpr_at_fpr"
    assert rule_key("waiver.claim.max_epsilon") == "waiver"
    assert rule_key("claim.max_epsilons") is None


def test_rules_that_do_not_hold_are_results() -> None:
    results = run_of(judged(PASS, FAIL, UNKNOWN, WAIVED))["results"]
    assert [(one["ruleId"], one["kind"], one["level"]) for one in results] == [
        ("claim.max_epsilon", "fail", "error"),
        ("audit.max_tpr_at_fpr", "fail", "error"),
        ("audit.evidence", "fail", "note"),
    ]
    assert ["suppressions" in one for one in results] == [False, False, True]


def test_a_warning_has_the_level_of_one() -> None:
    run = run_of(judged(UNKNOWN, warn=True))
    assert [one["level"] for one in run["results"]] == ["warning"]
    assert run["invocations"][0]["exitCode"] == 0


def test_no_rules_are_a_result() -> None:
    assert [one["ruleId"] for one in run_of(judged())["results"]] == ["policy"]


def test_a_waiver_is_an_accepted_suppression_with_its_reason() -> None:
    result, _ = run_of(judged(WAIVED))["results"]
    assert result["suppressions"] == [
        {
            "kind": "external",
            "status": "accepted",
            "justification": "audited by hand",
            "properties": {"expires": "2027-01-31"},
        }
    ]


def test_a_result_points_at_the_line_of_the_policy(tmp_path: Path) -> None:
    source = tmp_path / "policies" / "größer & 100%.toml"
    assert physical(loaded_policy(str(source)), tmp_path) == {
        "artifactLocation": {
            "uri": "policies/gr%C3%B6%C3%9Fer%20%26%20100%25.toml",
            "uriBaseId": "%SRCROOT%",
        },
        "region": {"startLine": 2},
    }


def test_a_policy_outside_of_the_repository_is_named_whole(tmp_path: Path) -> None:
    found = physical(loaded_policy(str(tmp_path / "shared.toml")), tmp_path / "repository")
    assert found["artifactLocation"] == {"uri": (tmp_path / "shared.toml").as_uri()}


def test_a_key_that_a_variable_sets_points_at_the_file_and_names_the_variable(
    tmp_path: Path,
) -> None:
    lines = {"claim": 1, "claim.delta": 2}
    file = PolicyLayer(str(tmp_path / "dpaudit.toml"), {"claim": {"delta": 1e-5}}, lines)
    variable = PolicyLayer("$DPAUDIT_POLICY_CLAIM_MAX_EPSILON", {"claim": {"max_epsilon": 3.0}}, {})
    loaded = merge_layers([file, variable])
    location = physical(loaded, tmp_path)
    assert location == {"artifactLocation": {"uri": "dpaudit.toml", "uriBaseId": "%SRCROOT%"}}
    one = GateResult(Verdict((FAIL,), "head"), loaded, tmp_path)
    (logical,) = run_of(one)["results"][0]["locations"][0]["logicalLocations"]
    assert logical["fullyQualifiedName"] == "$DPAUDIT_POLICY_CLAIM_MAX_EPSILON: claim.max_epsilon"


def test_a_policy_without_a_file_has_a_logical_location_alone(tmp_path: Path) -> None:
    option = PolicyLayer(
        "--set claim.max_epsilon", {"claim": {"max_epsilon": 3.0, "delta": 0.1}}, {}
    )
    assert physical(merge_layers([option]), tmp_path) is None


@pytest.mark.parametrize("missing", ["tool", "results"])
def test_the_schema_refuses_what_is_no_log(missing: str) -> None:
    log = json.loads(verdict_sarif(judged(FAIL)))
    (run,) = log["runs"]
    run[missing] = None
    assert not sarif_schema().is_valid(log)
