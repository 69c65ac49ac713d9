"""A secure keystream made on the tensor's own device: ChaCha20 in torch's whole numbers.

Nonces and counters as in RFC 8439, section 2.3: a 256-bit key, a 96-bit nonce that holds
the purpose and the step, a 32-bit counter of blocks. No two draws share a block, and any
block can be made without those before it: so all are made side by side, elementwise.

int32 wraps as the RFC's addition modulo 2^32 does. A state is four rows of four words, the
rows as tensors of shape ``(4, blocks)``: one line of code does the four columns at once,
and a round is 4 additions, 4 exclusive ors and 4 rotations. Nothing depends on data, so
``torch.compile`` may fuse ``blocks``; nothing needs it.
"""

from __future__ import annotations

import struct

import torch
from torch import Tensor

from dpaudit.trainer.noise import box_muller, words_for
from dpaudit.trainer.randomness import Keystream, Purpose
from dpaudit.vocabulary.errors import InvalidArgument

KEY_BYTES = 32
WORDS_PER_BLOCK = 16
MOST_BLOCKS = 2**32
DOUBLE_ROUNDS = 10
CONSTANTS = b"expand 32-byte k"

CPU_BLOCKS, DEVICE_BLOCKS = 2**14, 2**18
"""Blocks that are made at once, each of which needs a few times its memory while it is."""


def key_of(stream: Keystream) -> bytes:
    """Return the key of ``stream``'s words on devices: fresh where ``stream``'s own is."""
    return bytes(stream.bits(Purpose.DEVICE_KEY, 0, KEY_BYTES))


def normals(
    key: bytes, purpose: Purpose, step: int, count: int, device: torch.device | str
) -> Tensor:
    """Return ``count`` draws of N(0, 1), float32; they depend on key, purpose and step alone.

    On another kind of device their last bits differ, as its logarithms and cosines do.
    """
    drawn = words(key, purpose, step, 2 * words_for(count), device)
    return box_muller(drawn.view(torch.int64), count)


def words(
    key: bytes, purpose: Purpose, step: int, count: int, device: torch.device | str
) -> Tensor:
    """Return ``count`` uniform 32-bit words, int32, shape ``(count,)``.

    Raises:
        InvalidArgument: the key is not of 32 bytes, or more than 2^32 blocks are asked for.
        OverflowError: the step has no address.
    """
    if len(key) != KEY_BYTES:
        raise InvalidArgument("key", f"{len(key)} bytes", f"of {KEY_BYTES} bytes")
    if not 0 <= count <= MOST_BLOCKS * WORDS_PER_BLOCK:
        raise InvalidArgument("count", count, "at least 0 and at most 2^32 blocks of 16 words")
    nonce = purpose.value.to_bytes(4, "little") + step.to_bytes(8, "little")
    found = torch.empty(count, dtype=torch.int32, device=device)
    state = _rows(CONSTANTS + key + bytes(4) + nonce, found.device)
    at_once = CPU_BLOCKS if found.is_cpu else DEVICE_BLOCKS
    for part, some in enumerate(torch.split(found, WORDS_PER_BLOCK * at_once)):
        needed = -(-len(some) // WORDS_PER_BLOCK)
        some.copy_(blocks(state, part * at_once, needed).flatten()[: len(some)])
    return found


def blocks(state: Tensor, first: int, count: int) -> Tensor:
    """Return blocks ``first`` and the following ones, shape ``(count, 16)`` (RFC 8439, 2.3).

    Args:
        state: Constants, key, a counter of zero and nonce, shape ``(4, 4)``.
        first: Number of the first block; the counter wraps at 2^32.
        count: How many blocks.
    """
    counters = torch.arange(count, dtype=torch.int32, device=state.device) + _signed(first)
    last = state[3].unsqueeze(1).repeat(1, count)
    last[0] += counters
    start = (state[0].unsqueeze(1), state[1].unsqueeze(1), state[2].unsqueeze(1), last)
    a, b, c, d = start
    for _ in range(DOUBLE_ROUNDS):
        a, b, c, d = _quarter_rounds(a, b, c, d)
        # Turned so, the diagonals stand in columns.
        a, b, c, d = _quarter_rounds(a, b.roll(-1, 0), c.roll(-2, 0), d.roll(-3, 0))
        b, c, d = b.roll(1, 0), c.roll(2, 0), d.roll(3, 0)
    sums = [row + before for row, before in zip((a, b, c, d), start, strict=True)]
    return torch.cat(sums).T


def _quarter_rounds(
    a: Tensor, b: Tensor, c: Tensor, d: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Do the quarter round of RFC 8439, 2.1, on every column."""
    a = a + b
    d = _rotated(d ^ a, 16)
    c = c + d
    b = _rotated(b ^ c, 12)
    a = a + b
    d = _rotated(d ^ a, 8)
    c = c + d
    b = _rotated(b ^ c, 7)
    return a, b, c, d


def _rotated(row: Tensor, by: int) -> Tensor:
    """Return the words turned left; the mask undoes what an arithmetic shift copies."""
    return (row << by) | ((row >> (32 - by)) & ((1 << by) - 1))


def _rows(state: bytes, device: torch.device) -> Tensor:
    return torch.tensor(struct.unpack("<16i", state), dtype=torch.int32, device=device).view(4, 4)


def _signed(word: int) -> int:
    return (word + 2**31) % 2**32 - 2**31
