"""Exact tails of the tests' statistics, and the smallest fault that each would have seen.

Every p-value is exact under the claim, or larger than that: none rests on a limit theorem.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy import special, stats

Array = NDArray[np.float64]
Numbers = NDArray[np.float64] | NDArray[np.int64]

POWER, HALVINGS = 0.95, 40


def scale_p_values(sums: Array, samples: Numbers, shift: Array | float = 0.0) -> Array:
    """Return two-sided p-values of "these are sums of squares of standard normals".

    Args:
        sums: Sums of squares, shape ``(tests,)``.
        samples: How many squares are in each sum.
        shift: The most that the squares of what is added to the normals may come to. It makes
            a sum larger, never smaller: the lower tail needs nothing, the upper one is that
            of a noncentral chi-square.
    """
    low = stats.chi2.cdf(sums, samples)
    shifted = stats.ncx2.sf(sums, samples, shift) if np.any(shift) else stats.chi2.sf(sums, samples)
    return np.asarray(np.minimum(1.0, 2 * np.minimum(low, shifted)))


def detectable_scale(samples: float, level: float) -> float:
    """Return by how much less than claimed the noise is where it is seen 95 times in 100.

    The sum of squares is factor^2 times a chi-square, and refuted below the quantile of
    level / 2: so factor^2 is the ratio of two quantiles.
    """
    quantiles = stats.chi2.ppf([level / 2, POWER], samples)
    return float(1 - math.sqrt(quantiles[0] / quantiles[1]))


def squared_norm(row: Array) -> float:
    """Return the sum of a row's squares: infinite where that is too large a number."""
    with np.errstate(over="ignore", invalid="ignore"):
        return float(np.square(row).sum())


def low_scale_p_values(sums: Array, samples: Numbers) -> Array:
    """Return p-values of "these are at least sums of squares of standard normals"."""
    return np.asarray(stats.chi2.cdf(sums, samples))


def detectable_low_scale(samples: float, level: float, shift: float = 0.0) -> float:
    """Return by how much too low noise is seen 95 times in 100 where squares may be added to it.

    Source: Birge 2001, IMS Lecture Notes 36, lemma 8.1: a noncentral chi-square with n degrees
    of freedom exceeds n + shift + 2 sqrt((n + 2 shift) x) + 2 x with probability exp(-x) at most.

    Args:
        samples: Squares in the sum.
        level: Below whose quantile of the chi-square the claim is refuted.
        shift: The most that the squares of what is added to the noise may come to, over the
            claimed variance.

    Returns:
        1.0 where no noise at all would not be seen.
    """
    refuted = float(stats.chi2.ppf(level, samples))
    if shift == 0:
        return float(1 - math.sqrt(refuted / stats.chi2.ppf(POWER, samples)))
    x = -math.log(1 - POWER)

    def seen(factor: float) -> bool:
        spread = factor**2 * (samples + 2 * x) + shift
        cross = 2 * factor * math.sqrt((factor**2 * samples + 2 * shift) * x)
        return spread + cross <= refuted

    low, high = 0.0, 1.0
    if not seen(low):
        return 1.0
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if seen(middle) else (low, middle)
    return 1 - low


def binomial_p_values(
    successes: Numbers, trials: Numbers | int, probability: Array | float
) -> Array:
    """Return two-sided p-values of "so many successes in so many independent trials"."""
    low = stats.binom.cdf(successes, trials, probability)
    high = stats.binom.sf(np.asarray(successes) - 1, trials, probability)
    return np.asarray(np.minimum(1.0, 2 * np.minimum(low, high)))


def detectable_rate(trials: int, probability: float, level: float) -> float:
    """Return the least probability above ``probability`` that is seen 95 times in 100; or 1."""
    least = float(stats.binom.isf(level / 2, trials, probability)) + 1  # refuted from here on
    if least > trials:
        return 1.0
    return float(special.betaincinv(least, trials - least + 1, POWER))


def correlation_p_values(correlations: Array, pairs: Numbers | int) -> Array:
    """Return two-sided p-values of correlations of independent normals of mean 0.

    Given one side, r sqrt(n - 1) / sqrt(1 - r^2) follows Student's law with n - 1 degrees of
    freedom, whatever the scales are: there is no mean to be estimated.
    """
    r = np.clip(np.abs(correlations), 0.0, 1.0)
    freedom = np.maximum(np.asarray(pairs) - 1, 1)
    with np.errstate(divide="ignore"):
        t = r * np.sqrt(freedom) / np.sqrt(1 - r**2)
    p_values = np.minimum(1.0, 2 * stats.t.sf(t, freedom))
    return np.where(np.asarray(pairs) >= 2, p_values, 1.0)


def detectable_correlation(pairs: float, level: float) -> float:
    """Return the least correlation that is seen about 95 times in 100 (by Fisher's z)."""
    if pairs < 5:
        return 1.0
    t = float(stats.t.isf(level / 2, pairs - 1))
    critical = t / math.sqrt(pairs - 1 + t**2)
    return math.tanh(math.atanh(critical) + float(stats.norm.ppf(POWER)) / math.sqrt(pairs - 3))


def uniform_p_value(values: Array) -> tuple[float, float]:
    """Return the largest gap from the uniform law on [0, 1], and its p-value, at most.

    Massart 1990, The Annals of Probability 18(3), corollary 1: 2 exp(-2 n gap^2), for all n.
    """
    ordered, n = np.sort(values), len(values)
    ranks = np.arange(n + 1) / n
    gap = float(max((ranks[1:] - ordered).max(), (ordered - ranks[:-1]).max()))
    return gap, min(1.0, 2 * math.exp(-2 * n * gap**2))
