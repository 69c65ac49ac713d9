"""Programs of torch, run in a process of their own that has limits."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dpaudit.attacks.membership.confidence import logits_of_batches
from dpaudit.attacks.membership.models.limited_process import AT_ONCE, LimitedProcess, Limits
from dpaudit.files.opening import InputFile


class Program:
    """A program of torch in a process of its own, which ends with this object.

    Args:
        source: The file.
        script: Whether it is TorchScript; else it is of torch.export.
        limits: What the process may use.

    Raises:
        InvalidArgument: It cannot be read, or exceeds a limit.
    """

    def __init__(self, source: InputFile, script: bool, limits: Limits) -> None:
        kind = "script" if script else "export"
        self._process = LimitedProcess(source, kind, limits, ("torch", "numpy"))

    def predict(self, features: NDArray[np.float32]) -> NDArray[Any]:
        """Return logits, shape ``(records, classes)``.

        Raises:
            InvalidArgument: The program raised an error, exceeded a limit, or has no output
                of that shape.
        """
        starts = range(0, len(features), AT_ONCE)
        return logits_of_batches([self._process.outputs(features[s : s + AT_ONCE]) for s in starts])

    def call(self, features: Tensor) -> Tensor:
        """Return outputs that torch can differentiate by the features."""
        outputs: Tensor = _Differentiable.apply(features, self._process)  # type: ignore[no-untyped-call]
        return outputs


class _Differentiable(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, features: Tensor, process: LimitedProcess) -> Tensor:
        context.process = process
        context.save_for_backward(features)
        return torch.from_numpy(process.outputs(features.detach().numpy())).float()

    @staticmethod
    def backward(context: Any, *outside: Tensor) -> tuple[Tensor, None]:
        (features,) = context.saved_tensors
        found = context.process.gradient(features.detach().numpy(), outside[0].numpy())
        return torch.from_numpy(found).float(), None


def load(source: InputFile, script: bool, limits: Limits | None = None) -> Program:
    """Return a program of torch, in a process of its own.

    Raises:
        InvalidArgument: It cannot be read, or exceeds a limit.
    """
    return Program(source, script, limits or Limits())
