"""Gaussian noise in float32: from the AES keystream on a CPU, from ChaCha20 on other devices.

On a CPU, Box and Muller's transform takes 40 bits for the radius and 22 for the angle, in float32.
Radii in the far tail, one in 2^20, take 64 bits more, so that tails reach 12 standard deviations.

On other devices the radius is computed in float64 from 53 bits, so that tails reach 8.6 standard
deviations. The angle is computed in float32 from 32 bits.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from functools import partial

import numpy as np
import torch
from torch import Tensor

from dpaudit.trainer.noise.kernels import DRAWS, PAIRS, RARE, kernels
from dpaudit.trainer.noise.randomness import Keystream, Purpose
from dpaudit.vocabulary.errors import InvalidArgument

MANTISSA, LOG_SCALE = 2**53 - 1, 53 * math.log(2)
BLOCKS_AT_ONCE = 2**9
"""Blocks of the CPU's kernel per chunk, so that they fit its cache; affects speed alone."""

WORD_BYTES = 4
"""Bytes of the words of the CPU's kernel; there is one per draw."""

CPU_PAIRS, DEVICE_PAIRS = 2**15, 2**22
"""Pairs of a device's stream that are transformed at once, which needs memory beside the draws. On
a CPU, about as many as fit its cache; elsewhere, enough to outweigh the launches of kernels."""


def normals(stream: Keystream, purpose: Purpose, step: int, count: int) -> Tensor:
    """Return draws of N(0, 1), which depend on the key, the purpose and the step alone.

    Args:
        stream: Keystream of the draws.
        purpose: Address in the keystream, together with ``step``.
        step: Number of the step, from 0.
        count: Number of draws.

    Returns:
        Shape ``(count,)``, float32, on the CPU.
    """
    draws = torch.zeros(count)
    Normals(stream, purpose, step, count).add_to(draws, 1.0)
    return draws


def normal_chunks(stream: Keystream, purpose: Purpose, step: int, count: int) -> Iterator[Tensor]:
    """Yield the draws of ``normals`` in chunks of cache size.

    Args:
        stream: Keystream of the draws.
        purpose: Address in the keystream, together with ``step``.
        step: Number of the step, from 0.
        count: Number of draws.

    Yields:
        float32 draws, ``count`` in all; a chunk is overwritten by the next one.
    """
    source, at_once = Normals(stream, purpose, step, count), DRAWS * BLOCKS_AT_ONCE
    draws = torch.empty(min(count, at_once))
    for start in range(0, count, at_once):
        chunk = draws[: count - start].zero_()
        source.add_to(chunk, 1.0)
        yield chunk


