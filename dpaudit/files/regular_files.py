"""Regular files: opening input files with checks, and writing output files atomically."""

from __future__ import annotations

import errno
import logging
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4

from dpaudit.vocabulary.errors import (
    DpauditError,
    InputOutputError,
    IntegrityError,
    UnreadableFile,
    UnwritableFile,
)

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
SETTINGS_LIMIT, DOCUMENT_LIMIT, LEDGER_LIMIT, DATA_LIMIT = 256 * KIB, 8 * MIB, 512 * MIB, 64 * GIB
"""Largest accepted sizes in bytes: TOML, JSON, a ledger, and records or weights."""

DISK_FAILURES = frozenset(
    getattr(errno, name)
    for name in ("EIO", "ENOSPC", "EDQUOT", "EFBIG", "ENXIO", "ENODEV", "ESTALE", "EREMOTEIO")
    if hasattr(errno, name)
)
"""Error numbers that concern the disk, not the path."""

_LOG = logging.getLogger(__name__)

_FLAGS = os.O_RDONLY | sum(
    getattr(os, name, 0) for name in ("O_NONBLOCK", "O_CLOEXEC", "O_NOCTTY", "O_BINARY")
)


@dataclass(frozen=True)
class InputFile:
    """An input file, and how errors refer to it.

    Attributes:
        path: The path.
        argument: Name of the argument that gave the path; None for a file of a run.
        limit: Largest accepted size in bytes.
    """

    path: Path
    argument: str | None = None
    limit: int = DOCUMENT_LIMIT

    def error(self, why: str) -> DpauditError:
        """Return the error to raise if the file cannot be used.

        Args:
            why: The reason.

        Returns:
            ``UnreadableFile`` if an argument gave the path, else ``IntegrityError``.
        """
        if self.argument is None:
            return IntegrityError(f"{self.path} cannot be read: {why}")
        return UnreadableFile(self.argument, str(self.path), f"readable ({why})")


@contextmanager
def open_input(source: InputFile) -> Iterator[BufferedReader]:
    """Open a regular file for reading.

    Errors of the operating system, also those of the ``with`` block, become errors of dpaudit. A
    FIFO, device, socket or folder is refused without waiting. The checks are made on the opened
    file, so another file cannot take its place in between.

    Args:
        source: The file, and its size limit.

    Yields:
        The open file.

    Raises:
        UnreadableFile: If the file cannot be used, and an argument gave its path.
        IntegrityError: If the file cannot be used, and belongs to a run.
        InputOutputError: If the disk fails.
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


def read_bytes(source: InputFile) -> bytes:
    """Return the content of a file.

    Args:
        source: The file, and its size limit.

    Returns:
        All bytes.

    Raises:
        UnreadableFile: If the file cannot be used, and an argument gave its path.
        IntegrityError: If the file cannot be used, and belongs to a run.
        InputOutputError: If the disk fails.
    """
    with open_input(source) as file:
        return read_at_most(source, file)


def read_at_most(source: InputFile, file: BinaryIO) -> bytes:
    """Return the rest of an open file.

    Files in /proc report size 0, so reading continues until the end or the limit.

    Args:
        source: The file, and its size limit.
        file: The open file.

    Returns:
        All bytes from the current position.

    Raises:
        DpauditError: If there are more than ``source.limit`` bytes.
    """
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


def path_exists(path: Path) -> bool:
    """Return whether something is at a path, a broken symlink included.

    Args:
        path: Any path.

    Returns:
        Whether the folder has an entry of this name.

    Raises:
        OSError: If the operating system does not accept the path.
    """
    return os.path.lexists(path)


def utf8_name(path: Path) -> str:
    r"""Return the last part of a path as text for a document.

    Args:
        path: Any path.

    Returns:
        Unicode text, in which bytes that are not UTF-8 appear as \xNN.
    """
    return os.fsencode(os.path.basename(path)).decode(errors="backslashreplace")


def _open(source: InputFile) -> BufferedReader:
    """Open a regular file within its limit."""
    try:
        # Checked before opening, as opening a device can have effects, and again after it.
        _require_regular(source, os.stat(source.path))
        handle = os.open(source.path, _FLAGS)
    except DpauditError:
        raise
    except (ValueError, UnicodeError) as error:  # NUL, or a surrogate that is no byte
        raise source.error("not a path of a file") from error
    try:
        _require_regular(source, os.fstat(handle))
        _LOG.debug("read %s", source.path)
        return os.fdopen(handle, "rb")
    except BaseException:
        with suppress(OSError):
            os.close(handle)
        raise


def _require_regular(source: InputFile, status: os.stat_result) -> None:
    """Refuse folders, special files and files above the limit."""
    if stat.S_ISDIR(status.st_mode):
        raise source.error("a folder, not a file")
    if not stat.S_ISREG(status.st_mode):
        raise source.error("not a regular file: write it to a file first")
    if status.st_size > source.limit:
        raise _too_large(source, str(status.st_size))


def _too_large(source: InputFile, size: str) -> DpauditError:
    """Return the error for a file above its limit."""
    return source.error(f"it has {size} bytes, at most {source.limit} are read")


# Output files, written atomically.

PRIVATE, PUBLIC = 0o600, 0o666
"""Modes of new files: for the owner alone whatever the umask is, or as the umask allows.

