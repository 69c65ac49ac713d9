"""Bound Renyi divergences of single releases, the larger of both directions, from both sides."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from dpaudit.accountants.integer_noise import renyi_upper, require_concentrated
from dpaudit.accountants.rdp import random_allocation, sampled_releases, unsampled_releases
from dpaudit.accountants.rdp.moment_excess import Array
from dpaudit.accountants.rdp.unsampled_releases import FinitePairBounds, cached_finite_pair
from dpaudit.accountants.releases import (
    ReleaseCounts,
    allocation_blocks,
    binned_from_above,
    gaussian_mu,
    truncation_probability,
)
from dpaudit.accountants.sparse_vector import guarantee_parts
from dpaudit.vocabulary.errors import Unresolvable, UnsupportedMechanism
from dpaudit.vocabulary.mechanism import (
    ZCDP,
    ApproximateDP,
    BinnedMatrixFactorization,
    DiscreteGaussian,
    Exponential,
    Gaussian,
    IntegerVectorNoise,
    Laplace,
    PoissonSampled,
    PureDP,
    RandomAllocation,
    Release,
    SampledWithoutReplacement,
    SparseVectorMechanism,
    TruncatedPoisson,
)
from dpaudit.vocabulary.privacy_terms import Adjacency, Bound

ArrayBounds = tuple[Array, Array]

LEAST_DIVERGENCE = 1e-290  # a smaller one may have underflowed
LEAST_RATE = 1e-280  # smaller rates use its cost
LEAST_SHIFT = 1e-150  # smaller shifts use its cost, which underflows anyway


def divergence_bounds(release: Release, orders: Array, adjacency: Adjacency) -> ArrayBounds:
    """Compute lower and upper bounds of the divergence of one release.

    Args:
        release: An elementary release whose divergence is finite.
        orders: Orders above 1, shape ``(k,)``.
        adjacency: Neighbor relation.

    Returns:
        Lower and upper bounds in nats, each of shape ``(k,)``; 0 from below where only an upper
        bound is known.

    Raises:
        UnsupportedMechanism: If no finite bound is known under this adjacency.
    """
    match release:
        case PoissonSampled(inner, rate) if rate < LEAST_RATE:
            _, upper = _bounds(PoissonSampled(inner, LEAST_RATE), orders, adjacency)
            return np.zeros_like(orders), upper + LEAST_DIVERGENCE
        case _:
            lower, upper = _bounds(release, orders, adjacency)
    return np.where(lower > LEAST_DIVERGENCE, lower, 0.0), np.maximum(
        lower, upper
    ) + LEAST_DIVERGENCE


def _bounds(release: Release, orders: Array, adjacency: Adjacency) -> ArrayBounds:
    """Select the bound for a release by its kind of sampling."""
    match release:
        case PoissonSampled(inner, rate) if adjacency is Adjacency.REPLACE_ONE:
            return _poisson_replace(release, inner, rate, orders)
        case PoissonSampled(inner, rate):
            return _poisson_add_remove(inner, rate, orders, adjacency)
        case SampledWithoutReplacement(inner, batch, size):
            return _fixed_size_replace(inner, batch / size * (1 + 1e-15), orders, adjacency)
        case BinnedMatrixFactorization():
            upper = _bounds(binned_from_above(release), orders, adjacency)[1]
            return np.zeros_like(orders), upper
        case RandomAllocation(selected=selected) if selected > 1:
            blocks = [
                times * _bounds(block, orders, adjacency)[1]
                for block, times in allocation_blocks(release)
            ]
            return np.zeros_like(orders), np.sum(blocks, axis=0) * (1 + 1e-14)
        case RandomAllocation(inner, steps):
            return _random_allocation(inner, steps, orders, adjacency)
        case _:
            return _unsampled(release, orders, adjacency)


def _unsampled(release: Release, orders: Array, adjacency: Adjacency) -> ArrayBounds:
    """Select the bound for a release without sampling."""
    match release:
        case Gaussian():
            shift = _shift(release, adjacency)
            # D_a = a shift^2/2. A product that overflows is inf, where a power would raise.
            return unsampled_releases.rho_divergence(shift * shift / 2, orders)
        case ZCDP(rho):
            return unsampled_releases.rho_divergence(rho, orders)
        case Laplace(scale, sensitivity):
            return unsampled_releases.laplace_divergence(sensitivity / scale, orders)
        case Exponential(epsilon):
            return unsampled_releases.bounded_range_divergence(epsilon, orders)
        case DiscreteGaussian(scale, sensitivity):
            return unsampled_releases.discrete_gaussian_divergence(scale, sensitivity, orders)
        case _ if isinstance(release, IntegerVectorNoise):
            return np.zeros_like(orders), renyi_upper(release, orders)
        case _ if isinstance(release, SparseVectorMechanism):
            parts = [
                times * _unsampled(part, orders, adjacency)[1]
                for part, times in guarantee_parts(release)
            ]
            return np.zeros_like(orders), np.sum(parts, axis=0) * (1 + 1e-14)
        case _:
            pair = _pair(release, orders)
            if pair is None:
                why = "its Renyi divergence has no known bound: use pld or naive"
                raise UnsupportedMechanism(release, why)
            return sampled_releases.unsampled_pair(pair, orders)


def _shift(release: Gaussian, adjacency: Adjacency) -> float:
    """Return the sensitivity in noise standard deviations, at least ``LEAST_SHIFT``."""
    return max(LEAST_SHIFT, gaussian_mu(release, adjacency))


def _poisson_add_remove(
    inner: Release, rate: float, orders: Array, adjacency: Adjacency
) -> ArrayBounds:
    """Bound a Poisson sample where the record is added, removed or zeroed out."""
    unsampled = _unsampled(inner, orders, adjacency)[1]
    match inner:
        case Gaussian():
            return sampled_releases.add_remove_gaussian(rate, _shift(inner, adjacency), orders)
        case Exponential(epsilon):
            sampled = sampled_releases.add_remove_bounded_range(epsilon, rate, orders)
            return np.zeros_like(orders), np.minimum(unsampled, sampled)
        case _ if isinstance(inner, IntegerVectorNoise):
            noise = inner

            def moments(k: Array) -> Array:
                return (k - 1) * renyi_upper(noise, k)

            upper = sampled_releases.add_remove_moments(rate, moments, unsampled, orders)
            return np.zeros_like(orders), upper
        case _:
            pair = _pair(inner, orders)
            if pair is None:
                return sampled_releases.add_remove_zcdp(rate, _rho(inner), orders)
            return sampled_releases.add_remove_pair(pair, rate, orders, unsampled)


def _fixed_size_replace(
    inner: Release, rate: float, orders: Array, adjacency: Adjacency
) -> ArrayBounds:
    """Bound a fixed-size sample without replacement where the record is replaced."""
    match inner:
        case Gaussian():
            return sampled_releases.replace_gaussian(rate, _shift(inner, adjacency), orders)
        case _:
            pair, unsampled = _pair(inner, orders), _unsampled(inner, orders, adjacency)[1]
            if pair is None:
                return sampled_releases.replace_zcdp(rate, _rho(inner), orders)
            return sampled_releases.replace_pair(pair, rate, orders, unsampled)


def _poisson_replace(release: Release, inner: Release, rate: float, orders: Array) -> ArrayBounds:
    """Bound a Poisson sample where the record is replaced; only Gaussians are supported."""
    match inner:
        case Gaussian(set_for=Adjacency.ADD_OR_REMOVE_ONE | Adjacency.ZERO_OUT):
            return sampled_releases.poisson_replace_gaussian(
                rate, _shift(inner, Adjacency.ADD_OR_REMOVE_ONE), orders
            )
        case _:
            raise UnsupportedMechanism(
                release,
                "a bound for a record replaced in a Poisson sample also needs the guarantee for "
                "a record removed: use add-or-remove-one, zero-out, or batches of a fixed size",
            )


def _random_allocation(
    inner: Gaussian, steps: int, orders: Array, adjacency: Adjacency
) -> ArrayBounds:
    """Bound one pass of random allocation.

    Under replace-one a pass costs at most one release without sampling.
    """
    if adjacency is Adjacency.REPLACE_ONE:
        return np.zeros_like(orders), _unsampled(inner, orders, adjacency)[1]
    shift = _shift(inner, adjacency)
    return np.zeros_like(orders), random_allocation.allocation_divergence(shift, steps, orders)


def _pair(release: Release, orders: Array) -> FinitePairBounds | None:
    """Return the dominating pair of a release; for an exponential mechanism that of its epsilon."""
    pure = PureDP(release.epsilon) if isinstance(release, Exponential) else release
    # Rounded up to a power of 2, so that one cached pair covers many tables of orders.
    largest = 2.0 ** math.ceil(math.log2(float(orders.max())))
    return cached_finite_pair(pure, largest if isinstance(release, DiscreteGaussian) else 0.0)


def _rho(release: Release) -> float:
    """Return rho of a release without a pair: a zCDP guarantee, or a wide discrete Gaussian."""
    match release:
        case ZCDP(rho):
            return rho
        case DiscreteGaussian(scale, sensitivity):
            return (sensitivity / scale) * (sensitivity / scale) / 2 * (1 + 1e-15)
        case _ if isinstance(release, IntegerVectorNoise):
            return require_concentrated(release)
        case _:
            why = "the Renyi divergence of its samples has no known bound: use pld or naive"
            raise UnsupportedMechanism(release, why)


# Account for events under which no Renyi divergence is finite, by their probabilities.
#
# Revealed: with some probability everything is revealed. (epsilon, delta)-DP is (epsilon, 0)-DP
# with
# probability 1 - delta (Kairouz, Oh & Viswanath 2015, arXiv:1311.0776, Theorem 3.3). Sampled at
# rate
# q, it is a sample of that with probability 1 - q delta. The reason: the revealing part depends on
# the record's own coin, and the rest of P and Q mixes as before. Over releases, the factors
# 1 - delta multiply to 1 - D, and the rest composes as usual:
#
#     delta(epsilon) = D + (1 - D) delta_rest(epsilon).
#
# Altered: with probability t, for either neighbor, another release was made than the accounted one,
# for example a truncated batch. This adds t (1 + e^epsilon) to delta, with t summed over all
# releases (Chua et al. 2024, arXiv:2411.04205).

LEAST_EPSILON = 1e-300
# Shares of the remaining delta that go to the finite part; if altered releases are rare, almost
# all of it.
DELTA_SHARES = [*(1 - np.geomspace(1e-9, 0.5, 20)), *np.geomspace(0.4, 1e-3, 7)]
LARGEST_EPSILON = 700.0  # its exponential does not overflow


class InfiniteDivergence(NamedTuple):
    """Upper bounds of the probabilities of both events, over a whole composition.

    Attributes:
        revealed: Probability D that everything is revealed.
        altered: Sum of the probabilities t that another release was made than the accounted one.
    """

    revealed: float = 0.0
    altered: float = 0.0


NO_INFINITE_DIVERGENCE = InfiniteDivergence()


class _SplitRelease(NamedTuple):
    """One release as a release of finite divergence, and the probabilities of both events."""

    finite: Release
    revealed: float = 0.0
    altered: float = 0.0


def separate_infinite_divergence(
    releases: ReleaseCounts, adjacency: Adjacency
) -> tuple[ReleaseCounts, InfiniteDivergence]:
    """Split releases into a part with finite divergences and the probabilities of the rest.

    Args:
        releases: The elementary releases, each with its count.
        adjacency: Neighbor relation.

    Returns:
        The releases with finite divergences, and the probabilities of both events, rounded up.
    """
    finite: Counter[Release] = Counter()
    log_hidden, altered = 0.0, 0.0
    for release, times in releases.items():
        part = _split_release(release, adjacency)
        finite[part.finite] += times
        # D = 1 - product of all (1 - d_i).
        log_hidden += times * math.log1p(-part.revealed)
        altered += times * part.altered
    return finite, InfiniteDivergence(-math.expm1(log_hidden) * (1 + 1e-14), altered * (1 + 1e-14))


def _split_release(release: Release, adjacency: Adjacency) -> _SplitRelease:
    """Split one release; most have finite divergences and are returned unchanged."""
    match release:
        case ApproximateDP(epsilon, delta):
            return _SplitRelease(_pure(epsilon), delta)
        case PoissonSampled(ApproximateDP(epsilon, delta), rate):
            return _SplitRelease(PoissonSampled(_pure(epsilon), rate), rate * delta)
        case SampledWithoutReplacement(ApproximateDP(epsilon, delta), batch, size):
            inner = SampledWithoutReplacement(_pure(epsilon), batch, size)
            return _SplitRelease(inner, delta * batch / size)
        case TruncatedPoisson(inner, rate):
            poisson = inner if rate == 1 else PoissonSampled(inner, rate)
            return _SplitRelease(poisson, altered=truncation_probability(release, adjacency))
        case _:
            return _SplitRelease(release)


def _pure(epsilon: float) -> PureDP:
    """Return an (epsilon, 0)-DP mechanism; epsilon 0 becomes the least positive epsilon."""
    return PureDP(max(epsilon, LEAST_EPSILON))


def epsilon_with_infinite_divergence(
    infinite_part: InfiniteDivergence, delta: float, finite_epsilon: Callable[[float], float]
) -> Bound:
    """Compute the interval of epsilon at ``delta`` from that of the finite part.

    Args:
        infinite_part: The probabilities of both events.
        delta: Delta of the whole mechanism.
        finite_epsilon: Function from a delta to the upper bound of epsilon of the finite part.

    Returns:
        From 0 to the upper bound, in nats.

    Raises:
        Unresolvable: If the probabilities of both events use up ``delta``.
    """
    if infinite_part == NO_INFINITE_DIVERGENCE:
        return Bound(0.0, finite_epsilon(delta))
    # Solve delta = D + (1 - D) left for the delta that is left, rounded down.
    left = (delta - infinite_part.revealed) / (1 - infinite_part.revealed) * (1 - 1e-14)
    if infinite_part.altered == 0 and left > 0:
        return Bound(0.0, finite_epsilon(left))
    for share in DELTA_SHARES if left > LEAST_EPSILON else ():
        epsilon = finite_epsilon(share * left)
        # A larger share gives a smaller epsilon, so the first share that holds is the best.
        if share * left + _delta_of_altered(infinite_part, epsilon) <= left:
            return Bound(0.0, epsilon)
    if not left > 0:
        raise Unresolvable(
            f"delta {delta!r} is too small: with probability {infinite_part.revealed:.3g} a "
            "release of approximate DP has an infinite loss; use a larger delta"
        )
    raise Unresolvable(
        f"delta {delta!r} is too small: batches are truncated with a probability that adds up to "
        f"{infinite_part.altered:.3g}, and Renyi bounds need e^epsilon times that below delta: "
        "use the accountant pld, a larger delta or larger batches"
    )


def delta_with_infinite_divergence(
    infinite_part: InfiniteDivergence, epsilon: float, finite_delta: float
) -> Bound:
    """Compute the interval of delta at ``epsilon`` from that of the finite part.

    Args:
        infinite_part: The probabilities of both events.
        epsilon: Privacy loss in nats.
        finite_delta: Upper bound of delta of the finite part at ``epsilon``.

    Returns:
        From 0 to the upper bound, at most 1.
    """
    revealed = infinite_part.revealed
    total = revealed + (1 - revealed) * (finite_delta + _delta_of_altered(infinite_part, epsilon))
    return Bound(0.0, min(1.0, total * (1 + 1e-14)))


def _delta_of_altered(infinite_part: InfiniteDivergence, epsilon: float) -> float:
    """Return t (1 + e^epsilon)/(1 - D): the part of altered releases after division by 1 - D."""
    if infinite_part.altered == 0:
        return 0.0
    if not epsilon < LARGEST_EPSILON:
        return math.inf
    added = infinite_part.altered * (1 + math.exp(epsilon))
    return added / (1 - infinite_part.revealed) * (1 + 1e-12)
