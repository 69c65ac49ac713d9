"""float32 normals of the keystream: their law, their tails, and what a draw depends on."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from noise_words import KERNELS, NOISE, Given, blocks_of, use
from numpy.typing import NDArray
from scipy import stats

from dpaudit.trainer.noise import gaussian_draws
from dpaudit.trainer.noise.gaussian_draws import Normals, normal_chunks, normals
from dpaudit.trainer.noise.kernels import DRAWS, PAIRS, RARE
from dpaudit.trainer.noise.randomness import Keystream, Purpose


@pytest.fixture(params=KERNELS, autouse=True)
def _each_kernel(request: pytest.FixtureRequest) -> Iterator[None]:
    """Whatever draws, the compiled kernels or numpy, all of this holds."""
    with pytest.MonkeyPatch.context() as patch:
        use(patch, KERNELS[request.param])
        yield


def draws(stream: Keystream, count: int, step: int = 0) -> NDArray[np.float64]:
    return normals(stream, NOISE, step, count).double().numpy()


def stream_of(radii: list[int], angles: list[int]) -> Given:
    return Given(blocks_of([np.array(part, dtype=np.uint32) for part in (radii, angles)]))


# The law.


def test_the_law_is_normal() -> None:
    found = draws(Keystream.seeded(21), 1_000_000)
    assert stats.kstest(found, "norm").pvalue > 1e-6
    # Edges in the tails, too: beyond 4.5 there are about 7 draws expected.
    edges = np.array([-math.inf, -4.5, -4, -3, -2, -1, -0.3, 0, 0.1, 0.7, 1.5, 3.2, 4.2, math.inf])
    expected = len(found) * np.diff(stats.norm.cdf(edges))
    seen = np.histogram(found, np.nan_to_num(edges))[0]
    assert stats.chisquare(seen, expected).pvalue > 1e-6


def test_the_squares_of_a_pair_are_exponential() -> None:
    found = draws(Keystream.seeded(22), 300_000 // DRAWS * DRAWS).reshape(-1, 2, PAIRS)
    radii = (found**2).sum(axis=1).ravel()
    assert stats.kstest(radii / 2, "expon").pvalue > 1e-6
    angles = np.arctan2(found[:, 1], found[:, 0]).ravel()
    assert stats.kstest(angles / (2 * math.pi) + 0.5, "uniform").pvalue > 1e-6
    assert stats.spearmanr(radii, angles).pvalue > 1e-6


def test_the_draws_of_a_pair_and_of_neighbors_are_independent() -> None:
    found = draws(Keystream.seeded(23), 400_000 // DRAWS * DRAWS).reshape(-1, 2, PAIRS)
    one, other = found[:, 0].ravel(), found[:, 1].ravel()
    for left, right in ((one, other), (one[1:], one[:-1]), (one[PAIRS:], other[:-PAIRS])):
        for power in (1, 2):
            assert stats.pearsonr(left**power, right**power).pvalue > 1e-6
        table = np.histogram2d(left, right, bins=[[-9, -1, 0, 1, 9]] * 2)[0]
        assert stats.chi2_contingency(table).pvalue > 1e-6


# Tails.


def test_rare_pairs_take_further_bits_and_reach_twelve_deviations(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # t is nearest to 1, where the second draw is largest.
    stream = stream_of([0, RARE - 1, RARE], [2**31 - 256] * 3)
    found = np.abs(draws(stream, DRAWS)[PAIRS:])
    further = [next(stream.further_words(NOISE, 0, pair)) for pair in range(2)]
    for pair, radius in ((0, 0), (1, RARE - 1)):
        u = ((radius << 8) + 0.0 + (further[pair] + 0.5) / 2**64) / 2**40
        assert found[pair] == pytest.approx(math.sqrt(-2 * math.log(u)), rel=1e-6)
    u = ((RARE << 8) + 0.5) / 2**40
    assert found[2] == pytest.approx(math.sqrt(-2 * math.log(u)), rel=1e-6)
    monkeypatch.setattr(Keystream, "further_words", lambda *address: iter([0]))
    assert abs(draws(stream, DRAWS)[PAIRS]) == pytest.approx(
        math.sqrt(2 * 105 * math.log(2)), rel=1e-6
    )
    assert math.sqrt(2 * 105 * math.log(2)) > 12


def test_about_one_pair_in_a_million_is_rare(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def further(self: Keystream, purpose: Purpose, step: int, draw: int) -> Iterator[int]:
        asked.append(draw)
        return iter([1])

    monkeypatch.setattr(Keystream, "further_words", further)
    draws(Keystream.seeded(4), 4_000_000)
    assert len(set(asked)) == len(asked) <= 18  # expected: 2; more than 18 once in 10^11


def test_the_signs_of_rare_pairs_are_those_of_their_words() -> None:
    angles = [high << 10 | signs << 8 for high in (5, 2**22 - 7) for signs in range(4)]
    rare = draws(stream_of([3] * 8, angles), DRAWS).reshape(2, PAIRS)[:, :8]
    plain = draws(stream_of([2**31] * 8, angles), DRAWS).reshape(2, PAIRS)[:, :8]
    assert (np.sign(rare) == np.sign(plain)).all()
    assert {tuple(pair) for pair in np.sign(rare).T} == {(a, b) for a in (-1, 1) for b in (-1, 1)}


# Addresses.


@given(st.integers(0, 400), st.integers(0, 400), st.integers(0, 2**20))
@settings(max_examples=20)
def test_draw_i_depends_on_i_alone(short: int, more: int, step: int) -> None:
    few, many = (draws(Keystream.seeded(8), count, step) for count in (short, short + more))
    assert np.array_equal(few, many[:short])


def test_chunks_are_a_matter_of_speed_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    words = Keystream.seeded(9).words(NOISE, 0, 10 * PAIRS).view(np.uint32).copy()
    words.reshape(-1, 2, PAIRS)[:, 0, ::8] >>= 22  # one pair in eight is rare
    whole = draws(Given(words), 10 * DRAWS)
    monkeypatch.setattr(gaussian_draws, "BLOCKS_AT_ONCE", 3)
    assert np.array_equal(draws(Given(words), 10 * DRAWS), whole)
    chunks = normal_chunks(Given(words), NOISE, 0, 1000)
    assert [len(chunk) for chunk in chunks] == [3 * DRAWS, 3 * DRAWS, 1000 - 6 * DRAWS]


@given(st.lists(st.integers(0, 3 * DRAWS), max_size=6), st.floats(-2, 2, width=32))
@settings(max_examples=30)
def test_draws_are_added_to_consecutive_tensors(lengths: list[int], factor: float) -> None:
    count = sum(lengths)
    words = Keystream.seeded(9).words(NOISE, 0, 10 * PAIRS).view(np.uint32).copy()
    words.reshape(-1, 2, PAIRS)[:, 0, ::8] >>= 22  # one pair in eight is rare
    words = np.tile(words, 2)
    whole = torch.randn(count, generator=torch.Generator().manual_seed(count))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gaussian_draws, "BLOCKS_AT_ONCE", 3)
        source, parts = Normals(Given(words), NOISE, 0, count), whole.clone().split(lengths)
        for part in parts:
            source.add_to(part, factor)
    gaussian_draws.kernels().add_scaled(whole, normals(Given(words), NOISE, 0, count), factor)
    assert torch.equal(torch.cat(parts) if parts else torch.empty(0), whole)


def test_key_purpose_and_step_determine_the_draws() -> None:
    def drawn(seed: int, purpose: Purpose, step: int) -> list[float]:
        return normals(Keystream.seeded(seed), purpose, step, 20).tolist()

    one = drawn(1, NOISE, 5)
    assert one == drawn(1, NOISE, 5)
    for other in (drawn(2, NOISE, 5), drawn(1, Purpose.ENTRY_NOISE, 5), drawn(1, NOISE, 6)):
        assert not set(one) & set(other)
