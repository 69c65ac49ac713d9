"""The examples run as their first lines say."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from places import ROOT


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
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
         "examples/cifar10_ddp.py", "--data", str(tmp_path / "images.npz"), "--epochs", "1",
         "--batch-size", "16"],
        capture_output=True, text=True, timeout=180, check=False, cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    plain, private = done.stdout.splitlines()
    assert plain.startswith("plain")
    assert "no guarantee" in plain
    assert private.startswith("private")
    assert "epsilon at most 7.99" in private or "epsilon at most 8.000" in private
    assert "4 steps" in private
