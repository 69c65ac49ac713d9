"""Convolutions: gradients are written out, one record after the other where that is fastest."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from dpaudit.trainer.engine.forms import Dense
from dpaudit.trainer.engine.rules.registry import Forms, Operation, rule

Whole = int | tuple[int, ...] | list[int]


def _each(value: Whole, dimensions: int) -> list[int]:
    return [value] * dimensions if isinstance(value, int) else list(value)


def _padding(padding: str | Whole, kernel: torch.Size, dilation: list[int]) -> list[int] | None:
    """Return the padding in numbers; None where it is not the same on both sides."""
    if padding == "valid":
        return [0] * len(kernel)
    if padding == "same":
        whole = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        return None if any(w % 2 for w in whole) else [w // 2 for w in whole]
    return None if isinstance(padding, str) else _each(padding, len(kernel))


def weight_gradients(x: Tensor, g: Tensor, weight: Tensor, options: tuple[Any, ...]) -> Tensor:
    """Return each record's gradient of the weight, shape ``(records, *weight)``."""

    def of_one(x: Tensor, g: Tensor) -> Tensor:
        backward = torch.ops.aten.convolution_backward
        found: Tensor = backward(g[None], x[None], weight, None, *options, [False, True, False])[1]
        return found

    if x.device.type != "cpu":
        return torch.func.vmap(of_one)(x, g)
    # On a CPU one small product after the other is faster than unfolding the input.
    values = weight.new_empty(len(x), *weight.shape)
    for record in range(len(x)):
        values[record] = of_one(x[record], g[record])
    return values


def _rule_for(dimensions: int) -> Callable[..., Operation | None]:
    def convolution(
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Whole = 1,
        padding: str | Whole = 0,
        dilation: Whole = 1,
        groups: int = 1,
    ) -> Operation | None:
        spread = _each(dilation, dimensions)
        pad = _padding(padding, weight.shape[2:], spread)
        if x.dim() != dimensions + 2 or pad is None:
            return None
        options = (
            _each(stride, dimensions), pad, spread, False, [0] * dimensions, groups,
        )  # fmt: skip

        def forms(x: Tensor, g: Tensor) -> Forms:
            plain = weight.detach().to(x.dtype)
            gradients = Dense(weight_gradients(x, g, plain, options))
            return (weight, gradients), (bias, Dense(g.flatten(2).sum(dim=2)))

        return Operation((weight, bias), x, forms)

    return convolution


rule(functional.conv1d)(_rule_for(1))
rule(functional.conv2d)(_rule_for(2))
rule(functional.conv3d)(_rule_for(3))
