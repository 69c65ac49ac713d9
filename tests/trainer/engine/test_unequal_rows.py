"""Records with different numbers of rows, as many in all as in an equal batch: the loop's sums."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from dpaudit.trainer.engine import Engine, Flat
from tests.trainer.engine.oracle import per_record, relative_gap

LENGTH, WIDTH, RECORDS = 10, 4, 6
EQUAL, UNEQUAL = [4] * RECORDS, [2, 6, 4, 4, 3, 5]

Rows = Callable[[Tensor, Tensor, Tensor], Tensor]
"""From records, shape ``(records, LENGTH, WIDTH)``, their lengths and their mask to all rows."""


def _numbers(mask: Tensor) -> Tensor:
    return mask.flatten().nonzero()[:, 0]


def _written(x: Tensor, lengths: Tensor, mask: Tensor) -> Tensor:
    rows, start = torch.zeros(int(lengths.sum()), WIDTH), 0
    for record, length in enumerate(lengths.tolist()):
        rows[start : start + length] = x[record, :length]
        start += length
    return rows


def _added(x: Tensor, lengths: Tensor, mask: Tensor) -> Tensor:
    rows = torch.zeros(int(lengths.sum()), WIDTH)
    return rows.index_add(0, torch.arange(len(rows)), x[mask])


class Doubled(torch.autograd.Function):
    """A function that torch shows to no mode."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return 2 * torch.sin(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0]


WAYS: dict[str, Rows] = {
    "joined": lambda x, n, m: torch.cat([one[:k] for one, k in zip(x, n.tolist(), strict=True)]),
    "masked": lambda x, n, m: x[m],
    "selected": lambda x, n, m: x.masked_select(m[:, :, None]).view(-1, WIDTH),
    "masked, then normalized": lambda x, n, m: functional.normalize(x[m]),
    "chosen by number": lambda x, n, m: x.flatten(0, 1).index_select(0, _numbers(m)),
    "chosen by name": lambda x, n, m: x.flatten(0, 1).index_select(dim=0, index=_numbers(m)),
    "gathered": lambda x, n, m: x.flatten(0, 1).gather(0, _numbers(m)[:, None].expand(-1, WIDTH)),
    "taken": lambda x, n, m: torch.take_along_dim(x.flatten(0, 1), _numbers(m)[:, None], 0),
    "chosen twice": lambda x, n, m: functional.normalize(x[m])[torch.arange(int(n.sum()))],
    "written": _written,
    "added": _added,
    "in a function": lambda x, n, m: Doubled.apply(x[m]),  # type: ignore[no-untyped-call]
    "in a batch of one": lambda x, n, m: torch.cat(
        [one[None, :k] for one, k in zip(x, n.tolist(), strict=True)], dim=1
    )[0],
}


class Packed(nn.Module):
    """Layers on the rows of all records, without padding."""

    def __init__(self, rows: Rows) -> None:
        super().__init__()
        self.rows, self.layer, self.out = rows, nn.Linear(WIDTH, 6), nn.Linear(6, 1)
        self.gain = nn.Parameter(torch.ones(6))

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        mask = torch.arange(LENGTH) < lengths[:, None]
        hidden = torch.tanh(self.layer(self.rows(x, lengths, mask))) * self.gain
        each = self.out(hidden).squeeze(1)
        return torch.zeros(len(x)).index_add(0, mask.nonzero()[:, 0], each)


def _loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    losses: Tensor = model(*batch).square()
    return losses


def _batch(lengths: list[int]) -> tuple[Tensor, Tensor]:
    return torch.randn(len(lengths), LENGTH, WIDTH), torch.tensor(lengths)


@pytest.mark.parametrize("way", WAYS)
def test_unequal_rows_are_not_taken_as_equal_ones(way: str) -> None:
    torch.manual_seed(0)
    model = Packed(WAYS[way])
    engine = Engine(model, _loss)
    for lengths in (EQUAL, UNEQUAL):
        batch = _batch(lengths)
        gradients = per_record(model, _loss, batch)
        clipping = Flat(float(gradients.norms.median()))
        got = engine.clipped_sum(batch, clipping)
        assert torch.allclose(got.norms, gradients.norms, rtol=1e-5, atol=0.0)
        assert relative_gap(got.sums, gradients.clipped_sum(clipping)) <= 1e-5


def _written_in_order(x: Tensor, order: Tensor) -> Tensor:
    rows = torch.zeros_like(x)
    rows[order.argsort()] = x
    return rows


ORDERED: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "chosen": lambda x, order: functional.normalize(x[order]),
    "written": _written_in_order,
    "copied": lambda x, order: torch.zeros_like(x).index_copy(0, order.argsort(), x),
    "stacked": lambda x, order: torch.stack([x[i] for i in order.tolist()]),
    "joined": lambda x, order: torch.cat([x[i : i + 1] for i in order.tolist()]),
}


@pytest.mark.parametrize("way", ORDERED)
def test_records_in_another_order_are_not_taken_as_in_theirs(way: str) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(WIDTH, 3)

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        x, lengths = batch
        order = torch.argsort(lengths, stable=True)
        found = model(ORDERED[way](x[:, 0].clone(), order)).square().sum(dim=1)
        taken: Tensor = found[torch.argsort(order)]
        return taken

    engine = Engine(layer, loss)
    for lengths in ([1, 2, 3, 4, 5, 6], [3, 1, 2, 6, 5, 4]):
        batch = _batch(lengths)
        gradients = per_record(layer, loss, batch)
        got = engine.clipped_sum(batch, Flat(float(gradients.norms.median())))
        assert torch.allclose(got.norms, gradients.norms, rtol=1e-5, atol=0.0)


def test_equal_rows_keep_their_rules() -> None:
    torch.manual_seed(0)
    model = Packed(WAYS["joined"])
    engine = Engine(model, _loss)
    for lengths in (EQUAL, [3] * RECORDS):
        engine.clipped_sum(_batch(lengths), Flat(1.0))
        assert engine.record_by_record == ()
