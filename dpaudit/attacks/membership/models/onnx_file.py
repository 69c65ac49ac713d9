"""ONNX models, run by onnxruntime."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpaudit.attacks.membership.confidence import logits_of_outputs
from dpaudit.vocabulary.errors import InvalidArgument, MissingExtra

AT_ONCE = 2048


@dataclass(frozen=True)
class OnnxModel:
    """An inference session with one input, ``(records, ...)`` of floats."""

    session: Any

    def predict(self, features: NDArray[np.float32]) -> NDArray[Any]:
        """Return logits, shape ``(records, classes)``, from the first output of that rank."""
        name = self.session.get_inputs()[0].name
        starts = range(0, len(features), AT_ONCE)
        runs = [self.session.run(None, {name: features[s : s + AT_ONCE]}) for s in starts]
        for place, output in enumerate(runs[0]):
            if isinstance(output, np.ndarray) and output.ndim == 2 and output.dtype.kind == "f":
                return logits_of_outputs(np.concatenate([run[place] for run in runs]))
        names = [output.name for output in self.session.get_outputs()]
        raise InvalidArgument("checkpoint", names, "a model with an output (records, classes)")


def load(path: Path) -> OnnxModel:
    """Return the model in ``path``.

    Raises:
        InvalidArgument: it cannot be read.
        MissingExtra: onnxruntime is not installed.
    """
    try:
        runtime = import_module("onnxruntime")
    except ImportError as error:
        raise MissingExtra("onnxruntime", "onnx") from error
    try:
        session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has a dozen kinds of its own
        raise InvalidArgument("checkpoint", str(path), f"an ONNX model ({error})") from error
    return OnnxModel(session)
