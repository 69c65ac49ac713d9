"""Calls in which a parameter takes part, written out in terms of operations that have rules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from dpaudit.trainer.engine.broadcast_uses import padded_shape


def prelu(x: Tensor, weight: Tensor) -> Tensor:
    """Compute what ``torch.prelu`` computes.

    Args:
        x: Input, channels in dimension 1.
        weight: Slope for negative inputs, one number or one per channel.

    Returns:
        x where it is positive, else weight * x.
    """
    if weight.dim() == 1 and x.dim() > 1:
        weight = weight.view(-1, *[1] * (x.dim() - 2))
    return torch.where(x > 0, x, x * weight)


def repeat(tensor: Tensor, *sizes: Any, **named: Any) -> Tensor:
    """Compute what ``Tensor.repeat`` computes, by an expansion.

    Args:
        tensor: The tensor to repeat.
        *sizes: How often along each dimension; or one tuple of these.
        **named: The tuple as ``repeats``.

    Returns:
        The repeated tensor.
    """
    times = named.get("repeats", sizes)
    if len(times) == 1 and not isinstance(times[0], int):
        times = times[0]
    shape = padded_shape(tensor, len(times))
    # (s, ...) becomes (1, s, ...), then (times, s, ...), then (times * s, ...).
    apart = tensor.reshape([n for size in shape for n in (1, size)])
    apart = apart.expand([n for t, size in zip(times, shape, strict=True) for n in (t, size)])
    return apart.reshape([t * size for t, size in zip(times, shape, strict=True)])


def addmm(bias: Tensor, x: Tensor, weight: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    """Compute what ``torch.addmm`` computes, where the rule of a linear layer does not cover it.

    Args:
        bias: Added term.
        x: First factor.
        weight: Second factor.
        beta: Factor on the added term.
        alpha: Factor on the product.

    Returns:
        beta * bias + alpha * x @ weight.
    """
    if beta == 1 and alpha == 1 and bias.dim() == 1:
        return NotImplemented  # type: ignore[no-any-return]
    return beta * bias + alpha * (x @ weight)


def bilinear(x: Tensor, y: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Compute what ``torch.nn.functional.bilinear`` computes, as a linear layer on products.

    Args:
        x: First input, shape ``(..., d)``.
        y: Second input, shape ``(..., e)``.
        weight: Shape ``(p, d, e)``.
        bias: Shape ``(p,)``, or None.

    Returns:
        sum_de W_pde x_d y_e + b_p, shape ``(..., p)``.
    """
    pairs = (x[..., :, None] * y[..., None, :]).flatten(-2)
    return functional.linear(pairs, weight.flatten(1), bias)


def masked_fill(x: Tensor, mask: Tensor, value: Any) -> Tensor:
    """Compute what ``Tensor.masked_fill`` computes.

    Args:
        x: Any tensor.
        mask: Where to replace its entries.
        value: The replacement.

    Returns:
        The value where the mask is true, else x.
    """
    if not isinstance(value, Tensor) or value.dtype != x.dtype:
        return NotImplemented  # type: ignore[no-any-return]
    return torch.where(mask, value, x)


# Parts of tensors that are read or written.


def get_item(tensor: Tensor, index: Any) -> Tensor:
    """Compute what ``tensor[index]`` is for rows that records choose, as a look-up in a table.

    Args:
        tensor: A parameter, shape ``(rows, ...)``.
        index: Integers of any shape.

    Returns:
        The rows.
    """
    integers = isinstance(index, Tensor) and index.dtype in {torch.int32, torch.int64}
    if not integers or not index.dim() or not tensor.dim():
        return NotImplemented  # type: ignore[no-any-return]
    rows = torch.where(index < 0, index + tensor.shape[0], index)
    table = tensor.reshape(len(tensor), -1)
    return functional.embedding(rows, table).reshape(*index.shape, *tensor.shape[1:])


def index_select(tensor: Tensor, dim: int, index: Tensor) -> Tensor:
    """Compute what ``torch.index_select`` computes along the first dimension.

    Args:
        tensor: A parameter, shape ``(rows, ...)``.
        dim: Dimension from which to select.
        index: Integers, shape ``(selected,)``.

    Returns:
        The rows.
    """
    if dim or tensor.dim() < 2:
        return NotImplemented  # type: ignore[no-any-return]
    return get_item(tensor, index)


