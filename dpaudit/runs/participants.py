"""The ledgers of a federation's participants, verified against the server's ledger.

participants/000/ledger.jsonl   one folder per participant, numbered from 0

Each ledger is intact by its own hash chain. The server's ledger proves that none was cut or
exchanged: every round records the last hash of each ledger that changed, and the seal records
the digest of every ledger. A participant's ledger may be ahead of the last round: what a killed
participant released counts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace as replace_content
from pathlib import Path

from msgspec.structs import replace

from dpaudit.runs.file_io import final_name
from dpaudit.runs.ledger_bytes import ledger_bytes
from dpaudit.runs.ledger_format import LedgerContent, line_hashes, parse_ledger
from dpaudit.runs.run_files import RunFiles
from dpaudit.vocabulary.errors import IntegrityError
from dpaudit.vocabulary.federation import FederationHeader
from dpaudit.vocabulary.ledger import LedgerHeader, PrivacyLedger, participant_name

LONGEST_NAME = 18
"""Digits of a participant's folder."""


def run_of_ledger(path: Path) -> RunFiles | None:
    """Return the run of a ledger.

    Args:
        path: The ledger.

    Returns:
        The files of its run; None for a file of another name, which is a ledger alone.
    """
    run = RunFiles(path.parent)
    return run if run.ledger.name == path.name else None


def server_ledger_of(path: Path) -> Path | None:
    """Return the ledger of the run that a participant's ledger belongs to.

    Args:
        path: A ledger.

    Returns:
        The path of the server's ledger, which may not exist; None for any other ledger.
    """
    folder = path.absolute().parent
    run = RunFiles(folder.parent.parent)
    is_participant = folder.parent == run.participants and folder.name.isdecimal()
    return run.ledger if is_participant and path.name == run.ledger.name else None


def parse_run(path: Path, content: bytes) -> LedgerContent:
    """Parse a ledger, and read the ledgers of its participants if it is a federation's.

    Args:
        path: The ledger.
        content: All bytes of its file.

    Returns:
        Whole lines and tails; ``ledger.participants`` is filled.

    Raises:
        IntegrityError: If a ledger is damaged, or a participant's does not belong to it.
    """
    return with_participants(path, parse_ledger(path, content))


def with_participants(path: Path, content: LedgerContent) -> LedgerContent:
    """Add the verified ledgers of the participants to a parsed ledger.

    Args:
        path: The ledger.
        content: What it holds.

    Returns:
        The same content for a run of one trainer, or a participant's own ledger.

    Raises:
        IntegrityError: If a participant's ledger is missing, damaged, cut, or another's; or if
            there is one that the ledger does not know.
    """
    run, federation = run_of_ledger(path), content.ledger.header.federation
    if run is None:
        return content
    if federation is None or federation.participant is not None:
        if run.participant_ledgers:
            raise IntegrityError(f"{run.participants} belongs to no federation: move it away")
        return content
    _require_known_names(run, content.ledger, federation)
    found = {
        name: _participant(run, content.ledger, federation, name)
        for name in _present(run, content.ledger, federation)
    }
    ledgers = {name: one.ledger for name, one in found.items()}
    ledger = replace(content.ledger, participants=ledgers)
    return replace_content(content, ledger=ledger, participants=found)


def _is_known(name: str, federation: FederationHeader) -> bool:
    """Return whether a folder is that of a participant; their number may be too large to list."""
    if not (name.isascii() and name.isdecimal() and len(name) <= LONGEST_NAME):
        return False
    return participant_name(int(name)) == name and int(name) < federation.participants


def _require_known_names(
    run: RunFiles, ledger: PrivacyLedger, federation: FederationHeader
) -> None:
    """Refuse folders, and names in the ledger, of participants that the federation lacks."""
    for name in _recorded_names(ledger):
        if not _is_known(name, federation):
            raise IntegrityError(
                f"{run.ledger} records the participant {name!r}, and the federation has "
                f"{federation.participants}, from {participant_name(0)}"
            )
    if not run.participants.exists():
        return
    if not run.participants.is_dir():
        raise IntegrityError(f"{run.participants} is not a folder of participants")
    for entry in sorted(run.participants.iterdir()):
        if not _is_known(entry.name, federation):
            raise IntegrityError(
                f"{entry} is not a participant of its federation, which has "
                f"{federation.participants}: move it away"
            )


