"""Gaussian noise from the keystream: as fast as torch's own generator, and secure.

Box and Muller's transform: the radius in float64 from 53 bits, so that tails reach 8.6
standard deviations; the angle in float32 from 32 bits, where nothing rare depends on it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dpaudit.trainer.randomness import Keystream, Purpose

MANTISSA, LOG_SCALE = 2**53 - 1, 53 * math.log(2)
CPU_PAIRS, DEVICE_PAIRS = 2**15, 2**22
"""Pairs that are transformed at once, which needs memory beside the draws: on a processor
about as many as its cache holds for each thread, elsewhere enough to be worth the launches."""


def normals(stream: Keystream, purpose: Purpose, step: int, count: int) -> Tensor:
    """Return ``count`` draws of N(0, 1), float32; they depend on key, purpose and step alone.

    They are ``box_muller`` of the stream's words, which are made a cache's worth at a time.
    """
    pairs = (count + 1) // 2
    draws = torch.empty(2 * pairs)
    radii, angles = stream.reader(purpose, step), stream.reader(purpose, step, 8 * pairs)
    at_once = CPU_PAIRS * torch.get_num_threads()
    for start in range(0, pairs, at_once):
        some = slice(start, min(start + at_once, pairs))
        length = some.stop - start
        of_radii, of_angles = bytearray(8 * length), bytearray(4 * length)
        radii(of_radii)
        angles(of_angles)
        _transform(
            torch.frombuffer(of_radii, dtype=torch.int64),
            torch.frombuffer(of_angles, dtype=torch.int32),
            draws[:pairs][some],
            draws[pairs:][some],
        )
    return draws[:count]


def words_for(count: int) -> int:
    """Return how many words of 64 bits ``count`` normals are made of."""
    pairs = (count + 1) // 2
    return 3 * ((pairs + 1) // 2)


def box_muller(bits: Tensor, count: int) -> Tensor:
    """Return ``count`` draws of N(0, 1), float32, where the bits are.

    Args:
        bits: Uniform words of 64 bits, int64, shape ``(words_for(count),)``: first a word a
            radius, then half a word an angle.
        count: How many; draw i and draw i + count / 2 are the two of one pair.
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
    """Write both draws of each pair."""
    radius, angle = _radius(radii), _angle(angles)
    torch.mul(torch.cos(angle), radius, out=one)
    torch.mul(angle.sin_(), radius, out=other)


def _radius(bits: Tensor) -> Tensor:
    uniform = torch.bitwise_and(bits, MANTISSA).double().add_(0.5)  # times 2^53
    # In float64 up to here: near 1, the logarithm is a difference of two that are not small.
    return uniform.log_().sub_(LOG_SCALE).float().mul_(-2).sqrt_()


def _angle(bits: Tensor) -> Tensor:
    return bits.float().mul_(math.pi * 2.0**-31)
