"""One federated run in one process, from its settings to a sealed run directory.

The engine owns data, ledgers, budgets, checkpoints and files; a strategy computes the rounds
(see ``strategy``). In seeded mode the run is deterministic.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from dpaudit.accountants.answers import claim_from_ledger
from dpaudit.runs.checkpoints import remove_checkpoints
from dpaudit.runs.consistency import RELEASES_KEY, RUN_KEY, is_proven_by_claim, sealed_digests
from dpaudit.runs.directory import (
    RunDirectory,
    create_run,
    open_run,
    seal_participant,
    seal_run,
)
from dpaudit.runs.file_io import sha256, write_toml
from dpaudit.runs.ledger_file import LedgerWriter, complete_seal, read_run
from dpaudit.trainer.data import DatasetSplit, load_dataset, load_training_column
from dpaudit.trainer.distributed import select_device
from dpaudit.trainer.federated import partition
from dpaudit.trainer.federated.federation import (
    Federation,
    Participant,
    PreparedFederation,
    participant_stream,
)
from dpaudit.trainer.federated.federation_checkpoint import (
    count_releases,
    read_federation_checkpoint,
    write_federation_checkpoint,
)
from dpaudit.trainer.federated.ledgers import (
    FederationLedger,
    OpenLedgers,
    federation_header,
    most_open_ledgers,
)
from dpaudit.trainer.federated.strategy import (
    FederationStrategy,
    RoundResult,
    find_strategy,
)
from dpaudit.trainer.models.factories import trained_part
from dpaudit.trainer.noise.randomness import Keystream
from dpaudit.trainer.run import prepare_model
from dpaudit.trainer.session.checkpoint import newest_checkpoint, write_weights
from dpaudit.trainer.session.release_account import PrivacyBudget
from dpaudit.vocabulary.errors import InvalidArgument, RunExists
from dpaudit.vocabulary.federation import FederatedConfig, FederationSettings
from dpaudit.vocabulary.ledger import PrivacyLedger, ResumeEntry

RoundCallback = Callable[[RoundResult, Federation], None]
"""Called after each round with who took part, and the federation, for its epsilons."""

ACCOUNTANT = "pld"

__all__ = ["RoundCallback", "prepare_federation", "train_federation"]


def prepare_federation(config: FederatedConfig) -> PreparedFederation:
    """Read the records, divide them among participants, and make the model.

    Args:
        config: The settings of the run.

    Returns:
        The prepared federation; no file is written.

    Raises:
        InvalidArgument: If data, partition, model or a setting cannot be used.

    Example:
        >>> from dpaudit.vocabulary.federation import FederatedPrivacy, FederationSettings
        >>> from dpaudit.vocabulary.settings import DataSettings
        >>> prepared = prepare_federation(FederatedConfig(
        ...     DataSettings("digits"), FederationSettings("fedavg", participants=4, rounds=1),
        ...     FederatedPrivacy(delta=1e-5, noise_multiplier=1.0, clip_norm=0.1)))
        >>> len(prepared.parts)
        4
    """
    definition = find_strategy(config.federation.strategy)
    definition.check(config)
    _require_whole_model(config)
    device = select_device(config.speed.device)
    split = load_dataset(config.data)
    parts = divide_records(config, split)
    stream = Keystream.of(config.privacy.seed)
    model = prepare_model(config.model.model, split, stream)
    return PreparedFederation(config, definition, split, model.to(device), parts, stream)


def _require_whole_model(config: FederatedConfig) -> None:
    """Refuse settings of the model that participants would not apply."""
    model = config.model
    for name, given in (("lora", model.lora_rank is not None), ("freeze_body", model.freeze_body),
                        ("views", model.views > 1)):  # fmt: skip
        if given:
            allowed = "left out in a federation: participants train the whole model on its records"
            raise InvalidArgument(name, "a value", allowed)


def divide_records(config: FederatedConfig, split: DatasetSplit) -> partition.Parts:
    """Return the positions of each participant's records among the training records.

    Args:
        config: The settings of the run.
        split: The records.

    Returns:
        One ascending array per participant.

    Raises:
        InvalidArgument: If the records do not suffice, or the column is missing.
    """
    settings: FederationSettings = config.federation
    labels, count, seed = split.train.labels, settings.participants, settings.partition_seed
    match settings.partition:
        case "shards":
            return partition.partition_into_shards(
                labels, count, shards_per_participant=settings.shards_per_participant, seed=seed
            )
        case "dirichlet":
            return partition.partition_by_dirichlet(
                labels, count, alpha=settings.dirichlet_alpha, seed=seed
            )
        case "column":
            values = load_training_column(config.data, str(settings.partition_column))
            return partition.partition_by_column(values, count)
        case "independent":
            return partition.draw_independently(
                len(labels),
                count,
                records_per_participant=settings.records_per_participant or 0,
                seed=seed,
            )
        case _:
            return partition.partition_evenly(len(labels), count, seed=seed)


def train_federation(
    prepared: PreparedFederation, out: Path, on_round: RoundCallback
) -> RunDirectory:
    """Train a federation into a new run directory.

    Args:
        prepared: The prepared federation; its model is trained in place.
        out: The run directory, which must not exist.
        on_round: Called after each round.

    Returns:
        The finished run directory. A run without noise has a model and no claim.

    Raises:
        RunExists: If ``out`` exists.

    Example:
        >>> import tempfile
        >>> from dpaudit.vocabulary.federation import FederatedPrivacy, LocalTraining
        >>> from dpaudit.vocabulary.settings import DataSettings
        >>> prepared = prepare_federation(FederatedConfig(
        ...     DataSettings("digits"), FederationSettings("dp-fedavg", participants=3, rounds=2),
        ...     FederatedPrivacy(delta=1e-5, noise_multiplier=2.0, clip_norm=0.1),
        ...     LocalTraining(local_steps=1)))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     run = train_federation(
        ...         prepared, Path(folder, "run"), lambda result, federation: print(
        ...             result.number, f"{federation.epsilons(1e-5)['000'].upper:.2f}"))
        ...     len(run.read_finished().releases)
        0 1.99
        1 2.94
        2
    """
    run = create_run(out)
    with _closing_ledgers() as opened:
        federation = _begin(prepared, run, opened)
        strategy = prepared.definition.begin(federation)
        _checkpoint(prepared, run, federation, strategy, 0)
        return _run_rounds(prepared, run, federation, strategy, on_round)


def prepare_federation_resume(out: Path) -> PreparedFederation:
    """Prepare to continue an interrupted federated run with its own settings.

    Args:
        out: The run directory.

    Returns:
        The prepared federation.

    Raises:
        InvalidArgument: If there is no such run, it is no federation, or its data are gone.
        IntegrityError: If its settings are missing or altered.
        RunExists: If it died before its settings were written: it cannot be resumed.
    """
    run = open_run(out)
    found = run.read_unfinished()
    if found.begun is None:
        raise RunExists(
            f"{out} stopped before its settings were written, and released nothing: train again "
            "with the same settings into the same folder"
        )
    run.require_unaltered(found.begun.files)
    return prepare_federation(run.read_federated_config())


def resume_federation(
    prepared: PreparedFederation, out: Path, on_round: RoundCallback
) -> RunDirectory:
    """Continue an interrupted federated run from its newest checkpoint.

    A secure run draws fresh keys, so no noise is used twice; rounds after the checkpoint are
    repeated, and recorded, again. A run that lacks only its seal is sealed.

    Args:
        prepared: The prepared federation.
        out: The run directory.
        on_round: Called after each round.

    Returns:
        The finished run directory.

    Raises:
        IntegrityError: If a file of the run is missing or altered.
        RunExists: If the run is finished, or another process writes it.
    """
    run = open_run(out)
    if is_proven_by_claim(run, read_run(run)):
        complete_seal(run)
        remove_checkpoints(run.checkpoints)
        return run
    found = run.read_unfinished()
    if found.seal is not None:
        raise RunExists(f"{out} is finished: there is nothing to resume")
    if found.ended is not None and not found.accounted_ledgers and not run.checkpoints.exists():
        raise RunExists(f"{out} has ended and added no noise: there is nothing to resume")
    kept = newest_checkpoint(run.checkpoints, found)
    first = 0 if kept is None else kept.progress.steps_done
    with _closing_ledgers() as opened:
        federation = _resume(prepared, run, found, first, opened)
        strategy = prepared.definition.begin(federation)
        if kept is None:
            _checkpoint(prepared, run, federation, strategy, 0)
        else:
            read_federation_checkpoint(kept, prepared, strategy)
        if _has_ended(found):
            return _finish(prepared, run, federation)
        return _run_rounds(prepared, run, federation, strategy, on_round)


@contextmanager
def _closing_ledgers() -> Iterator[ExitStack]:
    """Close all ledgers that were opened, also if the run fails."""
    with ExitStack() as opened:
        yield opened


def _begin(prepared: PreparedFederation, run: RunDirectory, opened: ExitStack) -> Federation:
    """Begin the ledgers of a new run, and write its settings."""
    config, definition, stream = prepared.config, prepared.definition, prepared.stream
    header = federation_header(config, definition, stream.randomness, None)
    server = FederationLedger.begin(run.ledger, header, _budget(config))
    opened.callback(server.close)
    write_toml(run.config, config)
    _writer(server).begin({run.config.name: sha256(run.config)})

    def ledger(number: int) -> FederationLedger:
        header = federation_header(config, definition, stream.randomness, number)
        path = run.participant(number).ledger if definition.is_private(config) else None
        return FederationLedger.begin(path, header, _budget(config))

    return _federation(prepared, server, ledger, 0, opened)


def _resume(
    prepared: PreparedFederation,
    run: RunDirectory,
    found: PrivacyLedger,
    first: int,
    opened: ExitStack,
) -> Federation:
    """Continue the ledgers of an interrupted run."""
    config, definition, stream = prepared.config, prepared.definition, prepared.stream
    resumed, budget = ResumeEntry(first, stream.randomness), _budget(config)
    server = FederationLedger.resume(run.ledger, found, resumed, budget)
    opened.callback(server.close)

    def ledger(number: int) -> FederationLedger:
        files = run.participant(number)
        own = found.participants.get(files.path.name)
        if own is None:  # the run died before this ledger was begun, or has no noise
            header = federation_header(config, definition, stream.randomness, number)
            path = files.ledger if definition.is_private(config) else None
            return FederationLedger.begin(path, header, budget)
        if own.seal is not None:  # the run died while its ledgers were sealed
            releases = tuple(one.mechanism for one in own.releases)
            return FederationLedger(own.header, None, releases, budget)
        return FederationLedger.resume(files.ledger, own, resumed, budget)

    return _federation(prepared, server, ledger, first, opened)


def _federation(
    prepared: PreparedFederation,
    server: FederationLedger,
    ledger: Callable[[int], FederationLedger],
    first: int,
    opened: ExitStack,
) -> Federation:
    """Return the federation of a process; its participants' ledgers are opened."""
    participants, pool = [], OpenLedgers(_writer(server), most_open_ledgers())
    for number, records in enumerate(prepared.records):
        own = ledger(number)
        opened.callback(own.close)
        own.join(pool)
        stream = participant_stream(prepared.stream, number)
        participants.append(Participant(number, records, stream, own))
    return Federation(
        prepared.config,
        trained_part(prepared.model),
        prepared.split.shape,
        prepared.stream,
        server,
        tuple(participants),
        first,
        public_records(prepared),
    )


