"""Rules: per-record gradients of the parameters of one operation.

A rule gets the arguments of one call. It returns which of them may be parameters, and a
function from (input, output gradient), both with records first, to the per-record gradients
of those parameters. None means that the call has no rule.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from dpaudit.trainer.engine.gradient_forms import (
    DenseGradients,
    EmbeddingRows,
    GradientForm,
    OuterProducts,
    square_norms_of_rows,
)

ParameterGradients = Sequence[tuple[Tensor | None, GradientForm | None]]
"""Pairs of an argument, None if it is missing, and its per-record gradients."""


@dataclass(frozen=True)
class Operation:
    """One call of an operation that has a rule.

    Attributes:
        parameters: The arguments that are parameters if they are trained.
        input: The tensor on which the gradients depend besides the output's gradient. Its
            records are where those of the output are.
        forms: Function of (input, output gradient), both with records first, that returns the
            gradients; called only if at least one parameter is trained.
    """

    parameters: tuple[Tensor | None, ...]
    input: Tensor
    forms: Callable[[Tensor, Tensor], ParameterGradients]


Rule = Callable[..., Operation | None]
"""Function of an operation's arguments; None if the rule does not cover the call."""

RULES: dict[Callable[..., Any], Rule] = {}
"""The registered rules, by the function of torch that they cover."""


def rule(*operations: Callable[..., Any]) -> Callable[[Rule], Rule]:
    """Return a decorator that registers a rule.

    Args:
        *operations: Functions of torch that the rule covers.

    Returns:
        The decorator, which returns the rule unchanged.
    """

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(operations, function))
        return function

    return register


# Linear layers y_t = W x_t + b: the gradients are sum_t g_t x_t^T and sum_t g_t.


def flatten_positions(tensor: Tensor) -> Tensor:
    """Return (records, ..., features) as (records, positions, features).

    Args:
        tensor: At least two dimensions.

    Returns:
        A tensor of three dimensions; one position if there were two.
    """
    return tensor[:, None] if tensor.dim() == 2 else tensor.flatten(1, -2)


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
        rows = flatten_positions(g)
        return (weight, OuterProducts(rows, flatten_positions(x))), (
            bias,
            DenseGradients(rows.sum(dim=1)),
        )

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
            bias,
            DenseGradients(columns.sum(dim=1)),
        )

    return Operation((weight, bias), x, forms)


# Embedding tables: the gradient is nonzero only in the rows that were looked up.


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


# Normalizations within a record, y_t = w * n_t + b: the gradients are sum_t g_t * n_t for the
# scale and sum_t g_t for the shift. They are as small as the parameters, so written out.


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


# Convolutions: unfolded, a convolution is a linear layer on the patches of the input.

PATCHES_AT_ONCE = 2**22
"""Entries of patches that are unfolded at once, 16 MB; affects speed and memory alone."""

MOST_PLACES, PLACES_KEPT = 2**16, 64
"""Entries of one image's patches up to which their places are kept, and images of how many kinds;
affects speed and memory alone."""

IntTuple = tuple[int, ...]
IntOrTuple = int | IntTuple


def _each(value: IntOrTuple, dimensions: int) -> IntTuple:
    """Return a setting per dimension from a single value or a tuple."""
    return (value,) * dimensions if isinstance(value, int) else tuple(value)


