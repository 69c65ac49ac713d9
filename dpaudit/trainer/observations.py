"""What steps showed of the gradient canaries, and which of them were in the batch."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Observation:
    """One step.

    Attributes:
        shown: The noisy sum along each canary's direction, over the clip norm, shape ``(m,)``.
        joined: Whether the canary was in the batch, shape ``(m,)``: a secret like its bit.
    """

    shown: NDArray[np.float32]
    joined: NDArray[np.bool_]


NOTHING_OBSERVED = Observation(np.zeros(0, np.float32), np.zeros(0, np.bool_))
"""Of a step without gradient canaries."""


def unseen(canaries: int) -> Observation:
    """Return what stands for a step whose noise was drawn and whose sum nobody saw."""
    return Observation(np.full(canaries, np.nan, np.float32), np.zeros(canaries, np.bool_))


def as_arrays(observations: Sequence[Observation]) -> dict[str, NDArray[np.generic]]:
    """Return what a file keeps of the steps: ``rows``, and ``joined`` in bits.

    A salt keeps the file's digest, which stands in the ledger, from confirming a guess.
    """
    shown = np.array([one.shown for one in observations], dtype=np.float32)
    joined = np.array([one.joined for one in observations], dtype=np.bool_)
    salt = np.frombuffer(os.urandom(32), dtype=np.uint8)
    return {"rows": shown, "joined": np.packbits(joined, axis=-1), "salt": salt}


def joined_of(arrays: Mapping[str, NDArray[np.generic]]) -> NDArray[np.bool_] | None:
    """Return which canaries each step held, shape ``(steps, m)``; None if it was not recorded."""
    if "joined" not in arrays:
        return None
    canaries = arrays["rows"].shape[-1]
    packed = np.asarray(arrays["joined"], dtype=np.uint8)
    return np.unpackbits(packed, axis=-1, count=canaries).astype(np.bool_)


def from_arrays(arrays: Mapping[str, NDArray[np.generic]]) -> list[Observation]:
    """Return the steps that a file keeps."""
    rows = np.asarray(arrays["rows"], dtype=np.float32)
    if len(rows) == 0:
        return []
    joined = joined_of(arrays)
    if joined is None:
        raise KeyError("joined")
    return [Observation(*step) for step in zip(rows, joined, strict=True)]
