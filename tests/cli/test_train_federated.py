"""``dpaudit train --federated``: plans without torch, and small runs on digits to their end."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from calling import Call

from dpaudit.cli import federated
from dpaudit.vocabulary.errors import ExitCode
from dpaudit.vocabulary.federation import STRATEGIES

FILE = "[federation]\nparticipants = 3\nrounds = 2\n[local]\nlocal_steps = 3\n"
POLICY = '[claim]\nmax_epsilon = {}\ndelta = 1e-5\nunit = "{}"\nrequire_secure_randomness = false\n'
NOISE = {
    "fedavg": ("--noise-multiplier", "1"),
    "dp-fedavg": ("--noise-multiplier", "2", "--participation-rate", "0.5"),
    "dssgd": ("--selection", "threshold", "--epsilon-per-epoch", "50"),
    "dssgd-corrected": ("--noise-multiplier", "1"),
}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with settings."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "settings.toml").write_text(FILE)
    return tmp_path


def settings(text: str) -> dict[str, tuple[str, str]]:
    """Return value and origin by setting."""
    rows = (line.split(maxsplit=2) for line in text.split("\n\n", maxsplit=1)[0].splitlines()[1:])
    return {name: (value, origin) for name, value, origin in rows}


def plan(call: Call, *more: object) -> str:
    result = call("train", "--federated", "fedavg", "settings.toml", "--dry-run", *more)
    assert result.code == ExitCode.PASS, result.err
    return result.out


def test_each_setting_of_a_plan_has_its_origin(
    call: Call, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setenv("DPAUDIT_TRAIN_ROUNDS", "4")
    out = plan(call, "--target-epsilon", "2", "--local-steps", "7", "--sampling-rate", "0.05")
    found = settings(out)
    assert found["federation.strategy"] == ("fedavg", "command line")
    assert found["federation.participants"] == ("3", "settings.toml")
    assert found["federation.rounds"] == ("4", "variable")
    assert found["local.local_steps"] == ("7", "command line")
    assert found["local.sampling_rate"] == ("0.05", "command line")
    assert found["federation.partition"] == ("iid", "default")
    assert found["privacy.noise_multiplier"][1] == "calibrated to target_epsilon 2, command line"
    assert "for one record if a participant joins every round" in out
    assert "the run would be runs/digits-fedavg" in out
    assert not (folder / "runs").exists()


def test_plan_is_compared_with_the_policy(call: Call, folder: Path) -> None:
    arguments = ("train", "settings.toml", "--dry-run", "--noise-multiplier", "2")
    for unit, strategy, code in (
        ("record", "fedavg", ExitCode.PASS),
        ("participant", "fedavg", ExitCode.FAIL),
        ("participant", "dp-fedavg", ExitCode.PASS),
    ):
        (folder / "dpaudit.toml").write_text(POLICY.format(9.0, unit))
        assert call(*arguments, "--federated", strategy).code == code


def test_policy_check_reads_settings_of_a_federation(call: Call, folder: Path) -> None:
    (folder / "policy.toml").write_text(POLICY.format(1.0, "record"))
    path = folder / "settings.toml"
    path.write_text(
        FILE.replace("[local]", 'strategy = "fedavg"\n[local]')
        + "[privacy]\nnoise_multiplier = 1.0\n"
    )
    result = call("config", "check", path, "--policy", "policy.toml")
    assert result.code == ExitCode.FAIL
    assert "settings.toml: epsilon is at most" in result.out


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("--federated", "fedavg", "--steps", "3"), "--steps"),
        (("--federated", "fedavg", "--canaries", "3"), "--canaries"),
        (("--federated", "fedavg", "--preset", "mnist-cnn"), "--preset"),
        (("--rounds", "3"), "--federated STRATEGY"),
        (("--federated", "fedavg"), "noise_multiplier"),
        (("settings.toml",), "--federated STRATEGY"),
        (("--federated", "nothing"), "nothing"),
        (("--federated", "dssgd", "--target-epsilon", "1"), "target_epsilon"),
        (("--resume", "--federated", "fedavg"), "--federated"),
    ],
)
def test_options_of_another_kind_of_run_are_usage_errors(
    call: Call, arguments: tuple[str, ...], word: str
) -> None:
    result = call("train", *arguments)
    assert result.code == ExitCode.USAGE
    assert word in result.err


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_strategy_trains_is_accounted_gated_and_reported(
    call: Call, folder: Path, strategy: str
) -> None:
    run = folder / "run"
    result = call(
        *("train", "--federated", strategy, "settings.toml", "--out", run, "--seed", "1"),
        *NOISE[strategy],
    )
    assert result.code == ExitCode.PASS, result.err
    claim = json.loads((run / "claim.json").read_text())
    assert claim["federation"]["strategy"] == strategy
    assert "held-out accuracy" in result.out
    assert "largest" in result.out
    epsilon = json.loads(call("epsilon", run, "--accountant", "pld", "--format", "json").out)
    assert epsilon["epsilon"] == claim["epsilon"]
    assert {"000", "001", "002"} <= set(epsilon["participants"])
    allowed = json.dumps(claim["unaccounted"])
    (folder / "policy.toml").write_text(
        POLICY.format(1e4, claim["unit"]) + f"allow_unaccounted = {allowed}\n"
    )
    assert call("gate", run, "--policy", "policy.toml").code == ExitCode.PASS
    assert call("report", run).code == ExitCode.PASS
    assert call("watch", run, "--once").code == ExitCode.PASS
    assert call("train", "--resume", "--out", run).code == ExitCode.USAGE  # it is finished


def test_published_figure_of_dssgd_stands_beside_the_composed_one(call: Call, folder: Path) -> None:
    run = folder / "run"
    call("train", "--federated", "dssgd", "settings.toml", "--out", run, *NOISE["dssgd"])
    text = call("epsilon", run, "--accountant", "pld").out
    assert "per parameter and epoch (50 per epoch of at most 65 entries)" in text
    assert "not accounted for: dssgd:" in text
    assert call("report", run).code == ExitCode.PASS
    assert "it is no bound for the run" in (run / "report.html").read_text()


def test_interrupted_federation_is_resumed_by_its_own_settings(
    call: Call, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, real = folder / "run", federated.RoundEvents.__call__

    def interrupted(self: object, result: object, federation: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(federated.RoundEvents, "__call__", interrupted)
    arguments = ("train", "--federated", "fedavg", "settings.toml", "--noise-multiplier", "1")
    result = call(*arguments, "--checkpoint-every", "3", "--out", run)
    assert result.code == ExitCode.INTERRUPTED
    assert not (run / "claim.json").exists()
    assert "rounds              1 of 2" in call("watch", run, "--once").out
    monkeypatch.setattr(federated.RoundEvents, "__call__", real)
    assert call(*arguments, "--out", run).code != ExitCode.PASS  # it holds releases
    result = call("train", "--resume", "--out", run)
    assert result.code == ExitCode.PASS, result.err
    claim = json.loads((run / "claim.json").read_text())
    assert claim["releases"] == 3 * 2 * 3


def test_federation_is_overwritten_on_request_alone(call: Call, folder: Path) -> None:
    run = folder / "run"
    arguments = (
        "train",
        "--federated",
        "dp-fedavg",
        "settings.toml",
        "--out",
        run,
        *NOISE["dp-fedavg"],
    )
    assert call(*arguments).code == ExitCode.PASS
    before = (run / "ledger.jsonl").read_bytes()
    assert call(*arguments).code == ExitCode.USAGE
    wrong = call(
        *arguments, "--overwrite", "--partition", "shards", "--shards-per-participant", "9999"
    )
    assert wrong.code == ExitCode.USAGE
    assert (run / "ledger.jsonl").read_bytes() == before
    assert call(*arguments, "--overwrite").code == ExitCode.PASS
    assert (run / "ledger.jsonl").read_bytes() != before


def test_budget_of_participants_ends_the_run_and_is_reported(call: Call, folder: Path) -> None:
    run = folder / "run"
    arguments = ("--noise-multiplier", "1", "--max-epsilon", "2.5", "--rounds", "4")
    result = call("train", "--federated", "fedavg", "settings.toml", "--out", run, *arguments)
    assert result.code == ExitCode.PASS, result.err
    assert "no budget is left for 0, 1, 2" in result.err
    claim = json.loads((run / "claim.json").read_text())
    assert claim["epsilon"]["upper"] <= 2.5


def test_federation_without_noise_has_no_claim(call: Call, folder: Path) -> None:
    run = folder / "run"
    arguments = ("train", "--federated", "fedavg", "settings.toml", "--noise-multiplier", "0")
    result = call(*arguments, "--out", run)
    assert result.code == ExitCode.PASS, result.err
    assert "no claim: the run adds no noise" in result.out
    assert not (run / "claim.json").exists()
    assert call("finish", run).code == ExitCode.USAGE
    assert "there is nothing to resume" in call("train", "--resume", "--out", run).err
    for command in ("epsilon", "init", "report"):
        result = call(command, run)
        assert result.code != ExitCode.PASS
        assert "has ended and added no noise" in result.err
    shown = call("run", "show", run).out
    assert "has ended without any noise" in shown
    assert "ended" in call("run", "list", run).out.split()
    assert "rounds  2 of 2" in shown
    status = call("watch", run, "--once").out
    assert "participants" in status
    assert "rounds" in status


@pytest.mark.parametrize(
    ("strategy", "arguments"),
    [
        ("fedavg", ("--adaptive-clipping",)),
        ("fedavg", ("--epsilon-per-epoch", "1")),
        ("fedavg", ("--upload-fraction", "0.5")),
        ("dp-fedavg", ("--expected-batch-size", "20")),
        ("dp-fedavg", ("--selection", "threshold")),
        ("dp-fedavg", ("--target-quantile", "0.3")),
        ("dssgd", ("--clip-norm", "1")),
        ("dssgd", ("--server-learning-rate", "0.5")),
        ("dssgd-corrected", ("--threshold", "0.5")),
        ("fedavg", ("--dirichlet-alpha", "0.1")),
        ("fedavg", ("--shards-per-participant", "2")),
    ],
)
def test_setting_that_the_run_would_not_use_is_refused(
    call: Call, strategy: str, arguments: tuple[str, ...]
) -> None:
    noise = () if strategy == "dssgd" else ("--noise-multiplier", "1")
    result = call("train", "--federated", strategy, *noise, *arguments, "--dry-run")
    assert result.code == ExitCode.USAGE
    assert f"{arguments[0][2:].replace('-', '_')} must be left out" in result.err


def test_unused_setting_of_a_file_is_refused_unless_it_is_the_default(
    call: Call, folder: Path
) -> None:
    path = folder / "settings.toml"
    path.write_text(FILE + "[selective]\nupload_fraction = 0.1\n")
    assert "planned rounds" in plan(call, "--noise-multiplier", "1")
    path.write_text(FILE + "[selective]\nupload_fraction = 0.2\n")
    arguments = ("train", "--federated", "fedavg", path, "--noise-multiplier", "1", "--dry-run")
    assert "upload_fraction must be left out: fedavg" in call(*arguments).err


@pytest.mark.parametrize(
    ("strategy", "arguments", "words"),
    [
        ("fedavg", ("--noise-multiplier", "1", "--data", "none.npz"), "none.npz"),
        ("fedavg", ("--noise-multiplier", "1", "--average-decay", "0.9"), "average_decay"),
        ("dssgd-corrected", ("--noise-multiplier", "1", "--optimizer", "adam"), "sgd for dssgd"),
        ("dssgd", ("--noise-multiplier", "1"), "epsilon_per_epoch"),
        ("dssgd", ("--epsilon-per-epoch", "1"), "'threshold' where epsilon_per_epoch is given"),
        ("dssgd", ("--max-epsilon", "1"), "max_epsilon must be left out"),
        ("fedavg", ("--noise-multiplier", "0", "--max-epsilon", "1"), "max_epsilon must be left"),
        ("fedavg", ("--noise-multiplier", "1", "--max-epsilon", "0.001"), "epsilon of one round"),
        ("dssgd", ("--target-epsilon", "1"), "target_epsilon must be left out for dssgd"),
        (
            "dp-fedavg",
            ("--noise-multiplier", "2", "--adaptive-clipping", "--quantile-noise", "1"),
            "quantile_noise must be above half of noise_multiplier 2",
        ),
    ],
)
def test_plan_is_refused_as_its_run_would_be(
    call: Call,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    strategy: str,
    arguments: tuple[str, ...],
    words: str,
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    result = call("train", "--federated", strategy, *arguments, "--dry-run")
    assert result.code == ExitCode.USAGE
    assert words in result.err
    assert not (folder / "runs").exists()


def test_plan_refuses_participation_that_no_secure_round_survives(call: Call, folder: Path) -> None:
    path = folder / "settings.toml"
    privacy = "[privacy]\nnoise_multiplier = 1.0\nparticipation_rate = 0.5\n"
    path.write_text(FILE + privacy + "[secure_aggregation]\n")
    result = call("train", "--federated", "dp-fedavg", path, "--dry-run")
    assert result.code == ExitCode.USAGE
    assert "participation_rate must be at least 1: 1 of 3 participants" in result.err


def test_a_target_epsilon_sets_the_noise_of_a_secure_sum(call: Call, folder: Path) -> None:
    path = folder / "settings.toml"
    path.write_text(FILE + "[privacy]\ntarget_epsilon = 2.0\n[secure_aggregation]\n")
    result = call("train", "--federated", "dp-fedavg", path, "--dry-run")
    assert result.code == ExitCode.PASS
    assert "calibrated to target_epsilon 2" in result.out


def test_plan_of_the_published_strategy_names_its_noise(call: Call) -> None:
    arguments = ("train", "--federated", "dssgd", "--dry-run")
    assert "the run would add no noise" in call(*arguments).out
    out = call(*arguments, *NOISE["dssgd"]).out
    assert "published noise" in out
    assert "epsilon 50 per epoch; it is no bound for the run" in out
    assert "not known before the run" in out


def test_plan_refuses_a_modulus_that_updates_exceed(call: Call, folder: Path) -> None:
    path = folder / "settings.toml"
    path.write_text(FILE + "[secure_aggregation]\nmodulus_bits = 17\n")
    arguments = ("train", "--federated", "dp-fedavg", path, "--noise-multiplier", "1", "--dry-run")
    result = call(*arguments)
    assert result.code == ExitCode.USAGE
    assert "modulus_bits must be at least 19: 3 updates of 65536 levels" in result.err
    path.write_text(FILE + "[secure_aggregation]\nmodulus_bits = 19\n")
    assert call(*arguments).code == ExitCode.PASS


def test_policy_check_names_why_a_federation_has_no_plan(call: Call, folder: Path) -> None:
    (folder / "policy.toml").write_text(POLICY.format(1.0, "participant"))
    path = folder / "settings.toml"
    noise = "[privacy]\nnoise_multiplier = {}\n"
    for strategy, rest, words in (
        ("dp-fedavg", noise.format(1.0) + "[secure_aggregation]\n", "secure_aggregation must be"),
        ("dssgd", "", "strategy must be"),
        ("fedavg", noise.format(0.0), "noise_multiplier must be above 0"),
    ):
        path.write_text(FILE.replace("[local]", f'strategy = "{strategy}"\n[local]') + rest)
        result = call("config", "check", path, "--policy", "policy.toml")
        assert result.code == ExitCode.USAGE
        assert words in result.err
