"""A torch module, or anything that is called like one, as a model to attack."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dpaudit.attacks.membership.confidence import logits_of_outputs

AT_ONCE = 2048


@dataclass(frozen=True)
class Module:
    """A callable from features to outputs; it must be in evaluation mode already."""

    call: Callable[[Tensor], Tensor]

    def predict(self, features: NDArray[np.float32]) -> NDArray[Any]:
        """Return logits, shape ``(records, classes)``."""
        with torch.no_grad():
            parts = torch.split(torch.from_numpy(np.ascontiguousarray(features)), AT_ONCE)
            outputs = np.concatenate([self.call(part).numpy() for part in parts])
        return logits_of_outputs(outputs)
