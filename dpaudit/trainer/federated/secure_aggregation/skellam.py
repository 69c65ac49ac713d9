"""Draws of the Skellam distribution: the difference of two Poisson draws, without rounding error.

A Poisson draw is the smallest count whose cumulative probability exceeds a uniform number. A
table of these probabilities in floats decides; within ``MARGIN`` of an entry, exact sums do.

References:
    Agarwal, Kairouz & Liu (2021), arXiv:2110.04995.
"""

from __future__ import annotations

import math
from fractions import Fraction
from functools import lru_cache

import numpy as np
import scipy
from numpy.typing import NDArray

from dpaudit.trainer.federated.secure_aggregation.exact_uniforms import (
    ExactUniform,
    further_words,
    poisson_bounds,
)
from dpaudit.trainer.noise.randomness import Keystream, Purpose
from dpaudit.vocabulary.errors import InvalidArgument, require_count

LARGEST_VARIANCE = 2.0**32
"""The table has 20 entries per unit of the standard deviation: about a million here."""

# Errors of the table, measured against exact sums up to a mean of 2^31: pdtr is within 2^-52 up
# to TAIL_BEGINS deviations above the mean, and at most 2^-23 beyond 4.5 of them. So the tail there
# is summed: up to 2^18 products and sums have a relative error of 2^-33, of a mass below 2^-15.
# The bits beyond 53 of a uniform number are 2^-54.
MARGIN = 2.0**-45
TAIL_BEGINS = 4.0
LEAST_MEAN_OF_TAIL = 1000.0
"""Below this mean, pdtr is within 2^-51 everywhere."""

DRAWS_AT_ONCE = 2**16


def skellams(
    stream: Keystream,
    purpose: Purpose,
    subtrahend: Purpose,
    step: int,
    variance: float,
    count: int,
) -> NDArray[np.int64]:
    """Return differences of two Poisson draws with mean variance / 2 each.

    Args:
        stream: Keystream of the draws.
        purpose: Address of the first Poisson draws, together with ``step``.
        subtrahend: Address of the second ones.
        step: Number of the step, from 0.
        variance: Variance of a draw; exactly this float. Above 0, at most 2^32.
        count: Number of draws.

    Returns:
        Shape ``(count,)``.

    Raises:
        InvalidArgument: If the variance is out of its range.

    Example:
        >>> one, other = Purpose.NOISE_SHARE, Purpose.NOISE_SHARE_SUBTRAHEND
        >>> draws = skellams(Keystream.seeded(1), one, other, 0, 4.0, 9999)
        >>> bool(3.8 < draws.var() < 4.2)
        True
    """
    if not 0 < variance <= LARGEST_VARIANCE:
        raise InvalidArgument(
            "variance",
            variance,
            "above 0 and at most 2^32: take fewer levels, or discrete Gaussian",
        )
    mean = variance / 2
    return poissons(stream, purpose, step, mean, count) - poissons(
        stream, subtrahend, step, mean, count
    )


def poissons(
    stream: Keystream, purpose: Purpose, step: int, mean: float, count: int
) -> NDArray[np.int64]:
    """Return Poisson draws; draw i depends on the key, the purpose, the step and i alone.

    Args:
        stream: Keystream of the draws.
        purpose: Address in the keystream, together with ``step``.
        step: Number of the step, from 0.
        mean: Mean of a draw; exactly this float. Above 0, at most 2^31.
        count: Number of draws.

    Returns:
        Shape ``(count,)``.

    Raises:
        InvalidArgument: If the mean is out of its range.
    """
    if not 0 < mean <= LARGEST_VARIANCE / 2:
        raise InvalidArgument("mean", mean, "above 0 and at most 2^31")
    require_count("count", count, least=0)
    words = stream.words(purpose, step, count)
    draws = np.empty(count, dtype=np.int64)
    for start in range(0, count, DRAWS_AT_ONCE):
        some = words[start : start + DRAWS_AT_ONCE]
        values, undecided = _by_table(some, mean)
        for i in np.flatnonzero(undecided):
            further = further_words(stream, purpose, step, start + int(i))
            values[i] = _exact_count(ExactUniform(int(some[i]), further), int(values[i]), mean)
        draws[start : start + DRAWS_AT_ONCE] = values
    return draws


def _by_table(
    words: NDArray[np.uint64], mean: float
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return the counts by the table, and a mask of those that might be wrong."""
    first, table = _cumulative(mean)
    uniforms = (words.astype(np.float64) + 0.5) * 2.0**-64
    places = np.searchsorted(table, uniforms, side="right")
    # Both ends of the table are within the margin of 0 or 1 unless the count starts at 0.
    padded = np.concatenate([[0.0 if first else -1.0], table, [1.0]])
    undecided = uniforms - padded[places] < MARGIN
    undecided |= padded[places + 1] - uniforms < MARGIN
    return places.astype(np.int64) + first, undecided


@lru_cache(maxsize=4)
def _cumulative(mean: float) -> tuple[int, NDArray[np.float64]]:
    """Return the first count of the table, and the cumulative probabilities from it on."""
    reach = 10 * math.sqrt(mean) + 40
    first, end = max(math.floor(mean - reach), 0), math.ceil(mean + reach) + 1
    table = scipy.special.pdtr(np.arange(first, end, dtype=np.float64), mean)
    if mean >= LEAST_MEAN_OF_TAIL:
        start = math.ceil(mean + TAIL_BEGINS * math.sqrt(mean))
        # The masses above ``start``, relative to the first of them.
        masses = np.cumprod(np.append(1.0, mean / np.arange(start + 2, end, dtype=np.float64)))
        above = np.cumsum(masses[::-1])[::-1]
        tail = (1 - table[start - first]) * np.append(above[1:], 0.0) / above[0]
        table[start + 1 - first :] = 1 - tail
    table = np.maximum.accumulate(table)
    table.flags.writeable = False
    return first, table


def _exact_count(uniform: ExactUniform, guess: int, mean: float) -> int:
    """Return the smallest count whose cumulative probability exceeds a uniform number."""
    exact, count = Fraction(mean), guess
    while not uniform.is_below(poisson_bounds(count, exact)):
        count += 1
    if count == guess:
        while count > 0 and uniform.is_below(poisson_bounds(count - 1, exact)):
            count -= 1
    return count
