"""Output files, written whole or not at all."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

from dpaudit.files.opening import DISK_FAILURES
from dpaudit.vocabulary.errors import DpauditError, InputOutputError, InvalidArgument

PRIVATE, PUBLIC = 0o600, 0o666
"""Modes of new files: for their owner alone whatever the mask says, or as the mask says."""


def write_bytes(path: Path, content: bytes, mode: int = PUBLIC, argument: str = "file") -> None:
    """Write ``content`` to ``path``: after a crash the old file stands, or the new one.

    Of several that write at once, one is the last. Errors call the path ``argument``. What was
    derived from secrets is written with the mode ``PRIVATE``, which it has from the start.

    Raises:
        InvalidArgument: It cannot be written there.
        InputOutputError: The disk is full or fails; the old file stands.
    """
    partial = path.with_name(f"{path.name}.{uuid4().hex}.partial")
    try:
        _write_new(partial, content, mode)
        partial.replace(path)
        sync(path.parent)
    except (OSError, ValueError) as error:
        with suppress(OSError, ValueError):
            partial.unlink(missing_ok=True)
        raise write_error(argument, path, error) from error


def write_output(path: Path, content: bytes, mode: int = PUBLIC, argument: str = "output") -> None:
    """Write what an option asks for: a file as ``write_bytes``, or a pipe or device directly.

    Raises:
        InvalidArgument: It cannot be written there, or nobody reads the pipe.
        InputOutputError: The disk is full or fails.
    """
    try:
        # A link to a file stays a link.
        target = Path(os.path.realpath(path))
        special = target.exists() and not stat.S_ISREG(target.stat().st_mode)
        if special:
            _write_directly(path, content)
    except (OSError, ValueError) as error:
        raise write_error(argument, path, error) from error
    if not special:
        write_bytes(target, content, mode, argument)


def write_error(name: str, path: Path, error: Exception) -> DpauditError:
    """Return what to raise where ``path`` could not be written."""
    if isinstance(error, DpauditError):
        return error
    why = getattr(error, "strerror", None) or str(error)
    if getattr(error, "errno", None) in DISK_FAILURES:
        return InputOutputError(str(path), why)
    return InvalidArgument(name, str(path), f"writable ({why})")


def create_empty(path: Path, mode: int = PUBLIC) -> int:
    """Make an empty file for a library that writes by name; return the mode that it got."""
    handle = _create(str(path), os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        return stat.S_IMODE(os.fstat(handle).st_mode)
    finally:
        os.close(handle)


def sync(path: Path) -> None:
    """Return when ``path``, a file or a folder's list of names, is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _write_new(path: Path, content: bytes, mode: int) -> None:
    with open(path, "xb", opener=lambda name, flags: _create(name, flags, mode)) as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _create(name: str, flags: int, mode: int) -> int:
    handle = os.open(name, flags, mode)
    if mode == PRIVATE:
        os.fchmod(handle, mode)  # a mask can have taken the owner's own rights
    return handle


def _write_directly(path: Path, content: bytes) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY)  # nobody reads it: ENXIO
    os.set_blocking(handle, True)
    with os.fdopen(handle, "wb") as file:
        file.write(content)
