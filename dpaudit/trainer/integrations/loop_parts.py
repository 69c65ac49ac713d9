"""Parts that adapters share: a loader of private batches, and the optimizer as a loop sees it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from dpaudit.trainer.engine.batch_structure import Batch
from dpaudit.trainer.private import Private
from dpaudit.vocabulary.errors import InvalidArgument


class PrivateLoader:
    """Yields private batches to the loop of a library, one pass per iteration.

    A pass that a checkpoint interrupted is completed first.

    Args:
        trainer: Returns the private trainer, which may be made after the loader; it has its data.
        stop: Called if the privacy budget ends the pass early.
    """

    def __init__(self, trainer: Callable[[], Private | None], stop: Callable[[], None]) -> None:
        self._trainer, self._stop = trainer, stop

    def __len__(self) -> int:
        return self._made().step_settings.sampler.steps_in_a_pass

    def __iter__(self) -> Iterator[Batch]:
        private = self._made()
        steps = len(self) - private.steps % len(self)
        end = private.steps + steps
        yield from private.batches(steps=steps)
        if private.steps < end:
            self._stop()

    def _made(self) -> Private:
        """Return the private trainer, which the library's trainer makes when it begins."""
        private = self._trainer()
        if private is None:
            raise InvalidArgument("batches", "used before training", "given to the trainer's fit")
        return private


class SteppedOptimizer(Optimizer):
    """An optimizer that private steps use, as a library's loop sees it.

    Learning rates can be scheduled on it. Its own step only runs the closure.

    Args:
        optimizer: The optimizer given to ``make_private``.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        """The parameter groups of the optimizer."""
        return self.optimizer.param_groups

    @property
    def state(self) -> Any:  # type: ignore[override]
        """The state of the optimizer."""
        return self.optimizer.state

    @property
    def defaults(self) -> dict[str, Any]:  # type: ignore[override]
        """The default settings of the optimizer."""
        return self.optimizer.defaults

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Run the closure, which may take a private step.

        Args:
            closure: A function without arguments; None: nothing happens.

        Returns:
            What the closure returns.
        """
        return None if closure is None else closure()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Do nothing: private steps replace gradients.

        Args:
            set_to_none: As for any optimizer.
        """

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the optimizer."""
        return self.optimizer.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Set the settings of the groups, as learning rates.

        The private trainer's checkpoint has restored the state of the parameters.

        Args:
            state_dict: What ``state_dict`` returned.
        """
        for group, saved in zip(self.param_groups, state_dict["param_groups"], strict=True):
            group.update({name: value for name, value in saved.items() if name != "params"})


FOLDER = "private"
"""Folder of the private trainer's checkpoint, inside a checkpoint of a library."""


def private_checkpoint(folder: Path | str | None) -> Path | None:
    """Return the folder of a private checkpoint; refuse a library's checkpoint without one.

    Args:
        folder: A checkpoint of the library; None: nothing is resumed.

    Returns:
        The folder; None if nothing is resumed.

    Raises:
        InvalidArgument: If it has no private checkpoint: nothing shows how its weights were made.
    """
    if folder is None:
        return None
    if not Path(folder, FOLDER).is_dir():
        allowed = f"a checkpoint of a private run, with a folder {FOLDER!r}"
        raise InvalidArgument("checkpoint", str(folder), allowed)
    return Path(folder, FOLDER)


def planned_length(
    epochs: float | None, steps: int | None, privacy: Mapping[str, Any]
) -> dict[str, float]:
    """Return the planned length of training as an argument of ``make_private``.

    Args:
        epochs: Number of passes of a library's trainer; not positive: no limit.
        steps: Number of steps of that trainer, which takes precedence; not positive: no limit.
        privacy: What the user gave to ``make_private``.

    Returns:
        ``steps`` or ``epochs``; empty if the user gave one, or there is no limit.
    """
    if {"epochs", "steps"} & privacy.keys():
        return {}
    if steps is not None and steps > 0:
        return {"steps": steps}
    return {"epochs": epochs} if epochs is not None and epochs > 0 else {}


def rounded_up(bound: float) -> Tensor:
    """Return an upper bound as float32, not below it.

    Args:
        bound: The upper bound.

    Returns:
        A tensor without dimensions, at most one float32 above the bound.
    """
    kept = torch.tensor(bound, dtype=torch.float32)
    return kept if float(kept) >= bound else torch.nextafter(kept, torch.tensor(torch.inf))
