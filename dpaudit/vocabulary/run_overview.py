"""Overview of a run: its state, settings, ledger, files, claim and verdict."""

from __future__ import annotations

from enum import Enum

import msgspec

from dpaudit.vocabulary import SCHEMA_VERSION
from dpaudit.vocabulary.claim import Claim
from dpaudit.vocabulary.federation import FederatedConfig, FederationHeader
from dpaudit.vocabulary.ledger import NoiseKind, Randomness, Sampling
from dpaudit.vocabulary.mechanism import Mechanism
from dpaudit.vocabulary.privacy_terms import Adjacency, Unit
from dpaudit.vocabulary.settings import RunConfig
from dpaudit.vocabulary.verdict import Outcome, Verdict


class RunState(Enum):
    """State of a run directory."""

    FINISHED = "finished"
    UNFINISHED = "unfinished"
    ENDED = "ended"
    """It has ended without any noise, so that there is no claim to finish it with."""
    DAMAGED = "damaged"


class RunSummary(msgspec.Struct, frozen=True, kw_only=True):
    """One line of ``dpaudit run list``.

    Attributes:
        run: Name of the run directory.
        state: Damaged if a file is missing, altered or contradicts another one.
        problem: Why the run is damaged or epsilon is unknown; empty without a problem.
        steps: Number of recorded steps, each counted once; of a federation, of rounds. None if
            damaged.
        planned_steps: Number of steps, or rounds, of the settings; None for your own training
            loop.
        epsilon_upper: Upper bound on epsilon of the recorded releases, in nats, recomputed
            from the ledger; None if there is no release or no bound.
        delta: Delta of epsilon_upper; None where that is None.
        outcome: Verdict of the gate; None if there is none or it is out of date.
        other_policy: Whether the verdict is by another policy than the one in the working
            directory.
    """

    run: str
    state: RunState
    problem: str = ""
    steps: int | None = None
    planned_steps: int | None = None
    epsilon_upper: float | None = None
    delta: float | None = None
    outcome: Outcome | None = None
    other_policy: bool = False


class RunList(msgspec.Struct, frozen=True):
    """The runs of a folder, by name."""

    runs: tuple[RunSummary, ...]
    schema_version: str = SCHEMA_VERSION


class LedgerSummary(msgspec.Struct, frozen=True, kw_only=True):
    """What a ledger has recorded.

    Attributes:
        releases: Number of recorded releases, steps and others; of a federation, those that its
            claim covers.
        adjacency: Which data sets are neighbors.
        unit: What neighboring data sets differ by.
        sampling: How batches are drawn.
        randomness: Source of noise and sampling.
        clip_norm: Largest L2 norm of one record's gradient.
        unaccounted: Uses of the records that no claim covers.
        head: SHA-256 hash of the last line.
        mechanism: All releases as one mechanism; of a federation, those with the largest epsilon.
            None without a release.
        federation: Strategy, participants, and whom the run protects against; None for a run of
            one trainer.
        spot_checks: At how many steps the gradients were compared with the slow way, in words.
        participants: Number of releases in each participant's ledger, by its folder name.
        noise: The kind of noise on the sums of gradients; None if it was not recorded.
    """

    releases: int
    adjacency: Adjacency
    unit: Unit
    sampling: Sampling
    randomness: Randomness
    clip_norm: float
    unaccounted: tuple[str, ...]
    head: str
    mechanism: Mechanism | None
    federation: FederationHeader | None = None
    participants: dict[str, int] = {}
    noise: NoiseKind | None = None
    spot_checks: str = ""


class RunFile(msgspec.Struct, frozen=True):
    """A file of a run directory: its name and its size in bytes."""

    name: str
    size: int


class RunOverview(msgspec.Struct, frozen=True, kw_only=True):
    """What ``dpaudit run show`` prints.

    Attributes:
        summary: State, steps, epsilon and verdict.
        settings: The settings of dpaudit train; None for your own training loop.
        federated_settings: The settings of dpaudit train --federated; None for other runs.
        ledger: What the ledger has recorded; None if it cannot be read.
        files: The files of the run, by name.
        claim: The claim, equal to that of the ledger; None if there is none.
        verdict: The verdict of the gate; None if there is none or it is out of date.
        problems: One message for each part that cannot be shown.
    """

    summary: RunSummary
    settings: RunConfig | None = None
    federated_settings: FederatedConfig | None = None
    ledger: LedgerSummary | None = None
    files: tuple[RunFile, ...] = ()
    claim: Claim | None = None
    verdict: Verdict | None = None
    problems: tuple[str, ...] = ()
    schema_version: str = SCHEMA_VERSION
