"""JSON and TOML documents from elsewhere: typed errors, no deep nesting, no huge integers."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable
from typing import Any

from dpaudit.files.opening import InputFile, read

MOST_DEPTH, MOST_INTEGER, MOST_DOTS = 100, 2**63, 2000
BROKEN = (ValueError, RecursionError, OverflowError, MemoryError)
"""What parsing a broken document raises."""


def read_json_document(source: InputFile) -> Any:
    """Return the content of a JSON file; Infinity and NaN are numbers here.

    Raises:
        DpauditError: The file cannot be read, is no JSON, nests too deep or holds a huge integer.
    """
    return _parsed(source, json.loads, "JSON")


def read_toml_document(source: InputFile) -> dict[str, Any]:
    """Return the content of a TOML file.

    Raises:
        DpauditError: The file cannot be read, is no TOML, nests too deep or holds a huge integer.
    """
    found: dict[str, Any] = _parsed(source, parse_toml, "TOML")
    return found


def parse_toml(text: str) -> dict[str, Any]:
    """Parse TOML of a few dots a line: the standard parser is quadratic in a key's parts.

    Raises:
        ValueError: It is no TOML, or a line has more than ``MOST_DOTS`` dots.
    """
    if any(line.count(".") > MOST_DOTS for line in text.split("\n")):
        raise ValueError(f"a line has more than {MOST_DOTS} dots")
    return tomllib.loads(text)


def read_text(source: InputFile) -> str:
    """Return the content of a text file in UTF-8.

    Raises:
        DpauditError: The file cannot be read, or is no such text.
    """
    try:
        return read(source).decode()
    except UnicodeDecodeError as error:
        raise source.error(f"no text in UTF-8: {error}") from error


def require_plain(value: Any) -> None:
    """Refuse a document that nests deep, or holds an integer of more than 64 bits.

    Raises:
        ValueError: It does.
    """
    level = [value]
    for _ in range(MOST_DEPTH):
        level = [inner for outer in level for inner in _inside(outer)]
        if not level:
            return
    raise ValueError(f"it nests deeper than {MOST_DEPTH} levels")


def _inside(value: Any) -> Any:
    if isinstance(value, dict):
        return value.values()
    if isinstance(value, list):
        return value
    if isinstance(value, int) and not -MOST_INTEGER < value < MOST_INTEGER:
        raise ValueError("an integer of more than 64 bits")
    return ()


def _parsed(source: InputFile, parse: Callable[[str], Any], kind: str) -> Any:
    text = read_text(source)
    try:
        value = parse(text)
        require_plain(value)
    except BROKEN as error:
        raise source.error(f"no valid {kind}: {error}") from error
    return value
