"""Renyi differential privacy: the moments accountant and its refinement to real orders.

divergence   D_a(P || Q) in both directions; the larger one composes by addition
             (Mironov 2017, arXiv:1702.07476, Proposition 1).
conversion   epsilon = D_a + log((a-1)/a) - (log delta + log a)/(a-1), least over orders
             (Canonne, Kamath & Steinke 2020, arXiv:2004.00010, Proposition 12).

At integer orders the sampled Gaussian has the closed sum of Mironov, Talwar & Zhang 2019
(arXiv:1908.10530, equation 5: the moments accountant of Abadi et al. 2016). At real
orders its integral is taken here by the trapezoid rule: the integrand is analytic in a
strip around the real line, so the rule's error is bounded and tiny (Trefethen & Weideman
2014, Theorem 5.1). No alternating series is summed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaln, log_ndtr, logsumexp

from dpaudit.accountants.releases import (
    Releases,
    count_releases,
    refuse_unpriced,
    shift_over_noise,
)
from dpaudit.vocabulary.adjacency import Adjacency
from dpaudit.vocabulary.bound import Bound
from dpaudit.vocabulary.errors import (
    InvalidArgument,
    UnsupportedMechanism,
    require_delta,
)
from dpaudit.vocabulary.mechanism import (
    Gaussian,
    Mechanism,
    PoissonSampled,
    RandomizedResponse,
    Release,
)

Array = NDArray[np.float64]

UNIT_ROUNDOFF = 2.0**-53
INTEGER_ORDERS = (*range(2, 65), 80, 96, 128, 192, 256, 384, 512, 768, 1024)
REAL_ORDERS = tuple(float(order) for order in 1 + np.geomspace(0.02, 250, 64))
WIDEST_STRIP = 8.0  # in standard deviations; wider gains nothing
TARGET_LOG_ERROR = -35.0
# Beyond it the divergence without sampling stands in, an upper bound by quasi-convexity
# (van Erven & Harremoes 2014, Theorem 13).
LARGEST_EXPONENT = 1e5


def profile(
    mechanism: Mechanism, *, adjacency: Adjacency = Adjacency.ADD_OR_REMOVE_ONE
) -> RdpProfile:
    """Return the Renyi upper bounds of ``mechanism``.

    Raises:
        UnsupportedMechanism: a part has no valid statement under ``adjacency``.
    """
    releases = count_releases(mechanism)
    refuse_unpriced(releases, adjacency)
    return RdpProfile(releases, adjacency)


def divergence(
    mechanism: Mechanism,
    *,
    order: float,
    adjacency: Adjacency = Adjacency.ADD_OR_REMOVE_ONE,
) -> Bound:
    """Return the interval of the Renyi divergence, the larger of both directions.

    Args:
        mechanism: A release or a composition whose schedule was fixed in advance.
        order: The order a of the divergence, above 1.
        adjacency: Which data sets are neighbours.
    """
    if not 1 < order < math.inf:
        raise InvalidArgument("order", order, "above 1 and finite")
    releases = count_releases(mechanism)
    refuse_unpriced(releases, adjacency)
    parts = [
        (release_divergence(release, order, adjacency), times)
        for release, times in releases.items()
    ]
    return Bound(
        sum(times * part.lower for part, times in parts),
        sum(times * part.upper for part, times in parts),
    )


@dataclass(frozen=True)
class RdpProfile:
    """Upper bounds by Renyi divergences; from below they know 0 alone."""

    releases: Releases
    adjacency: Adjacency

    def epsilon(self, *, delta: float) -> Bound:
        """Return the interval of epsilon at ``delta`` by the better kind of orders."""
        return Bound(
            0.0,
            min(
                self.at_integer_orders(delta=delta)[0].upper,
                self.at_real_orders(delta=delta)[0].upper,
            ),
        )

    def at_integer_orders(self, *, delta: float) -> tuple[Bound, float]:
        """Return the moments accountant's interval, and the order that gave it."""
        require_delta("delta", delta)
        return _best([(float(a), self._integer(a)) for a in INTEGER_ORDERS], delta)

    def at_real_orders(self, *, delta: float) -> tuple[Bound, float]:
        """Return the interval over real orders, integers among them, and the best order."""
        require_delta("delta", delta)
        table = [(a, self._real(a)) for a in REAL_ORDERS]
        return _best([*table, *((float(a), self._integer(a)) for a in INTEGER_ORDERS)], delta)

    def _integer(self, order: int) -> float:
        return sum(
            times * integer_divergence(release, order, self.adjacency)
            for release, times in self.releases.items()
        )

    def _real(self, order: float) -> float:
        return sum(
            times * release_divergence(release, order, self.adjacency).upper
            for release, times in self.releases.items()
        )


def to_epsilon(order: float, rdp: float, delta: float) -> float:
    """Return an epsilon at ``delta`` of whatever has Renyi divergence at most ``rdp``."""
    epsilon = rdp + math.log1p(-1 / order) - (math.log(delta) + math.log(order)) / (order - 1)
    return max(0.0, epsilon + 1e-14 * (1 + abs(epsilon) + rdp))


def _best(table: list[tuple[float, float]], delta: float) -> tuple[Bound, float]:
    upper, order = min((to_epsilon(order, rdp, delta), order) for order, rdp in table)
    return Bound(0.0, upper), order


