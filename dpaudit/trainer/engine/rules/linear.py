"""x W^T + b: the weight's gradient is the sum over positions of g_t (x) x_t."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from dpaudit.trainer.engine.forms import Dense, OuterProducts
from dpaudit.trainer.engine.rules.registry import Forms, Operation, rule


def positions(tensor: Tensor) -> Tensor:
    """Return (records, ..., features) as (records, positions, features)."""
    return tensor[:, None] if tensor.dim() == 2 else tensor.flatten(1, -2)


@rule(functional.linear)
def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Operation | None:
    """Return the operation; None for a single record without a dimension for it."""
    if x.dim() < 2:
        return None

    def forms(x: Tensor, g: Tensor) -> Forms:
        rows = positions(g)
        return (weight, OuterProducts(rows, positions(x))), (bias, Dense(rows.sum(dim=1)))

    return Operation((weight, bias), x, forms)


@rule(torch.addmm)
def addmm(
    bias: Tensor, x: Tensor, weight: Tensor, *, beta: float = 1, alpha: float = 1
) -> Operation | None:
    """Return bias + x W, as some transformers write it; None if anything is scaled."""
    if beta != 1 or alpha != 1 or bias.dim() != 1:
        return None

    def forms(x: Tensor, g: Tensor) -> Forms:
        columns = positions(g)
        return (weight, OuterProducts(positions(x), columns)), (bias, Dense(columns.sum(dim=1)))

    return Operation((weight, bias), x, forms)
