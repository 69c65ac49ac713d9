"""Score files of train/test splits, and labels that are no classes, from the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pandas as pd
import pytest
from calling import Call
from numpy.typing import NDArray

from dpaudit.vocabulary.audit import AuditReport, BoundKind, ClassGuesses
from dpaudit.vocabulary.errors import ExitCode

SIZES = [(1000, 500), (5000, 1000), (10000, 200), (200, 9000)]


def write(folder: Path, scores: NDArray[Any], member: NDArray[Any], suffix: str = ".csv") -> Path:
    path = folder / f"scores{suffix}"
    frame = pd.DataFrame({"score": scores, "member": member.astype(int)})
    if suffix == ".npz":
        np.savez(path, score=scores, member=member.astype(int))
    elif suffix == ".parquet":
        frame.to_parquet(path)
    else:
        frame.to_csv(path, index=False)
    return path


def split(sizes: tuple[int, int]) -> NDArray[np.bool_]:
    return np.arange(sum(sizes)) < sizes[0]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("suffix", [".csv", ".npz", ".parquet"])
def test_a_perfect_separation_of_a_split_contradicts_a_claim_of_5(
    call: Call, tmp_path: Path, sizes: tuple[int, int], suffix: str
) -> None:
    member = split(sizes)
    path = write(tmp_path, member * 3.0 - np.arange(len(member)) * 1e-5, member, suffix)
    result = call("gate", "--scores", path, "--claim-epsilon", 5)
    assert result.code == ExitCode.FAIL, result.out


def test_a_claim_that_no_outcome_could_contradict_is_not_confirmed(
    call: Call, tmp_path: Path
) -> None:
    member = split((5000, 1000))
    path = write(tmp_path, member * 3.0 - np.arange(6000) * 1e-5, member)
    result = call("gate", "--scores", path, "--claim-epsilon", 8)
    assert result.code == ExitCode.INCONCLUSIVE
    assert "even if every guess were right" in result.out


def test_ties_limit_what_an_audit_could_have_shown(call: Call, tmp_path: Path) -> None:
    """Ten records differ from the rest: no membership of them contradicts a claim of 4."""
    member = split((5000, 1000))
    scores = np.where(np.arange(6000) % 600 == 0, 1.0, 0.0)
    result = call("gate", "--scores", write(tmp_path, scores, member), "--claim-epsilon", 4)
    assert result.code == ExitCode.INCONCLUSIVE, result.out


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("seed", [3, 4])
def test_scores_without_information_pass_a_claim_that_they_could_contradict(
    call: Call, tmp_path: Path, sizes: tuple[int, int], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    member = split(sizes)
    losses = np.round(rng.exponential(1.0, len(member)), 1)
    result = call("gate", "--scores", write(tmp_path, -losses, member), "--claim-epsilon", 1.3)
    assert result.code == ExitCode.PASS, result.out


def report_of(call: Call, path: Path) -> AuditReport:
    told = call("audit", "--scores", path, "--claim-epsilon", 2, "--format", "json")
    return msgspec.json.decode(told.out, type=AuditReport)


def test_the_order_of_the_rows_does_not_matter(call: Call, tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    member = split((900, 300))
    scores = np.round(member + rng.standard_normal(1200), 1)
    one = report_of(call, write(tmp_path, scores, member))
    mixed = rng.permutation(1200)
    for order in (mixed, np.arange(1200)[::-1]):
        other = report_of(call, write(tmp_path, scores[order], member[order]))
        assert other.bounds == one.bounds


def test_the_audit_keeps_the_counts_and_names_what_it_assumes(call: Call, tmp_path: Path) -> None:
    rng = np.random.default_rng(6)
    member = split((800, 400))
    scores = 2 * member + rng.standard_normal(1200)
    bound = report_of(call, write(tmp_path, scores, member)).bounds[0]
    assert bound.kind is BoundKind.CONDITIONAL
    assert "uniformly random choice" in bound.assumes
    assert isinstance(bound.estimator, ClassGuesses)
    assert (bound.estimator.members, bound.estimator.nonmembers) == (800, 400)
    assert bound.guesses == bound.estimator.guessed_in + bound.estimator.guessed_out
    assert bound.correct == bound.estimator.right_in + bound.estimator.right_out
    assert bound.greatest_epsilon is not None
    assert bound.epsilon_lower <= bound.greatest_epsilon


def test_unfair_coins_certify_nothing(call: Call, tmp_path: Path) -> None:
    """Canaries whose coins were edited: 100 of 100 among the first, none among the rest."""
    assert call("canaries", "make", "--kind", "dummy", "--count", 100, "-o", "c.npz").code == 0
    with np.load("c.secret.npz") as archive:
        arrays = dict(archive)
    rng = np.random.default_rng(7)
    for included, kind in ((arrays["included"], "certified"), (np.arange(100) < 90, "conditional")):
        arrays["included"] = included
        np.savez("c.secret.npz", **arrays)
        frame = pd.DataFrame({"id": arrays["ids"], "score": included + rng.random(100)})
        frame.to_csv("s.csv", index=False)
        told = call("audit", "--canaries", "c.npz", "--scores", "s.csv", "--format", "json")
        assert told.code == 0, told.err
        assert json.loads(told.out)["bounds"][0]["kind"] == kind


@pytest.mark.parametrize(
    "command",
    [
        ("attack", "--attack", "loss", "--targets", "1", "--epochs", "1"),
        ("train", "--noise-multiplier", "1", "--steps", "1"),
        ("canaries", "make", "--kind", "blank", "--count", "3"),
    ],
)
@pytest.mark.parametrize("target", ["degrees", "price"])
def test_every_command_that_reads_records_refuses_targets_of_regression(
    call: Call, tmp_path: Path, command: tuple[str, ...], target: str
) -> None:
    rng = np.random.default_rng(8)
    columns = {"degrees": np.round(rng.normal(15, 5, 80), 1), "price": rng.permutation(9999)[:80]}
    frame = pd.DataFrame({"a": rng.random(80), target: columns[target]})
    frame.to_csv(tmp_path / "data.csv", index=False)
    result = call(*command, "--data", tmp_path / "data.csv", "--label", target)
    assert result.code == ExitCode.USAGE
    assert f"column '{target}'" in result.err
    assert "cut the values into classes" in result.err
