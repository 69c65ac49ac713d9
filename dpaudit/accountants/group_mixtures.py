"""Groups of records in Poisson samples of Gaussians, as mixtures of Gaussians.

Let a of a group's records be in the first data set alone, and b in the second alone. Each joins a
batch by its own coin, and moves the sum by a vector of norm at most C. Then the pair

    P = sum_i Binomial(a, q)(i) N(i C, s^2),    Q = sum_j Binomial(b, q)(j) N(-j C, s^2)

dominates all outputs, and records that all point in one direction attain it (equations 5 and 6 of
docs/mathematics/dominating_pairs.md). Under add-or-remove-one and zero-out, every a + b = size is
possible; under replace-one, a and b are the size of the group. The same a and b hold in every
release of a composition.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

from dpaudit.vocabulary.mechanism import (
    Composed,
    Gaussian,
    Mechanism,
    PoissonSampled,
    RandomAllocation,
    Repeated,
    TruncatedPoisson,
)
from dpaudit.vocabulary.pairs import MixtureOfGaussians
from dpaudit.vocabulary.privacy_terms import Adjacency

LARGEST_SIZE = 32
"""Records of a group up to which mixtures are composed: a larger group has more components."""
LEAST_PROBABILITY = 1e-300

Enlarged = Callable[[Mechanism, int], Mechanism | None]
"""Function that returns the mechanism for one record that equals another one for a group."""


def group_mixtures(
    mechanism: Mechanism, size: int, adjacency: Adjacency, enlarged: Enlarged
) -> tuple[Mechanism, ...]:
    """Return mechanisms of which the costliest one costs what a group of records does.

    Args:
        mechanism: The mechanism as it was run.
        size: Largest number of records that differ.
        adjacency: Neighbor relation for one record.
        enlarged: Exact enlargement of releases other than Poisson-sampled Gaussians.

    Returns:
        One mechanism per split of the group, or none where a release has no exact form.
    """
    if size > LARGEST_SIZE:
        return ()
    if adjacency is Adjacency.REPLACE_ONE:
        splits = [(size, size)]
    else:
        # The split (b, a) is the mirror image of (a, b), and both directions are evaluated.
        splits = [(first, size - first) for first in range(size, (size - 1) // 2, -1)]
    found = [_for_split(mechanism, split, adjacency, size, enlarged) for split in splits]
    known = tuple(one for one in found if one is not None)
    return known if len(known) == len(found) else ()


def _for_split(
    mechanism: Mechanism,
    split: tuple[int, int],
    adjacency: Adjacency,
    size: int,
    enlarged: Enlarged,
) -> Mechanism | None:
    """Return the mechanism where one data set has ``split[0]`` records, the other ``split[1]``."""
    match mechanism:
        case PoissonSampled(Gaussian() as noise, rate) if rate < 1:
            return _mixture(noise, rate, split, adjacency)
        case Repeated(inner, times):
            part = _for_split(inner, split, adjacency, size, enlarged)
            return None if part is None else Repeated(part, times)
        case Composed(mechanisms):
            parts = [_for_split(one, split, adjacency, size, enlarged) for one in mechanisms]
            known = tuple(part for part in parts if part is not None)
            return Composed(known) if len(known) == len(parts) else None
        case _:
            return enlarged(mechanism, size)


def unsampled_group(mechanism: Mechanism, size: int, enlarged: Enlarged) -> Mechanism | None:
    """Return Gaussians without sampling that cost at least what a group of records does.

    Condition on which records join, and on which ones a truncated batch keeps. These have the same
    probabilities for both data sets, and the sums differ by at most ``size`` norms, or by twice
    as many where each record may displace another one. Divergences are jointly convex.

    Args:
        mechanism: The mechanism as it was run.
        size: Largest number of records that differ.
        enlarged: Exact enlargement of releases without sampling.

    Returns:
        The mechanism for one record; None where a sampled release is no Gaussian.

    Example:
        >>> from dpaudit.accountants.group_privacy import group_mechanism
        >>> step = PoissonSampled(Gaussian(4.0), 0.1)
        >>> unsampled_group(step, 4, group_mechanism)
        Gaussian(noise_multiplier=1.0, set_for=<Adjacency.ADD_OR_REMOVE_ONE: 'add-or-remove-one'>)
    """
    match mechanism:
        case PoissonSampled(Gaussian() as noise):
            return enlarged(noise, size)
        case TruncatedPoisson(noise):
            return enlarged(noise, 2 * size)
        case RandomAllocation(noise, _, selected):
            whole = enlarged(noise, size)
            return None if whole is None else Repeated(whole, selected)
        case Repeated(inner, times):
            part = unsampled_group(inner, size, enlarged)
            return None if part is None else Repeated(part, times)
        case Composed(mechanisms):
            parts = [unsampled_group(one, size, enlarged) for one in mechanisms]
            known = tuple(part for part in parts if part is not None)
            return Composed(known) if len(known) == len(parts) else None
        case _:
            return enlarged(mechanism, size)


def _mixture(
    noise: Gaussian, rate: float, split: tuple[int, int], adjacency: Adjacency
) -> MixtureOfGaussians | None:
    """Return the mixture of one release; None where the noise refers to another adjacency."""
    doubled = noise.set_for is Adjacency.REPLACE_ONE
    if doubled and adjacency is not Adjacency.REPLACE_ONE:
        return None
    deviation = noise.noise_multiplier * (2 if doubled else 1)  # in norms of one record
    first, second = split
    shifts, weights = _binomial(first, rate)
    if not second:
        return MixtureOfGaussians(deviation, shifts, weights)
    return MixtureOfGaussians(deviation, shifts, weights, *_binomial(second, rate))


def _binomial(trials: int, rate: float) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the values and probabilities of a binomial law, without those that underflow."""
    chances = (
        math.comb(trials, k) * rate**k * (1 - rate) ** (trials - k) for k in range(trials + 1)
    )
    kept = _probable(enumerate(chances))
    return tuple(float(k) for k, _ in kept), tuple(chance for _, chance in kept)


def _probable(pairs: Iterable[tuple[int, float]]) -> list[tuple[int, float]]:
    return [(k, chance) for k, chance in pairs if chance > LEAST_PROBABILITY]
