"""Compact forms of per-record gradients: norms and weighted sums without writing them out.

A layer's gradient of one record is a sum of few outer products, or is nonzero in few rows of
an embedding table. Its norm, and the sum over records after scaling, cost much less than the
gradients themselves.

References:
    Goodfellow (2015), arXiv:1510.01799; Li et al. (2022), arXiv:2110.05679; Bu et al.
    (2023), arXiv:2210.00038.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol, Self

import torch
from torch import Tensor

FLOAT32_ROUNDING = 2.0**-21
"""Relative rounding of float32 sums, added so that no norm is too small.

The T^2 inner products of a Gram matrix may cancel, so that only their rounding remains. It is
at most about this fraction of (sum_t |r_t| |c_t|)^2."""

RECORDS_AT_ONCE = 64
COLUMNS_AT_ONCE = 1024


class GradientForm(Protocol):
    """Protocol of the per-record gradients g_1, ..., g_n of one parameter."""

    def square_norms(self) -> Tensor:
        """Return upper bounds on |g_i|^2, tight up to rounding.

        Returns:
            Shape ``(records,)``, float64. Never below the true value, so that clipping is safe.
        """

    def weighted(self, factors: Tensor) -> Tensor:
        """Return sum_i c_i g_i.

        Args:
            factors: The factors c_i, shape ``(records,)``.

        Returns:
            The sum in the parameter's shape.
        """

    def dense(self) -> Tensor:
        """Return the gradients themselves, shape ``(records, *parameter)``."""

    def only(self, which: Tensor) -> GradientForm:
        """Return the gradients of some records.

        Args:
            which: Mask of shape ``(records,)``.

        Returns:
            The selected gradients, in the order of the batch.
        """

    def grouped(self, rows: int) -> GradientForm:
        """Return one gradient per record where ``rows`` consecutive gradients belong to one record.

        Args:
            rows: Gradients per record, which are added.

        Returns:
            Gradients of ``records // rows`` records.
        """

    def joined(self, others: Sequence[Self]) -> GradientForm:
        """Return the sum with further gradients of the same parameter.

        Args:
            others: Gradients in the same form, for the same records.

        Returns:
            Per-record sums; a norm of the result is that of the sum.
        """


def square_norms_of_rows(values: Tensor) -> Tensor:
    """Return the squared norm of each ``values[i]``, rounded up.

    A long row is summed in parts, as the rounding error of a float32 sum grows with its length.

    Args:
        values: Shape ``(records, ...)``.

    Returns:
        Shape ``(records,)``, float64; infinite where float32 overflows.
    """
    rows = values.reshape(len(values), math.prod(values.shape[1:]))
    whole = rows.shape[1] // COLUMNS_AT_ONCE * COLUMNS_AT_ONCE
    rest: Tensor = torch.linalg.vector_norm(rows[:, whole:], dim=1)
    squares = rest.double().square_()
    if whole:
        parts: Tensor = torch.linalg.vector_norm(
            rows[:, :whole].reshape(len(rows), whole // COLUMNS_AT_ONCE, COLUMNS_AT_ONCE), dim=2
        )
        squares += parts.double().square_().sum(dim=1)
    return squares.mul_(1 + FLOAT32_ROUNDING)


def merge_rows(values: Tensor, rows: int) -> Tensor:
    """Return (records * rows, T, ...) as (records, rows * T, ...).

    Args:
        values: Positions of several rows per record.
        rows: Rows per record, which are consecutive.

    Returns:
        The positions of all rows of a record, one after the other.
    """
    _, length, *rest = values.shape
    return values.reshape(-1, rows * length, *rest)


class RowNorms:
    """Norms of rows, which are taken once for a weight and its bias.

    Args:
        rows: Shape ``(records, p)``.
    """

    def __init__(self, rows: Tensor) -> None:
        self._rows = rows

    @cached_property
    def values(self) -> Tensor:
        """The norms, shape ``(records,)``."""
        found: Tensor = torch.linalg.vector_norm(self._rows, dim=1)
        return found


@dataclass(frozen=True)
class DenseGradients:
    """Gradients written out.

    Attributes:
        values: Shape ``(records, *parameter)``.
        norms: Norms of the rows, if another form takes them, too.
    """

    values: Tensor
    norms: RowNorms | None = None

    def norms_in_float32(self) -> Tensor | None:
        """Return norms of rows that another form takes, too; None for rows summed in parts."""
        if self.norms is None or self.values.shape[1] >= COLUMNS_AT_ONCE:
            return None
        return self.norms.values

    def square_norms(self) -> Tensor:
        """Return squared norms of the rows."""
        norms = self.norms_in_float32()
        if norms is None:
            return square_norms_of_rows(self.values)
        return norms.double().square_().mul_(1 + FLOAT32_ROUNDING)

    def weighted(self, factors: Tensor) -> Tensor:
        """Return the factors times the matrix of gradients."""
        values, factors = self.values, factors.to(self.values.dtype)
        if values.dim() == 2:
            return factors @ values
        rows = values.reshape(len(values), math.prod(values.shape[1:]))
        return (factors @ rows).view(values.shape[1:])

    def dense(self) -> Tensor:
        """Return the values as they are."""
        return self.values

    def only(self, which: Tensor) -> DenseGradients:
        """Return the selected rows."""
        return DenseGradients(self.values[which])

    def grouped(self, rows: int) -> DenseGradients:
        """Return sums of consecutive rows."""
        return DenseGradients(self.values.reshape(-1, rows, *self.values.shape[1:]).sum(dim=1))

    def joined(self, others: Sequence[DenseGradients]) -> DenseGradients:
        """Return elementwise sums."""
        return DenseGradients(sum((other.values for other in others), start=self.values))


class SharedInnerProducts:
    """Gram matrices of columns that several gradients have in common, computed once.

    They are dropped after the last gradient has taken them, so that few are held at a time.

    Args:
        columns: The c_t, shape ``(records, T, d)``.
        sharers: Number of gradients that have these columns.
    """

    def __init__(self, columns: Tensor, sharers: int) -> None:
        self._columns, self._left = columns, sharers
        self._found: Tensor | None = None

    def take(self) -> Tensor:
        """Return the inner products (c_s . c_t), shape ``(records, T, T)``; not to be changed."""
        found = self._found
        if found is None:
            found = torch.bmm(self._columns, self._columns.mT)
        self._left -= 1
        self._found = found if self._left > 0 else None
        return found


@dataclass(frozen=True)
class OuterProducts:
    """Gradients g = sum_t r_t c_t^T of a matrix, as of a linear layer at T positions.

    Two ways give the norm. Written out, g has p d entries. By Gram matrices,

        |g|^2 = sum_{s,t} (r_s . r_t) (c_s . c_t),

    which takes T^2 inner products of lengths p and d. The cheaper way is used.

    Attributes:
        rows: The r_t, shape ``(records, T, p)``.
        columns: The c_t, shape ``(records, T, d)``; the parameter has shape ``(p, d)``.
        norms: Norms of the r_t for T = 1, if another form takes them, too.
        shared: Inner products of the c_t, if other gradients have the same columns.
    """

    rows: Tensor
    columns: Tensor
    norms: RowNorms | None = None
    shared: SharedInnerProducts | None = None

    @property
    def by_inner_products(self) -> bool:
        """Whether Gram matrices cost less than the p d entries of a gradient: T (p + d) <= p d."""
        terms, p, d = self.rows.shape[1], self.rows.shape[2], self.columns.shape[2]
        return terms * (p + d) <= p * d

    @cached_property
    def _written_out(self) -> Tensor:
        """The gradients, shape ``(records, p, d)``; computed once."""
        return torch.bmm(self.rows.mT, self.columns)

    def norms_in_float32(self) -> Tensor | None:
        """Return |r c^T| = |r| |c| of gradients with one term; None for others."""
        if self.rows.shape[1] != 1 or not self.by_inner_products:
            return None
        norms = self.norms or RowNorms(self.rows.squeeze(1))
        lengths: Tensor = torch.linalg.vector_norm(self.columns.squeeze(1), dim=1)
        return lengths * norms.values

    def square_norms(self) -> Tensor:
        """Return squared norms by the cheaper of the two ways."""
        if not self.by_inner_products:
            return square_norms_of_rows(self._written_out)
        norms = self.norms_in_float32()
        if norms is not None:
            return norms.double().square_().mul_(1 + FLOAT32_ROUNDING)
        # products[s, t] = (r_s . r_t) (c_s . c_t); their sum is |g|^2.
        by_columns = self.shared or SharedInnerProducts(self.columns, sharers=1)
        products = torch.bmm(self.rows, self.rows.mT).mul_(by_columns.take())
        # The diagonal holds |r_t|^2 |c_t|^2, which gives the scale of the rounding error.
        lengths = products.diagonal(dim1=1, dim2=2).double().clamp(min=0.0).sqrt()
        rounding = FLOAT32_ROUNDING * lengths.sum(dim=1).square()
        return products.sum(dim=(1, 2)).double().clamp(min=0.0) + rounding

    def weighted(self, factors: Tensor) -> Tensor:
        """Return sum_{i,t} c_i r_it c_it^T as one matrix product over records and positions."""
        if "_written_out" in self.__dict__:
            return DenseGradients(self._written_out).weighted(factors)
        rows, columns = self.rows, self.columns
        each = factors.to(rows.dtype).view(-1, 1, 1)
        if rows.shape[2] <= columns.shape[2]:  # scale the smaller factor
            rows = rows * each
        else:
            columns = columns * each
        return rows.flatten(0, 1).t().mm(columns.flatten(0, 1))

    def dense(self) -> Tensor:
        """Return the gradients written out."""
        return self._written_out

    def only(self, which: Tensor) -> GradientForm:
        """Return the selected records; written-out gradients stay so, for equal rounding."""
        if "_written_out" in self.__dict__:
            return DenseGradients(self._written_out[which])
        return OuterProducts(self.rows[which], self.columns[which])

    def grouped(self, rows: int) -> OuterProducts:
        """Return forms in which the positions of consecutive rows are one record's."""
        return OuterProducts(merge_rows(self.rows, rows), merge_rows(self.columns, rows))

    def joined(self, others: Sequence[OuterProducts]) -> OuterProducts:
        """Return forms whose positions are those of all uses, one after the other."""
        return OuterProducts(
            torch.cat([self.rows, *(other.rows for other in others)], dim=1),
            torch.cat([self.columns, *(other.columns for other in others)], dim=1),
        )


