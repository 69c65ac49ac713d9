"""``pld.epsilon_grid``: shapes, refusals, and the same answers as ``pld.profile``."""

from __future__ import annotations

import math

import numpy as np
import pytest

from dpaudit.accountants import pld
from dpaudit.vocabulary.errors import InvalidArgument
from dpaudit.vocabulary.mechanism import Gaussian, Laplace, PoissonSampled, Repeated
from dpaudit.vocabulary.privacy_terms import Adjacency, Bound


def single(q: float, s: float, steps: int, delta: float, adjacency: Adjacency) -> Bound:
    step = Gaussian(s) if q == 1 else PoissonSampled(Gaussian(s), q)
    return pld.profile(Repeated(step, steps), adjacency=adjacency).epsilon(delta=delta)


@pytest.mark.parametrize("adjacency", list(Adjacency))
def test_every_plan_has_the_interval_of_its_profile(adjacency: Adjacency) -> None:
    rates, noises = np.array([[1e-5], [0.02], [1.0]]), np.array([0.7, 3.0])
    grid = pld.epsilon_grid(rates, noises, 200, 1e-6, adjacency=adjacency)
    assert grid.lower.shape == grid.upper.shape == (3, 2)
    for i, rate in enumerate(rates[:, 0]):
        for j, noise in enumerate(noises):
            other = single(float(rate), float(noise), 200, 1e-6, adjacency)
            assert grid.lower[i, j] <= other.upper * (1 + 1e-9)
            assert grid.upper[i, j] >= other.lower * (1 - 1e-9)
            if other.upper - other.lower <= 1e-3 * other.upper:
                assert grid.upper[i, j] - grid.lower[i, j] <= 1.01e-3 * grid.upper[i, j]


def test_a_record_that_hardly_ever_participates_costs_nothing() -> None:
    grid = pld.epsilon_grid([1e-9, 1e-3], 1.0, 10, 1e-5)
    assert (grid.lower[0], grid.upper[0]) == (0.0, 0.0)
    assert grid.lower[1] > 0


def test_four_lists_broadcast_and_scalars_have_no_shape() -> None:
    grid = pld.epsilon_grid(
        np.array([0.01, 0.02])[:, None, None], np.array([1.0, 2.0])[:, None], [100, 300], 1e-5
    )
    assert grid.upper.shape == (2, 2, 2)
    assert (np.diff(grid.upper, axis=0) > 0).all()  # a larger rate costs more
    assert (np.diff(grid.upper, axis=1) < 0).all()  # more noise costs less
    assert (np.diff(grid.upper, axis=2) > 0).all()  # more steps cost more
    assert pld.epsilon_grid(0.01, 1.0, 100, 1e-5).upper.shape == ()


def test_where_nothing_is_certified_the_upper_bound_is_infinite() -> None:
    grid = pld.epsilon_grid([0.5, 0.01], [1e-160, 1.0], 10, 1e-5)
    assert grid.upper[0] == math.inf
    assert grid.upper[1] < math.inf


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("sampling_rate", 0.0), ("sampling_rate", 1.5), ("sampling_rate", math.nan),
        ("noise_multiplier", 0.0), ("noise_multiplier", math.inf), ("steps", 0), ("steps", 1.5),
        ("delta", 0.0), ("delta", 1.0), ("delta", math.nan), ("delta", "1e-5"), ("steps", True),
        ("steps", [[1, 2], [3]]),
    ],
)  # fmt: skip
def test_values_out_of_range_are_refused_by_name(name: str, value: object) -> None:
    plan = {"sampling_rate": 0.01, "noise_multiplier": 1.0, "steps": 10, "delta": 1e-5}
    with pytest.raises(InvalidArgument, match=name):
        pld.epsilon_grid(**{**plan, name: value})  # type: ignore[arg-type]


def test_shapes_that_do_not_broadcast_are_refused() -> None:
    with pytest.raises(InvalidArgument, match=r"broadcast"):
        pld.epsilon_grid([0.01, 0.02], [1.0, 2.0, 3.0], 10, 1e-5)


def test_no_plan_gives_an_empty_grid() -> None:
    assert pld.epsilon_grid(0.01, 1.0, np.array([], dtype=np.int64), 1e-5).upper.shape == (0,)


def test_curves_of_other_mechanisms_are_those_of_single_points() -> None:
    profile = pld.profile(Repeated(Laplace(3.0), 5))
    curve = profile.epsilons(deltas=[1e-3, 1e-6])
    assert curve.upper.tolist() == [profile.epsilon(delta=d).upper for d in (1e-3, 1e-6)]
    deltas = profile.deltas(epsilons=[0.0, 0.5, 10.0])
    assert deltas.upper[2] == 0
    assert deltas.upper[0] >= deltas.upper[1] >= deltas.lower[1] > 0


@pytest.mark.parametrize("deltas", [[0.0], [1.0], [math.nan], ["1e-5"]])
def test_curves_refuse_what_no_delta_is(deltas: list[object]) -> None:
    with pytest.raises(InvalidArgument, match="deltas"):
        pld.profile(Gaussian(1.0)).epsilons(deltas=deltas)  # type: ignore[arg-type]
    with pytest.raises(InvalidArgument, match="epsilons"):
        pld.profile(Gaussian(1.0)).deltas(epsilons=[-1.0])
