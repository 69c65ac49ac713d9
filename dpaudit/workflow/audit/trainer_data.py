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
        InvalidArgument: If ``data`` is no list, or an item is a missing path, or no array of
            numbers or text.
        IntegrityError: If a file cannot be read.

    Example:
        >>> digest_trainer_data([np.zeros(3)]) == digest_trainer_data([np.ones(3)])
        False
    """
    if isinstance(data, str | os.PathLike):  # a sequence of letters
        raise InvalidArgument("trainer_data", str(data), "a list of arrays and paths")
    if not len(data):
        return ""
    whole = hashlib.sha256()
    for item in data:
        for part in _parts(item):
            whole.update(len(part).to_bytes(8, "big") + part)
    return whole.hexdigest()


def require_outside_data(folder: Path, data: TrainerData) -> None:
    """Refuse a folder of outputs within the data: each model would change the data's digest.

    Args:
        folder: Where the outputs of models are written.
        data: Arrays and paths that a trainer reads.

    Raises:
        InvalidArgument: If a path of ``data`` is the folder, or holds it.
    """
    inside = {folder.resolve(), *folder.resolve().parents}
    for item in data:
        if isinstance(item, str | os.PathLike) and Path(item).resolve() in inside:
            allowed = (
                f"a folder outside of {os.fspath(item)}, which the trainer reads: an audit that "
                "changes its own data could not resume"
            )
            raise InvalidArgument("folder", str(folder), allowed)


def _parts(item: ArrayLike | str | os.PathLike[str]) -> Iterator[bytes]:
    """Yield the bytes that an item is known by."""
    if isinstance(item, str | os.PathLike):
        yield from _files(Path(item))
        return
    allowed = "detached arrays of numbers, or paths"
    try:
        values = np.asarray(item)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InvalidArgument(
            "trainer_data", f"{type(item).__name__} ({error})", allowed
        ) from error
    if values.dtype.hasobject or isinstance(item, np.ma.MaskedArray):
        given = f"{type(item).__name__} of {values.dtype}"
        raise InvalidArgument("trainer_data", given, allowed)
    yield f"{values.dtype}{values.dtype.str}{values.shape}".encode()
    yield np.ascontiguousarray(values).tobytes()


def _files(path: Path) -> Iterator[bytes]:
    """Yield the name within the item and the digest of each file."""
    if not path.exists():
        raise InvalidArgument("trainer_data", str(path), "a file or folder that the trainer reads")
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if not file.is_dir():
            yield os.fsencode(file.relative_to(path))
            yield sha256(file).encode()
