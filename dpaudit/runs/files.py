"""Small files, written whole or not at all, and read with every check that they allow."""

from __future__ import annotations

import hashlib
import io
import math
import os
import re
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from dpaudit.files.archives import MOST_EXPANSION
from dpaudit.files.arrays import read_npz
from dpaudit.files.documents import MOST_DEPTH, parse_toml, require_plain
from dpaudit.files.opening import DATA, SETTINGS, InputFile, opened, read
from dpaudit.files.writing import PRIVATE, PUBLIC, sync, write_bytes, write_output
from dpaudit.runs.strict_json import require_unique_keys
from dpaudit.vocabulary import SCHEMA_VERSION
from dpaudit.vocabulary.errors import (
    AccountingError,
    IntegrityError,
    InvalidArgument,
    MissingExtra,
)

__all__ = [
    "PRIVATE",
    "PUBLIC",
    "name_of",
    "read_arrays",
    "read_if_there",
    "read_json",
    "read_toml",
    "require_new_file",
    "sha256",
    "sync",
    "write_arrays",
    "write_bytes",
    "write_json",
    "write_output",
    "write_secret_arrays",
    "write_toml",
]

T = TypeVar("T")
PARTIAL = re.compile(r"(\.[0-9a-f]{32})?\.partial$")


def name_of(path: Path) -> str:
    """Return the name of the file that ``path`` is, or would have become."""
    return PARTIAL.sub("", path.name)


def write_json(path: Path, value: msgspec.Struct, mode: int = PUBLIC) -> None:
    """Write ``value`` as indented JSON; ``mode`` is as ``write_bytes`` has it.

    Raises:
        AccountingError: a number in it is NaN or infinite, which JSON would make null.
    """
    _require_finite(msgspec.to_builtins(value))
    write_bytes(path, msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n", mode)


def read_json(path: Path, kind: type[T]) -> T:
    """Read ``path`` as ``kind``.

    Raises:
        IntegrityError: the file is missing, is no such JSON, or has an unknown major version.
    """
    content = read(InputFile(path))
    _check_version(path, msgspec.json.decode, content)
    try:
        _require_shallow(content)
        require_unique_keys(content)
        return msgspec.json.decode(content, type=kind)
    except (msgspec.MsgspecError, ValueError, ArithmeticError, RecursionError) as error:
        raise IntegrityError(f"{path} is not a valid {kind.__name__}: {error}") from error


def read_if_there(path: Path, kind: type[T]) -> T | None:
    """Read ``path`` as ``kind``; None where there is no such file.

    Raises:
        IntegrityError: it is there, and broken.
    """
    return read_json(path, kind) if os.path.lexists(path) else None


def write_toml(path: Path, value: msgspec.Struct) -> None:
    """Write ``value`` as TOML; what is None is left out."""
    try:
        import tomli_w  # noqa: PLC0415  comes with an extra
    except ImportError as error:
        raise MissingExtra("tomli-w", "train") from error
    content = tomli_w.dumps(_without_none(msgspec.to_builtins(value)))
    write_bytes(path, content.encode())


def read_toml(path: Path, kind: type[T]) -> T:
    """Read ``path`` as ``kind``.

    Raises:
        IntegrityError: the file is missing, is no such TOML, or has an unknown major version.
    """
    content = read(InputFile(path, limit=SETTINGS))
    _check_version(path, lambda raw: parse_toml(raw.decode()), content)
    try:
        return msgspec.convert(parse_toml(content.decode()), kind)
    except (msgspec.MsgspecError, ValueError, ArithmeticError, RecursionError) as error:
        raise IntegrityError(f"{path} is not a valid {kind.__name__}: {error}") from error


def write_arrays(path: Path, **arrays: NDArray[Any]) -> None:
    """Write named arrays as .npz."""
    write_bytes(path, _packed(arrays))


def write_secret_arrays(path: Path, **arrays: NDArray[Any]) -> None:
    """Write named arrays as an .npz that its owner alone may read."""
    write_bytes(path, _packed(arrays), PRIVATE)


def _packed(arrays: dict[str, NDArray[Any]]) -> bytes:
    """Return the .npz of ``arrays``; what would be refused when it is read is not compressed."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    content = buffer.getvalue()
    if sum(array.nbytes for array in arrays.values()) > MOST_EXPANSION * len(content):
        buffer = io.BytesIO()
        np.savez(buffer, allow_pickle=False, **arrays)
        content = buffer.getvalue()
    return content


def read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """Read named arrays of an .npz; nothing pickled is ever read.

    Raises:
        IntegrityError: the file is missing or broken, or holds pickled objects.
    """
    return read_npz(InputFile(path, limit=DATA))


def sha256(path: Path) -> str:
    """Return the file's SHA-256 as hexadecimal digits.

    Raises:
        IntegrityError: the file cannot be read.
    """
    with opened(InputFile(path, limit=DATA)) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def require_new_file(name: str, path: Path) -> None:
    """Refuse a path that cannot be written: its folder is missing, or it is a folder."""
    # os.path, as it also answers for paths that the operating system does not take.
    if os.path.isdir(path) or not os.path.isdir(path.absolute().parent):
        raise InvalidArgument(name, str(path), "a file in a folder that exists")


def _require_finite(value: Any) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise AccountingError(f"{value!r} would be written as null, and read as if not measured")
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, list | tuple):
        return
    for item in value:
        _require_finite(item)


def _require_shallow(content: bytes) -> None:
    """Refuse deep nesting; counting brackets is enough for almost every file."""
    if content.count(b"{") + content.count(b"[") > MOST_DEPTH:
        require_plain(msgspec.json.decode(content))


def _check_version(path: Path, parse: Any, content: bytes) -> None:
    try:
        version = parse(content)["schema_version"]
        known = str(version).split(".")[0] == SCHEMA_VERSION.split(".")[0]
    except (KeyError, TypeError, ValueError, RecursionError, msgspec.MsgspecError) as error:
        raise IntegrityError(f"{path} names no schema_version: broken or not ours") from error
    if not known:
        raise IntegrityError(
            f"{path} has schema_version {version}; this dpaudit reads {SCHEMA_VERSION}: "
            "use the dpaudit that wrote it, or a newer one"
        )


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    if isinstance(value, list | tuple):
        return [_without_none(item) for item in value]
    return value
