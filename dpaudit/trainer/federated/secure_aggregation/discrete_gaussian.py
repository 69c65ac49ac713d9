"""Draws of the discrete Gaussian, without rounding error.

Rejection from a discrete Laplace distribution, as Canonne, Kamath & Steinke propose. With
t = floor(scale) + 1, a candidate is Y = +-(U + t V), with U uniform on 0..t-1 and V geometric,
P(V >= v) = exp(-v). It is accepted with probability exp(-g), where

    g = U / t + (|Y| - scale^2 / t)^2 / (2 scale^2).

The first term makes |Y| a discrete Laplace magnitude. A candidate -0 is rejected. All candidates
of a chunk are drawn at once; floats decide, except within ``MARGIN`` of a threshold.

References:
    Canonne, Kamath & Steinke (2020), arXiv:2004.00010, Algorithms 2 and 3.
"""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from dpaudit.trainer.federated.secure_aggregation.exact_uniforms import (
    ExactUniform,
    exponential_bounds,
    further_words,
)
from dpaudit.trainer.noise.randomness import Keystream, Purpose
from dpaudit.vocabulary.errors import InvalidArgument, require_count

LARGEST_SCALE = 2.0**40
CANDIDATES = 2**15
"""Candidates per chunk. Draws depend on it, so it is a constant."""

# Errors of the floats, in units of the probability or of the logarithm that is compared:
#   acceptance   exp(-g) is at most 60 units of 2^-53 off: with r = |Y| / scale, the error of g
#                is at most 4 (r + 1) (r + 3) units, and g is at least (r - 1)^2 / 2;
#   logarithm    -ln u of 64 bits is 1 unit off, and 2^-45 for the bits that are not known,
#                as words below 2^44 are never decided in floats.
# Both are below 2^-44.
MARGIN = 2.0**-40
RARE_WORD = 2**44


def discrete_gaussians(
    stream: Keystream, purpose: Purpose, step: int, scale: float, count: int
) -> NDArray[np.int64]:
    """Return draws with mass proportional to exp(-x^2 / (2 scale^2)) on the integers.

    The first draws do not depend on ``count``.

    Args:
        stream: Keystream of the draws.
        purpose: Address in the keystream, together with ``step``.
        step: Number of the step, from 0.
        scale: Parameter of the distribution; exactly this float. Above 0, at most 2^40.
        count: Number of draws.

    Returns:
        Shape ``(count,)``.

    Raises:
        InvalidArgument: If the scale is out of its range.

    Example:
        >>> draws = discrete_gaussians(Keystream.seeded(1), Purpose.NOISE_SHARE, 0, 10.0, 10_000)
        >>> bool(9.7 < draws.std() < 10.3)
        True
    """
    if not 0 < scale <= LARGEST_SCALE:
        raise InvalidArgument("scale", scale, "above 0 and at most 2^40")
    require_count("count", count, least=0)
    read = stream.reader(purpose, step)
    accepted: list[NDArray[np.int64]] = []
    found = first = 0
    while found < count:
        buffer = bytearray(3 * 8 * CANDIDATES)
        read(buffer)
        chunk = _Chunk(np.frombuffer(buffer, dtype="<u8"), stream, purpose, step, first)
        accepted.append(chunk.draws(scale))
        found, first = found + len(accepted[-1]), first + CANDIDATES
    return np.concatenate(accepted)[:count] if accepted else np.zeros(0, np.int64)


class _Chunk:
    """The candidates of one chunk: three words each."""

    def __init__(
        self, words: NDArray[np.uint64], stream: Keystream, purpose: Purpose, step: int, first: int
    ) -> None:
        self._uniforms, self._geometrics, self._coins = words.reshape(3, -1)
        self._stream, self._purpose, self._step, self._first = stream, purpose, step, first

    def draws(self, scale: float) -> NDArray[np.int64]:
        """Return the accepted candidates, in order."""
        period = math.floor(scale) + 1
        # 63 bits give U, by rejection of the last incomplete period; one bit gives the sign.
        bits = (self._uniforms >> np.uint64(1)).view(np.int64)
        kept = bits < 2**63 // period * period
        uniforms = bits % period
        magnitudes = uniforms + period * self._geometric()
        negative = (self._uniforms & np.uint64(1)).astype(np.bool_)
        kept &= ~(negative & (magnitudes == 0))
        kept &= self._coins_accept(uniforms, magnitudes, scale, period)
        return np.where(negative, -magnitudes, magnitudes)[kept]

    def _geometric(self) -> NDArray[np.int64]:
        """Return V = floor(-ln u), with the further bits of u where 64 do not decide."""
        logarithms = -np.log((self._geometrics.astype(np.float64) + 0.5) * 2.0**-64)
        values = np.floor(logarithms).astype(np.int64)
        near = np.abs(logarithms - np.rint(logarithms)) < MARGIN
        for i in np.flatnonzero(near | (self._geometrics < RARE_WORD)):
            uniform = self._exact(int(i), self._geometrics, 0)
            value = max(int(values[i]) - 1, 0)
            while uniform.is_below(exponential_bounds(Fraction(value + 1))):
                value += 1
            while value > 0 and not uniform.is_below(exponential_bounds(Fraction(value))):
                value -= 1
            values[i] = value
        return values

    def _coins_accept(
        self, uniforms: NDArray[np.int64], magnitudes: NDArray[np.int64], scale: float, period: int
    ) -> NDArray[np.bool_]:
        """Return which candidates the coins with probability exp(-g) accept."""
        distance = (magnitudes - scale * scale / period) / scale
        with np.errstate(under="ignore", over="ignore"):
            thresholds = np.exp(-(uniforms / period + distance * distance / 2))
        coins = (self._coins.astype(np.float64) + 0.5) * 2.0**-64
        accepted = coins < thresholds
        square = Fraction(scale) ** 2
        for i in np.flatnonzero(np.abs(coins - thresholds) < MARGIN):
            offset = int(magnitudes[i]) - square / period
            exponent = Fraction(int(uniforms[i]), period) + offset * offset / (2 * square)
            accepted[i] = self._exact(int(i), self._coins, 1).is_below(exponential_bounds(exponent))
        return accepted

    def _exact(self, i: int, words: NDArray[np.uint64], which: int) -> ExactUniform:
        """Return the uniform number that a word of a candidate begins."""
        draw = 2 * (self._first + i) + which
        further = further_words(self._stream, self._purpose, self._step, draw)
        return ExactUniform(int(words[i]), further)
