"""The ledger on disk: canonical JSON lines, a hash chain, each line synced before use.

Every line is {"entry": ..., "hash": SHA-256(hash of the line before + entry)}. A line is
on the disk before the noise that it books is used, so a crash over-counts by at most one
release and never under-counts.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from pathlib import Path
from types import TracebackType

import msgspec

from dpaudit.vocabulary import SCHEMA_VERSION
from dpaudit.vocabulary.errors import IntegrityError, RunExists
from dpaudit.vocabulary.ledger import (
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


def _verify(path: Path, content: bytes) -> PrivacyLedger:
    entries: list[LedgerLine] = []
    head = GENESIS
    for number, raw in enumerate(content.splitlines(), start=1):
        try:
            line = _decode_line(raw)
            entry = _decode_entry(bytes(line.entry))
        except (msgspec.MsgspecError, ValueError) as error:
            raise IntegrityError(f"{path}, line {number} is broken: {error}") from error
        head = _chain(head, bytes(line.entry))
        if line.hash != head:
            raise IntegrityError(f"{path}, line {number} was altered: its hash does not match")
        entries.append(entry)
    return _assemble(path, entries, head)


def _assemble(path: Path, entries: list[LedgerLine], head: str) -> PrivacyLedger:
    if not entries or not isinstance(entries[0], LedgerHeader):
        raise IntegrityError(f"{path} does not begin with a header")
    header, lines = entries[0], tuple(e for e in entries[1:] if not isinstance(e, LedgerHeader))
    if header.schema_version.split(".")[0] != SCHEMA_VERSION.split(".")[0]:
        raise IntegrityError(
            f"{path} has schema_version {header.schema_version}; this dpaudit reads "
            f"{SCHEMA_VERSION}: use the dpaudit that wrote it, or a newer one"
        )
    seals = [number for number, line in enumerate(lines) if isinstance(line, Seal)]
    if len(lines) != len(entries) - 1 or (seals and seals != [len(lines) - 1]):
        raise IntegrityError(f"{path} goes on after its seal, or has two headers")
    ledger = PrivacyLedger(header, lines, head)
    if ledger.seal is not None and ledger.seal.releases != len(ledger.releases):
        raise IntegrityError(f"{path} is sealed for another number of releases than it holds")
    return ledger


class LedgerWriter:
    """Appends to a ledger; one process at a time."""

    def __init__(self, path: Path, head: str, releases: int) -> None:
        self._file = path.open("ab")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._file.close()
            raise RunExists(f"{path} is being written by another process") from error
        self._head = head
        self._releases = releases

    @classmethod
    def create(cls, path: Path, header: LedgerHeader) -> LedgerWriter:
        """Begin a new ledger; the file must not exist."""
        path.touch(exist_ok=False)
        writer = cls(path, GENESIS, 0)
        writer._append(header)
        directory = os.open(path.parent, os.O_RDONLY)
        os.fsync(directory)  # the file's name, too, must survive a crash
        os.close(directory)
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
            content = path.read_bytes()
        except OSError as error:
            raise IntegrityError(f"{path} cannot be read: {error.strerror}") from error
        whole = content[: content.rfind(b"\n") + 1]
        ledger = _verify(path, whole)
        if ledger.seal is not None:
            raise RunExists(f"{path.parent} is finished: there is nothing to resume")
        writer = cls(path, ledger.head, len(ledger.releases))
        os.truncate(path, len(whole))
        writer._append(resumed)
        return writer

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