Windows has no such modes: there a file gets the rights of its folder.
"""

_HAS_FOLDER_HANDLES = hasattr(os, "O_DIRECTORY")
"""Whether a folder can be opened and synchronised: not on Windows."""


def write_bytes(path: Path, content: bytes, mode: int = PUBLIC, argument: str = "file") -> None:
    """Write a file atomically: after a crash, the old file exists or the new one.

    Of several concurrent writers, one wins. Content derived from secrets is written with the mode
    ``PRIVATE``, which the file has from its creation.

    Args:
        path: Target; its folder must exist.
        content: All bytes.
        mode: ``PUBLIC`` or ``PRIVATE``.
        argument: Name of the path in errors.

    Raises:
        UnwritableFile: If the file cannot be written there.
        InputOutputError: If the disk is full or fails; then the old file is unchanged.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "report.html")
        ...     write_bytes(path, b"<!doctype html>")
        ...     path.read_bytes()
        b'<!doctype html>'
    """
    # Order: the content is on disk before the name refers to it, and the name before this
    # returns. Each writer has its own temporary file, so writers do not mix.
    partial = path.with_name(f"{path.name}.{uuid4().hex}.partial")
    try:
        _write_new(partial, content, mode)
        partial.replace(path)
        sync_to_disk(path.parent)
    except (OSError, ValueError) as error:
        with suppress(OSError, ValueError):
            partial.unlink(missing_ok=True)
        raise write_error(argument, path, error) from error


def write_output(path: Path, content: bytes, mode: int = PUBLIC, argument: str = "output") -> None:
    """Write to the path that an option names: a file atomically, a pipe or device directly.

    Args:
        path: Target; a symlink to a file stays a symlink.
        content: All bytes.
        mode: ``PUBLIC`` or ``PRIVATE``, for a new file.
        argument: Name of the path in errors.

    Raises:
        UnwritableFile: If nothing can be written there, or no process reads the pipe.
        InputOutputError: If the disk is full or fails.

    Example:
        >>> write_output(Path(os.devnull), b"verdict")
    """
    try:
        # Replace the file that a symlink points to, not the symlink.
        target = Path(os.path.realpath(path))
        special = target.exists() and not stat.S_ISREG(target.stat().st_mode)
        if special:
            _write_directly(path, content)
    except (OSError, ValueError) as error:
        raise write_error(argument, path, error) from error
    if not special:
        write_bytes(target, content, mode, argument)


def write_error(name: str, path: Path, error: Exception) -> DpauditError:
    """Return the error to raise if a path could not be written.

    Args:
        name: Name of the argument that gave the path.
        path: The path.
        error: What was raised.

    Returns:
        ``InputOutputError`` for failures of the disk, else ``UnwritableFile``. An error of
        dpaudit is returned unchanged.
    """
    if isinstance(error, DpauditError):
        return error
    why = getattr(error, "strerror", None) or str(error)
    if getattr(error, "errno", None) in DISK_FAILURES:
        return InputOutputError(str(path), why)
    return UnwritableFile(name, str(path), f"writable ({why})")


def create_empty_file(path: Path, mode: int = PUBLIC) -> int:
    """Create an empty file, for a library that writes to a path.

    Args:
        path: The path, which must not exist.
        mode: ``PUBLIC`` or ``PRIVATE``.

    Returns:
        The mode that the file got.

    Raises:
        OSError: If it cannot be created.
    """
    handle = _create(str(path), os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        return stat.S_IMODE(os.fstat(handle).st_mode)
    finally:
        os.close(handle)


def sync_to_disk(path: Path) -> None:
    """Wait until a file, or a folder's list of names, is on disk.

    On Windows the list of names is left to the file system, and a file must be writable.

    Args:
        path: A file or a folder.

    Raises:
        OSError: If the disk fails.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "ledger.jsonl")
        ...     _ = path.write_bytes(b"")
        ...     sync_to_disk(path)
    """
    if not _HAS_FOLDER_HANDLES and path.is_dir():
        return
    handle = os.open(path, os.O_RDONLY if _HAS_FOLDER_HANDLES else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _write_new(path: Path, content: bytes, mode: int) -> None:
    """Create a file, write it, and wait until its content is on disk."""
    with open(path, "xb", opener=lambda name, flags: _create(name, flags, mode)) as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _create(name: str, flags: int, mode: int) -> int:
    """Create a file with the given mode, for ``open``."""
    handle = os.open(name, flags, mode)
    if mode == PRIVATE and hasattr(os, "fchmod"):
        os.fchmod(handle, mode)  # the umask may have removed the owner's own rights
    return handle


def _write_directly(path: Path, content: bytes) -> None:
    """Write to a pipe or device, which is not created or truncated."""
    # Opening a pipe without a reader would block; with O_NONBLOCK it fails with ENXIO.
    flag = getattr(os, "O_NONBLOCK", 0)
    handle = os.open(path, os.O_WRONLY | flag | getattr(os, "O_NOCTTY", 0))
    if flag:
        os.set_blocking(handle, True)
    with os.fdopen(handle, "wb") as file:
        file.write(content)
