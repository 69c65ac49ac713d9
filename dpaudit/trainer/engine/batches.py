"""Batches: tensors with records first, in a tuple, list, dict or dataclass, however nested."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor

from dpaudit.vocabulary.errors import InvalidArgument

Batch = Any
"""A tensor, or a tuple, list, mapping or dataclass of batches; anything else is passed on."""


def mapped(batch: Batch, change: Callable[[Tensor], Tensor]) -> Batch:
    """Return the batch with every tensor changed."""
    match batch:
        case Tensor():
            return change(batch)
        case tuple() if hasattr(batch, "_fields"):
            return type(batch)(*(mapped(part, change) for part in batch))
        case tuple() | list():
            return type(batch)(mapped(part, change) for part in batch)
        case Mapping():
            return {name: mapped(part, change) for name, part in batch.items()}
        case _ if dataclasses.is_dataclass(batch) and not isinstance(batch, type):
            names = [field.name for field in dataclasses.fields(batch)]
            changed = {name: mapped(getattr(batch, name), change) for name in names}
            return dataclasses.replace(batch, **changed)
        case _:
            return batch


def tensors(batch: Batch) -> list[Tensor]:
    """Return all tensors of a batch, in a fixed order."""
    found: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    mapped(batch, keep)
    return found


def with_tensors(batch: Batch, replacements: list[Tensor]) -> Batch:
    """Return the batch with other tensors, in the order of ``tensors``."""
    left = iter(replacements)
    return mapped(batch, lambda _: next(left))


def count(batch: Batch) -> int:
    """Return how many records a batch has.

    Raises:
        InvalidArgument: it has no tensors, or they disagree.
    """
    sizes = {tensor.shape[0] if tensor.dim() else -1 for tensor in tensors(batch)}
    if len(sizes) != 1 or -1 in sizes:
        raise InvalidArgument(
            "batch", sorted(sizes), "tensors that all have the records as their first dimension"
        )
    return sizes.pop()


def part(batch: Batch, start: int, end: int) -> Batch:
    """Return the records from ``start`` to before ``end``."""
    return mapped(batch, lambda tensor: tensor[start:end])


def chunks(batch: Batch, size: int) -> Iterator[Batch]:
    """Yield the batch in parts of at most ``size`` records; none of an empty batch."""
    for start in range(0, count(batch), size):
        yield part(batch, start, start + size)
