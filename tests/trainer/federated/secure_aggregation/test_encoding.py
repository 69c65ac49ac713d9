"""Encoding: a sensitivity that holds on integers, without bias, and errors."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from dpaudit.trainer.federated.secure_aggregation import encoding as encoding_module
from dpaudit.trainer.federated.secure_aggregation.encoding import UpdateEncoding
from dpaudit.trainer.noise.randomness import Keystream
from dpaudit.vocabulary.errors import AccountingError, InvalidArgument

STREAM = Keystream.seeded(3)
GENERATOR = np.random.default_rng(5)

ENCODINGS = [
    UpdateEncoding(1.0, 1, 1),
    UpdateEncoding(0.3, 1, 1000),
    UpdateEncoding(2.5, 7, 50),
    UpdateEncoding(1e-8, 1000, 300, rounding_failure=1e-6),
    UpdateEncoding(1e8, 2**20, 10_000),
]


@pytest.mark.parametrize("encoding", ENCODINGS, ids=str)
@pytest.mark.parametrize("size", [0.0, 1e-30, 0.5, 1.0, 1e20])
def test_no_encoded_update_exceeds_the_sensitivity(encoding: UpdateEncoding, size: float) -> None:
    direction = GENERATOR.standard_normal(encoding.dimension)
    spike = np.zeros(encoding.dimension)
    spike[-1] = 1
    for number, shape in enumerate((direction, spike, np.ones(encoding.dimension))):
        update = shape * size * encoding.clip_norm
        found = encoding.encode(update, STREAM, number)
        assert found.dtype == np.int64
        square = sum(int(one) ** 2 for one in found)
        assert square <= encoding.squared_norm_limit <= encoding.l2_sensitivity**2
        assert sum(abs(int(one)) for one in found) <= encoding.l1_sensitivity
        assert np.abs(found).max() <= encoding.largest_entry


def test_the_limit_is_the_smaller_of_both_bounds() -> None:
    """By hand: L = 100, d = 400, b = exp(-1/2), so sqrt(2 ln(1/b)) = 1."""
    assert UpdateEncoding(1.0, 100, 400).squared_norm_limit == 100**2 + 100 + (100 + 10)
    # L = 2, d = 4: the worst case (2 + 2)^2 = 16; the other one is 4 + 1 + 3 = 8.
    assert UpdateEncoding(1.0, 2, 4).squared_norm_limit == 8
    # L = 1, d = 1, b = 1e-6: the worst case (1 + 1)^2 = 4 is the smaller one.
    assert UpdateEncoding(1.0, 1, 1, 1e-6).squared_norm_limit == 4


@pytest.mark.parametrize("failure", [math.exp(-0.5), 0.01])
def test_few_roundings_are_repeated(failure: float) -> None:
    """At the largest norm and the worst fraction, 1/2, at most the stated share is rejected."""
    encoding = UpdateEncoding(1.0, 50, 10_000, failure)
    update = np.full(10_000, 0.01)
    floor, fraction = encoding._scaled(update)
    assert fraction == pytest.approx(0.5)
    tries, rejected = 400, 0
    for coins, _ in zip(encoding._uniforms(STREAM, 1), range(tries), strict=False):
        rounded = floor + (coins < fraction)
        rejected += int(rounded @ rounded) > encoding.squared_norm_limit
    assert rejected <= tries * failure + 5 * math.sqrt(tries * failure)


def test_rounding_keeps_the_mean() -> None:
    encoding = UpdateEncoding(1.0, 10, 100_000)
    update = np.full(100_000, 0.73 / math.sqrt(100_000))
    found = encoding.encode(update, STREAM, 0)
    exact = update[0] * 10
    assert set(found) <= {0, 1}
    # Five standard errors of a coin, on 1e5 coordinates.
    assert abs(found.mean() - exact) < 5 * math.sqrt(exact / 100_000)


def test_decoding_inverts_encoding_up_to_one_step() -> None:
    encoding = UpdateEncoding(2.0, 1000, 40)
    update = GENERATOR.standard_normal(40) / 10
    decoded = encoding.decode(encoding.encode(update, STREAM, 2))
    assert np.abs(decoded - update).max() <= encoding.grid * (1 + 1e-9)


def test_large_and_small_floats_are_clipped_without_overflow() -> None:
    encoding = UpdateEncoding(1.0, 1000, 2)
    for size in (1e300, 1e-300):
        found = encoding.encode(np.array([size, 0.0]), STREAM, 0)
        assert found[0] in ({1000} if size > 1 else {0})
    assert encoding.encode(np.array([3e38, 4e38]), STREAM, 0).tolist() == [600, 800]


@pytest.mark.parametrize(
    "update", [np.zeros(3), np.array([math.nan, 0.0]), np.array([math.inf, 0.0])]
)
def test_an_update_that_does_not_fit_is_refused(update: np.ndarray) -> None:
    with pytest.raises(InvalidArgument, match="update"):
        UpdateEncoding(1.0, 1000, 2).encode(update, STREAM, 0)


def test_endless_repetition_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoding_module, "MOST_ROUNDINGS", 3)
    monkeypatch.setattr(UpdateEncoding, "squared_norm_limit", 0)
    with pytest.raises(AccountingError, match="roundings"):
        UpdateEncoding(1.0, 1000, 2).encode(np.ones(2), STREAM, 0)


@pytest.mark.parametrize(
    "values",
    [(0.0, 1, 1), (math.nan, 1, 1), (1.0, 0, 1), (1.0, 1, 0), (1.0, 2**30, 4), (1.0, 1, 1, 1.0)],
)
def test_invalid_values_are_refused(values: tuple[float, ...]) -> None:
    with pytest.raises(InvalidArgument):
        UpdateEncoding(*values)  # type: ignore[arg-type]


# The count of updates within the clip norm, as one more coordinate.


@pytest.mark.parametrize("steps", [1, 700, 2**20])
@pytest.mark.parametrize("base", ENCODINGS, ids=str)
def test_a_counted_update_is_within_the_sensitivity(base: UpdateEncoding, steps: int) -> None:
    encoding = replace(base, count_steps=steps)
    assert encoding.length == base.dimension + 1
    for number, size in enumerate((0.0, 0.5, 1.0, 1e20)):
        update = np.zeros(encoding.dimension)
        update[-1] = size * encoding.clip_norm
        found = encoding.encode(update, STREAM, number)
        assert found[-1] == (steps if size <= 1 else -steps)
        square = sum(int(one) ** 2 for one in found)
        assert square <= encoding.squared_norm_limit + steps**2 <= encoding.l2_sensitivity**2
        assert sum(abs(int(one)) for one in found) <= encoding.l1_sensitivity
        assert np.abs(found).max() <= encoding.largest_entry
        np.testing.assert_array_equal(found[:-1], base.encode(update, STREAM, number))


def test_planted_sensitivity_without_the_count_does_not_cover_it() -> None:
    encoding = UpdateEncoding(1.0, 1000, 4, count_steps=900)
    found = encoding.encode(np.array([1.0, 0, 0, 0]), STREAM, 0)
    norm = math.sqrt(sum(int(one) ** 2 for one in found))
    assert replace(encoding, count_steps=0).l2_sensitivity < norm <= encoding.l2_sensitivity


def test_a_count_is_half_of_the_difference_between_both_kinds() -> None:
    encoding = UpdateEncoding(1.0, 1000, 2, count_steps=30)
    total = sum(
        encoding.encode(np.array([size, 0.0]), STREAM, number)
        for number, size in enumerate((0.0, 0.5, 1.0, 1.5))
    )
    assert encoding.decode_count(total) == 1.0  # three within, one beyond
    np.testing.assert_allclose(encoding.decode(total), [2.5, 0.0])
    assert replace(encoding, count_steps=0).decode_count(total[:-1]) is None
