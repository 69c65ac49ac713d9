"""Gaussian noise from the keystream: as fast as torch's own generator, and secure.

Box and Muller's transform: the radius in float64 from 53 bits, so that tails reach 8.6
standard deviations; the angle in float32 from 32 bits, where nothing rare depends on it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dpaudit.trainer.randomness import Keystream, Purpose

MANTISSA = 2**53 - 1


def normals(stream: Keystream, purpose: Purpose, step: int, count: int) -> Tensor:
    """Return ``count`` draws of N(0, 1), float32; they depend on key, purpose and step alone."""
    if count == 0:
        return torch.empty(0)
    pairs = (count + 1) // 2
    drawn = stream.bits(purpose, step, 12 * (pairs + pairs % 2))
    bits = torch.frombuffer(drawn, dtype=torch.int64)
    radius = torch.bitwise_and(bits[:pairs], MANTISSA).double()
    radius.add_(0.5).mul_(2.0**-53).log_().mul_(-2).sqrt_()
    angle = bits[pairs:].view(torch.int32)[:pairs].float().mul_(math.pi * 2.0**-31)
    draws, short = torch.empty(2 * pairs), radius.float()
    torch.cos(angle, out=draws[:pairs]).mul_(short)
    torch.sin(angle, out=draws[pairs:]).mul_(short)
    return draws[:count]
