"""Multi-head attention as linear layers and scaled dot products.

Vaswani et al. 2017, arXiv:1706.03762, section 3.2.2, with torch's arguments.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


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
    """Return what ``torch.nn.functional.multi_head_attention_forward`` returns."""
    unbatched = query.dim() == 2
    if unbatched:
        query, key, value = query[:, None], key[:, None], value[:, None]
        key_padding_mask = None if key_padding_mask is None else key_padding_mask[None]
    weights = (q_proj_weight, k_proj_weight, v_proj_weight)
    if use_separate_proj_weight:
        q, k, v = _apart(query, key, value, weights, in_proj_bias)
    else:
        q, k, v = _packed(query, key, value, in_proj_weight, in_proj_bias)
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


def _packed(
    query: Tensor, key: Tensor, value: Tensor, weight: Tensor | None, bias: Tensor | None
) -> tuple[Tensor, ...]:
    """Return query, key and value; one product does for all that are the same tensor."""
    assert weight is not None
    if query is key and key is value:
        return functional.linear(query, weight, bias).chunk(3, dim=-1)
    return tuple(
        functional.linear(x, weight, bias).chunk(3, dim=-1)[part]
        for part, x in enumerate((query, key, value))
    )


def _apart(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    weights: tuple[Tensor | None, ...],
    bias: Tensor | None,
) -> tuple[Tensor, ...]:
    biases = (None, None, None) if bias is None else bias.chunk(3)
    found = []
    for x, weight, part in zip((query, key, value), weights, biases, strict=True):
        assert weight is not None
        projected = functional.linear(x, weight)
        found.append(projected if part is None else projected + part)
    return tuple(found)


def _mask(attn_mask: Tensor | None, padding: Tensor | None, q: Tensor, keys: int) -> Tensor | None:
    """Return what is added to scores of shape ``(records, heads, queries, keys)``."""
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
    """Return a mask of booleans, True for "not this one", as one that is added."""
    if mask.dtype != torch.bool:
        return mask.to(dtype)
    return torch.zeros_like(mask, dtype=dtype).masked_fill(mask, float("-inf"))


DECOMPOSITIONS = {functional.multi_head_attention_forward: multi_head_attention}
