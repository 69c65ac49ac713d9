"""Elementwise operations of parameters with activations, by one copy of the parameter per record.

In x * w, the entries of a parameter w are repeated for every record. The tape repeats them in
advance along the dimension of the records. So torch's own backward pass gives one gradient of w
per record, with the same arithmetic as in plain training.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from dpaudit.trainer.engine.gradient_forms import DenseGradients
from dpaudit.trainer.engine.parameter_functions import tensors_in, torch_functions
from dpaudit.trainer.engine.rules.registry import Operation, ParameterGradients

ELEMENTWISE = torch_functions((
    "add", "__radd__", "sub", "__rsub__", "rsub", "subtract", "mul", "__rmul__", "multiply",
    "div", "divide", "true_divide", "__rdiv__", "__rtruediv__", "__truediv__", "pow", "__rpow__",
    "__pow__", "float_power", "where", "addcmul", "addcdiv", "lerp", "maximum", "minimum", "fmax",
    "fmin", "atan2", "hypot", "logaddexp", "logaddexp2", "xlogy", "clamp", "clip",
))  # fmt: skip
"""Functions whose result at one place depends on their arguments at that place alone."""

IN_PLACE = torch_functions((
    "add_", "__iadd__", "sub_", "__isub__", "subtract_", "mul_", "__imul__", "multiply_", "div_",
    "__idiv__", "__itruediv__", "divide_", "true_divide_", "pow_", "__ipow__", "addcmul_",
    "addcdiv_", "lerp_", "clamp_", "clip_",
))  # fmt: skip
"""The same, with the result in the place of the first argument."""

ATTENTION = functional.scaled_dot_product_attention

EXPANDING = torch_functions(("expand", "expand_as", "broadcast_to"))


def padded_shape(tensor: Tensor, dimensions: int) -> tuple[int, ...]:
    """Return the shape of a tensor with ones in front, as broadcasting sees it.

    Args:
        tensor: A tensor of at most that many dimensions.
        dimensions: Number of dimensions of the result.

    Returns:
        The shape, of that length.
    """
    return (1,) * (dimensions - tensor.dim()) + tuple(tensor.shape)


def copies_for_records(
    tensor: Tensor, shape: Sequence[int], dimension: int | None
) -> Tensor | None:
    """Return a view of a parameter that is repeated along the dimension of the records.

    Args:
        tensor: A parameter or a function of parameters.
        shape: Shape to which the operation broadcasts it.
        dimension: Dimension of the records in that shape; None to repeat along all dimensions,
            which shows where the records are.

    Returns:
        A view that requires a gradient, cut off from the graph of the parameter; None if the
        parameter has its own entries along the dimension, or a shape that does not broadcast.
    """
    if tensor.dim() > len(shape):
        return None
    own = padded_shape(tensor, len(shape))
    if any(a not in {1, b} for a, b in zip(own, shape, strict=True)):
        return None
    target = list(shape) if dimension is None else list(own)
    if dimension is not None:
        if own[dimension] != 1:
            return None
        target[dimension] = shape[dimension]
    return tensor.detach().reshape(own).requires_grad_().expand(target)


def broadcast_operation(parameter: Tensor, copies: Tensor) -> Operation:
    """Return the operation that repeats a parameter for every record.

    Args:
        parameter: A parameter or a function of parameters.
        copies: What ``copies_for_records`` returned for it.

    Returns:
        An operation with one gradient of the parameter per record.
    """
    dimensions = copies.dim()

    def at(dimension: int) -> tuple[int, Callable[[Tensor, Tensor], ParameterGradients]]:
        def forms(_: Tensor, g: Tensor) -> ParameterGradients:
            if g.dim() > dimensions:  # rows of one record lie where the records were
                g = g.sum(dim=dimension + 1)
            if g[:1].numel() != parameter.numel():
                raise ValueError("a parameter was not repeated for the records alone")
            return ((parameter, DenseGradients(g.reshape(len(g), *parameter.shape))),)

        return dimension, forms

    return Operation((parameter,), copies, at(0)[1], at)


def broadcast_shape(
    func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[int, ...] | None:
    """Return the shape to which an elementwise call broadcasts its arguments.

    Args:
        func: A function of ``ELEMENTWISE`` or ``IN_PLACE``.
        args: Its positional arguments.
        kwargs: Its keyword arguments.

    Returns:
        The shape; None if the arguments do not broadcast, or are not elementwise.
    """
    if func in IN_PLACE:
        return tuple(args[0].shape)
    if func is ATTENTION:  # the mask is added to the scores
        query, key = (args[n] if len(args) > n else kwargs[name] for n, name in enumerate(
            ("query", "key")))  # fmt: skip
        return (*query.shape[:-1], key.shape[-2])
    tensors = [*tensors_in(args), *tensors_in(kwargs.values())]
    try:
        return tuple(torch.broadcast_shapes(*(t.shape for t in tensors)))  # type: ignore[no-untyped-call]
    except RuntimeError:
        return None


def promotes_alike(args: tuple[Any, ...], kwargs: Mapping[str, Any], parameter: Tensor) -> bool:
    """Return whether a call has the same type if a parameter gets more dimensions.

    torch lets a tensor without dimensions count less in the choice of the result's type.

    Args:
        args: Positional arguments of an elementwise call.
        kwargs: Its keyword arguments.
        parameter: One of the arguments.

    Returns:
        False if the parameter has no dimensions and another type than an argument that has.
    """
    others = [t for t in (*tensors_in(args), *tensors_in(kwargs.values())) if t.dim()]
    return bool(parameter.dim()) or all(
        t.dtype == parameter.dtype for t in others if t.is_floating_point() or t.is_complex()
    )
