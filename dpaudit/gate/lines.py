"""On which line of a TOML file each key is set: what no TOML reader of ours tells."""

from __future__ import annotations

import re
import tomllib
from collections import Counter
from collections.abc import Iterator
from typing import Any

HEADER = re.compile(r"\s*\[")


def key_lines(text: str) -> dict[str, int]:
    """Return the first line, from 1, of every table and key of a valid TOML text.

    Keys are joined by dots; the second table of an array ``waiver`` is ``waiver.1``.
    """
    lines: dict[str, int] = {}
    tables: Counter[str] = Counter()
    header = ""
    for number, statement in _statements(text):
        if HEADER.match(statement):
            header = statement
            name = ".".join(_path(tomllib.loads(header)))
            if statement.lstrip().startswith("[["):
                tables[name] += 1
            lines.setdefault(_numbered(name, tables), number)
        elif statement.strip():
            for path in _keys(tomllib.loads(f"{header}\n{statement}")):
                lines.setdefault(_numbered(".".join(path), tables), number)
    return lines


def _statements(text: str) -> Iterator[tuple[int, str]]:
    """Yield each header, comment or assignment with its first line; values may span lines."""
    held: list[str] = []
    for number, line in enumerate(text.split("\n"), 1):
        held.append(line)
        statement = "\n".join(held)
        if _is_whole(statement):
            yield number - len(held) + 1, statement
            held = []


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
    for table, count in tables.items():
        if path == table or path.startswith(f"{table}."):
            return f"{table}.{count - 1}{path[len(table) :]}"
    return path
