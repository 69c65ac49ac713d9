"""Signals of regression models, for the attacks on confidences.

A prediction's likelihood is taken as p = exp(-(y - f(x))^2 / (2 s^2)), that of a normal law with
deviation s relative to its mode. Its logit ln(p / (1 - p)) takes the place of the logit-scaled
confidence. The loss -ln(p) of the attacks is then the squared error in units of 2 s^2.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dpaudit.vocabulary.arrays import FloatArray
from dpaudit.vocabulary.errors import InvalidArgument, require_positive

MIN_SQUARE = 1e-12  # of the error in units of 2 s^2: keeps exact predictions finite
MAX_SQUARE = 1e12


def regression_confidence(
    predictions: NDArray[np.floating], targets: NDArray[np.floating], *, scale: float
) -> FloatArray:
    """Compute the logit-scaled confidence of regression models in the true values.

    Args:
        predictions: Shape ``(..., records)``, finite.
        targets: True value of each record, shape ``(records,)``, finite.
        scale: Deviation s, in units of the targets; above 0. The attacker takes it from the
            reference models, for example the root mean square of their errors.

    Returns:
        Shape ``(..., records)``; larger for smaller errors.

    Raises:
        InvalidArgument: If shapes do not fit, a value is not finite, or ``scale`` is not
            positive.

    Example:
        >>> regression_confidence(np.array([1.0, 2.0]), np.array([1.0, 1.0]), scale=1.0).round(4)
        array([27.631 ,  0.4328])
    """
    require_positive("scale", scale)
    if targets.ndim != 1 or predictions.shape[-1:] != targets.shape:
        given = f"shapes {predictions.shape} and {targets.shape}"
        raise InvalidArgument("predictions", given, "of shape (..., records), one per target")
    if not (np.isfinite(predictions).all() and np.isfinite(targets).all()):
        raise InvalidArgument("predictions", "NaN or infinity", "finite, as are the targets")
    errors = (predictions.astype(np.float64) - targets) / scale
    bound = np.sqrt(2 * MAX_SQUARE)  # before the square, which could overflow
    square = np.maximum(np.square(np.clip(errors, -bound, bound)) / 2, MIN_SQUARE)
    return np.asarray(-square - np.log(-np.expm1(-square)))


def root_mean_square_error(
    predictions: NDArray[np.floating], targets: NDArray[np.floating]
) -> float:
    """Return the root mean square error of predictions, the scale of their confidences.

    Args:
        predictions: Shape ``(..., records)``.
        targets: True values, shape ``(records,)``.

    Returns:
        The error in units of the targets; at least the least positive normal number.
    """
    errors = predictions.astype(np.float64) - targets
    return float(max(np.sqrt(np.square(errors).mean()), np.finfo(np.float64).tiny))
