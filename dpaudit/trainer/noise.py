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


def normals(stream: Keystream, purpose: Purpose, step: int, count: int) -> Tensor:
    """Return ``count`` draws of N(0, 1), float32; they depend on key, purpose and step alone."""
    if count == 0:
        return torch.empty(0)
    pairs = (count + 1) // 2
    drawn = stream.bits(purpose, step, 12 * (pairs + pairs % 2))
    bits = torch.frombuffer(drawn, dtype=torch.int64)
    uniform = torch.bitwise_and(bits[:pairs], MANTISSA).double().add_(0.5)  # times 2^53
    # In float64 up to here: near 1, the logarithm is a difference of two that are not small.
    radius = uniform.log_().sub_(LOG_SCALE).float().mul_(-2).sqrt_()
    angle = bits[pairs:].view(torch.int32)[:pairs].float().mul_(math.pi * 2.0**-31)
    draws = torch.empty(2 * pairs)
    torch.mul(torch.cos(angle), radius, out=draws[:pairs])
    torch.mul(angle.sin_(), radius, out=draws[pairs:])
    return draws[:count]