def _padding(padding: str | IntOrTuple, kernel: torch.Size, dilation: IntTuple) -> IntTuple | None:
    """Return the padding in numbers; None if it differs between the two sides."""
    if padding == "valid":
        return (0,) * len(kernel)
    if padding == "same":
        whole = tuple(d * (k - 1) for d, k in zip(dilation, kernel, strict=True))
        return None if any(w % 2 for w in whole) else tuple(w // 2 for w in whole)
    return None if isinstance(padding, str) else _each(padding, len(kernel))


@dataclass(frozen=True)
class ConvolutionGeometry:
    """Stride, padding, dilation and groups of a convolution, one number per dimension."""

    stride: IntTuple
    padding: IntTuple
    dilation: IntTuple
    groups: int

    @property
    def unfolds(self) -> bool:
        """Whether patches can be laid out as columns: one or two dimensions, without groups."""
        return len(self.stride) < 3 and self.groups == 1

    def weight_gradient(self, x: Tensor, g: Tensor, weight: Tensor) -> Tensor:
        """Return the weight's gradient, summed over the batch.

        Args:
            x: Input, shape ``(images, channels, ...)``.
            g: Output gradient, shape ``(images, outputs, ...)``.
            weight: The weight, for its shape and type.

        Returns:
            The gradient in the weight's shape, by one call of torch's backward operation.
        """
        still = (0,) * len(self.stride)
        found: Tensor = torch.ops.aten.convolution_backward(
            g, x, weight, None, self.stride, self.padding, self.dilation, False, still,
            self.groups, [False, True, False],
        )[1]  # fmt: skip
        return found

    def patches(self, x: Tensor, kernel: torch.Size) -> Tensor:
        """Return the part of the input under each output position.

        Args:
            x: Input, shape ``(records, channels, ...)`` with one or two dimensions of space.
            kernel: The weight's shape in space.

        Returns:
            Shape ``(records, channels * kernel numbers, positions)``.
        """
        positions = self._positions(x.shape[2:], kernel)
        entries = x.shape[1] * math.prod(kernel) * math.prod(positions)
        if x.is_cpu and entries <= MOST_PLACES:
            around = [side for number in reversed(self.padding) for side in (number, number)]
            whole = functional.pad(x, around) if any(around) else x
            places = _places(tuple(whole.shape[1:]), tuple(kernel), self.stride, self.dilation)
            found = whole.flatten(1).index_select(1, places)
            # Positions first: products with output gradients then need no copy.
            return found.view(len(x), -1, x.shape[1] * math.prod(kernel)).mT
        flat = x.dim() == 3  # unfold needs two dimensions of space: add one of length 1
        ones, none = ((1,), (0,)) if flat else ((), ())
        return functional.unfold(
            x[:, :, None] if flat else x,
            ones + tuple(kernel),
            dilation=ones + self.dilation,
            padding=none + self.padding,
            stride=ones + self.stride,
        )

    def _positions(self, space: torch.Size, kernel: torch.Size) -> IntTuple:
        """Return the shape of the output in space."""
        return tuple(
            (length + 2 * padding - dilation * (size - 1) - 1) // stride + 1
            for length, padding, dilation, size, stride in zip(
                space, self.padding, self.dilation, kernel, self.stride, strict=True
            )
        )


@lru_cache(maxsize=PLACES_KEPT)
def _places(shape: IntTuple, kernel: IntTuple, stride: IntTuple, dilation: IntTuple) -> Tensor:
    """Return the places of all patches in a padded image of a shape, one patch after the other.

    Taking the entries at these places is faster than ``functional.unfold`` for small images.
    """
    windows = torch.arange(math.prod(shape)).view(shape)
    for i, (size, step, apart) in enumerate(zip(kernel, stride, dilation, strict=True)):
        # Windows of apart (size - 1) + 1 entries, of which every apart-th one counts.
        windows = windows.unfold(1 + i, apart * (size - 1) + 1, step)[..., ::apart]
    space = len(kernel)
    inside, positions = range(1 + space, 1 + 2 * space), range(1, 1 + space)
    return windows.permute(*positions, 0, *inside).reshape(-1)


@dataclass(frozen=True)
class ConvolutionGradients:
    """Gradients of a convolution's weight, as those of a linear layer on unfolded patches.

    With x_t the patch of the input under position t and g_t the output's gradient there, the
    gradient is sum_t g_t x_t^T, reshaped. So ``OuterProducts`` gives its norm.

    Attributes:
        x: Input, shape ``(records * images, channels, ...)``.
        g: Output gradient, shape ``(records * images, outputs, ...)``.
        weight: The weight, for its shape and type.
        geometry: Stride, padding, dilation and groups.
        images: Images per record, which are consecutive.
    """

    x: Tensor
    g: Tensor
    weight: Tensor
    geometry: ConvolutionGeometry
    images: int = 1

    @property
    def _by_inner_products(self) -> bool:
        """Whether Gram matrices cost less: 2 positions (outputs + patch) <= outputs patch.

        Twice, as the weighted sum then takes another pass, and written out it takes none.
        """
        positions, outputs = self.images * math.prod(self.g.shape[2:]), self.weight.shape[0]
        patch = math.prod(self.weight.shape[1:])
        return self.geometry.unfolds and 2 * positions * (outputs + patch) <= outputs * patch

    @cached_property
    def _written_out(self) -> Tensor:
        """The gradients, shape ``(records, *weight)``; computed once."""
        images, geometry = self.images, self.geometry
        records = len(self.x) // images
        values = self.weight.new_empty(records, *self.weight.shape)
        if geometry.unfolds and images == 1:
            self._write_by_patches(values)
            return values
        for i in range(records):
            x, g = (t[i * images : (i + 1) * images] for t in (self.x, self.g))
            values[i] = geometry.weight_gradient(x, g, self.weight)
        return values

    def _write_by_patches(self, values: Tensor) -> None:
        """Write gradients of some records at once, which bounds calls and memory."""
        numbers = math.prod(self.g.shape[2:]) * math.prod(self.weight.shape[1:])
        few = max(1, PATCHES_AT_ONCE // max(1, numbers))
        rows = values.flatten(2)
        for start in range(0, len(values), few):
            some = slice(start, start + few)
            patches = self.geometry.patches(self.x[some], self.weight.shape[2:])
            torch.bmm(self.g[some].flatten(2), patches.mT, out=rows[some])

    def square_norms(self) -> Tensor:
        """Return squared norms by Gram matrices of patches, or written out if that is cheaper."""
        if not self._by_inner_products:
            return square_norms_of_rows(self._written_out)
        patches = self.geometry.patches(self.x, self.weight.shape[2:]).mT
        return OuterProducts(self.g.flatten(2).mT, patches).grouped(self.images).square_norms()

    def weighted(self, factors: Tensor) -> Tensor:
        """Return sum_i c_i g_i as one weight gradient of the scaled output gradients."""
        if "_written_out" in self.__dict__:
            return DenseGradients(self._written_out).weighted(factors)
        each = factors.to(self.g.dtype).repeat_interleave(self.images)
        scaled = self.g * each.view(-1, *[1] * (self.g.dim() - 1))
        return self.geometry.weight_gradient(self.x, scaled, self.weight)

    def dense(self) -> Tensor:
        """Return the gradients written out."""
        return self._written_out

    def only(self, which: Tensor) -> GradientForm:
        """Return the selected records; written-out gradients stay so, for equal rounding."""
        if "_written_out" in self.__dict__:
            return DenseGradients(self._written_out[which])
        each = which.repeat_interleave(self.images)
        return replace(self, x=self.x[each], g=self.g[each])

    def grouped(self, rows: int) -> ConvolutionGradients:
        """Return forms in which consecutive rows are images of one record."""
        return replace(self, images=self.images * rows)

    def joined(self, others: Sequence[GradientForm]) -> GradientForm:
        """Return the sum written out, as calls may differ in positions and geometry."""
        return DenseGradients(sum((other.dense() for other in others), start=self.dense()))


def _convolution_rule(dimensions: int) -> Callable[..., Operation | None]:
    """Return the rule of convolutions with that many dimensions of space."""

    def convolution(
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: IntOrTuple = 1,
        padding: str | IntOrTuple = 0,
        dilation: IntOrTuple = 1,
        groups: int = 1,
    ) -> Operation | None:
        spread = _each(dilation, dimensions)
        pad = _padding(padding, weight.shape[2:], spread)
        if x.dim() != dimensions + 2 or pad is None:
            return None
        geometry = ConvolutionGeometry(_each(stride, dimensions), pad, spread, groups)

        def forms(x: Tensor, g: Tensor) -> ParameterGradients:
            gradients = ConvolutionGradients(x, g, weight.detach().to(x.dtype), geometry)
            return (weight, gradients), (bias, DenseGradients(g.flatten(2).sum(dim=2)))

        return Operation((weight, bias), x, forms)

    return convolution


rule(functional.conv1d)(_convolution_rule(1))
rule(functional.conv2d)(_convolution_rule(2))
rule(functional.conv3d)(_convolution_rule(3))
