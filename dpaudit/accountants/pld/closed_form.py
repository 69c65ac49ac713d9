"""Closed forms: repeated two-valued answers, and one release alone.

Two-valued answers. One answer's privacy loss is +e with probability p under P, and -e with
probability 1 - p = e^-e p. That holds for randomized response with two categories, the worst
epsilon-DP mechanism, and discrete Laplace noise at sensitivity 1. After T answers the loss is
(2 k - T) e with k ~ Binomial(T, p), so

    delta(epsilon) = sum_k C(T, k) p^k (1 - p)^(T - k) (1 - e^(epsilon - (2 k - T) e))+.

Both directions agree.

References:
    Kairouz, Oh & Viswanath (2015), arXiv:1311.0776, Theorem 3.3.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from dpaudit.accountants.numerics import (
    CertifiedInterval,
    certified_lower_crossing,
    certified_upper_crossing,
    log_gamma,
    logsumexp,
)
from dpaudit.accountants.pld.laws.loss_distribution import LossDistribution
from dpaudit.accountants.releases import ReleaseCounts, randomized_response_loss
from dpaudit.accountants.rounding_margins import ROUND_UP, UNIT_ROUNDOFF
from dpaudit.vocabulary.mechanism import (
    DiscreteLaplace,
    PoissonSampled,
    PureDP,
    RandomizedResponse,
    Release,
)
from dpaudit.vocabulary.privacy_terms import Bound

Array = NDArray[np.float64]

MAX_RESPONSES = 2_000_000  # above it a contour is faster than the table of masses


def binary_responses_of(releases: ReleaseCounts) -> BinaryResponses | None:
    """Return the binomial form of equal two-valued releases.

    Args:
        releases: How often each elementary release occurs.

    Returns:
        The form, or None if the releases differ, have more than two losses, or are too many.
    """
    if len(releases) != 1:
        return None
    ((release, times),) = releases.items()
    loss = _binary_loss(release)
    return None if loss is None or times > MAX_RESPONSES else BinaryResponses(loss, times)


def _binary_loss(release: Release) -> float | None:
    """Return the loss e of a release whose losses are +e and -e alone, or None."""
    match release:
        case RandomizedResponse(categories=2):
            return randomized_response_loss(release)
        case PureDP(epsilon):
            return epsilon
        case DiscreteLaplace(scale, 1):
            return 1 / scale
        case PoissonSampled(inner, 1.0):
            return _binary_loss(inner)
        case _:
            return None


class BinaryResponses:
    """Composition of equal answers whose privacy loss takes the values +e and -e.

    Args:
        loss: e, in nats.
        times: Number of answers T.
    """

    def __init__(self, loss: float, times: int) -> None:
        first = np.arange(times + 1, dtype=np.float64)
        log_first, log_second = -math.log1p(math.exp(-loss)), -loss - math.log1p(math.exp(-loss))
        choose = log_gamma(times + 1) - log_gamma(first + 1) - log_gamma(times - first + 1)
        self._losses = (2 * first - times) * loss
        self._log_masses = choose + first * log_first + (times - first) * log_second
        # Relative error of a mass: log_gamma is accurate to about one unit in the last place.
        self._slack = 1e-14 * (10 + times * math.log(times + 2) + times * loss)

    @property
    def largest_loss(self) -> float:
        """The composed loss T e, in nats: delta is 0 from there on."""
        return float(self._losses[-1])

    def _log_delta(self, epsilon: float) -> float:
        """Return log of the binomial sum at ``epsilon``, -inf where no loss exceeds it."""
        above = self._losses > epsilon
        if not above.any():
            return -math.inf
        log_shares = np.log(-np.expm1(epsilon - self._losses[above]))
        return float(logsumexp(self._log_masses[above] + log_shares))

    def delta(self, epsilon: float) -> Bound:
        """Compute the interval of delta(epsilon).

        Args:
            epsilon: Privacy loss in nats, at least 0.

        Returns:
            The interval; its width is rounding alone.
        """
        if epsilon >= self.largest_loss * (1 + 1e-12):
            return Bound(0.0, 0.0)
        value, slack = self._log_delta(epsilon), self._slack
        nudge = 1e-14 * (1 + self.largest_loss)
        upper = self._log_delta(max(0.0, epsilon - nudge)) + slack
        lower = min(value, self._log_delta(epsilon + nudge)) - slack
        return Bound(math.exp(lower), min(1.0, math.exp(min(0.0, upper))))

    def epsilon(self, delta: float) -> Bound:
        """Compute the interval of epsilon(delta).

        Args:
            delta: In (0, 1).

        Returns:
            The interval in nats, between 0 and the largest loss.
        """
        ceiling = self.largest_loss * (1 + 1e-12) + 1e-300
        return Bound(
            certified_lower_crossing(lambda e: self.delta(e).lower, delta, 0.0, ceiling),
            certified_upper_crossing(lambda e: self.delta(e).upper, delta, 0.0, ceiling),
        )


# One release alone. Its delta is one integral, without any transform:
#
#     delta(epsilon) = E_P[(1 - e^(epsilon - L)) 1(L > epsilon)] + P[L = infinity].

SINGLE_RELEASE_METHOD = "one integral"
ELLIPSE_BOUND = 14.0


def single_release_delta(distribution: LossDistribution, epsilon: float) -> CertifiedInterval:
    """Compute the interval of delta(epsilon) of one release.

    Args:
        distribution: The release's privacy loss distribution.
        epsilon: Privacy loss in nats, at least 0.

    Returns:
        The interval, with quadrature, truncation and rounding errors inside.
    """
    never = (
        distribution.infinite_mass
        if distribution.truncated_mass == 0
        else distribution.missing_mass * ROUND_UP
    )
    above = distribution.split(epsilon)[1]
    if epsilon >= distribution.largest or not (above.branches or len(above.atom_losses)):
        rounding = 0.0 if epsilon >= distribution.largest * ROUND_UP else 1e-12
        return CertifiedInterval(
            distribution.infinite_mass / ROUND_UP, min(1.0, never + rounding), SINGLE_RELEASE_METHOD
        )
    points = above.points(0.0, 0.0)
    excess = points.losses - epsilon
    value = math.exp(points.log_moment) * float(points.masses @ -np.expm1(-np.maximum(excess, 0.0)))
    # The quadrature error of the moment bounds that of delta: on the ellipses around panels,
    # which reach at most 2.5 below epsilon, |1 - e^(epsilon - L)| <= 1 + e^2.5 < ELLIPSE_BOUND.
    mass = math.exp(points.log_moment)
    rounding = UNIT_ROUNDOFF * (1 + abs(epsilon) + float(points.masses @ np.abs(points.losses)))
    error = mass * (ELLIPSE_BOUND * points.error + 16 * rounding)
    lower, upper = value - error + distribution.infinite_mass / ROUND_UP, value + error + never
    return CertifiedInterval(max(0.0, lower), min(1.0, upper), SINGLE_RELEASE_METHOD)


def single_release_epsilon(distribution: LossDistribution, target: float) -> CertifiedInterval:
    """Compute the interval of epsilon(delta) of one release.

    Args:
        distribution: The release's privacy loss distribution.
        target: Delta, in (0, 1).

    Returns:
        The interval in nats.
    """
    if single_release_delta(distribution, 0.0).upper <= target:
        return CertifiedInterval(0.0, 0.0, SINGLE_RELEASE_METHOD)
    ceiling = distribution.largest * ROUND_UP
    upper = certified_upper_crossing(
        lambda e: single_release_delta(distribution, e).upper, target, 0.0, ceiling, 1e-12
    )
    lower = certified_lower_crossing(
        lambda e: single_release_delta(distribution, e).lower, target, 0.0, upper, 1e-12
    )
    return CertifiedInterval(lower, upper, SINGLE_RELEASE_METHOD)