@dataclass(frozen=True)
class EmbeddingRows:
    """Gradients of an embedding table, nonzero only in the rows that were looked up.

    Attributes:
        index: Row of each look-up, shape ``(records, T)``.
        values: Gradient that each look-up adds to its row, shape ``(records, T, d)``.
        size: Number of rows of the table.
    """

    index: Tensor
    values: Tensor
    size: int

    @cached_property
    def _touched(self) -> tuple[Tensor, Tensor, Tensor]:
        """Record, table row and summed gradient of each (record, row) that was looked up."""
        records, width = len(self.index), self.values.shape[2]
        start = torch.arange(records, device=self.index.device)[:, None] * self.size
        # A row that one record looks up several times has one gradient, the sum: the key of
        # (record, row) is record * size + row.
        keys, place = torch.unique(self.index + start, return_inverse=True)
        sums = self.values.new_zeros(len(keys), width)
        sums.index_add_(0, place.flatten(), self.values.reshape(-1, width))
        return keys // self.size, keys % self.size, sums

    def square_norms(self) -> Tensor:
        """Return squared norms, after repeated look-ups of a row are added."""
        record, _, sums = self._touched
        squares = square_norms_of_rows(sums)
        return squares.new_zeros(len(self.index)).index_add_(0, record, squares)

    def weighted(self, factors: Tensor) -> Tensor:
        """Return the scaled rows, added into a table of zeros."""
        return self.add_weighted(self.values.new_zeros(self.size, self.values.shape[2]), factors)

    def add_weighted(self, total: Tensor, factors: Tensor) -> Tensor:
        """Add sum_i c_i g_i to a table in place.

        Args:
            total: The table, shape ``(size, d)``.
            factors: The factors c_i, shape ``(records,)``.

        Returns:
            ``total``.
        """
        record, row, sums = self._touched
        return total.index_add_(0, row, sums * factors.to(sums.dtype)[record, None])

    def dense(self) -> Tensor:
        """Return one table per record."""
        record, row, sums = self._touched
        values = sums.new_zeros(len(self.index), self.size, sums.shape[1])
        values[record, row] = sums
        return values

    def only(self, which: Tensor) -> EmbeddingRows:
        """Return the look-ups of the selected records."""
        return EmbeddingRows(self.index[which], self.values[which], self.size)

    def grouped(self, rows: int) -> EmbeddingRows:
        """Return forms in which the look-ups of consecutive rows are one record's."""
        return EmbeddingRows(merge_rows(self.index, rows), merge_rows(self.values, rows), self.size)

    def joined(self, others: Sequence[EmbeddingRows]) -> EmbeddingRows:
        """Return forms with the look-ups of all uses, one after the other."""
        return EmbeddingRows(
            torch.cat([self.index, *(other.index for other in others)], dim=1),
            torch.cat([self.values, *(other.values for other in others)], dim=1),
            self.size,
        )


