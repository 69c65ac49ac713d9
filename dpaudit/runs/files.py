"""Small files, written whole or not at all, and read with every check that they allow."""

from __future__ import annotations

import hashlib
import io
import math
import os
import re
import tomllib
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

import msgspec
import numpy as np
from numpy.typing import NDArray

from dpaudit.vocabulary import SCHEMA_VERSION
from dpaudit.vocabulary.errors import (
    AccountingError,
    IntegrityError,
    InvalidArgument,
    MissingExtra,
)

T = TypeVar("T")
PARTIAL = re.compile(r"(\.[0-9a-f]{32})?\.partial$")


def write_bytes(path: Path, content: bytes, mode: int = 0o666) -> None:
    """Write ``content`` to ``path``: after a crash the old file stands, or the new one.

    ``mode`` says who may read and write it; the user's mask may allow less. Of several that
    write at once, one is the last.

    Raises:
        InvalidArgument: it cannot be written there.
    """
    partial = path.with_name(f"{path.name}.{uuid4().hex}.partial")
    try:
        _write_new(partial, content, mode)
        partial.replace(path)
        sync(path.parent)
    except OSError as error:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise InvalidArgument("file", str(path), f"writable ({error.strerror})") from error


def name_of(path: Path) -> str:
    """Return the name of the file that ``path`` is, or would have become."""
    return PARTIAL.sub("", path.name)


def _write_new(path: Path, content: bytes, mode: int) -> None:
    with open(path, "xb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def sync(path: Path) -> None:
    """Return when ``path``, a file or a folder's list of names, is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_json(path: Path, value: msgspec.Struct) -> None:
    """Write ``value`` as indented JSON.

    Raises:
        AccountingError: a number in it is NaN or infinite, which JSON would make null.
    """
    _require_finite(msgspec.to_builtins(value))
    write_bytes(path, msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n")


def read_json(path: Path, kind: type[T]) -> T:
    """Read ``path`` as ``kind``.

    Raises:
        IntegrityError: the file is missing, is no such JSON, or has an unknown major version.
    """
    content = _read(path)
    _check_version(path, msgspec.json.decode, content)
    try:
        return msgspec.json.decode(content, type=kind)
    except (msgspec.MsgspecError, ValueError, ArithmeticError, RecursionError) as error:
        raise IntegrityError(f"{path} is not a valid {kind.__name__}: {error}") from error


def read_if_there(path: Path, kind: type[T]) -> T | None:
    """Read ``path`` as ``kind``; None where there is no such file.

    Raises:
        IntegrityError: it is there, and broken.
    """
    return read_json(path, kind) if path.exists() or path.is_symlink() else None


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
    content = _read(path)
    _check_version(path, lambda raw: tomllib.loads(raw.decode()), content)
    try:
        return msgspec.convert(tomllib.loads(content.decode()), kind)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise IntegrityError(f"{path} is not a valid {kind.__name__}: {error}") from error


def write_arrays(path: Path, **arrays: NDArray[Any]) -> None:
    """Write named arrays as .npz."""
    write_bytes(path, _packed(arrays))


def write_secret_arrays(path: Path, **arrays: NDArray[Any]) -> None:
    """Write named arrays as an .npz that its owner alone may read."""
    write_bytes(path, _packed(arrays), mode=0o600)


def _packed(arrays: dict[str, NDArray[Any]]) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    return buffer.getvalue()


def read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """Read named arrays of an .npz; nothing pickled is ever read.

    Raises:
        IntegrityError: the file is missing or broken, or holds pickled objects.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except Exception as error:  # zip, zlib, numpy: whatever a broken file brings
        raise IntegrityError(f"{path} is missing or broken: {error}") from error


def sha256(path: Path) -> str:
    """Return the file's SHA-256 as hexadecimal digits.

    Raises:
        IntegrityError: the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise IntegrityError(f"{path} cannot be read: {error.strerror}") from error


def require_new_file(name: str, path: Path) -> None:
    """Refuse a path that cannot be written: its folder is missing, or it is a folder."""
    if path.is_dir() or not path.absolute().parent.is_dir():
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


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise IntegrityError(f"{path} cannot be read: {error.strerror}") from error


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
