"""Masks of secure aggregation: AES-256-CTR keystreams as whole numbers modulo 2^k.

A mask is a keystream under a key that is derived for one round and one pair, or for one round
and one participant. Words are unsigned, 32 bits wide for k up to 32 and 64 bits wide above.
Sums of words wrap modulo the width of a word, and so are right modulo 2^k.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

Words = NDArray[np.unsignedinteger[Any]]
"""Whole numbers modulo 2^k, uint32 or uint64."""


def word_type(modulus_bits: int) -> np.dtype[Any]:
    """Return the little-endian type of one word.

    Args:
        modulus_bits: The k of the modulus 2^k, at most 64.

    Returns:
        uint32 or uint64.
    """
    return np.dtype("<u4" if modulus_bits <= 32 else "<u8")


def reduce_words(words: Words, modulus_bits: int) -> Words:
    """Return words modulo 2^k.

    Args:
        words: Shape ``(d,)``.
        modulus_bits: The k of the modulus.

    Returns:
        Shape ``(d,)``, each below 2^k.
    """
    return words & words.dtype.type((1 << modulus_bits) - 1)


def words_of_integers(integers: NDArray[np.int64], modulus_bits: int) -> Words:
    """Return whole numbers modulo 2^k.

    Args:
        integers: Shape ``(d,)``.
        modulus_bits: The k of the modulus.

    Returns:
        Shape ``(d,)``, each below 2^k.

    Example:
        >>> words_of_integers(np.array([-1, 5]), 8)
        array([255,   5], dtype=uint32)
    """
    # Two's complement: narrowing is a reduction modulo the width of the word.
    return reduce_words(integers.astype("<i8").astype(word_type(modulus_bits)), modulus_bits)


def centered_integers(words: Words, modulus_bits: int) -> NDArray[np.int64]:
    """Return the representatives in [-2^(k-1), 2^(k-1)) of words modulo 2^k.

    Args:
        words: Shape ``(d,)``.
        modulus_bits: The k of the modulus.

    Returns:
        Shape ``(d,)``.

    Example:
        >>> centered_integers(np.array([255, 5], dtype=np.uint32), 8)
        array([-1,  5])
    """
    # The upper bits are shifted out; the arithmetic shift back repeats the sign.
    spare = 64 - modulus_bits
    return (words.astype(np.uint64) << np.uint64(spare)).view(np.int64) >> np.int64(spare)


def mask_words(key: bytes, modulus_bits: int, count: int) -> Words:
    """Return a mask: ``count`` uniform words modulo 2^k.

    Args:
        key: 32 bytes, derived for this mask alone.
        modulus_bits: The k of the modulus.
        count: Number of words.

    Returns:
        Shape ``(count,)``, each below 2^k.
    """
    kind = word_type(modulus_bits)
    cipher = Cipher(algorithms.AES256(key), modes.CTR(bytes(16))).encryptor()
    stream = cipher.update(bytes(kind.itemsize * count))
    return reduce_words(np.frombuffer(stream, dtype=kind), modulus_bits)


def pair_sign(participant: int, peer: int) -> int:
    """Return the sign of the pairwise mask in the input of ``participant``.

    Args:
        participant: The participant that adds the mask.
        peer: The other one, which adds it with the opposite sign.

    Returns:
        1 or -1.
    """
    return 1 if participant < peer else -1


def add_mask(total: Words, mask: Words, sign: int) -> None:
    """Add a mask to a sum, or subtract it, in place; the sum wraps at the width of a word.

    Args:
        total: Shape ``(d,)``; it is changed.
        mask: Shape ``(d,)``.
        sign: 1 to add, -1 to subtract.
    """
    operation = np.add if sign > 0 else np.subtract
    operation(total, mask, out=total)
