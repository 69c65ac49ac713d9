"""Attention and recurrent layers written out in terms of operations that have rules.

torch runs these as one fused operation. The tape replaces the call by the equal computation
below, so that rules see its linear layers and products. Pooling is replaced by a faster call.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

# Multi-head attention: linear layers and scaled dot products.


def multi_head_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    embed_dim_to_check: int,
    num_heads: int,
    in_proj_weight: Tensor | None,
    in_proj_bias: Tensor | None,
    bias_k: Tensor | None,
    bias_v: Tensor | None,
    add_zero_attn: bool,
    dropout_p: float,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    training: bool = True,
    key_padding_mask: Tensor | None = None,
    need_weights: bool = True,
    attn_mask: Tensor | None = None,
    use_separate_proj_weight: bool = False,
    q_proj_weight: Tensor | None = None,
    k_proj_weight: Tensor | None = None,
    v_proj_weight: Tensor | None = None,
    static_k: Tensor | None = None,
    static_v: Tensor | None = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Compute what ``torch.nn.functional.multi_head_attention_forward`` computes.

    With heads h, q = W_q x_q and so on, the output is W_o concat_h softmax(q k^T / sqrt(d) +
    mask) v. The arguments are those of torch, with times first and records second.

    Args:
        query: Shape ``(times, records, features)``, or without records.
        key: Shape ``(keys, records, features)``, or without records.
        value: Shape as that of ``key``.
        embed_dim_to_check: Accepted as torch passes it; unused.
        num_heads: Number of heads.
        in_proj_weight: W_q, W_k and W_v stacked; None with separate projections.
        in_proj_bias: Their biases, stacked, or None.
        bias_k: Row that is appended to the keys, or None.
        bias_v: Row that is appended to the values, or None.
        add_zero_attn: Whether to append a row of zeros to keys and values.
        dropout_p: Dropout probability of the attention weights.
        out_proj_weight: W_o.
        out_proj_bias: Bias of the output, or None.
        training: Whether dropout is on.
        key_padding_mask: Keys to ignore, shape ``(records, keys)``, or None.
        need_weights: Whether to return attention weights.
        attn_mask: Boolean mask of forbidden pairs, or numbers to add to scores, or None.
        use_separate_proj_weight: Whether the projections are separate tensors.
        q_proj_weight: W_q, if separate.
        k_proj_weight: W_k, if separate.
        v_proj_weight: W_v, if separate.
        static_k: Accepted as torch passes it; unused.
        static_v: Accepted as torch passes it; unused.
        average_attn_weights: Whether returned weights are averaged over heads.
        is_causal: Accepted as torch passes it; unused, as ``attn_mask`` holds the mask.

    Returns:
        The output, in the shape of ``query`` with its own features; and the weights, shape
        ``(records, [heads,] times, keys)``, or None.
    """
    unbatched = query.dim() == 2
    if unbatched:
        query, key, value = query[:, None], key[:, None], value[:, None]
        key_padding_mask = None if key_padding_mask is None else key_padding_mask[None]
    weights = (q_proj_weight, k_proj_weight, v_proj_weight)
    if use_separate_proj_weight:
        q, k, v = _separate_projections(query, key, value, weights, in_proj_bias)
    else:
        q, k, v = _packed_projection(query, key, value, in_proj_weight, in_proj_bias)
    if bias_k is not None and bias_v is not None:
        k = torch.cat([k, bias_k.expand(1, *k.shape[1:])])
        v = torch.cat([v, bias_v.expand(1, *v.shape[1:])])
    if add_zero_attn:
        k = torch.cat([k, k.new_zeros(1, *k.shape[1:])])
        v = torch.cat([v, v.new_zeros(1, *v.shape[1:])])
    length, records, _ = q.shape
    q, k, v = (t.reshape(t.shape[0], records, num_heads, -1).permute(1, 2, 0, 3) for t in (q, k, v))
    mask = _mask(attn_mask, key_padding_mask, q, k.shape[2])
    dropout = dropout_p if training else 0.0
    shown = None
    # The weights are needed, or torch's fused kernel may compute softmax(q k^T / sqrt(d)) v.
    if need_weights:
        scores = q @ k.mT / (q.shape[-1] ** 0.5)
        attention = functional.softmax(scores if mask is None else scores + mask, dim=-1)
        attention = functional.dropout(attention, dropout)
        shown = attention.mean(dim=1) if average_attn_weights else attention
        mixed = attention @ v
    else:
        mixed = functional.scaled_dot_product_attention(q, k, v, mask, dropout)
    heads = mixed.permute(2, 0, 1, 3).reshape(length, records, -1)
    output = functional.linear(heads, out_proj_weight, out_proj_bias)
    if unbatched:
        return output[:, 0], None if shown is None else shown[0]
    return output, shown


