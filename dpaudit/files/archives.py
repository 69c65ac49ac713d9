"""Compressed files: what they declare is checked before they are inflated."""

from __future__ import annotations

import gzip
import io
import os
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

from dpaudit.files.opening import MIB, InputFile, opened
from dpaudit.vocabulary.errors import DpauditError

MOST_EXPANSION, SMALL = 200, 64 * MIB
"""A file may inflate to so many times its size, and any file to so many bytes."""

LONGEST_DIRECTORY = 4 * MIB
_END, _END64 = b"PK\x05\x06", b"PK\x06\x06"
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_CHUNK = MIB
BROKEN = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError)
"""What reading a broken archive raises, beside OSError."""


def memory() -> int:
    """Return the machine's memory in bytes."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def require_expansion(source: InputFile, size: int, packed: int) -> None:
    """Refuse a file that takes far more memory than its own size, or more than there is.

    Args:
        source: The file.
        size: Bytes that it becomes.
        packed: Bytes that it is.
    """
    if size > memory():
        raise source.error(f"it inflates to {size} bytes, more than the memory of this machine")
    if size > max(SMALL, MOST_EXPANSION * packed):
        raise source.error(f"{packed} bytes inflate to {size}, over {MOST_EXPANSION} times as many")


@contextmanager
def opened_zip(source: InputFile) -> Iterator[zipfile.ZipFile]:
    """Open a zip archive of stored or deflated entries with distinct names.

    Raises:
        DpauditError: As ``opened``; or it is no such archive, or inflates too far.
    """
    with opened(source) as file:
        try:
            _require_short_directory(source, file)
            with zipfile.ZipFile(file) as archive:
                _require_plain(source, archive, os.fstat(file.fileno()).st_size)
                yield archive
        except DpauditError:
            raise
        except BROKEN as error:
            raise source.error(f"broken: {error}") from error


def _require_plain(source: InputFile, archive: zipfile.ZipFile, packed: int) -> None:
    entries = archive.infolist()
    if len({entry.filename for entry in entries}) < len(entries):
        raise source.error("an archive with one name twice")
    if any(entry.compress_type not in _METHODS or entry.flag_bits & 1 for entry in entries):
        raise source.error("an archive whose entries are encrypted, or neither stored nor deflated")
    require_expansion(source, sum(entry.file_size for entry in entries), packed)


def _require_short_directory(source: InputFile, file: BinaryIO) -> None:
    """Refuse an archive whose list of entries alone would fill the memory."""
    size = file.seek(0, io.SEEK_END)
    file.seek(max(0, size - (1 << 16) - 200))
    tail = file.read()
    file.seek(0)
    lengths = [
        length for sign, place, form in _DIRECTORY for length in _all(tail, sign, place, form)
    ]
    if not lengths:
        raise source.error("no zip archive")
    longest = max(length for length in lengths if length != 0xFFFFFFFF or len(lengths) == 1)
    if longest > LONGEST_DIRECTORY:
        raise source.error("an archive of too many entries")


_DIRECTORY = ((_END, 12, "<I"), (_END64, 40, "<Q"))
"""Where the end records of a zip archive have their directory's length (APPNOTE 4.3)."""


def _all(tail: bytes, sign: bytes, place: int, form: str) -> Iterator[int]:
    found = tail.rfind(sign)
    if found >= 0 and found + place + struct.calcsize(form) <= len(tail):
        yield struct.unpack_from(form, tail, found + place)[0]


def gunzip(source: InputFile) -> bytes:
    """Return the content of a gzip file.

    Raises:
        DpauditError: As ``opened``; or it is no such file, or inflates too far.
    """
    with opened(source) as file:
        packed, parts, size = os.fstat(file.fileno()).st_size, [], 0
        try:
            with gzip.GzipFile(fileobj=file) as stream:
                while part := stream.read(_CHUNK):
                    size += len(part)
                    require_expansion(source, size, packed)
                    parts.append(part)
        except DpauditError:
            raise
        except (*BROKEN, gzip.BadGzipFile) as error:
            raise source.error(f"broken: {error}") from error
    return b"".join(parts)
