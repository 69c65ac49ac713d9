"""Write a run's figures where TensorBoard looks for them."""

from __future__ import annotations

from pathlib import Path

from dpaudit.vocabulary.errors import InvalidArgument, MissingExtra, RunExists
from dpaudit.workflow.exporting import Exported

try:
    from tensorboardX import SummaryWriter
except ImportError as error:  # pragma: no cover - needs an environment without tensorboardX
    raise MissingExtra("tensorboardX", "tensorboard") from error


def to_tensorboard(exported: Exported, folder: Path) -> Path:
    """Write an event file into a new folder of the run's name in ``folder``; return the new one.

    Raises:
        RunExists: there is one: TensorBoard would show both as one run.
        InvalidArgument: the folder cannot be written.
    """
    place = folder / exported.run
    if place.exists():
        raise RunExists(f"{place} exists: choose another --folder, or remove it")
    try:
        place.mkdir(parents=True)
        _write(exported, place)
    except OSError as error:
        raise InvalidArgument("folder", str(folder), f"writable ({error.strerror})") from error
    return place


def _write(exported: Exported, place: Path) -> None:
    with SummaryWriter(str(place)) as writer:
        for figure in exported.figures:
            writer.add_scalar(figure.name, figure.value, figure.step)
        for name, words in {
            "claim": exported.claim,
            **exported.tags,
            **exported.parameters,
        }.items():
            writer.add_text(name, words)
