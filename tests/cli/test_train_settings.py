"""What `dpaudit train` is asked for: defaults, a preset, a file, then the command line."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from calling import Call
from safetensors.torch import load_file

from dpaudit.runs.directory import RunDirectory
from dpaudit.runs.file_io import read_json
from dpaudit.trainer.noise import gradient_noise
from dpaudit.trainer.noise.kernels import NUMPY_KERNELS
from dpaudit.vocabulary.claim import Claim
from dpaudit.vocabulary.ledger import NoiseKind
from dpaudit.vocabulary.settings import HYPERPARAMETER_TUNING, PRESETS, RunConfig, preset_for
from dpaudit.workflow.account import rate_from_sizes

QUICK = "[privacy]\nnoise_multiplier = 2.0\nsteps = 2\n"


@pytest.fixture
def small_images(tmp_path: Path) -> Path:
    """Records as a preset expects them, but few and small: 60 images of 8 x 8."""
    rng = np.random.default_rng(0)
    path = tmp_path / "images.npz"
    np.savez(path, x=rng.integers(0, 256, (60, 8, 8), dtype=np.uint8), y=np.arange(60) % 3)
    return path


def settings_of(out: Path) -> RunConfig:
    return RunDirectory(out).read_config()


# The kind of noise.


@pytest.mark.parametrize("compiled", [True, False])
def test_the_settings_of_a_run_say_which_noise_auto_was(
    call: Call, small_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compiled: bool
) -> None:
    chosen = replace(NUMPY_KERNELS, compiled=compiled)
    monkeypatch.setattr(gradient_noise, "kernels", lambda: chosen)
    options = ("--data", small_data, "--noise-multiplier", "2", "--steps", "2")
    done = call("train", *options, "--out", tmp_path / "run")
    kind = "grid" if compiled else "normal"
    assert f"secure randomness, {kind} noise, 3 releases" in done.out
    assert settings_of(tmp_path / "run").privacy.noise == kind
    run = RunDirectory(tmp_path / "run")
    assert run.read_ledger().header.noise is NoiseKind(kind)
    assert read_json(run.claim, Claim).noise is NoiseKind(kind)
    words = {"grid": "exactly rounded normals on a grid", "normal": "normals in float32"}[kind]
    assert words in call("run", "show", tmp_path / "run").out


# A file.


def test_configuration_file_equals_command_line_options(
    call: Call, small_data: Path, tmp_path: Path
) -> None:
    options = ("--data", small_data, "--noise-multiplier", "2", "--steps", "3", "--seed", "1")
    options = (*options, "--clip-norm", "0.2", "--model", "mlp", "--canaries", "40")
    assert call("train", *options, "--out", tmp_path / "by-options").code == 0
    file = tmp_path / "asked.toml"
    file.write_text(
        f"[data]\nsource = '{small_data}'\n"
        "[privacy]\nnoise_multiplier = 2\nsteps = 3\nseed = 1\nclip_norm = 0.2\n"
        "[model]\nmodel = 'mlp'\n[canaries]\ngradient = 40\n"
    )
    assert call("train", file, "--out", tmp_path / "by-file").code == 0
    one, other = tmp_path / "by-options", tmp_path / "by-file"
    assert settings_of(one) == settings_of(other)
    weights = [load_file(run / "model.safetensors") for run in (one, other)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_the_config_of_a_run_trains_such_a_run_again(
    call: Call, trained: Path, tmp_path: Path
) -> None:
    again = tmp_path / "again"
    assert call("train", trained / "config.toml", "--out", again).code == 0
    assert settings_of(again) == settings_of(trained)


def test_command_line_overrides_the_file(call: Call, small_data: Path, tmp_path: Path) -> None:
    file = tmp_path / "asked.toml"
    file.write_text(f"[data]\nsource = '{small_data}'\n{QUICK}clip_norm = 0.2\n")
    out = tmp_path / "out"
    assert call("train", file, "--clip-norm", "0.3", "--optimizer", "adam", "--out", out).code == 0
    config = settings_of(out)
    assert (config.privacy.clip_norm, config.privacy.steps) == (0.3, 2)
    assert config.model.optimizer == "adam"


def test_records_are_found_beside_the_file_wherever_the_command_is_called(
    call: Call, small_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "records.npz").write_bytes(small_data.read_bytes())
    file = tmp_path / "project" / "asked.toml"
    file.write_text(f"[data]\nsource = 'records.npz'\n{QUICK}")
    monkeypatch.chdir(tmp_path)
    assert call("train", file).code == 0
    found = settings_of(tmp_path / "runs" / "records").data.source
    assert found == str((tmp_path / "project" / "records.npz").resolve())


def test_a_target_epsilon_and_public_sizes_stand_for_noise_and_rate(
    call: Call, small_data: Path, tmp_path: Path
) -> None:
    file, out = tmp_path / "asked.toml", tmp_path / "out"
    file.write_text(
        f"[data]\nsource = '{small_data}'\n[privacy]\ntarget_epsilon = 2\ndelta = 1e-5\n"
        "dataset_size = 320\nbatch_size = 64\nepochs = 1.5\n"
    )
    assert call("train", file, "--out", out).code == 0
    privacy = settings_of(out).privacy
    assert (privacy.sampling_rate, privacy.steps, privacy.expected_batch_size) == (0.2, 8, 64.0)
    assert 1.9 < json.loads((out / "claim.json").read_text())["epsilon"]["upper"] <= 2.0


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("[privacy]\nepsilon = 3\n", "epsilon"),
        ("[trainer]\nsteps = 3\n", "trainer"),
        ("[model]\nlearning_rates = 1.0\n", "learning_rates"),
        ("[data]\npath = 'x'\n", "path"),
        ("[privacy]\nsteps = 2.5\n", "steps"),
        ("[privacy]\nclip_norm = 'much'\n", "clip_norm"),
        ("privacy = 3\n", "privacy"),
        ("[privacy\n", "asked.toml"),
        ("schema_version = '99.0'\n", "99.0"),
    ],
)
def test_what_a_file_may_not_hold_is_named_with_the_file_in_one_line(
    call: Call, tmp_path: Path, content: str, named: str
) -> None:
    file = tmp_path / "asked.toml"
    file.write_text(content)
    result = call("train", file, "--out", tmp_path / "out")
    assert result.code == 2
    assert named in result.err
    assert "asked.toml" in result.err
    assert result.err.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", [b"\xff\xfe", b"[a]\n" * 2, b"a = " + b"[" * 5000])
def test_what_is_no_toml_is_refused_in_one_line(call: Call, tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "asked.toml"
    file.write_bytes(content)
    result = call("train", file, "--out", tmp_path / "out")
    assert (result.code, result.err.count("\n")) == (2, 1)


def test_a_file_that_is_not_there_is_a_usage_error(call: Call, tmp_path: Path) -> None:
    result = call("train", tmp_path / "none.toml")
    assert result.code == 2
    assert "none.toml" in result.err


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("noise_multiplier = 2\ntarget_epsilon = 3\n", "noise_multiplier"),
        ("noise_multiplier = 2\ndataset_size = 9\nbatch_size = 3\nepochs = 1\nsteps = 9", "steps"),
        ("noise_multiplier = 2\ndataset_size = 9\nepochs = 1\n", "batch_size"),
        ("steps = 2\n", "target_epsilon"),
        ("noise_multiplier = -1\n", "noise_multiplier"),
        ("target_epsilon = nan\n", "target_epsilon"),
    ],
)
def test_file_with_duplicate_or_missing_keys_is_refused(
    call: Call, small_data: Path, tmp_path: Path, content: str, named: str
) -> None:
    file = tmp_path / "asked.toml"
    file.write_text(f"[data]\nsource = '{small_data}'\n[privacy]\n{content}")
    result = call("train", file, "--out", tmp_path / "out")
    assert result.code == 2
    assert named in result.err
    assert result.err.count("\n") == 1


def test_a_later_way_of_saying_the_noise_drops_the_earlier(
    call: Call, small_data: Path, tmp_path: Path
) -> None:
    file, out = tmp_path / "asked.toml", tmp_path / "out"
    file.write_text(f"[data]\nsource = '{small_data}'\n[privacy]\ntarget_epsilon = 1\nsteps = 2\n")
    assert call("train", file, "--noise-multiplier", "3", "--out", out).code == 0
    assert settings_of(out).privacy.noise_multiplier == 3.0


def test_resume_takes_no_file(call: Call, trained: Path) -> None:
    result = call("train", trained / "config.toml", "--resume", "--out", trained)
    assert result.code == 2
    assert "CONFIG" in result.err


# A preset.


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_sets_everything_but_the_records(
    call: Call, small_images: Path, tmp_path: Path, name: str
) -> None:
    preset, out = PRESETS[name], tmp_path / "out"
    plan = ("--preset", name, "--data", small_images, "--epochs", "0.1", "--model", "linear")
    assert call("train", *plan, "--out", out).code == 0
    config = settings_of(out)
    assert config.preset == name
    assert config.privacy.clip_norm == preset.clip_norm
    assert config.privacy.delta == preset.delta
    assert config.privacy.sampling_rate == rate_from_sizes(preset.dataset_size, preset.batch_size)
    assert config.privacy.expected_batch_size == preset.batch_size
    assert config.model == msgspec.structs.replace(preset.model, model="linear")
    claim = json.loads((out / "claim.json").read_text())
    assert 0.96 * preset.target_epsilon < claim["epsilon"]["upper"] <= preset.target_epsilon
    assert claim["unaccounted"] == [HYPERPARAMETER_TUNING]
    assert f"preset {name}" in claim["assumed_public"]


def test_a_file_may_name_the_preset_and_stands_above_it(
    call: Call, small_images: Path, tmp_path: Path
) -> None:
    file, out = tmp_path / "asked.toml", tmp_path / "out"
    file.write_text(
        "preset = 'mnist-scattering'\n[data]\nsource = 'images.npz'\n"
        "[privacy]\ntarget_epsilon = 8\nepochs = 0.1\nleaves_out = ['an earlier run']\n"
    )
    assert call("train", file, "--batch-size", "6000", "--out", out).code == 0
    config = settings_of(out)
    assert (config.preset, config.model.model) == ("mnist-scattering", "scattering")
    assert (config.privacy.sampling_rate, config.privacy.steps) == (0.1, 1)
    assert config.privacy.unaccounted == (HYPERPARAMETER_TUNING, "an earlier run")
    assert 7 < json.loads((out / "claim.json").read_text())["epsilon"]["upper"] <= 8


def test_the_preset_on_the_command_line_stands_in_for_the_files(
    call: Call, small_images: Path, tmp_path: Path
) -> None:
    file, out = tmp_path / "asked.toml", tmp_path / "out"
    file.write_text("preset = 'mnist-scattering'\n[data]\nsource = 'images.npz'\n")
    more = ("--preset", "fashion-mnist-scattering", "--epochs", "0.1")
    assert call("train", file, *more, "--out", out).code == 0
    assert settings_of(out).preset == "fashion-mnist-scattering"
    assert settings_of(out).model.learning_rate == 16.0


def test_steps_in_place_of_epochs_keep_the_presets_rate_and_normaliser(
    call: Call, small_images: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    plan = ("--preset", "mnist-scattering", "--data", small_images, "--steps", "1")
    assert call("train", *plan, "--out", out).code == 0
    preset, privacy = PRESETS["mnist-scattering"], settings_of(out).privacy
    assert privacy.sampling_rate == rate_from_sizes(preset.dataset_size, preset.batch_size)
    assert (privacy.steps, privacy.expected_batch_size) == (1, preset.batch_size)


@pytest.mark.parametrize("more", [(), ("--dry-run",)])
def test_a_plain_run_names_the_preset_for_its_records(
    call: Call, small_images: Path, tmp_path: Path, more: tuple[str, ...]
) -> None:
    data = tmp_path / "mnist.npz"
    shutil.copy(small_images, data)
    plan = ("--data", data, "--noise-multiplier", "2", "--steps", "1", "--out", tmp_path / "out")
    named = call("train", *plan, *more)
    assert named.code == 0
    assert "--preset mnist-scattering is for records of this name" in named.err
    assert PRESETS["mnist-scattering"].figure in named.err
    for chosen in (("--model", "linear"), ("--preset", "mnist-cnn")):
        silent = call("train", *plan, "--dry-run", *chosen, "--out", tmp_path / "other")
        assert "hint" not in silent.err


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("x/fashion_mnist.npz", "fashion-mnist-scattering"),
        ("MNIST/", "mnist-scattering"),
        ("cifar10.npz", "cifar10-scattering"),
        ("adult.data.csv.gz", "adult-mlp"),
        ("c:\\data\\tinyshakespeare.txt.gz", "shakespeare-gpt"),
        ("my_mnist.npz", None),
        ("digits", None),
    ],
)
def test_a_preset_is_found_by_the_name_of_the_file(source: str, name: str | None) -> None:
    assert preset_for(source) == name


def test_views_of_images_are_drawn_anew_in_each_step_and_alike_when_it_is_run_again(
    call: Call, small_images: Path, tmp_path: Path
) -> None:
    weights = []
    for name, more in (("one", ("--views", "2")), ("same", ("--views", "2")), ("none", ())):
        plan = ("--data", small_images, "--model", "linear", "--noise-multiplier", "1", "--steps",
                "2", "--expected-batch-size", "6", "--seed", "3")  # fmt: skip
        done = call("train", *plan, *more, "--out", tmp_path / name)
        assert done.code == 0, done.err
        weights.append((tmp_path / name / "model.safetensors").read_bytes()[-200:])
    assert weights[0] == weights[1] != weights[2]
    fixed = call("train", "--data", small_images, "--model", "scattering", "--views", "2",
                 "--noise-multiplier", "1", "--out", tmp_path / "fixed")  # fmt: skip
    assert fixed.code == 2
    assert "views" in fixed.err


def test_a_preset_needs_records_and_says_which(call: Call, tmp_path: Path) -> None:
    result = call("train", "--preset", "mnist-cnn", "--out", tmp_path / "out")
    assert result.code == 2
    assert "MNIST" in result.err


@pytest.mark.parametrize("by_file", [True, False])
def test_an_unknown_preset_is_refused_with_those_there_are(
    call: Call, tmp_path: Path, by_file: bool
) -> None:
    file = tmp_path / "asked.toml"
    file.write_text("preset = 'imagenet'\n")
    result = call("train", *([file] if by_file else ["--preset", "imagenet"]))
    assert result.code == 2
    assert all(name in result.err for name in PRESETS)


def test_presets_are_listed_with_their_source_and_what_their_claim_leaves_out(call: Call) -> None:
    result = call("train", "--list-presets")
    assert result.code == 0
    words = " ".join(result.out.split())
    for name, preset in PRESETS.items():
        assert f"{name} for {preset.data}" in words
        assert f"learning rate {preset.model.learning_rate:g}" in words
        assert preset.source in words
        assert f"measured: {preset.figure}" in words
    assert HYPERPARAMETER_TUNING in words
    assert "arXiv" in words


def test_a_claim_from_a_preset_does_not_pass_where_nothing_may_be_left_out(
    call: Call, small_images: Path, tmp_path: Path
) -> None:
    out, policy = tmp_path / "out", tmp_path / "policy.toml"
    plan = ("--preset", "mnist-scattering", "--data", small_images, "--steps", "1")
    assert call("train", *plan, "--out", out).code == 0
    policy.write_text("[claim]\nmax_epsilon = 3.0\ndelta = 1e-5\n")
    assert call("gate", out, "--policy", policy).code == 1
    policy.write_text(f"{policy.read_text()}allow_unaccounted = ['{HYPERPARAMETER_TUNING}']\n")
    assert call("gate", out, "--policy", policy).code == 0


def test_a_run_on_features_is_audited_like_any_other(
    call: Call, small_images: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    plan = ("--preset", "mnist-scattering", "--data", small_images, "--steps", "30")
    assert call("train", *plan, "--canaries", "100", "--out", out).code == 0
    result = call("audit", out)
    assert result.code == 0, result.err
    assert "input canaries" in result.out


def test_listing_presets_loads_nothing_heavy() -> None:
    code = (
        "import sys; sys.argv = ['dpaudit', 'train', '--list-presets']\n"
        "try:\n    from dpaudit.cli.entry_point import main; main()\n"
        "finally:\n    print([m for m in ('torch', 'scipy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_the_module_is_the_command() -> None:
    command = [sys.executable, "-m", "dpaudit", "train", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("Usage: dpaudit train [OPTIONS] [CONFIG]")
    assert "--preset" in done.stdout


# What the presets are worth: one secure run each, at the settings as they stand.

WORTH: dict[str, tuple[str, float]] = {
    # the file of records, and an accuracy a little below the least of five measured runs
    "fashion-mnist-scattering": ("fashion_mnist.npz", 89.2),
    "mnist-scattering": ("mnist.npz", 98.4),
    "mnist-cnn": ("mnist.npz", 97.7),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", WORTH)
def test_a_preset_reaches_what_it_promises(
    call: Call, data_folder: Path, tmp_path: Path, name: str
) -> None:
    file, least = WORTH[name]
    if not (data_folder / file).is_file():
        pytest.skip(f"no {file} in {data_folder}")
    out = tmp_path / "out"
    result = call("train", "--preset", name, "--data", data_folder / file, "--out", out)
    assert result.code == 0
    found = re.search(r"held-out accuracy ([\d.]+)%", result.out)
    assert found is not None
    assert float(found[1]) >= least
    claim: dict[str, Any] = json.loads((out / "claim.json").read_text())
    assert claim["epsilon"]["upper"] <= 3.0
    assert tomllib.loads((out / "config.toml").read_text())["preset"] == name
