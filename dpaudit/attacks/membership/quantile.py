"""Quantile regression: how confident would the target be, had it not seen such a record?

No reference model: one regression on records that the target is known not to have seen.
Source: Bertran et al. 2023, arXiv:2307.03694, Algorithm 1.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dpaudit.attacks.membership.scores import Array, RecordScores
from dpaudit.vocabulary.errors import InvalidArgument, MissingExtra, require_open_unit

try:
    from sklearn.ensemble import HistGradientBoostingRegressor
except ImportError as error:  # pragma: no cover - needs an environment without scikit-learn
    raise MissingExtra("scikit-learn", "train") from error

FALSE_POSITIVE_RATE = 0.05


def quantile_regression(
    features: NDArray[np.float32],
    confidences: Array,
    *,
    outside_features: NDArray[np.float32],
    outside_confidences: Array,
    seed: int,
    fpr: float = FALSE_POSITIVE_RATE,
) -> RecordScores:
    """Score by how far a confidence lies above its quantile among records like it.

    Args:
        features: Shape ``(records, dimensions)``.
        confidences: The target's logit-scaled confidences on them, shape ``(records,)``.
        outside_features: Of records that the target did not train on; none of ``features``.
        outside_confidences: The target's on those.
        seed: Of the regression.
        fpr: The quantile is 1 - ``fpr``: a score of 0 has this false-positive rate.

    Raises:
        InvalidArgument: features and confidences of different lengths, or no records outside.
    """
    require_open_unit("fpr", fpr)
    _require_pairs(features, confidences)
    _require_pairs(outside_features, outside_confidences)
    model = HistGradientBoostingRegressor(loss="quantile", quantile=1 - fpr, random_state=seed)
    model.fit(outside_features, outside_confidences)
    return RecordScores(confidences - model.predict(features))


def _require_pairs(features: NDArray[np.float32], confidences: Array) -> None:
    if features.ndim != 2 or len(features) != len(confidences) or len(features) == 0:
        given = f"features of shape {features.shape}, confidences {confidences.shape}"
        raise InvalidArgument("features", given, "as many rows as confidences, one at least")
