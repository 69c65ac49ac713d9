"""The benchmark of presets calls the command, and reports what its runs said."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import utility
from places import ROOT

from dpaudit.vocabulary.settings import PRESETS


def test_every_preset_has_records_a_target_and_a_published_figure() -> None:
    assert set(utility.FILES) == set(utility.PAPER) == set(utility.TARGETS) == set(PRESETS)


def test_the_benchmark_runs_and_writes_what_it_prints(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (60, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "mnist.npz", x=images, y=np.arange(60) % 3)
    target = tmp_path / "figures.json"
    script = [sys.executable, str(ROOT / "benchmarks" / "utility.py")]
    asked = ["--preset", "mnist-scattering", "--seeds", "2", "--json", str(target)]
    printed = subprocess.run(
        [*script, *asked, "--", "--steps", "1"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "DPAUDIT_DATA": str(tmp_path)},
    ).stdout
    row = json.loads(target.read_text())["presets"]["mnist-scattering"]
    assert [one["seed"] for one in row["runs"]] == [0, 1]
    assert 0 < row["epsilon"] <= 3
    assert f"{row['mean']:.2f}%" in printed
    assert "98.7%" in printed  # the paper's


def test_mean_and_spread_are_over_the_seeds() -> None:
    runs = [
        {"seed": seed, "accuracy": accuracy, "epsilon": 2.9, "seconds": 1.0, "cpu_seconds": 2.0}
        for seed, accuracy in enumerate((98.0, 98.4, 98.8))
    ]
    row = utility.summary("mnist-cnn", runs)
    assert row["mean"] == pytest.approx(98.4)
    assert row["deviation"] == pytest.approx(0.4)
