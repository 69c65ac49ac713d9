"""Renyi divergences of single releases, the larger of both directions, from both sides."""

from __future__ import annotations

import math

import numpy as np

from dpaudit.accountants.releases import shift_over_noise
from dpaudit.accountants.renyi import allocation, bounded_range, sampling, whole
from dpaudit.accountants.renyi.excess import Array
from dpaudit.accountants.renyi.pairs import Pair, cached_pair
from dpaudit.vocabulary.adjacency import Adjacency
from dpaudit.vocabulary.errors import UnsupportedMechanism
from dpaudit.vocabulary.mechanism import (
    ZCDP,
    DiscreteGaussian,
    Exponential,
    Gaussian,
    Laplace,
    PoissonSampled,
    PureDP,
    RandomAllocation,
    Release,
    SampledWithoutReplacement,
)

Ends = tuple[Array, Array]

LEAST = 1e-290  # what is smaller may have been lost below the least doubles
LEAST_RATE = 1e-280  # below it, the cost of this one
LEAST_SHIFT = 1e-150  # likewise; its own cost is lost already


def bounds(release: Release, orders: Array, adjacency: Adjacency) -> Ends:
    """Return lower and upper ends of the divergence of one release, one for each order.

    Args:
        release: One release whose divergence is finite.
        orders: Orders above 1, shape ``(k,)``.
        adjacency: Which data sets are neighbours.

    Raises:
        UnsupportedMechanism: no finite bound is known under this adjacency.
    """
    match release:
        case PoissonSampled(inner, rate) if rate < LEAST_RATE:
            _, upper = _bounds(PoissonSampled(inner, LEAST_RATE), orders, adjacency)
            return np.zeros_like(orders), upper + LEAST
        case _:
            lower, upper = _bounds(release, orders, adjacency)
    return np.where(lower > LEAST, lower, 0.0), np.maximum(lower, upper) + LEAST


def _bounds(release: Release, orders: Array, adjacency: Adjacency) -> Ends:
    match release:
        case PoissonSampled(inner, rate) if adjacency is Adjacency.REPLACE_ONE:
            return _replaced_in_a_poisson_sample(release, inner, rate, orders)
        case PoissonSampled(inner, rate):
            return _joining(inner, rate, orders, adjacency)
        case SampledWithoutReplacement(inner, batch, size):
            return _swapping(inner, batch / size * (1 + 1e-15), orders, adjacency)
        case RandomAllocation(inner, steps):
            return _allocated(inner, steps, orders, adjacency)
        case _:
            return _whole(release, orders, adjacency)


def _whole(release: Release, orders: Array, adjacency: Adjacency) -> Ends:
    match release:
        case Gaussian():
            shift = _shift(release, adjacency)
            # A product may be infinite, a power raises.
            return whole.of_rho(shift * shift / 2, orders)
        case ZCDP(rho):
            return whole.of_rho(rho, orders)
        case Laplace(scale, sensitivity):
            return whole.of_laplace(sensitivity / scale, orders)
        case Exponential(epsilon):
            return whole.of_bounded_range(epsilon, orders)
        case DiscreteGaussian(scale, sensitivity):
            return whole.of_discrete_gaussian(scale, sensitivity, orders)
        case _:
            pair = _pair(release, orders)
            if pair is None:
                why = "no Renyi divergence of it is known here: use pld or naive"
                raise UnsupportedMechanism(release, why)
            return sampling.whole(pair, orders)


def _shift(release: Gaussian, adjacency: Adjacency) -> float:
    return max(LEAST_SHIFT, shift_over_noise(release, adjacency))


def _joining(inner: Release, rate: float, orders: Array, adjacency: Adjacency) -> Ends:
    unsampled = _whole(inner, orders, adjacency)[1]
    match inner:
        case Gaussian():
            return sampling.joining_gaussian(rate, _shift(inner, adjacency), orders)
        case Exponential(epsilon):
            sampled = bounded_range.joining(epsilon, rate, orders)
            return np.zeros_like(orders), np.minimum(unsampled, sampled)
        case _:
            pair = _pair(inner, orders)
            if pair is None:
                return sampling.joining_rho(rate, _rho(inner), orders)
            return sampling.joining_pair(pair, rate, orders, unsampled)


def _swapping(inner: Release, rate: float, orders: Array, adjacency: Adjacency) -> Ends:
    match inner:
        case Gaussian():
            return sampling.swapping_gaussian(rate, _shift(inner, adjacency), orders)
        case _:
            pair, unsampled = _pair(inner, orders), _whole(inner, orders, adjacency)[1]
            if pair is None:
                return sampling.swapping_rho(rate, _rho(inner), orders)
            return sampling.swapping_pair(pair, rate, orders, unsampled)


def _replaced_in_a_poisson_sample(
    release: Release, inner: Release, rate: float, orders: Array
) -> Ends:
    """Price what is known both of a record replaced and of one removed."""
    match inner:
        case Gaussian(set_for=Adjacency.ADD_OR_REMOVE_ONE | Adjacency.ZERO_OUT):
            return sampling.replaced_gaussian(
                rate, _shift(inner, Adjacency.ADD_OR_REMOVE_ONE), orders
            )
        case _:
            raise UnsupportedMechanism(
                release,
                "what it hides of a record replaced in a Poisson sample needs its guarantee for "
                "a record removed as well: use add-or-remove-one, zero-out, or batches of a "
                "fixed size",
            )


def _allocated(inner: Gaussian, steps: int, orders: Array, adjacency: Adjacency) -> Ends:
    """Replaced, a pass costs at most what the sum of all steps costs without sampling."""
    if adjacency is Adjacency.REPLACE_ONE:
        return np.zeros_like(orders), _whole(inner, orders, adjacency)[1]
    shift = _shift(inner, adjacency)
    return np.zeros_like(orders), allocation.divergences(shift, steps, orders)


def _pair(release: Release, orders: Array) -> Pair | None:
    """Return the pair that dominates an elementary release; of a choice, that of its epsilon."""
    pure = PureDP(release.epsilon) if isinstance(release, Exponential) else release
    # Rounded up, so that one pair serves many tables.
    largest = 2.0 ** math.ceil(math.log2(float(orders.max())))
    return cached_pair(pure, largest if isinstance(release, DiscreteGaussian) else 0.0)


def _rho(release: Release) -> float:
    """Return the rho of what has no pair: zCDP by its name, and wide discrete Gaussians."""
    match release:
        case ZCDP(rho):
            return rho
        case DiscreteGaussian(scale, sensitivity):
            return (sensitivity / scale) * (sensitivity / scale) / 2 * (1 + 1e-15)
        case _:
            why = "no Renyi divergence of its samples is known here: use pld or naive"
            raise UnsupportedMechanism(release, why)
