"""The exact rounding: its enclosure holds the truth, and a slow oracle finds the same."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from fractions import Fraction

import mpmath
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dpaudit.trainer.noise import grid_noise
from dpaudit.trainer.noise.grid_noise import rounded_magnitude, upper_tail

words = st.integers(0, 2**64 - 1)
deviations = st.floats(2.0**-4, 2.0**32)


def tail(at: Fraction, bits: int) -> mpmath.mpf:
    """Q(at) in units of 2^-bits, by mpmath's erfc in far more digits than are looked at."""
    with mpmath.workprec(3 * bits + 200):
        x = mpmath.mpf(at.numerator) / at.denominator
        return mpmath.ldexp(mpmath.erfc(x / mpmath.sqrt(2)), bits - 1)


def by_the_inverse(first: int, more: list[int], deviation: float) -> int:
    """The slow way: all the bits at once, the inverse error function in hundreds of digits."""
    u, bits = first, 64
    for word in more:
        u, bits = u << 64 | word, bits + 64
    with mpmath.workprec(2 * bits + 100):
        p = 1 - mpmath.ldexp(2 * u + 1, -bits)  # the middle of what is left open
        return int(mpmath.nint(deviation * mpmath.sqrt(2) * mpmath.erfinv(p)))


def at_boundary(magnitude: int, deviation: float, words: int) -> int:
    """The first bits of the tail probability at which ``magnitude`` gives way to the next."""
    at = (magnitude + Fraction(1, 2)) / Fraction(deviation)
    return int(tail(at, 64 * words))


def split(u: int, words: int) -> tuple[int, list[int]]:
    parts = [u >> (64 * i) & (2**64 - 1) for i in reversed(range(words))]
    return parts[0], parts[1:]


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


@given(
    st.fractions(0, 45, max_denominator=10**9) | st.fractions(0, Fraction(1, 10**6)),
    st.sampled_from([64, 128, 192, 320, 1024]),
)
@example(Fraction(0), 128)
@example(Fraction(16), 128)
def test_the_tail_lies_in_its_enclosure(at: Fraction, bits: int) -> None:
    lower, upper = upper_tail(at, bits)
    assert lower <= tail(at, bits) <= upper
    assert upper - lower <= 2


@pytest.mark.parametrize("bits", [64, 100, 500, 3000])
def test_the_root_of_two_pi_lies_in_its_enclosure(bits: int) -> None:
    lower, upper = grid_noise._root_of_two_pi(bits)
    with mpmath.workprec(2 * bits):
        assert lower <= mpmath.ldexp(mpmath.sqrt(2 * mpmath.pi), bits) <= upper
    assert upper - lower <= 40 * bits  # far below the guard of 32 bits


@given(st.integers(0, 2**63 - 1), st.lists(words, min_size=4, max_size=4), deviations)
@settings(max_examples=60)
def test_it_is_the_rounding_that_the_inverse_finds(
    first: int, more: list[int], deviation: float
) -> None:
    found = rounded_magnitude(first, Counted(more), deviation)
    assert found == by_the_inverse(first, more, deviation)


@given(st.integers(0, 62), st.lists(words, min_size=4, max_size=4), deviations)
@settings(max_examples=30)
def test_far_tails_are_rounded_as_the_inverse_finds(
    zeros: int, more: list[int], deviation: float
) -> None:
    first = 2**62 >> zeros
    assert rounded_magnitude(first, Counted(more), deviation) == by_the_inverse(
        first, more, deviation
    )


@given(st.floats(0, 8), deviations, st.integers(1, 4))
def test_bits_that_follow_a_boundary_decide_where_they_leave_it(
    around: float, deviation: float, agreeing: int
) -> None:
    magnitude = int(around * deviation)
    boundary = at_boundary(magnitude, deviation, agreeing + 1)
    # The last words alone differ, by one, from those of the boundary.
    for u, expected in ((boundary - 1, magnitude + 1), (boundary + 1, magnitude)):
        if 0 < u < 2 ** (64 * (agreeing + 1) - 1):
            first, more = split(u, agreeing + 1)
            assert rounded_magnitude(first, Counted(more), deviation) == expected


@pytest.mark.parametrize("deviation", [1.0, 37.25, 1e6, 2.0**32])
@pytest.mark.parametrize("agreeing", [2, 3, 5])
def test_it_draws_for_as_long_as_the_bits_follow_a_boundary_and_then_stops(
    deviation: float, agreeing: int
) -> None:
    magnitude = round(0.7 * deviation)
    first, more = split(at_boundary(magnitude, deviation, agreeing), agreeing)
    for last, expected in ((0, magnitude + 1), (2**64 - 1, magnitude)):
        # What follows the floor of the boundary is neither all zeros nor all ones.
        further = Counted(more, last)
        assert rounded_magnitude(first, further, deviation) == expected
        assert agreeing <= further.taken <= agreeing + 1


def test_a_draw_that_is_clear_takes_one_more_word() -> None:
    further = Counted([])
    assert rounded_magnitude(2**62, further, 1000.0) == 674  # -ndtri(1 / 4) is 0.67449
    assert further.taken == 1


@pytest.mark.parametrize("zeros", [1, 3, 9])
def test_zeros_without_end_are_followed_into_the_tail(zeros: int) -> None:
    more = [0] * zeros + [1, 2, 3]
    found = rounded_magnitude(0, Counted(more), 1000.0)
    assert found == by_the_inverse(0, more, 1000.0)
    assert found > 9_000


@pytest.mark.parametrize("deviation", [2.0**-32, 1e-3, 0.04])
def test_noise_far_below_the_grid_rounds_to_zero(deviation: float) -> None:
    assert rounded_magnitude(1, Counted([]), deviation) == 0
