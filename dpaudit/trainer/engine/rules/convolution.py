"""Convolutions: at each position, an outer product of the output's gradient and a patch."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional

from dpaudit.trainer.engine.forms import (
    Dense,
    Form,
    OuterProducts,
    square_norms_of_rows,
)
from dpaudit.trainer.engine.rules.registry import Forms, Operation, rule

PATCHES_AT_ONCE = 2**22  # numbers: 16 MB; a matter of speed alone

Numbers = tuple[int, ...]
Whole = int | Numbers


def _each(value: Whole, dimensions: int) -> Numbers:
    return (value,) * dimensions if isinstance(value, int) else tuple(value)


def _padding(padding: str | Whole, kernel: torch.Size, dilation: Numbers) -> Numbers | None:
    """Return the padding in numbers; None where it is not the same on both sides."""
    if padding == "valid":
        return (0,) * len(kernel)
    if padding == "same":
        whole = tuple(d * (k - 1) for d, k in zip(dilation, kernel, strict=True))
        return None if any(w % 2 for w in whole) else tuple(w // 2 for w in whole)
    return None if isinstance(padding, str) else _each(padding, len(kernel))


@dataclass(frozen=True)
class Geometry:
    """What a convolution's backward pass is told, in torch's order."""

    stride: Numbers
    padding: Numbers
    dilation: Numbers
    groups: int

    @property
    def unfolds(self) -> bool:
        """Whether patches can be laid out as columns: in one or two dimensions, ungrouped."""
        return len(self.stride) < 3 and self.groups == 1

    def weight_gradient(self, x: Tensor, g: Tensor, weight: Tensor) -> Tensor:
        """Return the weight's gradient, summed over records."""
        still = (0,) * len(self.stride)
        found: Tensor = torch.ops.aten.convolution_backward(
            g, x, weight, None, self.stride, self.padding, self.dilation, False, still,
            self.groups, [False, True, False],
        )[1]  # fmt: skip
        return found

    def patches(self, x: Tensor, kernel: torch.Size) -> Tensor:
        """Return the input under each position, shape ``(records, patch, positions)``."""
        flat = x.dim() == 3  # one dimension is two of which the first has length 1
        ones, none = ((1,), (0,)) if flat else ((), ())
        return functional.unfold(
            x[:, :, None] if flat else x,
            ones + tuple(kernel),
            dilation=ones + self.dilation,
            padding=none + self.padding,
            stride=ones + self.stride,
        )


@dataclass(frozen=True)
class Convolved:
    """Gradients of a convolution's weight: at each position, an outer product with a patch.

    Attributes:
        x: The input, shape ``(records * images, channels, ...)``.
        g: The output's gradient, shape ``(records * images, channels, ...)``.
        weight: The weight, for its shape.
        geometry: How patches lie.
        images: How many images each record has, one after the other.
    """

    x: Tensor
    g: Tensor
    weight: Tensor
    geometry: Geometry
    images: int = 1

    @property
    def _by_inner_products(self) -> bool:
        positions, outputs = self.images * math.prod(self.g.shape[2:]), self.weight.shape[0]
        patch = math.prod(self.weight.shape[1:])
        return self.geometry.unfolds and positions * (outputs + patch) <= outputs * patch

    @cached_property
    def _written_out(self) -> Tensor:
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
        """Write the gradients of some records at once: fewer cost more calls, more cost memory."""
        numbers = math.prod(self.g.shape[2:]) * math.prod(self.weight.shape[1:])
        few = max(1, PATCHES_AT_ONCE // max(1, numbers))
        rows = values.flatten(2)
        for start in range(0, len(values), few):
            some = slice(start, start + few)
            patches = self.geometry.patches(self.x[some], self.weight.shape[2:])
            torch.bmm(self.g[some].flatten(2), patches.mT, out=rows[some])

    def square_norms(self) -> Tensor:
        """See ``Form``."""
        if not self._by_inner_products:
            return square_norms_of_rows(self._written_out)
        patches = self.geometry.patches(self.x, self.weight.shape[2:]).mT
        return OuterProducts(self.g.flatten(2).mT, patches).grouped(self.images).square_norms()

    def weighted(self, factors: Tensor) -> Tensor:
        """See ``Form``."""
        if "_written_out" in self.__dict__:
            return Dense(self._written_out).weighted(factors)
        each = factors.to(self.g.dtype).repeat_interleave(self.images)
        scaled = self.g * each.view(-1, *[1] * (self.g.dim() - 1))
        return self.geometry.weight_gradient(self.x, scaled, self.weight)

    def dense(self) -> Tensor:
        """See ``Form``."""
        return self._written_out

    def only(self, which: Tensor) -> Form:
        """See ``Form``: what is written out stays so, or its sum might be rounded otherwise."""
        if "_written_out" in self.__dict__:
            return Dense(self._written_out[which])
        each = which.repeat_interleave(self.images)
        return replace(self, x=self.x[each], g=self.g[each])

    def grouped(self, rows: int) -> Convolved:
        """See ``Form``."""
        return replace(self, images=self.images * rows)

    def joined(self, others: Sequence[Form]) -> Form:
        """See ``Form``: convolutions of one weight at several places are written out."""
        return Dense(sum((other.dense() for other in others), start=self.dense()))


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
        geometry = Geometry(_each(stride, dimensions), pad, spread, groups)

        def forms(x: Tensor, g: Tensor) -> Forms:
            gradients = Convolved(x, g, weight.detach().to(x.dtype), geometry)
            return (weight, gradients), (bias, Dense(g.flatten(2).sum(dim=2)))

        return Operation((weight, bias), x, forms)

    return convolution


rule(functional.conv1d)(_rule_for(1))
rule(functional.conv2d)(_rule_for(2))
rule(functional.conv3d)(_rule_for(3))
