"""How likely a Poisson batch is too large: a certified upper tail of the binomial law."""

from __future__ import annotations

import math

import numpy as np

from dpaudit.vocabulary.adjacency import Adjacency
from dpaudit.vocabulary.mechanism import TruncatedPoisson

TERMS = 4096


def truncation_probability(release: TruncatedPoisson, adjacency: Adjacency) -> float:
    """Return an upper bound of the probability that a batch is cut.

    Where a record may be added, the larger of both data sets has one record more.
    """
    more = 1 if adjacency is Adjacency.ADD_OR_REMOVE_ONE else 0
    return binomial_tail(
        release.dataset_size + more, release.sampling_rate, release.largest_batch + 1
    )


def binomial_tail(trials: int, rate: float, least: int) -> float:
    """Return an upper bound of P[Binomial(trials, rate) >= least].

    The first terms are summed; from there on each is at most the last ratio of two times
    the one before. Below the mean, where the terms still grow, the answer is 1.
    """
    if least > trials:
        return 0.0
    if rate == 1 or least <= trials * rate + 1:
        return 1.0
    n, j = float(trials), float(least)
    parts = (
        math.lgamma(n + 1),
        -math.lgamma(j + 1),
        -math.lgamma(n - j + 1),
        j * math.log(rate),
        (n - j) * math.log1p(-rate),
    )
    log_first = float(sum(parts) + 1e-15 * sum(abs(part) for part in parts))
    at = j + np.arange(TERMS)
    ratios = np.maximum(0.0, (n - at) / (at + 1) * (rate / (1 - rate)))
    total = 1 + float(np.cumprod(ratios).sum())
    rest = float(np.prod(ratios)) * float(ratios[-1] / (1 - ratios[-1]))
    return min(1.0, math.exp(min(0.0, log_first)) * (total + rest) * (1 + 1e-11))