def public_records(prepared: PreparedFederation) -> int:
    """Return the public number of records of a participant.

    Args:
        prepared: The prepared federation.

    Returns:
        The number that each draws, or the number of all records over that of participants.
    """
    settings = prepared.config.federation
    nominal = len(prepared.split.train) // settings.participants
    return settings.records_per_participant or nominal


def _run_rounds(
    prepared: PreparedFederation,
    run: RunDirectory,
    federation: Federation,
    strategy: FederationStrategy,
    on_round: RoundCallback,
) -> RunDirectory:
    """Compute the remaining rounds, and finish the run."""
    rounds, every = prepared.config.federation.rounds, _rounds_between_checkpoints(prepared.config)
    for number in range(federation.first_round, rounds):
        before = [one.ledger.head for one in federation.participants]
        result = strategy.run_round(number)
        if result.ended:
            on_round(result, federation)
            _checkpoint(prepared, run, federation, strategy, number)
            break
        heads = {
            one.number: one.ledger.head
            for one in federation.participants
            if one.ledger.head != before[one.number]
        }
        federation.server.end_round(number, heads, _left_out(result), result.left)
        if (number + 1) % every == 0 or number + 1 == rounds:
            _checkpoint(prepared, run, federation, strategy, number + 1)
        on_round(result, federation)
    return _finish(prepared, run, federation)


