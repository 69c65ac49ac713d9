"""Masks: uniform words, arithmetic modulo 2^k, pairs that cancel."""

from __future__ import annotations

import numpy as np
import pytest

from dpaudit.trainer.federated.secure_aggregation.masks import (
    add_mask,
    centered_integers,
    mask_words,
    pair_sign,
    reduce_words,
    word_type,
    words_of_integers,
)
from tests.trainer.federated.secure_aggregation.protocol_parts import (
    LEAST_P_VALUE,
    uniform_p_value,
)

WIDTHS = [8, 17, 32, 33, 48, 62]


@pytest.mark.parametrize("bits", WIDTHS)
def test_words_and_centered_integers_are_inverse(bits: int) -> None:
    half = 2 ** (bits - 1)
    integers = np.array([-half, -half + 1, -1, 0, 1, half - 1])
    words = words_of_integers(integers, bits)
    assert words.dtype == word_type(bits)
    assert all(0 <= int(word) < 2**bits for word in words)
    np.testing.assert_array_equal(centered_integers(words, bits), integers)


@pytest.mark.parametrize("bits", WIDTHS)
def test_integers_wrap_modulo_the_modulus(bits: int) -> None:
    integers = np.array([2**62, -(2**62) - 5, 3 * 2**60 + 1])
    expected = [int(integer) % 2**bits for integer in integers]
    assert words_of_integers(integers, bits).tolist() == expected


@pytest.mark.parametrize("bits", WIDTHS)
def test_a_mask_is_uniform(bits: int) -> None:
    mask = mask_words(bytes(31) + bytes([bits]), bits, 200_000)
    assert int(mask.max()) < 2**bits
    assert uniform_p_value(mask, bits) > LEAST_P_VALUE


def test_masks_of_two_keys_differ_and_a_key_gives_one_mask() -> None:
    one, other = bytes(32), bytes(31) + b"\x01"
    np.testing.assert_array_equal(mask_words(one, 32, 10), mask_words(one, 32, 20)[:10])
    assert not np.array_equal(mask_words(one, 32, 10), mask_words(other, 32, 10))


@pytest.mark.parametrize("bits", WIDTHS)
def test_pairwise_masks_cancel_in_the_sum(bits: int) -> None:
    mask = mask_words(bytes(32), bits, 50)
    total = np.zeros(50, word_type(bits))
    add_mask(total, mask, pair_sign(2, 9))
    assert reduce_words(total, bits).any()
    add_mask(total, mask, pair_sign(9, 2))
    assert not reduce_words(total, bits).any()