@dataclass(frozen=True)
class SumOfForms:
    """Sum of forms of different kinds, as of a table that is also used as a matrix.

    Attributes:
        forms: Gradients of the same parameter and records.
    """

    forms: tuple[GradientForm, ...]

    def square_norms(self) -> Tensor:
        """Return squared norms of the sums, which are written out for few records at a time.

        Where the forms cancel, the rounding of each remains; an upper bound on it is added.
        """
        each = torch.stack([form.square_norms().sqrt() for form in self.forms])
        rounding = FLOAT32_ROUNDING * each.sum(dim=0).square()
        place = torch.arange(len(rounding), device=rounding.device)
        parts = [
            square_norms_of_rows(self.only((place >= at) & (place < at + RECORDS_AT_ONCE)).dense())
            for at in range(0, len(rounding), RECORDS_AT_ONCE)
        ]
        return torch.cat([rounding[:0], *parts]) + rounding

    def weighted(self, factors: Tensor) -> Tensor:
        """Return the sum of the forms' weighted sums."""
        first, *others = (form.weighted(factors) for form in self.forms)
        return sum(others, start=first)

    def dense(self) -> Tensor:
        """Return the sum of the forms, written out."""
        first, *others = (form.dense() for form in self.forms)
        return sum(others, start=first)

    def only(self, which: Tensor) -> SumOfForms:
        """Return the selected records of each form."""
        return SumOfForms(tuple(form.only(which) for form in self.forms))

    def grouped(self, rows: int) -> SumOfForms:
        """Return each form with consecutive rows added."""
        return SumOfForms(tuple(form.grouped(rows) for form in self.forms))

    def joined(self, others: Sequence[SumOfForms]) -> SumOfForms:
        """Return the sum over all forms of all sums."""
        return SumOfForms((*self.forms, *(form for other in others for form in other.forms)))


