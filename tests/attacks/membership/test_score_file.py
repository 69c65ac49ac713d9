"""Score files of any framework: every kind is read alike, and none passes that is broken."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import rankdata

from dpaudit.attacks.membership.score_file import (
    ScoreColumns,
    finite_in_same_order,
    read_scores,
    scores_by_group,
    write_scores,
)
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


@pytest.mark.parametrize("kind", KINDS)
def test_other_columns_and_losses_are_read(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"scores{kind}"
    written = pd.DataFrame({"loss": [0.5, 1.5, 2.5, 3.5], "split": ["Train ", "test", "in", "out"]})
    write_scores(written.assign(score=9.0, member="other"), path)
    columns = ScoreColumns("loss", "split", smaller_means_member=True)
    found = read_scores(path, columns=columns)
    assert found["score"].tolist() == [-0.5, -1.5, -2.5, -3.5]
    assert found["member"].tolist() == [1, 0, 1, 0]
    assert scores_by_group(found)["scores"].members.tolist() == [-0.5, -2.5]


@pytest.mark.parametrize("kind", KINDS)
def test_a_missing_column_is_named_as_it_was_asked_for(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"scores{kind}"
    write_scores(frame(), path)
    with pytest.raises(InvalidArgument, match="columns loss and member"):
        read_scores(path, columns=ScoreColumns("loss"))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1, -1, 1, -1], [1, 0, 1, 0]),
        ([1.0, -1.0, 1.0, -1.0], [1, 0, 1, 0]),
        (["+1", "-1", "1", "-1.0"], [1, 0, 1, 0]),
        (["True", "false", "YES", "no"], [1, 0, 1, 0]),
        (["member", "non-member", "training", "heldout"], [1, 0, 1, 0]),
        ([True, False, True, False], [True, False, True, False]),
    ],
)
@pytest.mark.parametrize("kind", KINDS)
def test_memberships_of_every_form_are_read(
    tmp_path: Path, kind: str, values: list[object], expected: list[object]
) -> None:
    path = tmp_path / f"scores{kind}"
    write_scores(frame(member=values), path)
    found = read_scores(path)["member"].tolist()
    assert [int(value) for value in found] == [int(value) for value in expected]  # type: ignore[call-overload]


@pytest.mark.parametrize(
    "values",
    [
        ["maybe", "test", "train", "test"],
        ["2", "1", "0", "1"],
        ["", "1", "0", "1"],
        ["train", None, "test", "test"],
        [-1, 0, 1, 1],
        [-1, 0, 0, -1],
        [1, 2, 1, 2],
        [1.0, np.nan, -1.0, 1.0],
    ],
)
@pytest.mark.parametrize("kind", [".csv", ".parquet"])
def test_ambiguous_memberships_are_refused(tmp_path: Path, kind: str, values: list[object]) -> None:
    path = tmp_path / f"scores{kind}"
    write_scores(frame(member=values), path)
    with pytest.raises(InvalidArgument, match="member"):
        scores_by_group(read_scores(path))


@pytest.mark.parametrize("kind", KINDS)
def test_infinite_scores_are_ranked_and_nan_is_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"scores{kind}"
    write_scores(frame(score=[-np.inf, np.inf, 2.5, np.inf]), path)
    found = read_scores(path)["score"].to_numpy()
    assert np.isfinite(found).all()
    assert found[0] < found[2] < found[1] == found[3]
    assert found[2] == 2.5
    write_scores(frame(score=[-np.inf, np.inf, np.nan, 1.0]), path)
    with pytest.raises(InvalidArgument, match="nan"):
        scores_by_group(read_scores(path))


@given(
    st.lists(
        st.sampled_from(
            [-np.inf, -np.finfo(float).max, -1.0, 0.0, 1.0, np.finfo(float).max, np.inf]
        ),
        min_size=1,
    )
)
def test_the_order_and_the_ties_of_scores_are_kept(values: list[float]) -> None:
    given = np.array(values)
    found = finite_in_same_order(given)
    assert np.isfinite(found).all()
    expected = np.sign(np.subtract.outer(rankdata(given), rankdata(given)))
    assert np.array_equal(np.sign(np.subtract.outer(found, found)), expected)


def test_a_column_that_occurs_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "scores.parquet"
    pd.DataFrame(np.eye(2), columns=["score", "member"]).to_parquet(path)
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    pq.write_table(pa.Table.from_arrays(table.columns, names=["score", "score"]), path)
    with pytest.raises(InvalidArgument, match=r"readable|second column"):
        read_scores(path, ("score",))


@pytest.mark.parametrize("kind", KINDS)
def test_columns_of_each_others_names_are_read(tmp_path: Path, kind: str) -> None:
    """A scheme may call its scores ``x`` and its memberships ``score``, or swap both names."""
    path = tmp_path / f"scores{kind}"
    plain = frame()
    others = {"x": plain["score"], "score": plain["member"], "member": [7, 8, 9, 9]}
    write_scores(pd.DataFrame(others), path)
    found = read_scores(path, columns=ScoreColumns("x", "score"))
    assert found.to_dict("list") == plain.to_dict("list")
    write_scores(pd.DataFrame({"member": plain["score"], "score": plain["member"]}), path)
    swapped = read_scores(path, columns=ScoreColumns("member", "score"))
    assert swapped[["score", "member"]].to_dict("list") == plain.to_dict("list")


@pytest.mark.parametrize(
    ("score", "member"), [("x", "x"), ("member", "member"), ("score", "score")]
)
def test_one_column_for_both_is_refused(score: str, member: str) -> None:
    with pytest.raises(InvalidArgument, match="another column than member_column"):
        ScoreColumns(score, member)


def test_names_of_options_are_in_the_refusals_of_columns(tmp_path: Path) -> None:
    path = tmp_path / "scores.csv"
    path.write_text("id,loss,score\n1,2,3\n")
    with pytest.raises(InvalidArgument, match="--score-column and --member-column"):
        read_scores(path)
    with pytest.raises(InvalidArgument, match="nowhere"):
        read_scores(path, ("id", "score"), ScoreColumns(member="nowhere"))
    with pytest.raises(InvalidArgument, match="score_column"):
        read_scores(path, ("id", "score"), ScoreColumns("id"))


def test_a_header_that_names_a_column_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "scores.csv"
    path.write_text("score,score,member\n1,2,0\n2,1,1\n")
    with pytest.raises(InvalidArgument, match="second column 'score'"):
        read_scores(path)
