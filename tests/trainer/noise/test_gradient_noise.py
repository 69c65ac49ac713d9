"""What is added to a sum: its law, what it hides, and how noise of steps hangs together."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from dpaudit.trainer.noise import gradient_noise, grid_noise
from dpaudit.trainer.noise.correlated_noise import Banded
from dpaudit.trainer.noise.gradient_noise import (
    GradientNoise,
    GradientSums,
    Independent,
    NoiseContext,
    OnGrid,
    Prefetched,
    count_coordinates,
    default_noise,
    noise_kind,
    noisy_means,
    standard_normals,
)
from dpaudit.trainer.noise.kernels import NUMPY_KERNELS
from dpaudit.trainer.noise.randomness import Keystream
from dpaudit.vocabulary.errors import InvalidArgument, NoiseReused
from dpaudit.vocabulary.ledger import NoiseKind

FLOAT32 = 2.0**-24
CPU = torch.device("cpu")
KINDS: dict[str, Callable[[], GradientNoise]] = {
    "independent": Independent,
    "ahead of time": Prefetched,
    "on a grid": OnGrid,
    "on a grid, ahead of time": lambda: Prefetched(OnGrid()),
    "banded": lambda: Banded(3),
}


def sums_of(dimension: int = 7, value: float = 0.0) -> GradientSums:
    """Return sums of several shapes, together of one dimension."""
    parts = {"a": dimension // 2, "b": dimension - dimension // 2}
    return {name: torch.full((count, 1), value) for name, count in parts.items()}


def flat(sums: GradientSums) -> Tensor:
    return torch.cat([part.flatten() for part in sums.values()])


def rows_of(
    noise: GradientNoise, steps: Iterable[int], dimension: int = 7, *, seed: int = 1, first: int = 0
) -> Tensor:
    """Return what is added to zeros, in units of noise_multiplier times norm."""
    stream = Keystream.seeded(seed)
    rows = [
        flat(noise.add_noise(sums_of(dimension), NoiseContext(stream, step, first), 1.0, 1.0))
        for step in steps
    ]
    return torch.stack(rows)


# What all have in common.


@pytest.mark.parametrize("kind", KINDS)
def test_noise_has_mean_zero_and_the_deviation_that_it_says(kind: str) -> None:
    noise, dimension = KINDS[kind](), 40_000
    stream = Keystream.seeded(6)
    for step in range(4):
        context = NoiseContext(stream, step)
        added = flat(noise.add_noise(sums_of(dimension), context, 2.5, 0.3)).double()
        said = noise.deviation(2.5, 0.3, dimension, context)
        assert said >= 2.5 * 0.3
        assert abs(float(added.mean())) < 5 * said / math.sqrt(dimension)
        assert float(added.std()) == pytest.approx(said, rel=5 / math.sqrt(2 * dimension))


@pytest.mark.parametrize("kind", ["independent", "ahead of time", "banded"])
@given(value=st.floats(-1e3, 1e3), norm=st.floats(1e-2, 1e2), multiplier=st.floats(0.1, 10))
@settings(max_examples=20)
def test_noise_is_added_and_scales_with_multiplier_and_norm(
    kind: str, value: float, norm: float, multiplier: float
) -> None:
    context = NoiseContext(Keystream.seeded(1), 0)
    unit = flat(KINDS[kind]().add_noise(sums_of(), context, 1.0, 1.0)).double()
    got = flat(KINDS[kind]().add_noise(sums_of(value=value), context, multiplier, norm)).double()
    expected = float(np.float32(value)) + multiplier * norm * unit
    # Rounded: the factor, the product and the sum.
    allowed = FLOAT32 * (2 * (multiplier * norm * unit).abs() + got.abs())
    assert ((got - expected).abs() <= allowed * (1 + 1e-6)).all()


@pytest.mark.parametrize("kind", KINDS)
def test_noise_depends_on_key_and_step_and_shapes_are_kept(kind: str) -> None:
    one = rows_of(KINDS[kind](), range(3))
    assert torch.equal(one, rows_of(KINDS[kind](), range(3)))
    assert not (one == rows_of(KINDS[kind](), range(3), seed=2)).any()
    assert not (one[0] == one[1]).any()
    noisy = KINDS[kind]().add_noise(sums_of(), NoiseContext(Keystream.seeded(1), 0), 1.0, 1.0)
    assert {name: part.shape for name, part in noisy.items()} == {
        name: part.shape for name, part in sums_of().items()
    }
    assert count_coordinates(noisy) == 7


# Ahead of time.


@pytest.mark.parametrize("noise", [Independent(), OnGrid()])
@pytest.mark.parametrize("dimension", [7, 70_000])
def test_noise_ahead_of_time_is_that_on_demand_bit_for_bit(
    noise: Independent | OnGrid, dimension: int
) -> None:
    for steps, first in ((range(3), 0), (range(4, 6), 4)):
        ahead = rows_of(Prefetched(noise), steps, dimension, first=first)
        assert torch.equal(ahead, rows_of(noise, steps, dimension, first=first))


def test_noise_ahead_of_time_follows_a_norm_that_changes() -> None:
    """As with adaptive clipping: on a grid, the draws depend on it."""
    stream, ahead = Keystream.seeded(3), Prefetched(OnGrid())
    for step, norm in enumerate((1.0, 0.7, 0.7, 3.1)):
        context = NoiseContext(stream, step)
        expected = flat(OnGrid().add_noise(sums_of(value=0.1), context, 1.3, norm))
        assert torch.equal(flat(ahead.add_noise(sums_of(value=0.1), context, 1.3, norm)), expected)
        with pytest.raises(NoiseReused):
            ahead.add_noise(sums_of(), context, 1.3, norm / 2)


@pytest.mark.parametrize("kind", ["ahead of time", "on a grid, ahead of time"])
def test_noise_ahead_of_time_is_handed_out_once(kind: str) -> None:
    noise, context = KINDS[kind](), NoiseContext(Keystream.seeded(1), 2)
    noise.add_noise(sums_of(), context, 1.0, 1.0)
    with pytest.raises(NoiseReused):
        noise.add_noise(sums_of(), context, 1.0, 1.0)


# Layouts of sums, and the default.


@pytest.mark.parametrize("kind", ["independent", "on a grid"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_noise_follows_the_coordinates_whatever_the_layout(kind: str, dtype: torch.dtype) -> None:
    values = torch.randn(40_003, generator=torch.Generator().manual_seed(1)).to(dtype)
    parts = {"a": values[:3], "b": values[3:30_003].view(100, 300), "c": values[30_003:]}
    transposed = {**parts, "b": parts["b"].T.contiguous().T}
    assert not transposed["b"].is_contiguous()
    context = NoiseContext(Keystream.seeded(5), 0)
    expected = KINDS[kind]().add_noise({"all": values.clone()}, context, 1.5, 2.0)["all"]
    for sums in (parts, transposed):
        copied = {
            name: part.clone(memory_format=torch.preserve_format) for name, part in sums.items()
        }
        noisy = KINDS[kind]().add_noise(copied, context, 1.5, 2.0)
        assert {part.dtype for part in noisy.values()} == {dtype}
        assert torch.equal(flat(noisy), expected)


def test_on_a_grid_each_coordinate_keeps_its_type() -> None:
    sums = {"a": torch.ones(5), "b": torch.ones(5, dtype=torch.float64)}
    noisy = OnGrid().add_noise(sums, NoiseContext(Keystream.seeded(1), 0), 1.0, 1.0)
    assert [part.dtype for part in noisy.values()] == [torch.float32, torch.float64]


@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e30])
def test_a_sum_that_no_grid_holds_is_refused_and_not_shown(bad: float) -> None:
    sums = {"a": torch.tensor([0.0, bad])}
    with pytest.raises(InvalidArgument, match="total must be finite") as refusal:
        OnGrid().add_noise(sums, NoiseContext(Keystream.seeded(1), 0), 1.0, 1.0)
    assert str(bad) not in str(refusal.value)


def test_the_default_is_the_grid_where_kernels_are_compiled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for compiled, expected in ((True, OnGrid()), (False, Independent())):
        chosen = replace(NUMPY_KERNELS, compiled=compiled)
        monkeypatch.setattr(gradient_noise, "kernels", lambda chosen=chosen: chosen)
        assert default_noise(CPU, 1.0, 1.0, 1000) == expected
        assert default_noise(torch.device("cuda"), 1.0, 1.0, 1000) == Independent()
        # Outside of what a grid of floats allows.
        assert default_noise(CPU, 1e9, 1.0, 1000) == Independent()
        assert default_noise(CPU, 1.0, 1e-305, 1000) == Independent()


def test_noise_without_a_kind_is_of_the_users_own() -> None:
    assert [noise_kind(KINDS[kind]()).value for kind in KINDS] == [
        "normal", "normal", "grid", "grid", "correlated"
    ]  # fmt: skip
    assert noise_kind(object()) is NoiseKind.OTHER


@pytest.mark.parametrize("first", [0, 3])
@pytest.mark.parametrize("kind", ["ahead of time", "on a grid, ahead of time", "banded"])
def test_under_another_key_noise_begins_anew(kind: str, first: int) -> None:
    """One object in two runs, one after the other, or resumed where the first one stood."""
    noise = KINDS[kind]()
    rows_of(noise, range(3), seed=1)
    got = rows_of(noise, range(first, 5), seed=2, first=first)
    assert torch.equal(got, rows_of(KINDS[kind](), range(first, 5), seed=2, first=first))


# On a grid.


@given(
    dimension=st.integers(1, 50),
    norm=st.floats(1e-3, 1e3),
    multiplier=st.floats(0.3, 10),
    seed=st.integers(0, 1000),
)
@settings(max_examples=50)
def test_what_leaves_the_grid_is_on_it(
    dimension: int, norm: float, multiplier: float, seed: int
) -> None:
    torch.manual_seed(seed)
    noise, unit = OnGrid(), grid_noise.grid_spacing(norm, dimension)
    sums = {"a": (norm * torch.randn(dimension)).double()}
    units = (
        noise.add_noise(sums, NoiseContext(Keystream.seeded(seed), 0), multiplier, norm)["a"] / unit
    )
    assert torch.equal(units, units.round())


@given(st.integers(1, 50), st.floats(1e-3, 1e3), st.integers(0, 10**6))
@settings(max_examples=50)
def test_neighbours_rounded_to_the_grid_are_within_the_widened_sensitivity(
    dimension: int, norm: float, seed: int
) -> None:
    random = np.random.default_rng(seed)
    one, way = norm * 3 * random.normal(size=dimension), random.normal(size=dimension)
    other = one + norm * way / np.linalg.norm(way)
    unit, widened_sensitivity = (
        grid_noise.grid_spacing(norm, dimension),
        OnGrid().widened_sensitivity(norm, dimension),
    )
    # Under the same draw, noise moves both alike: what differs is what it has to hide.
    context = NoiseContext(Keystream.seeded(1), 0)
    found = [
        OnGrid().add_noise({"a": torch.from_numpy(sums.copy())}, context, 1.0, norm)["a"].numpy()
        for sums in (one, other)
    ]
    # The norm of what was added above is its own up to float64.
    assert np.linalg.norm(found[0] - found[1]) <= widened_sensitivity * (1 + 1e-12)
    assert (
        norm + unit * math.sqrt(dimension)
        <= widened_sensitivity
        <= norm * (1 + 2**-10) * (1 + 1e-12)
    )


@given(st.integers(1, 50), st.floats(1e-3, 1e3), st.floats(0.3, 10))
@settings(max_examples=50)
def test_noise_on_a_grid_is_of_the_widened_sensitivity(
    dimension: int, norm: float, multiplier: float
) -> None:
    context = NoiseContext(Keystream.seeded(1), 0)
    asked: list[float] = []
    grid_chunks, unit = grid_noise.grid_chunks, grid_noise.grid_spacing(norm, dimension)

    def noted(*given: Any) -> Iterator[NDArray[np.float64]]:
        asked.append(given[3] * unit)
        return grid_chunks(*given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grid_noise, "grid_chunks", noted)
        OnGrid().add_noise({"a": torch.zeros(dimension)}, context, multiplier, norm)
    assert asked == [OnGrid().deviation(multiplier, norm, dimension, context)]
    assert asked == [multiplier * OnGrid().widened_sensitivity(norm, dimension)]


def test_noise_on_a_grid_is_the_rounded_normal_of_the_widened_sensitivity() -> None:
    dimension = 100_000
    context = NoiseContext(Keystream.seeded(8), 0)
    added = (
        OnGrid().add_noise({"a": torch.zeros(dimension)}, context, 0.5, 1.0)["a"].double().numpy()
    )
    deviation = 0.5 * OnGrid().widened_sensitivity(1.0, dimension)
    normal = torch.distributions.Normal(0.0, deviation)
    unit = grid_noise.grid_spacing(1.0, dimension)
    for edge in (-1.0, -0.3, 0.0, 0.4, 1.2):
        last = math.floor(edge / unit)
        # What rounds to at most ``last`` units was at most half a unit more.
        middle = torch.tensor((last + 0.5) * unit, dtype=torch.float64)
        expected = float(normal.cdf(middle))
        share = float(np.mean(added <= last * unit))
        spread = math.sqrt(expected * (1 - expected) / dimension)
        assert share == pytest.approx(expected, abs=5 * spread)


# Correlated.


def dense(bands: int, steps: int) -> NDArray[np.float64]:
    """Return C, the slow way: coefficients of (1 - x)^(-1/2), banded, columns scaled."""
    series = [math.comb(2 * k, k) / 4**k for k in range(bands)]
    matrix = np.zeros((steps, steps))
    for row in range(steps):
        for column in range(max(0, row - bands + 1), row + 1):
            matrix[row, column] = series[row - column]
    full = np.sqrt(np.sum(np.square(series)))
    return matrix / full


@pytest.mark.parametrize("bands", [1, 2, 3, 8, 40])
def test_banded_noise_is_the_inverse_of_c_times_independent_noise(bands: int) -> None:
    steps, dimension, stream = 24, 6, Keystream.seeded(1)
    noise = rows_of(Banded(bands), range(steps), dimension).double().numpy()
    fresh = np.stack([
        standard_normals(NoiseContext(stream, step), dimension, CPU).double().numpy()
        for step in range(steps)
    ])  # fmt: skip
    # A row is made by ``bands`` operations in float32, each of which rounds what is there.
    most = np.abs(noise).max()
    allowed = FLOAT32 * 4 * (bands + 1) * most
    assert np.abs(dense(bands, steps) @ noise - fresh).max() <= allowed


@given(st.integers(1, 200))
def test_columns_of_c_have_norm_one_and_are_no_longer(bands: int) -> None:
    coefficients = Banded(bands).coefficients
    assert len(coefficients) == bands
    assert 1 - 1e-9 <= math.fsum(c * c for c in coefficients) <= 1
    matrix = dense(bands, 2 * bands)
    assert np.allclose(matrix[:bands, 0], coefficients, rtol=1e-9)


@given(st.integers(1, 30), st.integers(0, 60))
def test_the_deviation_of_banded_noise_is_the_norm_of_the_inverses_row(
    bands: int, step: int
) -> None:
    row = np.linalg.inv(dense(bands, step + 1))[-1]
    said = Banded(bands).deviation(1.0, 1.0, 5, NoiseContext(Keystream.seeded(1), step))
    assert said == pytest.approx(float(np.linalg.norm(row)), rel=1e-9)


@given(st.integers(1, 9), st.lists(st.integers(0, 15), min_size=1, max_size=6), st.integers(0, 3))
def test_rows_after_a_gap_are_the_rows_without_one(
    bands: int, steps: list[int], first: int
) -> None:
    asked = [first + step for step in steps]
    every = rows_of(Banded(bands), range(first, first + 16), first=first)
    assert torch.equal(rows_of(Banded(bands), asked, first=first), every[steps])


def test_a_key_that_begins_later_leans_on_no_earlier_row() -> None:
    """Resumed with a fresh key: rows before that are another key's."""
    row = rows_of(Banded(4), [5], first=5)[0]
    fresh = standard_normals(NoiseContext(Keystream.seeded(1), 5), 7, torch.device("cpu"))
    assert torch.equal(row, fresh / Banded(4).coefficients[0])


