"""Small federated runs, written by hand as the trainer would: no torch, no training."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from ledgers import header, write_model
from msgspec.structs import replace

from dpaudit.accountants.answers import claim_from_ledger
from dpaudit.runs.directory import RunDirectory, create_run, seal_participant, seal_run
from dpaudit.runs.file_io import write_toml
from dpaudit.runs.ledger_file import LedgerWriter
from dpaudit.vocabulary.federation import (
    DP_FEDAVG,
    FEDAVG,
    FederatedConfig,
    FederatedPrivacy,
    FederationHeader,
    FederationSettings,
)
from dpaudit.vocabulary.ledger import (
    GRADIENT_SUM,
    UPDATE_SUM,
    LedgerHeader,
    ReleaseEntry,
    RoundEntry,
    participant_name,
)
from dpaudit.vocabulary.mechanism import Gaussian, PoissonSampled, Release
from dpaudit.vocabulary.privacy_terms import Unit
from dpaudit.vocabulary.settings import DataSettings

DELTA = 1e-5
NOISE, RATE = 1.5, 0.1
LOCAL_STEP: Release = PoissonSampled(Gaussian(NOISE), RATE)
ROUND: Release = PoissonSampled(Gaussian(2.0), 0.25)
PROTECTS = {
    FEDAVG: ("server", "other participants", "readers of the final model"),
    DP_FEDAVG: ("readers of the final model",),
}


@dataclass
class Federation:
    """A federated run whose ledgers are open."""

    run: RunDirectory
    server: LedgerWriter
    participants: dict[str, LedgerWriter] = field(default_factory=dict)

    def close(self) -> None:
        for writer in (self.server, *self.participants.values()):
            writer.close()

    def finish(self) -> RunDirectory:
        """Seal the participants' ledgers, write the claim, and seal the server's ledger."""
        for writer in self.participants.values():
            seal_participant(writer)
        ledger = self.run.read_ledger()
        write_model(self.run, ledger.release_count)
        seal_run(self.run, self.server, claim_from_ledger(ledger, DELTA, "pld"))
        self.close()
        return self.run


def config_of(strategy: str, participants: int, rounds: int, **changes: object) -> FederatedConfig:
    privacy = FederatedPrivacy(delta=DELTA, noise_multiplier=NOISE, clip_norm=1.0)
    return FederatedConfig(
        data=DataSettings(source="digits"),
        federation=FederationSettings(strategy, participants, rounds),
        privacy=replace(privacy, **changes),
    )


def header_of(
    strategy: str, participants: int, number: int | None, **changes: object
) -> LedgerHeader:
    federation = FederationHeader(strategy, participants, PROTECTS[strategy], number)
    unit = Unit.PARTICIPANT if strategy == DP_FEDAVG else Unit.RECORD
    return header(federation=federation, unit=unit, **changes)


def begin(
    path: Path, strategy: str = FEDAVG, participants: int = 3, **changes: object
) -> Federation:
    """Create the ledgers of the server and of every participant."""
    run = create_run(path)
    write_toml(run.config, config_of(strategy, participants, 3))
    server = LedgerWriter.create(run.ledger, header_of(strategy, participants, None, **changes))
    begun = Federation(run, server)
    for number in range(participants):
        files = run.participant(number)
        files.path.mkdir(parents=True)
        one = LedgerWriter.create(
            files.ledger, header_of(strategy, participants, number, **changes)
        )
        begun.participants[participant_name(number)] = one
    return begun


def run_round(
    federation: Federation,
    number: int,
    steps: dict[str, int] | None = None,
    rejected: dict[str, str] | None = None,
    left: tuple[str, ...] = (),
) -> None:
    """Record one round: so many local steps of each participant, and the server's line."""
    heads = {}
    for name, writer in federation.participants.items():
        for step in range(2 if steps is None else steps.get(name, 0)):
            writer.record_release(ReleaseEntry(GRADIENT_SUM, LOCAL_STEP, 10 * number + step))
            heads[name] = writer.head
    federation.server.record_round(RoundEntry(number, heads, rejected or {}, left))


def run_server_round(federation: Federation, number: int) -> None:
    """Record one round at the level of participants: in every ledger, the server's last."""
    release = ReleaseEntry(UPDATE_SUM, ROUND, number)
    for writer in federation.participants.values():
        writer.record_release(release)
    federation.server.record_release(release)
    heads = {name: writer.head for name, writer in federation.participants.items()}
    federation.server.record_round(RoundEntry(number, heads))


def record_level_run(path: Path, rounds: int = 3) -> RunDirectory:
    """A finished run of fedavg: participant 001 takes more steps than the others."""
    federation = begin(path)
    for number in range(rounds):
        run_round(federation, number, {"000": 2, "001": 4, "002": 2})
    return federation.finish()


def participant_level_run(path: Path, rounds: int = 3) -> RunDirectory:
    """A finished run of dp-fedavg."""
    federation = begin(path, DP_FEDAVG)
    for number in range(rounds):
        run_server_round(federation, number)
    return federation.finish()


def unfinished_federation(path: Path, rounds: int = 2) -> RunDirectory:
    """A run of fedavg whose process died between two rounds."""
    federation = begin(path)
    for number in range(rounds):
        run_round(federation, number, {"000": 2, "001": 4, "002": 2})
    federation.close()
    return federation.run
