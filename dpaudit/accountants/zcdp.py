"""Compute bounds by zero-concentrated differential privacy (zCDP).

A mechanism is rho-zCDP if D_a <= a rho at every order a > 1. rho adds up under composition
(Bun & Steinke 2016, arXiv:1605.02065, Lemma 2.3).

- A Gaussian of shift s has rho = s^2/2, exactly, and so has the discrete Gaussian. Integer
  vectors have at most the rho of ``integer_noise.concentrated_rho``.
- A release with bounded loss has rho = sup_a D_a/a. It is at most epsilon^2/2 (Proposition
  3.3 there), and at most epsilon^2/8 for exponential mechanisms (Cesar & Rogers 2021,
  arXiv:2004.07223, Lemma 3.4).

The supremum is enclosed by a grid of orders. Let d be the distance of two orders, and a the
smaller one. (a - 1) D_a is convex. So between them D_a/a is at most the larger of both values
times 1 + d^2/(4 a (a - 1)). For most releases the supremum is the mean loss (Harrison &
Manurangsi 2025, arXiv:2510.25746).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from dpaudit.accountants.integer_noise import require_concentrated
from dpaudit.accountants.profile_display import DisplayedProfile
from dpaudit.accountants.rdp import release_divergence
from dpaudit.accountants.rdp.conversion import rdp_to_delta, rdp_to_epsilon
from dpaudit.accountants.rdp.moment_excess import Array
from dpaudit.accountants.releases import (
    ReleaseCounts,
    count_releases,
    gaussian_mu,
    randomized_response_loss,
    refuse_given_pairs,
    require_supported_adjacency,
)
from dpaudit.accountants.rounding_margins import UNDERFLOW_ERROR
from dpaudit.accountants.sparse_vector import guarantee_parts
from dpaudit.vocabulary.errors import (
    UnsupportedMechanism,
    require_delta,
    require_not_negative,
)
from dpaudit.vocabulary.mechanism import (
    ZCDP,
    DiscreteGaussian,
    DiscreteLaplace,
    Exponential,
    Gaussian,
    IntegerVectorNoise,
    Laplace,
    Mechanism,
    PureDP,
    RandomizedResponse,
    Release,
    SparseVectorMechanism,
)
from dpaudit.vocabulary.privacy_terms import Adjacency, Bound

# D_a/a at order 1 is the mean loss; beyond the last order it is at most epsilon/a.
RHO_ORDERS = 1 + np.geomspace(1e-5, 1e5, 1600)
CONVERSION_ORDERS = 1 + np.geomspace(1e-4, 1e6, 400)
REFINED_ORDERS = 64


def profile(
    mechanism: Mechanism, *, adjacency: Adjacency = Adjacency.ADD_OR_REMOVE_ONE
) -> ZcdpProfile:
    """Compute the zCDP bounds of a mechanism.

    Args:
        mechanism: A composition of unsampled releases whose schedule was fixed in advance.
        adjacency: Neighbor relation.

    Returns:
        The profile, with the interval of rho.

    Raises:
        UnsupportedMechanism: If a part has no finite rho, or no useful one (sampled releases).

    References:
        Bun & Steinke (2016), arXiv:1605.02065, Lemma 2.3.

    Example:
        >>> from dpaudit.accountants import Gaussian, zcdp
        >>> profile = zcdp.profile(Gaussian(noise_multiplier=1.0))
        >>> round(profile.rho.upper, 6), round(profile.epsilon(delta=1e-5).upper, 3)
        (0.5, 4.728)
    """
    releases = count_releases(mechanism)
    require_supported_adjacency(releases, adjacency)
    refuse_given_pairs(releases)
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
class ZcdpProfile(DisplayedProfile):
    """The interval of rho, with upper bounds of epsilon and delta; their lower ends are 0.

    Attributes:
        releases: The elementary releases, each with its count.
        adjacency: Neighbor relation.
        rho: The interval of rho of the composition.
    """

    releases: ReleaseCounts
    adjacency: Adjacency
    rho: Bound

    def epsilon(self, *, delta: float) -> Bound:
        """Compute the interval of epsilon at ``delta``, by the best order of D_a <= a rho.

        Args:
            delta: At least 1e-300 and below 1.

        Returns:
            From 0 to the upper bound, in nats.

        Raises:
            InvalidArgument: If ``delta`` is out of range.
        """
        require_delta("delta", delta)
        return self._least(lambda orders, rdp: rdp_to_epsilon(orders, rdp, delta))

    def delta(self, *, epsilon: float) -> Bound:
        """Compute the interval of delta at ``epsilon``, by the best order of D_a <= a rho.

        Args:
            epsilon: Privacy loss in nats, at least 0 and finite.

        Returns:
            From 0 to the upper bound, at most 1.

        Raises:
            InvalidArgument: If ``epsilon`` is out of range.
        """
        require_not_negative("epsilon", epsilon)
        return self._least(lambda orders, rdp: rdp_to_delta(orders, rdp, epsilon))

    def _least(self, convert: Callable[[Array, Array], Array]) -> Bound:
        """Return the least converted value over a grid of orders, refined around its best order."""
        with np.errstate(over="ignore"):
            coarse = convert(CONVERSION_ORDERS, CONVERSION_ORDERS * self.rho.upper)
            orders = _refined_orders(int(np.argmin(coarse)))
            fine = convert(orders, orders * self.rho.upper)
        return Bound(0.0, min(float(coarse.min()), float(fine.min())))


def _refined_orders(best: int) -> Array:
    """Return a finer grid of orders between the neighbors of one order of the coarse grid."""
    low, high = (
        CONVERSION_ORDERS[max(0, best - 1)],
        CONVERSION_ORDERS[min(len(CONVERSION_ORDERS) - 1, best + 1)],
    )
    return 1 + np.geomspace(low - 1, high - 1, REFINED_ORDERS)


@lru_cache(maxsize=8192)
def release_rho(release: Release, adjacency: Adjacency) -> Bound:
    """Compute the interval of rho of one release.

    Args:
        release: An unsampled elementary release.
        adjacency: Neighbor relation.

    Returns:
        The interval; both ends agree up to rounding for Gaussian noise.

    Raises:
        UnsupportedMechanism: If the release has no finite rho, or no useful one.
    """
    match release:
        case Gaussian():
            shift = gaussian_mu(release, adjacency)
            return _rounded_bound(shift * shift / 2)
        case DiscreteGaussian(scale, sensitivity):
            shift = sensitivity / scale
            return _rounded_bound(shift * shift / 2)
        case ZCDP(rho):
            return Bound(rho, rho)
        case _ if isinstance(release, IntegerVectorNoise):
            return Bound(0.0, require_concentrated(release))
        case _ if isinstance(release, SparseVectorMechanism):
            parts = [
                times * release_rho(part, adjacency).upper
                for part, times in guarantee_parts(release)
            ]
            return Bound(0.0, sum(parts) * (1 + 1e-15 * (1 + len(parts))))
        case _:
            return _rho_of_bounded_loss(release, *_loss_and_largest_rho(release), adjacency)


def _loss_and_largest_rho(release: Release) -> tuple[float, float]:
    """Return the largest privacy loss and a closed upper bound of rho, or raise."""
    match release:
        case Exponential(epsilon):
            return epsilon, epsilon * epsilon / 8
        case PureDP(epsilon):
            return epsilon, epsilon * epsilon / 2
        case Laplace(scale, sensitivity) | DiscreteLaplace(scale, sensitivity):
            loss = sensitivity / scale
            return loss, loss * loss / 2
        case RandomizedResponse():
            loss = randomized_response_loss(release)
            return loss, loss * loss / 2
        case _:
            raise UnsupportedMechanism(
                release, "it has no finite rho, or no useful one: use rdp or pld"
            )


def _rounded_bound(rho: float) -> Bound:
    """Return the interval around a rho that a few roundings produced."""
    return Bound(max(0.0, rho * (1 - 1e-15) - UNDERFLOW_ERROR), rho * (1 + 1e-15) + UNDERFLOW_ERROR)


def _rho_of_bounded_loss(release: Release, loss: float, most: float, adjacency: Adjacency) -> Bound:
    """Enclose sup_a D_a/a: below the first order, on the grid, and at most loss/a beyond it."""
    lower, upper = release_divergence.divergence_bounds(release, RHO_ORDERS, adjacency)
    # sup over [a_i, a_(i+1)] of D_a/a <= max at both ends * (1 + d^2/(4 a_i (a_i - 1))).
    at_points = upper / RHO_ORDERS
    gaps = np.diff(RHO_ORDERS) ** 2 / (4 * RHO_ORDERS[:-1] * (RHO_ORDERS[:-1] - 1))
    between = float((np.maximum(at_points[1:], at_points[:-1]) * (1 + gaps)).max())
    least = float((lower / RHO_ORDERS).max())
    largest = min(most, max(float(upper[0]), between, loss / float(RHO_ORDERS[-1]))) * (1 + 1e-14)
    largest += UNDERFLOW_ERROR
    return Bound(min(least, largest), largest)