def _packed_projection(
    query: Tensor, key: Tensor, value: Tensor, weight: Tensor | None, bias: Tensor | None
) -> tuple[Tensor, ...]:
    """Return q, k and v from the stacked weight; one product if all inputs are the same tensor."""
    assert weight is not None
    if query is key and key is value:
        return functional.linear(query, weight, bias).chunk(3, dim=-1)
    return tuple(
        functional.linear(x, weight, bias).chunk(3, dim=-1)[part]
        for part, x in enumerate((query, key, value))
    )


def _separate_projections(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    weights: tuple[Tensor | None, ...],
    bias: Tensor | None,
) -> tuple[Tensor, ...]:
    """Return q, k and v from three weights."""
    biases = (None, None, None) if bias is None else bias.chunk(3)
    found = []
    for x, weight, part in zip((query, key, value), weights, biases, strict=True):
        assert weight is not None
        projected = functional.linear(x, weight)
        found.append(projected if part is None else projected + part)
    return tuple(found)


def _mask(attn_mask: Tensor | None, padding: Tensor | None, q: Tensor, keys: int) -> Tensor | None:
    """Return the sum of all masks, added to scores of shape ``(records, heads, times, keys)``."""
    records, heads, length, _ = q.shape
    total: Tensor | None = None
    if attn_mask is not None:
        mask = _additive(attn_mask, q.dtype)
        mask = mask.view(records, heads, length, -1) if mask.dim() == 3 else mask
        total = functional.pad(mask, (0, keys - mask.shape[-1]))
    if padding is not None:
        pad = _additive(padding, q.dtype)
        pad = functional.pad(pad, (0, keys - pad.shape[-1]))[:, None, None]
        total = pad if total is None else total + pad
    return total


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a mask as numbers to add: minus infinity where a boolean mask is True."""
    if mask.dtype != torch.bool:
        return mask.to(dtype)
    return torch.zeros_like(mask, dtype=dtype).masked_fill(mask, float("-inf"))


ATTENTION_DECOMPOSITIONS = {functional.multi_head_attention_forward: multi_head_attention}


# RNN, LSTM and GRU: one linear layer for the inputs of all times, one per time for the state.

RecurrentState = tuple[Tensor, ...]
RecurrentCell = Callable[
    [Tensor, RecurrentState, Sequence[Tensor], Sequence[Tensor | None]], RecurrentState
]
"""Function of (projected input, state, recurrent weights, recurrent biases): the next state."""


def _lstm_cell(
    x: Tensor, state: RecurrentState, weights: Sequence[Tensor], biases: Sequence[Tensor | None]
) -> RecurrentState:
    """Apply c' = s(f) c + s(i) tanh(g) and h' = s(o) tanh(c'), with s the logistic function."""
    h, c = state
    i, f, g, o = (x + functional.linear(h, weights[0], biases[0])).chunk(4, dim=-1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    h = torch.sigmoid(o) * torch.tanh(c)
    return (functional.linear(h, weights[1]) if len(weights) > 1 else h), c


def _gru_cell(
    x: Tensor, state: RecurrentState, weights: Sequence[Tensor], biases: Sequence[Tensor | None]
) -> RecurrentState:
    """Apply h' = (1 - z) n + z h with gates z, r and n = tanh(x_n + r h_n)."""
    (h,) = state
    xr, xz, xn = x.chunk(3, dim=-1)
    hr, hz, hn = functional.linear(h, weights[0], biases[0]).chunk(3, dim=-1)
    z = torch.sigmoid(xz + hz)
    n = torch.tanh(xn + torch.sigmoid(xr + hr) * hn)
    return ((1 - z) * n + z * h,)


def _plain_cell(
    x: Tensor,
    state: RecurrentState,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    activation: Callable[[Tensor], Tensor],
) -> RecurrentState:
    """Apply h' = activation(x + W h + b)."""
    (h,) = state
    return (activation(x + functional.linear(h, weights[0], biases[0])),)


def _run(
    cell: RecurrentCell,
    x: Tensor,
    state: RecurrentState,
    group: Sequence[Tensor],
    biased: bool,
    inside: Tensor | None = None,
) -> tuple[Tensor, RecurrentState]:
    """Run one direction of one layer over ``x`` of shape ``(records, times, features)``.

    Outside of a record's own times, its state stays.
    """
    w_in, w_state, *rest = group
    b_in, b_state = (rest[0], rest[1]) if biased else (None, None)
    projection = rest[2:] if biased else rest
    inputs = functional.linear(x, w_in, b_in)
    outputs = []
    for time in range(x.shape[1]):
        after = cell(inputs[:, time], state, [w_state, *projection], [b_state])
        if inside is not None:
            now = inside[:, time, None]
            after = tuple(torch.where(now, a, b) for a, b in zip(after, state, strict=True))
        state = after
        outputs.append(state[0])
    return torch.stack(outputs, dim=1), state


def _layers(
    cell: RecurrentCell,
    x: Tensor,
    states: RecurrentState,
    weights: Sequence[Tensor],
    has_biases: bool,
    num_layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool,
    inside: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """Run all layers and directions, in torch's order of weights and states."""
    x = x if batch_first else x.transpose(0, 1)
    directions = 2 if bidirectional else 1
    each = len(weights) // (num_layers * directions)
    last: list[RecurrentState] = []
    for layer in range(num_layers):
        outputs = []
        for direction in range(directions):
            number = layer * directions + direction
            group = weights[number * each : (number + 1) * each]
            begin = tuple(state[number] for state in states)
            # The backward direction reads the times in reverse.
            ordered, times = x, inside
            if direction:
                ordered, times = x.flip(1), None if inside is None else inside.flip(1)
            output, end = _run(cell, ordered, begin, group, has_biases, times)
            outputs.append(output.flip(1) if direction else output)
            last.append(end)
        x = torch.cat(outputs, dim=-1)
        if dropout and layer + 1 < num_layers:
            x = functional.dropout(x, dropout, train)
    x = x if batch_first else x.transpose(0, 1)
    return x, *(torch.stack(part) for part in zip(*last, strict=True))


def _is_packed(settings: Sequence[object]) -> bool:
    """Return whether the call is torch's variant for packed sequences, with shifted arguments."""
    return not isinstance(settings[0], bool)


def lstm(
    x: Tensor, hx: RecurrentState, weights: Sequence[Tensor], *settings: object
) -> tuple[Tensor, ...]:
    """Compute what ``torch.lstm`` computes, for inputs that are not packed.

    Args:
        x: Input, shape ``(times, records, features)`` or with records first.
        hx: First hidden and cell states, each of shape ``(layers * directions, records, size)``.
        weights: All weights and biases in torch's order.
        *settings: The remaining positional arguments of torch.

    Returns:
        Outputs, last hidden states and last cell states; NotImplemented for packed sequences.
    """
    if _is_packed(settings):
        return NotImplemented  # type: ignore[no-any-return]
    return _layers(_lstm_cell, x, tuple(hx), weights, *settings)  # type: ignore[arg-type]


def gru(x: Tensor, hx: Tensor, weights: Sequence[Tensor], *settings: object) -> tuple[Tensor, ...]:
    """Compute what ``torch.gru`` computes, for inputs that are not packed.

    Args:
        x: Input, shape ``(times, records, features)`` or with records first.
        hx: First hidden states, shape ``(layers * directions, records, size)``.
        weights: All weights and biases in torch's order.
        *settings: The remaining positional arguments of torch.

    Returns:
        Outputs and last hidden states; NotImplemented for packed sequences.
    """
    if _is_packed(settings):
        return NotImplemented  # type: ignore[no-any-return]
    return _layers(_gru_cell, x, (hx,), weights, *settings)  # type: ignore[arg-type]


def _plain(
    activation: Callable[[Tensor], Tensor],
    x: Tensor,
    hx: Tensor,
    weights: Sequence[Tensor],
    *settings: object,
) -> tuple[Tensor, ...]:
    """Compute what ``torch.rnn_tanh`` and ``torch.rnn_relu`` compute, if not packed."""
    if _is_packed(settings):
        return NotImplemented  # type: ignore[no-any-return]
    cell = partial(_plain_cell, activation=activation)
    return _layers(cell, x, (hx,), weights, *settings)  # type: ignore[arg-type]


# The same for packed sequences: rows by time, and at each time by falling length.

PACKED_CELLS: dict[Callable[..., Any], RecurrentCell] = {
    torch.lstm: _lstm_cell,
    torch.gru: _gru_cell,
    torch.rnn_tanh: partial(_plain_cell, activation=torch.tanh),
    torch.rnn_relu: partial(_plain_cell, activation=torch.relu),
}


def packed_layers(
    func: Callable[..., Any],
    order: Tensor | None,
    rows: Tensor,
    batch_sizes: Tensor,
    hx: Tensor | RecurrentState,
    weights: Sequence[Tensor],
    *settings: Any,
) -> tuple[Tensor, ...]:
    """Compute what ``torch.lstm`` and the like compute for packed sequences, on padded ones.

    Args:
        func: A function of ``PACKED_CELLS``.
        order: Record of each sequence; None if sequences are in the order of the records.
        rows: The packed input, shape ``(rows, features)``.
        batch_sizes: Number of sequences that are left at each time.
        hx: First states, in the order of the sequences.
        weights: All weights and biases in torch's order.
        *settings: The remaining positional arguments of torch.

    Returns:
        Packed outputs, and last states in the order of the sequences.
    """
    sizes = batch_sizes.to(rows.device)
    sequences = int(sizes[0])
    order = torch.arange(sequences, device=rows.device) if order is None else order
    place = torch.argsort(order)  # sequence of each record
    # Row of sequence j at time t: the rows of all earlier times, then j.
    number = (sizes.cumsum(0) - sizes) + place[:, None]
    inside = place[:, None] < sizes
    padded = torch.where(inside[..., None], rows[number * inside], 0.0)
    states = hx if isinstance(hx, tuple | list) else (hx,)
    first = tuple(state[:, place] for state in states)
    has_biases, layers, dropout, train, bidirectional = settings
    found, *last = _layers(
        PACKED_CELLS[func], padded, first, weights, has_biases, layers, dropout, train,
        bidirectional, batch_first=True, inside=inside,
    )  # fmt: skip
    times, sequence = inside[order].mT.nonzero().unbind(1)
    return found[order[sequence], times], *(state[:, order] for state in last)


RECURRENT_DECOMPOSITIONS: dict[Callable[..., Any], Callable[..., Any]] = {
    torch.lstm: lstm,
    torch.gru: gru,
    torch.rnn_tanh: partial(_plain, torch.tanh),
    torch.rnn_relu: partial(_plain, torch.relu),
}

# Pooling.

LEAST_CHANNELS = 8
"""Channels from which on torch's pooling on the CPU is faster with channels last."""

PLACE_ARGUMENTS = 3
"""Padding, dilation and ceil_mode; the one after them is return_indices."""


def max_pool2d(
    input: Tensor, kernel_size: Any, stride: Any = None, *args: Any, **kwargs: Any
) -> Tensor:
    """Compute what ``torch.nn.functional.max_pool2d`` computes, with channels last in memory.

    Maxima, and which of equal entries gets the gradient, are the same in any order of memory.
    Where windows overlap, torch on the CPU takes two to three times longer with channels first:
    more than a convolution. Elsewhere it takes as long, and the gradient, which has channels last
    too, slows the convolution before it.

    Args:
        input: Shape ``(records, channels, height, width)``.
        kernel_size: Size of a window.
        stride: Distance of windows; None for their size.
        *args: Further arguments of torch.
        **kwargs: Further named arguments of torch.

    Returns:
        The maxima, with channels first in memory; NotImplemented for other inputs.
    """
    last = torch.channels_last
    if (
        kwargs.get("return_indices")
        or len(args) > PLACE_ARGUMENTS
        or not _overlap(kernel_size, stride)
        or not input.is_cpu
        or input.dim() != 4
        or input.shape[1] < LEAST_CHANNELS
        or not input.is_contiguous()
        or input.is_contiguous(memory_format=last)
    ):
        return NotImplemented  # type: ignore[no-any-return]
    moved = input.contiguous(memory_format=last)
    maxima: Tensor = functional.max_pool2d(moved, kernel_size, stride, *args, **kwargs)
    return maxima.contiguous()


def _overlap(kernel_size: Any, stride: Any) -> bool:
    """Return whether windows of this size overlap at this distance, in some direction."""
    if not stride:
        return False
    return any(step < size for size, step in zip(_pair(kernel_size), _pair(stride), strict=True))


def _pair(value: Any) -> tuple[int, int]:
    """Return height and width, which torch takes as one number or as a sequence of one or two."""
    return (value, value) if isinstance(value, int) else (value[0], value[-1])


DECOMPOSITIONS: dict[Callable[..., Any], Callable[..., Any]] = {
    **ATTENTION_DECOMPOSITIONS,
    **RECURRENT_DECOMPOSITIONS,
    functional.max_pool2d: max_pool2d,
}
