"""Noise on a grid: its law, draw by draw; the sensitivity of what it is added to."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats
from scipy.special import ndtri

from dpaudit.trainer.noise import grid_noise as grid_module
from dpaudit.trainer.noise.grid_noise import (
    MARGIN,
    add_grid_units,
    add_rounded_noise,
    clip_norm_within,
    grid_spacing,
    round_to_grid,
    rounded_normals,
)
from dpaudit.trainer.noise.randomness import Keystream, Purpose
from dpaudit.vocabulary.errors import InvalidArgument
from dpaudit.vocabulary.ledger import Randomness

NOISE = Purpose.GRADIENT_NOISE
clip_norms = st.floats(1e-200, 1e200)
dimensions = st.integers(1, 10**18)


class Given(Keystream):
    """A stream whose words of noise are given; what else is drawn, it draws."""

    def __init__(self, words: list[int] | NDArray[np.uint64]) -> None:
        super().__init__(bytes(32), Randomness.SEEDED)
        self._words = np.array(words, dtype=np.uint64)

    def words(self, purpose: Purpose, step: int, count: int) -> NDArray[np.uint64]:
        return self._words[:count]


def draws(stream: Keystream, scale: float, count: int, step: int = 0) -> NDArray[np.int64]:
    """Draws of a grid of 1/8, as no grid is special."""
    return rounded_normals(stream, NOISE, step, scale / 8, 0.125, count)


def by_the_inverse(stream: Keystream, scale: float, count: int, step: int = 0) -> list[int]:
    """The slow way: of each draw 320 bits, inverted in hundreds of digits, then rounded."""
    further = Keystream(stream.bits(Purpose.FURTHER_BITS, step, 32), Randomness.SEEDED)
    found = []
    with mpmath.workprec(800):
        for i, word in enumerate(stream.words(NOISE, step, count).tolist()):
            sign, u = -1 if word >> 63 else 1, word % 2**63
            for more in further.words(NOISE, i, 4).tolist():
                u = u << 64 | more
            magnitude = mpmath.sqrt(2) * mpmath.erfinv(1 - mpmath.ldexp(2 * u + 1, -320))
            found.append(sign * int(mpmath.nint(mpmath.mpf(scale) * magnitude)))
    return found


def at_boundaries(scale: float, magnitudes: list[int], nudges: list[int]) -> list[int]:
    """Words beside those at which one magnitude gives way to the next."""
    with mpmath.workprec(300):
        tails = [
            int(mpmath.ldexp(mpmath.erfc((k + 0.5) / mpmath.mpf(scale) / mpmath.sqrt(2)), 63))
            for k in magnitudes
        ]
    words = [tail + nudge for tail in tails for nudge in nudges]
    assert all(0 <= word < 2**63 for word in words)
    return [word + (i % 2 << 63) for i, word in enumerate(words)]


# The grid, and what clipping aims at.


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


# The noise, draw by draw.


@pytest.mark.parametrize("scale", [0.3, 5.0, 1331.2, 2.0**32])
def test_every_draw_is_the_rounding_that_the_inverse_finds(scale: float) -> None:
    stream = Keystream.seeded(1)
    assert draws(stream, scale, 150).tolist() == by_the_inverse(stream, scale, 150)


@pytest.mark.slow
@pytest.mark.parametrize("scale", [0.8, 37.3, 2.0**25])
def test_every_one_of_many_draws_is_the_rounding_that_the_inverse_finds(scale: float) -> None:
    stream = Keystream.seeded(2)
    assert draws(stream, scale, 10_000).tolist() == by_the_inverse(stream, scale, 10_000)


NUDGES = [-1000, -30, -1, 0, 1, 30, 1000]


@pytest.mark.parametrize("scale", [3.0, 1331.2, 2.0**25, 2.0**32])
def test_draws_at_the_boundaries_are_right(scale: float) -> None:
    magnitudes = [int(z * scale) for z in (0.0, 0.1, 0.5, 1, 1.5, 2, 3, 4, 5)]
    stream = Given(at_boundaries(scale, magnitudes, NUDGES))
    count = len(stream.words(NOISE, 0, 10**6))
    assert draws(stream, scale, count).tolist() == by_the_inverse(stream, scale, count)


def test_floats_alone_would_be_wrong_at_the_boundaries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grid_module, "MARGIN", 0.0)
    scale = 2.0**32
    stream = Given(at_boundaries(scale, [int(z / 7 * scale) for z in range(30)], NUDGES))
    found = draws(stream, scale, 7 * 30).tolist()
    assert found != by_the_inverse(stream, scale, 7 * 30)


def test_draws_in_the_far_tail_are_right() -> None:
    words = [
        sign << 63 | 2**k - less for sign in (0, 1) for k in range(0, 52, 3) for less in (0, 1)
    ]
    stream = Given(words)
    found = draws(stream, 1000.0, len(words)).tolist()
    assert found == by_the_inverse(stream, 1000.0, len(words))
    assert max(found) > 9000
    assert min(found) < -9000


@pytest.mark.parametrize("word", [0, 1, 2**63 - 1, 2**63, 2**64 - 1])
def test_the_extreme_words_are_right(word: int) -> None:
    stream = Given([word])
    for scale in (2.0**-32, 0.1, 1.0, 1e5):
        assert draws(stream, scale, 1).tolist() == by_the_inverse(stream, scale, 1)


def test_a_float_normal_is_far_nearer_to_the_truth_than_the_margin() -> None:
    log_tails = np.random.default_rng(3).uniform(-22, -1, 400)
    tails = np.concatenate([2.0**log_tails, 0.5 - 2.0 ** (2 * log_tails)])
    with mpmath.workprec(200):
        errors = [
            abs(float(-mpmath.sqrt(2) * mpmath.erfinv(1 - 2 * mpmath.mpf(u)) - mpmath.mpf(z)))
            for u, z in zip(tails.tolist(), ndtri(tails).tolist(), strict=True)
        ]
    assert max(errors) < MARGIN / 50


def test_floats_leave_about_one_draw_in_a_million_open(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def counted(first: int, further: object, deviation: float) -> int:
        asked.append(first)
        return 0

    monkeypatch.setattr(grid_module, "rounded_magnitude", counted)
    draws(Keystream.seeded(4), 1331.2, 2_000_000)
    assert len(asked) <= 12  # expected: 1, by chance more than 12 once in 10^10


# The law.


def exact_probabilities(scale: float, most: int) -> NDArray[np.float64]:
    """P(round(N(0, scale^2)) = k) for k from -most to most, the ends with what is beyond."""
    with mpmath.workdps(40):
        below = [mpmath.ncdf((k + mpmath.mpf(1) / 2) / scale) for k in range(-most, most)]
        ends = [mpmath.mpf(0), *below, mpmath.mpf(1)]
        return np.array([float(b - a) for a, b in itertools.pairwise(ends)])


@pytest.mark.parametrize(("scale", "most"), [(0.2, 1), (0.8, 3), (2.0, 7), (11.7, 40)])
def test_the_law_is_that_of_the_rounded_normal(scale: float, most: int) -> None:
    count = 400_000
    found = np.clip(draws(Keystream.seeded(5), scale, count), -most, most)
    seen = np.bincount(found + most, minlength=2 * most + 1)
    expected = count * exact_probabilities(scale, most)
    assert expected.min() > 5
    assert stats.chisquare(seen, expected).pvalue > 1e-3


def test_on_a_fine_grid_the_law_is_normal() -> None:
    found = draws(Keystream.seeded(6), 2.0**30, 300_000) / 2.0**30
    assert stats.kstest(found, "norm").pvalue > 1e-3


def test_magnitudes_and_signs_are_independent() -> None:
    found = draws(Keystream.seeded(7), 1e4, 100_000)
    table = np.histogram2d(found > 0, np.abs(found) > 6745, bins=2)[0]
    assert stats.chi2_contingency(table).pvalue > 1e-3


# Addresses.


@given(st.integers(0, 2**64), st.sampled_from(Purpose), st.integers(0, 2**48 - 1))
def test_key_purpose_and_step_determine_the_draws(seed: int, purpose: Purpose, step: int) -> None:
    one, again = (
        rounded_normals(Keystream.seeded(seed), purpose, step, 1e6, 1.0, 20) for _ in range(2)
    )
    assert np.array_equal(one, again)
    other = rounded_normals(Keystream.seeded(seed), purpose, step ^ 1, 1e6, 1.0, 20)
    assert not np.array_equal(one, other)


@given(st.integers(0, 300), st.integers(0, 300), st.integers(0, 2**20))
@settings(max_examples=15)
def test_draw_i_depends_on_i_alone(short: int, more: int, step: int) -> None:
    # One word in eight in the tail, so that further bits are drawn.
    words = Keystream.seeded(8).words(NOISE, step, 600)
    words = np.where(words % 8 == 0, words >> 30, words)
    few, many = (draws(Given(words), 1e5, count, step) for count in (short, short + more))
    assert np.array_equal(few, many[:short])


def test_chunks_are_a_matter_of_speed_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    words = Keystream.seeded(9).words(NOISE, 0, 1000)
    stream = Given(np.where(words % 8 == 0, words >> 30, words))
    whole = draws(stream, 1e5, 1000)
    monkeypatch.setattr(grid_module, "DRAWS_AT_ONCE", 7)
    assert np.array_equal(draws(stream, 1e5, 1000), whole)


def test_further_bits_of_two_draws_differ() -> None:
    stream = Keystream.seeded(10)
    addresses = [(NOISE, 0, 0), (NOISE, 0, 1), (NOISE, 1, 0), (Purpose.COUNT_NOISE, 0, 0)]
    further = [grid_module._further_words(stream, *address) for address in addresses]
    drawn = [next(words) for words in further for _ in range(5)]
    assert len(set(drawn)) == 20


# Together.


@given(
    st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=30),
    st.floats(0.3, 10),
    st.sampled_from([torch.float32, torch.float64]),
)
def test_the_result_lies_on_the_grid(
    values: list[float], noise_multiplier: float, dtype: torch.dtype
) -> None:
    total, grid = torch.tensor(values, dtype=dtype), grid_spacing(1.0, len(values))
    stream = Keystream.seeded(11)
    found = add_rounded_noise(total, stream, NOISE, 3, deviation=noise_multiplier, grid=grid)
    units = rounded_normals(stream, NOISE, 3, noise_multiplier, grid, len(values))
    expected = (round_to_grid(total, grid) + torch.from_numpy(units)).double() * grid
    assert found.dtype == dtype
    assert torch.equal(found, expected.to(dtype))
    assert all((Fraction(value) / Fraction(grid)).denominator == 1 for value in found.tolist())


def test_the_result_keeps_the_shape_of_the_sum() -> None:
    total = torch.zeros(3, 4).T
    assert add_rounded_noise(
        total, Keystream.seeded(1), NOISE, 0, deviation=1.0, grid=2.0**-11
    ).shape == (4, 3)


def test_the_noise_enters_before_the_sum_becomes_a_float32_again() -> None:
    total = torch.tensor([2.0**24])
    assert add_grid_units(total, torch.tensor([3]), 1.0).tolist() == [2.0**24 + 4]
    assert add_grid_units(total.double(), torch.tensor([3]), 1.0).tolist() == [2.0**24 + 3]


def test_no_draws_are_no_draws() -> None:
    assert draws(Keystream.seeded(1), 1.0, 0).shape == (0,)
    assert add_rounded_noise(
        torch.empty(0), Keystream.seeded(1), NOISE, 0, deviation=1.0, grid=0.5
    ).shape == (0,)


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, math.inf, 0.3, 3.0])
def test_a_grid_that_is_no_power_of_two_is_refused(bad: float) -> None:
    with pytest.raises(InvalidArgument, match="grid must be a power of two"):
        rounded_normals(Keystream.seeded(1), NOISE, 0, 1.0, bad, 1)
    with pytest.raises(InvalidArgument, match="grid must be a power of two"):
        round_to_grid(torch.zeros(1), bad)


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, math.inf, 1e-10, 1e10])
def test_a_deviation_out_of_range_is_refused(bad: float) -> None:
    with pytest.raises(InvalidArgument, match="deviation"):
        rounded_normals(Keystream.seeded(1), NOISE, 0, bad, 1.0, 1)


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, math.inf, 1e-310])
def test_a_clip_norm_without_a_grid_is_refused(bad: float) -> None:
    for function in (grid_spacing, clip_norm_within):
        with pytest.raises(InvalidArgument, match="clip_norm"):
            function(bad, 10)


def test_a_dimension_below_one_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="dimension"):
        grid_spacing(1.0, 0)
