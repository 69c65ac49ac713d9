"""Bugs of two ranks, in two processes over gloo, and two designs without a bug."""

from __future__ import annotations

from pathlib import Path

import pytest
from ranks import on_ranks

from dpaudit.runs.file_io import read_json
from dpaudit.vocabulary.conformance import ConformanceResult
from dpaudit.vocabulary.verdict import Outcome
from tests.planted_bugs.rank_patches import CASES, PlantedInRanks

SCRIPT = Path(__file__).parent / "ranks_script.py"


def audited(folder: Path, checks: str, seeds: list[int]) -> None:
    """Run all cases; the first rank writes what it found."""
    on_ranks(SCRIPT, folder, checks, *seeds, world=2, folder=folder, seconds=600)


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
    audited(out, "alone", [1])
    return out


@pytest.mark.parametrize("name", CASES)
def test_two_ranks(name: str, folder: Path) -> None:
    number = list(CASES).index(name)
    require(CASES[name], read_json(folder / f"{number}-1.json", ConformanceResult))


@pytest.mark.slow
def test_two_ranks_under_five_seeds(tmp_path: Path) -> None:
    seeds = list(range(2, 7))
    audited(tmp_path, "whole", seeds)
    for number, case in enumerate(CASES.values()):
        for seed in seeds:
            require(case, read_json(tmp_path / f"{number}-{seed}.json", ConformanceResult))
