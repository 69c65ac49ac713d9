"""Models to attack, whatever made them: one file a kind, behind one small protocol."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray


class Model(Protocol):
    """Anything that can be asked about records."""

    def predict(self, features: NDArray[np.float32]) -> NDArray[Any]:
        """Return logits, shape ``(records, classes)``.

        Log-probabilities are logits; a kind that has probabilities returns their logarithms.
        """
        ...
