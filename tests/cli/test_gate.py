"""``dpaudit gate`` on runs and on scores alone; baseline, compare, config and init beside it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from calling import Call

GOOD = "[claim]\nmax_epsilon = 10.0\ndelta = 1e-5\n"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)
    return tmp_path


def policy(text: str, name: str = "dpaudit.toml") -> Path:
    path = Path(name)
    path.write_text(text)
    return path


def scores(name: str, shift: float, size: int = 2000) -> Path:
    rng = np.random.default_rng(1)
    member = rng.integers(0, 2, size)
    values = rng.standard_normal(size) + shift * member
    rows = (f"{value},{bit}" for value, bit in zip(values, member, strict=True))
    path = Path(name)
    path.write_text("score,member\n" + "\n".join(rows) + "\n")
    return path


def rules(call: Call, *arguments: object) -> tuple[int, dict[str, dict[str, str]]]:
    result = call("gate", *arguments, "--format", "json")
    return result.code, {rule["rule"]: rule for rule in json.loads(result.out)["rules"]}


def test_the_policy_of_the_folder_counts_where_none_is_named(call: Call, run_copy: Path) -> None:
    assert call("gate", run_copy).code == 2
    policy(GOOD)
    assert call("gate", run_copy).code == 0
    result = call("gate", run_copy, "--set", "claim.max_epsilon=0.01")
    assert result.code == 1
    assert "claim.max_epsilon is set by --set claim.max_epsilon" in result.err


def test_a_variable_stands_above_the_file_and_is_told(
    call: Call, run_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy(GOOD)
    monkeypatch.setenv("DPAUDIT_POLICY_CLAIM_MAX_EPSILON", "0.01")
    result = call("gate", run_copy)
    assert result.code == 1
    assert "DPAUDIT_POLICY_CLAIM_MAX_EPSILON" in result.err


def test_what_cannot_be_told_fails_unless_a_warning_is_asked_for(
    call: Call, run_copy: Path
) -> None:
    policy(GOOD + "[audit]\n")
    assert call("gate", run_copy).code == 3
    result = call("gate", run_copy, "--inconclusive", "warn")
    assert result.code == 0
    assert "INCONCLUSIVE" in result.out.splitlines()[0]
    policy(GOOD.replace("10.0", "0.01") + "[audit]\n")
    assert call("gate", run_copy, "--inconclusive", "warn").code == 1


def test_a_waiver_passes_until_it_expires(call: Call, run_copy: Path) -> None:
    waiver = '[[waiver]]\nrule = "audit.evidence"\nreason = "ticket 1"\nexpires = {}\n'
    policy(GOOD + "[audit]\n" + waiver.format("2999-12-31"))
    result = call("gate", run_copy)
    assert result.code == 0
    assert "ticket 1" in result.out
    policy(GOOD + "[audit]\n" + waiver.format("2020-12-31"))
    assert call("gate", run_copy).code == 1
    assert call("config", "check").code == 1


def test_a_run_is_no_regression_of_itself(call: Call, run_copy: Path) -> None:
    policy(GOOD + "[regression]\nmax_epsilon_increase = 0.0\n")
    code, found = rules(call, run_copy)
    assert code == 3
    assert "--baseline" in found["regression.baseline"]["why"]
    assert call("baseline", "write", run_copy).code == 0
    assert call("gate", run_copy, "--baseline", "baseline.json").code == 0
    assert call("gate", run_copy, "--baseline", run_copy).code == 0


def test_less_noise_than_the_baseline_violates_and_is_named(
    call: Call, run_copy: Path, small_data: Path
) -> None:
    policy(GOOD + "[regression]\nmax_epsilon_increase = 0.0\n")
    assert call("baseline", "write", run_copy).code == 0
    plan = ("--sampling-rate", "0.1", "--steps", "30", "--noise-multiplier", "1.5")
    assert call("train", "--data", small_data, *plan, "--out", "louder").code == 0
    code, found = rules(call, "louder", "--baseline", "baseline.json")
    assert code == 1
    why = found["regression.max_epsilon_increase"]["why"]
    assert "noise multiplier" in why
    assert "was 2, is 1.5: raises epsilon" in why
    told = call("compare", run_copy, "louder")
    assert told.code == 0
    assert "was 2, is 1.5: raises epsilon" in told.out
    assert "by itself: epsilon at most" in told.out


def test_a_change_by_itself_costs_what_the_accountant_says(
    call: Call, run_copy: Path, small_data: Path
) -> None:
    plan = ("--sampling-rate", "0.1", "--steps", "30", "--noise-multiplier", "1.5")
    assert call("train", "--data", small_data, *plan, "--out", "louder").code == 0
    found = json.loads(call("compare", run_copy, "louder", "--format", "json").out)
    (noise,) = (cost for cost in found["costs"] if "noise" in cost["difference"]["cause"])
    assert noise["epsilon"] == pytest.approx(found["after"]["claim"]["epsilon"]["upper"], rel=1e-9)


def test_a_baseline_replaces_a_baseline_and_nothing_else(call: Call, run_copy: Path) -> None:
    assert call("baseline", "write", run_copy, "-o", "b.json").code == 0
    assert call("baseline", "write", run_copy, "-o", "b.json").code == 0
    precious = Path("thesis.json")
    precious.write_text("{}")
    assert call("baseline", "write", run_copy, "-o", precious).code == 2
    assert precious.read_text() == "{}"
    policy(GOOD)
    assert call("gate", run_copy, "--baseline", "nowhere.json").code == 2
    assert call("gate", run_copy, "--baseline", precious).code == 4


def test_the_baselines_claim_is_the_one_that_the_policy_asks_for(
    call: Call, run_copy: Path
) -> None:
    policy("[claim]\nmax_epsilon = 10.0\ndelta = 1e-4\naccountant = 'rdp'\n")
    assert call("baseline", "write", run_copy).code == 0
    claim = json.loads(Path("baseline.json").read_text())["claim"]
    assert (claim["delta"], claim["accountant"]) == (1e-4, "rdp")


def test_a_drafted_policy_holds_for_its_run_and_is_never_written_over(
    call: Call, run_copy: Path
) -> None:
    assert call("audit", run_copy, "--confidence", "0.999").code == 0
    assert call("init", run_copy).code == 0
    assert call("baseline", "write", run_copy).code == 0
    result = call("gate", run_copy, "--baseline", "baseline.json")
    assert (result.code, result.out.splitlines()[0]) == (0, "HOLDS")
    written = Path("dpaudit.toml").read_text()
    for section in ("[claim]", "[audit]", "[regression]"):
        assert section in written
    assert call("init", run_copy).code == 2
    assert Path("dpaudit.toml").read_text() == written


def test_config_show_says_where_each_key_was_set(call: Call) -> None:
    policy("[tool.dpaudit.claim]\nmax_epsilon = 5.0\ndelta = 1e-5\n", "pyproject.toml")
    policy("[claim]\nmax_epsilon = 3.0\n")
    lines = call("config", "show", "--origin", "--set", "claim.accountant=rdp").out.splitlines()
    shown = {line.split()[0]: line.split()[1:] for line in lines}
    assert shown["claim.max_epsilon"] == ["3.0", "dpaudit.toml:2"]
    assert shown["claim.delta"] == ["1e-05", "pyproject.toml:3"]
    assert shown["claim.accountant"] == ['"rdp"', "--set", "claim.accountant"]
    assert shown["claim.require_secure_randomness"] == ["true", "default"]
    assert "pyproject" not in call("config", "show").out


def test_a_plan_is_held_against_the_policy_before_it_is_trained(
    call: Call, small_data: Path
) -> None:
    policy("[claim]\nmax_epsilon = 2.0\ndelta = 1e-5\n")
    settings = f"[data]\nsource = '{small_data}'\n[privacy]\nnoise_multiplier = {{}}\n"
    Path("good.toml").write_text(settings.format(6.0))
    Path("bad.toml").write_text(settings.format(0.7))
    assert call("config", "check").out == "the policy is valid\n"
    assert call("config", "check", "good.toml").code == 0
    result = call("config", "check", "good.toml", "bad.toml")
    assert result.code == 1
    assert "bad.toml: epsilon is at most" in result.out


def test_the_policys_schema_is_printed(call: Call) -> None:
    schema = json.loads(call("config", "schema").out)
    assert "Policy" in json.dumps(schema)


def test_scores_alone_can_contradict_a_claim(call: Call) -> None:
    arguments = ("--claim-epsilon", "1", "--delta", "1e-5")
    code, found = rules(call, "--scores", scores("leaky.csv", 3.0), *arguments)
    assert code == 1
    assert "epsilon is at least" in found["audit.lower_bound"]["why"]
    code, _ = rules(call, "--scores", scores("blind.csv", 0.0), *arguments)
    assert code == 0


def test_too_few_scores_to_contradict_a_claim_never_pass(call: Call) -> None:
    few = scores("few.csv", 0.0, 40)
    code, found = rules(call, "--scores", few, "--claim-epsilon", "4")
    assert code == 3
    assert "however right its guesses" in found["audit.lower_bound"]["why"]


def test_an_audit_of_scores_in_a_file_is_judged_as_well(call: Call) -> None:
    arguments = ("--claim-epsilon", "1", "--delta", "1e-5")
    leaky = scores("leaky.csv", 3.0)
    told = call("audit", "--scores", leaky, *arguments, "--format", "json", "-o", "audit.json")
    assert told.code == 0
    assert call("gate", "--audit", "audit.json", *arguments).code == 1
    assert call("gate", "--audit", "audit.json", "--claim-epsilon", "9").code == 3


def test_scores_do_not_stand_in_for_a_ledger(call: Call) -> None:
    policy(GOOD + "[audit]\ncount = ['conditional']\nmax_tpr_at_fpr = { '0.1' = 0.2 }\n")
    code, found = rules(call, "--scores", scores("blind.csv", 0.0), "--claim-epsilon", "4")
    assert code == 3
    outcomes = {name: rule["outcome"] for name, rule in found.items()}
    assert {o for name, o in outcomes.items() if name.startswith("claim.")} == {"INCONCLUSIVE"}
    assert outcomes["audit.lower_bound"] == "HOLDS"
    assert outcomes["audit.max_tpr_at_fpr.0.1"] == "HOLDS"


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("--claim-epsilon", "4"),
        ("--scores", "blind.csv"),
        ("--scores", "blind.csv", "--claim-epsilon", "nan"),
        ("--scores", "blind.csv", "--claim-epsilon", "4", "--delta", "0"),
        ("--scores", "nowhere.csv", "--claim-epsilon", "4"),
        ("--scores", "blind.csv", "--audit", "a.json", "--claim-epsilon", "4"),
        ("--scores", "blind.csv", "--claim-epsilon", "4", "--history", "."),
    ],
)
def test_what_is_missing_or_no_number_is_a_usage_error(
    call: Call, arguments: tuple[str, ...]
) -> None:
    scores("blind.csv", 0.0, 100)
    result = call("gate", *arguments)
    assert result.code == 2
    assert result.err.count("\n") == 1


@pytest.mark.parametrize("option", ["--scores", "--audit", "--claim-epsilon"])
def test_a_run_has_measurements_of_its_own(call: Call, trained: Path, option: str) -> None:
    assert call("gate", trained, option, "1").code == 2


@pytest.mark.parametrize("content", ["", "score,member\n", "score,member\nnan,1\n0.3,0\n"])
def test_scores_that_say_nothing_never_pass(call: Call, content: str) -> None:
    Path("s.csv").write_text(content)
    assert call("gate", "--scores", "s.csv", "--claim-epsilon", "4").code in {2, 3}


def test_a_verdict_can_be_remembered(call: Call, run_copy: Path, tmp_path: Path) -> None:
    policy(GOOD)
    runs = tmp_path / "runs"
    runs.mkdir()
    shutil.move(run_copy, runs / "a")
    assert call("gate", runs / "a", "--history", runs).code == 0
    assert "HOLDS" in call("history", runs).out
