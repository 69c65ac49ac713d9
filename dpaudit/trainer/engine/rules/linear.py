"""Rules of linear layers y_t = W x_t + b: the gradients are sum_t g_t x_t^T and sum_t g_t."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from dpaudit.trainer.engine.gradient_forms import DenseGradients, OuterProducts, RowNorms
from dpaudit.trainer.engine.grouped_products import GroupedOuterProducts
from dpaudit.trainer.engine.rules.registry import Operation, ParameterGradients, rule


def flatten_positions(tensor: Tensor) -> Tensor:
    """Return (records, ..., features) as (records, positions, features).

    Args:
        tensor: At least two dimensions.

    Returns:
        A tensor of three dimensions; one position if there were two.
    """
    return tensor.unsqueeze(1) if tensor.dim() == 2 else tensor.flatten(1, -2)


def _sum_of_positions(g: Tensor) -> DenseGradients:
    """Return the gradients of a bias; those of one position are the output's own."""
    return DenseGradients(g.squeeze(1) if g.shape[1] == 1 else g.sum(dim=1))


@rule(functional.linear)
def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Operation | None:
    """Rule of y = x W^T + b; None for a call without a dimension for records.

    Args:
        x: Input, shape ``(..., d)``.
        weight: W, shape ``(p, d)``.
        bias: b, shape ``(p,)``, or None.

    Returns:
        The operation, or None if ``x`` has less than two dimensions.
    """
    if x.dim() < 2:
        return None

    def forms(x: Tensor, g: Tensor) -> ParameterGradients:
        rows, columns = flatten_positions(g), flatten_positions(x)
        if rows.shape[1] != 1:
            return (weight, OuterProducts(rows, columns)), (bias, _sum_of_positions(rows))
        single = g if g.dim() == 2 else rows.squeeze(1)
        norms = RowNorms(single)
        return (weight, OuterProducts(rows, columns, norms)), (bias, DenseGradients(single, norms))

    return Operation((weight, bias), x, forms)


@rule(torch.addmm)
def addmm(
    bias: Tensor, x: Tensor, weight: Tensor, *, beta: float = 1, alpha: float = 1
) -> Operation | None:
    """Rule of y = b + x W, as some transformers write a linear layer.

    Args:
        bias: b, shape ``(p,)``.
        x: Input, shape ``(rows, d)``.
        weight: W, shape ``(d, p)``.
        beta: Factor on b, which must be 1.
        alpha: Factor on x W, which must be 1.

    Returns:
        The operation, or None if a factor is not 1 or b is not a vector.
    """
    if beta != 1 or alpha != 1 or bias.dim() != 1:
        return None

    def forms(x: Tensor, g: Tensor) -> ParameterGradients:
        columns = flatten_positions(g)
        return (weight, OuterProducts(flatten_positions(x), columns)), (
            bias, _sum_of_positions(columns),
        )  # fmt: skip

    return Operation((weight, bias), x, forms)


# A linear layer per group of rows, as of the experts to which tokens were sent.


def grouped_matmul(
    x: Tensor,
    weight: Tensor,
    *,
    offs: Tensor | None = None,
    bias: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> Operation | None:
    """Rule of products of consecutive rows with the matrix of their group.

    Args:
        x: Input, shape ``(rows, d)``, group by group.
        weight: One matrix per group, shape ``(groups, d, p)``.
        offs: Where each group ends.
        bias: Not covered.
        out_dtype: Not covered.

    Returns:
        The operation, or None for calls that are not covered.
    """
    if offs is None or bias is not None or out_dtype is not None:
        return None
    if x.dim() != 2 or weight.dim() != 3:
        return None
    groups = len(weight)
    number = torch.bucketize(torch.arange(len(x), device=x.device), offs.long(), right=True)
    # The group of each row travels with the row, as a further column.
    held = torch.cat([number[:, None].float(), x.detach()], dim=1)

    def forms(x: Tensor, g: Tensor) -> ParameterGradients:
        group, rows = x[:, None, 0].long().clamp(max=groups - 1), x[:, None, 1:]
        return ((weight, GroupedOuterProducts(rows, g[:, None], group, groups)),)

    return Operation((weight,), held, forms)


if hasattr(torch, "_grouped_mm"):  # which torch.nn.functional.grouped_mm calls, since torch 2.10
    rule(torch._grouped_mm)(grouped_matmul)
