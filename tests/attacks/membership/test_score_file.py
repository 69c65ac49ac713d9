"""Score files of any framework: every kind is read alike, and none passes that is broken."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from dpaudit.attacks.membership.score_file import read_scores, scores_by_group, write_scores
from dpaudit.vocabulary.errors import InvalidArgument

KINDS = [".csv", ".parquet", ".npz"]


def frame(**columns: object) -> pd.DataFrame:
    plain = {"score": [0.5, 1.5, 2.5, 3.5], "member": [0, 1, 0, 1]}
    return pd.DataFrame({**plain, **columns})


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_written_is_read(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"scores{kind}"
    written = frame(id=["a", "b", "c", "d"], attack="loss", target=[0, 0, 1, 1])
    write_scores(written, path)
    found = read_scores(path)
    assert found.to_dict("list") == written.to_dict("list")
    assert scores_by_group(found)["loss"].members.tolist() == [1.5, 3.5]


def test_attacks_and_steps_are_scored_apart_and_targets_together() -> None:
    many = pd.concat(
        [
            frame(attack=attack, step=step, target=target, id=range(4))
            for attack in ("loss", "lira")
            for step in (1, 2)
            for target in (0, 1)
        ]
    )
    found = scores_by_group(many)
    assert list(found) == ["loss, step 1", "loss, step 2", "lira, step 1", "lira, step 2"]
    assert len(found["loss, step 1"].members) == 4


@pytest.mark.parametrize(
    "bad",
    [
        {"id": [1, 2, 2, 3]},
        {"id": [1, 2, np.nan, 3]},
        {"score": [0.5, np.nan, 1.0, 2.0]},
        {"score": ["high", "low", "low", "high"]},
        {"member": [0, 1, 2, 1]},
        {"member": [0, 1, np.nan, 1]},
        {"member": ["yes", "no", "no", "yes"]},
        {"member": [1, 1, 1, 1]},
        {"member": [0, 0, 0, 0]},
    ],
)
def test_implausible_rows_are_refused(bad: dict[str, object]) -> None:
    with pytest.raises(InvalidArgument):
        scores_by_group(frame(**bad))


def test_the_same_record_may_be_scored_against_two_targets_and_no_more() -> None:
    scores_by_group(frame(id=[1, 2, 1, 2], target=[0, 0, 1, 1]))
    with pytest.raises(InvalidArgument, match="twice"):
        scores_by_group(frame(id=[1, 2, 1, 1], target=[0, 0, 1, 1]))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("missing", ["score", "member"])
def test_a_missing_column_is_named(tmp_path: Path, kind: str, missing: str) -> None:
    path = tmp_path / f"scores{kind}"
    write_scores(frame().drop(columns=missing), path)
    with pytest.raises(InvalidArgument, match="columns score and member"):
        read_scores(path)


def test_arrays_of_different_lengths_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "scores.npz"
    np.savez(path, score=np.ones(4), member=np.array([0, 1, 0]))
    with pytest.raises(InvalidArgument, match="one shape"):
        read_scores(path)


def test_nothing_pickled_is_read(tmp_path: Path) -> None:
    path = tmp_path / "scores.npz"
    np.savez(path, score=np.array([1, "x", None], dtype=object), member=np.array([0, 1, 0]))
    with pytest.raises(InvalidArgument, match="readable"):
        read_scores(path)


@pytest.mark.parametrize("content", [b"", b"not a zip", b"\x00\xff" * 50])
@pytest.mark.parametrize("kind", KINDS)
def test_a_broken_file_is_refused(tmp_path: Path, kind: str, content: bytes) -> None:
    path = tmp_path / f"scores{kind}"
    path.write_bytes(content)
    with pytest.raises(InvalidArgument, match="scores"):
        read_scores(path)


def test_other_kinds_and_missing_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match=r"\.csv, \.parquet, \.npz"):
        read_scores(tmp_path / "scores.pkl")
    with pytest.raises(InvalidArgument, match="No such file"):
        read_scores(tmp_path / "scores.csv")
    with pytest.raises(InvalidArgument, match="writable"):
        write_scores(frame(), tmp_path / "nowhere" / "scores.csv")


def test_no_rows_are_no_scores() -> None:
    with pytest.raises(InvalidArgument):
        scores_by_group(frame().iloc[:0])
    with pytest.raises(InvalidArgument):
        scores_by_group(frame(attack="loss").iloc[:0])