def set_item(tensor: Tensor, index: Any, value: Any) -> None:
    """Do what ``tensor[index] = value`` does, with a parameter that is repeated for the records.

    Args:
        tensor: Tensor that is changed in place.
        index: Any index.
        value: A parameter that is repeated.
    """
    if not isinstance(value, Tensor) or not isinstance(tensor, Tensor):
        return NotImplemented  # type: ignore[no-any-return]
    if isinstance(index, Tensor) and index.dtype == torch.bool:
        mask = index.reshape(*index.shape, *[1] * (tensor.dim() - index.dim()))
        if value.dim() > tensor.dim() - index.dim() or value.dtype != tensor.dtype:
            return NotImplemented  # type: ignore[no-any-return]
        tensor.copy_(torch.where(mask, value, tensor))
        return None
    shape = tensor.detach()[index].shape
    if value.shape == shape or value.dim() > len(shape):
        return NotImplemented  # type: ignore[no-any-return]
    tensor[index] = value.expand(shape)
    return None


# Layers with settings that their rules do not cover.


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
) -> Tensor:
    """Compute what ``torch.nn.functional.embedding_bag`` computes, as a look-up and a sum.

    Args:
        index: Rows of all bags: shape ``(bags, T)``, or one after the other with ``offsets``.
        weight: The table, shape ``(rows, d)``.
        offsets: Where each bag begins.
        max_norm: Not covered: it writes to the table.
        norm_type: Norm of ``max_norm``; unused.
        scale_grad_by_freq: Not covered: it counts over the whole batch.
        mode: "sum", "mean" or "max".
        sparse: Layout of the gradient in plain training; unused.
        per_sample_weights: Weight of each row, shaped as ``index``.
        include_last_offset: Whether ``offsets`` ends with the number of rows.
        padding_idx: Row that belongs to no bag.

    Returns:
        One row per bag.
    """
    plain = offsets is None and per_sample_weights is None and padding_idx is None
    if max_norm is not None or scale_grad_by_freq or (plain and mode != "max"):
        return NotImplemented  # type: ignore[no-any-return]
    counts = torch.ones_like(index, dtype=weight.dtype)
    if offsets is not None:
        index, place = _bags(index, offsets, last=include_last_offset)
        counts = (place >= 0).to(weight.dtype)
        if per_sample_weights is not None:
            per_sample_weights = per_sample_weights[place.clamp(min=0)]
    if padding_idx is not None:
        counts = counts * (index != padding_idx % len(weight))
    rows = functional.embedding(index, weight, padding_idx)
    if mode == "max":
        hidden = rows.masked_fill(counts[..., None] == 0, float("-inf"))
        return hidden.max(dim=1).values.masked_fill(~(counts > 0).any(dim=1)[:, None], 0.0)
    if mode == "mean":
        counts = counts / counts.sum(dim=1, keepdim=True).clamp(min=1.0)
    weights = counts if per_sample_weights is None else counts * per_sample_weights
    return (rows * weights[..., None]).sum(dim=1)


def _bags(index: Tensor, offsets: Tensor, *, last: bool) -> tuple[Tensor, Tensor]:
    """Return rows by bag, shape ``(bags, T)``, and their places in the list; -1 for none."""
    ends = offsets[1:] if last else torch.cat([offsets[1:], offsets.new_tensor([len(index)])])
    starts = offsets[: len(ends)]
    longest = max(1, int((ends - starts).max())) if len(starts) else 1
    place = starts[:, None] + torch.arange(longest, device=offsets.device)
    place = torch.where(place < ends[:, None], place, -1)
    rows = index.new_zeros(1) if not len(index) else index
    return torch.where(place < 0, 0, rows[place.clamp(min=0)]), place


def _one_sided(dimensions: int, plain: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return the decomposition of a convolution that is padded more on one side."""

    def convolution(
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
    ) -> Tensor:
        spread = (dilation,) * dimensions if isinstance(dilation, int) else tuple(dilation)
        whole = [d * (k - 1) for d, k in zip(spread, weight.shape[2:], strict=True)]
        if padding != "same" or not any(size % 2 for size in whole):
            return NotImplemented  # type: ignore[no-any-return]
        sides = [side for size in reversed(whole) for side in (size // 2, size - size // 2)]
        return plain(functional.pad(x, sides), weight, bias, stride, 0, dilation, groups)

    return convolution


PARAMETER_DECOMPOSITIONS: dict[Any, Callable[..., Any]] = {
    **dict.fromkeys([torch.prelu, functional.prelu, Tensor.prelu], prelu),
    Tensor.repeat: repeat,
    Tensor.__getitem__: get_item,
    **dict.fromkeys([torch.index_select, Tensor.index_select], index_select),
    Tensor.__setitem__: set_item,
    functional.embedding_bag: embedding_bag,
    functional.conv1d: _one_sided(1, functional.conv1d),
    functional.conv2d: _one_sided(2, functional.conv2d),
    functional.conv3d: _one_sided(3, functional.conv3d),
    torch.addmm: addmm,
    **dict.fromkeys([functional.bilinear, torch.bilinear], bilinear),
    **dict.fromkeys([torch.masked_fill, Tensor.masked_fill], masked_fill),
}
"""Decompositions of calls in which a parameter takes part."""
