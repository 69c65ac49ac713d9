"""Products of a parameter with an activation: matmul, bmm and einsum, by the letters of einsum.

Each index of a product is in some of: the parameter U, the other factor x, the output y. With

- b in all three (heads or experts),
- t in x and y (positions),
- p in U and y (outputs),
- d in U and x (inputs),

y_btp = sum_d U_bpd x_btd. So the gradient of one record is G_bpd = sum_t g_btp x_btd.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from string import ascii_letters
from typing import Any

import torch
from torch import Tensor

from dpaudit.trainer.engine.gradient_forms import (
    DenseGradients,
    GradientForm,
    OuterProducts,
    SumOfForms,
)
from dpaudit.trainer.engine.parameter_functions import torch_functions
from dpaudit.trainer.engine.rules.registry import Forms, Operation, ParameterGradients

RECORD = "@"
"""Stands for the records among the letters of a tensor with records first."""


@dataclass(frozen=True)
class BatchedOuterProducts:
    """Gradients G_b = sum_t r_bt c_bt^T of a stack of matrices.

    Attributes:
        rows: The r_bt, shape ``(records, B, T, P)``.
        columns: The c_bt, shape ``(records, B, T, D)``.
        sizes: Sizes of the parameter's dimensions in the order b, p, d.
        order: The parameter's dimensions as places in that order.
        shape: The parameter's shape.
    """

    rows: Tensor
    columns: Tensor
    sizes: tuple[int, ...]
    order: tuple[int, ...]
    shape: torch.Size

    @cached_property
    def _each(self) -> OuterProducts:
        """One form for records times matrices."""
        return OuterProducts(self.rows.flatten(0, 1), self.columns.flatten(0, 1))

    def _shaped(self, values: Tensor) -> Tensor:
        """Return (..., B, P, D) in the parameter's shape."""
        front = values.shape[:-3]
        places = (*range(len(front)), *(len(front) + place for place in self.order))
        found = values.reshape(*front, *self.sizes).permute(places)
        return found.reshape(*front, *self.shape)

    def square_norms(self) -> Tensor:
        """Return squared norms, added over the matrices of the stack."""
        if not self.rows.shape[1]:
            return self.rows.new_zeros(len(self.rows), dtype=torch.float64)
        return self._each.square_norms().view(self.rows.shape[:2]).sum(dim=1)

    def weighted(self, factors: Tensor) -> Tensor:
        """Return one matrix product over records and positions per matrix of the stack."""
        rows = self.rows * factors.to(self.rows.dtype)[:, None, None, None]
        rows, columns = (t.transpose(0, 1).flatten(1, 2) for t in (rows, self.columns))
        return self._shaped(torch.bmm(rows.mT, columns))

    def dense(self) -> Tensor:
        """Return the gradients written out."""
        each = self._each.dense()
        return self._shaped(each.view(*self.rows.shape[:2], *each.shape[1:]))

    def only(self, which: Tensor) -> BatchedOuterProducts:
        """Return the selected records."""
        return replace(self, rows=self.rows[which], columns=self.columns[which])

    def grouped(self, rows: int) -> BatchedOuterProducts:
        """Return forms in which the positions of consecutive rows are one record's."""
        merged = []
        for values in (self.rows, self.columns):
            apart = values.reshape(-1, rows, *values.shape[1:])
            merged.append(apart.transpose(1, 2).flatten(2, 3))
        return replace(self, rows=merged[0], columns=merged[1])

    def joined(self, others: Sequence[GradientForm]) -> GradientForm:
        """Return the sum with those of other uses, whose letters may differ."""
        return SumOfForms((self, *others))


@dataclass(frozen=True)
class Product:
    """A product of two tensors, with one letter per dimension.

    Attributes:
        left: Letters of the first factor.
        right: Letters of the second factor.
        output: Letters of the result.
    """

    left: str
    right: str
    output: str


def _product_of_matrices(a: Tensor, b: Tensor) -> Product | None:
    """Return the letters of ``torch.matmul``."""
    if not a.dim() or not b.dim():
        return None
    most = max(a.dim(), b.dim(), 2) - 2
    batch = ascii_letters[-most:] if most else ""
    left = batch[most - max(0, a.dim() - 2) :] + ("ij" if a.dim() > 1 else "j")
    right = batch[most - max(0, b.dim() - 2) :] + ("jk" if b.dim() > 1 else "j")
    after = ("i" if a.dim() > 1 else "") + ("k" if b.dim() > 1 else "")
    return Product(left, right, batch + after)


def _product_of_equation(equation: Any, *factors: Any) -> Product | None:
    """Return the letters of ``torch.einsum`` of two tensors."""
    if len(factors) == 1 and isinstance(factors[0], list | tuple):
        factors = tuple(factors[0])
    if not isinstance(equation, str) or len(factors) != 2 or "->" not in equation:
        return None
    inputs, output = equation.replace(" ", "").split("->")
    parts = inputs.split(",")
    if len(parts) != 2:
        return None
    free = [letter for letter in ascii_letters if letter not in equation]
    hidden = [
        f.dim() - len(part.replace("...", "")) for f, part in zip(factors, parts, strict=True)
    ]
    dots = "".join(free[: max(*hidden, 0)])
    left, right = (
        part.replace("...", dots[len(dots) - number :]) if "..." in part else part
        for part, number in zip(parts, hidden, strict=True)
    )
    found = Product(left, right, output.replace("...", dots))
    fits = all(len(part) == f.dim() for part, f in zip((left, right), factors, strict=True))
    return found if fits else None


