"""Reduce a mechanism tree to a multiset of elementary releases, the input of all accountants."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from fractions import Fraction

import numpy as np

from dpaudit.accountants.integer_noise import scalar_form
from dpaudit.vocabulary.errors import UnsupportedMechanism, require_count
from dpaudit.vocabulary.mechanism import (
    BandedMatrixFactorization,
    Composed,
    Gaussian,
    IntegerVectorNoise,
    Mechanism,
    PoissonSampled,
    RandomAllocation,
    RandomizedResponse,
    Release,
    Repeated,
    SampledWithoutReplacement,
    Selected,
    TreeAggregation,
    TruncatedPoisson,
)
from dpaudit.vocabulary.privacy_terms import Adjacency, require_adjacency

ReleaseCounts = Mapping[Release, int]


def count_releases(mechanism: Mechanism) -> ReleaseCounts:
    """Count the elementary releases of a mechanism; their order does not matter.

    Sampling that includes every record is removed. Two mechanisms are replaced by the releases
    to which a published theorem reduces them:

    - A tree over n batches is floor(log2 n) + 1 Gaussians without sampling, as each record is
      in one node per level.
    - b bands over n steps are ceil(n/b) sampled Gaussians.

    Integer vectors of which one coordinate alone can change become noise on one number.

    Args:
        mechanism: A release or a composition.

    Returns:
        Each elementary release with its count.

    Raises:
        InvalidArgument: If nested repetitions exceed the largest count.

    References:
        Trees: Kairouz et al. (2021), arXiv:2103.00039, Theorem 4.1. Bands: Choquette-Choo et
        al. (2023), arXiv:2306.08153, Theorem 4.

    Example:
        >>> from dpaudit.accountants import Composed, PureDP, Repeated, releases
        >>> counts = releases.count_releases(Composed((Repeated(PureDP(0.1), 3), PureDP(0.1))))
        >>> dict(counts)
        {PureDP(epsilon=0.1): 4}
    """
    counts: Counter[Release] = Counter()
    _collect(mechanism, 1, counts)
    for times in counts.values():
        require_count("times, all repetitions multiplied", times)
    return counts


def _collect(mechanism: Mechanism, times: int, counts: Counter[Release]) -> None:
    """Add the releases of ``mechanism``, ``times`` times, to ``counts``."""
    match mechanism:
        case Composed(mechanisms):
            for part in mechanisms:
                _collect(part, times, counts)
        case Repeated(inner, more):
            _collect(inner, times * more, counts)
        case PoissonSampled(inner, sampling_rate) if sampling_rate == 1:
            _collect(inner, times, counts)  # every record joins every batch
        # Never truncated, not even with one record more.
        case TruncatedPoisson(inner, rate, size, largest) if largest > size:
            _collect(PoissonSampled(inner, rate), times, counts)
        case SampledWithoutReplacement(inner, batch, size) if batch == size:
            _collect(inner, times, counts)
        case RandomAllocation(inner, 1):
            _collect(inner, times, counts)
        case TreeAggregation(inner, steps):
            _collect(inner, times * steps.bit_length(), counts)
        case BandedMatrixFactorization(inner, steps, bands, rate):
            _collect(PoissonSampled(inner, rate), times * -(-steps // bands), counts)
        case _:
            counts[_with_fewest_coordinates(mechanism)] += times


def _with_fewest_coordinates(release: Release) -> Release:
    """Return noise on an integer vector as noise on one number, where one coordinate changes."""
    match release:
        case PoissonSampled(inner, rate) if isinstance(inner, IntegerVectorNoise):
            return PoissonSampled(scalar_form(inner), rate)
        case SampledWithoutReplacement(inner, batch, size) if isinstance(inner, IntegerVectorNoise):
            return SampledWithoutReplacement(scalar_form(inner), batch, size)
        case _ if isinstance(release, IntegerVectorNoise):
            return scalar_form(release)
        case _:
            return release


def gaussian_mu(release: Gaussian, adjacency: Adjacency) -> float:
    """Return the sensitivity of a Gaussian release in noise standard deviations.

    Replacing a record subtracts one vector of norm C and adds another: up to 2 C.

    Args:
        release: Gaussian noise, with the adjacency for which its multiplier was set.
        adjacency: Neighbor relation.

    Returns:
        1/noise_multiplier, or twice that under replace-one unless the noise was set for it.
    """
    doubled = adjacency is Adjacency.REPLACE_ONE and release.set_for is not adjacency
    return (2 if doubled else 1) / release.noise_multiplier


def randomized_response_loss(release: RandomizedResponse) -> float:
    """Return log(p/r), the largest privacy loss of one answer, to full precision.

    p is the probability of the true answer, r = (1-p)/(k-1) that of each other one. For answers
    close to uniform p/r is close to 1, so p/r - 1 is computed in exact arithmetic.

    Args:
        release: Randomized response with k categories.

    Returns:
        The loss in nats.
    """
    # p/r - 1 = (k p - 1)/(1 - p).
    truth = Fraction(release.truth_probability)
    return math.log1p(float((release.categories * truth - 1) / (1 - truth)))


def require_supported_adjacency(releases: ReleaseCounts, adjacency: Adjacency) -> None:
    """Raise an error if a release is not defined under an adjacency, for any accountant.

    Args:
        releases: The elementary releases, each with its count.
        adjacency: Neighbor relation.

    Raises:
        UnsupportedMechanism: If a release is randomized response or fixed-size batches under
            another adjacency than replace-one, or Gaussian noise that was set for replaced
            records under another adjacency.
        InvalidArgument: If ``adjacency`` is no ``Adjacency``.
    """
    require_adjacency("adjacency", adjacency)
    for release in releases:
        _require_release_supported(release, adjacency)


def _require_release_supported(release: Mechanism, adjacency: Adjacency) -> None:
    """Raise an error if one release, or the one inside it, is not defined under ``adjacency``."""
    replaces = adjacency is Adjacency.REPLACE_ONE
    match release:
        case RandomizedResponse() if not replaces:
            raise UnsupportedMechanism(
                release,
                f"randomized response is not defined under {adjacency.value}: use replace-one",
            )
        case SampledWithoutReplacement() if not replaces:
            raise UnsupportedMechanism(
                release,
                "batches of a fixed size, drawn without replacement, need neighbors of equal "
                f"size with one record replaced, not {adjacency.value}: use replace-one",
            )
        case Gaussian(set_for=Adjacency.REPLACE_ONE) if not replaces:
            raise UnsupportedMechanism(
                release,
                "its noise multiplier was set for replace-one and gives no bound under "
                f"{adjacency.value}: use replace-one",
            )
        case Selected(inner):
            require_supported_adjacency(count_releases(inner), adjacency)
        case (
            PoissonSampled(inner)
            | TruncatedPoisson(inner)
            | SampledWithoutReplacement(inner)
            | RandomAllocation(inner)
        ):
            _require_release_supported(inner, adjacency)
        case _:
            pass


# Probability that a Poisson batch is too large: a certified upper tail of the binomial.

TAIL_TERMS = 4096


def truncation_probability(release: TruncatedPoisson, adjacency: Adjacency) -> float:
    """Return an upper bound of the probability that a truncated Poisson batch is cut.

    Args:
        release: The truncated Poisson sample.
        adjacency: Neighbor relation. Under add-or-remove-one the larger of both data sets has
            one record more than ``release.dataset_size``.

    Returns:
        The upper bound of P[Binomial(records, rate) > largest batch].
    """
    more = 1 if adjacency is Adjacency.ADD_OR_REMOVE_ONE else 0
    return binomial_tail(
        release.dataset_size + more, release.sampling_rate, release.largest_batch + 1
    )


def binomial_tail(trials: int, rate: float, least: int) -> float:
    """Compute an upper bound of P[Binomial(trials, rate) >= least].

    The first terms are summed. The ratio of consecutive terms, (n - j)/(j + 1) q/(1 - q),
    decreases in j, so the rest is at most a geometric series with the last ratio.

    Args:
        trials: Number of trials n.
        rate: Success probability q, above 0 and at most 1.
        least: Least number of successes.

    Returns:
        The upper bound; 1 where ``least`` is at most about the mean, as terms still grow there.
    """
    if least > trials:
        return 0.0
    if rate == 1 or least <= trials * rate + 1:
        return 1.0
    # log of the first term C(n, j) q^j (1 - q)^(n - j), rounded up.
    n, j = float(trials), float(least)
    parts = (
        math.lgamma(n + 1),
        -math.lgamma(j + 1),
        -math.lgamma(n - j + 1),
        j * math.log(rate),
        (n - j) * math.log1p(-rate),
    )
    log_first = float(sum(parts) + 1e-15 * sum(abs(part) for part in parts))
    at = j + np.arange(TAIL_TERMS)
    ratios = np.maximum(0.0, (n - at) / (at + 1) * (rate / (1 - rate)))
    total = 1 + float(np.cumprod(ratios).sum())
    rest = float(np.prod(ratios)) * float(ratios[-1] / (1 - ratios[-1]))
    return min(1.0, math.exp(min(0.0, log_first)) * (total + rest) * (1 + 1e-11))
