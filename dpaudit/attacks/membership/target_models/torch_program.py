"""Programs of TorchScript and torch.export, run in a process with limits."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dpaudit.attacks.membership.output_signals import logits_from_batches
from dpaudit.attacks.membership.target_models.sandbox import (
    RECORDS_PER_CALL,
    ProcessLimits,
    SandboxedProcess,
)
from dpaudit.files.regular_files import InputFile


class TorchProgram:
    """A program of torch in its own process, which ends with this object.

    Args:
        source: The file.
        script: True for TorchScript, False for torch.export.
        limits: Limits of the process.

    Raises:
        InvalidArgument: If the file cannot be read, or loading exceeds a limit.
    """

    def __init__(self, source: InputFile, script: bool, limits: ProcessLimits) -> None:
        kind = "script" if script else "export"
        self._process = SandboxedProcess(source, kind, limits, ("torch", "numpy"))

    def predict(self, features: NDArray[np.float32]) -> NDArray[Any]:
        """Compute the logits of records.

        Args:
            features: Shape ``(records, ...)``.

        Returns:
            Shape ``(records, classes)``.

        Raises:
            InvalidArgument: If the program raises an error, exceeds a limit, or has no output of
                that shape.
        """
        starts = range(0, len(features), RECORDS_PER_CALL)
        return logits_from_batches(
            [self._process.outputs(features[s : s + RECORDS_PER_CALL]) for s in starts]
        )

    def call(self, features: Tensor) -> Tensor:
        """Compute outputs that torch can differentiate with respect to the features.

        Args:
            features: Shape ``(records, ...)``, on the CPU.

        Returns:
            Shape ``(records, classes)``, float32.

        Raises:
            InvalidArgument: If the program raises an error or exceeds a limit.
        """
        outputs: Tensor = _Differentiable.apply(features, self._process)  # type: ignore[no-untyped-call]
        return outputs


class _Differentiable(torch.autograd.Function):
    """The program as a function of torch; the process computes the vector-Jacobian product."""

    @staticmethod
    def forward(context: Any, features: Tensor, process: SandboxedProcess) -> Tensor:
        """Compute the outputs in the process."""
        context.process = process
        context.save_for_backward(features)
        return torch.from_numpy(process.outputs(features.detach().numpy())).float()

    @staticmethod
    def backward(context: Any, *weights: Tensor) -> tuple[Tensor, None]:
        """Compute the gradient of the outputs weighted by the incoming gradient."""
        (features,) = context.saved_tensors
        found = context.process.gradient(features.detach().numpy(), weights[0].numpy())
        return torch.from_numpy(found).float(), None


def load(source: InputFile, script: bool, limits: ProcessLimits | None = None) -> TorchProgram:
    """Open a program of torch in its own process.

    Args:
        source: The file.
        script: True for TorchScript, False for torch.export.
        limits: Limits of the process; None for the defaults.

    Returns:
        The target model.

    Raises:
        InvalidArgument: If the file cannot be read, or loading exceeds a limit.
    """
    return TorchProgram(source, script, limits or ProcessLimits())