def integer_divergence(release: Release, order: int, adjacency: Adjacency) -> float:
    """Return an upper bound of the divergence at an integer order, the moments accountant's."""
    match release:
        case PoissonSampled(Gaussian() as inner, sampling_rate):
            # The direction that removes the record dominates (Theorem 5 there).
            shift = shift_over_noise(inner, adjacency)
            return _log_moment_sum(sampling_rate, shift, order) / (order - 1)
        case _:
            return release_divergence(release, float(order), adjacency).upper


def _log_moment_sum(rate: float, shift: float, order: int) -> float:
    """Return log sum_k C(a, k) (1-q)^(a-k) q^k exp(k (k-1) shift^2 / 2), rounded up."""
    k = np.arange(order + 1, dtype=np.float64)
    terms = (
        gammaln(order + 1)
        - gammaln(k + 1)
        - gammaln(order - k + 1)
        + (order - k) * math.log1p(-rate)
        + k * math.log(rate)
        + k * (k - 1) * shift * shift / 2
    )
    largest = float(np.abs(terms).max()) + order * math.log(order + 1)
    return float(logsumexp(terms)) + 8 * UNIT_ROUNDOFF * (order + largest)


@cache
def release_divergence(release: Release, order: float, adjacency: Adjacency) -> Bound:
    """Return the interval of one release's divergence, the larger of both directions."""
    match release:
        case Gaussian():
            shift = shift_over_noise(release, adjacency)
            value = order * shift * shift / 2  # a product may be infinite, a power raises
            return Bound(value * (1 - 1e-15), value * (1 + 1e-15))
        case RandomizedResponse(truth, categories):
            return _randomized_response(truth, categories, order)
        case PoissonSampled(Gaussian() as inner, sampling_rate):
            shift = shift_over_noise(inner, adjacency)
            if (
                order * shift * shift > LARGEST_EXPONENT
            ):  # the quadrature would need millions of points
                return Bound(0.0, order * shift * shift / 2 * (1 + 1e-15))
            ways = [_log_power_mean(sampling_rate, shift, power) for power in (order, 1 - order)]
            lower = max(way[0] for way in ways) / (order - 1)
            return Bound(max(0.0, lower), max(0.0, max(way[1] for way in ways) / (order - 1)))
        case _:
            raise UnsupportedMechanism(release, "no Renyi divergence is known here")


def _randomized_response(truth: float, categories: int, order: float) -> Bound:
    other = (1 - truth) / (categories - 1)
    log_truth, log_other = math.log(truth), math.log(other)
    terms = [
        order * log_truth + (1 - order) * log_other,
        order * log_other + (1 - order) * log_truth,
    ]
    if categories > 2:
        terms.append(math.log(categories - 2) + log_other)
    value = float(logsumexp(terms)) / (order - 1)
    slack = 1e-15 * (10 + order * (abs(log_other) + abs(log_truth))) / (order - 1)
    return Bound(max(0.0, value - slack), max(0.0, value) + slack)


def _log_power_mean(rate: float, shift: float, power: float) -> tuple[float, float]:
    """Return log E[(1 - q + q exp(shift Y - shift^2/2))^power], Y ~ N(0, 1), from both sides.

    ``power`` is the order a (record removed) or 1 - a (record added).
    """
    log_growth = 0.0 if power > 0 else -power * math.log(2) / 2
    strip = min(WIDEST_STRIP, 0.999 * math.pi / shift / (1 if power > 0 else 2))
    # Shifted by i a in the strip, the modulus grows by exp(a^2/2) at most and, for a
    # negative power, by 2^(|power|/2): the trapezoid rule errs by 2 exp(..)/(exp(2 pi a/h) - 1).
    spacing = min(0.25, 2 * math.pi * strip / (strip**2 / 2 + log_growth - TARGET_LOG_ERROR))
    exponent = 2 * math.pi * strip / spacing
    log_rule_error = math.log(2) + strip**2 / 2 + log_growth - exponent + 1e-12
    margin = 14 + math.sqrt(1.4 * abs(power))
    low = -margin + min(0.0, power * shift)
    high = margin + max(0.0, power * shift)
    y = spacing * np.arange(math.floor(low / spacing), math.ceil(high / spacing) + 1)
    losses = np.logaddexp(math.log1p(-rate), math.log(rate) + shift * y - shift * shift / 2)
    terms = power * losses - y * y / 2
    log_sum = float(logsumexp(terms)) + math.log(spacing / math.sqrt(2 * math.pi))
    rounding = UNIT_ROUNDOFF * (len(y) + 8 * float(np.abs(terms).max()) + 8 * abs(power))
    relative = math.exp(log_rule_error) + rounding
    log_tail = _log_tail(rate, shift, power, float(y[0]), float(y[-1]))
    return log_sum - relative, float(np.logaddexp(log_sum + relative, log_tail))


def _log_tail(rate: float, shift: float, power: float, low: float, high: float) -> float:
    """Bound the logarithm of what lies outside of [low, high]."""
    log_stay = math.log1p(-rate)
    if power > 0:
        # Left, the ratio is at most 1. Right, (x + y)^a <= 2^(a-1) (x^a + y^a).
        moved = power * math.log(rate) + power * (power - 1) * shift * shift / 2
        right = np.logaddexp(
            power * log_stay + log_ndtr(-high), moved + log_ndtr(power * shift - high)
        )
        return float(np.logaddexp(log_ndtr(low), (power - 1) * math.log(2) + right))
    # The ratio is at least 1 - rate everywhere, and at least 1 where y >= shift/2.
    return float(np.logaddexp(power * log_stay + log_ndtr(low), log_ndtr(-high)))
