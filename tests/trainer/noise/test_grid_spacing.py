"""The grid of sums: its spacing, rounding to it, and the sensitivity of what is rounded."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import assume, example, given
from hypothesis import strategies as st

from dpaudit.trainer.noise.grid_noise import clip_norm_within, grid_spacing, round_to_grid
from dpaudit.vocabulary.errors import InvalidArgument

clip_norms = st.floats(1e-200, 1e200)
dimensions = st.integers(1, 10**18)


@given(clip_norms, dimensions)
@example(1.0, 1)
@example(1.0, 2**40)
@example(math.nextafter(1.0, 0), 2**40)
def test_the_grid_is_the_largest_power_of_two_that_costs_a_thousandth(
    clip_norm: float, dimension: int
) -> None:
    grid = grid_spacing(clip_norm, dimension)
    allowed = Fraction(clip_norm) ** 2 / 2**20
    assert math.frexp(grid)[0] == 0.5
    assert Fraction(grid) ** 2 * dimension <= allowed < 4 * Fraction(grid) ** 2 * dimension


@given(clip_norms, dimensions)
def test_what_clipping_aims_at_leaves_room_for_rounding(clip_norm: float, dimension: int) -> None:
    within = clip_norm_within(clip_norm, dimension)
    room = Fraction(clip_norm) - Fraction(within)
    assert room > 0
    assert room**2 >= Fraction(grid_spacing(clip_norm, dimension)) ** 2 * dimension
    assert within >= 0.999 * clip_norm


@given(
    st.floats(1e-3, 1e3),
    st.lists(st.tuples(st.integers(-(10**6), 10**6), st.floats(-1, 1)), min_size=1, max_size=50),
    st.sampled_from([torch.float32, torch.float64]),
)
def test_rounded_sums_of_neighbours_differ_by_at_most_the_clip_norm(
    clip_norm: float, entries: list[tuple[int, float]], dtype: torch.dtype
) -> None:
    grid = grid_spacing(clip_norm, len(entries))
    within = clip_norm_within(clip_norm, len(entries))
    record = np.array([direction for _, direction in entries])
    assume(np.linalg.norm(record) > 1e-6)
    # Sums half way between two points of the grid, where rounding moves them the most.
    sums = (np.array([at for at, _ in entries]) + 0.5 - 1e-3 * np.sign(record)) * grid
    record *= within / np.linalg.norm(record) * (1 - 1e-5)
    one, other = (torch.tensor(total, dtype=dtype) for total in (sums, sums + record))
    moved = sum(
        (Fraction(a) - Fraction(b)) ** 2 for a, b in zip(one.tolist(), other.tolist(), strict=True)
    )
    assume(moved <= Fraction(within) ** 2)  # in float32 the record may have come out longer
    rounded = (round_to_grid(one, grid) - round_to_grid(other, grid)).tolist()
    assert sum(step**2 for step in rounded) * Fraction(grid) ** 2 <= Fraction(clip_norm) ** 2


def test_rounding_without_the_room_would_exceed_the_clip_norm() -> None:
    dimension, clip_norm = 100, 1.0
    grid = grid_spacing(clip_norm, dimension)
    record = torch.full((dimension,), clip_norm / 10, dtype=torch.float64)
    sums = torch.floor(record / grid) * grid - record + 0.501 * grid
    moved = round_to_grid(sums + record, grid) - round_to_grid(sums, grid)
    assert float(moved.double().norm()) * grid > clip_norm


@given(st.lists(st.floats(-(2.0**40), 2.0**40, width=32), max_size=20), st.integers(-10, 5))
def test_rounding_is_to_the_nearest_and_leaves_the_sum_alone(
    values: list[float], exponent: int
) -> None:
    grid = 2.0**exponent
    for dtype in (torch.float32, torch.float64):
        total = torch.tensor(values, dtype=dtype)
        found = round_to_grid(total, grid)
        assert total.tolist() == values
        assert found.dtype == torch.int64
        assert found.tolist() == [round(Fraction(value) / Fraction(grid)) for value in values]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e17])
def test_a_sum_that_cannot_be_rounded_is_refused_and_not_shown(bad: float) -> None:
    with pytest.raises(InvalidArgument, match="total must be finite") as refusal:
        round_to_grid(torch.tensor([0.0, bad]), 1.0)
    assert str(bad) not in str(refusal.value)


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, math.inf, 1e-310])
def test_a_clip_norm_without_a_grid_is_refused(bad: float) -> None:
    for function in (grid_spacing, clip_norm_within):
        with pytest.raises(InvalidArgument, match="clip_norm"):
            function(bad, 10)


def test_a_dimension_below_one_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="dimension"):
        grid_spacing(1.0, 0)
