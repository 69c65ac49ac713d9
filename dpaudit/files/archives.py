"""Compressed files: declared sizes are checked before anything is inflated."""

from __future__ import annotations

import gzip
import io
import math
import os
import struct
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from dpaudit.files.regular_files import MIB, InputFile, open_input
from dpaudit.vocabulary.errors import DpauditError

MAX_EXPANSION, ALWAYS_ALLOWED_BYTES = 200, 64 * MIB
"""Largest expansion factor of a file, and the size in bytes that any file may expand to."""

MAX_DIRECTORY_BYTES = 4 * MIB
_END, _END64 = b"PK\x05\x06", b"PK\x06\x06"
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_CHUNK = MIB
ARCHIVE_ERRORS = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    NotImplementedError,
    RuntimeError,
    ValueError,
)
"""Exceptions that reading a broken archive raises, besides OSError."""


def machine_memory() -> int:
    """Return the physical memory of the machine, in bytes."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def require_expansion(source: InputFile, size: int, packed: int) -> None:
    """Refuse a file that expands far beyond its own size, or beyond the machine's memory.

    Args:
        source: The file.
        size: Size of its content in bytes.
        packed: Size of the file in bytes.

    Raises:
        DpauditError: If ``size`` is above the memory, or above 64 MiB and 200 times ``packed``.
    """
    if size > machine_memory():
        raise source.error(f"it inflates to {size} bytes, more than the memory of this machine")
    if size > max(ALWAYS_ALLOWED_BYTES, MAX_EXPANSION * packed):
        raise source.error(f"{packed} bytes inflate to {size}, over {MAX_EXPANSION} times as many")


@contextmanager
def open_zip(source: InputFile) -> Iterator[zipfile.ZipFile]:
    """Open a zip archive of stored or deflated entries with distinct names.

    Args:
        source: The file.

    Yields:
        The open archive; entries are not inflated yet.

    Raises:
        DpauditError: If the file cannot be opened, is not such an archive, or expands too far.
    """
    with open_input(source) as file:
        try:
            _require_short_directory(source, file)
            with zipfile.ZipFile(file) as archive:
                _require_plain(source, archive, os.fstat(file.fileno()).st_size)
                yield archive
        except DpauditError:
            raise
        except ARCHIVE_ERRORS as error:
            raise source.error(f"broken: {error}") from error


def _require_plain(source: InputFile, archive: zipfile.ZipFile, packed: int) -> None:
    """Refuse repeated names, encryption, other compression methods and large expansion."""
    entries = archive.infolist()
    if len({entry.filename for entry in entries}) < len(entries):
        raise source.error("an archive with a repeated name")
    if any(entry.compress_type not in _METHODS or entry.flag_bits & 1 for entry in entries):
        raise source.error("an archive whose entries are encrypted, or neither stored nor deflated")
    require_expansion(source, sum(entry.file_size for entry in entries), packed)


def _require_short_directory(source: InputFile, file: BinaryIO) -> None:
    """Refuse an archive whose list of entries alone would fill the memory."""
    # The end record is at most 22 bytes and a comment of 2^16 from the end; zip64 adds a
    # record of 56 bytes and a locator of 20 before it.
    size = file.seek(0, io.SEEK_END)
    file.seek(max(0, size - (1 << 16) - 200))
    tail = file.read()
    file.seek(0)
    lengths = [
        length for sign, place, form in _DIRECTORY for length in _all(tail, sign, place, form)
    ]
    if not lengths:
        raise source.error("not a zip archive")
    longest = max(length for length in lengths if length != 0xFFFFFFFF or len(lengths) == 1)
    if longest > MAX_DIRECTORY_BYTES:
        raise source.error("an archive of too many entries")


_DIRECTORY = ((_END, 12, "<I"), (_END64, 40, "<Q"))
"""Signature, offset and format of the directory's length in both end records (APPNOTE 4.3)."""


def _all(tail: bytes, sign: bytes, place: int, form: str) -> Iterator[int]:
    """Yield the directory's length from the last end record of one kind, if there is one."""
    found = tail.rfind(sign)
    if found >= 0 and found + place + struct.calcsize(form) <= len(tail):
        yield struct.unpack_from(form, tail, found + place)[0]


