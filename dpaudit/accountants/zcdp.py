"""Zero-concentrated differential privacy: one number rho, with D_a <= a rho at every order.

rho adds up (Bun & Steinke 2016, arXiv:1605.02065, Lemma 2.3). A Gaussian of shift s has
s^2/2, exactly, and so has the discrete one. Releases with bounded losses have the largest of
D_a/a over all orders, which is at most epsilon^2/2 (Proposition 3.3 there), for exponential
mechanisms epsilon^2/8 (Cesar & Rogers 2021, arXiv:2004.07223, Lemma 3.4). It is enclosed
here by a grid: (a - 1) D_a is convex, so between two orders, d apart, D_a/a is at most the
larger of both times 1 + d^2/(4 a (a - 1)), with the smaller order a. For most
of them that largest value is the mean loss: Harrison & Manurangsi 2025, arXiv:2510.25746.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from dpaudit.accountants import renyi
from dpaudit.accountants.conversion import to_delta, to_epsilon
from dpaudit.accountants.releases import (
    Releases,
    count_releases,
    require_meaning,
    response_loss,
    shift_over_noise,
)
from dpaudit.accountants.renyi.excess import Array
from dpaudit.vocabulary.adjacency import Adjacency
from dpaudit.vocabulary.bound import Bound
from dpaudit.vocabulary.errors import InvalidArgument, UnsupportedMechanism, require_delta
from dpaudit.vocabulary.mechanism import (
    ZCDP,
    DiscreteGaussian,
    DiscreteLaplace,
    Exponential,
    Gaussian,
    Laplace,
    Mechanism,
    PureDP,
    RandomizedResponse,
    Release,
)

# Orders less 1, from next to the mean loss to where epsilon/a is below all else.
ORDERS = 1 + np.geomspace(1e-5, 1e5, 1600)
PRICES = 1 + np.geomspace(1e-4, 1e6, 400)
NARROWER = 64


def profile(
    mechanism: Mechanism, *, adjacency: Adjacency = Adjacency.ADD_OR_REMOVE_ONE
) -> ZcdpProfile:
    """Return the zCDP bounds of ``mechanism``.

    Raises:
        UnsupportedMechanism: a part has no finite rho, or none worth having.
    """
    releases = count_releases(mechanism)
    require_meaning(releases, adjacency)
    parts = [(release_rho(release, adjacency), times) for release, times in releases.items()]
    rounding = 1e-15 * (2 + len(parts))
    return ZcdpProfile(
        releases,
        adjacency,
        Bound(
            sum(times * part.lower for part, times in parts) * (1 - rounding),
            sum(times * part.upper for part, times in parts) * (1 + rounding),
        ),
    )


@dataclass(frozen=True)
class ZcdpProfile:
    """The interval of rho, and upper bounds of epsilon and delta; from below they know 0."""

    releases: Releases
    adjacency: Adjacency
    rho: Bound

    def epsilon(self, *, delta: float) -> Bound:
        """Return the interval of epsilon at ``delta``, by the best order of D_a <= a rho."""
        require_delta("delta", delta)
        return self._least(lambda orders, rdp: to_epsilon(orders, rdp, delta))

    def delta(self, *, epsilon: float) -> Bound:
        """Return the interval of delta at ``epsilon``, by the best order of D_a <= a rho."""
        if not 0 <= epsilon < math.inf:
            raise InvalidArgument("epsilon", epsilon, "at least 0 and finite")
        return self._least(lambda orders, rdp: to_delta(orders, rdp, epsilon))

    def _least(self, price: Callable[[Array, Array], Array]) -> Bound:
        with np.errstate(over="ignore"):
            coarse = price(PRICES, PRICES * self.rho.upper)
            orders = _next_to(int(np.argmin(coarse)))
            fine = price(orders, orders * self.rho.upper)
        return Bound(0.0, min(float(coarse.min()), float(fine.min())))


def _next_to(best: int) -> Array:
    low, high = PRICES[max(0, best - 1)], PRICES[min(len(PRICES) - 1, best + 1)]
    return 1 + np.geomspace(low - 1, high - 1, NARROWER)


@lru_cache(maxsize=8192)
def release_rho(release: Release, adjacency: Adjacency) -> Bound:
    """Return the interval of one release's rho."""
    match release:
        case Gaussian():
            shift = shift_over_noise(release, adjacency)
            return _exactly(shift * shift / 2)
        case DiscreteGaussian(scale, sensitivity):
            shift = sensitivity / scale
            return _exactly(shift * shift / 2)
        case ZCDP(rho):
            return Bound(rho, rho)
        case _:
            return _of_bounded_loss(release, *_bounded_loss(release), adjacency)


def _bounded_loss(release: Release) -> tuple[float, float]:
    """Return the largest loss, and a known upper bound of rho."""
    match release:
        case Exponential(epsilon):
            return epsilon, epsilon * epsilon / 8
        case PureDP(epsilon):
            return epsilon, epsilon * epsilon / 2
        case Laplace(scale, sensitivity) | DiscreteLaplace(scale, sensitivity):
            loss = sensitivity / scale
            return loss, loss * loss / 2
        case RandomizedResponse():
            loss = response_loss(release)
            return loss, loss * loss / 2
        case _:
            raise UnsupportedMechanism(
                release, "it has no finite rho that is of use: use rdp or pld"
            )


def _exactly(rho: float) -> Bound:
    return Bound(rho * (1 - 1e-15), rho * (1 + 1e-15))


def _of_bounded_loss(release: Release, loss: float, most: float, adjacency: Adjacency) -> Bound:
    """Enclose the largest of D_a/a: before the grid, on it, and at most loss/a beyond it."""
    lower, upper = renyi.bounds(release, ORDERS, adjacency)
    at_points = upper / ORDERS
    gaps = np.diff(ORDERS) ** 2 / (4 * ORDERS[:-1] * (ORDERS[:-1] - 1))
    between = float((np.maximum(at_points[1:], at_points[:-1]) * (1 + gaps)).max())
    least = float((lower / ORDERS).max())
    largest = min(most, max(float(upper[0]), between, loss / float(ORDERS[-1]))) * (1 + 1e-14)
    return Bound(min(least, largest), largest)
