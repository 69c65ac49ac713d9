"""The history of a folder of runs: an SQLite file that outlives the runs themselves.

Several processes may write it at once: each verdict is one transaction, write-ahead logging
lets readers be, and whoever finds the file busy waits.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC
from pathlib import Path
from typing import NamedTuple

import msgspec

from dpaudit.files.opening import MIB, InputFile, opened
from dpaudit.files.writing import PRIVATE, create_empty, write_error
from dpaudit.vocabulary.errors import (
    DpauditError,
    InputOutputError,
    IntegrityError,
    InvalidArgument,
)
from dpaudit.vocabulary.history import PastRun

SUFFIX = ".sqlite"
FILE = f"history{SUFFIX}"
SCHEMA = 1
"""What ``PRAGMA user_version`` says; any other is refused."""

BUSY_SECONDS = 30.0

_COLUMNS = PastRun.__struct_fields__
_CREATE = """
CREATE TABLE verdicts (
    run TEXT NOT NULL,
    ledger_head TEXT NOT NULL,
    evidence TEXT NOT NULL,
    judged TEXT NOT NULL,
    outcome TEXT NOT NULL,
    epsilon_upper REAL NOT NULL,
    delta REAL NOT NULL,
    steps INTEGER NOT NULL,
    accountant TEXT NOT NULL,
    adjacency TEXT NOT NULL,
    dpaudit_version TEXT NOT NULL,
    epsilon_lower REAL,
    fpr REAL,
    tpr REAL,
    accuracy REAL,
    UNIQUE (run, ledger_head, evidence)
)
"""
_INSERT = (
    f"INSERT OR IGNORE INTO verdicts (evidence, {', '.join(_COLUMNS)}) "
    f"VALUES (:evidence, {', '.join(f':{name}' for name in _COLUMNS)})"
)
_SELECT = f"SELECT {', '.join(_COLUMNS)} FROM verdicts ORDER BY judged, rowid"
_SELECT_KEYS = "SELECT run, ledger_head, evidence FROM verdicts"

# The first words of sqlite's codes for a place, rather than a content, that does not do.
_PLACE = ("SQLITE_BUSY", "SQLITE_CANTOPEN", "SQLITE_READONLY")
_DISK = ("SQLITE_FULL", "SQLITE_IOERR")

LARGEST = 256 * MIB
"""Of a history file, in bytes: about a million verdicts."""


class VerdictKey(NamedTuple):
    """What makes a verdict one that is known already."""

    run: str
    ledger_head: str
    evidence: str


def history_file(place: Path) -> Path:
    """Return the history of a folder of runs, or the file itself that is named."""
    return place / FILE if os.path.isdir(place) else place


def remember(place: Path, past: PastRun, *, evidence: str) -> None:
    """Write a verdict into the history of ``place``; one that is known stays as it is.

    Args:
        place: A folder, in which a history is made where there is none, or its file.
        past: The verdict.
        evidence: Digest of what was judged: the same again is no further verdict.

    Raises:
        InvalidArgument: the place cannot be written, or is locked for long.
        IntegrityError: what is there is no history, or one of an unknown version.
    """
    file = history_file(place)
    if not os.path.isdir(file.parent) or file.suffix != SUFFIX:
        allowed = f"a folder that exists, or a file in one that ends in {SUFFIX}"
        raise InvalidArgument("history", str(place), allowed)
    row = {name: _plain(value) for name, value in msgspec.to_builtins(past).items()}
    row["judged"] = _sortable(past)
    _make(file)
    with _opened(file, "rw") as connection:
        _require_ours(file, connection)
        with connection:
            connection.execute(_INSERT, {**row, "evidence": evidence})


def read_history(folder_or_file: Path) -> tuple[PastRun, ...]:
    """Return all verdicts, the oldest first.

    Raises:
        InvalidArgument: there is no history, or it cannot be opened.
        IntegrityError: it is corrupt, or of an unknown version.
    """
    file = _existing(folder_or_file)
    with _opened(file, "ro") as connection:
        _require_ours(file, connection)
        rows = connection.execute(_SELECT).fetchall()
    return tuple(_past(file, row) for row in rows)


def known_verdicts(folder_or_file: Path) -> frozenset[VerdictKey]:
    """Return the keys of all verdicts; none where there is no history yet."""
    file = history_file(folder_or_file)
    if not os.path.lexists(file):
        return frozenset()
    with _opened(file, "ro") as connection:
        _require_ours(file, connection)
        return frozenset(VerdictKey(*row) for row in connection.execute(_SELECT_KEYS))


def _existing(place: Path) -> Path:
    file = history_file(place)
    if not os.path.lexists(file):
        allowed = f"a folder with {FILE}, as dpaudit history DIR makes one, or such a file"
        raise InvalidArgument("history", str(place), allowed)
    return file


@contextmanager
def _opened(file: Path, mode: str) -> Iterator[sqlite3.Connection]:
    """Open ``file``; whatever SQLite says against it is an error of ours."""
    if mode != "rwc":
        with opened(InputFile(file, "history", LARGEST)):
            pass  # a regular file that can be read, before SQLite opens it by its name
    try:
        uri = f"{file.absolute().as_uri()}?mode={mode}"
        with closing(sqlite3.connect(uri, uri=True, timeout=BUSY_SECONDS)) as connection:
            yield connection
    except sqlite3.Error as error:
        # Errors that Python's own module raises have no code.
        code = getattr(error, "sqlite_errorname", "")
        if code.startswith(_DISK):
            raise InputOutputError(str(file), str(error)) from error
        if code.startswith(_PLACE):
            allowed = f"a place that can be read and written ({error})"
            raise InvalidArgument("history", str(file), allowed) from error
        raise IntegrityError(f"{file} is no history, or is corrupt: {error}") from error


def _make(file: Path) -> None:
    """Make a history where there is none: others see nothing, or the whole of it."""
    with _alone(file.parent):
        if os.path.lexists(file):
            return
        partial = file.with_name(file.name + ".partial")
        partial.unlink(missing_ok=True)
        create_empty(partial, PRIVATE)  # SQLite's other files have the mode of this one
        with _opened(partial, "rwc") as connection:
            # Another process that opened the file meanwhile would make this fail, not wait.
            connection.execute("PRAGMA journal_mode = WAL")
            with connection:
                connection.execute(_CREATE)
                connection.execute(f"PRAGMA user_version = {SCHEMA:d}")
        partial.replace(file)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold a folder against every other process that would make a history in it."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise write_error("history", folder, error) from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    except OSError as error:
        raise write_error("history", folder, error) from error
    finally:
        os.close(handle)


def _require_ours(file: Path, connection: sqlite3.Connection) -> None:
    _require_tables(file, connection)
    version = _version(connection)
    if version != SCHEMA:
        raise IntegrityError(
            f"{file} has version {version}; this dpaudit reads {SCHEMA}: "
            "use the dpaudit that wrote it, or a newer one, or move the file away"
        )


def _require_tables(file: Path, connection: sqlite3.Connection) -> None:
    """Refuse a file whose schema is a program: a view or a trigger could run for ever."""
    kinds = {kind for (kind,) in connection.execute("SELECT DISTINCT type FROM sqlite_schema")}
    if not kinds <= {"table", "index"}:
        raise IntegrityError(f"{file} is no history: it has {', '.join(sorted(kinds))}")


def _version(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def _plain(value: object) -> object:
    """Return ``value`` as text where a name holds bytes that are no Unicode."""
    return value.encode(errors="replace").decode() if isinstance(value, str) else value


def _sortable(past: PastRun) -> str:
    """Return the time so that the order of text is that of time."""
    utc = past.judged.astimezone(UTC).replace(tzinfo=None)
    return f"{utc.isoformat(timespec='microseconds')}Z"


def _past(file: Path, row: tuple[object, ...]) -> PastRun:
    try:
        return msgspec.convert(dict(zip(_COLUMNS, row, strict=True)), PastRun)
    except (msgspec.MsgspecError, DpauditError, ValueError) as error:
        raise IntegrityError(f"{file} holds a verdict that is none: {error}") from error