def gunzip(source: InputFile) -> bytes:
    """Return the content of a gzip file.

    Args:
        source: The file.

    Returns:
        The content; its size is checked after every MiB, as gzip does not declare it reliably.

    Raises:
        DpauditError: If the file cannot be opened, is not gzip, or expands too far.
    """
    with open_input(source) as file:
        packed, parts, size = os.fstat(file.fileno()).st_size, [], 0
        try:
            with gzip.GzipFile(fileobj=file) as stream:
                while part := stream.read(_CHUNK):
                    size += len(part)
                    require_expansion(source, size, packed)
                    parts.append(part)
        except DpauditError:
            raise
        except (*ARCHIVE_ERRORS, gzip.BadGzipFile) as error:
            raise source.error(f"broken: {error}") from error
    return b"".join(parts)


# Arrays of .npz files: headers are compared with sizes first; nothing pickled is read.

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class ArrayHeader:
    """Shape and type that an array's header declares."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def size(self) -> int:
        """Bytes of the array; or its largest dimension, if entries take no bytes."""
        return max(math.prod(self.shape) * self.dtype.itemsize, *self.shape, 0)


@dataclass(frozen=True)
class NpzArchive:
    """An open .npz file.

    Attributes:
        source: The file.
        headers: Header of each array, with names as keys.
    """

    source: InputFile
    headers: dict[str, ArrayHeader]
    _archive: zipfile.ZipFile
    _packed: int

    def read(self, names: Iterable[str]) -> Arrays:
        """Inflate some arrays.

        Args:
            names: Names among ``headers``.

        Returns:
            The arrays, with their names as keys.

        Raises:
            DpauditError: If their content is broken.
        """
        return {name: self._array(name) for name in names}

    def require_room(self, size: int) -> None:
        """Refuse the file if values computed from it would take too much memory.

        Args:
            size: Size of these values in bytes.

        Raises:
            DpauditError: If ``size`` is too large for the file's own size, or for the machine.
        """
        require_expansion(self.source, size, self._packed)

    def _array(self, name: str) -> NDArray[Any]:
        """Inflate one array; pickled objects are refused."""
        with self._archive.open(f"{name}.npy") as file:
            found: NDArray[Any] = np.lib.format.read_array(file, allow_pickle=False)
        return found


@contextmanager
def open_npz(source: InputFile) -> Iterator[NpzArchive]:
    """Open a .npz file whose arrays are as large as declared and hold no objects.

    Args:
        source: The file.

    Yields:
        The open file; only headers are read.

    Raises:
        DpauditError: If the file cannot be opened, or is not such an archive.
    """
    with open_zip(source) as archive:
        names = [name for name in archive.namelist() if name.endswith(".npy")]
        headers = {name.removesuffix(".npy"): _header(source, archive, name) for name in names}
        opened = NpzArchive(source, headers, archive, _size(archive))
        opened.require_room(sum(header.size for header in headers.values()))
        yield opened


def read_npz(source: InputFile) -> Arrays:
    """Return all arrays of a .npz file.

    Args:
        source: The file.

    Returns:
        The arrays, with their names as keys.

    Raises:
        DpauditError: If the file cannot be opened, or is not such an archive.
    """
    with open_npz(source) as archive:
        return archive.read(archive.headers)


def read_header(file: IO[bytes]) -> ArrayHeader:
    """Read the header of an array in .npy format.

    Args:
        file: Binary stream at the beginning of the array.

    Returns:
        Shape and type.

    Raises:
        ValueError: If the header is broken, of an unknown version, or of an array of objects.
    """
    version = np.lib.format.read_magic(file)
    readers = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    if version not in readers:
        raise ValueError(f"an array of format {version}")
    shape, _, dtype = readers[version](file)
    if dtype.hasobject or dtype.fields is not None:
        raise ValueError(f"an array of {'objects' if dtype.hasobject else 'records'}")
    if any(side < 0 for side in shape):
        raise ValueError(f"an array of shape {shape}")
    return ArrayHeader(shape, dtype)


def _header(source: InputFile, archive: zipfile.ZipFile, name: str) -> ArrayHeader:
    """Return the header of one array of an archive, if its size is as declared."""
    try:
        with archive.open(name) as file:
            header = read_header(file)
            declared = file.tell() + math.prod(header.shape) * header.dtype.itemsize
    except (
        *ARCHIVE_ERRORS,
        SyntaxError,
        TypeError,
        MemoryError,
        RecursionError,
        OverflowError,
    ) as error:
        raise source.error(f"{name} has a broken header: {error}") from error
    size = archive.getinfo(name).file_size
    if size != declared:
        raise source.error(f"{name} has {size} bytes and declares {declared}")
    return header


def _size(archive: zipfile.ZipFile) -> int:
    """Return the size of an open archive's file in bytes."""
    return os.fstat(archive.fp.fileno()).st_size  # type: ignore[union-attr]
