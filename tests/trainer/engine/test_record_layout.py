"""Where records are, found from gradients made by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from dpaudit.trainer.engine.record_layouts import (
    AlongDimension,
    InBlocks,
    Interleaved,
    Mixed,
    RecordLayout,
    Shared,
    find_layout,
)

WIDTH = 3


def placed(canonical: Tensor, layout: RecordLayout) -> Tensor:
    """Return a tensor of shape (records, positions, width) as ``layout`` has it."""
    match layout:
        case AlongDimension(dimension):
            return canonical.movedim(0, dimension)
        case InBlocks(0):
            return canonical.flatten(0, 1)
        case Interleaved(0):
            return canonical.transpose(0, 1).flatten(0, 1)
        case InBlocks(1, rows) | Interleaved(1, rows):  # two more positions in front
            inner = placed(canonical, type(layout)(0, rows))
            return torch.stack([inner, inner])
        case _:
            raise NotImplementedError(layout)


@dataclass(frozen=True)
class Made:
    """A tensor whose entries tell the record, and gradients of the first and last loss."""

    values: Tensor
    gradients: dict[int, Tensor | None]


def made(layout: RecordLayout, records: int, positions: int) -> Made:
    torch.manual_seed(0)
    numbers = torch.arange(1.0, records + 1)[:, None, None].expand(records, positions, WIDTH)
    gradients: dict[int, Tensor | None] = {}
    for record in (0, records - 1):
        own = torch.zeros(records, positions, WIDTH)
        own[record] = torch.randn(positions, WIDTH)
        gradients[record] = placed(own, layout)
    return Made(placed(numbers, layout), gradients)


PLACES: list[Callable[[int], RecordLayout]] = [
    lambda _: AlongDimension(0),
    lambda _: AlongDimension(1),
    lambda rows: InBlocks(0, rows),
    lambda rows: Interleaved(0, rows),
    lambda rows: InBlocks(1, rows),
    lambda rows: Interleaved(1, rows),
]


@given(st.sampled_from(PLACES), st.integers(2, 7), st.integers(1, 8))
def test_the_layout_that_is_found_brings_each_record_to_the_front(
    place: Callable[[int], RecordLayout], records: int, positions: int
) -> None:
    """Also with as many positions as records."""
    one = made(place(positions), records, positions)
    found = find_layout(one.values.shape, one.gradients, records)
    first = found.first(one.values, records).unflatten(0, (records, -1))
    own = torch.arange(1.0, records + 1).view(-1, *[1] * (first.dim() - 1))
    assert torch.equal(first, own.expand_as(first))
    assert first.numel() == one.values.numel()


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("positions", [2, 4, 5, 10])
def test_each_kind_is_told_from_the_others(
    place: Callable[[int], RecordLayout], positions: int
) -> None:
    layout = place(positions)
    one = made(layout, 5, positions)
    assert find_layout(one.values.shape, one.gradients, 5) == layout


def test_records_without_positions_are_in_front() -> None:
    gradients = {0: torch.eye(4)[:1].T.expand(4, 3), 3: torch.eye(4)[3:].T.expand(4, 3)}
    assert find_layout(torch.Size((4, 3)), gradients, 4) == AlongDimension(0)
    assert find_layout(torch.Size((4,)), {0: torch.eye(4)[0], 3: torch.eye(4)[3]}, 4) == (
        AlongDimension(0))  # fmt: skip


@pytest.mark.parametrize("shape", [(1, 4, WIDTH), (4, WIDTH), (1, WIDTH), (10, WIDTH)])
def test_rows_that_all_records_use_are_shared(shape: tuple[int, ...]) -> None:
    gradients = {record: torch.randn(shape) for record in (0, 4)}
    layout = find_layout(torch.Size(shape), gradients, 5)
    assert layout == Shared()
    assert Shared().first(torch.randn(1, 4, WIDTH), 5).shape == (5, 4, WIDTH)


def test_as_many_shared_rows_as_records_are_not_taken_for_records() -> None:
    gradients = {record: torch.randn(5, WIDTH) for record in (0, 4)}
    assert find_layout(torch.Size((5, WIDTH)), gradients, 5) == Mixed()


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("positions", [3, 5])
@pytest.mark.parametrize("which", [0, 4])
def test_a_loss_that_reaches_another_record_is_mixed(
    place: Callable[[int], RecordLayout], positions: int, which: int
) -> None:
    layout = place(positions)
    one = made(layout, 5, positions)
    other = torch.zeros(5, positions, WIDTH)
    other[2] = 1e-30
    one.gradients[which] = one.gradients[which] + placed(other, layout)
    assert find_layout(one.values.shape, one.gradients, 5) == Mixed()


@pytest.mark.parametrize("place", PLACES)
def test_what_is_not_a_number_belongs_to_nobody(place: Callable[[int], RecordLayout]) -> None:
    """Zero times infinity is NaN, in the rows of records that the loss does not reach."""
    layout = place(3)
    one = made(layout, 5, 3)
    spoiled = torch.zeros(5, 3, WIDTH)
    spoiled[2] = math.nan
    gradients = {r: g + placed(spoiled, layout) for r, g in one.gradients.items()}
    assert find_layout(one.values.shape, gradients, 5) == layout


@pytest.mark.parametrize("place", PLACES)
def test_an_infinite_gradient_is_a_gradient(place: Callable[[int], RecordLayout]) -> None:
    layout = place(3)
    one = made(layout, 5, 3)
    other = torch.zeros(5, 3, WIDTH)
    other[2] = math.inf
    one.gradients[0] = one.gradients[0] + placed(other, layout)
    assert find_layout(one.values.shape, one.gradients, 5) == Mixed()


@given(st.sampled_from(PLACES[:2]), st.sampled_from([0, 1]), st.integers(2, 6))
def test_one_record_that_is_reached_is_enough_where_shapes_leave_no_choice(
    place: Callable[[int], RecordLayout], silent: int, records: int
) -> None:
    positions = records + 1
    layout = place(positions)
    one = made(layout, records, positions)
    one.gradients[silent * (records - 1)] = None
    assert find_layout(one.values.shape, one.gradients, records) == layout


def test_rows_that_fit_no_layout_are_mixed() -> None:
    gradient = torch.zeros(7, WIDTH)
    gradient[2] = 1.0
    assert find_layout(torch.Size((7, WIDTH)), {0: gradient, 4: gradient.flip(0)}, 5) == Mixed()


def test_mixed_records_cannot_be_brought_to_the_front() -> None:
    with pytest.raises(ValueError, match="mixed"):
        Mixed().first(torch.zeros(4, 3), 4)
