"""ONNX models, run by onnxruntime in a process with limits.

A small file can contain an endless loop or allocate any amount of memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpaudit.attacks.membership.output_signals import logits_from_batches
from dpaudit.attacks.membership.target_models.sandbox import (
    RECORDS_PER_CALL,
    ProcessLimits,
    SandboxedProcess,
)
from dpaudit.files.regular_files import InputFile
from dpaudit.vocabulary.errors import InvalidArgument, MissingExtra

MEMORY_LIMIT_BIT = 4
"""The only limit whose absence is reported: an ONNX model opens no files."""


@dataclass(frozen=True)
class OnnxModel:
    """An ONNX model with one input of floats, of shape ``(records, ...)``.

    Attributes:
        process: The process that runs it.
    """

    process: SandboxedProcess

    def predict(self, features: NDArray[np.float32]) -> NDArray[Any]:
        """Compute the logits of records from the first output with two dimensions.

        Args:
            features: Shape ``(records, ...)``, at least one record.

        Returns:
            Shape ``(records, classes)``.

        Raises:
            InvalidArgument: If the model does not accept the records, exceeds a limit, or has no
                output of that shape.
        """
        rows = self.process.rows
        if len(features) == 0 or (rows and len(features) % rows):
            given = f"{self.process.path}, for {rows} records at once"
            allowed = (
                f"a model for any number of records, or for a number that divides {len(features)}"
            )
            raise InvalidArgument("checkpoint", given, allowed)
        at_once = rows * max(1, RECORDS_PER_CALL // rows) if rows else RECORDS_PER_CALL
        starts = range(0, len(features), at_once)
        return logits_from_batches(
            [self.process.outputs(features[s : s + at_once]) for s in starts]
        )


def load(source: InputFile, limits: ProcessLimits | None = None) -> OnnxModel:
    """Open an ONNX model; weights in further files are not read.

    Args:
        source: The file.
        limits: Limits of the process; None for the defaults.

    Returns:
        The target model, with a process that ends with it.

    Raises:
        InvalidArgument: If the file cannot be read, or loading exceeds a limit.
        MissingExtra: If onnxruntime is not installed.
    """
    try:
        import_module("onnxruntime")
    except ImportError as error:
        raise MissingExtra("onnxruntime", "onnx") from error
    libraries = ("onnxruntime", "numpy")
    return OnnxModel(
        SandboxedProcess(source, "onnx", limits or ProcessLimits(), libraries, MEMORY_LIMIT_BIT)
    )
