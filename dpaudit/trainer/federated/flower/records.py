"""Arrays in Flower messages: read with every check, before anything is parsed or allocated.

Flower's own conversion trusts a reply: a header may declare any size. Here length, type and
shape are compared with the model first. No Flower is imported: arrays are read by their fields.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from dpaudit.files.archives import ArrayHeader, read_header
from dpaudit.trainer.federated.updates import Update, check_update
from dpaudit.vocabulary.errors import InvalidUpdate

NUMPY_FORMAT = "numpy.ndarray"
LARGEST_HEADER = 1024
"""Bytes that an array's header may have; NumPy writes 128 for any shape of a model."""

LARGEST_NAME = 80


class SerializedArray(Protocol):
    """The fields of Flower's ``Array``."""

    @property
    def dtype(self) -> str:
        """Type of the elements."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the array."""

    @property
    def stype(self) -> str:
        """How ``data`` is encoded."""

    @property
    def data(self) -> bytes:
        """The array in .npy format."""


def read_update(
    reply: Mapping[str, SerializedArray], weights: Update, *, participant: int
) -> Update:
    """Return the change of the model that a participant's reply holds.

    Args:
        reply: The arrays of the model after local training, as Flower clients send them.
        weights: The model that was sent to the participant.
        participant: Number of the participant, for the error.

    Returns:
        The differences, float32 by name.

    Raises:
        InvalidUpdate: If a name is missing or unknown, or an array has another shape or type, is
            oversized, broken, or holds NaN or infinity.

    Example:
        >>> from types import SimpleNamespace
        >>> buffer = io.BytesIO()
        >>> np.save(buffer, np.ones(2, np.float32))
        >>> sent = SimpleNamespace(
        ...     dtype="float32", shape=(2,), stype="numpy.ndarray", data=buffer.getvalue())
        >>> read_update({"w": sent}, {"w": np.zeros(2, np.float32)}, participant=0)
        {'w': array([1., 1.], dtype=float32)}
    """
    for name in reply:
        if name not in weights:
            raise InvalidUpdate(
                participant, f"it has {str(name)[:LARGEST_NAME]!r}, which is no parameter"
            )
    arrays = {
        name: _read_array(name, reply[name], own.shape, participant)
        for name, own in weights.items()
        if name in reply
    }
    trained = check_update(arrays, weights, participant=participant)
    with np.errstate(over="ignore"):  # an infinite difference is refused by the aggregation
        return {name: part - weights[name] for name, part in trained.items()}


def _read_array(
    name: str, sent: SerializedArray, shape: tuple[int, ...], participant: int
) -> NDArray[np.float32]:
    """Return one array; its length is bounded by the model's before it is parsed."""
    size = 4 * int(np.prod(shape, dtype=np.int64))
    if sent.stype != NUMPY_FORMAT:
        raise InvalidUpdate(participant, f"{name} is not in the format {NUMPY_FORMAT}")
    if len(sent.data) > size + LARGEST_HEADER:
        raise InvalidUpdate(
            participant, f"{name} is oversized: {len(sent.data)} bytes for {size} bytes of numbers"
        )
    file = io.BytesIO(sent.data)
    try:
        header = read_header(file)
    except Exception as error:  # NumPy raises errors of many kinds
        raise InvalidUpdate(participant, f"{name} has a broken header") from error
    if header != ArrayHeader(shape, np.dtype("<f4")):
        raise InvalidUpdate(
            participant,
            f"{name} has shape {header.shape} and type {header.dtype}, not {shape} and float32",
        )
    if len(sent.data) != file.tell() + size:
        raise InvalidUpdate(participant, f"{name} is cut: its header declares {size} bytes")
    file.seek(0)
    found: NDArray[np.float32] = np.load(file, allow_pickle=False)
    return found
