"""The summary that GitHub shows of a job."""

from __future__ import annotations

from pathlib import Path

from dpaudit.vocabulary.errors import InvalidArgument


def append_summary(path: Path, text: str) -> None:
    """Add ``text`` to what earlier steps wrote into ``path``, apart from it.

    Raises:
        InvalidArgument: the file cannot be written.
    """
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(f"\n\n{text}\n")
    except OSError as error:
        allowed = f"a file that can be written ({error.strerror})"
        raise InvalidArgument("GITHUB_STEP_SUMMARY", str(path), allowed) from error
