"""Checkpoints as files: which are complete, and at which step; no weights are read.

A folder ``step-N`` is complete once its marker exists. The marker is written last and removed
first. So a process that dies in between leaves no folder that appears complete.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import msgspec

from dpaudit.runs.file_io import read_json, sha256
from dpaudit.vocabulary import SCHEMA_VERSION
from dpaudit.vocabulary.errors import IntegrityError
from dpaudit.vocabulary.ledger import CheckpointEntry, PrivacyLedger

MARKER = "COMPLETE"
PROGRESS = "progress.json"
_NAME = re.compile(r"step-(\d+)(\.\d+)?")


class Progress(msgspec.Struct, frozen=True):
    """State of a run when a checkpoint was written.

    Attributes:
        steps_done: Number of steps.
        releases: Number of releases in the ledger, ``PrivacyLedger.release_count``.
        expected_batch_size: The public constant by which noisy sums are divided, in records.
        clip_norm: Current clip norm of adaptive clipping; None for a fixed rule.
        run: Name of the run in the ledger's header; empty in checkpoints without one.
        settings: Further settings of the trainer that must be equal when it resumes.
        schema_version: Version of this file's format.
    """

    steps_done: int
    releases: int
    expected_batch_size: float
    clip_norm: float | None = None
    run: str = ""
    settings: dict[str, str] = {}
    schema_version: str = SCHEMA_VERSION


def checkpoint_folders(checkpoints: Path) -> list[Path]:
    """Return the folders of all checkpoints, complete or not.

    Args:
        checkpoints: The folder that holds them; it may be missing.

    Returns:
        Folders, the oldest first.
    """
    if not checkpoints.is_dir():
        return []
    named = ((_NAME.fullmatch(folder.name), folder) for folder in checkpoints.iterdir())
    numbered = [(*_order(name), folder) for name, folder in named if name]
    return [folder for *_, folder in sorted(numbered)]


def _order(name: re.Match[str]) -> tuple[int, int]:
    """Return a checkpoint's step, and its number among those of the same step."""
    return int(name[1]), int((name[2] or ".0")[1:])


def new_checkpoint_folder(checkpoints: Path, step: int) -> Path:
    """Return an unused folder name for a checkpoint.

    An earlier checkpoint of the same step stays until the new one is complete.

    Args:
        checkpoints: The folder that holds all checkpoints.
        step: Number of steps done.

    Returns:
        ``step-N``, or ``step-N.1`` and so on if that exists. Nothing is created.
    """
    taken = [folder.name for folder in checkpoint_folders(checkpoints)]
    names = (f"step-{step}" + (f".{again}" if again else "") for again in range(len(taken) + 1))
    return checkpoints / next(name for name in names if name not in taken)


def complete_checkpoints(checkpoints: Path) -> list[Path]:
    """Return the complete checkpoints.

    Args:
        checkpoints: The folder that holds them; it may be missing.

    Returns:
        Folders, the oldest first.
    """
    return [folder for folder in checkpoint_folders(checkpoints) if is_complete(folder)]


def is_complete(folder: Path) -> bool:
    """Return whether a checkpoint has its marker.

    Args:
        folder: The checkpoint.

    Returns:
        True if it was written completely.
    """
    return (folder / MARKER).exists()


def remove_checkpoint(folder: Path) -> None:
    """Remove a checkpoint, its marker first; a missing one is ignored.

    Args:
        folder: The checkpoint.
    """
    # Without its marker, a folder that is half removed does not count.
    (folder / MARKER).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def remove_checkpoints(checkpoints: Path) -> None:
    """Remove all checkpoints of a run, the marker of each first, and their folder.

    Args:
        checkpoints: The folder that holds them.
    """
    for folder in checkpoint_folders(checkpoints):
        remove_checkpoint(folder)
    shutil.rmtree(checkpoints, ignore_errors=True)


