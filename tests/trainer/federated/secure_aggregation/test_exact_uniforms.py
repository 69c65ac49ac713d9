"""Exact comparisons: bounds that hold, and results that further bits decide."""

from __future__ import annotations

import math
from fractions import Fraction

import mpmath
import pytest

from dpaudit.trainer.federated.secure_aggregation import skellam
from dpaudit.trainer.federated.secure_aggregation.exact_uniforms import (
    ExactUniform,
    exponential_bounds,
    poisson_bounds,
)


@pytest.mark.parametrize(
    "exponent",
    [Fraction(0), Fraction(1, 3), Fraction(1), Fraction(7, 2), Fraction(100), Fraction(1, 10**30)],
)
@pytest.mark.parametrize("bits", [64, 128, 320])
def test_exponential_bounds_enclose_the_value_tightly(exponent: Fraction, bits: int) -> None:
    lower, upper = exponential_bounds(exponent)(bits)
    with mpmath.workdps(300):
        exact = mpmath.exp(-mpmath.mpf(exponent.numerator) / exponent.denominator)
        scaled = exact * mpmath.mpf(2) ** bits
        assert lower <= scaled <= upper
    assert upper - lower <= 3


@pytest.mark.parametrize("mean", [0.25, 1.0, 3.7, 40.0, 1234.5])
def test_poisson_bounds_enclose_the_value_tightly(mean: float) -> None:
    for largest in {0, 1, math.floor(mean), math.ceil(mean + 3 * math.sqrt(mean))}:
        lower, upper = poisson_bounds(largest, Fraction(mean))(128)
        with mpmath.workdps(60):
            exact = mpmath.gammainc(largest + 1, mean, mpmath.inf, regularized=True)
            assert lower <= exact * mpmath.mpf(2) ** 128 <= upper
        assert upper - lower <= 3


@pytest.mark.parametrize("mean", [1.0, 10.0, 900.0, 1e4, 2.0**20])
def test_the_table_of_poisson_probabilities_is_within_its_margin(mean: float) -> None:
    first, table = skellam._cumulative(mean)
    for deviations in (-5.0, -4.6, -1.5, -0.1, 0.0, 0.7, 2.0, 3.9, 4.2, 4.7, 6.0):
        largest = max(round(mean + deviations * math.sqrt(mean)), 0)
        lower, upper = poisson_bounds(largest, Fraction(mean))(96)
        found = Fraction(float(table[largest - first]))
        middle = Fraction(lower + upper, 2**97)
        assert abs(found - middle) < Fraction(skellam.MARGIN) / 4


@pytest.mark.slow
@pytest.mark.parametrize("mean", [2.0**26, 2.0**31])
def test_large_tables_of_poisson_probabilities_are_within_their_margin(mean: float) -> None:
    test_the_table_of_poisson_probabilities_is_within_its_margin(mean)


@pytest.mark.parametrize(("offset", "expected"), [(-1, True), (0, False), (1, False)])
def test_further_bits_decide_next_to_a_threshold(offset: int, expected: bool) -> None:
    """All bits of the number agree with those of the probability until the last ones."""
    exact = exponential_bounds(Fraction(1))(320)[0] + 4 * offset + (2 if offset == 0 else 0)
    words = [(exact >> shift) & (2**64 - 1) for shift in (256, 192, 128, 64, 0)]
    asked = []

    def further(count: int) -> list[int]:
        asked.append(count)
        return words[1 : 1 + count] + [2**63] * max(count - 4, 0)

    assert ExactUniform(words[0], further).is_below(exponential_bounds(Fraction(1))) is expected
    assert max(asked) >= 4
