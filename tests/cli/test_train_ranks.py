"""``dpaudit train`` by torchrun: several processes, one run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from calling import Call
from places import ROOT
from safetensors.torch import load_file

from dpaudit.runs.ledger_file import read_ledger

OPTIONS = ("--noise-multiplier", "2", "--steps", "6", "--seed", "3", "--canaries", "20",
           "--average-decay", "0.5", "--learning-rate-schedule", "cosine")  # fmt: skip


def train(out: Path, *options: str, ranks: int) -> subprocess.CompletedProcess[str]:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    return subprocess.run(
        [sys.executable, *(launcher if ranks > 1 else []), "-m", "dpaudit", "train",
         "--out", str(out), *options],
        capture_output=True, text=True, timeout=120, check=False, cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def weights(run: Path) -> torch.Tensor:
    parts = load_file(run / "model.safetensors")
    return torch.cat([parts[name].flatten() for name in sorted(parts)])


def test_two_ranks_make_the_run_that_one_makes(tmp_path: Path, call: Call) -> None:
    alone, both = tmp_path / "alone", tmp_path / "both"
    own = call("train", "--out", alone, *OPTIONS)
    done = train(both, *OPTIONS, ranks=2)
    assert done.returncode == own.code == 0, done.stderr[-3000:]
    assert done.stdout.count("wrote ") == own.out.count("wrote ") == 1
    assert torch.allclose(weights(alone), weights(both), atol=1e-4)
    assert len(read_ledger(both / "ledger.jsonl").releases) == 7  # and the record count


@pytest.mark.slow
def test_two_ranks_resume_a_run_that_both_left(tmp_path: Path) -> None:
    out = tmp_path / "run"
    program = (
        "from dpaudit.trainer.private import Private\n"
        "honest = Private.checkpoint\n"
        "def dies(self, folder):\n"
        "    honest(self, folder)\n"
        "    if self.steps == 4: raise KeyboardInterrupt\n"
        "Private.checkpoint = dies\n"
        "from dpaudit.cli.entry_point import main\n"
        "main()\n"
    )
    (tmp_path / "dies.py").write_text(program)
    started = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
         str(tmp_path / "dies.py"), "train", "--out", str(out), *OPTIONS,
         "--checkpoint-every", "2"],
        capture_output=True, text=True, timeout=120, check=False, cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert started.returncode != 0
    resumed = train(out, "--resume", ranks=2)
    assert resumed.returncode == 0, resumed.stderr[-3000:]
    assert train(tmp_path / "alone", *OPTIONS, ranks=1).returncode == 0
    assert torch.allclose(weights(out), weights(tmp_path / "alone"), atol=1e-4)
