"""Run directories: creating, opening, verifying, sealing and removing them."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from msgspec.structs import replace
from numpy.typing import NDArray

from dpaudit.files.regular_files import utf8_name, write_error
from dpaudit.runs.checkpoints import checkpoint_folders, remove_checkpoint
from dpaudit.runs.consistency import expected_seal, sealed_digests
from dpaudit.runs.file_io import (
    final_name,
    has_table,
    read_arrays,
    read_toml,
    sha256,
    write_json,
)
from dpaudit.runs.ledger_bytes import ledger_bytes
from dpaudit.runs.ledger_file import (
    LedgerWriter,
    complete_seal,
    has_no_release,
    is_ledger,
    ledger_lock,
    read_run,
    read_unfinished,
    require_complete_last_line,
)
from dpaudit.runs.ledger_format import LedgerContent, encode_line
from dpaudit.runs.participants import foreign_entries, parse_run
from dpaudit.runs.run_files import RunFiles
from dpaudit.vocabulary.claim import Claim
from dpaudit.vocabulary.errors import DpauditError, IntegrityError, InvalidArgument, RunExists
from dpaudit.vocabulary.federation import FederatedConfig
from dpaudit.vocabulary.ledger import PrivacyLedger
from dpaudit.vocabulary.settings import RunConfig


@dataclass(frozen=True)
class RunDirectory(RunFiles):
    """The files of a run with checked readers: every reader cross-checks the ledger.

    Attributes:
        path: The run directory.
    """

    @property
    def name(self) -> str:
        """Name of the run in documents: the name of its folder."""
        return utf8_name(Path(os.path.realpath(self.path)))

    def measured(self) -> str:
        """Return one digest of all measurements, which a verdict records.

        Returns:
            64 hexadecimal digits.

        Raises:
            IntegrityError: If a file cannot be read.
        """
        lines = [f"{path.name} {sha256(path)}" for path in self.measurements]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    def read_config(self) -> RunConfig:
        """Return the settings of a run of one trainer.

        Returns:
            The settings of ``dpaudit train``.

        Raises:
            InvalidArgument: If your own training loop made the run, which has no settings, or
                the run is a federation.
            IntegrityError: If the settings are broken or of an unknown version.
        """
        settings = self.read_settings()
        if isinstance(settings, FederatedConfig):
            raise InvalidArgument(
                "run", str(self.path), "a run of one trainer, not of a federation, for this purpose"
            )
        return settings

    def read_federated_config(self) -> FederatedConfig:
        """Return the settings of a federated run.

        Returns:
            The settings of ``dpaudit train --federated``.

        Raises:
            InvalidArgument: If the run has no settings, or is that of one trainer.
            IntegrityError: If the settings are broken or of an unknown version.
        """
        settings = self.read_settings()
        if isinstance(settings, RunConfig):
            raise InvalidArgument(
                "run", str(self.path), "a federated run, which dpaudit train --federated makes"
            )
        return settings

    def read_settings(self) -> RunConfig | FederatedConfig:
        """Return the settings of the run, of one trainer or of a federation.

        Returns:
            The settings of ``dpaudit train``, with or without ``--federated``.

        Raises:
            InvalidArgument: If your own training loop made the run, which has no settings.
            IntegrityError: If the settings are broken or of an unknown version.
        """
        if not self.config.exists():
            raise InvalidArgument(
                "run",
                str(self.path),
                "one that dpaudit train made: your own training loop writes no config.toml (attack "
                "by dpaudit attack RUN --scores FILE; test the trainer by dpaudit conformance "
                "package.module:make_trainer --run RUN)",
            )
        if has_table(self.config, "federation"):
            return read_toml(self.config, FederatedConfig)
        return read_toml(self.config, RunConfig)

    def read_ledger(self) -> PrivacyLedger:
        """Return the verified ledger of a run, finished or not, that ends with a whole line.

        Returns:
            The ledger.

        Raises:
            IntegrityError: If it is missing, incomplete or altered, another file of the run
                contradicts it, or a finished run has no claim.
        """
        content = read_run(self)
        require_complete_last_line(self.ledger, content)
        return content.ledger

    def read_unfinished(self) -> PrivacyLedger:
        """Return the ledger of a run that may be in progress or interrupted.

        An incomplete last line that is a release, or may be one, counts as one.

        Returns:
            The ledger to account for.

        Raises:
            IntegrityError: If it is missing, damaged or altered, or another file of the run
                contradicts it.
        """
        return read_unfinished(self.ledger)

    def read_finished(self) -> PrivacyLedger:
        """Return the ledger of a finished run, after its files were compared with the seal.

        Returns:
            The sealed ledger.

        Raises:
            IntegrityError: If the run is unfinished, or a file is missing or altered.
        """
        ledger = self.read_ledger()
        if ledger.seal is None:
            if ledger.ended is not None and not ledger.accounted_ledgers:
                raise IntegrityError(
                    f"{self.path} has ended and added no noise, so it has no claim: train it with "
                    "noise"
                )
            raise IntegrityError(
                f"{self.path} is not finished: resume it with dpaudit train --resume, end your "
                "own training loop with private.finish(), or complete it with dpaudit finish"
            )
        self.require_unaltered(ledger.seal.files)
        return ledger

    def require_unaltered(self, files: dict[str, str]) -> None:
        """Refuse a run in which a file does not have its recorded digest.

        Args:
            files: SHA-256 by file name.

        Raises:
            IntegrityError: If a file is missing or altered; the error names it.
        """
        for name, digest in files.items():
            if sha256(self.path / name) != digest:
                raise IntegrityError(f"{self.path / name} was altered after its ledger recorded it")


def open_run(path: Path) -> RunDirectory:
    """Return the run at a path.

    Args:
        path: The run directory.

    Returns:
        The run; its files are not read yet.

    Raises:
        InvalidArgument: If there is no such directory.
        IntegrityError: If the directory holds no ledger.
    """
    if not os.path.isdir(path):
        raise InvalidArgument("run", str(path), "a run directory that exists")
    run = RunDirectory(path)
    if not os.path.isfile(run.ledger):
        raise IntegrityError(
            f"{path} is not a run directory, or is incomplete: it has no ledger.jsonl"
        )
    return run


def require_absent(path: Path) -> None:
    """Refuse a path that is in use.

    Allowed are a missing path, an empty directory, and a run whose process died before its first
    release.

    Args:
        path: Path of the new run.

    Raises:
        RunExists: If there is anything else.
    """
    if os.path.islink(path) or (os.path.exists(path) and not _may_hold_a_run(path)):
        raise RunExists(f"{path} exists: choose another --out, or pass --overwrite or --resume")


def _may_hold_a_run(path: Path) -> bool:
    """Return whether a new run may use a directory: it is empty, or its run has no release."""
    if not path.is_dir():
        return False
    if not any(path.iterdir()):
        return True
    run = RunDirectory(path)
    return not _others_than(run) and has_no_release(run.ledger)


def _others_than(run: RunDirectory) -> list[str]:
    """Return the names in a run directory that do not belong to the run."""
    own = {file.name for file in run.all_files} | {run.checkpoints.name, run.participants.name}
    others = [file for file in run.path.iterdir() if final_name(file) not in own]
    return [str(file.relative_to(run.path)) for file in (*others, *foreign_entries(run))]


def conflicting_files(run: RunDirectory) -> list[Path]:
    """Return the files of an earlier run beside which no new ledger may be created.

    Args:
        run: The files of the earlier run.

    Returns:
        Existing files; none if that run has no release, as ``LedgerWriter.create`` replaces it.
    """
    if has_no_release(run.ledger):
        return []
    return [file for file in (*run.all_files, *run.participant_ledgers) if file.exists()]


def create_run(path: Path) -> RunDirectory:
    """Create a run directory, or reuse that of a run without any release.

    Create the ledger next: this removes what such a run left.

    Args:
        path: Path of the new run.

    Returns:
        The run.

    Raises:
        RunExists: If the path is in use.
        InvalidArgument: If no directory can be created there.
        InputOutputError: If the disk is full or fails.
    """
    require_absent(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        raise write_error("out", path, error) from error
    return RunDirectory(path)


def remove_run(path: Path) -> None:
    """Remove a run, and nothing but a run.

    Args:
        path: The run directory; a missing or empty one is ignored.

    Raises:
        RunExists: If it is not a run directory, or holds other files.
        RunLocked: If a process is writing the ledger.
    """
    if not path.is_symlink() and (not path.exists() or (path.is_dir() and not any(path.iterdir()))):
        return
    run = RunDirectory(path)
    if path.is_symlink() or not path.is_dir() or not is_ledger(run.ledger):
        raise RunExists(f"{path} is not a run directory: choose another --out")
    others = _others_than(run)
    if others:
        raise RunExists(
            f"{path} holds {others[0]!r}, which does not belong to the run: move it away first"
        )
    # No process may write while files go. The ledger is removed last, so that a removal that
    # is interrupted leaves a directory that is still recognized as a run.
    with ledger_lock(run.ledger):
        # Nobody who lacks the run's lock can begin to write a participant's ledger, so these
        # are locked one at a time: a process may open few files at once.
        for ledger in run.participant_ledgers:
            with ledger_lock(ledger):
                pass
        shutil.rmtree(run.checkpoints, ignore_errors=True)
        shutil.rmtree(run.participants, ignore_errors=True)
        for file in (*path.glob("*.partial"), *run.all_files):
            file.unlink(missing_ok=True)
        path.rmdir()


def remove_unfinished_run(ledger: Path) -> None:
    """Remove the ledger of an unfinished run, with the run's other files, and nothing else.

    Other files in the folder stay. Nothing is removed if anything is refused.

    Args:
        ledger: The ledger; a missing one is ignored, with its folder.

    Raises:
        RunExists: If the run is finished, or the file is no ledger.
        RunLocked: If a process is writing the ledger.
        IntegrityError: If the ledger is damaged, so that it may be that of a finished run.
    """
    if not os.path.lexists(ledger) or has_no_release(ledger):
        return  # a ledger without a release is replaced in any case
    if ledger.is_symlink() or not is_ledger(ledger):
        raise RunExists(f"{ledger} is not a ledger, and is not replaced: choose another file")
    run = RunDirectory(ledger.parent)
    in_directory = run.ledger == ledger
    with ExitStack() as locks:
        locks.enter_context(ledger_lock(ledger))
        found = run.read_unfinished() if in_directory else read_unfinished(ledger)
        if found.seal is not None or (in_directory and run.claim.exists()):
            raise RunExists(
                f"{ledger} is that of a finished run, which overwrite does not replace: choose "
                "another folder, or move this one away"
            )
        if not in_directory:
            ledger.unlink()
            return
        if run.participants.exists():
            raise RunExists(f"{run.path} is a federation: choose another folder")
        for folder in checkpoint_folders(run.checkpoints):
            remove_checkpoint(folder)
        with suppress(OSError):  # the user's files may be there, too
            run.checkpoints.rmdir()
        # The ledger goes last, so that an interrupted removal can be repeated.
        for file in (*(one for one in run.all_files if one != ledger), ledger):
            file.unlink(missing_ok=True)


# The end of a run. Order on disk: the files, the line with their digests, the claim, the seal.
# The claim names the head that the ledger has after the seal. So after a crash between claim
# and seal, the claim proves what the seal must be; before the claim, the run is unfinished.


def seal_run(run: RunDirectory, writer: LedgerWriter, claim: Claim) -> None:
    """Write the claim, then seal the ledger over the run's files.

    Args:
        run: The run, all of whose files exist.
        writer: The run's ledger, which is closed.
        claim: Claim computed from the ledger as it is now; its ``ledger_head`` is filled in.

    Raises:
        ForkedSession: If this process is not the one that opened the ledger.
        IntegrityError: If a file cannot be read, the claim has another number of releases, or
            another process wrote the ledger.
        InvalidArgument: If the claim cannot be written. The run can then be resumed.
    """
    writer.require_writable()
    with writer.exclusive:
        recorded = _recorded_releases(run, writer)
        if claim.releases != recorded:
            raise IntegrityError(
                f"the claim covers {claim.releases} releases, {writer.path} holds {recorded}"
            )
        files = sealed_digests(run)
        writer.end(files)
        _write_claim(run, replace(claim, ledger_head=writer.head_after_seal(files)))
        writer.seal(files)


def seal_participant(writer: LedgerWriter) -> None:
    """Seal the ledger of a participant of a federation, which has no claim of its own.

    Seal those of all participants before ``seal_run`` seals the server's, which records their
    digests.

    Args:
        writer: The participant's ledger, which is closed.

    Raises:
        ForkedSession: If this process is not the one that opened the ledger.
        IntegrityError: If another process wrote the ledger.
    """
    writer.seal({})


def _recorded_releases(run: RunDirectory, writer: LedgerWriter) -> int:
    """Return the number of releases that a claim of the run must cover."""
    if not run.participants.exists():
        return writer.releases
    content = parse_run(run.ledger, ledger_bytes(run.ledger))
    require_complete_last_line(run.ledger, content)
    return content.ledger.release_count


def seal_interrupted_run(run: RunDirectory, content: LedgerContent, claim: Claim) -> None:
    """Write claim and seal of a run whose process died between the model and the seal.

    Args:
        run: The run.
        content: Its ledger; an incomplete last line must be the beginning of the seal.
        claim: Claim computed from that ledger; its ``ledger_head`` is filled in.

    Raises:
        IntegrityError: If a file cannot be read, or contradicts the ledger.
        InvalidArgument: If the claim cannot be written.
        RunLocked: If a process is writing the ledger.
    """
    _, head = encode_line(expected_seal(run, content.ledger), content.ledger.head)
    _write_claim(run, replace(claim, ledger_head=head))
    complete_seal(run)


def _write_claim(run: RunDirectory, claim: Claim) -> None:
    """Write the claim; remove it if that fails."""
    try:
        write_json(run.claim, claim)
    except DpauditError:
        # The file may exist although it is not surely on disk. A claim without a seal would
        # end the run, so it is removed and the run can be resumed.
        with suppress(OSError):
            run.claim.unlink(missing_ok=True)
        raise


# Canary files of ``dpaudit canaries make`` that were used in your own training loop.
#
# The trainer's file is copied beside the ledger, and its digest is in the ledger before the first
# step. The file holds the digest of the auditor's file. So the inclusion bits were fixed by then.

COUNT_ARRAY, AUDITOR_DIGEST_ARRAY = "count", "secret_sha256"
"""Arrays of the trainer's file: number of canaries with an inclusion bit, and the digest of the
auditor's file."""