def test_one_band_is_independent_noise() -> None:
    assert torch.equal(rows_of(Banded(1), range(5)), rows_of(Independent(), range(5)))


def test_no_bands_are_refused() -> None:
    with pytest.raises(InvalidArgument, match="bands"):
        Banded(0)


def test_correlated_noise_leaves_smaller_errors_in_the_sums_over_steps() -> None:
    """What it is for: errors of all prefix sums, at an equal multiplier."""
    steps, bands, dimension = 64, 8, 2000

    def error(noise: GradientNoise) -> float:
        sums = rows_of(noise, range(steps), dimension).double().cumsum(dim=0)
        return float(sums.square().mean().sqrt())

    correlated, independent = error(Banded(bands)), error(Independent())
    prefix = np.tril(np.ones((steps, steps)))
    for measured, factor in ((correlated, dense(bands, steps)), (independent, np.eye(steps))):
        law = np.linalg.norm(prefix @ np.linalg.inv(factor)) / math.sqrt(steps)
        # Dominated by few directions of each coordinate's path, of which there are 2000.
        assert measured == pytest.approx(float(law), rel=5 / math.sqrt(2 * dimension))
    assert correlated < 0.75 * independent


# Means.


@pytest.mark.parametrize("expected", [64, 100, 0.25, 2.0**-30])
@pytest.mark.parametrize("kind", KINDS)
def test_noisy_means_are_noisy_sums_over_the_expected_batch_size(
    kind: str, expected: float
) -> None:
    context = NoiseContext(Keystream.seeded(3), step=0)
    sums = KINDS[kind]().add_noise(sums_of(value=0.3), context, 1.3, 0.7)
    means = noisy_means(KINDS[kind](), sums_of(value=0.3), context, 1.3, 0.7, expected)
    assert torch.equal(flat(means), flat(sums) / expected)


def test_noise_of_a_class_of_ones_own_is_added_by_that_class() -> None:
    class Doubled(Independent):
        def add_noise(
            self, sums: GradientSums, context: NoiseContext, noise_multiplier: float, norm: float
        ) -> GradientSums:
            return super().add_noise(sums, context, 2 * noise_multiplier, norm)

    context = NoiseContext(Keystream.seeded(3), step=0)
    twice = noisy_means(Doubled(), sums_of(), context, 1.0, 1.0, 64)
    assert torch.equal(
        flat(twice), flat(noisy_means(Independent(), sums_of(), context, 2.0, 1.0, 64))
    )
