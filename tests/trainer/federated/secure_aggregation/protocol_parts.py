"""Parties of secure aggregation, and statistics, that several tests share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray
from scipy.stats import chisquare

from dpaudit.trainer.federated.secure_aggregation.messages import SecureSumParameters
from dpaudit.trainer.federated.secure_aggregation.protocol import SecureAggregation
from dpaudit.trainer.noise.randomness import Keystream

SESSION = bytes(range(32))
LEAST_P_VALUE = 1e-6


def parameters(
    participants: int = 5, threshold: int = 3, bits: int = 32, dimension: int = 4
) -> SecureSumParameters:
    return SecureSumParameters(participants, threshold, bits, dimension, SESSION)


def aggregation(agreed: SecureSumParameters, seed: int = 0) -> SecureAggregation:
    streams = {
        number: Keystream.seeded(1000 * seed + number) for number in range(agreed.participants)
    }
    return SecureAggregation(agreed, streams)


def uniform_p_value(values: NDArray[np.unsignedinteger[Any]], bits: int) -> float:
    """Return the smaller chi-square p-value of the upper and of the lower 8 bits of words."""
    parts = (values >> (bits - 8), values & 255)
    return min(
        float(chisquare(np.bincount(part.astype(np.int64), minlength=256)).pvalue) for part in parts
    )


def everything_in(found: object, depth: int = 0) -> Iterable[object]:
    """Yield every value that an object holds, through attributes, fields and containers."""
    if depth > 12:
        raise AssertionError("too deep: the inspection would miss something")
    yield found
    inner: Iterable[object] = ()
    if isinstance(found, Mapping):
        inner = (*found.keys(), *found.values())
    elif isinstance(found, (list, tuple, set, frozenset)):
        inner = found
    elif isinstance(found, msgspec.Struct):
        inner = [getattr(found, name) for name in found.__struct_fields__]
    elif not isinstance(found, type) and hasattr(found, "__dict__"):
        inner = list(vars(found).values())
    for one in inner:
        yield from everything_in(one, depth + 1)


def holds_vector(found: object, vector: NDArray[np.int64]) -> bool:
    """Return whether an object holds a vector: as an array, as bytes of any word, or as floats."""
    kinds = ("<i8", "<i4", "<u4", "<u8", "<f8", "<f4", ">i8", ">i4")
    encodings = [vector.astype(kind).tobytes() for kind in kinds]
    for one in everything_in(found):
        if isinstance(one, (bytes, bytearray, memoryview)):
            if any(encoding in bytes(one) for encoding in encodings):
                return True
        elif isinstance(one, np.ndarray) and one.dtype != object:
            flat = one.astype(np.float64).ravel()
            if flat.size >= vector.size and any(
                np.array_equal(flat[start : start + vector.size], vector)
                for start in range(flat.size - vector.size + 1)
            ):
                return True
    return False
