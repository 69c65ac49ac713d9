"""The examples run as their first lines say."""

from __future__ import annotations

import json
import re
import runpy
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from places import ROOT
from ranks import on_ranks, torchrun

from dpaudit.runs.directory import open_run
from dpaudit.vocabulary.rounding import round_up

EPSILON = re.compile(r"epsilon at most ([0-9.]+)")


def by_torchrun(script: str, *options: str, seconds: int) -> str:
    done = torchrun(f"examples/{script}", *options, world=2, seconds=seconds)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def require_both_ways(printed: str, steps: int) -> None:
    plain, private = printed.splitlines()
    assert plain.startswith("plain")
    assert "no guarantee" in plain
    assert private.startswith("private")
    assert 7.9 < float(EPSILON.findall(private)[0]) <= 8.0
    assert private.endswith(f" {steps} steps")


@pytest.mark.needs("torch")
def test_the_data_parallel_example_trains_both_ways_on_two_ranks(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    sizes = {"train": 64, "test": 20}
    images = {
        f"x_{part}": generator.integers(0, 256, (n, 32, 32, 3), np.uint8)
        for part, n in sizes.items()
    }
    labels = {f"y_{part}": generator.integers(0, 10, n) for part, n in sizes.items()}
    np.savez(tmp_path / "images.npz", **images, **labels)
    data = ("--data", str(tmp_path / "images.npz"))
    options = (*data, "--epochs", "1", "--batch-size", "16")
    script = ROOT / "examples" / "cifar10_ddp.py"
    require_both_ways(on_ranks(script, *options, world=2, folder=tmp_path), 4)


@pytest.mark.slow
@pytest.mark.needs("torch")
def test_an_epoch_of_cifar10_on_two_ranks(data_folder: Path) -> None:
    data = ("--data", str(data_folder / "cifar10_jpeg_full.npz"))
    printed = by_torchrun("cifar10_ddp.py", *data, "--epochs", "1", seconds=3600)
    require_both_ways(printed, round(50_000 / 512))
    plain, private = (float(found) for found in re.findall(r"([0-9.]+)%", printed))
    assert plain > 20  # of ten classes; one epoch
    assert private > 15


# Adapters for other libraries.


ADAPTERS = {
    "accelerate_digits.py": ("accelerate", 3.0, "runs/digits-accelerate"),
    "hugging_face_trainer.py": ("transformers", 4.0, "runs/sums/private"),
    "lightning_digits.py": ("lightning", 3.0, "runs/digits-lightning/private"),
    "lora_adapters.py": ("peft", 4.0, "runs/lora/run"),
}


@pytest.mark.needs("torch")
@pytest.mark.parametrize("script", ADAPTERS)
def test_the_example_of_an_adapter_prints_its_epsilon(
    tmp_path: Path,
    script: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    library, target, folder = ADAPTERS[script]
    pytest.importorskip(library, reason=f"{library} is not installed")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [script])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the libraries
        runpy.run_path(str(ROOT / "examples" / script), run_name="__main__")
    printed = capsys.readouterr().out
    claim = json.loads(open_run(tmp_path / folder).claim.read_text())
    spent = claim["epsilon"]["upper"]
    assert EPSILON.findall(printed) == [round_up(spent)]
    assert 0.97 * target < spent <= target
    share = re.findall(r"([0-9.]+)% of other digits", printed)
    assert all(float(one) > 70 for one in share)
    assert bool(share) == ("digits" in script)
    if script == "lora_adapters.py":
        assert printed.endswith("equal outputs: True\n")


@pytest.mark.slow
@pytest.mark.needs("transformers")
def test_the_sharded_example_trains_on_two_ranks(tmp_path: Path) -> None:
    printed = by_torchrun("fsdp_gpt2.py", "--output", str(tmp_path / "run"), seconds=300)
    assert printed.endswith("after 20 steps on 2 ranks\n")
    assert 3.9 < float(EPSILON.findall(printed)[0]) <= 4.0
    assert (tmp_path / "run" / "model.safetensors").is_file()
