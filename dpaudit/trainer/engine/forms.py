"""What per-record gradients of one parameter look like before they are written out.

A layer's gradient of one record is a sum of few outer products, or touches few rows of a
table: its norm, and the sum over records once each is scaled, cost much less than the
gradients themselves (Goodfellow 2015, arXiv:1510.01799; Li et al. 2022, arXiv:2110.05679;
Bu et al. 2023, arXiv:2210.00038).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, Self

import torch
from torch import Tensor

# A norm must not come out too small. That of a sum of outer products is taken from T^2
# inner products in float32: where they cancel, their rounding may be all that is left. It
# is at most about this much of (sum_t |row_t| |column_t|)^2, and is added.
ROUNDING = 2.0**-21
RECORDS_AT_ONCE = 64
PART = 1024


class Form(Protocol):
    """Per-record gradients of one parameter, not necessarily written out."""

    def square_norms(self) -> Tensor:
        """Return each record's squared norm, never too small; shape ``(records,)``, float64."""

    def weighted(self, factors: Tensor) -> Tensor:
        """Return the sum over records of factor times gradient, in the parameter's shape."""

    def dense(self) -> Tensor:
        """Return the gradients themselves, shape ``(records, *parameter)``."""

    def only(self, which: Tensor) -> Form:
        """Return the same of some records: a mask of shape ``(records,)``."""

    def grouped(self, rows: int) -> Form:
        """Return each record's sum, where every ``rows`` gradients in a row are of one record."""

    def joined(self, others: Sequence[Self]) -> Form:
        """Return the sum with further gradients of the same parameter and kind."""


