"""Pad token sequences to one length that is fixed in advance.

A length that is taken from the batch, as that of its longest sequence, depends on other records.
If a model's loss depends on padding, one record could then change the gradients of others by
more than the clip norm. So the length is a setting.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dpaudit.trainer.data_sources.collate import collate_records
from dpaudit.trainer.engine.batch_structure import Batch
from dpaudit.vocabulary.errors import InvalidArgument, require_count

TOKENS, MASK = "input_ids", "attention_mask"
"""Names of tokens and mask, as in the libraries of Hugging Face."""

IGNORED_LABEL = -100
"""Label that ``torch.nn.functional.cross_entropy`` ignores."""


class PadTokens:
    """A ``collate_fn`` that pads token sequences to a fixed length.

    In a record that is a dict, ``input_ids`` and every field of the same length are padded:
    ``labels`` with -100, ``attention_mask`` with 0, others with ``padding``. A mask is added if
    there is none: 1 for tokens, 0 for padding. In any other record, each list or vector of
    integers becomes a dict of ``input_ids`` and ``attention_mask``. Longer sequences are cut.

    Args:
        length: Number of tokens of every sequence; a public setting.
        padding: Token that fills the rest.

    Raises:
        InvalidArgument: If ``length`` is not a whole number of at least 1.

    Example:
        >>> batch = PadTokens(3)([{"input_ids": [5, 6]}, {"input_ids": [7]}])
        >>> batch["input_ids"].tolist(), batch["attention_mask"].tolist()
        ([[5, 6, 0], [7, 0, 0]], [[1, 1, 0], [1, 0, 0]])
    """

    def __init__(self, length: int, *, padding: int = 0) -> None:
        require_count("length", length)
        require_count("padding", padding, least=0)
        self._length, self._padding = length, padding

    def __repr__(self) -> str:
        return f"PadTokens({self._length}, padding={self._padding})"

    def __call__(self, records: list[Any]) -> Batch:
        """Return records as a batch of padded tokens.

        Args:
            records: At least one record.

        Returns:
            The batch: tokens and masks of shape ``(records, length)``.

        Raises:
            InvalidArgument: If a dict has no ``input_ids``, or records have different structures.
        """
        return collate_records([self._padded(record) for record in records])

    def _padded(self, record: Any) -> Any:
        """Return a record with its sequences padded."""
        if isinstance(record, Mapping):
            return self._padded_dict(record)
        if (tokens := _tokens(record)) is not None:
            return self._with_mask(tokens)
        if isinstance(record, tuple | list):
            parts = [self._padded(part) for part in record]
            return type(record)(*parts) if hasattr(record, "_fields") else tuple(parts)
        return record

    def _padded_dict(self, record: Mapping[Any, Any]) -> dict[Any, Any]:
        """Return a dict whose fields of the length of ``input_ids`` are padded."""
        own = _tokens(record.get(TOKENS))
        if own is None:
            allowed = f"records with {TOKENS}, a list of integers, or another collate_fn"
            raise InvalidArgument("data", f"a record with {sorted(map(str, record))}", allowed)
        padded: dict[Any, Any] = dict(record)
        fillings = {"labels": IGNORED_LABEL, MASK: 0}
        for name, value in record.items():
            tokens = _tokens(value)
            if tokens is not None and len(tokens) == len(own):
                padded[name] = self._filled(tokens, fillings.get(name, self._padding))
        return {**self._with_mask(own), **padded}

    def _with_mask(self, tokens: Tensor) -> dict[Any, Any]:
        """Return padded tokens and their mask."""
        mask = self._filled(torch.ones_like(tokens), 0)
        return {TOKENS: self._filled(tokens, self._padding), MASK: mask}

    def _filled(self, tokens: Tensor, filling: int) -> Tensor:
        """Return the first tokens, followed by ``filling``."""
        full = torch.full((self._length,), filling, dtype=torch.int64)
        kept = tokens[: self._length]
        full[: len(kept)] = kept
        return full


def _tokens(value: Any) -> Tensor | None:
    """Return a list or vector of integers as a tensor; None for anything else."""
    if isinstance(value, list) and all(isinstance(one, int | np.integer) for one in value):
        return torch.tensor(value, dtype=torch.int64)
    if isinstance(value, np.ndarray) and value.ndim == 1 and value.dtype.kind in "iu":
        return torch.from_numpy(value.astype(np.int64))
    if isinstance(value, Tensor) and value.dim() == 1 and not value.is_floating_point():
        return value.to(torch.int64)
    return None
