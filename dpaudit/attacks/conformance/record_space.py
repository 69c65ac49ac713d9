"""How records can be varied: real features along directions, token ids by other tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpaudit.attacks.conformance.trainers import Array, Record

MOST_LABELS = 6
MOST_TOKENS = 64


def is_real(value: Any) -> bool:
    """Return whether a value is real numbers that scaling keeps what they are."""
    if isinstance(value, list | tuple):  # times a number, they are repeated or refuse
        return False
    return np.asarray(value).dtype.kind == "f"


def labels_of(records: Sequence[Record]) -> list[Any]:
    """Return the different labels of some records; that of the last one comes last."""
    found: list[Any] = []
    for _, label in reversed(records):
        if not any(np.array_equal(np.asarray(label), np.asarray(one)) for one in found):
            found.append(label)
        if len(found) == MOST_LABELS:
            break
    return found[::-1]


@dataclass(frozen=True)
class Features:
    """Real features: points of a vector space, in the container that the trainer takes.

    Attributes:
        like: The features of a record.
    """

    like: Any

    @property
    def size(self) -> int:
        """How many numbers they are."""
        return int(np.asarray(self.like).size)

    @property
    def flat(self) -> Array:
        """The features of that record, shape ``(size,)``."""
        return np.asarray(self.like, dtype=np.float64).ravel()

    @property
    def length(self) -> float:
        """A usual norm: that of the record, or of as many numbers of size 1."""
        own = float(np.linalg.norm(self.flat))
        return own if 0 < own < np.inf else float(np.sqrt(self.size))

    def of(self, flat: Array) -> Any:
        """Return a point as features, of the type, shape and precision of the record's."""
        shaped = flat.reshape(np.shape(self.like))
        if hasattr(self.like, "new_tensor"):
            return self.like.new_tensor(shaped)
        dtype = np.asarray(self.like).dtype
        with np.errstate(over="ignore"):
            cast = shaped.astype(dtype)
        return cast if cast.ndim else dtype.type(cast)

    def direction(self, rng: np.random.Generator) -> Array:
        """Return a random point of the usual norm."""
        drawn = rng.standard_normal(self.size)
        return np.asarray(drawn * (self.length / float(np.linalg.norm(drawn))))


@dataclass(frozen=True)
class Tokens:
    """Whole numbers: ids that have no order; those that the given records have are taken."""

    like: Any
    known: NDArray[np.int64]

    @classmethod
    def of_records(cls, records: Sequence[Record]) -> Tokens | None:
        """Return the tokens of records; None: their features are no whole numbers."""
        like = records[-1][0]
        if isinstance(like, list | tuple | str) or np.asarray(like).dtype.kind not in "iu":
            return None
        everything = np.concatenate([np.asarray(x, dtype=np.int64).ravel() for x, _ in records])
        return cls(like, np.unique(everything))

    def of(self, flat: NDArray[np.int64]) -> Any:
        """Return ids as features, of the type and shape of the record's."""
        shaped = flat.reshape(np.shape(self.like))
        if hasattr(self.like, "new_tensor"):
            return self.like.new_tensor(shaped)
        return shaped.astype(np.asarray(self.like).dtype)

    @property
    def flat(self) -> NDArray[np.int64]:
        """The ids of that record."""
        return np.asarray(self.like, dtype=np.int64).ravel()

    def repeated(self) -> Iterator[Any]:
        """Yield features that are one token again and again."""
        for token in self.known[:MOST_TOKENS]:
            yield self.of(np.full(self.flat.size, token))

    def changed(self, flat: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
        """Return ids of which about a quarter are others."""
        chosen = rng.random(flat.size) < 0.25
        chosen[rng.integers(flat.size)] = True
        return np.where(chosen, rng.choice(self.known, flat.size), flat)
