"""Factors keep every record inside the sensitivity, whatever its gradient is."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from dpaudit.trainer.engine import Automatic, Clipping, Flat, PerLayer
from dpaudit.trainer.engine.clipping import ROUNDING_MARGIN, clip_factors, finite_records
from dpaudit.trainer.engine.gradient_forms import DenseGradients
from dpaudit.vocabulary.errors import InvalidArgument

CLIP_NORMS = st.floats(1e-3, 1e3)
NEARLY = 1 - 2 * (1 - ROUNDING_MARGIN)  # of the clip norm; no more is given away
SIZES = st.floats(1e-30, 1e30)
SQUARES = st.lists(
    st.lists(st.floats(0.0, 1e60), min_size=3, max_size=3), min_size=1, max_size=5
).map(lambda rows: torch.tensor(rows, dtype=torch.float64))


def lengths(squares: Tensor, clipping: Clipping) -> Tensor:
    """Return the norm over all parameters of what each record adds."""
    return (squares * clipping.factors(squares).square()).sum(dim=0).sqrt()


def clippings(parameters: int, clip_norm: float) -> list[Clipping]:
    return [
        Flat(clip_norm),
        Automatic(clip_norm),
        Automatic(clip_norm, 1e-6),
        PerLayer.evenly(clip_norm, parameters),
        PerLayer(tuple(clip_norm * (n + 1) for n in range(parameters))),
    ]


@given(SIZES, CLIP_NORMS, st.integers(1, 400))
@settings(max_examples=200)
def test_no_row_is_longer_than_the_clip_norm(size: float, clip_norm: float, width: int) -> None:
    row = DenseGradients(torch.full((1, width), size, dtype=torch.float32))
    factors = clip_factors(row.square_norms().sqrt(), clip_norm)
    kept = row.only(factors > 0)  # a norm beyond float32 gives 0, and 0 times infinity is NaN
    assert kept.weighted(factors[factors > 0]).double().norm() <= clip_norm


@given(st.floats(0.1, 10))
@settings(max_examples=20)
def test_a_row_inside_the_clip_norm_is_left_alone(size: float) -> None:
    row = DenseGradients(torch.full((1, 4), size, dtype=torch.float32))
    factors = clip_factors(row.square_norms().sqrt(), 2 * size * 1.001)
    assert torch.equal(row.weighted(factors), row.values[0])


@given(SQUARES, CLIP_NORMS)
def test_no_record_is_longer_than_the_sensitivity(squares: Tensor, clip_norm: float) -> None:
    for clipping in clippings(len(squares), clip_norm):
        assert clipping.factors(squares).shape == squares.shape
        assert (clipping.factors(squares) >= 0).all()
        assert (lengths(squares, clipping) <= clipping.sensitivity * (1 + 1e-15)).all()


@given(st.floats(0.0, 1e300), CLIP_NORMS)
def test_a_factor_is_at_most_one_and_cuts_at_the_clip_norm(norm: float, clip_norm: float) -> None:
    (factor,) = clip_factors(torch.tensor([norm], dtype=torch.float64), clip_norm).tolist()
    assert 0 <= factor <= 1
    assert factor * norm <= clip_norm
    if norm > clip_norm:
        assert factor * norm >= clip_norm * NEARLY
    if norm < clip_norm * NEARLY:
        assert factor == 1


@pytest.mark.parametrize("norm", [math.nan, math.inf])
def test_what_is_not_finite_never_passes(norm: float) -> None:
    norms = torch.tensor([1.0, norm, 0.0], dtype=torch.float64)
    assert clip_factors(norms, 0.5).tolist() == [pytest.approx(0.5 * ROUNDING_MARGIN), 0.0, 1.0]
    squares = torch.stack([torch.ones(3, dtype=torch.float64), norms, norms.flip(0)])
    assert finite_records(squares).tolist() == [True, False, True]


def test_a_record_that_is_not_finite_in_one_parameter_is_not_finite() -> None:
    squares = torch.ones(4, 6, dtype=torch.float64)
    squares[0, 1], squares[3, 2], squares[2, 5] = math.nan, math.inf, math.inf
    assert finite_records(squares).tolist() == [True, False, False, True, True, False]


@given(st.lists(CLIP_NORMS, min_size=1, max_size=6))
def test_the_sensitivity_of_clip_norms_by_layer_is_their_joint_norm(norms: list[float]) -> None:
    clipping = PerLayer(tuple(norms))
    assert clipping.sensitivity == pytest.approx(sum(n * n for n in norms) ** 0.5, rel=1e-12)
    huge = torch.full((len(norms), 2), 1e30, dtype=torch.float64)
    assert lengths(huge, clipping).tolist() == pytest.approx(
        [clipping.sensitivity] * 2, rel=1 - NEARLY
    )


@given(SQUARES, CLIP_NORMS)
def test_each_layer_is_cut_at_its_own_norm_alone(squares: Tensor, clip_norm: float) -> None:
    norms = tuple(clip_norm * (n + 1) for n in range(len(squares)))
    factors = PerLayer(norms).factors(squares)
    for row, square, norm in zip(factors, squares, norms, strict=True):
        assert torch.equal(row, clip_factors(square.sqrt(), norm))


@given(CLIP_NORMS, st.integers(1, 1000))
def test_even_clip_norms_amount_to_the_whole(clip_norm: float, parameters: int) -> None:
    assert PerLayer.evenly(clip_norm, parameters).sensitivity == pytest.approx(clip_norm, rel=1e-12)


@given(SQUARES, CLIP_NORMS)
def test_one_factor_holds_for_all_parameters_where_the_norm_is_joint(
    squares: Tensor, clip_norm: float
) -> None:
    """The direction of a record's gradient is kept."""
    for clipping in (Flat(clip_norm), Automatic(clip_norm)):
        factors = clipping.factors(squares)
        assert torch.equal(factors, factors[:1].expand_as(factors))


@given(st.floats(0, 1e9), st.floats(0, 1e9), CLIP_NORMS, st.floats(1e-6, 1.0))
def test_automatic_clipping_keeps_the_order_of_norms(
    one: float, other: float, clip_norm: float, stability: float
) -> None:
    assume(one <= other)
    squares = torch.tensor([[one**2, other**2]], dtype=torch.float64)
    shorter, longer = lengths(squares, Automatic(clip_norm, stability)).tolist()
    assert shorter <= longer * (1 + 1e-12)
    assert longer < clip_norm
    assert longer == pytest.approx(clip_norm * other / (other + stability), rel=1 - NEARLY)


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_clip_norms_that_are_none_are_refused(value: float) -> None:
    for make in (
        lambda: Flat(value),
        lambda: Automatic(value),
        lambda: Automatic(1.0, value),
        lambda: PerLayer((1.0, value)),
        lambda: PerLayer.evenly(value, 2),
    ):
        with pytest.raises(InvalidArgument):
            make()


def test_a_clip_norm_too_few_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="one for each of 3 parameters"):
        PerLayer((1.0, 1.0)).factors(torch.ones(3, 2, dtype=torch.float64))


def test_no_more_than_a_hair_of_the_clip_norm_is_given_away() -> None:
    assert 1 - 1e-5 <= ROUNDING_MARGIN < 1
