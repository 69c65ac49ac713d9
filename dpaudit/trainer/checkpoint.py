"""Checkpoints: model, optimizer, observations and progress; never a key.

The files are written first, then the ledger records their digests, then the marker is set:
a complete checkpoint is always one that its ledger knows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import torch
from safetensors.torch import load_file, load_model, save_file, save_model
from torch import Tensor, nn

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
    folder.mkdir(parents=True)
    save_model(model, str(folder / "model.safetensors"))
    if average is not None:
        save_model(average, str(folder / "average.safetensors"))
    save_file(_optimizer_tensors(optimizer), folder / "optimizer.safetensors")
    write_secret_arrays(folder / "observations.npz", **as_arrays(observations))
    write_json(folder / PROGRESS, progress)
    for file in folder.glob("*.safetensors"):
        sync(file)
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
        allowed = f"a folder that can be made ({error.strerror})"
        raise InvalidArgument("folder", str(checkpoints), allowed) from error
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
        if isinstance(weights, nn.Module):
            save_model(weights, str(partial), metadata=metadata)
        else:
            save_file(weights, partial, metadata=metadata)
        sync(partial)
        partial.replace(path)
        sync(path.parent)
    finally:
        partial.unlink(missing_ok=True)


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
