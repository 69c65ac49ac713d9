"""Arrays of .npz files: the headers are read and compared first, nothing pickled ever."""

from __future__ import annotations

import math
import os
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from dpaudit.files.archives import BROKEN, opened_zip, require_expansion
from dpaudit.files.opening import InputFile

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Header:
    """What an array's header declares."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def size(self) -> int:
        """Bytes of the array; or its number of records, if these take no bytes."""
        return max(math.prod(self.shape) * self.dtype.itemsize, *self.shape, 0)


@dataclass(frozen=True)
class Npz:
    """An open .npz file.

    Attributes:
        source: The file.
        headers: Of each array, by name.
    """

    source: InputFile
    headers: dict[str, Header]
    _archive: zipfile.ZipFile
    _packed: int

    def read(self, names: Iterable[str]) -> Arrays:
        """Inflate the arrays ``names``.

        Raises:
            DpauditError: Their content is broken.
        """
        return {name: self._array(name) for name in names}

    def require_room(self, size: int) -> None:
        """Refuse the file if what is made of it takes ``size`` bytes and that is too many."""
        require_expansion(self.source, size, self._packed)

    def _array(self, name: str) -> NDArray[Any]:
        with self._archive.open(f"{name}.npy") as file:
            found: NDArray[Any] = np.lib.format.read_array(file, allow_pickle=False)
        return found


@contextmanager
def opened_npz(source: InputFile) -> Iterator[Npz]:
    """Open a .npz file; its arrays are as large as their headers declare, and hold no objects.

    Raises:
        DpauditError: The file cannot be opened, or is no such archive.
    """
    with opened_zip(source) as archive:
        names = [name for name in archive.namelist() if name.endswith(".npy")]
        headers = {name.removesuffix(".npy"): _header(source, archive, name) for name in names}
        opened = Npz(source, headers, archive, _size(archive))
        opened.require_room(sum(header.size for header in headers.values()))
        yield opened


def read_npz(source: InputFile) -> Arrays:
    """Return all arrays of a .npz file.

    Raises:
        DpauditError: As ``opened_npz``.
    """
    with opened_npz(source) as archive:
        return archive.read(archive.headers)


def read_header(file: IO[bytes]) -> Header:
    """Read the header of an array.

    Raises:
        ValueError: It is broken, of an unknown version, or of an array of objects.
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
    return Header(shape, dtype)


def _header(source: InputFile, archive: zipfile.ZipFile, name: str) -> Header:
    try:
        with archive.open(name) as file:
            header = read_header(file)
            declared = file.tell() + math.prod(header.shape) * header.dtype.itemsize
    except (*BROKEN, SyntaxError, TypeError, MemoryError, RecursionError, OverflowError) as error:
        raise source.error(f"{name} has a broken header: {error}") from error
    size = archive.getinfo(name).file_size
    if size != declared:
        raise source.error(f"{name} has {size} bytes and declares {declared}")
    return header


def _size(archive: zipfile.ZipFile) -> int:
    return os.fstat(archive.fp.fileno()).st_size  # type: ignore[union-attr]
