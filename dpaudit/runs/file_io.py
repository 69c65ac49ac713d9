"""Small files of a run: written atomically, and read with every check that they allow."""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import re
from collections import Counter
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from dpaudit.files.archives import MAX_EXPANSION, read_npz
from dpaudit.files.documents import MAX_NESTING, parse_toml, require_shallow_document
from dpaudit.files.regular_files import (
    DATA_LIMIT,
    PRIVATE,
    PUBLIC,
    SETTINGS_LIMIT,
    InputFile,
    open_input,
    read_bytes,
    sync_to_disk,
    write_bytes,
    write_output,
)
from dpaudit.vocabulary import SCHEMA_VERSION, is_readable
from dpaudit.vocabulary.errors import (
    AccountingError,
    IntegrityError,
    InvalidArgument,
    MissingExtra,
    UnsupportedVersion,
)
from dpaudit.vocabulary.renamed import has_old_names, renamed

__all__ = [
    "PRIVATE",
    "PUBLIC",
    "final_name",
    "has_table",
    "read_arrays",
    "read_json",
    "read_optional_json",
    "read_toml",
    "require_new_file",
    "require_unique_keys",
    "sha256",
    "sync_to_disk",
    "write_arrays",
    "write_bytes",
    "write_json",
    "write_output",
    "write_secret_arrays",
    "write_toml",
]

T = TypeVar("T")
PARTIAL_SUFFIX = re.compile(r"(\.[0-9a-f]{32})?\.partial$")

# Strict JSON: parsers differ on repeated keys and on NaN, so both are refused.


def require_unique_keys(text: bytes) -> None:
    """Refuse JSON in which an object, at any depth, has a key twice.

    Args:
        text: One JSON value, in UTF-8.

    Raises:
        ValueError: If a key is repeated, or ``text`` is not JSON, or holds NaN or an infinity.
        RecursionError: If it is nested too deeply.

    Example:
        >>> require_unique_keys(b'{"epsilon": 1.0, "delta": 1e-5}')
        >>> require_unique_keys(b'{"epsilon": 1.0, "epsilon": 9.0}')
        Traceback (most recent call last):
        ValueError: the key 'epsilon' appears twice in one object
    """
    json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse)


def _unique(pairs: list[tuple[str, Any]]) -> None:
    """Return an object's pairs as a dict, unless a key is repeated."""
    if len(dict(pairs)) < len(pairs):
        counts = Counter(name for name, _ in pairs)
        twice = counts.most_common(1)[0][0]
        raise ValueError(f"the key {twice!r} appears twice in one object")


def _refuse(constant: str) -> None:
    """Refuse NaN and infinities, which the standard parser accepts."""
    raise ValueError(f"it holds {constant}, which is not JSON")


def final_name(path: Path) -> str:
    """Return the name that a file has once it is complete.

    Args:
        path: A file, or its temporary file ``NAME[.HEX].partial``.

    Returns:
        The last part of the path without the temporary suffix.

    Example:
        >>> final_name(Path("run/claim.json.partial"))
        'claim.json'
    """
    return PARTIAL_SUFFIX.sub("", path.name)


