"""``dpaudit gate`` on runs and on scores alone; baseline, compare, config and init beside it."""

from __future__ import annotations

import hashlib
import json
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from calling import Call

from dpaudit.cli.policy_warnings import warn_of_low_confidence

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


def of_another_run(baseline: Path) -> None:
    """Make a baseline that of an earlier run with the same figures."""
    figures = json.loads(baseline.read_text())
    figures["claim"]["ledger_head"] = "b" * 64
    baseline.write_text(json.dumps(figures))


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


def test_variable_overrides_the_file_and_is_reported(
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
    soon = datetime.now(UTC).date() + timedelta(days=300)
    policy(GOOD + "[audit]\n" + waiver.format(soon))
    result = call("gate", run_copy)
    assert result.code == 0
    assert "ticket 1" in result.out
    assert result.out.startswith("PASS (every rule of audit is waived)")
    policy(GOOD + "[audit]\n" + waiver.format(soon + timedelta(days=100)))
    assert "waiver_max_days" in call("gate", run_copy).out
    policy("waiver_max_days = 400\n" + GOOD + "[audit]\n" + waiver.format(soon))
    assert call("gate", run_copy).code == 0
    policy(GOOD + "[audit]\n" + waiver.format("2020-12-31"))
    assert call("gate", run_copy).code == 1
    assert call("config", "check").code == 1


def test_a_run_is_not_its_own_baseline(call: Call, run_copy: Path) -> None:
    policy(GOOD + "[regression]\nmax_epsilon_increase = 0.0\n")
    code, found = rules(call, run_copy)
    assert code == 3
    assert "--baseline" in found["regression.baseline"]["why"]
    written = call("baseline", "write", run_copy)
    assert written.code == 0
    assert "the run of this baseline is INCONCLUSIVE" in written.err
    for own in ("baseline.json", run_copy):
        result = call("gate", run_copy, "--baseline", own)
        assert result.code == 2
        assert "an earlier run" in result.err
    assert call("gate", run_copy, "--set", "claim.max_epsilon=11").code == 3


def test_less_noise_than_the_baseline_fails_with_its_cause(
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
    assert "with this change alone: upper bound on epsilon" in told.out


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
    result = call("gate", run_copy)
    assert (result.code, result.out.splitlines()[0]) == (0, "PASS")
    written = Path("dpaudit.toml").read_text()
    for section in ("[claim]", "[audit]", "# [regression]"):
        assert section in written
    assert call("init", run_copy).code == 2
    assert Path("dpaudit.toml").read_text() == written


@pytest.mark.parametrize("command", ["audit", "attack"])
def test_confidence_below_that_of_the_policy_is_named_before_the_gate(
    call: Call, run_copy: Path, command: str
) -> None:
    measured = (command, run_copy, *(("--attack", "loss") if command == "attack" else ()))
    policy("[claim]\nmax_epsilon = 10.0\ndelta = 1e-5\n[audit]\nconfidence = 0.99\n")
    warned = call(*measured).err
    assert "the policy (dpaudit.toml:5) demands a confidence of 0.99" in warned
    assert "repeat with --confidence 0.99" in warned
    assert "confidence" not in call(*measured, "--confidence", "0.99").err


def test_confidence_is_not_named_without_a_policy_of_audits(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for text in ("[claim]\nmax_epsilon = 10.0\ndelta = 1e-5\n", "[audit]\nconfidence = 9.0\n"):
        warn_of_low_confidence(0.5)
        policy(text)
    warn_of_low_confidence(0.5)
    assert capsys.readouterr().err == ""


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


def test_plan_is_evaluated_against_the_policy_before_training(call: Call, small_data: Path) -> None:
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
    assert "the lower bound on epsilon is" in found["audit.lower_bound"]["why"]
    code, _ = rules(call, "--scores", scores("blind.csv", 0.0), *arguments)
    assert code == 0


def test_too_few_scores_to_contradict_a_claim_never_pass(call: Call) -> None:
    few = scores("few.csv", 0.0, 40)
    code, found = rules(call, "--scores", few, "--claim-epsilon", "4")
    assert code == 3
    assert "even if every guess were right" in found["audit.lower_bound"]["why"]


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
    assert outcomes["audit.lower_bound"] == "PASS"
    assert outcomes["audit.max_tpr_at_fpr.0.1"] == "PASS"


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
    said = [line for line in result.err.splitlines() if "no policy found" not in line]
    assert len(said) == 1


@pytest.mark.parametrize("option", ["--scores", "--audit", "--claim-epsilon"])
def test_a_run_has_measurements_of_its_own(call: Call, trained: Path, option: str) -> None:
    assert call("gate", trained, option, "1").code == 2


@pytest.mark.parametrize("content", ["", "score,member\n", "score,member\nnan,1\n0.3,0\n"])
def test_scores_that_say_nothing_never_pass(call: Call, content: str) -> None:
    Path("s.csv").write_text(content)
    assert call("gate", "--scores", "s.csv", "--claim-epsilon", "4").code in {2, 3}


def test_verdict_is_stored_in_the_history(call: Call, run_copy: Path, tmp_path: Path) -> None:
    policy(GOOD)
    runs = tmp_path / "runs"
    runs.mkdir()
    shutil.move(run_copy, runs / "a")
    assert call("gate", runs / "a", "--history", runs).code == 0
    assert "PASS" in call("history", runs).out


@pytest.mark.parametrize(
    "name", ["ledger.jsonl", "model.safetensors", "audit.json", "verdict.json", "config.toml"]
)
def test_no_output_replaces_a_file_of_a_run(call: Call, run_copy: Path, name: str) -> None:
    policy(GOOD)
    before = {path.name: path.read_bytes() for path in run_copy.iterdir() if path.is_file()}
    assert call("gate", run_copy, "-o", run_copy / name).code == 2
    assert call("compare", run_copy, run_copy, "-o", run_copy / name).code == 2
    after = {path.name: path.read_bytes() for path in run_copy.iterdir() if path.is_file()}
    assert {key: after[key] for key in before} == before


def test_no_output_replaces_the_policy_or_what_was_read(call: Call, run_copy: Path) -> None:
    written = policy(GOOD).read_text()
    assert call("baseline", "write", run_copy).code == 0
    of_another_run(Path("baseline.json"))
    baseline = Path("baseline.json").read_bytes()
    Path("link").symlink_to("baseline.json")
    for output in ("dpaudit.toml", "baseline.json", "link"):
        result = call("gate", run_copy, "--baseline", "baseline.json", "-o", output)
        assert result.code == 2
        assert "output must be another file" in result.err
    assert call("config", "show", "-o", "dpaudit.toml").code == 2
    assert Path("dpaudit.toml").read_text() == written
    assert Path("baseline.json").read_bytes() == baseline


def test_a_run_has_a_delta_of_its_own(call: Call, trained: Path) -> None:
    policy(GOOD)
    assert call("gate", trained, "--delta", "1e-12").code == 2


def test_what_the_environment_loosens_is_told(
    call: Call, run_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy(GOOD + "[audit]\n")
    monkeypatch.setenv("DPAUDIT_GATE_INCONCLUSIVE", "warn")
    result = call("gate", run_copy)
    assert result.code == 0
    assert "--inconclusive is warn by $DPAUDIT_GATE_INCONCLUSIVE" in result.err


def test_a_plan_is_checked_with_the_variables_that_training_would_read(
    call: Call, small_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy("[claim]\nmax_epsilon = 2.0\ndelta = 1e-5\n")
    Path("plan.toml").write_text(f"[data]\nsource = '{small_data}'\n[privacy]\nsteps = 30\n")
    monkeypatch.setenv("DPAUDIT_TRAIN_NOISE_MULTIPLIER", "6")
    assert call("config", "check", "plan.toml").code == 0
    monkeypatch.setenv("DPAUDIT_TRAIN_NOISE_MULTIPLIER", "0.5")
    assert call("config", "check", "plan.toml").code == 1


def test_scores_of_several_attacks_are_not_pooled(call: Call) -> None:
    one = scores("leaky.csv", 3.0).read_text().splitlines()[1:]
    two = scores("blind.csv", 0.0).read_text().splitlines()[1:]
    rows = [*(f"a,{row}" for row in one), *(f"b,{row}" for row in two)]
    Path("both.csv").write_text("attack,score,member\n" + "\n".join(rows) + "\n")
    for command in ("gate", "audit"):
        result = call(command, "--scores", "both.csv", "--claim-epsilon", "2")
        assert result.code == 2
        assert "with one attack only" in result.err


def test_scores_that_are_worse_than_chance_do_not_pass(call: Call) -> None:
    upside_down = scores("wrong.csv", -0.3)
    code, found = rules(call, "--scores", upside_down, "--claim-epsilon", "1")
    assert code == 3
    assert found["audit.lower_bound"]["outcome"] == "INCONCLUSIVE"


def test_an_audit_of_three_canaries_shows_nothing(call: Call, small_data: Path) -> None:
    policy(GOOD + "[audit]\ncount = ['certified', 'conditional']\n")
    plan = ("--noise-multiplier", "2", "--steps", "5", "--canaries", "3")
    assert call("train", "--data", small_data, *plan, "--out", "few").code == 0
    assert call("audit", "few").code == 0
    code, found = rules(call, "few")
    assert code == 3
    assert found["audit.lower_bound"]["outcome"] == "INCONCLUSIVE"


def test_draft_does_not_override_an_existing_policy(call: Call, run_copy: Path) -> None:
    policy("[tool.dpaudit.claim]\nmax_epsilon = 5.0\ndelta = 1e-5\n", "pyproject.toml")
    result = call("init", run_copy)
    assert result.code == 2
    assert "pyproject.toml" in result.err
    assert not Path("dpaudit.toml").exists()


def test_a_verdict_is_stale_once_something_else_was_measured(
    call: Call, run_copy: Path, tmp_path: Path
) -> None:
    policy(GOOD)
    assert call("gate", run_copy).code == 0
    assert call("report", run_copy).code == 0
    assert call("audit", run_copy).code == 0
    result = call("report", run_copy)
    assert result.code == 4
    assert "older than the newest measurement" in result.err
    assert call("gate", run_copy).code == 0
    assert call("report", run_copy).code == 0


@pytest.mark.parametrize(
    "text",
    ["[tool]\ndpaudit = 3\n", "tool = 3\n", "[tool.dpaudit]\nclaim = 3\n", "[tool.dpaudit]\n"],
)
def test_policy_that_is_no_table_is_a_usage_error(call: Call, trained: Path, text: str) -> None:
    policy(text, "pyproject.toml")
    assert call("gate", trained, "--set", "claim.max_epsilon=3").code == 2
    assert call("gate", trained).code == 2


def test_broken_link_is_an_error(call: Call, run_copy: Path) -> None:
    policy(GOOD, "elsewhere.toml")
    policy("[tool.dpaudit.claim]\nmax_epsilon = 99.0\ndelta = 1e-5\n", "pyproject.toml")
    Path("dpaudit.toml").symlink_to("nowhere.toml")
    assert call("gate", run_copy).code == 2
    (run_copy / "attack.json").symlink_to("nowhere.json")
    assert call("gate", run_copy, "--policy", "elsewhere.toml").code == 4


def test_a_draft_with_a_baseline_demands_that_later_runs_are_no_worse(
    call: Call, run_copy: Path
) -> None:
    assert call("init", run_copy, "--baseline", "b.json").out == "wrote dpaudit.toml and b.json\n"
    assert call("gate", run_copy, "--baseline", "b.json").code == 2  # it is of this very run
    assert call("gate", run_copy).code == 3
    assert "\n[regression]\n" in Path("dpaudit.toml").read_text()


def train_small(call: Call, data: Path, name: str, *more: object) -> Path:
    plan = ("--sampling-rate", "0.1", "--steps", "5", "--noise-multiplier", "2")
    assert call("train", "--data", data, *plan, *more, "--out", name).code == 0
    return Path(name)


def test_compare_names_data_and_model(call: Call, small_data: Path) -> None:
    same = Path("same.npz")
    shutil.copy(small_data, same)
    with np.load(small_data) as table:
        np.savez("other.npz", x=np.hstack([table["x"], table["x"]]), y=table["y"])
    first = train_small(call, small_data, "first", "--model", "linear")
    runs = {
        "model": train_small(call, small_data, "second", "--model", "mlp"),
        "copy": train_small(call, same, "third", "--model", "linear"),
        "wider": train_small(call, Path("other.npz"), "fourth", "--model", "linear"),
    }
    causes = {}
    for name, run in runs.items():
        told = json.loads(call("compare", first, run, "--format", "json").out)
        found = {one["difference"]["cause"]: one["difference"] for one in told["costs"]}
        causes[name] = found
        assert {one["effect"] for one in found.values()} == {"leaves epsilon as it is"}
    assert {"model (name)", "model (architecture)", "model (tensors)"} <= set(causes["model"])
    assert "data (source)" not in causes["model"]
    assert causes["copy"]["data (content)"]["after"] == "another file of the same bytes"
    assert "model (architecture)" not in causes["copy"]
    assert causes["wider"]["data (content)"]["after"] == "other bytes"
    columns = causes["wider"]["data (columns)"]
    assert (columns["before"][:2], columns["after"][:2]) == ("6 ", "12")


def test_a_baseline_holds_no_digest_and_no_count_of_the_records(
    call: Call, small_data: Path
) -> None:
    run = train_small(call, small_data, "first", "--model", "linear")
    assert call("baseline", "write", run).code == 0
    figures = json.loads(Path("baseline.json").read_text())
    assert figures["data"]["source"] == str(small_data)
    assert hashlib.sha256(small_data.read_bytes()).hexdigest()[:16] not in json.dumps(figures)
    assert "400" not in json.dumps(figures["data"])
    assert figures["model"]["tensors"] == "2"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        (
            "rates",
            [{"attack": "a", "fpr": 2.0, "tpr": {"lower": 0, "upper": 1}, "confidence": 0.9}],
        ),
        (
            "rates",
            [{"attack": "a", "fpr": 0.1, "tpr": {"lower": 0, "upper": 2}, "confidence": 0.9}],
        ),
        ("clip_norm", -1.0),
        ("heldout_accuracy", 1.5),
    ],
)
def test_a_baseline_of_impossible_figures_is_broken(
    call: Call, run_copy: Path, key: str, value: object
) -> None:
    policy(GOOD)
    assert call("baseline", "write", run_copy).code == 0
    figures = json.loads(Path("baseline.json").read_text())
    figures[key] = value
    figures["claim"]["ledger_head"] = "b" * 64
    Path("baseline.json").write_text(json.dumps(figures))
    assert call("gate", run_copy, "--baseline", "baseline.json").code == 4


def test_a_key_that_comes_twice_breaks_a_baseline(call: Call, run_copy: Path) -> None:
    policy(GOOD)
    assert call("baseline", "write", run_copy).code == 0
    of_another_run(Path("baseline.json"))
    text = Path("baseline.json").read_text()
    Path("baseline.json").write_text('{"clip_norm": 1.0, ' + text[1:])
    result = call("gate", run_copy, "--baseline", "baseline.json")
    assert (result.code, "twice" in result.err) == (4, True)
