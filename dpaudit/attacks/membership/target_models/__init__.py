"""Target models of several formats behind one protocol; one module per format."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray


class TargetModel(Protocol):
    """Interface of a target model: it predicts the classes of records."""

    def predict(self, features: NDArray[np.float32]) -> NDArray[Any]:
        """Compute the logits of records.

        A model that outputs probabilities returns their logarithms, which are logits.

        Args:
            features: Shape ``(records, ...)``.

        Returns:
            Shape ``(records, classes)``.
        """
        ...
