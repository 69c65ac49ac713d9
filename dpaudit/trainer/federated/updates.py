"""Updates of participants: checked against the model, and clipped. NumPy alone.

An update is what a participant sends to the server: one array per parameter. A server cannot
trust it. So it is checked before it is used: names, shapes, types, and that every number is
finite.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpaudit.vocabulary.errors import InvalidUpdate, require_positive

Update = dict[str, NDArray[np.float32]]
"""One array per parameter, by the server's names and with the server's shapes."""

CLIP_MARGIN = 1 - 2.0**-40
"""Factor on the clip norm. It exceeds the error of a float64 norm with pairwise summation, which
is below 2^-45 for up to 2^40 coordinates."""

__all__ = ["Update", "check_update", "clip_update", "update_norm"]


def check_update(
    update: Mapping[str, Any], reference: Mapping[str, NDArray[Any]], *, participant: int
) -> Update:
    """Return a participant's update in the server's order; refuse one that does not fit.

    Args:
        update: One array per parameter, as received.
        reference: The model's parameters; their names and shapes count.
        participant: Number of the participant, for the error.

    Returns:
        Arrays of float32 by the names of ``reference``, in its order.

    Raises:
        InvalidUpdate: If a name is missing or unknown, or an array has another shape, is not of
            float32, or holds NaN or infinity.

    Example:
        >>> reference = {"w": np.zeros(2, np.float32)}
        >>> check_update({"w": np.ones(2, np.float32)}, reference, participant=3)
        {'w': array([1., 1.], dtype=float32)}
        >>> check_update({"w": np.ones(3, np.float32)}, reference, participant=3)
        Traceback (most recent call last):
        ...
        dpaudit.vocabulary.errors.InvalidUpdate: participant 3: w has shape (3,), not (2,)
    """
    if not isinstance(update, Mapping):
        raise InvalidUpdate(participant, f"it is of type {type(update).__name__}, not a mapping")
    missing = [name for name in reference if name not in update]
    if missing:
        raise InvalidUpdate(participant, f"it lacks {missing[0]} ({len(missing)} names in all)")
    unknown = [name for name in update if name not in reference]
    if unknown:
        raise InvalidUpdate(
            participant, f"it has {unknown[0]!r:.80}, which is no parameter ({len(unknown)} in all)"
        )
    return {
        name: _checked_array(name, update[name], own.shape, participant)
        for name, own in reference.items()
    }


def _checked_array(
    name: str, given: object, shape: tuple[int, ...], participant: int
) -> NDArray[np.float32]:
    """Return one array of an update; refuse any other shape or type, NaN and infinity."""
    if not isinstance(given, np.ndarray):
        raise InvalidUpdate(participant, f"{name} is of type {type(given).__name__}, not an array")
    if given.shape != shape:
        raise InvalidUpdate(participant, f"{name} has shape {given.shape}, not {shape}")
    if given.dtype != np.float32:
        raise InvalidUpdate(participant, f"{name} has type {given.dtype}, not float32")
    if not np.isfinite(given).all():
        raise InvalidUpdate(participant, f"{name} holds NaN or infinity")
    return given


def update_norm(update: Mapping[str, NDArray[np.float32]]) -> float:
    """Return the L2 norm of an update over all parameters together, in float64.

    Args:
        update: One array per parameter.

    Returns:
        The norm; its relative error is below 2^-45.

    Example:
        >>> update_norm({"a": np.array([3.0], np.float32), "b": np.array([4.0], np.float32)})
        5.0
    """
    # The square of a float32 neither overflows nor vanishes in float64, except below 2^-1022.
    squares = (np.square(part, dtype=np.float64).sum() for part in update.values())
    return math.sqrt(math.fsum(squares))


def clip_update(update: Update, clip_norm: float) -> tuple[Update, float]:
    """Scale an update to an L2 norm of at most ``clip_norm``, over all parameters together.

    The norm of the result never exceeds ``clip_norm``: scaled values are rounded towards zero.

    Args:
        update: One finite array per parameter.
        clip_norm: The bound S, above 0.

    Returns:
        The update times the factor, and the factor, in (0, 1]; 1 if it is within the bound.

    Raises:
        InvalidArgument: If the bound is not finite and above 0.

    References:
        McMahan et al. (2018), arXiv:1710.06963, Algorithm 1 (flat clipping).

    Example:
        >>> clipped, factor = clip_update({"w": np.array([6.0, 8.0], np.float32)}, 5.0)
        >>> round(factor, 6), update_norm(clipped) <= 5.0
        (0.5, True)
    """
    require_positive("clip_norm", clip_norm)
    norm, bound = update_norm(update), clip_norm * CLIP_MARGIN
    if norm <= bound:
        return update, 1.0
    factor = bound / norm
    return {name: _scaled_towards_zero(part, factor) for name, part in update.items()}, factor


def _scaled_towards_zero(part: NDArray[np.float32], factor: float) -> NDArray[np.float32]:
    """Return factor times an array, rounded towards zero."""
    exact = part.astype(np.float64) * factor
    rounded = exact.astype(np.float32)
    larger = np.abs(rounded.astype(np.float64)) > np.abs(exact)
    nearer: NDArray[np.float32] = np.nextafter(rounded, np.float32(0))
    return np.where(larger, nearer, rounded)
