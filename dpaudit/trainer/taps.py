"""What steps showed of the gradient canaries, and which of them were in the batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Tap:
    """One step.

    Attributes:
        shown: The noisy sum along each canary's direction, over the clip norm, shape ``(m,)``.
        joined: Whether the canary was in the batch, shape ``(m,)``: a secret like its bit.
    """

    shown: NDArray[np.float32]
    joined: NDArray[np.bool_]


def as_arrays(taps: Sequence[Tap]) -> dict[str, NDArray[np.generic]]:
    """Return what a file keeps of the steps: ``rows``, and ``joined`` in bits."""
    return {
        "rows": np.array([tap.shown for tap in taps], dtype=np.float32),
        "joined": np.packbits(np.array([tap.joined for tap in taps], dtype=np.bool_), axis=-1),
    }


def joined_of(arrays: Mapping[str, NDArray[np.generic]]) -> NDArray[np.bool_] | None:
    """Return which canaries each step held, shape ``(steps, m)``; None if nobody wrote it down."""
    if "joined" not in arrays:
        return None
    canaries = arrays["rows"].shape[-1]
    packed = np.asarray(arrays["joined"], dtype=np.uint8)
    return np.unpackbits(packed, axis=-1, count=canaries).astype(np.bool_)


def from_arrays(arrays: Mapping[str, NDArray[np.generic]]) -> list[Tap]:
    """Return the steps that a file keeps."""
    rows = np.asarray(arrays["rows"], dtype=np.float32)
    if len(rows) == 0:
        return []
    joined = joined_of(arrays)
    if joined is None:
        raise KeyError("joined")
    return [Tap(*step) for step in zip(rows, joined, strict=True)]
