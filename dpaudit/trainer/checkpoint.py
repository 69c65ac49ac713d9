"""Checkpoints: model, optimizer, observations and step; never a key.

A folder counts once its marker is there, which is written last.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, load_model, save_file, save_model
from torch import Tensor, nn

from dpaudit.runs.checkpoints import (
    MARKER,
    PROGRESS,
    Progress,
    complete_checkpoints,
    read_newest_progress,
    read_progress,
    remove_checkpoint,
)
from dpaudit.runs.files import (
    read_arrays,
    sync,
    write_bytes,
    write_json,
    write_secret_arrays,
)
from dpaudit.trainer.taps import Tap, as_arrays, from_arrays
from dpaudit.vocabulary.errors import IntegrityError

__all__ = [
    "MARKER",
    "Progress",
    "read_newest_checkpoint",
    "read_newest_progress",
    "read_newest_taps",
    "write_checkpoint",
]

KEPT = 2


def write_checkpoint(
    checkpoints: Path,
    progress: Progress,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    taps: list[Tap],
    average: nn.Module | None = None,
) -> None:
    """Write a checkpoint into the folder ``checkpoints``; remove all but the newest few there.

    ``average`` is that of the model over the steps, where there is one.
    """
    folder = checkpoints / f"step-{progress.steps_done}"
    remove_checkpoint(folder)
    folder.mkdir(parents=True)
    save_model(model, str(folder / "model.safetensors"))
    if average is not None:
        save_model(average, str(folder / "average.safetensors"))
    save_file(_optimizer_tensors(optimizer), folder / "optimizer.safetensors")
    write_secret_arrays(folder / "observations.npz", **as_arrays(taps))
    write_json(folder / PROGRESS, progress)
    for file in folder.glob("*.safetensors"):
        sync(file)
    write_bytes(folder / MARKER, b"")
    for old in complete_checkpoints(checkpoints)[:-KEPT]:
        remove_checkpoint(old)


def read_newest_taps(checkpoints: Path) -> list[Tap]:
    """Return what the steps up to the newest complete checkpoint showed; none without one."""
    folders = complete_checkpoints(checkpoints)
    return from_arrays(read_arrays(folders[-1] / "observations.npz")) if folders else []


def read_newest_checkpoint(
    checkpoints: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: nn.Module | None = None,
) -> tuple[Progress, list[Tap]] | None:
    """Fill model, optimizer and average from the newest complete checkpoint, if there is one.

    Raises:
        IntegrityError: the checkpoint is broken, or of another model.
    """
    folders = complete_checkpoints(checkpoints)
    if not folders:
        return None
    newest = folders[-1]
    progress = read_progress(newest)
    try:
        # All is read before anything is filled: a broken file changes nothing.
        state = load_file(newest / "optimizer.safetensors")
        taps = from_arrays(read_arrays(newest / "observations.npz"))
        load_model(model, newest / "model.safetensors")
        if average is not None:
            load_model(average, newest / "average.safetensors")
        _fill_optimizer(optimizer, state)
        return progress, taps
    except IntegrityError:
        raise
    except Exception as error:  # safetensors and torch raise their own kinds
        raise IntegrityError(f"{newest} is broken, or of another model: {error}") from error


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
