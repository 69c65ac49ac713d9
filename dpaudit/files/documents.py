"""JSON, TOML and tables from elsewhere: typed errors, no deep nesting, no huge integers."""

from __future__ import annotations

import io
import json
import os
import tomllib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from dpaudit.files.archives import gunzip, require_expansion
from dpaudit.files.regular_files import MIB, InputFile, open_input, read_bytes
from dpaudit.vocabulary.errors import MissingExtra

if TYPE_CHECKING:
    import pandas as pd


MAX_NESTING, MAX_INTEGER, MAX_DOTS = 100, 2**63, 2000
"""Levels of nesting, the first integer that is too large, and dots in a line of TOML."""

DOCUMENT_ERRORS = (ValueError, RecursionError, OverflowError, MemoryError)
"""Exceptions that parsing a broken document raises."""


def read_json_document(source: InputFile) -> Any:
    """Return the content of a JSON file; Infinity and NaN are accepted as numbers.

    Args:
        source: The file.

    Returns:
        Dicts, lists, text, numbers, booleans or None.

    Raises:
        DpauditError: If the file cannot be read, is not JSON, nests deeper than 100 levels, or
            holds an integer beyond 64 bits.
    """
    return _parsed(source, json.loads, "JSON")


def read_toml_document(source: InputFile) -> dict[str, Any]:
    """Return the content of a TOML file.

    Args:
        source: The file.

    Returns:
        The document's tables.

    Raises:
        DpauditError: If the file cannot be read, is not TOML, nests deeper than 100 levels, or
            holds an integer beyond 64 bits.
    """
    found: dict[str, Any] = _parsed(source, parse_toml, "TOML")
    return found


def parse_toml(text: str) -> dict[str, Any]:
    """Parse TOML with a limit on dots per line.

    The standard parser takes time quadratic in the number of parts of a dotted key.

    Args:
        text: The document.

    Returns:
        The document's tables.

    Raises:
        ValueError: If it is not TOML, or a line has more than 2,000 dots.
    """
    if any(line.count(".") > MAX_DOTS for line in text.split("\n")):
        raise ValueError(f"a line has more than {MAX_DOTS} dots")
    return tomllib.loads(text)


def read_text(source: InputFile) -> str:
    """Return the content of a text file in UTF-8.

    Args:
        source: The file.

    Returns:
        The text.

    Raises:
        DpauditError: If the file cannot be read, or is not UTF-8.
    """
    try:
        return read_bytes(source).decode()
    except UnicodeDecodeError as error:
        raise source.error(f"not UTF-8 text: {error}") from error


def require_shallow_document(value: Any) -> None:
    """Refuse a document that nests deeper than 100 levels, or holds an integer beyond 64 bits.

    Args:
        value: A parsed document.

    Raises:
        ValueError: If it does.
    """
    level = [value]
    for _ in range(MAX_NESTING):
        level = [inner for outer in level for inner in _inside(outer)]
        if not level:
            return
    raise ValueError(f"it nests deeper than {MAX_NESTING} levels")


def _inside(value: Any) -> Any:
    """Return the entries of a container, and none of other values; refuse huge integers."""
    if isinstance(value, dict):
        return value.values()
    if isinstance(value, list):
        return value
    if isinstance(value, int) and not -MAX_INTEGER < value < MAX_INTEGER:
        raise ValueError("an integer of more than 64 bits")
    return ()


def _parsed(source: InputFile, parse: Callable[[str], Any], kind: str) -> Any:
    """Return a parsed and checked document; errors of parsing become errors of the file."""
    text = read_text(source)
    try:
        value = parse(text)
        require_shallow_document(value)
    except DOCUMENT_ERRORS as error:
        raise source.error(f"not valid {kind}: {error}") from error
    return value


# Tables in .csv, .csv.gz and .parquet files, with limits on expansion.

MAX_LINE_BYTES = MIB
"""Largest first line of a .csv file, in bytes: a file without lines is one column name."""

CELL_BYTES = 8


def read_table(source: InputFile, **options: Any) -> pd.DataFrame:
    """Return the rows of a .csv, .csv.gz or .parquet file.

    Args:
        source: The file; its name gives the format.
        **options: Options of ``pandas.read_csv``.

    Returns:
        A data frame with one row per record.

    Raises:
        MissingExtra: If pandas or pyarrow is not installed.
        DpauditError: If the file cannot be opened, or expands too far.
        Exception: Whatever pandas or pyarrow raises for a broken file.
    """
    try:
        import pandas as pd  # noqa: PLC0415  heavy, and comes with an extra
    except ImportError as error:
        raise MissingExtra("pandas", "scores") from error
    name = source.path.name
    if ".parquet" in name:
        with open_input(source) as file:
            return _parquet(source, file)
    if name.endswith(".gz"):
        content = gunzip(source)
        _require_lines(source, content[:MAX_LINE_BYTES])
        unpacked: pd.DataFrame = pd.read_csv(io.BytesIO(content), index_col=False, **options)
        return unpacked
    with open_input(source) as file:
        _require_lines(source, file.read(MAX_LINE_BYTES))
        file.seek(0)
        # Without index_col, a row that is longer than the header shifts all columns by one.
        found: pd.DataFrame = pd.read_csv(file, index_col=False, **options)
        return found


def _require_lines(source: InputFile, begin: bytes) -> None:
    """Refuse a first line above the limit, which would be parsed as one column name."""
    if len(begin) == MAX_LINE_BYTES and b"\n" not in begin and b"\r" not in begin:
        raise source.error(f"its first line is longer than {MAX_LINE_BYTES} bytes")


def _parquet(source: InputFile, file: BinaryIO) -> pd.DataFrame:
    """Return a parquet table, after its declared size was checked."""
    try:
        import pyarrow.parquet as pq  # noqa: PLC0415  heavy, and comes with an extra
    except ImportError as error:
        raise MissingExtra("pyarrow", "scores") from error
    columns = pq.ParquetFile(file).schema
    if any(column.max_repetition_level for column in columns):
        raise source.error("its columns hold lists: only one value per cell is read")
    # A column that repeats one long string is small as a dictionary, and huge as text. So text
    # is read as a dictionary, and expanded only after its size was checked.
    strings = [column.path for column in columns if column.physical_type == "BYTE_ARRAY"]
    opened_file = pq.ParquetFile(file, read_dictionary=strings)
    cell = sum(max(CELL_BYTES, column.length) for column in columns)
    rows = opened_file.metadata.num_rows
    require_expansion(source, rows * cell, os.fstat(file.fileno()).st_size)
    frame: pd.DataFrame = opened_file.read().to_pandas()
    return _with_strings(source, frame, strings)


def _with_strings(source: InputFile, frame: pd.DataFrame, names: list[str]) -> pd.DataFrame:
    """Return the table with dictionary columns as text, if that fits in memory."""
    for name in names:
        column = frame[name] if name in frame.columns else None
        if column is None or column.dtype != "category":
            continue
        codes, words = column.cat.codes.to_numpy(), column.cat.categories
        counts = np.bincount(codes[codes >= 0], minlength=len(words))
        lengths = np.array([len(str(word)) for word in words], dtype=np.int64)
        size = int(counts @ lengths) + CELL_BYTES * len(column)
        require_expansion(source, size, source.path.stat().st_size)
        frame[name] = column.astype(words.dtype)
    return frame
