"""A run, policy, baseline and history that dpaudit 0.1.0 wrote are read as what they say.

Written by the commands of 0.1.0 (commit 3dc5b20), with the policy beside them:

    dpaudit train --data digits --leaves-out hyperparameter-tuning --noise-multiplier 1.2 \
        --sampling-rate 0.05 --steps 4 --expected-batch-size 70 --seed 1 --canaries 0 --out run
    dpaudit gate run --history .
    dpaudit baseline write run -o baseline.json
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from calling import Call

from dpaudit.runs.ledger_format import parse_ledger
from dpaudit.vocabulary.errors import ExitCode
from dpaudit.vocabulary.renamed import OldNameWarning

OLD = Path(__file__).parents[1] / "golden" / "version_0_1"


@pytest.fixture
def old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "old"
    shutil.copytree(OLD, folder)
    monkeypatch.chdir(folder)
    return folder


def test_claim_of_an_old_run_still_names_what_it_does_not_cover(call: Call, old: Path) -> None:
    result = call("epsilon", "run", "--format", "json")
    assert result.code == 0
    assert "run/ledger.jsonl uses names of dpaudit 0.1" in result.err
    result = call("gate", "run", "--format", "json")
    assert result.code == 0
    verdict = json.loads(result.out)
    assert verdict["outcome"] == "PASS"
    assert verdict["claim"]["unaccounted"] == ["hyperparameter-tuning"]
    assert verdict["claim"]["assumed_public"][0] == "feature shape"
    assert "claim.allow_unaccounted" in {rule["rule"] for rule in verdict["rules"]}


def test_old_policy_demands_as_much_as_before(call: Call, old: Path) -> None:
    policy = old / "dpaudit.toml"
    strict = policy.read_text().replace('["hyperparameter-tuning"]', "[]").split("[[waiver]]")[0]
    policy.write_text(strict)
    result = call("gate", "run")
    assert result.code == ExitCode.FAIL
    assert "FAIL  claim.allow_unaccounted" in result.out
    assert "dpaudit.toml uses names of dpaudit 0.1" in result.err


def test_old_waiver_covers_the_rule_by_its_new_name(
    call: Call, old: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DPAUDIT_POLICY_CLAIM_MAY_LEAVE_OUT", "[]")
    result = call("gate", "run")
    assert "WAIVED  claim.allow_unaccounted" in result.out


def test_policy_with_both_names_of_a_key_is_refused(call: Call, old: Path) -> None:
    policy = old / "dpaudit.toml"
    both = policy.read_text().replace("[claim]", '[claim]\nallow_unaccounted = ["everything"]')
    policy.write_text(both)
    result = call("gate", "run")
    assert result.code == ExitCode.USAGE
    assert "may_leave_out and allow_unaccounted" in result.err


def test_old_baseline_is_compared_with(call: Call, old: Path) -> None:
    (old / "run").rename(old / "later")
    (old / "dpaudit.toml").write_text("[regression]\nmax_epsilon_increase = 0.1\n")
    baseline = json.loads((old / "baseline.json").read_text())
    baseline["claim"]["ledger_head"] = "0" * 64
    (old / "baseline.json").write_text(json.dumps(baseline))
    result = call("gate", "later", "--baseline", "baseline.json")
    assert (result.code, "PASS  regression.max_epsilon_increase" in result.out) == (0, True)
    assert "booked as recorded" in result.err


def test_old_history_is_shown(call: Call, old: Path) -> None:
    result = call("history", ".")
    assert result.code == 0
    assert "PASS" in result.out
    assert "HOLDS" not in result.out


@pytest.mark.needs("jinja2", "matplotlib")
def test_old_verdict_is_reported(call: Call, old: Path) -> None:
    result = call("report", "run")
    assert result.code == 0
    assert "run/verdict.json uses names of dpaudit 0.1" in result.err
    assert "HOLDS" not in (old / "run" / "report.html").read_text()


def test_variables_under_both_names_of_a_key_are_refused(
    call: Call, old: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DPAUDIT_POLICY_CLAIM_ALLOW_UNACCOUNTED", "[]")
    monkeypatch.setenv("DPAUDIT_POLICY_CLAIM_MAY_LEAVE_OUT", '["hyperparameter-tuning"]')
    result = call("gate", "run")
    assert result.code == ExitCode.USAGE
    assert "claim.allow_unaccounted, too" in result.err


def test_train_variable_under_its_old_name_counts_and_both_are_refused(
    call: Call, old: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = ("train", "--dry-run", "--noise-multiplier", 2, "--sampling-rate", 0.1, "--steps", 5)
    monkeypatch.setenv("DPAUDIT_TRAIN_LEAVES_OUT", "tuning")
    assert '["tuning"]' in call(*plan).out
    monkeypatch.setenv("DPAUDIT_TRAIN_UNACCOUNTED", "extra")
    result = call(*plan)
    assert result.code == ExitCode.USAGE
    assert "DPAUDIT_TRAIN_LEAVES_OUT" in result.err


def test_header_without_its_newline_still_names_what_is_not_covered(call: Call, old: Path) -> None:
    header = (old / "run" / "ledger.jsonl").read_bytes().split(b"\n")[0]
    with pytest.warns(OldNameWarning, match="leaves_out as unaccounted"):
        content = parse_ledger(Path("ledger.jsonl"), header)
    assert content.tail.complete
    assert content.ledger.header.unaccounted == ("hyperparameter-tuning",)
