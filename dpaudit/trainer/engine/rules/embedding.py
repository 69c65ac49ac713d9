"""Rules of embedding tables: the gradient is nonzero only in the rows that were looked up."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from dpaudit.trainer.engine.gradient_forms import EmbeddingRows
from dpaudit.trainer.engine.rules.registry import Operation, ParameterGradients, rule


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
    """Rule of a look-up y = W[index].

    Args:
        index: Integers of any shape, records in one dimension.
        weight: The table W, shape ``(rows, d)``.
        padding_idx: Row that gets no gradient; may be negative.
        max_norm: Not covered: it writes to the table.
        norm_type: Norm of ``max_norm``; unused.
        scale_grad_by_freq: Not covered: it counts over the whole batch.
        sparse: Layout of the gradient in plain training; unused.

    Returns:
        The operation, or None for calls that are not covered.
    """
    if max_norm is not None or scale_grad_by_freq or index.dim() == 0:
        return None
    size = weight.shape[0]
    padding = None if padding_idx is None else padding_idx % size

    def forms(index: Tensor, g: Tensor) -> ParameterGradients:
        flat = index.reshape(len(index), -1)
        values = g.reshape(len(index), flat.shape[1], weight.shape[1])
        if padding is not None:
            # torch gives the padding row no gradient.
            values = torch.where((flat == padding)[:, :, None], 0.0, values)
        return ((weight, EmbeddingRows(flat, values, size)),)

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
    """Rule of sums or means of looked-up rows, for bags of one length.

    Args:
        index: Integers, shape ``(records, T)``.
        weight: The table, shape ``(rows, d)``.
        offsets: Not covered: bags of different lengths.
        max_norm: Not covered: it writes to the table.
        norm_type: Norm of ``max_norm``; unused.
        scale_grad_by_freq: Not covered: it counts over the whole batch.
        mode: "mean" or "sum"; "max" is not covered.
        sparse: Layout of the gradient in plain training; unused.
        per_sample_weights: Not covered.
        include_last_offset: Belongs to ``offsets``; unused.
        padding_idx: Not covered.

    Returns:
        The operation, or None for calls that are not covered.
    """
    plain = max_norm is None and not scale_grad_by_freq and padding_idx is None
    if index.dim() != 2 or offsets is not None or per_sample_weights is not None or not plain:
        return None
    if mode not in {"mean", "sum"}:
        return None
    share = 1.0 if mode == "sum" else 1.0 / index.shape[1]

    def forms(index: Tensor, g: Tensor) -> ParameterGradients:
        values = (g * share)[:, None].expand(-1, index.shape[1], -1)
        return ((weight, EmbeddingRows(index, values, weight.shape[0])),)

    return Operation((weight,), index, forms)
