"""History of a folder of runs: an SQLite file of verdicts that outlives the runs.

Several processes may write it at once. Each verdict is one transaction. Write-ahead logging
lets readers continue, and a process that finds the file locked waits.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC
from pathlib import Path
from typing import NamedTuple

import msgspec

from dpaudit.files.regular_files import (
    MIB,
    PRIVATE,
    InputFile,
    create_empty_file,
    open_input,
    write_error,
)
from dpaudit.vocabulary.errors import (
    DpauditError,
    InputOutputError,
    IntegrityError,
    InvalidArgument,
    UnsupportedVersion,
)
from dpaudit.vocabulary.renamed import with_present_names
from dpaudit.vocabulary.verdict import PastRun

DATABASE_SUFFIX = ".sqlite"
DATABASE_NAME = f"history{DATABASE_SUFFIX}"
DATABASE_SCHEMA = 1
"""Value of ``PRAGMA user_version``; any other is refused."""

LOCK_TIMEOUT_SECONDS = 30.0

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

# Prefixes of SQLite's error names that concern the path or the disk, not the content.
_PLACE = ("SQLITE_BUSY", "SQLITE_CANTOPEN", "SQLITE_READONLY")
_DISK = ("SQLITE_FULL", "SQLITE_IOERR")

MAX_DATABASE_BYTES = 256 * MIB
"""Largest history file, in bytes: about a million verdicts."""


class VerdictKey(NamedTuple):
    """Key of a verdict; a verdict with a known key is not inserted again.

    Attributes:
        run: Name of the run.
        ledger_head: Hash of the ledger's last line.
        evidence: Digest of the measurements.
    """

    run: str
    ledger_head: str
    evidence: str


def history_file(place: Path) -> Path:
    """Return the path of a history.

    Args:
        place: A folder of runs, or the history file itself.

    Returns:
        ``history.sqlite`` in the folder, or ``place``.
    """
    return place / DATABASE_NAME if os.path.isdir(place) else place


def insert_verdict(place: Path, past: PastRun, *, evidence: str) -> None:
    """Insert a verdict into a history; a verdict with a known key is ignored.

    Args:
        place: A folder, in which a history is created if there is none, or the history file.
        past: The verdict.
        evidence: Digest of the measurements that were judged.

    Raises:
        InvalidArgument: If the place cannot be written, or stays locked for 30 seconds.
        IntegrityError: If the file is not a history, or is of an unknown version.
        InputOutputError: If the disk is full or fails.
    """
    file = history_file(place)
    if not os.path.isdir(file.parent) or file.suffix != DATABASE_SUFFIX:
        allowed = f"a folder that exists, or a file in one that ends in {DATABASE_SUFFIX}"
        raise InvalidArgument("history", str(place), allowed)
    row = {name: _plain(value) for name, value in msgspec.to_builtins(past).items()}
    row["judged"] = _sortable(past)
    _make(file)
    with _opened(file, "rw") as connection:
        _require_ours(file, connection)
        with connection:
            connection.execute(_INSERT, {**row, "evidence": evidence})


def read_history(history_path: Path) -> tuple[PastRun, ...]:
    """Return all verdicts of a history.

    Args:
        history_path: A folder of runs, or the history file.

    Returns:
        The verdicts, the oldest first.

    Raises:
        InvalidArgument: If there is no history, or it cannot be opened.
        IntegrityError: If it is corrupt, or of an unknown version.
    """
    file = _existing(history_path)
    with _opened(file, "ro") as connection:
        _require_ours(file, connection)
        rows = connection.execute(_SELECT).fetchall()
    return tuple(_past(file, row) for row in rows)


def read_verdict_keys(history_path: Path) -> frozenset[VerdictKey]:
    """Return the keys of all verdicts of a history.

    Args:
        history_path: A folder of runs, or the history file.

    Returns:
        The keys; none if there is no history.

    Raises:
        IntegrityError: If the history is corrupt, or of an unknown version.
    """
    file = history_file(history_path)
    if not os.path.lexists(file):
        return frozenset()
    with _opened(file, "ro") as connection:
        _require_ours(file, connection)
        return frozenset(VerdictKey(*row) for row in connection.execute(_SELECT_KEYS))


def _existing(place: Path) -> Path:
    """Return the path of a history that exists."""
    file = history_file(place)
    if not os.path.lexists(file):
        allowed = (
            f"a history file, or a folder with {DATABASE_NAME} (dpaudit history DIR creates one)"
        )
        raise InvalidArgument("history", str(place), allowed)
    return file


@contextmanager
def _opened(file: Path, mode: str) -> Iterator[sqlite3.Connection]:
    """Open a history; errors of SQLite become errors of dpaudit."""
    if mode != "rwc":
        with open_input(InputFile(file, "history", MAX_DATABASE_BYTES)):
            pass  # checks that it is a regular, readable file, before SQLite opens the path
    try:
        uri = f"{file.absolute().as_uri()}?mode={mode}"
        with closing(sqlite3.connect(uri, uri=True, timeout=LOCK_TIMEOUT_SECONDS)) as connection:
            yield connection
    except sqlite3.Error as error:
        # Errors raised by Python's module itself have no code.
        code = getattr(error, "sqlite_errorname", "")
        if code.startswith(_DISK):
            raise InputOutputError(str(file), str(error)) from error
        if code.startswith(_PLACE):
            allowed = f"a path that can be read and written ({error})"
            raise InvalidArgument("history", str(file), allowed) from error
        raise IntegrityError(f"{file} is not a history, or is corrupt: {error}") from error


def _make(file: Path) -> None:
    """Create a history if there is none; other processes find nothing, or all of it."""
    if os.path.lexists(file):
        return
    with _locked_while_made(file):
        # The process that held the lock before may have created it.
        if os.path.lexists(file):
            return
        # Built under another name, then renamed: no process opens a file without tables.
        partial = file.with_name(file.name + ".partial")
        partial.unlink(missing_ok=True)
        create_empty_file(partial, PRIVATE)  # SQLite's other files have the mode of this one
        with _opened(partial, "rwc") as connection:
            # Set here, as it fails instead of waiting once another process has the file open.
            connection.execute("PRAGMA journal_mode = WAL")
            with connection:
                connection.execute(_CREATE)
                connection.execute(f"PRAGMA user_version = {DATABASE_SCHEMA:d}")
        partial.replace(file)


@contextmanager
def _locked_while_made(file: Path) -> Iterator[None]:
    """Hold the lock for creating a history; other processes wait.

    The lock is an empty file beside the history, which is never removed. Otherwise two processes
    could lock two different files of one name.
    """
    from filelock import FileLock  # noqa: PLC0415  needed once for each history

    try:
        with FileLock(f"{file}.lock", timeout=LOCK_TIMEOUT_SECONDS, mode=PRIVATE):
            yield
    except OSError as error:
        raise write_error("history", file.parent, error) from error


def _require_ours(file: Path, connection: sqlite3.Connection) -> None:
    """Refuse a file without the tables of a history, or of an unknown version."""
    _require_tables(file, connection)
    version = _version(connection)
    if version != DATABASE_SCHEMA:
        raise UnsupportedVersion(
            f"{file} has version {version}; this dpaudit reads {DATABASE_SCHEMA}: "
            "use the dpaudit that wrote it, or a newer one, or move the file away"
        )


def _require_tables(file: Path, connection: sqlite3.Connection) -> None:
    """Refuse a file whose schema is a program: a view or a trigger could run forever."""
    kinds = {kind for (kind,) in connection.execute("SELECT DISTINCT type FROM sqlite_schema")}
    if not kinds <= {"table", "index"}:
        raise IntegrityError(f"{file} is not a history: it has {', '.join(sorted(kinds))}")


def _version(connection: sqlite3.Connection) -> int:
    """Return the version in the file's header."""
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def _plain(value: object) -> object:
    """Return text without bytes that are not Unicode, and other values unchanged."""
    return value.encode(errors="replace").decode() if isinstance(value, str) else value


def _sortable(past: PastRun) -> str:
    """Return the time in UTC as text whose order is that of time."""
    utc = past.judged.astimezone(UTC).replace(tzinfo=None)
    return f"{utc.isoformat(timespec='microseconds')}Z"


def _past(file: Path, row: tuple[object, ...]) -> PastRun:
    """Return the verdict of a row; names of version 0.1 are mapped."""
    try:
        present, _ = with_present_names(dict(zip(_COLUMNS, row, strict=True)))
        return msgspec.convert(present, PastRun)
    except (msgspec.MsgspecError, DpauditError, ValueError) as error:
        raise IntegrityError(f"{file} holds an invalid verdict: {error}") from error
