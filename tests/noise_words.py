"""What the tests of noise share: streams with given words, kernels, and draws in many digits."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace

import mpmath
import numpy as np
import pytest
from numpy.typing import NDArray
from torch import Tensor

from dpaudit.trainer import run
from dpaudit.trainer.noise import gaussian_draws, gradient_noise, grid_noise
from dpaudit.trainer.noise.gradient_noise import Independent
from dpaudit.trainer.noise.kernels import NUMPY_KERNELS, PAIRS, Kernels, kernels
from dpaudit.trainer.noise.randomness import Keystream, Purpose
from dpaudit.trainer.session import chosen_noise
from dpaudit.vocabulary.ledger import Randomness

NOISE = Purpose.GRADIENT_NOISE
KERNELS = {"numpy": NUMPY_KERNELS} | ({"compiled": kernels()} if kernels().compiled else {})
Words = NDArray[np.uint32]


class Given(Keystream):
    """A stream whose words of noise are given; what else is drawn, it draws."""

    def __init__(self, words: Words) -> None:
        super().__init__(bytes(32), Randomness.SEEDED)
        self._words = words.astype("<u4").tobytes()

    def reader(
        self, purpose: Purpose, step: int, start: int = 0, *, length: int = 0
    ) -> Callable[[bytearray | memoryview], None]:
        if purpose is not NOISE:
            return super().reader(purpose, step, start)
        position = start

        def fill(buffer: bytearray | memoryview) -> None:
            nonlocal position
            view = memoryview(buffer).cast("B")
            view[:] = self._words[position : position + len(view)]
            position += len(view)

        return fill


def blocks_of(parts: list[NDArray[np.uint32]]) -> Words:
    """Lay out words, one array per kind with an entry per pair, in blocks; the last is padded."""
    padded = [np.resize(part, -(-len(part) // PAIRS) * PAIRS) for part in parts]
    return np.stack([part.reshape(-1, PAIRS) for part in padded], axis=1).ravel()


def use(patch: pytest.MonkeyPatch, chosen: Kernels) -> None:
    """Let the program draw by the given kernels."""
    for module in (gaussian_draws, grid_noise):
        patch.setattr(module, "kernels", lambda: chosen)


def fixed_noise(patch: pytest.MonkeyPatch, draw: Callable[[Keystream, int, int], Tensor]) -> None:
    """Let noise that a run does not name be ``draw(stream, step, count)`` times its deviation."""

    def chunks(stream: Keystream, purpose: Purpose, step: int, count: int) -> Iterator[Tensor]:
        return iter([draw(stream, step, count)])

    class Fixed:
        def __init__(self, stream: Keystream, purpose: Purpose, step: int, count: int) -> None:
            self._left = draw(stream, step, count)

        def add_to(self, sums: Tensor, factor: float, share: float = 1.0) -> None:
            own, self._left = self._left.tensor_split([len(sums)])
            sums.add_(own, alpha=factor).mul_(share)

    independent_by_default(patch)
    patch.setattr(gradient_noise, "normal_chunks", chunks)
    patch.setattr(gradient_noise, "Normals", Fixed)


def independent_by_default(patch: pytest.MonkeyPatch) -> None:
    """Let noise that a run does not name be ``Independent``, with compiled kernels, too."""
    for module in (chosen_noise, run):
        patch.setattr(module, "default_noise", lambda *given: Independent())


def grid_by_default(patch: pytest.MonkeyPatch) -> None:
    """Let noise that a run does not name be exact, without compiled kernels, too."""
    patch.setattr(gradient_noise, "kernels", lambda: replace(kernels(), compiled=True))


def exact_draw(
    radius: int, angle: int, further: Iterator[int], *, plus: bool, words: int = 4
) -> mpmath.mpf:
    """Return the magnitude of a grid's draw from 64 + 62 bits and ``words`` further words each."""
    for more_radius, more_angle in itertools.islice(zip(further, further, strict=False), words):
        radius, angle = radius << 64 | more_radius, angle << 64 | more_angle
    half = mpmath.mpf(1) / 2
    u = mpmath.ldexp(radius + half, -64 * (words + 1))
    y = mpmath.pi / 4 * (mpmath.ldexp(angle + half, -64 * (words + 1) + 3) - 1)
    turned = mpmath.cos(y) + mpmath.sin(y) if plus else mpmath.cos(y) - mpmath.sin(y)
    return mpmath.sqrt(-mpmath.log(u)) * turned


def grid_bits(words: Words) -> Iterator[tuple[int, int, int, int]]:
    """Yield, draw by draw, 64 bits of the radius, 62 of the angle, the sign's, and which draw."""
    for block in words.reshape(-1, 4, PAIRS).tolist():
        for which in (0, 1):
            for high, low, angle, angle_low in zip(*block, strict=True):
                # Low words, and the angle's, are read as signed.
                bits = (angle ^ 2**31) >> 2 << 32 | angle_low ^ 2**31
                yield high << 32 | low ^ 2**31, bits, angle >> which & 1, which