def write_json(path: Path, value: msgspec.Struct, mode: int = PUBLIC) -> None:
    """Write a value as indented JSON, atomically.

    Args:
        path: Target; its folder must exist.
        value: The value; its numbers must be finite, as JSON would make others null.
        mode: ``PUBLIC`` or ``PRIVATE``.

    Raises:
        AccountingError: If a number is NaN or infinite.
        UnwritableFile: If the file cannot be written there.
        InputOutputError: If the disk is full or fails; then the old file is unchanged.

    Example:
        >>> import tempfile
        >>> from dpaudit.runs.checkpoints import Progress
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "progress.json")
        ...     write_json(path, Progress(3, releases=3, expected_batch_size=32.0))
        ...     read_json(path, Progress).releases
        3
    """
    _require_finite(msgspec.to_builtins(value))
    write_bytes(path, msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n", mode)


def read_json(path: Path, kind: type[T]) -> T:
    """Read a JSON file as a given type; keys and values of version 0.1 are mapped.

    Args:
        path: The file.
        kind: The type, with a field ``schema_version`` in the file.

    Returns:
        The value, of type ``kind``.

    Raises:
        IntegrityError: If the file is missing or is not valid JSON of this type.
        UnsupportedVersion: If the major version of its schema is unknown.

    Example:
        >>> import tempfile
        >>> from dpaudit.runs.checkpoints import Progress
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "progress.json")
        ...     _ = path.write_text("{}")
        ...     read_json(path, Progress)  # doctest: +IGNORE_EXCEPTION_DETAIL
        Traceback (most recent call last):
        dpaudit.vocabulary.errors.IntegrityError: progress.json has no schema_version
    """
    content = read_bytes(InputFile(path))
    _check_version(path, msgspec.json.decode, content)
    try:
        _require_shallow(content)
        require_unique_keys(content)
        return msgspec.json.decode(_with_present_names(path, content), type=kind)
    except (msgspec.MsgspecError, ValueError, ArithmeticError, RecursionError) as error:
        raise IntegrityError(f"{path} is not a valid {kind.__name__}: {error}") from error


def _with_present_names(path: Path, content: bytes) -> bytes:
    """Return JSON with the names of version 0.1 mapped; unchanged if it has none."""
    if not has_old_names(content):
        return content
    return msgspec.json.encode(renamed(msgspec.json.decode(content), str(path)))


def read_optional_json(path: Path, kind: type[T]) -> T | None:
    """Read a JSON file as a given type, if there is one.

    Args:
        path: The file.
        kind: The type, with a field ``schema_version`` in the file.

    Returns:
        The value; None if there is nothing at ``path``.

    Raises:
        IntegrityError: If the file exists and is not valid JSON of this type.

    Example:
        >>> from dpaudit.runs.checkpoints import Progress
        >>> read_optional_json(Path("no-such-run/progress.json"), Progress) is None
        True
    """
    return read_json(path, kind) if os.path.lexists(path) else None


def write_toml(path: Path, value: msgspec.Struct) -> None:
    """Write a value as TOML, atomically; fields that are None are omitted.

    Args:
        path: Target; its folder must exist.
        value: The value.

    Raises:
        MissingExtra: If tomli-w is not installed.
        UnwritableFile: If the file cannot be written there.
        InputOutputError: If the disk is full or fails; then the old file is unchanged.

    Example:
        >>> import tempfile
        >>> from dpaudit.runs.checkpoints import Progress
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "progress.toml")
        ...     write_toml(path, Progress(3, releases=3, expected_batch_size=32.0))
        ...     path.read_text().splitlines()[0]
        'steps_done = 3'
    """
    try:
        import tomli_w  # noqa: PLC0415  comes with an extra
    except ImportError as error:
        raise MissingExtra("tomli-w", "train") from error
    content = tomli_w.dumps(_without_none(msgspec.to_builtins(value)))
    write_bytes(path, content.encode())


def read_toml(path: Path, kind: type[T]) -> T:
    """Read a TOML file as a given type; keys and values of version 0.1 are mapped.

    Args:
        path: The file.
        kind: The type, with a field ``schema_version`` in the file.

    Returns:
        The value, of type ``kind``.

    Raises:
        IntegrityError: If the file is missing or is not valid TOML of this type.
        UnsupportedVersion: If the major version of its schema is unknown.

    Example:
        >>> import tempfile
        >>> from dpaudit.runs.checkpoints import Progress
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "progress.toml")
        ...     write_toml(path, Progress(3, releases=3, expected_batch_size=32.0))
        ...     read_toml(path, Progress).steps_done
        3
    """
    content = read_bytes(InputFile(path, limit=SETTINGS_LIMIT))
    _check_version(path, lambda raw: parse_toml(raw.decode()), content)
    try:
        return msgspec.convert(renamed(parse_toml(content.decode()), str(path)), kind)
    except (msgspec.MsgspecError, ValueError, ArithmeticError, RecursionError) as error:
        raise IntegrityError(f"{path} is not a valid {kind.__name__}: {error}") from error


def has_table(path: Path, name: str) -> bool:
    """Return whether a TOML file has a table of a given name at its top.

    Args:
        path: The file.
        name: Name of the table.

    Returns:
        False, too, if the file is not valid TOML, which ``read_toml`` reports.

    Raises:
        IntegrityError: If the file is missing or cannot be read.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "config.toml")
        ...     _ = path.write_text("[federation]\\nrounds = 3\\n")
        ...     has_table(path, "federation"), has_table(path, "canaries")
        (True, False)
    """
    content = read_bytes(InputFile(path, limit=SETTINGS_LIMIT))
    try:
        return isinstance(parse_toml(content.decode()).get(name), dict)
    except (ValueError, RecursionError):
        return False


def write_arrays(path: Path, **arrays: NDArray[Any]) -> None:
    """Write named arrays as an .npz file, atomically.

    Args:
        path: Target; its folder must exist.
        **arrays: The arrays and their names; objects are refused.

    Raises:
        UnwritableFile: If the file cannot be written there.
        InputOutputError: If the disk is full or fails; then the old file is unchanged.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "observations.npz")
        ...     write_arrays(path, rows=np.zeros((5, 2)))
        ...     read_arrays(path)["rows"].shape
        (5, 2)
    """
    write_bytes(path, _packed(arrays))


def write_secret_arrays(path: Path, **arrays: NDArray[Any]) -> None:
    """Write named arrays as an .npz file that only its owner may read.

    Args:
        path: Target; its folder must exist.
        **arrays: The arrays and their names; objects are refused.

    Raises:
        UnwritableFile: If the file cannot be written there.
        InputOutputError: If the disk is full or fails; then the old file is unchanged.

    Example:
        >>> import stat, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "canaries.secret.npz")
        ...     write_secret_arrays(path, included=np.array([True, False]))
        ...     stat.S_IMODE(path.stat().st_mode) == 0o600 or os.name == "nt"
        True
    """
    write_bytes(path, _packed(arrays), PRIVATE)


def _packed(arrays: dict[str, NDArray[Any]]) -> bytes:
    """Return the .npz of arrays, uncompressed if a reader would refuse its expansion."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    content = buffer.getvalue()
    if sum(array.nbytes for array in arrays.values()) > MAX_EXPANSION * len(content):
        buffer = io.BytesIO()
        np.savez(buffer, allow_pickle=False, **arrays)
        content = buffer.getvalue()
    return content


def read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """Read all arrays of an .npz file; pickled objects are never read.

    Args:
        path: The file.

    Returns:
        The arrays, with their names as keys.

    Raises:
        IntegrityError: If the file is missing or broken, or holds pickled objects.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "scores.npz")
        ...     write_arrays(path, scores=np.arange(3))
        ...     read_arrays(path)["scores"].tolist()
        [0, 1, 2]
    """
    return read_npz(InputFile(path, limit=DATA_LIMIT))


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file.

    Args:
        path: The file.

    Returns:
        64 hexadecimal digits.

    Raises:
        IntegrityError: If the file cannot be read.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "model.safetensors")
        ...     _ = path.write_bytes(b"weights")
        ...     sha256(path)[:8]
        '9a129038'
    """
    with open_input(InputFile(path, limit=DATA_LIMIT)) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def require_new_file(name: str, path: Path) -> None:
    """Refuse a path at which no file can be created.

    Args:
        name: Name of the argument, for the error.
        path: The path.

    Raises:
        InvalidArgument: If its folder is missing, or it is a folder itself.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     require_new_file("output", Path(folder, "claim.json"))
    """
    # os.path returns False for paths that are invalid, where pathlib raises.
    if os.path.isdir(path) or not os.path.isdir(path.absolute().parent):
        raise InvalidArgument(name, str(path), "a file in a folder that exists")


