"""Names of a run's files: the only place that defines them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dpaudit.vocabulary.ledger import participant_name


@dataclass(frozen=True)
class RunFiles:
    """Paths of the files of a run.

    Attributes:
        path: The run directory.
    """

    path: Path

    @property
    def config(self) -> Path:
        """Settings that ``dpaudit train`` was called with."""
        return self.path / "config.toml"

    @property
    def ledger(self) -> Path:
        """The ledger: every release of the run."""
        return self.path / "ledger.jsonl"

    @property
    def model(self) -> Path:
        """The final weights."""
        return self.path / "model.safetensors"

    @property
    def canaries(self) -> Path:
        """The included canaries, which are all that a trainer needs."""
        return self.path / "canaries.npz"

    @property
    def secret_canaries(self) -> Path:
        """All canaries with their inclusion bits, which only the auditor may read."""
        return self.path / "canaries.secret.npz"

    @property
    def canary_file_copy(self) -> Path:
        """Copy of the trainer's canary file that your own training loop used."""
        return self.path / "planted-canaries.npz"

    @property
    def observations(self) -> Path:
        """Noisy sums at the coordinates of the canaries, one row per step."""
        return self.path / "observations.npz"

    @property
    def claim(self) -> Path:
        """The privacy claim."""
        return self.path / "claim.json"

    @property
    def audit(self) -> Path:
        """Result of the audit."""
        return self.path / "audit.json"

    @property
    def attack(self) -> Path:
        """Results of further membership attacks."""
        return self.path / "attack.json"

    @property
    def final_model_plan(self) -> Path:
        """Plan of a black-box audit: which models are trained, and their secret seed."""
        return self.path / "final-models.json"

    @property
    def final_model_trials(self) -> Path:
        """Outputs of the models that a black-box audit has trained so far."""
        return self.path / "final-models.npz"

    @property
    def conformance(self) -> Path:
        """Findings about whether the trainer does what the ledger records."""
        return self.path / "conformance.json"

    @property
    def verdict(self) -> Path:
        """The gate's verdict."""
        return self.path / "verdict.json"

    @property
    def report(self) -> Path:
        """The HTML report."""
        return self.path / "report.html"

    @property
    def checkpoints(self) -> Path:
        """Folder of checkpoints ``step-N``; each is complete once its marker exists."""
        return self.path / "checkpoints"

    @property
    def participants(self) -> Path:
        """Folder of a federation with one folder per participant, such as ``000``."""
        return self.path / "participants"

    def participant(self, number: int) -> RunFiles:
        """Return the files of one participant of a federation.

        Args:
            number: Number of the participant, from 0.

        Returns:
            The files in their folder: the participant's own ledger.
        """
        return RunFiles(self.participants / participant_name(number))

    @property
    def participant_ledgers(self) -> tuple[Path, ...]:
        """The existing ledgers of a federation's participants, in the order of their numbers."""
        if not self.participants.is_dir():
            return ()
        folders = (one for one in self.participants.iterdir() if _is_number(one.name))
        ledgers = (RunFiles(one).ledger for one in sorted(folders, key=lambda one: int(one.name)))
        return tuple(one for one in ledgers if one.exists())

    @property
    def sealed_files(self) -> tuple[Path, ...]:
        """The existing files whose digests the ledger's seal holds."""
        files = (
            *(self.config, self.model, self.canaries, self.secret_canaries),
            *(self.canary_file_copy, self.observations),
        )
        return (*(path for path in files if path.exists()), *self.participant_ledgers)

    def sealed_name(self, path: Path) -> str:
        """Return the name under which ledgers record the digest of a file of the run.

        Args:
            path: The file.

        Returns:
            Its path within the run directory, such as ``participants/000/ledger.jsonl``.
        """
        return path.relative_to(self.path).as_posix()

    @property
    def all_files(self) -> tuple[Path, ...]:
        """Every file that a run may hold, the ledger last."""
        return (
            *(self.config, self.model, self.canaries, self.secret_canaries),
            *(self.canary_file_copy, self.observations),
            *(self.claim, self.audit, self.attack, self.conformance, self.verdict, self.report),
            *(self.final_model_plan, self.final_model_trials),
            self.ledger,
        )

    @property
    def measurements(self) -> tuple[Path, ...]:
        """The existing results of audits, attacks and conformance tests."""
        files = (self.audit, self.attack, self.conformance)
        return tuple(path for path in files if path.exists())

    @property
    def files_after_release(self) -> tuple[Path, ...]:
        """The files that a run writes only after its first release."""
        return (
            *(self.model, self.observations, self.claim, self.audit, self.attack),
            *(self.conformance, self.verdict, self.report),
            *(self.final_model_plan, self.final_model_trials),
        )


def _is_number(name: str) -> bool:
    return name.isascii() and name.isdecimal()
