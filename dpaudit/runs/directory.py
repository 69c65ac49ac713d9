"""The files of a run, and the rules by which a run directory comes and goes."""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import dataclass
from pathlib import Path

from dpaudit.runs.files import name_of, read_toml, sha256
from dpaudit.runs.ledger_file import is_ledger, locked, read_ledger
from dpaudit.vocabulary.errors import IntegrityError, InvalidArgument, RunExists
from dpaudit.vocabulary.ledger import PrivacyLedger
from dpaudit.vocabulary.settings import RunConfig


@dataclass(frozen=True)
class RunDirectory:
    """Where each file of a run is."""

    path: Path

    @property
    def config(self) -> Path:
        """What was asked."""
        return self.path / "config.toml"

    @property
    def ledger(self) -> Path:
        """What was released."""
        return self.path / "ledger.jsonl"

    @property
    def model(self) -> Path:
        """The weights to ship."""
        return self.path / "model.safetensors"

    @property
    def canaries(self) -> Path:
        """The included canaries: all that a trainer needs."""
        return self.path / "canaries.npz"

    @property
    def secret_canaries(self) -> Path:
        """All canaries with their inclusion bits: for the auditor alone."""
        return self.path / "canaries.secret.npz"

    @property
    def observations(self) -> Path:
        """What the noisy sums showed on the canaries' coordinates, step by step."""
        return self.path / "observations.npz"

    @property
    def claim(self) -> Path:
        """The privacy claim."""
        return self.path / "claim.json"

    @property
    def audit(self) -> Path:
        """What was measured."""
        return self.path / "audit.json"

    @property
    def attack(self) -> Path:
        """What further membership attacks could tell."""
        return self.path / "attack.json"

    @property
    def conformance(self) -> Path:
        """Whether its trainer does what the ledger says."""
        return self.path / "conformance.json"

    @property
    def verdict(self) -> Path:
        """What the gate said."""
        return self.path / "verdict.json"

    @property
    def report(self) -> Path:
        """The report for people."""
        return self.path / "report.html"

    @property
    def checkpoints(self) -> Path:
        """Folders step-N, each complete once its marker is there."""
        return self.path / "checkpoints"

    @property
    def sealed_files(self) -> tuple[Path, ...]:
        """The files whose digests the ledger's seal holds, where they exist."""
        files = (self.config, self.model, self.canaries, self.secret_canaries, self.observations)
        return tuple(path for path in files if path.exists())

    @property
    def own_files(self) -> tuple[Path, ...]:
        """Every file that a run may hold, the ledger last."""
        return (
            *(self.config, self.model, self.canaries, self.secret_canaries, self.observations),
            *(self.claim, self.audit, self.attack, self.conformance, self.verdict, self.report),
            self.ledger,
        )

    @property
    def measurements(self) -> tuple[Path, ...]:
        """What a verdict rests on beside the ledger, where it exists."""
        files = (self.audit, self.attack, self.conformance)
        return tuple(path for path in files if path.exists())

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
        """Return the verified ledger of a run, finished or not."""
        return read_ledger(self.ledger)

    def read_finished(self) -> PrivacyLedger:
        """Return the ledger of a finished run whose files are those that it was sealed with.

        Raises:
            IntegrityError: the run is unfinished, or a file is missing or altered.
        """
        ledger = self.read_ledger()
        if ledger.seal is None:
            raise IntegrityError(
                f"{self.path} is not finished: resume it with dpaudit train --resume, or end the "
                "loop of your own with private.finish()"
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
    if not path.is_dir():
        raise InvalidArgument("run", str(path), "a run directory that exists")
    run = RunDirectory(path)
    if not run.ledger.is_file():
        raise IntegrityError(f"{path} is no run directory, or incomplete: it has no ledger.jsonl")
    return run


def require_absent(path: Path) -> None:
    """Refuse a path where something is already.

    Raises:
        RunExists: there is something, an empty directory aside.
    """
    if path.is_symlink() or (path.exists() and (not path.is_dir() or any(path.iterdir()))):
        raise RunExists(f"{path} exists: choose another --out, or pass --overwrite or --resume")


def create_run(path: Path) -> RunDirectory:
    """Make a new run directory.

    Raises:
        RunExists: there is something, or no directory can be made there.
    """
    require_absent(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunExists(f"{path} cannot be made: {error.strerror}") from error
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
    own = {file.name for file in run.own_files} | {run.checkpoints.name}
    others = [file.name for file in path.iterdir() if name_of(file) not in own]
    if others:
        raise RunExists(f"{path} holds {others[0]!r}, which is not the run's: move it away first")
    with locked(run.ledger):
        shutil.rmtree(run.checkpoints, ignore_errors=True)
        for file in (*path.glob("*.partial"), *run.own_files):
            file.unlink(missing_ok=True)
        path.rmdir()
