"""Look-ups in a table: the gradient touches the rows that were looked up."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from dpaudit.trainer.engine.forms import TableRows
from dpaudit.trainer.engine.rules.registry import Forms, Operation, rule


@rule(functional.embedding)
def embedding(
    index: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Operation | None:
    """Return the operation; None where it changes the table or counts over the batch."""
    if max_norm is not None or scale_grad_by_freq or index.dim() == 0:
        return None
    size = weight.shape[0]
    padding = None if padding_idx is None else padding_idx % size

    def forms(index: Tensor, g: Tensor) -> Forms:
        flat = index.reshape(len(index), -1)
        values = g.reshape(len(index), flat.shape[1], weight.shape[1])
        if padding is not None:
            values = torch.where((flat == padding)[:, :, None], 0.0, values)
        return ((weight, TableRows(flat, values, size)),)

    return Operation((weight,), index, forms)


@rule(functional.embedding_bag)
def embedding_bag(
    index: Tensor,
    weight: Tensor,
    offsets: Tensor | None = None,
    max_norm: float | None = None,
    norm_type: float = 2,
    scale_grad_by_freq: bool = False,
    mode: str = "mean",
    sparse: bool = False,
    per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
) -> Operation | None:
    """Return the operation for bags of one length; None for others, and for maxima."""
    plain = max_norm is None and not scale_grad_by_freq and padding_idx is None
    if index.dim() != 2 or offsets is not None or per_sample_weights is not None or not plain:
        return None
    if mode not in {"mean", "sum"}:
        return None
    share = 1.0 if mode == "sum" else 1.0 / index.shape[1]

    def forms(index: Tensor, g: Tensor) -> Forms:
        values = (g * share)[:, None].expand(-1, index.shape[1], -1)
        return ((weight, TableRows(index, values, weight.shape[0])),)

    return Operation((weight,), index, forms)
