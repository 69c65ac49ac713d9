"""The folder that files are named from."""

from __future__ import annotations

from pathlib import Path

import pytest

from dpaudit.report.verdicts.gate_result import GateResult, repository_root, rule_location
from dpaudit.vocabulary.verdict import Verdict
from tests.report.verdicts.verdicts import loaded_policy


def test_the_root_is_the_nearest_folder_with_git(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside = tmp_path / "repository" / "models" / "mnist"
    inside.mkdir(parents=True)
    (tmp_path / "repository" / ".git").mkdir()
    monkeypatch.chdir(inside)
    assert repository_root() == tmp_path / "repository"
    place = rule_location("claim.max_epsilon", GateResult(Verdict((), ""), loaded_policy()))
    assert place is not None
    assert str(place) == "models/mnist/dpaudit.toml:2"


def test_without_git_it_is_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if any((folder / ".git").exists() for folder in tmp_path.parents):
        pytest.skip("the temporary folder lies in a repository")
    assert repository_root() == tmp_path
