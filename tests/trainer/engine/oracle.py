"""Clipped sums the slow, obvious way: one backward pass a record, added up in float64."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dpaudit.trainer.engine import Automatic, Clipping, Flat, PerLayer, PerSampleLoss
from dpaudit.trainer.engine.batch_structure import Batch, count_records, slice_records
from dpaudit.trainer.engine.clipping import ROUNDING_MARGIN


@dataclass(frozen=True)
class PerRecord:
    """Every record's loss and gradient.

    Attributes:
        losses: Shape ``(records,)``.
        gradients: By name of the parameter, shape ``(records, *parameter)``, float64.
    """

    losses: Tensor
    gradients: dict[str, Tensor]

    @property
    def squares(self) -> Tensor:
        """Squared norms by parameter and record."""
        return torch.stack([_rows(g).square().sum(dim=1) for g in self.gradients.values()])

    @property
    def norms(self) -> Tensor:
        """The norm over all parameters together, by record."""
        return self.squares.sum(dim=0).sqrt()

    @property
    def left_out(self) -> int:
        """How many records have a gradient that is not finite."""
        return int((~torch.isfinite(self.norms)).sum())

    def clipped_sum(self, clipping: Clipping) -> dict[str, Tensor]:
        """Return the sum over records whose gradients are finite, each clipped."""
        total = {name: torch.zeros_like(g[0]) for name, g in self.gradients.items()}
        for record, norm in enumerate(self.norms):
            if not torch.isfinite(norm):
                continue
            own = {name: g[record] for name, g in self.gradients.items()}
            for name, clipped in clipped_record(own, clipping).items():
                total[name] += clipped
        return total


def _cut(clip_norm: float, norm: float) -> float:
    return min(1.0, ROUNDING_MARGIN * clip_norm / norm) if norm else 1.0


def _rows(values: Tensor) -> Tensor:
    return values.reshape(len(values), -1)


def clipped_record(gradient: dict[str, Tensor], clipping: Clipping) -> dict[str, Tensor]:
    """Return one record's gradient, clipped: a hair below the clip norm, as clipping promises."""
    norm = float(torch.cat([g.flatten() for g in gradient.values()]).norm())
    match clipping:
        case Flat(clip_norm):
            factors = [_cut(clip_norm, norm)] * len(gradient)
        case Automatic(clip_norm, stability):
            factors = [ROUNDING_MARGIN * clip_norm / (norm + stability)] * len(gradient)
        case PerLayer(clip_norms):
            norms = [float(g.norm()) for g in gradient.values()]
            factors = [
                min(1.0, c / n) if n else 1.0 for c, n in zip(clip_norms, norms, strict=True)
            ]
        case _:
            raise NotImplementedError(clipping)
    return {name: f * g for f, (name, g) in zip(factors, gradient.items(), strict=True)}


def per_record(model: nn.Module, loss: PerSampleLoss, batch: Batch) -> PerRecord:
    """Return every record's loss and gradient, of its loss on a batch of itself alone."""
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    rows: list[list[Tensor]] = []
    losses = []
    for record in range(count_records(batch)):
        (own,) = loss(model, slice_records(batch, record, record + 1))
        found = torch.autograd.grad(own, list(named.values()), allow_unused=True)
        rows.append([
            torch.zeros_like(p, dtype=torch.float64) if g is None else g.double()
            for p, g in zip(named.values(), found, strict=True)
        ])  # fmt: skip
        losses.append(own.detach())
    columns = (torch.stack(column) for column in zip(*rows, strict=True))
    return PerRecord(torch.stack(losses), dict(zip(named, columns, strict=True)))


def relative_gap(got: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """Return the norm of the difference over that of what was expected."""
    assert got.keys() == expected.keys()
    gaps = [(got[name].double() - expected[name]).flatten() for name in expected]
    norm = float(torch.cat([e.flatten() for e in expected.values()]).norm())
    gap = float(torch.cat(gaps).norm())
    return gap / norm if norm else gap
