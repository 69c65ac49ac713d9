"""Exact delta(epsilon) of repeated randomized response, for neighbours that replace a record.

One answer's privacy loss is +e, -e or 0 with e = log(p/r), where p is the probability of
the truth and r = (1-p)/(k-1) that of each other answer: after T answers the loss is a
multiple of e, and for two categories that multiple is binomial. Both directions agree.
Source: Kairouz, Oh & Viswanath 2015, arXiv:1311.0776, Theorem 3.3 (k = 2).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaln, logsumexp, xlogy

from dpaudit.accountants.invert import largest_with_at_least, smallest_with_at_most
from dpaudit.accountants.releases import response_loss
from dpaudit.vocabulary.bound import Bound
from dpaudit.vocabulary.mechanism import RandomizedResponse

Array = NDArray[np.float64]


def _log_binomial(successes: Array, trials: int, probability: float) -> Array:
    choose = gammaln(trials + 1) - gammaln(successes + 1) - gammaln(trials - successes + 1)
    return np.asarray(
        choose + xlogy(successes, probability) + xlogy(trials - successes, 1 - probability)
    )


class BinaryResponses:
    """``times`` answers to a yes-or-no question."""

    def __init__(self, release: RandomizedResponse, times: int) -> None:
        truth = release.truth_probability
        self._step = response_loss(release)
        truths = np.arange(times + 1, dtype=np.float64)
        self._losses = (2 * truths - times) * self._step
        self._log_masses = _log_binomial(truths, times, truth)
        # gammaln is good to about one unit in the last place of its value.
        self._slack = 1e-14 * (10 + times * math.log(times + 2) + times * self._step)

    @property
    def largest_loss(self) -> float:
        """The loss when every answer is true: delta is 0 from there on."""
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