@dataclass(frozen=True)
class TiedTable:
    """Sum of a matrix's gradient A and a table's E, as of an embedding that is also the last layer.

    With A = sum_t r_t c_t^T, and rows i_s of E that look-ups s move by v_s,

        |A + E|^2 = |A|^2 + |E|^2 + 2 sum_{s,t} r_t[i_s] (c_t . v_s),

    so no gradient is written out, which for a large vocabulary would need most of the memory.

    Attributes:
        outer: The matrix's gradients.
        table: The table's gradients.
    """

    outer: OuterProducts
    table: EmbeddingRows

    def square_norms(self) -> Tensor:
        """Return squared norms of the sums.

        Where the two cancel, only rounding remains. It is bounded as for outer products, as a
        look-up is the outer product of a unit vector and v_s.
        """
        rows, columns, values = self.outer.rows, self.outer.columns, self.table.values
        index = self.table.index[:, None].expand(-1, rows.shape[1], -1)
        cross = torch.bmm(columns, values.mT).mul_(rows.gather(2, index)).sum(dim=(1, 2)).double()
        norm = torch.linalg.vector_norm
        lengths: Tensor = norm(rows, dim=2) * norm(columns, dim=2)
        steps: Tensor = norm(values, dim=2)
        scale = lengths.sum(dim=1).double() + steps.sum(dim=1).double()
        squares = self.outer.square_norms() + self.table.square_norms() + 2 * cross
        found: Tensor = squares.clamp(min=0.0) + FLOAT32_ROUNDING * scale.square()
        return found

    def weighted(self, factors: Tensor) -> Tensor:
        """Return the matrix's weighted sum, with the table's added in place."""
        return self.table.add_weighted(self.outer.weighted(factors), factors)

    def dense(self) -> Tensor:
        """Return the sum of both, written out."""
        return self.outer.dense() + self.table.dense()

    def only(self, which: Tensor) -> GradientForm:
        """Return the selected records of both."""
        return merge_forms([self.outer.only(which), self.table.only(which)])

    def grouped(self, rows: int) -> TiedTable:
        """Return both with consecutive rows added."""
        return TiedTable(self.outer.grouped(rows), self.table.grouped(rows))

    def joined(self, others: Sequence[TiedTable]) -> TiedTable:
        """Return the sum of all matrices and of all tables."""
        return TiedTable(
            self.outer.joined([other.outer for other in others]),
            self.table.joined([other.table for other in others]),
        )


