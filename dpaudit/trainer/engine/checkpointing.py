"""Activation checkpointing with use_reentrant=True, run as use_reentrant=False.

The reentrant variant calls ``backward`` inside of a backward pass, and refuses
``torch.autograd.grad``. The other one frees and recomputes the same activations, and gives the
same gradients. So a model need not be changed for per-record gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.utils.checkpoint as torch_checkpoint
from torch import Tensor


class _WithoutReentry:
    """Stands in for torch's ``CheckpointFunction``."""

    @staticmethod
    def apply(function: Callable[..., Any], preserve: bool, *args: Any) -> Any:
        """Run a function so that its activations are recomputed in the backward pass.

        As in the reentrant variant, no gradient passes unless an argument requires one.

        Args:
            function: The function to run.
            preserve: Whether the recomputation draws the same random numbers.
            *args: Its arguments.

        Returns:
            What the function returns.
        """
        if any(isinstance(each, Tensor) and each.requires_grad for each in args):
            return torch_checkpoint.checkpoint(
                function, *args, use_reentrant=False, preserve_rng_state=preserve
            )
        torch_checkpoint.check_backward_validity(args)  # warns
        with torch.no_grad():
            return function(*args)


@contextmanager
def checkpointing_without_reentry() -> Iterator[None]:
    """Run checkpointed functions without reentry while the block runs.

    Yields:
        Nothing; torch is as before after the block.
    """
    reentrant = torch_checkpoint.CheckpointFunction
    torch_checkpoint.CheckpointFunction = _WithoutReentry  # type: ignore[misc, assignment]
    try:
        yield
    finally:
        torch_checkpoint.CheckpointFunction = reentrant  # type: ignore[misc]
