"""Tables of .csv, .csv.gz and .parquet files."""

from __future__ import annotations

import io
import os
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from dpaudit.files.archives import gunzip, require_expansion
from dpaudit.files.opening import MIB, InputFile, opened
from dpaudit.vocabulary.errors import MissingExtra

if TYPE_CHECKING:
    import pandas as pd

LONGEST_LINE = MIB
"""Of the first line of a .csv, in bytes: a file without lines would be one column name."""

CELL = 8


def read_table(source: InputFile, **options: Any) -> pd.DataFrame:
    """Return the rows of a .csv, .csv.gz or .parquet file.

    Args:
        source: The file; its name says of which kind it is.
        options: Of ``pandas.read_csv``.

    Raises:
        DpauditError: It cannot be opened, or inflates too far.
        Exception: Whatever pandas and pyarrow raise of a broken file.
    """
    try:
        import pandas as pd  # noqa: PLC0415  heavy, and comes with an extra
    except ImportError as error:
        raise MissingExtra("pandas", "scores") from error
    name = source.path.name
    if ".parquet" in name:
        with opened(source) as file:
            return _parquet(source, file)
    if name.endswith(".gz"):
        content = gunzip(source)
        _require_lines(source, content[:LONGEST_LINE])
        unpacked: pd.DataFrame = pd.read_csv(io.BytesIO(content), index_col=False, **options)
        return unpacked
    with opened(source) as file:
        _require_lines(source, file.read(LONGEST_LINE))
        file.seek(0)
        # index_col: else a row that is longer than the header shifts every column by one.
        found: pd.DataFrame = pd.read_csv(file, index_col=False, **options)
        return found


def _require_lines(source: InputFile, begin: bytes) -> None:
    if len(begin) == LONGEST_LINE and b"\n" not in begin and b"\r" not in begin:
        raise source.error(f"its first line is longer than {LONGEST_LINE} bytes")


def _parquet(source: InputFile, file: BinaryIO) -> pd.DataFrame:
    try:
        import pyarrow.parquet as pq  # noqa: PLC0415  heavy, and comes with an extra
    except ImportError as error:
        raise MissingExtra("pyarrow", "scores") from error
    columns = pq.ParquetFile(file).schema
    if any(column.max_repetition_level for column in columns):
        raise source.error("its columns hold lists: one value a cell is read")
    # A dictionary of strings is small where one long string fills every row.
    strings = [column.path for column in columns if column.physical_type == "BYTE_ARRAY"]
    opened_file = pq.ParquetFile(file, read_dictionary=strings)
    cell = sum(max(CELL, column.length) for column in columns)
    rows = opened_file.metadata.num_rows
    require_expansion(source, rows * cell, os.fstat(file.fileno()).st_size)
    frame: pd.DataFrame = opened_file.read().to_pandas()
    return _with_strings(source, frame, strings)


def _with_strings(source: InputFile, frame: pd.DataFrame, names: list[str]) -> pd.DataFrame:
    """Return ``frame`` with columns of strings for those of dictionaries, if they have room."""
    for name in names:
        column = frame[name] if name in frame.columns else None
        if column is None or column.dtype != "category":
            continue
        codes, words = column.cat.codes.to_numpy(), column.cat.categories
        counts = np.bincount(codes[codes >= 0], minlength=len(words))
        lengths = np.array([len(str(word)) for word in words], dtype=np.int64)
        size = int(counts @ lengths) + CELL * len(column)
        require_expansion(source, size, source.path.stat().st_size)
        frame[name] = column.astype(words.dtype)
    return frame
