"""The bytes of a ledger's file, checked before they are split into lines."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

from dpaudit.files.regular_files import KIB, LEDGER_LIMIT, InputFile, open_input, read_at_most

MAX_HEADER_BYTES, MIN_LINE_BYTES, ALWAYS_ALLOWED_LINES = 64 * KIB, 80, 10_000
"""Largest first line and smallest line (it holds its hash), in bytes; and the number of lines
that are split whatever their length is."""


def ledger_bytes(path: Path) -> bytes:
    """Return the content of a ledger's file.

    Args:
        path: The ledger.

    Returns:
        All bytes.

    Raises:
        IntegrityError: If it is missing, is no regular file, or cannot be split into lines.
    """
    source = InputFile(path, limit=LEDGER_LIMIT)
    with open_input(source) as file:
        return checked_lines(source, file)


def checked_lines(source: InputFile, file: BinaryIO) -> bytes:
    """Return a ledger's bytes, after a check that they can be lines, before they are split.

    Args:
        source: The file, for errors.
        file: The open file, at its beginning.

    Returns:
        All bytes.

    Raises:
        DpauditError: If the first line is longer than any header, or lines are too short.
    """
    begin = file.read(MAX_HEADER_BYTES)
    if len(begin) == MAX_HEADER_BYTES and b"\n" not in begin:
        raise source.error("its first line is longer than any header")
    content = begin + read_at_most(source, file)
    if content.count(b"\n") > max(ALWAYS_ALLOWED_LINES, len(content) // MIN_LINE_BYTES):
        raise source.error("it has lines that are too short for a ledger")
    return content
