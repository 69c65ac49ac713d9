"""The one place from which commands print: no control character of a name reaches a terminal."""

from __future__ import annotations

import os
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from dpaudit.files.opening import DISK_FAILURES
from dpaudit.vocabulary.errors import ClosedPipe, InputOutputError

# C0 but for newline and tab, DEL and C1; marks that reorder or hide text; line separators; and
# surrogates, which stand for bytes of a path that are no UTF-8.
_UNSAFE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff]"
)


def escaped(text: str) -> str:
    r"""Return ``text`` with each unsafe character as \xNN or \uNNNN, as Python writes it.

    Above ASCII it is \uNNNN alone, which JSON reads as the same character.
    """
    return _UNSAFE.sub(lambda found: _written(ord(found[0])), text)


def _written(code: int) -> str:
    return f"\\x{code:02x}" if code < 0x7F else f"\\u{code:04x}"


def named(path: object) -> str:
    """Return how a path or a name is printed: on one line, whatever is in it."""
    return escaped(str(path)).replace("\n", "\\n").replace("\t", "\\t")


def say(text: str) -> None:
    """Print ``text`` and a newline on standard output.

    Raises:
        ClosedPipe: Who read it has gone.
        InputOutputError: It is closed, or the disk under it is full or fails.
    """
    _write(sys.stdout, f"{escaped(text)}\n")


def warn(text: str) -> None:
    """Print ``text`` as one line on standard error, if anybody reads it."""
    _warn(" ".join(text.split()))


def warn_lines(text: str) -> None:
    """Print ``text``, which may have several lines, on standard error, if anybody reads it."""
    _warn(text.rstrip("\n"))


def _warn(text: str) -> None:
    try:
        _write(sys.stderr, f"{escaped(text)}\n")
    except OSError:
        return  # there is nowhere left to say so


def _write(stream: TextIO | None, text: str) -> None:
    if stream is None:
        raise InputOutputError("standard output", "closed")
    with _typed():
        stream.write(text)
        stream.flush()


@contextmanager
def _typed() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError as error:
        raise ClosedPipe("the reader of the output ended") from error
    except OSError as error:
        raise InputOutputError("standard output", error.strerror or str(error)) from error


@contextmanager
def prepared() -> Iterator[None]:
    """Make the standard streams safe while a command runs.

    Descriptors 0 to 2 that were closed are opened, or a file of a run would get their numbers.
    A character that a stream cannot encode is escaped. Warnings are one line.
    """
    _fill_descriptors()
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    with warnings.catch_warnings():
        warnings.showwarning = _show
        yield


def flush() -> None:
    """Write what is still held back.

    Raises:
        ClosedPipe: Who read it has gone.
        InputOutputError: The disk is full or fails.
    """
    if sys.stdout is not None:
        with _typed():
            sys.stdout.flush()


def discard() -> None:
    """Let what is still held back go nowhere, so that the interpreter does not try it again."""
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                null = os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, stream.fileno())
                os.close(null)
        except (OSError, ValueError):  # a stream that is no file
            continue


def is_disk_failure(error: OSError) -> bool:
    """Return whether an error says that a disk is full or fails."""
    return error.errno in DISK_FAILURES


def _fill_descriptors() -> None:
    handle = os.open(os.devnull, os.O_RDWR)
    while handle <= 2:
        handle = os.open(os.devnull, os.O_RDWR)
    os.close(handle)


def _show(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    warn(f"dpaudit: warning: {message}")
