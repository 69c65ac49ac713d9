"""ONNX models, run by onnxruntime in a process that has limits.

A small file can hold an endless loop, or ask for any amount of memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpaudit.attacks.membership.confidence import logits_of_batches
from dpaudit.attacks.membership.models.limited_process import AT_ONCE, LimitedProcess, Limits
from dpaudit.files.opening import InputFile
from dpaudit.vocabulary.errors import InvalidArgument, MissingExtra

MEMORY = 4
"""The bit of a limit that matters here: a model of ONNX opens no files."""


@dataclass(frozen=True)
class OnnxModel:
    """An inference session with one input, ``(records, ...)`` of floats."""

    process: LimitedProcess

    def predict(self, features: NDArray[np.float32]) -> NDArray[Any]:
        """Return logits, shape ``(records, classes)``, from the first output of that rank.

        Raises:
            InvalidArgument: The model takes no such records, exceeds a limit, or has no such
                output.
        """
        rows = self.process.rows
        if len(features) == 0 or (rows and len(features) % rows):
            given = f"{self.process.path}, of {rows} records at once"
            allowed = f"a model of any number of records, or of one that divides {len(features)}"
            raise InvalidArgument("checkpoint", given, allowed)
        at_once = rows * max(1, AT_ONCE // rows) if rows else AT_ONCE
        starts = range(0, len(features), at_once)
        return logits_of_batches([self.process.outputs(features[s : s + at_once]) for s in starts])


def load(source: InputFile, limits: Limits | None = None) -> OnnxModel:
    """Return the model in one file; weights in further files are not read.

    Raises:
        InvalidArgument: it cannot be read, or exceeds a limit.
        MissingExtra: onnxruntime is not installed.
    """
    try:
        import_module("onnxruntime")
    except ImportError as error:
        raise MissingExtra("onnxruntime", "onnx") from error
    libraries = ("onnxruntime", "numpy")
    return OnnxModel(LimitedProcess(source, "onnx", limits or Limits(), libraries, MEMORY))
