"""Random numbers from an AES-256-CTR keystream, addressed by purpose and step.

Secure mode draws a fresh key from the operating system in every process and never stores it.
So a resumed run cannot use the same noise again. Seeded mode derives the key from a seed: a
reproducible stream, for tests. The address of a block is its purpose, its step and a counter:
no two draws share a block.

A stream belongs to the process that made it. In a forked child it would repeat the parent's
noise, and a copy would repeat the original's; both are refused.
"""

from __future__ import annotations

import hashlib
import os
import struct
import time
from collections.abc import Callable, Iterator
from enum import Enum, unique
from functools import cache, partial
from threading import Lock
from typing import NoReturn, SupportsIndex
from weakref import WeakSet

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes
from numpy.typing import NDArray

from dpaudit.vocabulary.errors import ForkedSession
from dpaudit.vocabulary.ledger import Randomness

AES_BLOCK_BYTES = 16
ZEROS = memoryview(bytes(2**17))
GCM_STARTS_AT = 2 * AES_BLOCK_BYTES
"""Position in a stream of the first byte that the mode GCM can make."""
SHORT = 8 * AES_BLOCK_BYTES
"""Bytes at the beginning of streams that are made block by block."""
LONG, MOST_OF_GCM = 2**16, 2**35
"""Bytes of streams that are read by the faster of two modes; a counter of GCM ends at 2^36."""


@unique  # two purposes with one value would share their random numbers
class Purpose(Enum):
    """What a stream is used for; each purpose has a separate stream."""

    GRADIENT_NOISE = 1
    RECORD_SAMPLING = 2
    CANARY_SAMPLING = 3
    CANARY_COINS = 4
    CANARY_LABELS = 5
    COUNT_NOISE = 6
    MODEL = 7
    DROPOUT = 8
    RECORD_ORDER = 9
    FURTHER_BITS = 10
    """Keys of the streams that continue a draw whose first bits do not decide it."""
    DEVICE_KEY = 11
    """Keys of streams that are made on the tensor's own device."""
    USER_ROWS = 12
    CANARY_DIRECTIONS = 13
    PARTICIPANT_SAMPLING = 14
    UPDATE_NOISE = 15
    CLIPPED_COUNT_NOISE = 16
    PARTICIPANT_KEY = 17
    """Keys of the participants of a federation in one process."""
    LOCAL_ORDER = 18
    RECORD_LOADING = 19
    """Seeds of the random numbers that a data set draws as its records are read."""
    BATCH_TRANSFORM = 22
    """Seeds of the random numbers that transforms of batches draw."""
    DATA_COMPARISON = 20
    """Which records ranks compare, to find out that their data differ."""
    AUGMENTATION = 26
    """Seeds of the random numbers that views of images are drawn with."""
    TURN_ORDER = 30
    """Order in which the participants of selective SGD take their turns."""
    SELECTION_ORDER = 31
    """Order in which selective SGD examines the coordinates of a change."""
    THRESHOLD_NOISE = 32
    ENTRY_NOISE = 33
    VALUE_NOISE = 34
    AGGREGATION_SECRETS = 40
    """Private keys and self mask seed of a participant in one round of secure aggregation."""
    SHARE_COEFFICIENTS = 41
    NOISE_SHARE = 42
    NOISE_SHARE_SUBTRAHEND = 43
    """Poisson draws that are subtracted in Skellam noise."""
    UPDATE_ROUNDING = 44
    AGGREGATION_SESSION = 45
    """Public identifier of a run of secure aggregation."""
    SPOT_CHECKS = 50
    """Which steps get a spot check of their gradients."""


def forked_session_error(what: str, how: str) -> ForkedSession:
    """Return the error of an object with a key that left its process.

    Args:
        what: The object, as a noun phrase.
        how: What happened to it, as a verb phrase.

    Returns:
        The error, which names the remedy.
    """
    return ForkedSession(
        f"{what} {how}: it must stay in the process that made it, as two releases with one "
        "noise reveal their difference; call make_private in each process"
    )


class NotCopyable:
    """Base class that refuses copies and pickling, which would repeat noise."""

    description = "this object"

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        raise forked_session_error(self.description, "was copied or pickled")


_STREAMS: WeakSet[Keystream] = WeakSet()
"""The streams of this process, whose keys a forked child drops."""


def _drop_keys() -> None:
    """Drop every key in a forked child, such as a worker that loads data."""
    for stream in _STREAMS:
        stream._key, stream._blocks = b"", None


if hasattr(os, "register_at_fork"):  # not on Windows, which cannot fork
    os.register_at_fork(after_in_child=_drop_keys)


