"""The exact rounding: its enclosures hold the truth, and a slow oracle finds the same."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from fractions import Fraction

import mpmath
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from noise_words import exact_draw

from dpaudit.trainer.noise.exact_rounding import (
    GUARD_BITS,
    magnitude_bounds,
    minus_log_bounds,
    rounded_magnitude,
    turned_bounds,
)

words = st.integers(0, 2**64 - 1)
angles = st.integers(0, 2**62 - 1)
scales = st.floats(2.0**-4, 2.0**32)
further = st.lists(words, min_size=8, max_size=8)


def by_mpmath(radius: int, angle: int, more: list[int], scale: float, *, plus: bool) -> int:
    """The slow way: all the bits at once, in hundreds of digits."""
    with mpmath.workprec(1000):
        drawn = exact_draw(radius, angle, iter(more), plus=plus)
        return int(mpmath.floor(mpmath.mpf(scale) * drawn + 0.5))


class Counted:
    """Words that are given, then one again and again; it tells how many were taken."""

    def __init__(self, given: list[int], then: int = 2**63) -> None:
        self._words: Iterator[int] = itertools.chain(given, itertools.repeat(then))
        self.taken = 0

    def __iter__(self) -> Iterator[int]:
        return self

    def __next__(self) -> int:
        self.taken += 1
        return next(self._words)


@st.composite
def fractions(draw: st.DrawFn) -> tuple[int, int, int]:
    """A numerator, the number of its bits, and a precision."""
    bits = draw(st.sampled_from([64, 128, 320]))
    ends = st.sampled_from([1, 2, 3, 2**bits - 1, 2**bits, 7 * 2**bits // 10])
    numerator = draw(st.integers(1, 2**bits) | ends | st.integers(0, bits).map(lambda k: 2**k))
    return numerator, bits, bits + GUARD_BITS + draw(st.sampled_from([0, 1, 33, 90]))


@given(fractions())
@settings(max_examples=200)
def test_the_logarithm_lies_in_its_enclosure(case: tuple[int, int, int]) -> None:
    numerator, bits, working = case
    lower, upper = minus_log_bounds(numerator, bits, working)
    with mpmath.workprec(2 * working):
        truth = mpmath.ldexp(-mpmath.log(mpmath.ldexp(numerator, -bits)), working)
        assert lower <= truth <= upper
        # The stated error is at least four times what is ever lost, and far below the guard.
        assert abs(truth - (lower + upper) / mpmath.mpf(2)) <= (upper - lower) / 4 or lower == 0
    assert upper - lower <= 4 * (bits + 1) * working


@given(fractions(), st.booleans())
@settings(max_examples=200)
def test_cosine_and_sine_lie_in_their_enclosure(case: tuple[int, int, int], plus: bool) -> None:
    angle, bits, working = case
    lower, upper = turned_bounds(angle, bits, working, plus=plus)
    with mpmath.workprec(2 * working):
        y = mpmath.pi / 4 * (mpmath.ldexp(angle, 1 - bits) - 1)
        turned = mpmath.cos(y) + mpmath.sin(y) if plus else mpmath.cos(y) - mpmath.sin(y)
        assert lower <= mpmath.ldexp(turned, working) <= upper
    assert upper - lower == 80 * working


@given(words, angles, further, scales, st.booleans())
@settings(max_examples=100)
def test_it_is_the_rounding_that_many_digits_find(
    radius: int, angle: int, more: list[int], scale: float, plus: bool
) -> None:
    found = rounded_magnitude(radius, angle, Counted(more), scale=scale, plus=plus)
    assert found == by_mpmath(radius, angle, more, scale, plus=plus)


@given(st.integers(0, 63), st.sampled_from([0, 1, 2]), angles, further, scales, st.booleans())
@settings(max_examples=60)
def test_the_tail_and_the_end_near_zero_are_rounded_right(
    zeros: int, less: int, angle: int, more: list[int], scale: float, plus: bool
) -> None:
    for radius in (max(2**63 >> zeros, less) - less, 2**64 - 1 - (2**zeros - 1)):
        found = rounded_magnitude(radius, angle, Counted(more), scale=scale, plus=plus)
        assert found == by_mpmath(radius, angle, more, scale, plus=plus)


@given(words, angles, further, st.sampled_from([3.0, 1e6, 2.0**32]), st.booleans())
@settings(max_examples=60)
@example(0, 0, [0] * 8, 1e6, True)
@example(2**64 - 1, 2**62 - 1, [2**64 - 1] * 8, 1e6, False)
def test_the_bounds_hold_what_further_bits_can_reach(
    radius: int, angle: int, more: list[int], scale: float, plus: bool
) -> None:
    lower, upper = magnitude_bounds(radius, angle, 64, Fraction(scale), plus=plus)
    found = by_mpmath(radius, angle, more, scale, plus=plus)
    assert lower <= found
    assert (upper is None) == (radius == 0)
    assert upper is None or found <= upper


def boundary_radius(magnitude: int, angle: int, scale: float, count: int) -> list[int]:
    """Bits of u, in words, at which a magnitude gives way to the next, if t is its lower end."""
    with mpmath.workprec(64 * count + 300):
        y = mpmath.pi / 4 * (mpmath.ldexp(angle, -61) - 1)
        turned = mpmath.cos(y) + mpmath.sin(y)
        u = mpmath.exp(-(((magnitude + mpmath.mpf(1) / 2) / mpmath.mpf(scale) / turned) ** 2))
        whole = int(mpmath.floor(mpmath.ldexp(u, 64 * count)))
    return [whole >> (64 * i) & (2**64 - 1) for i in reversed(range(count))]


@pytest.mark.parametrize("scale", [1.0, 37.25, 1e6, 2.0**32])
@pytest.mark.parametrize("agreeing", [2, 3, 5])
def test_it_draws_for_as_long_as_the_bits_follow_a_boundary_and_then_stops(
    scale: float, agreeing: int
) -> None:
    magnitude, angle = round(0.7 * scale), 2**61 + 12345
    first, *radii = boundary_radius(magnitude, angle, scale, agreeing)
    zeros = [word for radius in radii for word in (radius, 0)]  # t stays at its lower end
    for last, expected in ((0, magnitude + 1), (2**64 - 1, magnitude)):
        # What follows the floor of the boundary is neither all zeros nor all ones.
        more = Counted([*zeros, last, 0, last, 0], 0)
        assert rounded_magnitude(first, angle, more, scale=scale, plus=True) == expected
        assert agreeing - 1 <= more.taken / 2 <= agreeing + 1


def test_a_draw_that_is_clear_takes_no_further_word() -> None:
    more = Counted([])
    # sqrt(ln 4) is 1.17741.
    assert rounded_magnitude(2**62, 2**61, more, scale=1000.0, plus=True) == 1177
    assert more.taken == 0


@pytest.mark.parametrize("zeros", [1, 3, 9])
def test_zeros_without_end_are_followed_into_the_tail(zeros: int) -> None:
    more = [0] * (2 * zeros) + [1, 2, 3, 4, 5, 6]
    with mpmath.workprec(2000):
        drawn = exact_draw(0, 2**61, iter(more), plus=True, words=zeros + 3)
        expected = int(mpmath.nint(1000 * drawn))
    found = rounded_magnitude(0, 2**61, Counted(more), scale=1000.0, plus=True)
    assert found == expected
    assert found > 9_000


@pytest.mark.parametrize("scale", [2.0**-32, 1e-3, 0.04])
def test_noise_far_below_the_grid_rounds_to_zero(scale: float) -> None:
    assert rounded_magnitude(1, 2**61, Counted([]), scale=scale, plus=True) == 0
