"""Naive composition: bound each release by its own (epsilon, delta), then add up.

basic     epsilons add, deltas add (Dwork, McSherry, Nissim & Smith 2006).
advanced  epsilon = sum e_i (exp(e_i) - 1)/(exp(e_i) + 1) + sqrt(2 ln(1/d) sum e_i^2) at
          delta = d + sum d_i (Kairouz, Oh & Viswanath 2015, arXiv:1311.0776, Theorem 3.5).

Poisson sampling at rate q takes (e, d) to (log(1 + q (exp(e) - 1)), q d)
(Balle, Barthe & Gaboardi 2018, arXiv:1807.01647, Theorem 8).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from dpaudit.accountants import gaussian
from dpaudit.accountants.releases import (
    Releases,
    count_releases,
    refuse_unpriced,
    response_loss,
    shift_over_noise,
)
from dpaudit.vocabulary.adjacency import Adjacency
from dpaudit.vocabulary.bound import Bound
from dpaudit.vocabulary.errors import UnsupportedMechanism, require_delta
from dpaudit.vocabulary.mechanism import (
    Gaussian,
    Mechanism,
    PoissonSampled,
    RandomizedResponse,
    Release,
)

ROUND_UP = 1 + 1e-12
# Shares of delta that the advanced theorem may keep for itself; the best one counts.
SHARES = np.concatenate([np.geomspace(1e-4, 0.5, 12), 1 - np.geomspace(0.4, 1e-6, 12)])


def profile(
    mechanism: Mechanism, *, adjacency: Adjacency = Adjacency.ADD_OR_REMOVE_ONE
) -> NaiveProfile:
    """Return the naive upper bounds of ``mechanism``.

    Raises:
        UnsupportedMechanism: a part has no valid statement under ``adjacency``.
    """
    releases = count_releases(mechanism)
    refuse_unpriced(releases, adjacency)
    return NaiveProfile(releases, adjacency)


@dataclass(frozen=True)
class NaiveProfile:
    """Upper bounds by basic and advanced composition; from below they know 0 alone."""

    releases: Releases
    adjacency: Adjacency

    def epsilon(self, *, delta: float) -> Bound:
        """Return the interval of epsilon at ``delta`` by the better of both theorems."""
        return Bound(0.0, min(self.basic(delta=delta).upper, self.advanced(delta=delta).upper))

    def basic(self, *, delta: float) -> Bound:
        """Return the interval by basic composition; delta is split evenly."""
        require_delta("delta", delta)
        total = sum(times * epsilon for epsilon, times in self._each(delta))
        return Bound(0.0, total * ROUND_UP)

    def advanced(self, *, delta: float) -> Bound:
        """Return the interval by advanced composition, never worse than its own sum."""
        require_delta("delta", delta)
        return Bound(0.0, min(self._advanced(delta, float(share)) for share in SHARES))

    def _each(self, delta: float) -> list[tuple[float, int]]:
        """Return every release's epsilon at an even share of ``delta``, and how often it is."""
        share = delta / sum(self.releases.values())
        return [
            (release_epsilon(release, share, self.adjacency), times)
            for release, times in self.releases.items()
        ]

    def _advanced(self, delta: float, share: float) -> float:
        each = self._each((1 - share) * delta)
        drift = sum(times * e * math.tanh(e / 2) for e, times in each)
        squares = sum(times * e * e for e, times in each)
        spread = math.sqrt(-2 * math.log(share * delta) * squares)
        return min(drift + spread, sum(times * e for e, times in each)) * ROUND_UP


def release_epsilon(release: Release, delta: float, adjacency: Adjacency) -> float:
    """Return an epsilon at which one release alone is (epsilon, delta)-DP."""
    match release:
        case Gaussian():
            return gaussian.epsilon(delta, mu=shift_over_noise(release, adjacency)).upper
        case RandomizedResponse():
            return response_loss(release) * ROUND_UP
        case PoissonSampled(inner, sampling_rate):
            if delta >= sampling_rate:  # the record joins with that probability at most
                return 0.0
            epsilon = release_epsilon(inner, delta / sampling_rate, adjacency)
            return amplified(epsilon, sampling_rate) * ROUND_UP
        case _:
            raise UnsupportedMechanism(release, "naive composition does not price it")


def amplified(epsilon: float, sampling_rate: float) -> float:
    """Return log(1 + q (exp(epsilon) - 1)) without overflow."""
    if epsilon < 30:
        return math.log1p(sampling_rate * math.expm1(epsilon))
    # log(q e^eps (1 + (1-q) e^-eps / q))
    return (
        epsilon + math.log(sampling_rate) + math.log1p((1 / sampling_rate - 1) * math.exp(-epsilon))
    )
