"""Normalisations within a record: gradients of scale and shift are as small as these."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional

from dpaudit.trainer.engine.forms import Dense
from dpaudit.trainer.engine.rules.registry import Forms, Operation, rule


def _over_positions(values: Tensor, kept: int) -> Tensor:
    """Sum over what lies between the record and the last ``kept`` dimensions."""
    between = values.dim() - kept - 1
    return values.flatten(1, between).sum(dim=1) if between else values


def _over_space(values: Tensor) -> Tensor:
    """Sum over what lies behind records and channels."""
    return values.flatten(2).sum(dim=2) if values.dim() > 2 else values


@rule(functional.layer_norm)
def layer_norm(
    x: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Operation | None:
    """Return the operation; None for a record without a dimension for it."""
    kept = len(normalized_shape)
    if x.dim() <= kept:
        return None

    def forms(x: Tensor, g: Tensor) -> Forms:
        scaled = g * functional.layer_norm(x, tuple(normalized_shape), None, None, eps)
        return (weight, Dense(_over_positions(scaled, kept))), (
            bias, Dense(_over_positions(g, kept)),
        )  # fmt: skip

    return Operation((weight, bias), x, forms)


@rule(functional.rms_norm)
def rms_norm(
    x: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
) -> Operation | None:
    """Return the operation; None for a record without a dimension for it."""
    kept = len(normalized_shape)
    if x.dim() <= kept:
        return None

    def forms(x: Tensor, g: Tensor) -> Forms:
        scaled = g * functional.rms_norm(x, tuple(normalized_shape), None, eps)
        return ((weight, Dense(_over_positions(scaled, kept))),)

    return Operation((weight,), x, forms)


@rule(functional.group_norm)
def group_norm(
    x: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Operation:
    """Return the operation."""

    def forms(x: Tensor, g: Tensor) -> Forms:
        scaled = g * functional.group_norm(x, num_groups, None, None, eps)
        return (weight, Dense(_over_space(scaled))), (bias, Dense(_over_space(g)))

    return Operation((weight, bias), x, forms)


@rule(functional.instance_norm)
def instance_norm(
    x: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Operation | None:
    """Return the operation; None where it keeps statistics of all records."""
    if running_mean is not None or running_var is not None or not use_input_stats:
        return None

    def forms(x: Tensor, g: Tensor) -> Forms:
        scaled = g * functional.instance_norm(x, eps=eps)
        return (weight, Dense(_over_space(scaled))), (bias, Dense(_over_space(g)))

    return Operation((weight, bias), x, forms)
