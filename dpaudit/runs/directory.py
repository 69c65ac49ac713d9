"""The files of a run, and the rules by which a run directory comes and goes."""

from __future__ import annotations

import hashlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from dpaudit.files.opening import name_in_text
from dpaudit.files.writing import write_error
from dpaudit.runs.files import name_of, read_toml, sha256
from dpaudit.runs.layout import RunFiles
from dpaudit.runs.ledger_file import (
    is_ledger,
    is_unbegun,
    locked,
    read_run,
    read_unfinished,
    require_whole,
)
from dpaudit.vocabulary.errors import IntegrityError, InvalidArgument, RunExists
from dpaudit.vocabulary.ledger import PrivacyLedger
from dpaudit.vocabulary.settings import RunConfig


@dataclass(frozen=True)
class RunDirectory(RunFiles):
    """A run's files, and how they are read: every reader of its ledger cross-checks it."""

    @property
    def name(self) -> str:
        """What documents call the run: its folder's name."""
        return name_in_text(Path(os.path.realpath(self.path)))

    def measured(self) -> str:
        """Return one digest of everything that was measured, for a verdict to name.

        Raises:
            IntegrityError: a file cannot be read.
        """
        lines = [f"{path.name} {sha256(path)}" for path in self.measurements]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    def read_config(self) -> RunConfig:
        """Return what was asked of the run.

        Raises:
            InvalidArgument: it was made by a loop of one's own, which has no settings.
            IntegrityError: the settings are broken, or an unknown version.
        """
        if not self.config.exists():
            raise InvalidArgument(
                "run",
                str(self.path),
                "one that dpaudit train made: a loop of one's own has no config.toml "
                "(test its trainer by dpaudit conformance package.module:make_trainer --run)",
            )
        return read_toml(self.config, RunConfig)

    def read_ledger(self) -> PrivacyLedger:
        """Return the verified ledger of a run, finished or not; it ends with a whole line.

        Raises:
            IntegrityError: It is missing, torn or altered, or another file of the run
                contradicts it; a finished run must have its claim.
        """
        content = read_run(self)
        require_whole(self.ledger, content)
        return content.ledger

    def read_unfinished(self) -> PrivacyLedger:
        """Return the ledger of a run that may still go on, or whose process may have died.

        An incomplete last line that is a release, or may be one, counts as one.

        Raises:
            IntegrityError: It is missing, damaged or altered, or another file of the run
                contradicts it.
        """
        return read_unfinished(self.ledger)

    def read_finished(self) -> PrivacyLedger:
        """Return the ledger of a finished run whose files are those that it was sealed with.

        Raises:
            IntegrityError: the run is unfinished, or a file is missing or altered.
        """
        ledger = self.read_ledger()
        if ledger.seal is None:
            raise IntegrityError(
                f"{self.path} is not finished: resume it with dpaudit train --resume, end the "
                "loop of your own with private.finish(), or complete it with dpaudit finish"
            )
        self.require_unaltered(ledger.seal.files)
        return ledger

    def require_unaltered(self, files: dict[str, str]) -> None:
        """Refuse a run of which a file no longer has the digest that its ledger holds.

        Raises:
            IntegrityError: names the file.
        """
        for name, digest in files.items():
            if sha256(self.path / name) != digest:
                raise IntegrityError(f"{self.path / name} was altered after its ledger bound it")


def open_run(path: Path) -> RunDirectory:
    """Return the run at ``path``.

    Raises:
        InvalidArgument: there is no such directory.
        IntegrityError: it holds no ledger.
    """
    if not os.path.isdir(path):
        raise InvalidArgument("run", str(path), "a run directory that exists")
    run = RunDirectory(path)
    if not os.path.isfile(run.ledger):
        raise IntegrityError(f"{path} is no run directory, or incomplete: it has no ledger.jsonl")
    return run


def require_absent(path: Path) -> None:
    """Refuse a path where something is already.

    An empty directory is allowed, and one that holds nothing but a run that never released
    anything: its process died before it did.

    Raises:
        RunExists: there is something else.
    """
    if os.path.islink(path) or (os.path.exists(path) and not _may_hold_a_run(path)):
        raise RunExists(f"{path} exists: choose another --out, or pass --overwrite or --resume")


def _may_hold_a_run(path: Path) -> bool:
    if not path.is_dir():
        return False
    if not any(path.iterdir()):
        return True
    run = RunDirectory(path)
    return not _others_than(run) and is_unbegun(run.ledger)


def _others_than(run: RunDirectory) -> list[str]:
    """Return the names in a run directory that are not the run's."""
    own = {file.name for file in run.own_files} | {run.checkpoints.name}
    return [file.name for file in run.path.iterdir() if name_of(file) not in own]


def files_in_the_way(run: RunDirectory) -> list[Path]:
    """Return the files of an earlier run that a new ledger must not be put beside.

    None, if the earlier run never released anything: ``LedgerWriter.create`` replaces it.
    """
    if is_unbegun(run.ledger):
        return []
    return [file for file in run.own_files if file.exists()]


def create_run(path: Path) -> RunDirectory:
    """Make a new run directory, or take that of a run that never released anything.

    The ledger is to be created first: that removes what such a run left.

    Raises:
        RunExists: there is something.
        InvalidArgument: no directory can be made there.
        InputOutputError: the disk is full or fails.
    """
    require_absent(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        raise write_error("out", path, error) from error
    return RunDirectory(path)


def remove_run(path: Path) -> None:
    """Remove a run, to make way for a new one; anything but a run is refused.

    Raises:
        RunExists: it is no run directory, holds a file that is not the run's, or is being
            written.
    """
    if not path.is_symlink() and (not path.exists() or (path.is_dir() and not any(path.iterdir()))):
        return
    run = RunDirectory(path)
    if path.is_symlink() or not path.is_dir() or not is_ledger(run.ledger):
        raise RunExists(f"{path} is no run directory: choose another --out")
    others = _others_than(run)
    if others:
        raise RunExists(f"{path} holds {others[0]!r}, which is not the run's: move it away first")
    with locked(run.ledger):
        shutil.rmtree(run.checkpoints, ignore_errors=True)
        for file in (*path.glob("*.partial"), *run.own_files):
            file.unlink(missing_ok=True)
        path.rmdir()
