"""Canaries with their coins: what the trainer may see, and what the auditor keeps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from dpaudit.vocabulary.errors import InvalidArgument

Bits = NDArray[np.bool_]


class _Some(Protocol):
    def __len__(self) -> int: ...

    def __getitem__(self: T, index: Bits) -> T: ...


T = TypeVar("T", bound=_Some)


@dataclass(frozen=True)
class Tossed(Generic[T]):
    """Canaries, their names and their secret bits.

    Attributes:
        canaries: All of them.
        ids: One name a canary, in the order of ``canaries``; they say nothing of the bits.
        included: Shape ``(m,)``.
    """

    canaries: T
    ids: tuple[str, ...]
    included: Bits

    @property
    def trained(self) -> T:
        """Those that a trainer gets."""
        return self.canaries[self.included]

    @property
    def trained_ids(self) -> tuple[str, ...]:
        """Their names."""
        pairs = zip(self.ids, self.included, strict=True)
        return tuple(name for name, included in pairs if included)


def toss(canaries: T, rng: np.random.Generator) -> Tossed[T]:
    """Include each canary by a fair coin of its own.

    Args:
        canaries: At least one.
        rng: Tosses the coins; seed it from the operating system, or the bits are no secret.
    """
    if len(canaries) == 0:
        raise InvalidArgument("count", 0, "at least 1")
    width = len(str(len(canaries) - 1))
    ids = tuple(f"canary-{number:0{width}d}" for number in range(len(canaries)))
    return Tossed(canaries, ids, rng.random(len(canaries)) < 0.5)
