"""Checkpoints as files: which are complete, and how far each had come; no weights are read.

A folder ``step-N`` counts once its marker is there. The marker is written last and removed
first, so that a process that dies in between leaves no folder that looks complete.
"""

from __future__ import annotations

import re
import shutil
from contextlib import suppress
from pathlib import Path

import msgspec

from dpaudit.runs.files import read_json, sha256
from dpaudit.vocabulary import SCHEMA_VERSION
from dpaudit.vocabulary.errors import IntegrityError
from dpaudit.vocabulary.ledger import Checkpointed, PrivacyLedger

MARKER = "COMPLETE"
PROGRESS = "progress.json"
_NAME = re.compile(r"step-(\d+)")


class Progress(msgspec.Struct, frozen=True):
    """How far a run had come when a checkpoint was written.

    Attributes:
        steps_done: How many steps.
        releases: How many releases the ledger held.
        expected_batch_size: The public constant that noisy sums are divided by.
        clip_norm: Where adaptive clipping had come; None for a fixed rule.
        run: What the ledger's header calls the run; empty if nobody wrote it down.
        settings: Further settings of the trainer that must be the same when it resumes.
    """

    steps_done: int
    releases: int
    expected_batch_size: float
    clip_norm: float | None = None
    run: str = ""
    settings: dict[str, str] = {}
    schema_version: str = SCHEMA_VERSION


def complete_checkpoints(checkpoints: Path) -> list[Path]:
    """Return the complete checkpoints in the folder ``checkpoints``, oldest first."""
    if not checkpoints.is_dir():
        return []
    named = ((_NAME.fullmatch(folder.name), folder) for folder in checkpoints.iterdir())
    complete = [(int(name[1]), folder) for name, folder in named if name and is_complete(folder)]
    return [folder for _, folder in sorted(complete)]


def is_complete(folder: Path) -> bool:
    """Return whether a checkpoint was written to its end."""
    return (folder / MARKER).exists()


def remove_checkpoint(folder: Path) -> None:
    """Remove a checkpoint, its marker first; nothing happens if it is not there."""
    (folder / MARKER).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def read_progress(folder: Path) -> Progress:
    """Return how far the checkpoint in ``folder`` had come.

    Raises:
        IntegrityError: It is missing or broken.
    """
    return read_json(folder / PROGRESS, Progress)


def read_newest_progress(checkpoints: Path) -> Progress | None:
    """Return how far the newest complete checkpoint had come, if there is one."""
    folders = complete_checkpoints(checkpoints)
    return read_progress(folders[-1]) if folders else None


def digests_of(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of each file of a checkpoint, by name, for ``Checkpointed``.

    The marker is left out: it is written after the ledger's line.
    """
    names = sorted(file.name for file in folder.iterdir() if file.is_file())
    return {name: sha256(folder / name) for name in names if name != MARKER}


def require_own_checkpoint(folder: Path, ledger: PrivacyLedger) -> None:
    """Refuse a checkpoint that the ledger does not know, before a run goes on from it.

    Every digest is compared. A ledger of an older version has no digests: then the number of
    releases and the run's name alone are compared.

    Raises:
        IntegrityError: It is of another run, was altered, or knows of more releases than the
            ledger holds.
    """
    require_known_progress(folder, ledger, read_progress(folder))
    lines = [line for line in ledger.lines if isinstance(line, Checkpointed)]
    if not lines:
        return
    recorded = recorded_digests(folder, ledger)
    if recorded is None:
        raise IntegrityError(f"{folder} is no checkpoint that its ledger records: remove it")
    for name, digest in recorded.items():
        if sha256(folder / name) != digest:
            raise IntegrityError(f"{folder / name} was altered after its ledger recorded it")


def require_known_progress(folder: Path, ledger: PrivacyLedger, progress: Progress) -> None:
    """Refuse a checkpoint of another run, or of more releases than the ledger holds.

    Raises:
        IntegrityError: It is one of these.
    """
    if progress.run not in ("", ledger.header.run):
        raise IntegrityError(f"{folder} is a checkpoint of another run than its ledger is of")
    if progress.releases > len(ledger.releases):
        raise IntegrityError(
            f"{folder} was written after {progress.releases} releases, its ledger holds "
            f"{len(ledger.releases)}: the ledger was cut, restore it from a copy"
        )


def require_known_checkpoints(checkpoints: Path, ledger: PrivacyLedger) -> None:
    """Refuse a ledger that knows less than a checkpoint of its run; cheap: no weights are read.

    Raises:
        IntegrityError: A checkpoint is of another run, knows of more releases than the ledger,
            or its progress was altered.
    """
    for folder in complete_checkpoints(checkpoints):
        try:
            require_known_progress(folder, ledger, read_progress(folder))
            recorded = (recorded_digests(folder, ledger) or {}).get(PROGRESS)
            if recorded is not None and recorded != sha256(folder / PROGRESS):
                raise IntegrityError(
                    f"{folder / PROGRESS} was altered after its ledger recorded it"
                )
        except IntegrityError:
            if is_complete(folder):  # otherwise the trainer removed it meanwhile
                raise


def recorded_digests(folder: Path, ledger: PrivacyLedger) -> dict[str, str] | None:
    """Return the digests that the ledger last recorded for a checkpoint's step, if it did."""
    with suppress(ValueError):
        step = int(folder.name.removeprefix("step-"))
        for line in reversed(ledger.lines):
            if isinstance(line, Checkpointed) and line.step == step:
                return line.files
    return None