class Normals:
    """Consecutive draws of N(0, 1), which are added to tensors in one pass over memory.

    Draw i depends on the key, the purpose, the step and i alone.

    Args:
        stream: Keystream of the draws.
        purpose: Address in the keystream, together with ``step``.
        step: Number of the step, from 0.
        count: Number of draws that will be added in all.
    """

    def __init__(self, stream: Keystream, purpose: Purpose, step: int, count: int) -> None:
        self._left = count + -count % DRAWS  # whole blocks, not yet read
        self._words = np.empty(max(min(self._left, DRAWS * BLOCKS_AT_ONCE), DRAWS), "<u4")
        self._bits = self._words.view(np.uint8).data
        self._fill = stream.reader(purpose, step, length=WORD_BYTES * self._left)
        self._further = partial(stream.further_words, purpose, step)
        self._add = kernels().add_normals(self._words)
        self._start, self._used, self._filled = 0, 0, 0  # the first and the next draw in memory

    def add_to(self, sums: Tensor, factor: float, share: float = 1.0) -> None:
        """Add the next draws times a factor, one to each entry, and multiply the entries.

        Args:
            sums: Contiguous, float32, of one dimension and on the CPU; changed in place.
            factor: Factor on the draws.
            share: Factor on the noisy entries.
        """
        at, count = 0, len(sums)
        while at < count:
            if self._used == self._filled:
                self._read()
            first, end = self._used, min(self._used + count - at, self._filled)
            self._used = self._add(sums, at, first, end, factor, share, RARE)
            at += self._used - first
            if self._used < end:
                at += self._add_rare_block(sums[at : at + end - self._used], factor, share)

    def _read(self) -> None:
        """Read the next words."""
        self._start, self._used = self._start + self._filled, 0
        self._filled = min(self._left, len(self._words))
        self._left -= self._filled
        self._fill(self._bits[: WORD_BYTES * self._filled])

    def _add_rare_block(self, sums: Tensor, factor: float, share: float) -> int:
        """Add draws up to the end of a block in which the tail of some pairs takes further bits.

        Returns the number of draws.
        """
        begin = self._used - self._used % DRAWS
        words, draws = self._words[begin : begin + DRAWS], torch.zeros(DRAWS)
        self._add(draws, 0, begin, begin + DRAWS, 1.0, 1.0, 0)
        (radii, angles), made = words.reshape(2, PAIRS).tolist(), draws.view(2, PAIRS)
        for pair in np.flatnonzero(words[:PAIRS] < RARE).tolist():
            further = next(self._further((self._start + begin) // 2 + pair))
            made[:, pair] = torch.tensor(_rare_pair(radii[pair], angles[pair], further))
        own = draws[self._used - begin :][: len(sums)]
        kernels().add_scaled(sums[: len(own)], own, factor)
        sums[: len(own)].mul_(share)
        self._used += len(own)
        return len(own)


def _rare_pair(radius: int, angle: int, further: int) -> tuple[float, float]:
    """Return both draws of a pair in float64, with 104 bits for u."""
    known = (radius << 8 | angle & 255) << 64 | further
    size = math.sqrt(-math.log((known + 0.5) * 2.0**-104))
    y = math.pi / 4 * (((angle ^ 2**31) >> 10) + 0.5 - 2**21) * 2.0**-21
    one, other = size * (math.cos(y) - math.sin(y)), size * (math.cos(y) + math.sin(y))
    return (-one if angle >> 8 & 1 else one), (-other if angle >> 9 & 1 else other)


def words_needed(count: int) -> int:
    """Return the number of 64-bit words that ``count`` normals are made of.

    Args:
        count: Number of draws.

    Returns:
        One word per radius and half a word per angle, rounded up to whole words.
    """
    pairs = (count + 1) // 2
    return 3 * ((pairs + 1) // 2)


def box_muller(bits: Tensor, count: int) -> Tensor:
    """Return draws of N(0, 1) made from uniform bits, on the device of the bits.

    Args:
        bits: Uniform 64-bit words, int64, shape ``(words_needed(count),)``: first one word per
            radius, then half a word per angle.
        count: Number of draws. Draws i and i + count / 2 are one pair of the transform.

    Returns:
        Shape ``(count,)``, float32.
    """
    pairs = (count + 1) // 2
    radii, angles = bits[:pairs], bits[pairs:].view(torch.int32)[:pairs]
    draws = torch.empty(2 * pairs, device=bits.device)
    at_once = CPU_PAIRS if bits.is_cpu else DEVICE_PAIRS
    for start in range(0, pairs, at_once):
        some = slice(start, start + at_once)
        _transform(radii[some], angles[some], draws[:pairs][some], draws[pairs:][some])
    return draws[:count]


def _transform(radii: Tensor, angles: Tensor, one: Tensor, other: Tensor) -> None:
    """Write both draws of each pair: radius cos(angle) and radius sin(angle)."""
    radius, angle = _radius(radii), _angle(angles)
    torch.mul(torch.cos(angle), radius, out=one)
    torch.mul(angle.sin_(), radius, out=other)


def _radius(bits: Tensor) -> Tensor:
    """Return sqrt(-2 ln u) for u = (53 bits + 1/2) / 2^53."""
    uniform = torch.bitwise_and(bits, MANTISSA).double().add_(0.5)  # times 2^53
    # In float64 up to here: near u = 1, ln u is a difference of two large logarithms.
    return uniform.log_().sub_(LOG_SCALE).float().mul_(-2).sqrt_()


def _angle(bits: Tensor) -> Tensor:
    """Return an angle in [-pi, pi] radians from 32 signed bits."""
    return bits.float().mul_(math.pi * 2.0**-31)


# A secure keystream made on the tensor's own device: ChaCha20 in torch's integers.
#
# Nonces and counters follow RFC 8439, section 2.3: a 256-bit key, a 96-bit nonce that holds the
# purpose and the step, and a 32-bit block counter. No two draws share a block. Each block can
# be made without those before it, so all are made side by side, elementwise.
#
# int32 wraps like the RFC's addition modulo 2^32. A state is four rows of four words, and each
# row is a tensor of shape ``(4, blocks)``: one statement processes the four columns at once. A
# round is 4 additions, 4 exclusive ors and 4 rotations. Control flow does not depend on data.

KEY_BYTES = 32
WORDS_PER_BLOCK = 16
MAX_BLOCKS = 2**32
DOUBLE_ROUNDS = 10
CONSTANTS = b"expand 32-byte k"

CPU_BLOCKS, DEVICE_BLOCKS = 2**14, 2**18
"""Blocks that are made at once; making one needs a few times its own memory."""


def derive_device_key(stream: Keystream) -> bytes:
    """Return the key of the streams on devices, derived from ``stream``.

    Args:
        stream: The run's keystream. The key is fresh where that of ``stream`` is.

    Returns:
        32 bytes.
    """
    return bytes(stream.bits(Purpose.DEVICE_KEY, 0, KEY_BYTES))


def device_normals(
    key: bytes, purpose: Purpose, step: int, count: int, device: torch.device | str
) -> Tensor:
    """Return draws of N(0, 1), which depend on the key, the purpose and the step alone.

    On other kinds of devices the last bits differ, as their logarithms and cosines do.

    Args:
        key: 32 bytes.
        purpose: Address in the stream, together with ``step``.
        step: Number of the step, from 0.
        count: Number of draws.
        device: Where they are made.

    Returns:
        Shape ``(count,)``, float32, on ``device``.
    """
    drawn = words(key, purpose, step, 2 * words_needed(count), device)
    return box_muller(drawn.view(torch.int64), count)


def words(
    key: bytes, purpose: Purpose, step: int, count: int, device: torch.device | str
) -> Tensor:
    """Return uniform 32-bit words.

    Args:
        key: 32 bytes.
        purpose: Address in the stream, together with ``step``.
        step: Number of the step, from 0.
        count: Number of words.
        device: Where they are made.

    Returns:
        Shape ``(count,)``, int32, on ``device``.

    Raises:
        InvalidArgument: If the key is not 32 bytes long, or more than 2^32 blocks are requested.
        OverflowError: If the step does not fit 64 bits.
    """
    if len(key) != KEY_BYTES:
        raise InvalidArgument("key", f"{len(key)} bytes", f"of {KEY_BYTES} bytes")
    if not 0 <= count <= MAX_BLOCKS * WORDS_PER_BLOCK:
        raise InvalidArgument("count", count, "at least 0 and at most 2^32 blocks of 16 words")
    nonce = purpose.value.to_bytes(4, "little") + step.to_bytes(8, "little")
    found = torch.empty(count, dtype=torch.int32, device=device)
    state = _rows(CONSTANTS + key + bytes(4) + nonce, found.device)
    at_once = CPU_BLOCKS if found.is_cpu else DEVICE_BLOCKS
    for part, some in enumerate(torch.split(found, WORDS_PER_BLOCK * at_once)):
        needed = -(-len(some) // WORDS_PER_BLOCK)
        some.copy_(chacha20_blocks(state, part * at_once, needed).flatten()[: len(some)])
    return found


def chacha20_blocks(state: Tensor, first: int, count: int) -> Tensor:
    """Return consecutive ChaCha20 blocks.

    Args:
        state: Constants, key, a counter of zero and nonce, int32, shape ``(4, 4)``.
        first: Number of the first block; the counter wraps at 2^32.
        count: Number of blocks.

    Returns:
        Shape ``(count, 16)``, int32.

    References:
        RFC 8439, section 2.3.
    """
    counters = torch.arange(count, dtype=torch.int32, device=state.device) + _signed(first)
    last = state[3].unsqueeze(1).repeat(1, count)
    last[0] += counters
    start = (state[0].unsqueeze(1), state[1].unsqueeze(1), state[2].unsqueeze(1), last)
    a, b, c, d = start
    for _ in range(DOUBLE_ROUNDS):
        a, b, c, d = _quarter_rounds(a, b, c, d)
        # After rotating rows 1 to 3, the diagonals of the state are its columns.
        a, b, c, d = _quarter_rounds(a, b.roll(-1, 0), c.roll(-2, 0), d.roll(-3, 0))
        b, c, d = b.roll(1, 0), c.roll(2, 0), d.roll(3, 0)
    sums = [row + before for row, before in zip((a, b, c, d), start, strict=True)]
    return torch.cat(sums).T


def _quarter_rounds(
    a: Tensor, b: Tensor, c: Tensor, d: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Apply the quarter round of RFC 8439, section 2.1, to every column."""
    a = a + b
    d = _rotate_left(d ^ a, 16)
    c = c + d
    b = _rotate_left(b ^ c, 12)
    a = a + b
    d = _rotate_left(d ^ a, 8)
    c = c + d
    b = _rotate_left(b ^ c, 7)
    return a, b, c, d


def _rotate_left(row: Tensor, by: int) -> Tensor:
    """Return the words rotated left; the mask removes the sign bits of the arithmetic shift."""
    return (row << by) | ((row >> (32 - by)) & ((1 << by) - 1))


def _rows(state: bytes, device: torch.device) -> Tensor:
    """Return a state of 64 bytes as int32, shape ``(4, 4)``."""
    return torch.tensor(struct.unpack("<16i", state), dtype=torch.int32, device=device).view(4, 4)


def _signed(word: int) -> int:
    """Return an unsigned 32-bit number as the int32 of the same bits."""
    return (word + 2**31) % 2**32 - 2**31
