"""Noise and coins from an AES-256-CTR keystream, addressed by purpose and step.

Secure mode draws a fresh key from the operating system in every process and never
stores it; so a resumed run cannot use a noise again. Seeded mode derives the key from a
seed: the same stream, reproducible, for tests. A block's address is its purpose, its
step and a counter: no two draws share a block.

A stream belongs to the process that made it. Used in a forked child it would repeat the
parent's noise, and a copy would repeat the original's: both are refused.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Callable
from enum import Enum
from typing import NoReturn, SupportsIndex

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

from dpaudit.vocabulary.errors import ForkedSession
from dpaudit.vocabulary.ledger import Randomness

BLOCK = 16  # bytes of AES


class Purpose(Enum):
    """What a stream is drawn for; each purpose has a stream of its own."""

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
    """Keys of the streams that continue a draw which its first bits leave open."""
    DEVICE_KEY = 11
    """Keys of streams that are made on the tensor's own device."""
    USER_ROWS = 12
    CANARY_DIRECTIONS = 13


def forked(what: str, how: str) -> ForkedSession:
    """Return the error of something that holds a key and was carried away from its process."""
    return ForkedSession(
        f"{what} {how}: it must stay in the process that made it, as two releases with one "
        "noise give away their difference; call make_private in each process"
    )


class NotCopied:
    """Refuses ``copy.copy``, ``copy.deepcopy`` and pickling: a copy would repeat its noise."""

    called = "this object"

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        raise forked(self.called, "was copied or pickled")


class Keystream(NotCopied):
    """Random words that depend on the key, the purpose and the step alone."""

    called = "a key stream"

    def __init__(self, key: bytes, randomness: Randomness) -> None:
        self._key = key
        self._process = os.getpid()
        self.randomness = randomness

    @classmethod
    def secure(cls) -> Keystream:
        """Return a stream under a fresh key of the operating system."""
        return cls(os.urandom(32), Randomness.SECURE)

    @classmethod
    def seeded(cls, seed: int) -> Keystream:
        """Return the stream of ``seed``."""
        return cls(hashlib.sha256(f"dpaudit seed {seed}".encode()).digest(), Randomness.SEEDED)

    @classmethod
    def of(cls, seed: int | None) -> Keystream:
        """Return the stream of ``seed``, or a secure one for None."""
        return cls.secure() if seed is None else cls.seeded(seed)

    @property
    def key(self) -> bytes:
        """The key: to hand to the processes that train together, never to store."""
        self.require_own_process()
        return self._key

    def require_own_process(self) -> None:
        """Refuse a process that inherited the stream.

        Raises:
            ForkedSession: This process is a fork of the one that made it.
        """
        if os.getpid() != self._process:
            raise forked(self.called, "was used in a forked process")

    def words(self, purpose: Purpose, step: int, count: int) -> NDArray[np.uint64]:
        """Return ``count`` uniform 64-bit words, shape ``(count,)``."""
        return np.frombuffer(self.bits(purpose, step, 8 * count), dtype="<u8")

    def bits(self, purpose: Purpose, step: int, count: int) -> bytearray:
        """Return ``count`` uniform bytes."""
        found = bytearray(count)
        self.reader(purpose, step)(found)
        return found

    def reader(
        self, purpose: Purpose, step: int, start: int = 0
    ) -> Callable[[bytearray | memoryview], None]:
        """Return what fills buffers of zeros in turn with the bytes from ``start`` on."""
        self.require_own_process()
        block, within = divmod(start, BLOCK)
        # 2 + 6 bytes of address before 8 bytes of block counter, which AES-CTR counts up.
        address = struct.pack(">H", purpose.value) + step.to_bytes(6, "big")
        mode = modes.CTR(address + block.to_bytes(8, "big"))
        cipher = Cipher(algorithms.AES256(self._key), mode).encryptor()
        cipher.update(bytes(within))

        def fill(buffer: bytearray | memoryview) -> None:
            cipher.update_into(buffer, buffer)  # of zeros: the keystream itself

        return fill

    def coins(self, purpose: Purpose, step: int, count: int, bias: float) -> NDArray[np.bool_]:
        """Return ``count`` coins that show True with probability ``bias``, rounded down to 2^-64.

        Coin i depends on the key, the purpose, the step and i alone.
        """
        if bias == 1:
            return np.ones(count, dtype=np.bool_)
        threshold = np.uint64(int(bias * 2**64))
        return np.asarray(self.words(purpose, step, count) < threshold)

    def normals(self, purpose: Purpose, step: int, count: int) -> NDArray[np.float64]:
        """Return ``count`` draws of N(0, 1), shape ``(count,)``, by Box and Muller's transform.

        In float64 the uniforms have 53 bits, so the tails reach 8.6 standard deviations.
        """
        words = self.words(purpose, step, 2 * ((count + 1) // 2))
        uniforms = ((words >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
        radius, angle = np.sqrt(-2 * np.log(uniforms[::2])), 2 * np.pi * uniforms[1::2]
        draws = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])
        return np.asarray(draws[:count])

    def seed_for(self, purpose: Purpose, step: int = 0) -> int:
        """Return a 63-bit seed for what must be random but keeps no secret."""
        return int(self.words(purpose, step, 1)[0] >> np.uint64(1))