def read_progress(folder: Path) -> Progress:
    """Read the state of the run at a checkpoint.

    Args:
        folder: The checkpoint.

    Returns:
        The progress.

    Raises:
        IntegrityError: If the file is missing or broken.
    """
    return read_json(folder / PROGRESS, Progress)


def read_newest_progress(checkpoints: Path) -> Progress | None:
    """Read the state of the run at its newest complete checkpoint.

    Args:
        checkpoints: The folder that holds all checkpoints.

    Returns:
        The progress; None if no checkpoint is complete.

    Raises:
        IntegrityError: If the file is missing or broken.
    """
    folders = complete_checkpoints(checkpoints)
    return read_progress(folders[-1]) if folders else None


def digests_of(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of each file of a checkpoint, for ``CheckpointEntry``.

    Args:
        folder: The checkpoint.

    Returns:
        Hexadecimal digests by file name, without the marker, which is written after the
        ledger's line.
    """
    names = sorted(file.name for file in folder.iterdir() if file.is_file())
    return {name: sha256(folder / name) for name in names if name != MARKER}


def require_own_checkpoint(folder: Path, ledger: PrivacyLedger) -> None:
    """Refuse to resume from a checkpoint that the ledger does not record.

    Every digest is compared. Ledgers of older versions have no digests. Then only the number of
    releases and the run's name are compared.

    Args:
        folder: The checkpoint.
        ledger: The ledger of the run.

    Raises:
        IntegrityError: If the checkpoint is of another run, was altered, or was written after
            more releases than the ledger holds.
    """
    require_known_progress(folder, ledger, read_progress(folder))
    if not any(isinstance(line, CheckpointEntry) for line in ledger.lines):
        return
    recorded = recorded_digests(folder, ledger)
    if not recorded:
        raise IntegrityError(f"{folder} is not a checkpoint that its ledger records: remove it")
    own = digests_of(folder)
    if own not in recorded:
        newest = recorded[-1]
        other = [name for name in {**newest, **own} if own.get(name) != newest.get(name)]
        raise IntegrityError(f"{folder / other[0]} was altered after its ledger recorded it")


def require_known_progress(folder: Path, ledger: PrivacyLedger, progress: Progress) -> None:
    """Refuse a checkpoint of another run, or of more releases than the ledger holds.

    Args:
        folder: The checkpoint, for the error.
        ledger: The ledger of the run.
        progress: The checkpoint's progress.

    Raises:
        IntegrityError: If it is one of these.
    """
    if progress.run not in ("", ledger.header.run):
        raise IntegrityError(f"{folder} is a checkpoint of another run than its ledger")
    if progress.releases > ledger.release_count:
        raise IntegrityError(
            f"{folder} was written after {progress.releases} releases, its ledger holds "
            f"{ledger.release_count}: the ledger was cut, restore it from a copy"
        )


def require_known_checkpoints(checkpoints: Path, ledger: PrivacyLedger) -> None:
    """Refuse a ledger that holds less than a checkpoint of its run; no weights are read.

    Args:
        checkpoints: The folder that holds all checkpoints.
        ledger: The ledger of the run.

    Raises:
        IntegrityError: If a complete checkpoint is of another run, was written after more
            releases than the ledger holds, or its progress was altered.
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
            # The trainer removes old checkpoints, marker first, while this reads them. Only
            # one that is still complete is evidence.
            if is_complete(folder):
                raise


def recorded_digests(folder: Path, ledger: PrivacyLedger) -> list[dict[str, str]]:
    """Return the digests that the ledger recorded for a checkpoint's step.

    Args:
        folder: The checkpoint, whose name has the step.
        ledger: The ledger of the run.

    Returns:
        Digests by file name for each recorded checkpoint of the step, the newest last.
    """
    name = _NAME.fullmatch(folder.name)
    return [
        line.files
        for line in ledger.lines
        if name is not None and isinstance(line, CheckpointEntry) and line.step == int(name[1])
    ]
