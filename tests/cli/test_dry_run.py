"""``dpaudit train --dry-run``: settings with origins, epsilon and verdict; nothing is written."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from calling import Call

from dpaudit.vocabulary.errors import ExitCode

FILE = "[privacy]\ntarget_epsilon = 3.0\ndataset_size = 6000\nbatch_size = 256\nepochs = 4.0\n"
POLICY = "[claim]\nmax_epsilon = {}\ndelta = 1e-5\n"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory, and no torch."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "torch", None)
    (tmp_path / "settings.toml").write_text(FILE)
    return tmp_path


def settings(text: str) -> dict[str, tuple[str, str]]:
    """Return value and origin by setting."""
    rows = (line.split(maxsplit=2) for line in text.split("\n\n", maxsplit=1)[0].splitlines()[1:])
    return {name: (value, origin) for name, value, origin in rows}


def test_each_setting_has_its_origin(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DPAUDIT_TRAIN_MOMENTUM", "0.5")
    result = call("train", "settings.toml", "--clip-norm", "0.2", "--dry-run")
    assert result.code == ExitCode.PASS
    found = settings(result.out)
    sizes = "computed from dataset_size, batch_size, epochs, settings.toml"
    assert found["privacy.clip_norm"] == ("0.2", "command line")
    assert found["model.momentum"] == ("0.5", "variable")
    assert found["privacy.steps"] == ("94", sizes)
    assert found["privacy.expected_batch_size"] == ("256.0", sizes)
    origin = found["privacy.noise_multiplier"][1]
    assert origin == "calibrated to target_epsilon 3, settings.toml"
    assert found["model.optimizer"] == ("sgd", "default")


def test_a_preset_is_the_lowest_layer(call: Call) -> None:
    Path("x.npz").touch()
    arguments = ("train", "--preset", "mnist-cnn", "--data", "x.npz", "--steps", "4", "--dry-run")
    found = settings(call(*arguments).out)
    assert found["privacy.steps"] == ("4", "command line")
    sizes = "computed from dataset_size, batch_size, epochs, preset mnist-cnn"
    assert found["privacy.sampling_rate"][1] == sizes
    assert found["model.model"][1] == "preset mnist-cnn"
    assert found["data.source"][1] == "command line"


def test_uses_that_are_not_in_the_claim_add_up(call: Call) -> None:
    Path("x.npz").touch()
    arguments = ("train", "--preset", "mnist-cnn", "--data", "x.npz", "--unaccounted", "x-ray")
    out = call(*arguments, "--dry-run").out
    assert settings(out)["privacy.unaccounted"][1] == "preset mnist-cnn, command line"
    assert "not in the claim  hyperparameter-tuning, x-ray\n" in out


def test_epsilon_and_noise_are_those_of_the_plan(call: Call) -> None:
    plan = ("--sampling-rate", "0.1", "--steps", "50", "--noise-multiplier", "2")
    sized = ("--expected-batch-size", "100")
    result = call("train", *plan, *sized, "--dry-run")
    priced = call("epsilon", *plan, "--delta", "1e-5", "--accountant", "pld")
    upper = priced.out.split()[-1]
    assert f"upper bound {upper} at delta 1e-05" in result.out
    assert "planned steps     50\n" in result.out
    assert "noise multiplier  2.0\n" in result.out


@pytest.mark.parametrize(
    ("limit", "code", "outcome"), [(4.0, ExitCode.PASS, "PASS"), (2.0, ExitCode.FAIL, "FAIL")]
)
def test_the_policy_decides_the_exit_code(
    call: Call, folder: Path, limit: float, code: ExitCode, outcome: str
) -> None:
    (folder / "dpaudit.toml").write_text(POLICY.format(limit))
    result = call("train", "settings.toml", "--dry-run")
    assert result.code == code
    assert f"\n{outcome}  claim.max_epsilon" in result.out


def test_a_policy_without_a_claim_section_judges_no_plan(call: Call, folder: Path) -> None:
    (folder / "dpaudit.toml").write_text("[audit]\n")
    assert call("train", "settings.toml", "--dry-run").code == ExitCode.PASS


def test_nothing_is_written(call: Call, folder: Path) -> None:
    assert "runs/digits" in call("train", "settings.toml", "--dry-run").out
    assert [path.name for path in folder.iterdir()] == ["settings.toml"]


def test_what_would_fail_fails(call: Call, folder: Path) -> None:
    assert call("train", "--dry-run").code == ExitCode.USAGE  # neither noise nor target
    (folder / "runs" / "digits").mkdir(parents=True)
    (folder / "runs" / "digits" / "file").touch()
    result = call("train", "settings.toml", "--dry-run")
    assert result.code == ExitCode.USAGE
    assert "DPA302" in result.err
    assert call("train", "--resume", "--dry-run").code == ExitCode.USAGE


@pytest.mark.parametrize("path", ["absent.npz", "."])
def test_a_canary_file_that_does_not_exist_fails(call: Call, folder: Path, path: str) -> None:
    result = call("train", "settings.toml", "--canary-file", path, "--dry-run")
    assert result.code == ExitCode.USAGE
    assert "canary_file" in result.err
