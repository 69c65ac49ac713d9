"""Noise on a grid: its law, draw by draw; the sensitivity of what it is added to."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from noise_words import (
    KERNELS,
    NOISE,
    Given,
    blocks_of,
    exact_draw,
    grid_bits,
    use,
)
from numpy.typing import NDArray
from scipy import stats

from dpaudit.trainer.noise import grid_noise as grid_module
from dpaudit.trainer.noise.exact_rounding import rounded_magnitude
from dpaudit.trainer.noise.grid_noise import (
    add_grid_units,
    add_rounded_noise,
    grid_spacing,
    round_to_grid,
    rounded_normals,
)
from dpaudit.trainer.noise.kernels import DRAWS, PAIRS
from dpaudit.trainer.noise.randomness import Keystream, Purpose
from dpaudit.vocabulary.errors import InvalidArgument


@pytest.fixture(params=KERNELS, autouse=True)
def _each_kernel(request: pytest.FixtureRequest) -> Iterator[None]:
    """Whatever draws, the compiled kernels or numpy, all of this holds."""
    with pytest.MonkeyPatch.context() as patch:
        use(patch, KERNELS[request.param])
        yield


def draws(stream: Keystream, scale: float, count: int, step: int = 0) -> NDArray[np.int64]:
    """Draws of a grid of 1/8, as no grid is special."""
    return rounded_normals(stream, NOISE, step, scale / 8, 0.125, count)


def by_mpmath(stream: Keystream, scale: float, count: int, step: int = 0) -> list[int]:
    """The slow way: the transform of 320 bits, in hundreds of digits, then rounded."""
    blocks = -(-count // DRAWS)
    words = np.frombuffer(read(stream, step, 8 * DRAWS * blocks), "<u4")
    found = []
    with mpmath.workprec(500):
        for draw, (radius, angle, negative, which) in enumerate(grid_bits(words)):
            if draw == count:
                break
            pair = draw // DRAWS * PAIRS + draw % PAIRS
            further = stream.further_words(NOISE, step, pair)
            drawn = exact_draw(radius, angle, further, plus=bool(which))
            magnitude = int(mpmath.nint(mpmath.mpf(scale) * drawn))
            found.append(-magnitude if negative else magnitude)
    return found


def read(stream: Keystream, step: int, count: int) -> bytearray:
    bits = bytearray(count)
    stream.reader(NOISE, step)(bits)
    return bits


def stream_of(radii: list[int], angles: list[int]) -> Given:
    """A stream of pairs with 64 bits for each radius, and 62 and two signs for each angle."""
    parts = [
        [radius >> 32 for radius in radii],
        [radius & 2**32 - 1 ^ 2**31 for radius in radii],
        [(angle >> 32 ^ 2**31) & 2**32 - 1 for angle in angles],
        [angle & 2**32 - 1 ^ 2**31 for angle in angles],
    ]
    return Given(blocks_of([np.array(part, dtype=np.uint32) for part in parts]))


def at_boundaries(scale: float, magnitudes: list[int], nudges: list[int]) -> Given:
    """Pairs beside those at which one magnitude of the second draw gives way to the next."""
    random = np.random.default_rng(12)
    radii, angles = [], []
    with mpmath.workprec(300):
        for k in magnitudes:
            # y is near 0, where the draw hardly depends on it.
            angle = 2**61 + int(random.integers(-(2**40), 2**40))
            y = mpmath.pi / 4 * (mpmath.ldexp(angle + mpmath.mpf(1) / 2, -61) - 1)
            x = (k + mpmath.mpf(1) / 2) / mpmath.mpf(scale) / (mpmath.cos(y) + mpmath.sin(y))
            radius = int(mpmath.ldexp(mpmath.exp(-(x**2)), 64))
            for nudge in nudges:
                radii.append(radius + nudge)
                angles.append(angle >> 32 << 34 | int(random.integers(4)) << 32 | angle & 2**32 - 1)
    assert all(0 <= radius < 2**64 for radius in radii)
    return stream_of(radii, angles)


# The noise, draw by draw.


@pytest.mark.parametrize("scale", [0.3, 5.0, 1331.2, 2.0**32])
def test_every_draw_is_the_rounding_that_many_digits_find(scale: float) -> None:
    stream = Keystream.seeded(1)
    assert draws(stream, scale, 300).tolist() == by_mpmath(stream, scale, 300)


@pytest.mark.slow
@pytest.mark.parametrize("scale", [0.8, 37.3, 2.0**25, 2.0**32])
def test_every_one_of_many_draws_is_the_rounding_that_many_digits_find(scale: float) -> None:
    stream = Keystream.seeded(2)
    assert draws(stream, scale, 10_000).tolist() == by_mpmath(stream, scale, 10_000)


NUDGES = [-1000, -30, -1, 0, 1, 30, 1000]


@pytest.mark.parametrize("scale", [3.0, 1331.2, 2.0**25, 2.0**32])
def test_draws_at_the_boundaries_are_right(scale: float) -> None:
    magnitudes = [int(z * scale) for z in (0.1, 0.3, 0.5, 0.83, 1, 1.5, 2, 2.5, 3)]
    stream = at_boundaries(scale, magnitudes, NUDGES)
    assert draws(stream, scale, DRAWS).tolist() == by_mpmath(stream, scale, DRAWS)


def test_floats_alone_would_be_wrong_at_the_boundaries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grid_module, "MARGIN", 0.0)
    scale = 2.0**32
    stream = at_boundaries(scale, [int((z + 0.1) / 9 * scale) for z in range(27)], [-1, 0])
    assert draws(stream, scale, DRAWS).tolist() != by_mpmath(stream, scale, DRAWS)


def test_rare_radii_are_decided_by_further_bits() -> None:
    """Below 2^-20 and in the last 2^-32 before 1: no float is used."""
    high = [0, 1, 2, 1000, 2**12 - 1, 2**32 - 1]
    radii = [one << 32 | low for one in high for low in (0, 1, 2**31, 2**32 - 1)]
    stream = stream_of(radii, [int(a) for a in np.random.default_rng(1).integers(0, 2**63, 24)])
    asked: list[int] = []

    def counted(radius: int, angle: int, further: Iterator[int], **kind: Any) -> int:
        asked.append(radius)
        return rounded_magnitude(radius, angle, further, **kind)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grid_module, "rounded_magnitude", counted)
        found = draws(stream, 1000.0, DRAWS)
    assert found.tolist() == by_mpmath(stream, 1000.0, DRAWS)
    assert sorted(asked) == sorted(2 * [radii[pair % 24] for pair in range(PAIRS)])


@pytest.mark.parametrize("word", [0, 1, 2**12, 2**31 - 1, 2**31, 2**32 - 2, 2**32 - 1])
def test_the_extreme_words_are_right(word: int) -> None:
    stream = Given(np.full(4 * PAIRS, word, dtype=np.uint32))
    for scale in (2.0**-32, 0.1, 1.0, 1e5):
        # Pairs of equal words differ in their further bits alone.
        assert draws(stream, scale, DRAWS).tolist() == by_mpmath(stream, scale, DRAWS)


def test_tails_reach_beyond_twelve_deviations(monkeypatch: pytest.MonkeyPatch) -> None:
    # The second draw of a pair is largest at t = 1.
    stream = stream_of([0] * PAIRS, [2**64 - 1] * PAIRS)
    assert np.abs(draws(stream, 1000.0, DRAWS)[PAIRS:]).min() > 9_000
    # With 64 zeros more, u is about 2^-129.
    monkeypatch.setattr(
        Keystream, "further_words", lambda *address: itertools.chain([0, 0], itertools.repeat(1))
    )
    assert np.abs(draws(stream, 1000.0, DRAWS)[PAIRS:]).min() > 13_000


def test_floats_leave_about_one_draw_in_a_million_undecided(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[int] = []

    def counted(radius: int, angle: int, further: object, **kind: Any) -> int:
        asked.append(radius)
        return 0

    monkeypatch.setattr(grid_module, "rounded_magnitude", counted)
    draws(Keystream.seeded(4), 1331.2, 1_000_000)
    # Expected: 1 for the tail, none for the margin; more than 14 by chance once in 10^8.
    assert len(asked) <= 14


GOLDEN = {
    0.7: "d96131a0525157b8b06c2c552abd9f89f2f174bd42caef106d12dbf0499d28d9",
    1331.2: "bd360e6e2f408268b182f0f595fa2f8268bf185fb69f83f3e8d5cb4ca3786d86",
    1.5e6: "bbd4c7bdd703fb2354b5a68fe688976618194ab3c0def48ffdc2707edd6b1bda",
    2.0**30: "f936f42f3076f28f7b04a018c4fcc1271b1957f20a38ad67daef8425124b2e5c",
}
"""SHA-256 of 50,000 draws as little-endian int64, of the stream of seed 17, step 3."""


@pytest.mark.parametrize("scale", GOLDEN)
def test_the_integers_are_the_same_everywhere(scale: float) -> None:
    """A changed hash means that other noise is drawn: it must be on purpose, and say so."""
    found = rounded_normals(Keystream.seeded(17), NOISE, 3, scale, 1.0, 50_000)
    assert hashlib.sha256(found.astype("<i8").tobytes()).hexdigest() == GOLDEN[scale]


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
    assert stats.chisquare(seen, expected).pvalue > 1e-6


def test_on_a_fine_grid_the_law_is_normal() -> None:
    found = draws(Keystream.seeded(6), 2.0**30, 300_000) / 2.0**30
    assert stats.kstest(found, "norm").pvalue > 1e-6


def test_magnitudes_signs_and_the_draws_of_a_pair_are_independent() -> None:
    found = draws(Keystream.seeded(7), 1e4, 200_000 // DRAWS * DRAWS).reshape(-1, 2, PAIRS)
    one, other = found[:, 0].ravel(), found[:, 1].ravel()
    for left, right in (
        (one > 0, np.abs(one) > 6745),
        (one > 0, other > 0),
        (np.abs(one) > 6745, np.abs(other) > 6745),
        (one > 0, np.abs(other) > 6745),
        (np.abs(one[1:]) > 6745, np.abs(one[:-1]) > 6745),
    ):
        table = np.histogram2d(left, right, bins=2)[0]
        assert stats.chi2_contingency(table).pvalue > 1e-6


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
    few, many = (draws(in_the_tail(), 1e5, count, step) for count in (short, short + more))
    assert np.array_equal(few, many[:short])


def in_the_tail() -> Given:
    """One pair in eight in the tail, so that further bits are drawn."""
    words = Keystream.seeded(8).words(NOISE, 0, 16 * PAIRS).view(np.uint32).reshape(-1, 4, PAIRS)
    words = words.copy()
    words[:, 0, ::8] >>= 22
    return Given(words.ravel())


def test_chunks_are_a_matter_of_speed_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = draws(in_the_tail(), 1e5, 1000)
    monkeypatch.setattr(grid_module, "BLOCKS_AT_ONCE", 3)
    assert np.array_equal(draws(in_the_tail(), 1e5, 1000), whole)


def test_further_bits_of_two_draws_differ() -> None:
    stream = Keystream.seeded(10)
    addresses = [(NOISE, 0, 0), (NOISE, 0, 1), (NOISE, 1, 0), (Purpose.COUNT_NOISE, 0, 0)]
    further = [stream.further_words(*address) for address in addresses]
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
