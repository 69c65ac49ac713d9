"""Keyed digest of data, by which ranks find out that they have different records.

Every rank draws positions from the same key, so position 7 must be the same record on each. The
digest is keyed: it shows nothing of the records to anyone without the run's key.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from numpy.typing import NDArray

from dpaudit.trainer.data_sources.batch_source import RecordSource
from dpaudit.trainer.engine.batch_structure import (
    Batch,
    batch_columns,
    batch_tensors,
    record_shapes,
)
from dpaudit.trainer.noise.randomness import Keystream, Purpose

ROWS_IN_MEMORY = 4096
"""Number of records of columns that are compared; all of them if there are no more."""

ROWS_BY_INDEX = 16
"""Number of records by index that are compared; they are read twice."""


def data_digest(source: RecordSource, stream: Keystream) -> str:
    """Return a digest of the number of records and of a random sample of them.

    Records that are random, as those with an augmentation, are compared by shape and type.

    Args:
        source: The records.
        stream: The keystream, which is the same on every rank.

    Returns:
        Hexadecimal digits, equal on ranks with equal data. Ranks with other data differ unless
        the sample misses all different records.
    """
    if not source.records:
        return ""
    seed = stream.seed_for(Purpose.DATA_COMPARISON, 0)
    rows = min(source.records, ROWS_IN_MEMORY if source.in_memory else ROWS_BY_INDEX)
    chosen = np.random.Generator(np.random.Philox(key=seed))
    which = np.sort(chosen.choice(source.records, rows, replace=False)).astype(np.int64)
    content = _content(source, which, stream)
    if not source.in_memory and content != _content(source, which, stream):
        shapes = repr(record_shapes(source.take(which[:1], seed)))
        return hashlib.sha256(f"{source.records} {shapes}".encode()).hexdigest()
    return hashlib.sha256(f"{source.records} {content}".encode()).hexdigest()


def _content(source: RecordSource, which: NDArray[np.int64], stream: Keystream) -> str:
    """Return a keyed digest of some records."""
    batch: Batch = source.take(which, stream.seed_for(Purpose.DATA_COMPARISON, 0))
    digest = hashlib.blake2b(key=stream.key)
    digest.update(repr(record_shapes(batch)).encode())
    for tensor in batch_tensors(batch):
        digest.update(
            tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
        )
    for column in batch_columns(batch):
        digest.update("; ".join(map(_text, column)).encode())
    return digest.hexdigest()


def _text(value: object) -> str:
    """Return a value as text; of an object whose text may hold its address, the type."""
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_text, value))}]"
    plain = isinstance(value, str | bytes | int | float | complex | np.generic | None)
    return repr(value) if plain else type(value).__name__
