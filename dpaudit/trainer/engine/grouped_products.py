"""Gradients of a stack of matrices of which each row of the input meets one, as experts do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from dpaudit.trainer.engine.contractions import BatchedOuterProducts
from dpaudit.trainer.engine.gradient_forms import merge_rows


@dataclass(frozen=True)
class GroupedOuterProducts:
    """Gradients G_e = sum over the t in group e of r_t c_t^T, of a stack of matrices.

    Attributes:
        rows: The r_t, shape ``(records, T, p)``.
        columns: The c_t, shape ``(records, T, d)``.
        group: The group of each t, shape ``(records, T)``.
        groups: Number of groups; the parameter has shape ``(groups, p, d)``.
    """

    rows: Tensor
    columns: Tensor
    group: Tensor
    groups: int

    @cached_property
    def _stacked(self) -> BatchedOuterProducts:
        """The same with one dimension for the groups, and zeros where a group has fewer rows."""
        records, _ = self.group.shape
        start = torch.arange(records, device=self.group.device)[:, None] * self.groups
        place = (start + self.group).flatten()  # of record and group together
        counts = torch.bincount(place, minlength=records * self.groups)
        most = max(1, int(counts.max())) if len(counts) else 1
        order = torch.argsort(place, stable=True)
        place = place[order]
        number = torch.arange(len(place), device=place.device) - (counts.cumsum(0) - counts)[place]
        stacked = []
        for values in (self.rows, self.columns):
            padded = values.new_zeros(records * self.groups, most, values.shape[2])
            padded[place, number] = values.flatten(0, 1)[order]
            stacked.append(padded.view(records, self.groups, most, -1))
        shape = torch.Size((self.groups, self.rows.shape[2], self.columns.shape[2]))
        return BatchedOuterProducts(stacked[0], stacked[1], tuple(shape), (0, 1, 2), shape)

    def square_norms(self) -> Tensor:
        """Return squared norms, added over the groups."""
        return self._stacked.square_norms()

    def weighted(self, factors: Tensor) -> Tensor:
        """Return one matrix product over the rows of all records per group."""
        rows = (self.rows * factors.to(self.rows.dtype)[:, None, None]).flatten(0, 1)
        columns, group = self.columns.flatten(0, 1), self.group.flatten()
        order = torch.argsort(group, stable=True)
        sizes = torch.bincount(group, minlength=self.groups).tolist()
        each = (torch.split(values[order], sizes) for values in (rows, columns))
        pairs = zip(*each, strict=True)
        return torch.stack([r.mT @ c for r, c in pairs])

    def dense(self) -> Tensor:
        """Return the gradients written out."""
        return self._stacked.dense()

    def only(self, which: Tensor) -> GroupedOuterProducts:
        """Return the selected records."""
        return replace(
            self, rows=self.rows[which], columns=self.columns[which], group=self.group[which]
        )

    def grouped(self, rows: int) -> GroupedOuterProducts:
        """Return forms in which the positions of consecutive rows are one record's."""
        return GroupedOuterProducts(
            merge_rows(self.rows, rows),
            merge_rows(self.columns, rows),
            merge_rows(self.group, rows),
            self.groups,
        )

    def joined(self, others: Sequence[GroupedOuterProducts]) -> GroupedOuterProducts:
        """Return forms with the positions of all uses, one after the other."""
        return GroupedOuterProducts(
            torch.cat([self.rows, *(other.rows for other in others)], dim=1),
            torch.cat([self.columns, *(other.columns for other in others)], dim=1),
            torch.cat([self.group, *(other.group for other in others)], dim=1),
            self.groups,
        )