def _recorded_names(ledger: PrivacyLedger) -> Iterator[str]:
    for one in ledger.rounds:
        yield from one.heads
        yield from one.rejected
        yield from one.left


def _present(run: RunFiles, ledger: PrivacyLedger, federation: FederationHeader) -> list[str]:
    """Return the names whose ledgers exist: all, or none; refuse a missing one.

    A run that was interrupted before its first round may have some of them.
    """
    folders = run.participants.iterdir() if run.participants.is_dir() else ()
    present = sorted((one.name for one in folders if one.exists()), key=int)
    began = bool(ledger.rounds or ledger.ended or ledger.seal)
    if began and (present or _records_participants(run, ledger)):
        for number in range(federation.participants):
            path = run.participant(number).ledger
            if not path.exists():
                raise IntegrityError(f"{path} is missing: restore the run from a copy")
    return [name for name in present if RunFiles(run.participants / name).ledger.exists()]


def _records_participants(run: RunFiles, ledger: PrivacyLedger) -> bool:
    """Return whether a server's ledger has the head or the digest of a participant's ledger."""
    digests = {} if ledger.seal is None else ledger.seal.files
    folder = f"{run.participants.name}/"
    return any(one.heads for one in ledger.rounds) or any(
        name.startswith(folder) for name in digests
    )


def _participant(
    run: RunFiles, server: PrivacyLedger, federation: FederationHeader, name: str
) -> LedgerContent:
    """Read one participant's ledger, and verify it against the server's."""
    path = RunFiles(run.participants / name).ledger
    raw = ledger_bytes(path)
    content = parse_ledger(path, raw)
    expected = replace(federation, participant=int(name))
    _require_own_header(path, content.ledger.header, server.header, expected)
    _require_recorded_heads(path, [*line_hashes(raw), content.ledger.head], server, name)
    if server.seal is not None:
        digest = server.seal.files.get(run.sealed_name(path))
        if digest != hashlib.sha256(raw).hexdigest():
            raise IntegrityError(f"{path} was altered after the ledger of its run was sealed")
    return content


def _require_own_header(
    path: Path, header: LedgerHeader, server: LedgerHeader, expected: FederationHeader
) -> None:
    """Refuse the ledger of another participant, of another federation, or of another guarantee."""
    if header.federation != expected:
        raise IntegrityError(
            f"{path} is not the ledger of participant {expected.participant} of its federation: "
            "restore the run from a copy"
        )
    if (header.unit, header.adjacency) != (server.unit, server.adjacency):
        raise IntegrityError(
            f"{path} protects {header.unit.value} under {header.adjacency.value}, and the "
            f"server's ledger {server.unit.value} under {server.adjacency.value}"
        )


def _require_recorded_heads(
    path: Path, hashes: list[str], server: PrivacyLedger, name: str
) -> None:
    """Refuse a ledger that lacks a hash that the server recorded, or has them in disorder."""
    start = 0
    for one in server.rounds:
        head = one.heads.get(name)
        if head is None:
            continue
        try:
            start = hashes.index(head, start)
        except ValueError as error:
            raise IntegrityError(
                f"{path} lacks the line that the server's ledger recorded in round {one.number}: "
                "it was cut or exchanged, restore the run from a copy"
            ) from error


def foreign_entries(run: RunFiles) -> list[Path]:
    """Return what lies in the folder of participants and belongs to no participant.

    Args:
        run: The files of the run.

    Returns:
        Paths; a symlink to a folder is foreign, as it would be removed with what it names.
    """
    if not run.participants.is_dir() or run.participants.is_symlink():
        return [run.participants] if run.participants.is_symlink() else []
    found: list[Path] = []
    for folder in sorted(run.participants.iterdir()):
        own = folder.name.isascii() and folder.name.isdecimal()
        if not own or folder.is_symlink() or not folder.is_dir():
            found.append(folder)
            continue
        files = RunFiles(folder)
        names = {one.name for one in files.all_files} | {files.checkpoints.name}
        found += [one for one in folder.iterdir() if final_name(one) not in names]
    return found
