"""Checkpoints: model, optimizer, observations and progress; never a key.

The files are written first, then the ledger records their digests, then the marker is set:
a complete checkpoint is always one that its ledger knows.
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

from dpaudit.files.opening import DATA, InputFile, opened
from dpaudit.files.writing import create_empty, write_error
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
from dpaudit.runs.files import (
    PRIVATE,
    PUBLIC,
    read_arrays,
    sync,
    write_bytes,
    write_json,
    write_secret_arrays,
)
from dpaudit.trainer.observations import Observation, as_arrays, from_arrays
from dpaudit.vocabulary.errors import IntegrityError, InvalidArgument
from dpaudit.vocabulary.ledger import Checkpointed, PrivacyLedger

KEPT = 2
_OS_ERROR = re.compile(r"os error (\d+)")


@dataclass(frozen=True)
class Kept:
    """A complete checkpoint that the run's ledger knows."""

    folder: Path
    progress: Progress


def write_checkpoint(
    checkpoints: Path,
    record: Callable[[Checkpointed], None],
    progress: Progress,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    observations: list[Observation],
    average: nn.Module | None = None,
) -> None:
    """Write a checkpoint into the folder ``checkpoints``; remove all but the newest few there.

    Args:
        checkpoints: Where the run keeps its checkpoints.
        record: Writes the files' digests into the run's ledger.
        progress: How far the run had come.
        model: Its parameters and buffers are kept.
        optimizer: Its state is kept.
        observations: What the steps showed of canaries.
        average: Of the model over the steps, where there is one.
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
    write_secret_arrays(folder / "observations.npz", **as_arrays(observations))
    write_json(folder / PROGRESS, progress, PRIVATE)
    record(Checkpointed(progress.steps_done, digests_of(folder)))
    write_bytes(folder / MARKER, b"")
    for old in complete_checkpoints(checkpoints)[:-KEPT]:
        remove_checkpoint(old)


def newest_checkpoint(checkpoints: Path, ledger: PrivacyLedger) -> Kept | None:
    """Return the newest checkpoint that can be used, every digest compared.

    A folder without its marker counts if its files are those that the ledger recorded: the
    process died between the two. None is returned only if the ledger records no checkpoint:
    the run died before its first.

    Args:
        checkpoints: Where the run keeps its checkpoints.
        ledger: The run's own.

    Raises:
        IntegrityError: The newest complete one is broken, was altered or is not the ledger's;
            or the ledger records checkpoints and none is there.
    """
    for folder in reversed(checkpoint_folders(checkpoints)):
        if is_complete(folder):
            require_own_checkpoint(folder, ledger)
        elif not _is_as_recorded(folder, ledger):
            continue
        progress = read_progress(folder)
        if progress.run != ledger.header.run:
            raise IntegrityError(
                f"{folder} names no run, or another than its ledger: nothing shows that its "
                "weights were made by the recorded steps; train anew"
            )
        return Kept(folder, progress)
    if any(isinstance(line, Checkpointed) for line in ledger.lines):
        raise IntegrityError(
            f"{checkpoints} has no complete checkpoint to resume from, though the ledger "
            "records one: name the folder that it is in, or restore it"
        )
    return None


def _is_as_recorded(folder: Path, ledger: PrivacyLedger) -> bool:
    recorded = recorded_digests(folder, ledger)
    return bool(recorded) and digests_of(folder) in recorded


def _require_own_folder(checkpoints: Path, progress: Progress) -> None:
    """Refuse a folder with checkpoints of another run: each would remove the other's.

    Raises:
        InvalidArgument: There are some, or the folder cannot be made.
    """
    try:
        checkpoints.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_error("folder", checkpoints, error) from error
    for folder in complete_checkpoints(checkpoints):
        if read_progress(folder).run not in ("", progress.run):
            raise InvalidArgument(
                "folder", str(checkpoints), f"one of this run alone: {folder.name} is another's"
            )


def read_newest_observations(checkpoints: Path) -> list[Observation]:
    """Return what the steps up to the newest complete checkpoint showed; none without one."""
    folders = complete_checkpoints(checkpoints)
    return from_arrays(read_arrays(folders[-1] / "observations.npz")) if folders else []


def read_checkpoint(
    kept: Kept,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: nn.Module | None = None,
) -> list[Observation]:
    """Fill model, optimizer and average from a checkpoint; return what its steps showed.

    Raises:
        IntegrityError: The checkpoint is broken, or of another model.
    """
    folder = kept.folder
    for name in ("optimizer", "model", *([] if average is None else ["average"])):
        with opened(InputFile(folder / f"{name}.safetensors", limit=DATA)):
            pass  # a regular file: safetensors opens it by its name
    try:
        # All is read before anything is filled: a broken file changes nothing.
        state = load_file(folder / "optimizer.safetensors")
        observations = from_arrays(read_arrays(folder / "observations.npz"))
        load_model(model, folder / "model.safetensors")
        if average is not None:
            load_model(average, folder / "average.safetensors")
        _fill_optimizer(optimizer, state)
        return observations
    except IntegrityError:
        raise
    except Exception as error:  # safetensors and torch raise their own kinds
        raise IntegrityError(f"{folder} is broken, or of another model: {error}") from error


def write_weights(
    path: Path, weights: nn.Module | dict[str, Tensor], metadata: dict[str, str]
) -> None:
    """Write weights to ``path``: after a crash the whole file is there, or nothing new.

    Args:
        path: The file.
        weights: A model, whose tied tensors are written once; or tensors by name.
        metadata: Into the file's header.
    """
    partial = path.with_name(f"{path.name}.{uuid4().hex}.partial")
    try:
        save_weights(partial, weights, metadata, mode=PUBLIC)  # it ships
        partial.replace(path)
        sync(path.parent)
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
    """Write weights to a new file; they are on the disk then.

    Raises:
        InvalidArgument: It cannot be written there.
        InputOutputError: The disk is full or fails.
    """
    try:
        given = create_empty(path, mode)
        if isinstance(weights, nn.Module):
            save_model(weights, str(path), metadata=metadata)
        else:
            save_file(weights, path, metadata=metadata)
        path.chmod(given)
        sync(path)
    except OSError as error:
        raise write_error("file", path, error) from error
    except SafetensorError as error:  # it names the system's error by its number alone
        number = _OS_ERROR.search(str(error))
        if number is None:
            raise
        code = int(number[1])
        raise write_error("file", path, OSError(code, os.strerror(code))) from error


def _optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the optimizer's state as "parameter.entry" to tensor."""
    return {
        f"{index}.{entry}": torch.as_tensor(value).contiguous()
        for index, entries in optimizer.state_dict()["state"].items()
        for entry, value in entries.items()
        if value is not None
    }


def _fill_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        index, entry = name.split(".", 1)
        state.setdefault(int(index), {})[entry] = tensor
    whole = optimizer.state_dict()
    whole["state"] = state
    optimizer.load_state_dict(whole)
