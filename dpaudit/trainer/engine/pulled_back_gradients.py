"""Per-record gradients of a parameter that enters by functions of it, such as a view or a norm."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise

import torch
from torch import Tensor

from dpaudit.trainer.engine.gradient_forms import (
    FLOAT32_ROUNDING,
    DenseGradients,
    GradientForm,
    SumOfForms,
    square_norms_of_rows,
)
from dpaudit.trainer.engine.parameter_functions import HALF, ParameterFunction

ENTRIES_AT_ONCE = 2**23
"""Entries of gradients that are written out at once, 32 MB; affects speed and memory alone."""

ENTRIES_KEPT = 2**18
"""Entries of all gradients up to which they stay written out; affects speed and memory alone."""


@dataclass(frozen=True)
class PulledBackGradients:
    """Gradients J_1^T u_1 + ... + J_k^T u_k of a parameter P with functions U_j = f_j(P).

    The u_j are per-record gradients of U_j, and J_j is the Jacobian of f_j at P. The weighted sum
    needs one vector-Jacobian product, as it is linear: sum_i c_i J^T u_i = J^T sum_i c_i u_i.

    Attributes:
        forms: The u_j.
        functions: The U_j.
        parameter: P.
    """

    forms: tuple[GradientForm, ...]
    functions: tuple[ParameterFunction, ...]
    parameter: Tensor

    @property
    def _keeps_norms(self) -> bool:
        """Whether |J_1^T u_1 + ...|^2 = |u_1|^2 + ...: the parts of P do not overlap."""
        if not all(f.keeps_norm for f in self.functions):
            return False
        regions = [f.region for f in self.functions]
        known = sorted(region for region in regions if region is not None)
        return len(self.functions) == 1 or (
            len(known) == len(regions) and all(one[1] <= other[0] for one, other in pairwise(known))
        )

    def _pull(self, gradients: Sequence[Tensor], *, batched: bool) -> Tensor:
        """Return J_1^T u_1 + ... for gradients of the U_j, one each or one per record."""
        records = gradients[0].shape[:1] if batched else torch.Size()
        shape = records + self.parameter.shape
        same = [f.is_identity for f in self.functions]
        whole = [g.reshape(shape) for g, keep in zip(gradients, same, strict=True) if keep]
        left = [
            (f.tensor, g.reshape(records + f.tensor.shape).to(f.tensor.dtype))
            for f, g, keep in zip(self.functions, gradients, same, strict=True)
            if not keep
        ]
        if left:
            outputs, values = zip(*left, strict=True)
            (found,) = torch.autograd.grad(
                outputs, (self.parameter,), values, retain_graph=True, allow_unused=True,
                is_grads_batched=batched,
            )  # fmt: skip
            whole.append(gradients[0].new_zeros(shape) if found is None else found)
        return sum(whole[1:], start=whole[0])

    @cached_property
    def _written_out(self) -> Tensor:
        """The gradients, shape ``(records, *parameter)``; computed once."""
        return self._pull([form.dense() for form in self.forms], batched=True)

    def square_norms(self) -> Tensor:
        """Return squared norms: those of the u_j where the functions keep norms."""
        own = torch.stack([form.square_norms() for form in self.forms])
        if self._keeps_norms:
            return own.sum(dim=0)
        records, entries = own.shape[1], self.parameter.numel()
        if records * entries <= ENTRIES_KEPT and self.parameter.dtype not in HALF:
            return square_norms_of_rows(self._written_out)
        entries = max(entries, *(f.tensor.numel() for f in self.functions))
        few = max(1, ENTRIES_AT_ONCE // max(1, entries))
        place = torch.arange(records, device=own.device)
        squares = [
            square_norms_of_rows(self.only((place >= at) & (place < at + few)).dense())
            for at in range(0, records, few)
        ]
        found = torch.cat([own.new_zeros(0), *squares])
        return found + self._rounding(found, own)

    @staticmethod
    def _rounding(found: Tensor, own: Tensor) -> Tensor:
        """Return what rounding may hide where J^T u is small for one record, but J is not."""
        before = own.sqrt().sum(dim=0).square()
        usable = torch.isfinite(found) & torch.isfinite(before) & (before > 0)
        scale = (found[usable] / before[usable]).max() if bool(usable.any()) else 0.0
        return FLOAT32_ROUNDING * scale * before

    def weighted(self, factors: Tensor) -> Tensor:
        """Return J_1^T sum_i c_i u_1i + ..."""
        if "_written_out" in self.__dict__:
            return DenseGradients(self._written_out).weighted(factors)
        return self._pull([form.weighted(factors) for form in self.forms], batched=False)

    def dense(self) -> Tensor:
        """Return the gradients written out."""
        return self._written_out

    def only(self, which: Tensor) -> GradientForm:
        """Return the selected records; written-out gradients stay so, for equal rounding."""
        if "_written_out" in self.__dict__:
            return DenseGradients(self._written_out[which])
        return replace(self, forms=tuple(form.only(which) for form in self.forms))

    def grouped(self, rows: int) -> PulledBackGradients:
        """Return the gradients of which consecutive ones are added."""
        return replace(self, forms=tuple(form.grouped(rows) for form in self.forms))

    def joined(self, others: Sequence[GradientForm]) -> GradientForm:
        """Return the sum with gradients by other functions of the same parameter."""
        return SumOfForms((self, *others))
