"""Checkpoints: model, optimizer, observations and step; never a key.

A folder counts once its marker is there, which is written last.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec
import torch
from safetensors.torch import load_file, load_model, save_file, save_model
from torch import Tensor, nn

from dpaudit.runs.files import (
    read_arrays,
    read_json,
    sync,
    write_bytes,
    write_json,
    write_secret_arrays,
)
from dpaudit.trainer.taps import Tap, as_arrays, from_arrays
from dpaudit.vocabulary import SCHEMA_VERSION
from dpaudit.vocabulary.errors import IntegrityError

MARKER = "COMPLETE"
KEPT = 2


class Progress(msgspec.Struct, frozen=True):
    """How far the run had come, its public normaliser, and how many releases were booked.

    ``clip_norm`` is where one that is learned had come; ``run`` is what the ledger's header
    calls the run, where the ledger is not in the same folder.
    """

    steps_done: int
    releases: int
    expected_batch_size: float
    clip_norm: float | None = None
    run: str = ""
    schema_version: str = SCHEMA_VERSION


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
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    save_model(model, str(folder / "model.safetensors"))
    if average is not None:
        save_model(average, str(folder / "average.safetensors"))
    save_file(_optimizer_tensors(optimizer), folder / "optimizer.safetensors")
    write_secret_arrays(folder / "observations.npz", **as_arrays(taps))
    write_json(folder / "progress.json", progress)
    for file in folder.glob("*.safetensors"):
        sync(file)
    write_bytes(folder / MARKER, b"")
    for old in _complete(checkpoints)[:-KEPT]:
        shutil.rmtree(old)


def read_newest_progress(checkpoints: Path) -> Progress | None:
    """Return how far the newest complete checkpoint had come, if there is one."""
    folders = _complete(checkpoints)
    return read_json(folders[-1] / "progress.json", Progress) if folders else None


def read_newest_taps(checkpoints: Path) -> list[Tap]:
    """Return what the steps up to the newest complete checkpoint showed; none without one."""
    folders = _complete(checkpoints)
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
    folders = _complete(checkpoints)
    if not folders:
        return None
    newest = folders[-1]
    progress = read_json(newest / "progress.json", Progress)
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


def _complete(checkpoints: Path) -> list[Path]:
    """Return the complete checkpoints, oldest first."""
    if not checkpoints.is_dir():
        return []
    folders = [folder for folder in checkpoints.iterdir() if (folder / MARKER).exists()]
    return sorted(folders, key=lambda folder: int(folder.name.removeprefix("step-")))


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
