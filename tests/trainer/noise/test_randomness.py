"""The keystream: standard AES, no block drawn twice, laws of coins and normals."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from dpaudit.trainer.noise import randomness
from dpaudit.trainer.noise.randomness import LONG, ZEROS, Keystream, Purpose
from dpaudit.vocabulary.ledger import Randomness

purposes = st.sampled_from(Purpose)
steps = st.integers(0, 2**48 - 1)

# NIST SP 800-38A, F.5.5 CTR-AES256.Encrypt.
NIST_KEY = bytes.fromhex("603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4")
NIST_COUNTER = bytes.fromhex("f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff")
NIST_PLAIN = bytes.fromhex(
    "6bc1bee22e409f96e93d7e117393172aae2d8a571e03ac9c9eb76fac45af8e51"
    "30c81c46a35ce411e5fbc1191a0a52eff69f2445df4f9b17ad2b417be66c3710"
)
NIST_CIPHER = bytes.fromhex(
    "601ec313775789a5b7a7f504bbf3d228f443e3ca4d62b59aca84e990cacaf5c5"
    "2b0930daa23de94ce87017ba2d84988ddfc9c58db67aada613c2dd08457941a6"
)


def block_by_block(key: bytes, purpose: int, step: int, blocks: int) -> bytes:
    """The stream, written the slow way: each counter block enciphered on its own."""
    cipher = Cipher(algorithms.AES256(key), modes.ECB()).encryptor()
    address = purpose.to_bytes(2, "big") + step.to_bytes(6, "big")
    return b"".join(cipher.update(address + block.to_bytes(8, "big")) for block in range(blocks))


def test_the_cipher_at_hand_is_the_aes_of_the_standard() -> None:
    cipher = Cipher(algorithms.AES256(NIST_KEY), modes.CTR(NIST_COUNTER)).encryptor()
    assert cipher.update(NIST_PLAIN) == NIST_CIPHER


@given(st.binary(min_size=32, max_size=32), purposes, steps, st.integers(1, 40))
def test_the_words_are_aes_counter_mode(
    key: bytes, purpose: Purpose, step: int, count: int
) -> None:
    words = Keystream(key, Randomness.SEEDED).words(purpose, step, count)
    blocks = block_by_block(key, purpose.value, step, (count + 1) // 2)
    assert words.astype("<u8").tobytes() == blocks[: 8 * count]


def test_no_two_addresses_share_a_word() -> None:
    stream = Keystream.secure()
    addresses = itertools.product(Purpose, [*range(30), 255, 256, 65536, 2**48 - 1])
    drawn = np.concatenate([stream.words(purpose, step, 64) for purpose, step in addresses])
    assert len(np.unique(drawn)) == len(drawn)  # by chance: once in 10^11 runs


def test_a_step_beyond_the_address_is_refused_and_never_wraps() -> None:
    with pytest.raises(OverflowError):
        Keystream.seeded(1).words(Purpose.GRADIENT_NOISE, 2**48, 1)


@given(st.integers(0, 2**64), purposes, steps)
def test_the_same_seed_gives_the_same_words(seed: int, purpose: Purpose, step: int) -> None:
    first, again = Keystream.seeded(seed), Keystream.of(seed)
    assert np.array_equal(first.words(purpose, step, 5), again.words(purpose, step, 5))
    assert first.randomness is again.randomness is Randomness.SEEDED
    assert first.seed_for(purpose) == again.seed_for(purpose)


@given(st.integers(0, 2**64), st.integers(0, 2**64))
def test_other_seeds_give_other_words(one: int, other: int) -> None:
    drawn = [Keystream.seeded(seed).words(Purpose.GRADIENT_NOISE, 0, 2) for seed in (one, other)]
    assert np.array_equal(*drawn) == (one == other)


def test_every_secure_stream_has_a_key_of_its_own() -> None:
    streams = [Keystream.secure() for _ in range(50)] + [Keystream.of(None) for _ in range(50)]
    assert {stream.randomness for stream in streams} == {Randomness.SECURE}
    first = {int(stream.words(Purpose.GRADIENT_NOISE, 0, 1)[0]) for stream in streams}
    assert len(first) == len(streams)


@given(purposes, steps, st.lists(st.integers(0, 60), max_size=5), st.integers(0, 100))
def test_a_reader_overwrites_whatever_a_buffer_holds(
    purpose: Purpose, step: int, lengths: list[int], start: int
) -> None:
    stream = Keystream.seeded(12)
    fill, found = stream.reader(purpose, step, start), b""
    for length in lengths:
        buffer = bytearray(b"\xa5" * length)
        fill(buffer)
        found += buffer
    assert found == stream.bits(purpose, step, start + len(found))[start:]


def test_long_buffers_are_filled_like_short_ones() -> None:
    stream, count = Keystream.seeded(13), 3 * len(ZEROS) + 5
    blocks = block_by_block(stream.key, Purpose.MODEL.value, 7, -(-count // 16))
    assert bytes(stream.bits(Purpose.MODEL, 7, count)) == blocks[:count]
    assert not any(ZEROS)


@given(purposes, steps, st.lists(st.integers(0, 2**17), min_size=1, max_size=4))
@settings(max_examples=20)
@pytest.mark.parametrize("faster", [False, True])
def test_both_modes_of_the_cipher_give_the_same_bytes(
    faster: bool, purpose: Purpose, step: int, lengths: list[int]
) -> None:
    stream, found = Keystream.seeded(15), b""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(randomness, "_gcm_is_faster", lambda: faster)
        fill = stream.reader(purpose, step, length=max(LONG, sum(lengths)))
    for length in lengths:
        buffer = bytearray(b"\xa5" * length)
        fill(buffer)
        found += buffer
    blocks = block_by_block(stream.key, purpose.value, step, -(-len(found) // 16))
    assert found == blocks[: len(found)]


def test_a_stream_ends_before_the_counter_of_the_faster_mode_repeats(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*given: object) -> None:
        raise AssertionError

    monkeypatch.setattr(randomness, "_gcm_is_faster", lambda: True)
    monkeypatch.setattr(randomness, "_read_by_gcm", refuse)
    stream = Keystream.seeded(16)
    with pytest.raises(AssertionError):
        stream.reader(Purpose.MODEL, 0, length=2**35)
    for start, length in ((0, 2**35 + 1), (16, 2**20), (0, 0)):
        stream.reader(Purpose.MODEL, 0, start, length=length)


def test_further_words_are_a_stream_of_their_own() -> None:
    stream = Keystream.seeded(14)
    further = stream.further_words(Purpose.GRADIENT_NOISE, 5, 1234)
    own = Keystream(bytes(stream.bits(Purpose.FURTHER_BITS, 5, 32)), Randomness.SEEDED)
    expected = own.words(Purpose.GRADIENT_NOISE, 1234, 20).tolist()
    assert list(itertools.islice(further, 20)) == expected


@given(st.integers(0, 200), st.integers(0, 200), st.floats(0, 1), purposes, steps)
def test_coin_i_depends_on_i_alone(
    short: int, more: int, bias: float, purpose: Purpose, step: int
) -> None:
    stream = Keystream.seeded(3)
    few = stream.coins(purpose, step, short, bias)
    many = stream.coins(purpose, step, short + more, bias)
    assert np.array_equal(many[:short], few)


@given(st.floats(0, 1), st.floats(0, 1))
def test_a_coin_that_shows_true_does_so_under_every_larger_bias(one: float, other: float) -> None:
    least, greatest = sorted((one, other))
    stream = Keystream.seeded(4)
    rare = stream.coins(Purpose.RECORD_SAMPLING, 0, 100, least)
    common = stream.coins(Purpose.RECORD_SAMPLING, 0, 100, greatest)
    assert np.all(common[rare])


@pytest.mark.parametrize("bias", [0.001, 0.02, 0.1, 0.5, 0.9])
def test_coins_show_true_as_often_as_their_bias_says(bias: float) -> None:
    count = 400_000
    shown = int(Keystream.seeded(5).coins(Purpose.RECORD_SAMPLING, 0, count, bias).sum())
    assert stats.binomtest(shown, count, bias).pvalue > 1e-3


def test_coins_of_two_steps_are_independent() -> None:
    stream = Keystream.seeded(6)
    one, other = (stream.coins(Purpose.RECORD_SAMPLING, step, 100_000, 0.5) for step in (0, 1))
    table = np.histogram2d(one, other, bins=2)[0]
    assert stats.chi2_contingency(table).pvalue > 1e-3


def test_bias_1_always_shows_true_and_a_tiny_bias_never_in_practice() -> None:
    stream = Keystream.seeded(7)
    assert stream.coins(Purpose.RECORD_SAMPLING, 0, 10_000, 1.0).all()
    assert stream.coins(Purpose.RECORD_SAMPLING, 0, 10_000, 1).all()
    for bias in (2.0**-60, 2.0**-64, 2.0**-65, 5e-324, 0.0):
        assert not stream.coins(Purpose.RECORD_SAMPLING, 0, 10_000, bias).any()


@given(st.integers(1, 2**63 - 1))
def test_a_coin_is_true_for_exactly_the_words_below_its_bias(threshold: int) -> None:
    bias = threshold / 2**64  # rounded to a float64; the law is in whole numbers
    words = Keystream.seeded(8).words(Purpose.CANARY_COINS, 0, 50)
    expected = [int(word) < int(bias * 2**64) for word in words]
    assert Keystream.seeded(8).coins(Purpose.CANARY_COINS, 0, 50, bias).tolist() == expected


@pytest.mark.parametrize("count", [0, 1, 2, 7, 8])
def test_requested_number_of_draws_is_made(count: int) -> None:
    stream = Keystream.seeded(9)
    assert stream.words(Purpose.GRADIENT_NOISE, 0, count).shape == (count,)
    assert stream.normals(Purpose.GRADIENT_NOISE, 0, count).shape == (count,)
    assert stream.coins(Purpose.GRADIENT_NOISE, 0, count, 0.5).shape == (count,)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_normals_are_normal(seed: int) -> None:
    draws = Keystream.seeded(seed).normals(Purpose.GRADIENT_NOISE, 0, 200_001)
    assert stats.kstest(draws, "norm").pvalue > 1e-3


def test_normals_have_the_moments_of_n_0_1() -> None:
    count = 1_000_000
    draws = Keystream.seeded(10).normals(Purpose.GRADIENT_NOISE, 0, count)
    # Central limit theorem: the k-th moment's deviation, from the 2k-th; within 4 of them.
    for order, context, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs(np.mean(draws**order) - context) < 4 * np.sqrt(variance / count)


def test_the_two_halves_of_the_normals_are_uncorrelated() -> None:
    draws = Keystream.seeded(11).normals(Purpose.GRADIENT_NOISE, 0, 200_000)
    cosines, sines = draws[:100_000], draws[100_000:]
    for power in (1, 2):
        assert stats.pearsonr(cosines**power, sines**power).pvalue > 1e-3


class Extreme(Keystream):
    """A stream whose every word is the same."""

    def __init__(self, word: int) -> None:
        super().__init__(bytes(32), Randomness.SEEDED)
        self._word = word

    def words(self, purpose: Purpose, step: int, count: int) -> np.ndarray:
        return np.full(count, self._word, dtype=np.uint64)


@given(st.integers(0, 2**64 - 1) | st.sampled_from([0, 1, 2**11 - 1, 2**64 - 1]))
@settings(max_examples=300)
@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_no_word_gives_an_infinite_normal(word: int) -> None:
    draws = Extreme(word).normals(Purpose.GRADIENT_NOISE, 0, 4)
    assert np.isfinite(draws).all()
    assert np.abs(draws).max() < 8.7