def _finish(
    prepared: PreparedFederation, run: RunDirectory, federation: Federation
) -> RunDirectory:
    """Write the model, the claim and the seals."""
    writer = _writer(federation.server)
    releases = count_releases(federation)
    metadata = {RUN_KEY: federation.server.header.run, RELEASES_KEY: str(releases)}
    if not prepared.definition.is_private(prepared.config):
        write_weights(run.model, prepared.model, metadata)
        writer.end(sealed_digests(run))
        remove_checkpoints(run.checkpoints)
        return run
    # The claim is computed first, so that an unsupported mechanism leaves no files.
    claim = claim_from_ledger(run.read_ledger(), prepared.config.privacy.delta, ACCOUNTANT)
    for one in federation.participants:
        if one.ledger.writer is not None:
            seal_participant(one.ledger.writer)
    write_weights(run.model, prepared.model, metadata)
    seal_run(run, writer, claim)
    remove_checkpoints(run.checkpoints)
    return run


def _checkpoint(
    prepared: PreparedFederation,
    run: RunDirectory,
    federation: Federation,
    strategy: FederationStrategy,
    rounds_done: int,
) -> None:
    """Write a checkpoint after a number of rounds."""
    write_federation_checkpoint(
        run.checkpoints, prepared, federation, strategy, _writer(federation.server), rounds_done
    )


def _has_ended(found: PrivacyLedger) -> bool:
    """Return whether a run died while its ledgers were sealed: no round may follow."""
    return found.ended is not None or any(
        one.seal is not None for one in found.participants.values()
    )


def _left_out(result: RoundResult) -> dict[int, str]:
    """Return why updates are missing; of errors only the fact, as their text may hold values."""
    return {**dict.fromkeys(result.failed, "its local training failed"), **result.rejected}


def _rounds_between_checkpoints(config: FederatedConfig) -> int:
    """Return the number of rounds that take about as many steps as the settings say."""
    return max(1, math.ceil(config.speed.checkpoint_every / config.local.local_steps))


def _budget(config: FederatedConfig) -> PrivacyBudget | None:
    """Return the budget of every ledger; None if there is none."""
    privacy = config.privacy
    if privacy.max_epsilon is None:
        return None
    return PrivacyBudget(privacy.max_epsilon, privacy.delta)


def _writer(server: FederationLedger) -> LedgerWriter:
    """Return the file of the server's ledger, which always has one."""
    assert server.writer is not None
    return server.writer
