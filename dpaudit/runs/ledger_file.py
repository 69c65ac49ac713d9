"""The ledger on disk: canonical JSON lines, a hash chain, each line synced before use.

Every line is {"entry": ..., "hash": SHA-256(hash of the line before + entry)}. A line is
on the disk before the noise that it books is used, so a crash over-counts by at most one
release and never under-counts.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import msgspec

from dpaudit.runs.files import sync
from dpaudit.vocabulary import SCHEMA_VERSION
from dpaudit.vocabulary.errors import IntegrityError, RunExists
from dpaudit.vocabulary.ledger import (
    Begun,
    BookedRelease,
    LedgerHeader,
    LedgerLine,
    PrivacyLedger,
    Resumed,
    Seal,
)

GENESIS = "0" * 64


class _Line(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    entry: msgspec.Raw
    hash: str


_decode_line = msgspec.json.Decoder(_Line).decode
_decode_entry = msgspec.json.Decoder(LedgerLine).decode
_BROKEN = (msgspec.MsgspecError, ValueError, RecursionError)
_encoder = msgspec.json.Encoder(order="sorted")


def _chain(previous: str, entry: bytes) -> str:
    return hashlib.sha256(previous.encode() + entry).hexdigest()


def read_ledger(path: Path) -> PrivacyLedger:
    """Read and verify a ledger.

    Raises:
        IntegrityError: it is missing, torn, altered, or has an unknown major version.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise IntegrityError(f"{path} cannot be read: {error.strerror}") from error
    if not content.endswith(b"\n"):
        raise IntegrityError(f"{path} ends in the middle of a line: truncated, or still written")
    return _verify(path, content)


def read_unfinished(path: Path) -> PrivacyLedger:
    """Read a ledger whose process may have died in the middle of its last line.

    Raises:
        IntegrityError: it is missing, or a whole line is broken or altered.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise IntegrityError(f"{path} cannot be read: {error.strerror}") from error
    return _verify(path, content[: content.rfind(b"\n") + 1])


def is_ledger(path: Path) -> bool:
    """Return whether ``path`` begins like a ledger of ours, or is one that never got its header."""
    try:
        first = path.read_bytes().partition(b"\n")[0]
        return not first or isinstance(
            _decode_entry(bytes(_decode_line(first).entry)), LedgerHeader
        )
    except (OSError, *_BROKEN):
        return False


def _verify(path: Path, content: bytes) -> PrivacyLedger:
    """Return the ledger of whole lines that ``content`` holds."""
    entries: list[LedgerLine] = []
    head = GENESIS
    lines = content.split(b"\n")[:-1]
    for number, raw in enumerate(lines, start=1):
        try:
            line = _decode_line(raw)
            if number == 1:
                _require_known_version(path, bytes(line.entry))
            entry = _decode_entry(bytes(line.entry))
        except _BROKEN as error:
            raise IntegrityError(f"{path}, line {number} is broken: {error}") from error
        head = _chain(head, bytes(line.entry))
        if line.hash != head:
            raise IntegrityError(f"{path}, line {number} was altered: its hash does not match")
        entries.append(entry)
    return _assemble(path, entries, head)


def _require_known_version(path: Path, header: bytes) -> None:
    version = str(msgspec.json.decode(header, type=dict).get("schema_version"))
    if version.split(".", maxsplit=1)[0] != SCHEMA_VERSION.split(".")[0]:
        raise IntegrityError(
            f"{path} has schema_version {version}; this dpaudit reads {SCHEMA_VERSION}: "
            "use the dpaudit that wrote it, or a newer one"
        )


def _assemble(path: Path, entries: list[LedgerLine], head: str) -> PrivacyLedger:
    if not entries or not isinstance(entries[0], LedgerHeader):
        raise IntegrityError(f"{path} does not begin with a header")
    header, lines = entries[0], tuple(e for e in entries[1:] if not isinstance(e, LedgerHeader))
    seals = [number for number, line in enumerate(lines) if isinstance(line, Seal)]
    if len(lines) != len(entries) - 1 or (seals and seals != [len(lines) - 1]):
        raise IntegrityError(f"{path} goes on after its seal, or has two headers")
    ledger = PrivacyLedger(header, lines, head)
    if ledger.seal is not None and ledger.seal.releases != len(ledger.releases):
        raise IntegrityError(f"{path} is sealed for another number of releases than it holds")
    return ledger


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a ledger against every writer.

    Raises:
        RunExists: a process writes it.
    """
    with path.open("rb") as file:
        _lock(path, file)
        yield


def _lock(path: Path, file: BinaryIO) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise RunExists(f"{path} is being written by another process") from error


class LedgerWriter:
    """Appends to a ledger; one process at a time."""

    def __init__(self, file: BinaryIO, head: str, releases: int) -> None:
        self._file, self._head, self._releases = file, head, releases

    @property
    def releases(self) -> int:
        """How many releases are booked."""
        return self._releases

    @classmethod
    def create(cls, path: Path, header: LedgerHeader) -> LedgerWriter:
        """Begin a new ledger.

        Raises:
            RunExists: there is one already.
        """
        try:
            file = path.open("xb")
        except FileExistsError as error:
            raise RunExists(f"{path} exists: another run has begun here") from error
        _lock(path, file)
        writer = cls(file, GENESIS, 0)
        writer._append(header)
        sync(path.parent)  # the file's name, too, must survive a crash
        return writer

    @classmethod
    def resume(cls, path: Path, resumed: Resumed) -> LedgerWriter:
        """Go on with a ledger whose process died.

        A last line without its end was never synced, so its noise was never used: it goes.

        Raises:
            IntegrityError: the whole lines do not verify.
            RunExists: the run is sealed, or another process writes it.
        """
        try:
            file = path.open("r+b")
        except OSError as error:
            raise IntegrityError(f"{path} cannot be read: {error.strerror}") from error
        try:
            _lock(path, file)  # before reading: what another process books must not be cut off
            content = file.read()
            whole = content[: content.rfind(b"\n") + 1]
            ledger = _verify(path, whole)
            if ledger.seal is not None:
                raise RunExists(f"{path.parent} is finished: there is nothing to resume")
            file.truncate(len(whole))
            file.seek(len(whole))
        except BaseException:
            file.close()
            raise
        writer = cls(file, ledger.head, len(ledger.releases))
        writer._append(resumed)
        return writer

    def begin(self, files: dict[str, str]) -> None:
        """Bind the run to the digests of its settings and canaries."""
        self._append(Begun(files))

    def book(self, release: BookedRelease) -> None:
        """Book one release; when this returns, the line is on the disk."""
        self._append(release)
        self._releases += 1

    def seal(self, files: dict[str, str]) -> None:
        """Close the run: nothing can be booked any more."""
        self._append(Seal(self._releases, files))
        self._file.close()

    def _append(self, entry: LedgerLine) -> None:
        encoded = _encoder.encode(entry)
        self._head = _chain(self._head, encoded)
        self._file.write(b'{"entry":' + encoded + b',"hash":"' + self._head.encode() + b'"}\n')
        self._file.flush()
        os.fsync(self._file.fileno())

    def __enter__(self) -> LedgerWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._file.close()
