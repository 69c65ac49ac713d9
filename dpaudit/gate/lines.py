"""On which line of a TOML file each key is set: what no TOML reader of ours tells."""

from __future__ import annotations

import re
import tomllib
from collections import Counter
from collections.abc import Iterator
from typing import Any

HEADER = re.compile(r"\s*\[")
LONG_VALUE = 100
"""From so many lines on, not every line is tried as the last of a value."""


def key_lines(text: str) -> dict[str, int]:
    """Return the first line, from 1, of every table and key of a valid TOML text.

    Keys are joined by dots; the second table of an array ``waiver`` is ``waiver.1``.
    """
    lines: dict[str, int] = {}
    tables: Counter[str] = Counter()
    table: list[str] = []
    for number, statement in _statements(text):
        if HEADER.match(statement):
            table = _path(tomllib.loads(statement))
            name = ".".join(table)
            if statement.lstrip().startswith("[["):
                tables[name] += 1
            lines.setdefault(_numbered(name, tables), number)
        elif statement.strip():
            for place in range(1, len(table) + 1):
                lines.setdefault(_numbered(".".join(table[:place]), tables), number)
            for path in _keys(tomllib.loads(statement)):
                lines.setdefault(_numbered(".".join([*table, *path]), tables), number)
    return lines


def _statements(text: str) -> Iterator[tuple[int, str]]:
    """Yield each header, comment or assignment with its first line; values may span lines."""
    held: list[str] = []
    due = 1
    for number, line in enumerate(text.split("\n"), 1):
        held.append(line)
        if len(held) < due:
            continue
        statement = "\n".join(held)
        if _is_whole(statement):
            yield number - len(held) + 1, statement
            held, due = [], 1
        else:
            # A long value is tried less and less often, or a large file would take minutes.
            due = len(held) + 1 + (len(held) // 4 if len(held) > LONG_VALUE else 0)
    if held and _is_whole(statement := "\n".join(held)):
        yield text.count("\n") + 2 - len(held), statement


def _is_whole(statement: str) -> bool:
    try:
        tomllib.loads(statement)
    except tomllib.TOMLDecodeError:
        return False
    return True


def _path(content: Any) -> list[str]:
    """Return the names on the way to the innermost table of a lone header."""
    if isinstance(content, list):
        return _path(content[0])
    if not content:
        return []
    ((name, inner),) = content.items()
    return [name, *_path(inner)]


def _keys(content: Any) -> Iterator[list[str]]:
    if isinstance(content, list) and content and isinstance(content[0], dict):
        yield from _keys(content[0])
    elif isinstance(content, dict):
        for name, inner in content.items():
            yield [name]
            yield from ([name, *rest] for rest in _keys(inner))


def _numbered(path: str, tables: Counter[str]) -> str:
    """Return the path with the number of its array's table."""
    if not tables:
        return path
    parts = path.split(".")
    for end in range(1, len(parts) + 1):
        table = ".".join(parts[:end])
        if table in tables:
            return f"{table}.{tables[table] - 1}{path[len(table) :]}"
    return path