def square_norms_of_all(forms: Sequence[GradientForm | None], losses: Tensor) -> Tensor:
    """Return the squared norms of the gradients of several parameters.

    Norms that are known before they are squared are squared together, which saves calls.

    Args:
        forms: Gradients of each parameter; None where all are zero.
        losses: One entry per record, on the device of the gradients.

    Returns:
        Shape ``(parameters, records)``, float64; each row as ``square_norms`` returns it.
    """
    known = [
        form.norms_in_float32() if isinstance(form, OuterProducts | DenseGradients) else None
        for form in forms
    ]
    norms = [each for each in known if each is not None]
    if not norms:
        return torch.stack([_square_norms(form, losses) for form in forms])
    squares = torch.stack(norms).double().square_().mul_(1 + FLOAT32_ROUNDING)
    if len(norms) == len(known):
        return squares
    rows = iter(squares)
    return torch.stack([
        _square_norms(form, losses) if each is None else next(rows)
        for form, each in zip(forms, known, strict=True)
    ])  # fmt: skip


def _square_norms(form: GradientForm | None, losses: Tensor) -> Tensor:
    """Return squared norms of the gradients of one parameter."""
    if form is None:
        return torch.zeros(len(losses), dtype=torch.float64, device=losses.device)
    return form.square_norms()


def merge_forms(forms: Sequence[GradientForm]) -> GradientForm:
    """Return the sum of the gradients of several uses of one parameter.

    The norm must be that of the sum, not a sum of norms. Uses of one kind become one form of
    that kind: outer products and look-ups are concatenated along the positions.

    Args:
        forms: One form per use, at least one, all for the same records.

    Returns:
        One form of the per-record sums.
    """
    if len(forms) == 1:
        return forms[0]
    kinds: dict[type, list[GradientForm]] = {}
    for form in forms:
        kinds.setdefault(type(form), []).append(form)
    merged = [same[0].joined(same[1:]) if len(same) > 1 else same[0] for same in kinds.values()]
    if len(merged) == 1:
        return merged[0]
    match sorted(merged, key=lambda form: type(form).__name__):
        case [EmbeddingRows() as table, OuterProducts() as outer] if outer.by_inner_products:
            return TiedTable(outer, table)
    return SumOfForms(tuple(merged))


def share_inner_products(
    forms: Mapping[str, GradientForm | None],
) -> dict[str, GradientForm | None]:
    """Let gradients with the same columns share their inner products.

    The layers that make queries, keys and values read one input, which is the columns of all.

    Args:
        forms: Gradients by parameter name, whose tensors are not changed from here on.

    Returns:
        The same gradients by name, in the same order.
    """
    alike: dict[tuple[object, ...], list[str]] = {}
    for name, form in forms.items():
        if isinstance(form, OuterProducts) and form.columns.shape[1] > 1 and form.by_inner_products:
            c = form.columns  # all are held, so equal addresses are the same memory
            place = c.device, c.dtype, c.data_ptr(), c.shape, c.stride()
            alike.setdefault(place, []).append(name)
    found = dict(forms)
    for names in alike.values():
        several = [form for name in names if isinstance(form := forms[name], OuterProducts)]
        if len(several) > 1:
            shared = SharedInnerProducts(several[0].columns, len(several))
            found.update(
                (name, replace(form, shared=shared))
                for name, form in zip(names, several, strict=True)
            )
    return found