def square_norms_of_rows(values: Tensor) -> Tensor:
    """Return the squared norm of each ``values[i]`` in float64; too large for float32: inf.

    A long row is summed in parts, as rounding grows with the length of a sum in float32.
    """
    rows = values.reshape(len(values), math.prod(values.shape[1:]))
    whole = rows.shape[1] // PART * PART
    parts: Tensor = torch.linalg.vector_norm(
        rows[:, :whole].reshape(len(rows), whole // PART, PART), dim=2
    )
    rest: Tensor = torch.linalg.vector_norm(rows[:, whole:], dim=1)
    return (parts.double().square().sum(dim=1) + rest.double().square()) * (1 + ROUNDING)


def _end_to_end(values: Tensor, rows: int) -> Tensor:
    """Return (records * rows, T, ...) as (records, rows * T, ...)."""
    _, length, *rest = values.shape
    return values.reshape(-1, rows * length, *rest)


@dataclass(frozen=True)
class Dense:
    """Gradients written out: ``values`` of shape ``(records, *parameter)``."""

    values: Tensor

    def square_norms(self) -> Tensor:
        """See ``Form``."""
        return square_norms_of_rows(self.values)

    def weighted(self, factors: Tensor) -> Tensor:
        """See ``Form``."""
        rows = self.values.reshape(len(self.values), math.prod(self.values.shape[1:]))
        return (factors.to(self.values.dtype) @ rows).view(self.values.shape[1:])

    def dense(self) -> Tensor:
        """See ``Form``."""
        return self.values

    def only(self, which: Tensor) -> Dense:
        """See ``Form``."""
        return Dense(self.values[which])

    def grouped(self, rows: int) -> Dense:
        """See ``Form``."""
        return Dense(self.values.reshape(-1, rows, *self.values.shape[1:]).sum(dim=1))

    def joined(self, others: Sequence[Dense]) -> Dense:
        """See ``Form``."""
        return Dense(sum((other.values for other in others), start=self.values))


@dataclass(frozen=True)
class OuterProducts:
    """Gradients sum_t rows_t (x) columns_t of a matrix.

    Attributes:
        rows: Shape ``(records, T, p)``.
        columns: Shape ``(records, T, d)``; the parameter has shape ``(p, d)``.
    """

    rows: Tensor
    columns: Tensor

    @property
    def _by_inner_products(self) -> bool:
        """Whether T^2 inner products cost less than the p d entries of a gradient."""
        terms, p, d = self.rows.shape[1], self.rows.shape[2], self.columns.shape[2]
        return terms * (p + d) <= p * d

    @cached_property
    def _written_out(self) -> Tensor:
        return torch.bmm(self.rows.mT, self.columns)

    def square_norms(self) -> Tensor:
        """See ``Form``."""
        if not self._by_inner_products:
            return square_norms_of_rows(self._written_out)
        if self.rows.shape[1] == 1:
            lengths: Tensor = torch.linalg.vector_norm(self.rows.squeeze(1), dim=1)
            lengths = lengths * torch.linalg.vector_norm(self.columns.squeeze(1), dim=1)
            return lengths.double().square() * (1 + ROUNDING)
        products = torch.bmm(self.rows, self.rows.mT).mul_(torch.bmm(self.columns, self.columns.mT))
        # Of each outer product with itself: the diagonal, whose terms are squares and cancel
        # nothing.
        lengths = products.diagonal(dim1=1, dim2=2).double().clamp(min=0.0).sqrt()
        rounding = ROUNDING * lengths.sum(dim=1).square()
        return products.sum(dim=(1, 2)).double().clamp(min=0.0) + rounding

    def weighted(self, factors: Tensor) -> Tensor:
        """See ``Form``."""
        if "_written_out" in self.__dict__:
            return Dense(self._written_out).weighted(factors)
        rows, columns = self.rows, self.columns
        each = factors.to(rows.dtype)[:, None, None]
        if rows.shape[2] <= columns.shape[2]:  # the smaller one is scaled
            rows = rows * each
        else:
            columns = columns * each
        return rows.flatten(0, 1).mT @ columns.flatten(0, 1)

    def dense(self) -> Tensor:
        """See ``Form``."""
        return self._written_out

    def only(self, which: Tensor) -> Form:
        """See ``Form``: what is written out stays so, or its sum might be rounded otherwise."""
        if "_written_out" in self.__dict__:
            return Dense(self._written_out[which])
        return OuterProducts(self.rows[which], self.columns[which])

    def grouped(self, rows: int) -> OuterProducts:
        """See ``Form``."""
        return OuterProducts(_end_to_end(self.rows, rows), _end_to_end(self.columns, rows))

    def joined(self, others: Sequence[OuterProducts]) -> OuterProducts:
        """See ``Form``."""
        return OuterProducts(
            torch.cat([self.rows, *(other.rows for other in others)], dim=1),
            torch.cat([self.columns, *(other.columns for other in others)], dim=1),
        )


@dataclass(frozen=True)
class TableRows:
    """Gradients of a table's rows that were looked up.

    Attributes:
        index: Shape ``(records, T)``, which rows.
        values: Shape ``(records, T, d)``, what each look-up adds to its row.
        size: How many rows the table has.
    """

    index: Tensor
    values: Tensor
    size: int

    @cached_property
    def _touched(self) -> tuple[Tensor, Tensor, Tensor]:
        """Record and row of each entry that is touched, and its gradient, added up."""
        records, width = len(self.index), self.values.shape[2]
        start = torch.arange(records, device=self.index.device)[:, None] * self.size
        keys, place = torch.unique(self.index + start, return_inverse=True)
        sums = self.values.new_zeros(len(keys), width)
        sums.index_add_(0, place.flatten(), self.values.reshape(-1, width))
        return keys // self.size, keys % self.size, sums

    def square_norms(self) -> Tensor:
        """See ``Form``."""
        record, _, sums = self._touched
        squares = square_norms_of_rows(sums)
        return squares.new_zeros(len(self.index)).index_add_(0, record, squares)

    def weighted(self, factors: Tensor) -> Tensor:
        """See ``Form``."""
        record, row, sums = self._touched
        total = sums.new_zeros(self.size, sums.shape[1])
        return total.index_add_(0, row, sums * factors.to(sums.dtype)[record, None])

    def dense(self) -> Tensor:
        """See ``Form``."""
        record, row, sums = self._touched
        values = sums.new_zeros(len(self.index), self.size, sums.shape[1])
        values[record, row] = sums
        return values

    def only(self, which: Tensor) -> TableRows:
        """See ``Form``."""
        return TableRows(self.index[which], self.values[which], self.size)

    def grouped(self, rows: int) -> TableRows:
        """See ``Form``."""
        return TableRows(_end_to_end(self.index, rows), _end_to_end(self.values, rows), self.size)

    def joined(self, others: Sequence[TableRows]) -> TableRows:
        """See ``Form``."""
        return TableRows(
            torch.cat([self.index, *(other.index for other in others)], dim=1),
            torch.cat([self.values, *(other.values for other in others)], dim=1),
            self.size,
        )


@dataclass(frozen=True)
class Several:
    """The sum of forms of different kinds, as of a table that is used as a matrix as well."""

    forms: tuple[Form, ...]

    def square_norms(self) -> Tensor:
        """See ``Form``: a few records at a time, as they have to be written out.

        Where the forms cancel, rounding of each is left: as for inner products, it is added.
        """
        each = torch.stack([form.square_norms().sqrt() for form in self.forms])
        rounding = ROUNDING * each.sum(dim=0).square()
        place = torch.arange(len(rounding), device=rounding.device)
        parts = [
            square_norms_of_rows(self.only((place >= at) & (place < at + RECORDS_AT_ONCE)).dense())
            for at in range(0, len(rounding), RECORDS_AT_ONCE)
        ]
        return torch.cat([rounding[:0], *parts]) + rounding

    def weighted(self, factors: Tensor) -> Tensor:
        """See ``Form``."""
        first, *others = (form.weighted(factors) for form in self.forms)
        return sum(others, start=first)

    def dense(self) -> Tensor:
        """See ``Form``."""
        first, *others = (form.dense() for form in self.forms)
        return sum(others, start=first)

    def only(self, which: Tensor) -> Several:
        """See ``Form``."""
        return Several(tuple(form.only(which) for form in self.forms))

    def grouped(self, rows: int) -> Several:
        """See ``Form``."""
        return Several(tuple(form.grouped(rows) for form in self.forms))

    def joined(self, others: Sequence[Several]) -> Several:
        """See ``Form``."""
        return Several((*self.forms, *(form for other in others for form in other.forms)))


def merged(forms: Sequence[Form]) -> Form:
    """Return the sum of several uses' gradients, whose norm is that of the sum.

    Uses of one kind become one of that kind: outer products and look-ups are put one after
    the other, as if the operation had seen a longer record.
    """
    first = forms[0]
    if len(forms) == 1:
        return first
    if all(type(form) is type(first) for form in forms):
        return first.joined(forms[1:])
    return Several(tuple(forms))
