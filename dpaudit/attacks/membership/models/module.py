"""A torch module, or anything that is called like one, as a model to attack."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dpaudit.attacks.membership.confidence import logits_of_batches
from dpaudit.files.user_code import called
from dpaudit.vocabulary.errors import InvalidArgument

AT_ONCE = 2048


@dataclass(frozen=True)
class Module:
    """A callable from features to outputs; it must be in evaluation mode already.

    Attributes:
        call: From features, shape ``(records, ...)``, to outputs. Of several outputs, the
            first of shape ``(records, classes)`` counts.
        name: What errors call it.
    """

    call: Callable[[Tensor], Any]
    name: str = "the model"

    def predict(self, features: NDArray[np.float32]) -> NDArray[Any]:
        """Return logits, shape ``(records, classes)``.

        Raises:
            InvalidArgument: No output has that shape.
            UserCodeError: The model raised an error.
        """
        with torch.no_grad():
            parts = torch.split(torch.from_numpy(np.ascontiguousarray(features)), AT_ONCE)
            return logits_of_batches([self._outputs(part) for part in parts])

    def _outputs(self, part: Tensor) -> NDArray[Any]:
        name = f"{self.name}, of records of shape {tuple(part.shape[1:])},"
        outputs: NDArray[Any] = called(name, self._read, part)
        return outputs

    def _read(self, part: Tensor) -> NDArray[Any]:
        """Call the model and copy its output; a sparse one, or one of no device, has no copy."""
        found = self.call(part)
        for output in tensors_of(found):
            numbers = output.dtype != torch.bool and not output.is_complex()
            if output.ndim == 2 and len(output) == len(part) and numbers:
                wide = output if output.dtype == torch.float64 else output.float()
                return np.asarray(wide.detach().cpu())
        shapes = [(*output.shape, output.dtype) for output in tensors_of(found)]
        allowed = (
            f"a model with an output of numbers, of shape (records, classes), here ({len(part)}, "
            "...)"
        )
        raise InvalidArgument("checkpoint", f"outputs {shapes or type(found).__name__}", allowed)


def tensors_of(outputs: Any) -> Iterator[Tensor]:
    """Return the tensors among a model's outputs: itself, or those of a tuple, list or dict."""
    if isinstance(outputs, Tensor):
        yield outputs
    elif isinstance(outputs, dict):
        yield from (value for value in outputs.values() if isinstance(value, Tensor))
    elif isinstance(outputs, tuple | list):
        yield from (value for value in outputs if isinstance(value, Tensor))
