"""Exponential mechanisms that choose between two candidates: pairs that some inputs attain.

One record moves the odds of the first candidate from e^s to e^(s + epsilon). With the logistic
function p(x) = 1/(1 + e^-x), the losses are

    log(p(s + epsilon)/p(s))              of the first candidate, which has mass p(s) under Q,
    log((1 - p(s + epsilon))/(1 - p(s)))  of the second.

No s is worst for every epsilon. Each gives a valid lower bound of a composition; the best one of a
grid is taken (Dong, Durfee & Rogers 2020, arXiv:1909.13830, section 4).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from dpaudit.accountants.numerics import log_gamma
from dpaudit.accountants.pld.laws.dominating_pairs import DominatingPair

Array = NDArray[np.float64]

OFFSETS = np.linspace(-16.0, 16.0, 161)
"""Candidates of s + epsilon/2, in nats."""
MOST_TIMES = 1000
"""Repetitions beyond which s = -epsilon/2, with losses +-epsilon/2, is near the best."""
BISECTIONS = 30


def two_candidate_pair(epsilon: float, times: int, delta: float) -> DominatingPair:
    """Return the pair that gives the largest epsilon of a composition at ``delta``.

    Args:
        epsilon: Of the exponential mechanism: largest change of the log odds, in nats.
        times: Number of repetitions.
        delta: Approximate delta of interest.

    Returns:
        A pair of two atoms.
    """
    offset = 0.0 if times > MOST_TIMES else _best_offset(epsilon, times, delta)
    high, low = _losses(np.array([offset - epsilon / 2]), epsilon)
    chance = _logistic(offset - epsilon / 2)
    return DominatingPair(
        densities=(),
        atom_losses=np.concatenate([high, low]),
        atom_masses=np.array([chance, 1 - chance]),
    )


def _best_offset(epsilon: float, times: int, delta: float) -> float:
    """Return the offset with the largest epsilon of the binomial composition, approximately."""
    starts = OFFSETS - epsilon / 2
    high, low = _losses(starts, epsilon)
    count = np.arange(times + 1)[None, :]
    losses = count * high[:, None] + (times - count) * low[:, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        log_first, log_second = (
            -np.logaddexp(0, -starts - epsilon),
            -np.logaddexp(0, starts + epsilon),
        )
    log_masses = (
        float(log_gamma(times + 1.0))
        - log_gamma(count + 1.0)
        - log_gamma(times - count + 1.0)
        + count * log_first[:, None]
        + (times - count) * log_second[:, None]
    )
    masses = np.exp(log_masses)
    lower, upper = np.zeros(len(starts)), np.full(len(starts), times * epsilon)
    for _ in range(BISECTIONS):
        middle = 0.5 * (lower + upper)
        left = (masses * -np.expm1(np.minimum(middle[:, None] - losses, 0.0))).sum(axis=1)
        lower, upper = np.where(left > delta, middle, lower), np.where(left > delta, upper, middle)
    return float(OFFSETS[int(np.argmax(lower))])


def _losses(starts: Array, epsilon: float) -> tuple[Array, Array]:
    """Return the losses of both candidates, for each s."""
    high = np.logaddexp(0, -starts) - np.logaddexp(0, -starts - epsilon)
    low = np.logaddexp(0, starts) - np.logaddexp(0, starts + epsilon)
    return high, low


def _logistic(x: float) -> float:
    return 1 / (1 + math.exp(-x))
