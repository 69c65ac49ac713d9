"""The files of a run, and the rules by which a run directory comes and goes."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from dpaudit.runs.files import read_toml, sha256
from dpaudit.runs.ledger_file import read_ledger
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

    def read_config(self) -> RunConfig:
        """Return what was asked of the run."""
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
            raise IntegrityError(f"{self.path} is not finished: resume it with --resume")
        for name, digest in ledger.seal.files.items():
            if sha256(self.path / name) != digest:
                raise IntegrityError(f"{self.path / name} was altered after the run was sealed")
        return ledger


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
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise RunExists(f"{path} exists: choose another --out, or pass --overwrite or --resume")


def create_run(path: Path) -> RunDirectory:
    """Make a new run directory."""
    require_absent(path)
    path.mkdir(parents=True, exist_ok=True)
    return RunDirectory(path)


def remove_run(path: Path) -> None:
    """Remove a run, to make way for a new one; anything but a run is refused.

    Raises:
        RunExists: there is something that is not a run directory.
    """
    if not path.exists():
        return
    if path.is_dir() and (path / "ledger.jsonl").is_file():
        shutil.rmtree(path)
        return
    require_absent(path)
