"""Checkpoints as files: which are complete, and how far each had come; no weights are read.

A folder ``step-N`` counts once its marker is there. The marker is written last and removed
first, so that a process that dies in between leaves no folder that looks complete.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import msgspec

from dpaudit.runs.files import read_json, sha256
from dpaudit.vocabulary import SCHEMA_VERSION
from dpaudit.vocabulary.errors import IntegrityError
from dpaudit.vocabulary.ledger import Checkpointed, PrivacyLedger

MARKER = "COMPLETE"
PROGRESS = "progress.json"
_NAME = re.compile(r"step-(\d+)(\.\d+)?")


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


def checkpoint_folders(checkpoints: Path) -> list[Path]:
    """Return the folders of checkpoints, complete or not, in ``checkpoints``, oldest first."""
    if not checkpoints.is_dir():
        return []
    named = ((_NAME.fullmatch(folder.name), folder) for folder in checkpoints.iterdir())
    numbered = [(*_order(name), folder) for name, folder in named if name]
    return [folder for *_, folder in sorted(numbered)]


def _order(name: re.Match[str]) -> tuple[int, int]:
    """Return a checkpoint's step, and which one at that step it is."""
    return int(name[1]), int((name[2] or ".0")[1:])


def new_checkpoint_folder(checkpoints: Path, step: int) -> Path:
    """Return where to write a checkpoint: a folder of its own, so that none is lost meanwhile."""
    taken = [folder.name for folder in checkpoint_folders(checkpoints)]
    names = (f"step-{step}" + (f".{again}" if again else "") for again in range(len(taken) + 1))
    return checkpoints / next(name for name in names if name not in taken)


def complete_checkpoints(checkpoints: Path) -> list[Path]:
    """Return the complete checkpoints in the folder ``checkpoints``, oldest first."""
    return [folder for folder in checkpoint_folders(checkpoints) if is_complete(folder)]


def is_complete(folder: Path) -> bool:
    """Return whether a checkpoint was written to its end."""
    return (folder / MARKER).exists()


def remove_checkpoint(folder: Path) -> None:
    """Remove a checkpoint, its marker first; nothing happens if it is not there."""
    (folder / MARKER).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def remove_checkpoints(checkpoints: Path) -> None:
    """Remove all checkpoints of a run, each one's marker first, and their folder."""
    for folder in checkpoint_folders(checkpoints):
        remove_checkpoint(folder)
    shutil.rmtree(checkpoints, ignore_errors=True)


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
    if not any(isinstance(line, Checkpointed) for line in ledger.lines):
        return
    recorded = recorded_digests(folder, ledger)
    if not recorded:
        raise IntegrityError(f"{folder} is no checkpoint that its ledger records: remove it")
    own = digests_of(folder)
    if own not in recorded:
        newest = recorded[-1]
        other = [name for name in {**newest, **own} if own.get(name) != newest.get(name)]
        raise IntegrityError(f"{folder / other[0]} was altered after its ledger recorded it")


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
            recorded = [files.get(PROGRESS) for files in recorded_digests(folder, ledger)]
            if recorded and sha256(folder / PROGRESS) not in recorded:
                raise IntegrityError(
                    f"{folder / PROGRESS} was altered after its ledger recorded it"
                )
        except IntegrityError:
            if is_complete(folder):  # otherwise the trainer removed it meanwhile
                raise


def recorded_digests(folder: Path, ledger: PrivacyLedger) -> list[dict[str, str]]:
    """Return the digests that the ledger recorded for a checkpoint's step, the newest last."""
    name = _NAME.fullmatch(folder.name)
    return [
        line.files
        for line in ledger.lines
        if name is not None and isinstance(line, Checkpointed) and line.step == int(name[1])
    ]
