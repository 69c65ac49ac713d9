"""Exact delta(epsilon) of repeated answers that have two values and opposite losses.

One answer's privacy loss is +e with probability p under P, and -e with probability
1 - p = e^-e p: randomized response with two categories, the worst epsilon-DP mechanism,
discrete Laplace noise at sensitivity 1. After T answers the loss is (2 k - T) e with k
binomial. Both directions agree.
Source: Kairouz, Oh & Viswanath 2015, arXiv:1311.0776, Theorem 3.3.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from dpaudit.accountants.invert import largest_with_at_least, smallest_with_at_most
from dpaudit.accountants.releases import Releases, response_loss
from dpaudit.accountants.special import log_gamma, logsumexp
from dpaudit.vocabulary.bound import Bound
from dpaudit.vocabulary.mechanism import (
    DiscreteLaplace,
    PoissonSampled,
    PureDP,
    RandomizedResponse,
    Release,
)

Array = NDArray[np.float64]

MOST_ANSWERS = 2_000_000  # beyond it the table of masses is larger than a contour


def two_answers_of(releases: Releases) -> TwoAnswers | None:
    """Return the exact form of equal releases of this kind, or None for anything else."""
    if len(releases) != 1:
        return None
    ((release, times),) = releases.items()
    loss = _loss(release)
    return None if loss is None or times > MOST_ANSWERS else TwoAnswers(loss, times)


def _loss(release: Release) -> float | None:
    match release:
        case RandomizedResponse(categories=2):
            return response_loss(release)
        case PureDP(epsilon):
            return epsilon
        case DiscreteLaplace(scale, 1):
            return 1 / scale
        case PoissonSampled(inner, 1.0):
            return _loss(inner)
        case _:
            return None


class TwoAnswers:
    """``times`` answers whose loss is ``loss`` or its negative."""

    def __init__(self, loss: float, times: int) -> None:
        first = np.arange(times + 1, dtype=np.float64)
        log_first, log_second = -math.log1p(math.exp(-loss)), -loss - math.log1p(math.exp(-loss))
        choose = log_gamma(times + 1) - log_gamma(first + 1) - log_gamma(times - first + 1)
        self._losses = (2 * first - times) * loss
        self._log_masses = choose + first * log_first + (times - first) * log_second
        # log_gamma is good to about one unit in the last place of its value.
        self._slack = 1e-14 * (10 + times * math.log(times + 2) + times * loss)

    @property
    def largest_loss(self) -> float:
        """The loss when every answer is the first one: delta is 0 from there on."""
        return float(self._losses[-1])

    def _log_delta(self, epsilon: float) -> float:
        above = self._losses > epsilon
        if not above.any():
            return -math.inf
        shares = np.log(-np.expm1(epsilon - self._losses[above]))
        return float(logsumexp(self._log_masses[above] + shares))

    def delta(self, epsilon: float) -> Bound:
        """Return the interval of delta(epsilon)."""
        if epsilon >= self.largest_loss * (1 + 1e-12):
            return Bound(0.0, 0.0)
        value, slack = self._log_delta(epsilon), self._slack
        nudge = 1e-14 * (1 + self.largest_loss)
        upper = self._log_delta(max(0.0, epsilon - nudge)) + slack
        lower = min(value, self._log_delta(epsilon + nudge)) - slack
        return Bound(math.exp(lower), min(1.0, math.exp(min(0.0, upper))))

    def epsilon(self, delta: float) -> Bound:
        """Return the interval of epsilon(delta)."""
        ceiling = self.largest_loss * (1 + 1e-12) + 1e-300
        return Bound(
            largest_with_at_least(lambda e: self.delta(e).lower, delta, 0.0, ceiling),
            smallest_with_at_most(lambda e: self.delta(e).upper, delta, 0.0, ceiling),
        )