class Keystream(NotCopyable):
    """Random words that depend on the key, the purpose and the step alone.

    Args:
        key: 32 bytes.
        randomness: Whether the key is secure or derived from a seed, for the ledger.
    """

    description = "a keystream"

    def __init__(self, key: bytes, randomness: Randomness) -> None:
        self._key = key
        self._blocks: CipherContext | None = None  # kept, as a new one takes 8 us
        self._lock = Lock()
        self._process = os.getpid()
        _STREAMS.add(self)
        self.randomness = randomness

    @classmethod
    def secure(cls) -> Keystream:
        """Return a stream with a fresh key of the operating system."""
        return cls(os.urandom(32), Randomness.SECURE)

    @classmethod
    def seeded(cls, seed: int) -> Keystream:
        """Return the reproducible stream of a seed, for tests.

        Args:
            seed: Any whole number.

        Returns:
            A stream whose key is a hash of the seed.
        """
        # The prefix separates these keys from other hashes of the same number.
        return cls(hashlib.sha256(f"dpaudit seed {seed}".encode()).digest(), Randomness.SEEDED)

    @classmethod
    def of(cls, seed: int | None) -> Keystream:
        """Return the stream of ``seed``, or a secure one.

        Args:
            seed: A whole number; None for a fresh key of the operating system.

        Returns:
            A seeded or a secure stream.
        """
        return cls.secure() if seed is None else cls.seeded(seed)

    @property
    def key(self) -> bytes:
        """The key, for the processes that train together; it must never be stored."""
        self.require_own_process()
        return self._key

    def require_own_process(self) -> None:
        """Refuse a process that inherited the stream by a fork.

        Raises:
            ForkedSession: If this process is a fork of the one that made the stream.
        """
        if os.getpid() != self._process:
            raise forked_session_error(self.description, "was used in a forked process")

    def words(self, purpose: Purpose, step: int, count: int) -> NDArray[np.uint64]:
        """Return uniform 64-bit words.

        Args:
            purpose: Address in the stream, together with ``step``.
            step: Number of the step, from 0.
            count: Number of words.

        Returns:
            Shape ``(count,)``, uint64.
        """
        return np.frombuffer(self.bits(purpose, step, 8 * count), dtype="<u8")

    def bits(self, purpose: Purpose, step: int, count: int) -> bytearray:
        """Return uniform bytes.

        Args:
            purpose: Address in the stream, together with ``step``.
            step: Number of the step, from 0.
            count: Number of bytes.

        Returns:
            ``count`` bytes.
        """
        if count <= SHORT:
            return self._short_bits(_address(purpose, step), count)
        found = bytearray(count)
        self.reader(purpose, step, length=count)(found)
        return found

    def _short_bits(self, address: bytes, count: int) -> bytearray:
        """Return the first bytes of a stream: its counter blocks, enciphered."""
        self.require_own_process()
        counters = range(-(-count // AES_BLOCK_BYTES))
        plain = b"".join([address + block.to_bytes(8, "big") for block in counters])
        with self._lock:  # noise may be drawn in a thread
            if self._blocks is None:
                # Counters that are enciphered one by one are the mode CTR.
                mode = modes.ECB()
                self._blocks = Cipher(algorithms.AES256(self._key), mode).encryptor()
            return bytearray(self._blocks.update(plain)[:count])

    def reader(
        self, purpose: Purpose, step: int, start: int = 0, *, length: int = 0
    ) -> Callable[[bytearray | memoryview], None]:
        """Return a function that fills buffers with consecutive bytes of a stream.

        Args:
            purpose: Address in the stream, together with ``step``.
            step: Number of the step, from 0.
            start: Position of the first byte.
            length: How many bytes will be read at most, if it is known; affects speed alone.

        Returns:
            A function that overwrites a buffer; each call continues where the last one ended.

        Raises:
            ForkedSession: If this process is a fork of the one that made the stream.
        """
        self.require_own_process()
        address = _address(purpose, step)
        if start == 0 and LONG <= length <= MOST_OF_GCM and _gcm_is_faster():
            return _read_by_gcm(self._key, address)
        return _read_by_ctr(self._key, address, start)

    def further_words(self, purpose: Purpose, step: int, draw: int) -> Iterator[int]:
        """Yield the bits that continue one draw, from a separate key and address.

        Args:
            purpose: Address in the stream, together with ``step``.
            step: Number of the step, from 0.
            draw: Number of the draw, or of the pair of draws.

        Yields:
            64 uniform bits at a time.
        """
        key = bytes(self.bits(Purpose.FURTHER_BITS, step, 32))
        fill = Keystream(key, self.randomness).reader(purpose, draw)
        word = bytearray(8)
        while True:
            fill(word)
            yield int.from_bytes(word, "little")

    def coins(self, purpose: Purpose, step: int, count: int, bias: float) -> NDArray[np.bool_]:
        """Return independent coins; coin i depends on the key, the purpose, the step and i alone.

        Args:
            purpose: Address in the stream, together with ``step``.
            step: Number of the step, from 0.
            count: Number of coins.
            bias: Probability of True, in [0, 1]; rounded down to a multiple of 2^-64.

        Returns:
            Shape ``(count,)``.
        """
        if bias == 1:  # its threshold 2^64 does not fit 64 bits
            return np.ones(count, dtype=np.bool_)
        threshold = np.uint64(int(bias * 2**64))
        return np.asarray(self.words(purpose, step, count) < threshold)

    def normals(self, purpose: Purpose, step: int, count: int) -> NDArray[np.float64]:
        """Return draws of N(0, 1) in float64, by Box and Muller's transform.

        The uniforms have 53 bits, so the tails reach 8.6 standard deviations.

        Args:
            purpose: Address in the stream, together with ``step``.
            step: Number of the step, from 0.
            count: Number of draws.

        Returns:
            Shape ``(count,)``.
        """
        words = self.words(purpose, step, 2 * ((count + 1) // 2))
        uniforms = ((words >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
        radius, angle = np.sqrt(-2 * np.log(uniforms[::2])), 2 * np.pi * uniforms[1::2]
        draws = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])
        return np.asarray(draws[:count])

    def seed_for(self, purpose: Purpose, step: int = 0) -> int:
        """Return a 63-bit seed for random numbers that protect no secret.

        Args:
            purpose: Address in the stream, together with ``step``.
            step: Number of the step, from 0.

        Returns:
            A whole number in [0, 2^63).
        """
        return int(self.words(purpose, step, 1)[0] >> np.uint64(1))


Reader = Callable[[bytearray | memoryview], None]
"""Overwrites a buffer with the next bytes of a stream."""


def _address(purpose: Purpose, step: int) -> bytes:
    """Return the first half of a stream's blocks: 2 bytes of purpose and 6 of step."""
    return struct.pack(">H", purpose.value) + step.to_bytes(6, "big")


def _read_by_ctr(key: bytes, address: bytes, start: int) -> Reader:
    """Return a reader from any position, by the mode CTR."""
    block, within = divmod(start, AES_BLOCK_BYTES)
    # The address, then 8 bytes of block counter, which AES-CTR increments.
    mode = modes.CTR(address + block.to_bytes(8, "big"))
    cipher = Cipher(algorithms.AES256(key), mode).encryptor()
    cipher.update(bytes(within))
    return partial(_encrypt_zeros, cipher)


def _read_by_gcm(key: bytes, address: bytes) -> Reader:
    """Return a reader of the same bytes from the first on, by the mode GCM.

    GCM encrypts as CTR does, from counter 2 on, with a counter of 4 bytes after 12 bytes of
    address (NIST SP 800-38D). Libraries have more processors' instructions for it than for CTR.
    """
    head = bytearray(GCM_STARTS_AT)
    _read_by_ctr(key, address, 0)(head)
    left = memoryview(head)
    cipher = Cipher(algorithms.AES256(key), modes.GCM(address + bytes(4))).encryptor()

    def fill(buffer: bytearray | memoryview) -> None:
        nonlocal left
        view = memoryview(buffer).cast("B")
        known = min(len(left), len(view))
        view[:known], left = left[:known], left[known:]
        _encrypt_zeros(cipher, view[known:])

    return fill


def _encrypt_zeros(cipher: CipherContext, buffer: bytearray | memoryview) -> None:
    """Overwrite a buffer with encrypted zeros, which are the keystream."""
    view = memoryview(buffer).cast("B")
    for first in range(0, len(view), len(ZEROS)):
        part = view[first : first + len(ZEROS)]
        cipher.update_into(ZEROS[: len(part)], part)


@cache
def _gcm_is_faster() -> bool:
    """Return whether this processor makes a keystream faster by GCM, which hashes it as well."""
    buffer, key, address = bytearray(len(ZEROS)), bytes(32), bytes(8)

    def seconds(read: Reader) -> float:
        read(buffer)
        start = time.perf_counter()
        read(buffer)
        return time.perf_counter() - start

    tries = range(3)
    by_gcm = min(seconds(_read_by_gcm(key, address)) for _ in tries)
    return by_gcm < min(seconds(_read_by_ctr(key, address, 0)) for _ in tries)
