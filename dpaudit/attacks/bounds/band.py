"""A limit for a distribution function that holds at every threshold at once.

Clopper and Pearson's limit at one threshold fails with the probability that it is given. At
all thresholds of n scores it fails if an order statistic of n uniform numbers lies above the
quantile that stands in for it:

    P(exists k: U_(k) > BetaInv(1 - gamma; k, n - k + 1)) <= level.

Of more than ``MOST_DENSE`` scores, a part of the order statistics is taken, about three for each
standard deviation of the number of scores below. Between two of them the limit of the larger
one holds, as order statistics rise.

The local level gamma is found from the exact probability of that event (Berk & Jones 1979;
local levels as in Gontscharuk, Landwehr & Finner 2016).
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaincinv, gammaln

from dpaudit.vocabulary.errors import require_count, require_open_unit

Array = NDArray[np.float64]
Counts = NDArray[np.int64]

DEVIATIONS = 12.0  # of the counts that are followed; the rest counts as a failure
SMALLEST_STEP = 1e-17
TOLERANCE = 1e-4  # relative, of a local level
MOST_DENSE = 10_000
COARSE_TOLERANCE = 0.02  # of a local level beyond
PER_DEVIATION = 3
ROUNDING = 4e-15  # of the recursion, for each score


def places(scores: int) -> Counts:
    """Return the order statistics k that the limits are for, rising; the last is ``scores``."""
    if scores <= MOST_DENSE:
        return np.arange(1, scores + 1)
    # The number of scores below the k-th smallest has a standard deviation of about sqrt(k).
    halves = np.arange(1, 2 * PER_DEVIATION * math.sqrt(scores)) / (2 * PER_DEVIATION)
    return np.unique(np.append(np.ceil(halves**2).astype(np.int64), scores))


@lru_cache(maxsize=256)
def local_level(scores: int, level: float) -> float:
    """Return the gamma at which all ``scores`` limits together fail with at most ``level``.

    Args:
        scores: How many independent scores there are, n.
        level: The failure probability of all of them together, in (0, 1).

    Raises:
        InvalidArgument: a number is out of range.
    """
    require_count("scores", scores)
    require_open_unit("level", level)

    def excess(log_gamma: float) -> float:
        return math.log(failure_probability(scores, math.exp(log_gamma)) / level)

    # Bonferroni's level is valid by itself; rounding may hide how much more is.
    least, most = math.log(level / scores), math.log(level)
    if scores == 1 or excess(least) >= 0:
        return level / scores
    from scipy.optimize import brentq  # noqa: PLC0415  slow to import, and rarely needed

    tolerance = TOLERANCE if scores <= MOST_DENSE else COARSE_TOLERANCE
    root = brentq(excess, least, most, xtol=tolerance)
    while excess(root) > 0:
        root -= tolerance
    return math.exp(max(root, least))


def failure_probability(scores: int, gamma: float) -> float:
    """Return the probability, from above, that an order statistic exceeds its quantile 1 - gamma.

    Uniform numbers are the points of a Poisson process of rate n, given that there are n.
    U_(k) is at most b_k for every k if and only if each b_k has k points or more below it:
    counts are followed from one b_k to the next, and those with too few are dropped.
    """
    k = places(scores)
    limits = betaincinv(k, scores - k + 1, 1 - gamma)
    steps = scores * np.diff(limits, prepend=0.0, append=1.0)
    most = np.minimum(scores, np.ceil(scores * limits + DEVIATIONS * _spread(scores, limits)))
    counts, first = np.ones(1), 0  # probabilities of first, first + 1, ... points so far
    for least, highest, mean in zip(k, most.astype(int), steps[:-1], strict=True):
        counts = np.convolve(counts, _poisson(float(mean)))[least - first : highest + 1 - first]
        first = int(least)
    rest = _poisson_at(scores - first - np.arange(len(counts)), float(steps[-1]))
    given = math.exp(-scores + scores * math.log(scores) - float(gammaln(scores + 1)))
    return 1.0 - float(counts @ rest) / given + ROUNDING * scores


def _spread(scores: int, limits: Array) -> Array:
    return np.sqrt(scores * limits * (1 - limits)) + 1.0


def _poisson(mean: float) -> Array:
    """Return the probabilities of 0, 1, ... points, as far as they matter."""
    return _poisson_at(np.arange(int(mean + DEVIATIONS * math.sqrt(mean) + 12)), mean)


def _poisson_at(points: NDArray[np.int64], mean: float) -> Array:
    mean = max(mean, SMALLEST_STEP)
    return np.asarray(np.exp(points * math.log(mean) - mean - gammaln(points + 1)))
