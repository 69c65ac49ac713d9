"""Checkpoints of a federation: the global model and the strategy's state; never a key.

Files, then digests in the server's ledger, then the marker, as for a run of one trainer. The
ledgers of participants need no checkpoint: releases after it stay recorded, and rounds that are
repeated are recorded again.
"""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file, load_model

from dpaudit.files.regular_files import DATA_LIMIT, InputFile, open_input, write_error
from dpaudit.runs.checkpoints import (
    MARKER,
    PROGRESS,
    Progress,
    complete_checkpoints,
    digests_of,
    new_checkpoint_folder,
    remove_checkpoint,
)
from dpaudit.runs.file_io import PRIVATE, write_bytes, write_json
from dpaudit.runs.ledger_file import LedgerWriter
from dpaudit.trainer.federated.federation import Federation, PreparedFederation
from dpaudit.trainer.federated.strategy import FederationStrategy
from dpaudit.trainer.session.checkpoint import (
    CHECKPOINTS_KEPT,
    UsableCheckpoint,
    save_weights,
)
from dpaudit.vocabulary.errors import IntegrityError
from dpaudit.vocabulary.ledger import CheckpointEntry
from dpaudit.vocabulary.privacy_terms import Unit

MODEL, STATE = "model.safetensors", "state.safetensors"


def write_federation_checkpoint(
    checkpoints: Path,
    prepared: PreparedFederation,
    federation: Federation,
    strategy: FederationStrategy,
    writer: LedgerWriter,
    rounds_done: int,
) -> None:
    """Write a checkpoint into a new folder, and remove all but the newest two.

    Args:
        checkpoints: The folder of the run's checkpoints.
        prepared: The prepared federation, for the whole model.
        federation: The federation, for its ledgers.
        strategy: The strategy, whose state is stored.
        writer: The server's ledger.
        rounds_done: Number of rounds that ended.

    Raises:
        InvalidArgument: If the folder cannot be written.
        InputOutputError: If the disk is full or fails.
    """
    folder = new_checkpoint_folder(checkpoints, rounds_done)
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise write_error("folder", folder, error) from error
    save_weights(folder / MODEL, prepared.model)
    state = {name: tensor.contiguous() for name, tensor in strategy.state().items()}
    save_weights(folder / STATE, state)
    progress = Progress(
        rounds_done,
        count_releases(federation),
        federation.expected_batch_size,
        run=federation.server.header.run,
    )
    write_json(folder / PROGRESS, progress, PRIVATE)
    writer.checkpointed(CheckpointEntry(rounds_done, digests_of(folder)))
    write_bytes(folder / MARKER, b"")
    for old in complete_checkpoints(checkpoints)[:-CHECKPOINTS_KEPT]:
        remove_checkpoint(old)


def read_federation_checkpoint(
    kept: UsableCheckpoint, prepared: PreparedFederation, strategy: FederationStrategy
) -> None:
    """Fill the global model and the strategy's state from a checkpoint, in place.

    Args:
        kept: The checkpoint, whose digests were compared.
        prepared: The prepared federation, whose model is filled.
        strategy: The strategy, which continues from its state.

    Raises:
        IntegrityError: If the checkpoint is broken, or of another model.
    """
    for name in (MODEL, STATE):
        with open_input(InputFile(kept.folder / name, limit=DATA_LIMIT)):
            pass  # refuses anything but a regular file: safetensors opens the path itself
    try:
        state = load_file(kept.folder / STATE)
        load_model(prepared.model, kept.folder / MODEL)
        strategy.load_state(state)
    except Exception as error:  # safetensors and torch raise their own errors
        raise IntegrityError(f"{kept.folder} is broken, or of another model: {error}") from error


def count_releases(federation: Federation) -> int:
    """Return the number of releases that the run's claim covers, as its reader counts them.

    Args:
        federation: The federation.

    Returns:
        Of a record-level run, those of all ledgers; else those of the longest one, as each
        participant's ledger repeats the server's releases.
    """
    server = federation.server.releases
    counts = [one.ledger.releases for one in federation.participants]
    if federation.server.header.unit is Unit.PARTICIPANT:
        return max(server, *counts)
    return server + sum(counts)
