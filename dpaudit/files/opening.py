"""The one function that opens an input file."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO

from dpaudit.vocabulary.errors import (
    DpauditError,
    InputOutputError,
    IntegrityError,
    InvalidArgument,
)

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
SETTINGS, DOCUMENT, LEDGER, DATA = 256 * KIB, 8 * MIB, 512 * MIB, 64 * GIB
"""The largest files, in bytes: of TOML, of JSON, a ledger, and records or weights."""

DISK_FAILURES = frozenset(
    getattr(errno, name)
    for name in ("EIO", "ENOSPC", "EDQUOT", "EFBIG", "ENXIO", "ENODEV", "ESTALE", "EREMOTEIO")
    if hasattr(errno, name)
)
"""What the operating system says of a disk, rather than of a path."""

_FLAGS = os.O_RDONLY | sum(
    getattr(os, name, 0) for name in ("O_NONBLOCK", "O_CLOEXEC", "O_NOCTTY", "O_BINARY")
)


@dataclass(frozen=True)
class InputFile:
    """An input file.

    Attributes:
        path: Where it is.
        argument: Name of the argument that names it; None for a file of a run.
        limit: Its largest size in bytes.
    """

    path: Path
    argument: str | None = None
    limit: int = DOCUMENT

    def error(self, why: str) -> DpauditError:
        """Return the error to raise if the file cannot be used."""
        if self.argument is None:
            return IntegrityError(f"{self.path} cannot be read: {why}")
        return InvalidArgument(self.argument, str(self.path), f"readable ({why})")


@contextmanager
def opened(source: InputFile) -> Iterator[BufferedReader]:
    """Open a regular file of at most ``source.limit`` bytes to read.

    The operating system's errors, also those of the ``with`` block, become ours. A FIFO, a
    device, a socket or a folder is refused and never waited for. What is checked is the file
    that was opened, so that another one cannot take its place in between.

    Raises:
        InvalidArgument: It cannot be used, and an argument names it.
        IntegrityError: It cannot be used, and is a file of a run.
        InputOutputError: The disk fails.
    """
    try:
        with _open(source) as file:
            yield file
    except DpauditError:
        raise
    except OSError as error:
        why = error.strerror or str(error)
        if error.errno in DISK_FAILURES:
            raise InputOutputError(str(source.path), why) from error
        raise source.error(why) from error


def read(source: InputFile) -> bytes:
    """Return the content of a file.

    Raises:
        InvalidArgument: It cannot be used, and an argument names it.
        IntegrityError: It cannot be used, and is a file of a run.
        InputOutputError: The disk fails.
    """
    with opened(source) as file:
        return read_at_most(source, file)


def read_at_most(source: InputFile, file: BinaryIO) -> bytes:
    """Return the rest of an open file; files of /proc say their size only by their content."""
    expected = os.fstat(file.fileno()).st_size - file.tell()
    content = file.read(max(0, expected) + 1)
    if len(content) <= max(0, expected):
        return content
    parts, size = [content], len(content)
    while size <= source.limit and (part := file.read(MIB)):
        parts.append(part)
        size += len(part)
    if size > source.limit:
        raise _too_large(source, f"over {source.limit}")
    return b"".join(parts)


def is_there(path: Path) -> bool:
    """Return whether something is at ``path``, a broken link among it.

    Raises:
        OSError: The path is none that the operating system takes.
    """
    return os.path.lexists(path)


def name_in_text(path: Path) -> str:
    r"""Return the last name of a path for a document; bytes that are no UTF-8 are \xNN."""
    return os.fsencode(os.path.basename(path)).decode(errors="backslashreplace")


def _open(source: InputFile) -> BufferedReader:
    try:
        # Before it is opened: to open a device can do something.
        _require_regular(source, os.stat(source.path))
        handle = os.open(source.path, _FLAGS)
    except DpauditError:
        raise
    except (ValueError, UnicodeError) as error:  # NUL, or a surrogate that is no byte
        raise source.error("no path of a file") from error
    try:
        _require_regular(source, os.fstat(handle))
        return os.fdopen(handle, "rb")
    except BaseException:
        with suppress(OSError):
            os.close(handle)
        raise


def _require_regular(source: InputFile, status: os.stat_result) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise source.error("a folder, not a file")
    if not stat.S_ISREG(status.st_mode):
        raise source.error("no regular file: write it to a file first")
    if status.st_size > source.limit:
        raise _too_large(source, str(status.st_size))


def _too_large(source: InputFile, size: str) -> DpauditError:
    return source.error(f"{size} bytes, at most {source.limit} are read")
