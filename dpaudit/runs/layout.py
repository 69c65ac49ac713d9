"""The names of a run's files: the one place that knows them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class RunFiles:
    """Where each file of a run is.

    Attributes:
        path: The run directory.
    """

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
    def planted_canaries(self) -> Path:
        """The included canaries of ``dpaudit canaries make``, where a loop of your own has some."""
        return self.path / "planted-canaries.npz"

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
        files = (
            *(self.config, self.model, self.canaries, self.secret_canaries),
            *(self.planted_canaries, self.observations),
        )
        return tuple(path for path in files if path.exists())

    @property
    def own_files(self) -> tuple[Path, ...]:
        """Every file that a run may hold, the ledger last."""
        return (
            *(self.config, self.model, self.canaries, self.secret_canaries),
            *(self.planted_canaries, self.observations),
            *(self.claim, self.audit, self.attack, self.conformance, self.verdict, self.report),
            self.ledger,
        )

    @property
    def measurements(self) -> tuple[Path, ...]:
        """What a verdict rests on beside the ledger, where it exists."""
        files = (self.audit, self.attack, self.conformance)
        return tuple(path for path in files if path.exists())

    @property
    def made_by_releases(self) -> tuple[Path, ...]:
        """The files that a run writes only once it has released something."""
        return (
            *(self.model, self.observations, self.claim, self.audit, self.attack),
            *(self.conformance, self.verdict, self.report),
        )
