"""Equality of what modules keep: tensors, arrays, numbers and containers of them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor


def same(one: object, other: object) -> bool:
    """Return whether two values are equal, NaN to itself; what cannot be compared is not."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return _same_tensors(one, other)
    if type(one) is not type(other):
        return False
    match one, other:
        case np.ndarray(), np.ndarray():
            return bool(_same_arrays(one, other))
        case Mapping(), Mapping():
            return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
        case ((list() | tuple()), (list() | tuple())):
            pairs = zip(one, other, strict=False)
            return len(one) == len(other) and all(same(a, b) for a, b in pairs)
        case float(), float():
            return one == other or (one != one and other != other)  # noqa: PLR0124
        case _:
            return _same_objects(one, other)


def _same_tensors(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape or one.dtype != other.dtype or one.device != other.device:
        return False
    if torch.equal(one, other):
        return True
    if not (one.is_floating_point() or one.is_complex()):
        return False
    return bool(((one == other) | (torch.isnan(one) & torch.isnan(other))).all())


def _same_arrays(one: np.ndarray, other: np.ndarray) -> bool:
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    if one.dtype == object:
        return all(map(same, one.ravel().tolist(), other.ravel().tolist()))
    return np.array_equal(one, other, equal_nan=one.dtype.kind in "fc")


def _same_objects(one: object, other: object) -> bool:
    try:
        return bool(one == other)
    except Exception:  # any class may define equality as it likes
        return False
