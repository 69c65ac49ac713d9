"""Rules of normalizations within a record, y_t = w * n_t + b.

The gradients are sum_t g_t * n_t for the scale and sum_t g_t for the shift. They are as small as
the parameters, so written out.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional

from dpaudit.trainer.engine.gradient_forms import DenseGradients
from dpaudit.trainer.engine.rules.registry import Operation, ParameterGradients, rule


def _over_positions(values: Tensor, kept: int) -> Tensor:
    """Sum over the dimensions between the records and the last ``kept`` ones."""
    between = values.dim() - kept - 1
    return values.flatten(1, between).sum(dim=1) if between else values


def _over_space(values: Tensor) -> Tensor:
    """Sum over the dimensions after records and channels."""
    return values.flatten(2).sum(dim=2) if values.dim() > 2 else values


@rule(functional.layer_norm)
def layer_norm(
    x: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Operation | None:
    """Rule of y = weight * x_hat + bias, where x_hat is normalized per position.

    Args:
        x: Input, shape ``(records, ..., *normalized_shape)``.
        normalized_shape: Shape of the last dimensions, which are normalized together.
        weight: Scale, or None.
        bias: Shift, or None.
        eps: Constant added to the variance.

    Returns:
        The operation, or None for a call without a dimension for records.
    """
    kept = len(normalized_shape)
    if x.dim() <= kept:
        return None

    def forms(x: Tensor, g: Tensor) -> ParameterGradients:
        scaled = g * functional.layer_norm(x, tuple(normalized_shape), None, None, eps)
        return (weight, DenseGradients(_over_positions(scaled, kept))), (
            bias, DenseGradients(_over_positions(g, kept)),
        )  # fmt: skip

    return Operation((weight, bias), x, forms)


@rule(functional.rms_norm)
def rms_norm(
    x: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
) -> Operation | None:
    """Rule of y = weight * x / rms(x).

    Args:
        x: Input, shape ``(records, ..., *normalized_shape)``.
        normalized_shape: Shape of the last dimensions, which are normalized together.
        weight: Scale, or None.
        eps: Constant added to the mean square; None for torch's default.

    Returns:
        The operation, or None for a call without a dimension for records.
    """
    kept = len(normalized_shape)
    if x.dim() <= kept:
        return None

    def forms(x: Tensor, g: Tensor) -> ParameterGradients:
        scaled = g * functional.rms_norm(x, tuple(normalized_shape), None, eps)
        return ((weight, DenseGradients(_over_positions(scaled, kept))),)

    return Operation((weight,), x, forms)


@rule(functional.group_norm)
def group_norm(
    x: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Operation:
    """Rule of y = weight * x_hat + bias, where x_hat is normalized per group of channels.

    Args:
        x: Input, shape ``(records, channels, ...)``.
        num_groups: Number of groups of channels.
        weight: Scale per channel, or None.
        bias: Shift per channel, or None.
        eps: Constant added to the variance.

    Returns:
        The operation.
    """

    def forms(x: Tensor, g: Tensor) -> ParameterGradients:
        scaled = g * functional.group_norm(x, num_groups, None, None, eps)
        return (weight, DenseGradients(_over_space(scaled))), (bias, DenseGradients(_over_space(g)))

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
    """Rule of y = weight * x_hat + bias, where x_hat is normalized per record and channel.

    Args:
        x: Input, shape ``(records, channels, ...)``.
        running_mean: Not covered: a statistic of all records.
        running_var: Not covered, for the same reason.
        weight: Scale per channel, or None.
        bias: Shift per channel, or None.
        use_input_stats: Must be true; otherwise running statistics are used.
        momentum: Of running statistics; unused.
        eps: Constant added to the variance.

    Returns:
        The operation, or None if running statistics take part.
    """
    if running_mean is not None or running_var is not None or not use_input_stats:
        return None

    def forms(x: Tensor, g: Tensor) -> ParameterGradients:
        scaled = g * functional.instance_norm(x, eps=eps)
        return (weight, DenseGradients(_over_space(scaled))), (bias, DenseGradients(_over_space(g)))

    return Operation((weight, bias), x, forms)