def _factors(
    func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[Product, Tensor, Tensor] | None:
    """Return the letters and the factors of a call; None for what is no plain product."""
    if kwargs:
        return None
    if func is torch.einsum:
        product = _product_of_equation(*args)
        pair = args[1] if len(args) == 2 else args[1:]
    else:
        pair = args[::-1] if func in REVERSED else args
        if len(pair) != 2 or not all(isinstance(t, Tensor) for t in pair):
            return None
        product = _product_of_matrices(*pair)
    return None if product is None else (product, pair[0], pair[1])


REVERSED = torch_functions(("__rmatmul__",))
PRODUCTS = torch_functions(("matmul", "__matmul__", "__rmatmul__", "mm", "bmm", "mv")) | {
    torch.einsum
}
"""Functions that multiply two tensors and add over some of their indices."""


def product_operation(
    func: Any,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    is_parameter: Callable[[Tensor], bool],
) -> Operation | None:
    """Return the operation of a product of a parameter with an activation.

    Args:
        func: A function of ``PRODUCTS``.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
        is_parameter: Tells which factor is a parameter or a function of parameters.

    Returns:
        The operation, or None for a call that is not covered.
    """
    found = _factors(func, args, kwargs)
    if found is None:
        return None
    product, left, right = found
    if is_parameter(left) == is_parameter(right):
        return None
    if is_parameter(left):
        return _operation(left, product.left, right, product.right, product.output)
    return _operation(right, product.right, left, product.left, product.output)


def _operation(u: Tensor, own: str, x: Tensor, other: str, output: str) -> Operation | None:
    """Return the operation of a product of ``u`` with the activation ``x``."""
    sizes = dict.fromkeys(own + other, 1)
    for letters, tensor in ((own, u), (other, x)):
        if len(set(letters)) != len(letters):
            return None
        for letter, size in zip(letters, tensor.shape, strict=True):
            sizes[letter] = max(size, sizes[letter]) if size and sizes[letter] else 0
    # A dimension of length 1 that is repeated is none of the parameter's.
    kept = "".join(letter for letter, n in zip(own, u.shape, strict=True) if n == sizes[letter])
    if any(letter not in other + output for letter in kept) or len(set(output)) != len(output):
        return None
    if any(letter not in other + own for letter in output):
        return None
    shape = [sizes[letter] for letter in other]

    def at(dimension: int) -> tuple[int, Forms]:
        records = output[dimension]
        if records in kept or records not in other:
            raise ValueError("the parameter has rows of its own for the records")

        def forms(x: Tensor, g: Tensor) -> ParameterGradients:
            if len(x) != len(g):
                raise ValueError("records have rows in places that differ")
            return ((u, _gradients(u, kept, (x, other), (g, output), records)),)

        return other.index(records), forms

    return Operation((u,), x.expand(shape), at(0)[1] if output and _may(at) else _no_forms, at)


def _may(at: Callable[[int], object]) -> bool:
    """Return whether records may be in the first dimension."""
    try:
        at(0)
    except ValueError:
        return False
    return True


def _no_forms(_: Tensor, __: Tensor) -> ParameterGradients:
    """Refuse a layout without a dimension of records."""
    raise ValueError("the place of the records is unknown")


def _gradients(
    u: Tensor, kept: str, x: tuple[Tensor, str], g: tuple[Tensor, str], records: str
) -> GradientForm:
    """Return the per-record gradients of a parameter from both factors, with records first."""
    (one, other), (two, output) = (_with_records(*pair, records) for pair in (x, g))
    summed = [other.index(letter) for letter in other if letter not in kept + output]
    if summed:
        one = one.sum(dim=summed)
        other = "".join(letter for letter in other if letter in kept + output)
    batch = [letter for letter in kept if letter in other and letter in output]
    outputs = [letter for letter in kept if letter in output and letter not in other]
    inputs = [letter for letter in kept if letter in other and letter not in output]
    positions = [
        letter for letter in output if letter in other and letter not in kept and letter != RECORD
    ]
    rows, columns = (
        _arranged(tensor, letters, [[RECORD], batch, positions, last])
        for tensor, letters, last in ((two, output, outputs), (one, other, inputs))
    )
    if not batch and len(outputs) == len(inputs) == 1 and u.dim() == 2:
        rows, columns = rows.squeeze(1), columns.squeeze(1)
        straight = kept.index(outputs[0]) < kept.index(inputs[0])
        return OuterProducts(rows, columns) if straight else OuterProducts(columns, rows)
    letters = [*batch, *outputs, *inputs]
    sizes = {letter: n for t, names in ((two, output), (one, other))
             for letter, n in zip(names, t.shape, strict=True)}  # fmt: skip
    order = tuple(letters.index(letter) for letter in kept)
    places = tuple(sizes[letter] for letter in letters)
    form = BatchedOuterProducts(rows, columns, places, order, u.shape)
    # Few numbers per record: written out, they can be added to those of other uses.
    return DenseGradients(form.dense()) if u.numel() <= rows.shape[2] else form


def _with_records(tensor: Tensor, letters: str, records: str) -> tuple[Tensor, str]:
    """Return the letters of a tensor whose records were brought to the front."""
    if tensor.dim() > len(letters):  # rows of one record stay where the records were
        return tensor, RECORD + letters
    return tensor, RECORD + letters.replace(records, "")


def _arranged(tensor: Tensor, letters: str, groups: Sequence[Sequence[str]]) -> Tensor:
    """Return a tensor with one dimension per group of letters, in their order."""
    places = [letters.index(letter) for group in groups for letter in group]
    shape = [math.prod(tensor.shape[letters.index(letter)] for letter in group) for group in groups]
    return tensor.permute(places).reshape(shape)
