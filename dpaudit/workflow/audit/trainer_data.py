"""The digest of what a user's own trainer reads, by which an interrupted audit resumes."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from dpaudit.runs.file_io import sha256
from dpaudit.vocabulary.errors import InvalidArgument

TrainerData = Sequence[ArrayLike | str | os.PathLike[str]]
"""Arrays, and paths of files or folders, that a trainer reads."""


def digest_trainer_data(data: TrainerData) -> str:
    """Compute the digest of everything that a trainer reads.

    Args:
        data: Arrays and paths, in a fixed order. Of a folder, all files are read.

    Returns:
        64 hexadecimal digits; empty without data.

    Raises:
        InvalidArgument: If an item is a missing path, or no array of numbers or text.
        IntegrityError: If a file cannot be read.

    Example:
        >>> digest_trainer_data([np.zeros(3)]) == digest_trainer_data([np.ones(3)])
        False
    """
    if not len(data):
        return ""
    whole = hashlib.sha256()
    for item in data:
        for part in _parts(item):
            whole.update(len(part).to_bytes(8, "big") + part)
    return whole.hexdigest()


def _parts(item: ArrayLike | str | os.PathLike[str]) -> Iterator[bytes]:
    """Yield the bytes that an item is known by."""
    if isinstance(item, str | os.PathLike):
        yield from _files(Path(item))
        return
    values = np.asarray(item)
    if values.dtype.hasobject:
        raise InvalidArgument("data", f"an array of {values.dtype}", "arrays of numbers, or paths")
    yield f"{values.dtype.str}{values.shape}".encode()
    yield np.ascontiguousarray(values).tobytes()


def _files(path: Path) -> Iterator[bytes]:
    """Yield the name within the item and the digest of each file."""
    if not path.exists():
        raise InvalidArgument("data", str(path), "a file or folder that the trainer reads")
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if not file.is_dir():
            yield str(file.relative_to(path)).encode()
            yield sha256(file).encode()
