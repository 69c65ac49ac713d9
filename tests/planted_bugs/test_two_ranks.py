"""Bugs of two ranks, in two processes over gloo, and two designs without a bug."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from places import ROOT

from dpaudit.runs.file_io import read_json
from dpaudit.vocabulary.conformance import ConformanceResult
from dpaudit.vocabulary.verdict import Outcome
from tests.planted_bugs.rank_patches import CASES, PlantedInRanks

HERE = Path(__file__).parent


def audited(folder: Path, seeds: list[int]) -> None:
    """Run all cases; on failure, show the output of the first rank."""
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen(
            [sys.executable, str(HERE / "ranks_script.py"), str(rank), "2", str(folder),
             *(str(seed) for seed in seeds)],
            env=environment, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    said = [rank.communicate(timeout=600)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], said[0][-3000:]


def require(case: PlantedInRanks, result: ConformanceResult) -> None:
    if not case.check:
        assert result.verdict is Outcome.PASS, result.findings
        return
    assert result.verdict is Outcome.FAIL
    said = [finding.why for finding in result.violations if finding.check == case.check]
    assert any(case.word in why for why in said), result.violations


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("ranks")
    audited(out, [1])
    return out


@pytest.mark.parametrize("name", CASES)
def test_two_ranks(name: str, folder: Path) -> None:
    number = list(CASES).index(name)
    require(CASES[name], read_json(folder / f"{number}-1.json", ConformanceResult))


@pytest.mark.slow
def test_two_ranks_under_five_seeds(tmp_path: Path) -> None:
    seeds = list(range(2, 7))
    audited(tmp_path, seeds)
    for number, case in enumerate(CASES.values()):
        for seed in seeds:
            require(case, read_json(tmp_path / f"{number}-{seed}.json", ConformanceResult))
