"""Tables of .csv, .csv.gz and .parquet files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dpaudit.files.documents import MAX_LINE_BYTES, read_table
from dpaudit.files.regular_files import GIB, InputFile
from dpaudit.vocabulary.errors import InvalidArgument

pd = pytest.importorskip("pandas")
pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")


def source(path: Path) -> InputFile:
    return InputFile(path, "scores", GIB)


@pytest.mark.parametrize("name", ["t.csv", "t.csv.gz", "t.parquet"])
def test_every_kind_gives_the_same_rows(tmp_path: Path, name: str) -> None:
    frame = pd.DataFrame({"score": [0.5, 1.5, 2.5], "member": [0, 1, 1], "id": ["a", "b", "ä"]})
    path = tmp_path / name
    if name == "t.parquet":
        frame.to_parquet(path, index=False)
    else:
        frame.to_csv(path, index=False)
    pd.testing.assert_frame_equal(read_table(source(path)), frame)


def test_missing_text_stays_missing(tmp_path: Path) -> None:
    frame = pd.DataFrame({"id": ["a", None, "a"]})
    frame.to_parquet(tmp_path / "t.parquet", index=False)
    assert read_table(source(tmp_path / "t.parquet"))["id"].isna().tolist() == [False, True, False]


@pytest.mark.parametrize("compression", [".csv", ".csv.gz"])
def test_a_table_without_lines_is_refused(tmp_path: Path, compression: str) -> None:
    path = tmp_path / f"t{compression}"
    pd.DataFrame({"x" * (MAX_LINE_BYTES + 10): [1]}).to_csv(path, index=False)
    with pytest.raises(InvalidArgument, match="first line is longer"):
        read_table(source(path))


def test_many_rows_in_few_bytes_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    rows = 20_000_000
    values = pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, np.int8)), pa.array([1.5]))
    pq.write_table(pa.table({"score": values}), path, compression="zstd", store_schema=False)
    with pytest.raises(InvalidArgument, match="over 200 times"):
        read_table(source(path))


def test_one_long_text_in_every_row_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    codes = pa.array(np.zeros(10_000, np.int32))
    texts = pa.DictionaryArray.from_arrays(codes, pa.array(["x" * 100_000]))
    pq.write_table(pa.table({"id": texts}), path, compression="zstd", store_schema=False)
    with pytest.raises(InvalidArgument, match="over 200 times"):
        read_table(source(path))


def test_lists_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"score": [[1.0], [2.0, 3.0]]}), path)
    with pytest.raises(InvalidArgument, match="hold lists"):
        read_table(source(path))