def _require_finite(value: Any) -> None:
    """Refuse NaN and infinities at any depth."""
    if isinstance(value, float) and not math.isfinite(value):
        raise AccountingError(f"{value!r} would be written as null, which means not measured")
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, list | tuple):
        return
    for item in value:
        _require_finite(item)


def _require_shallow(content: bytes) -> None:
    """Refuse deep nesting; counting brackets suffices for almost every file."""
    if content.count(b"{") + content.count(b"[") > MAX_NESTING:
        require_shallow_document(msgspec.json.decode(content))


def _check_version(path: Path, parse: Any, content: bytes) -> None:
    """Refuse a file without a readable schema version, before its content is parsed."""
    try:
        version = parse(content)["schema_version"]
    except (KeyError, TypeError, ValueError, RecursionError, msgspec.MsgspecError) as error:
        raise IntegrityError(
            f"{path} has no schema_version: it is broken, or not a file of dpaudit"
        ) from error
    if not is_readable(version):
        raise UnsupportedVersion(
            f"{path} has schema_version {version}; this dpaudit reads {SCHEMA_VERSION}: "
            "use the dpaudit that wrote it, or a newer one"
        )


def _without_none(value: Any) -> Any:
    """Return a value without the entries of dicts that are None."""
    if isinstance(value, dict):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    if isinstance(value, list | tuple):
        return [_without_none(item) for item in value]
    return value
