"""Rules of convolutions: unfolded, a convolution is a linear layer on the patches of the input."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import torch
from torch import Tensor
from torch.nn import functional

from dpaudit.trainer.engine.gradient_forms import (
    DenseGradients,
    GradientForm,
    OuterProducts,
    square_norms_of_rows,
)
from dpaudit.trainer.engine.rules.registry import Operation, ParameterGradients, rule

PATCHES_AT_ONCE = 2**22
"""Entries of patches that are unfolded at once, 16 MB; affects speed and memory alone."""

MOST_PLACES, PLACES_KEPT = 2**18, 16
"""Entries of one image's patches up to which their places are kept, 1 MB, and images of how many
kinds; affects speed and memory alone."""

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
            return found.view(len(x), math.prod(positions), x.shape[1] * math.prod(kernel)).mT
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
    windows = torch.arange(math.prod(shape), dtype=torch.int32).view(shape)
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
    def _written_out(self) -> tuple[Tensor, ...]:
        """The gradients of consecutive records, each ``(some, *weight)``; computed once.

        In parts, as the C library maps memory of large blocks anew in every step.
        """
        images, geometry = self.images, self.geometry
        if geometry.unfolds and images == 1 and len(self.x):
            return tuple(map(self._by_patches, self._some_at_once()))
        records = len(self.x) // images
        values = self.weight.new_empty(records, *self.weight.shape)
        for i in range(records):
            x, g = (t[i * images : (i + 1) * images] for t in (self.x, self.g))
            values[i] = geometry.weight_gradient(x, g, self.weight)
        return (values,)

    def _by_patches(self, some: slice) -> Tensor:
        """Return the gradients of some records of one image each."""
        patches = self.geometry.patches(self.x[some], self.weight.shape[2:])
        found = torch.bmm(self.g[some].flatten(2), patches.mT)
        return found.view(len(found), *self.weight.shape)

    def _some_at_once(self) -> Iterator[slice]:
        """Yield the images of some records at once, which bounds calls and memory."""
        numbers = math.prod(self.g.shape[2:]) * math.prod(self.weight.shape[1:])
        few = self.images * max(1, PATCHES_AT_ONCE // max(1, numbers * self.images))
        for start in range(0, len(self.x), few):
            yield slice(start, start + few)

    def square_norms(self) -> Tensor:
        """Return squared norms by Gram matrices of patches, or written out if that is cheaper."""
        if not self._by_inner_products:
            return torch.cat([square_norms_of_rows(part) for part in self._written_out])
        squares = [self._square_norms_of(some) for some in self._some_at_once()]
        return torch.cat(squares) if squares else self.g.new_zeros(0, dtype=torch.float64)

    def _square_norms_of(self, some: slice) -> Tensor:
        """Return squared norms of the records that some images belong to."""
        columns = self.geometry.patches(self.x[some], self.weight.shape[2:]).mT
        rows = self.g[some].flatten(2).mT
        return OuterProducts(rows, columns).grouped(self.images).square_norms()

    def weighted(self, factors: Tensor) -> Tensor:
        """Return sum_i c_i g_i as one weight gradient of the scaled output gradients."""
        if "_written_out" in self.__dict__:
            parts = self._written_out
            rows = torch.split(factors, [len(part) for part in parts])
            first, *others = map(_weighted, parts, rows)
            for other in others:
                first += other
            return first
        each = factors.to(self.g.dtype).repeat_interleave(self.images)
        scaled = self.g * each.view(-1, *[1] * (self.g.dim() - 1))
        return self.geometry.weight_gradient(self.x, scaled, self.weight)

    def dense(self) -> Tensor:
        """Return the gradients written out."""
        return torch.cat(self._written_out)

    def only(self, which: Tensor) -> GradientForm:
        """Return the selected records; written-out gradients stay so, for equal rounding."""
        if "_written_out" in self.__dict__:
            return DenseGradients(self.dense()[which])
        each = which.repeat_interleave(self.images)
        return replace(self, x=self.x[each], g=self.g[each])

    def grouped(self, rows: int) -> ConvolutionGradients:
        """Return forms in which consecutive rows are images of one record."""
        return replace(self, images=self.images * rows)

    def joined(self, others: Sequence[GradientForm]) -> GradientForm:
        """Return the sum written out, as calls may differ in positions and geometry."""
        return DenseGradients(sum((other.dense() for other in others), start=self.dense()))


def _weighted(values: Tensor, factors: Tensor) -> Tensor:
    """Return the weighted sum of gradients that are written out."""
    return DenseGradients(values).weighted(factors)


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


def _transposed_rule(dimensions: int) -> Callable[..., Operation | None]:
    """Return the rule of transposed convolutions with that many dimensions of space.

    The operation is the adjoint of a convolution from its output to its input. So the weight's
    gradient is that of this convolution, with input and output gradient exchanged.
    """

    def convolution(
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: IntOrTuple = 1,
        padding: IntOrTuple = 0,
        output_padding: IntOrTuple = 0,
        groups: int = 1,
        dilation: IntOrTuple = 1,
    ) -> Operation | None:
        if x.dim() != dimensions + 2 or isinstance(padding, str):
            return None
        stride, padding, dilation = (_each(v, dimensions) for v in (stride, padding, dilation))
        geometry = ConvolutionGeometry(stride, padding, dilation, groups)

        def forms(x: Tensor, g: Tensor) -> ParameterGradients:
            gradients = ConvolutionGradients(g, x, weight.detach().to(x.dtype), geometry)
            return (weight, gradients), (bias, DenseGradients(g.flatten(2).sum(dim=2)))

        return Operation((weight, bias), x, forms)

    return convolution


rule(functional.conv_transpose1d)(_transposed_rule(1))
rule(functional.conv_transpose2d)(_transposed_rule(2))
rule(functional.conv_transpose3d)(_transposed_rule(3))
