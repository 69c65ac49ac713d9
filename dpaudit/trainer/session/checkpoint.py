"""Checkpoints: model, optimizer, observations and progress; never a key.

The files are written first, then the ledger records their digests, then the marker is
written. So the ledger holds the digests of every complete checkpoint.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, load_model, save_file, save_model
from torch import Tensor, nn

from dpaudit.files.regular_files import (
    DATA_LIMIT,
    InputFile,
    create_empty_file,
    open_input,
    write_error,
)
from dpaudit.runs.checkpoints import (
    MARKER,
    PROGRESS,
    Progress,
    checkpoint_folders,
    complete_checkpoints,
    digests_of,
    is_complete,
    new_checkpoint_folder,
    read_progress,
    recorded_digests,
    remove_checkpoint,
    require_own_checkpoint,
)
from dpaudit.runs.file_io import (
    PRIVATE,
    PUBLIC,
    read_arrays,
    sync_to_disk,
    write_bytes,
    write_json,
    write_secret_arrays,
)
from dpaudit.trainer.canaries.run_canaries import (
    Observation,
    observations_from_arrays,
    observations_to_arrays,
)
from dpaudit.vocabulary.errors import IntegrityError, InvalidArgument
from dpaudit.vocabulary.ledger import CheckpointEntry, PrivacyLedger

CHECKPOINTS_KEPT = 2
_OS_ERROR = re.compile(r"os error (\d+)")


@dataclass(frozen=True)
class UsableCheckpoint:
    """A complete checkpoint whose digests the run's ledger holds.

    Attributes:
        folder: The checkpoint's folder.
        progress: How far the run had come.
    """

    folder: Path
    progress: Progress


def write_checkpoint(
    checkpoints: Path,
    record: Callable[[CheckpointEntry], None],
    progress: Progress,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    observations: list[Observation],
    average: nn.Module | None = None,
) -> None:
    """Write a checkpoint into a new folder, and remove all but the newest two.

    Args:
        checkpoints: The folder of the run's checkpoints.
        record: Writes the files' digests into the run's ledger.
        progress: How far the run has come.
        model: Its parameters and buffers are stored.
        optimizer: Its state is stored.
        observations: Observations of gradient canaries, one per step.
        average: The average of the weights over the steps, if there is one.

    Raises:
        InvalidArgument: If the folder has checkpoints of another run, or cannot be written.
        InputOutputError: If the disk is full or fails.
    """
    _require_own_folder(checkpoints, progress)
    folder = new_checkpoint_folder(checkpoints, progress.steps_done)
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise write_error("folder", folder, error) from error
    save_weights(folder / "model.safetensors", model)
    if average is not None:
        save_weights(folder / "average.safetensors", average)
    save_weights(folder / "optimizer.safetensors", _optimizer_tensors(optimizer))
    write_secret_arrays(folder / "observations.npz", **observations_to_arrays(observations))
    write_json(folder / PROGRESS, progress, PRIVATE)
    # Files, then digests in the ledger, then the marker: a crash in between leaves a folder that
    # is incomplete, or whose digests the ledger holds.
    record(CheckpointEntry(progress.steps_done, digests_of(folder)))
    write_bytes(folder / MARKER, b"")
    for old in complete_checkpoints(checkpoints)[:-CHECKPOINTS_KEPT]:
        remove_checkpoint(old)


def newest_checkpoint(checkpoints: Path, ledger: PrivacyLedger) -> UsableCheckpoint | None:
    """Return the newest usable checkpoint, after comparing every digest.

    A folder without its marker counts if the ledger recorded its files: the process died between
    the two. None is returned only if the ledger records no checkpoint.

    Args:
        checkpoints: The folder of the run's checkpoints.
        ledger: The run's ledger.

    Returns:
        The checkpoint; None if the run died before its first one.

    Raises:
        IntegrityError: If the newest complete one is broken, was altered or belongs to another
            ledger; or if the ledger records checkpoints and none is there.
    """
    for folder in reversed(checkpoint_folders(checkpoints)):
        if is_complete(folder):
            require_own_checkpoint(folder, ledger)
        elif not _is_as_recorded(folder, ledger):
            continue
        progress = read_progress(folder)
        if progress.run != ledger.header.run:
            raise IntegrityError(
                f"{folder} does not name the run of its ledger: nothing proves that its "
                "weights were made by the recorded steps; train again from the start"
            )
        return UsableCheckpoint(folder, progress)
    if any(isinstance(line, CheckpointEntry) for line in ledger.lines):
        raise IntegrityError(
            f"{checkpoints} has no complete checkpoint to resume from, though the ledger "
            "records one: give the folder that contains it, or restore it"
        )
    return None


def _is_as_recorded(folder: Path, ledger: PrivacyLedger) -> bool:
    """Return whether a folder's files have digests that the ledger records."""
    recorded = recorded_digests(folder, ledger)
    return bool(recorded) and digests_of(folder) in recorded


