"""The summary that GitHub shows of a job."""

from __future__ import annotations

import os
from pathlib import Path

from dpaudit.files.writing import PUBLIC, write_error


def append_summary(path: Path, text: str) -> None:
    """Add ``text`` to what earlier steps wrote into ``path``, apart from it.

    Raises:
        InvalidArgument: the file cannot be written.
        InputOutputError: the disk is full or fails.
    """
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_NONBLOCK", 0)
    try:
        with open(
            path, "a", encoding="utf-8", opener=lambda name, _: os.open(name, flags, PUBLIC)
        ) as file:
            file.write(f"\n\n{text}\n")
    except (OSError, ValueError) as error:
        raise write_error("GITHUB_STEP_SUMMARY", path, error) from error