@dataclass(frozen=True)
class CanaryFileRecord:
    """What a ledger records of a canary file.

    Attributes:
        count: Number m of canaries with an inclusion bit; only included ones were trained on.
        secret_sha256: Digest of the auditor's file, which holds all canaries with their bits.
    """

    count: int
    secret_sha256: str


def read_canary_file_record(run: RunDirectory, ledger: PrivacyLedger) -> CanaryFileRecord | None:
    """Return what a run's ledger records of a canary file.

    Args:
        run: The run.
        ledger: Its verified ledger.

    Returns:
        The record; None if the ledger records no canary file.

    Raises:
        IntegrityError: If the file is missing or altered, or lacks an array.
    """
    path, begun = run.canary_file_copy, ledger.begun
    if begun is None or path.name not in begun.files:
        return None
    run.require_unaltered({path.name: begun.files[path.name]})
    return canary_file_record(path, read_arrays(path))


def canary_file_record(path: Path, arrays: Mapping[str, NDArray[Any]]) -> CanaryFileRecord:
    """Return what a trainer's canary file records of the auditor's file.

    Args:
        path: The file, for messages.
        arrays: Its arrays.

    Returns:
        The record.

    Raises:
        IntegrityError: If an array is missing, or is no number of canaries or no digest.
    """
    missing = [name for name in (COUNT_ARRAY, AUDITOR_DIGEST_ARRAY) if name not in arrays]
    if missing:
        raise IntegrityError(
            f"{path} lacks {', '.join(missing)}: it is not a trainer's canary file"
        )
    count, digest = arrays[COUNT_ARRAY], arrays[AUDITOR_DIGEST_ARRAY]
    is_count = count.shape == () and count.dtype.kind in "iu" and int(count) > 0
    if not is_count or digest.shape != () or re.fullmatch("[0-9a-f]{64}", str(digest)) is None:
        raise IntegrityError(
            f"{path} is broken: {COUNT_ARRAY} must be a number of canaries, and "
            f"{AUDITOR_DIGEST_ARRAY} a SHA-256"
        )
    return CanaryFileRecord(int(count), str(digest))