def _require_own_folder(checkpoints: Path, progress: Progress) -> None:
    """Refuse a folder with checkpoints of another run: each run would remove the other's."""
    try:
        checkpoints.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_error("folder", checkpoints, error) from error
    for folder in complete_checkpoints(checkpoints):
        if read_progress(folder).run not in ("", progress.run):
            raise InvalidArgument(
                "folder",
                str(checkpoints),
                f"one of this run alone: {folder.name} belongs to another run",
            )


def read_newest_observations(checkpoints: Path) -> list[Observation]:
    """Return the observations up to the newest complete checkpoint.

    Args:
        checkpoints: The folder of the run's checkpoints.

    Returns:
        One observation per step; empty without a checkpoint.
    """
    folders = complete_checkpoints(checkpoints)
    return (
        observations_from_arrays(read_arrays(folders[-1] / "observations.npz")) if folders else []
    )


def read_checkpoint(
    kept: UsableCheckpoint,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: nn.Module | None = None,
) -> list[Observation]:
    """Fill model, optimizer and average from a checkpoint, in place.

    Args:
        kept: The checkpoint.
        model: The model to fill.
        optimizer: The optimizer to fill.
        average: The average of the weights to fill, if there is one.

    Returns:
        The observations of the steps before the checkpoint.

    Raises:
        IntegrityError: If the checkpoint is broken, or of another model.
    """
    folder = kept.folder
    for name in ("optimizer", "model", *([] if average is None else ["average"])):
        with open_input(InputFile(folder / f"{name}.safetensors", limit=DATA_LIMIT)):
            pass  # refuses anything but a regular file: safetensors opens the path itself
    try:
        # The optimizer's state and observations are read first: if broken, nothing is filled.
        state = load_file(folder / "optimizer.safetensors")
        observations = observations_from_arrays(read_arrays(folder / "observations.npz"))
        load_model(model, folder / "model.safetensors")
        if average is not None:
            load_model(average, folder / "average.safetensors")
        _fill_optimizer(optimizer, state)
        return observations
    except IntegrityError:
        raise
    except Exception as error:  # safetensors and torch raise their own errors
        raise IntegrityError(f"{folder} is broken, or of another model: {error}") from error


def write_weights(
    path: Path, weights: nn.Module | dict[str, Tensor], metadata: dict[str, str]
) -> None:
    """Write weights atomically: after a crash there is the whole file, or nothing new.

    Args:
        path: The file, which everyone may read.
        weights: A model, whose tied tensors are written once; or named tensors.
        metadata: Texts for the file's header.

    Raises:
        InvalidArgument: If the file cannot be written there.
        InputOutputError: If the disk is full or fails.
    """
    partial = path.with_name(f"{path.name}.{uuid4().hex}.partial")
    try:
        save_weights(partial, weights, metadata, mode=PUBLIC)  # the weights are released
        partial.replace(path)
        sync_to_disk(path.parent)
    except OSError as error:
        raise write_error("file", path, error) from error
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def save_weights(
    path: Path,
    weights: nn.Module | dict[str, Tensor],
    metadata: dict[str, str] | None = None,
    mode: int = PRIVATE,
) -> None:
    """Write weights to a new file, and wait until they are on the disk.

    Args:
        path: The new file.
        weights: A model, whose tied tensors are written once; or named tensors.
        metadata: Texts for the file's header.
        mode: Permission bits of the file.

    Raises:
        InvalidArgument: If the file cannot be written there.
        InputOutputError: If the disk is full or fails.
    """
    try:
        given = create_empty_file(path, mode)
        if isinstance(weights, nn.Module):
            save_model(weights, str(path), metadata=metadata)
        else:
            save_file(weights, path, metadata=metadata)
        path.chmod(given)
        sync_to_disk(path)
    except OSError as error:
        raise write_error("file", path, error) from error
    except SafetensorError as error:  # its text holds the system's error number alone
        number = _OS_ERROR.search(str(error))
        if number is None:
            raise
        code = int(number[1])
        raise write_error("file", path, OSError(code, os.strerror(code))) from error


def _optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the optimizer's state as tensors by the name "parameter.entry"."""
    return {
        f"{index}.{entry}": torch.as_tensor(value).contiguous()
        for index, entries in optimizer.state_dict()["state"].items()
        for entry, value in entries.items()
        if value is not None
    }


def _fill_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Fill the optimizer's state from tensors by the name "parameter.entry"."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        index, entry = name.split(".", 1)
        state.setdefault(int(index), {})[entry] = tensor
    whole = optimizer.state_dict()
    whole["state"] = state
    optimizer.load_state_dict(whole)
