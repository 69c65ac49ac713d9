"""The benchmark for a GPU, tried on a CPU with tiny networks."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import gpu
import pytest
import torch
from device_checks import agreement
from device_checks.checks import Check
from device_checks.networks import networks
from places import ROOT

CPU = torch.device("cpu")


def test_the_keystream_is_that_of_rfc_8439() -> None:
    assert all(check.passes for check in agreement.keystream(CPU, tiny=True))


def test_a_wrong_keystream_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    right = agreement.words
    monkeypatch.setattr(agreement, "words", lambda *given: right(*given) ^ 1)
    failed = [check.name for check in agreement.keystream(CPU, tiny=True) if not check.passes]
    assert failed == ["words of 4096 that differ from a library's ChaCha20"]


def test_noise_of_two_runs_differs() -> None:
    assert all(check.passes for check in agreement.fresh_noise(CPU, tiny=True))


def test_a_figure_that_is_no_number_fails() -> None:
    assert not Check("gap", float("nan"), 1.0).passes
    assert Check("gap", 0.0, 0.0).passes


def test_a_part_that_fails_is_one_line() -> None:
    (line,) = gpu.lines("bf16", {"error": "took more than 1 s"})
    assert line == ("bf16", "took more than 1 s", "", "", "FAIL")
    assert gpu.speed_line("speed: MLP", {"error": "RuntimeError: no"})[1] == "RuntimeError: no"
    assert not gpu.passes({"error": "no"})
    assert not gpu.passes([])


def test_every_network_of_the_speed_table_has_a_part() -> None:
    assert {f"speed: {name}" for name in networks(tiny=False)} < set(gpu.limits())


@pytest.mark.slow
def test_all_parts_pass_on_a_cpu(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    target = tmp_path / "figures.json"
    asked = ["--device", "cpu", "--tiny", "--rounds", "3", "--minutes", "40"]
    script = [sys.executable, str(ROOT / "benchmarks" / "gpu.py")]
    done = subprocess.run(
        [*script, *asked, "--json", str(target)], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout
    found = json.loads(target.read_text())["parts"]
    assert list(found) == list(gpu.limits())
