"""Reduce a mechanism tree to a multiset of elementary releases, the input of all accountants."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from fractions import Fraction

import numpy as np

from dpaudit.accountants.integer_noise import scalar_form
from dpaudit.accountants.rounding_margins import ROUND_DOWN, ROUND_UP
from dpaudit.vocabulary.errors import InvalidArgument, UnsupportedMechanism, require_count
from dpaudit.vocabulary.mechanism import (
    BandedMatrixFactorization,
    BinnedMatrixFactorization,
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
    Shuffled,
    TreeAggregation,
    TruncatedPoisson,
)
from dpaudit.vocabulary.pairs import DominatingPair, MixtureOfGaussians
from dpaudit.vocabulary.privacy_terms import Adjacency, require_adjacency
from dpaudit.vocabulary.tagged import Tagged

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
        InvalidArgument: If the argument is no mechanism, or nested repetitions exceed the
            largest count.

    References:
        Trees: Kairouz et al. (2021), arXiv:2103.00039, Theorem 4.1. Bands: Choquette-Choo et
        al. (2023), arXiv:2306.08153, Theorem 4.

    Example:
        >>> from dpaudit.accountants import Composed, PureDP, Repeated, releases
        >>> counts = releases.count_releases(Composed((Repeated(PureDP(0.1), 3), PureDP(0.1))))
        >>> dict(counts)
        {PureDP(epsilon=0.1): 4}
    """
    if not isinstance(mechanism, Tagged):
        raise InvalidArgument("mechanism", mechanism, "a mechanism, as Gaussian(1.0)")
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
        case MixtureOfGaussians(opposite_sensitivities=()):
            counts[_without_known_mixture(mechanism)] += times
        case PoissonSampled(MixtureOfGaussians(opposite_sensitivities=()) as inner, rate):
            _collect(_sampled_mixture(inner, rate), times, counts)
        case SampledWithoutReplacement(inner, batch, size) if batch == size:
            _collect(inner, times, counts)
        case RandomAllocation(inner, steps, selected) if steps == selected:
            _collect(inner, times * steps, counts)  # every record joins every sum
        case TreeAggregation(inner, steps):
            _collect(inner, times * steps.bit_length(), counts)
        case BandedMatrixFactorization(inner, steps, bands, rate):
            _collect(PoissonSampled(inner, rate), times * -(-steps // bands), counts)
        case _:
            counts[_with_fewest_coordinates(mechanism)] += times


def _sampled_mixture(mixture: MixtureOfGaussians, rate: float) -> MixtureOfGaussians:
    """Return a mixture on a Poisson sample: with probability 1 - rate, nothing is added."""
    total = math.fsum(mixture.probabilities)
    weights = [rate * weight / total for weight in mixture.probabilities]
    return MixtureOfGaussians(
        mixture.standard_deviation, (0.0, *mixture.sensitivities), (1 - rate, *weights)
    )


def _without_known_mixture(mixture: MixtureOfGaussians) -> Release:
    """Return a mixture of one shift, or of it and none, as a Gaussian, sampled or not."""
    chances: dict[float, float] = {}
    for shift, weight in zip(mixture.sensitivities, mixture.probabilities, strict=True):
        chances[shift] = chances.get(shift, 0.0) + weight
    resting = chances.pop(0.0, 0.0)
    if len(chances) > 1:
        return mixture
    ((shift, weight),) = chances.items()
    multiplier = mixture.standard_deviation / shift
    if not 0 < multiplier < math.inf:
        return mixture
    noise = Gaussian(multiplier)
    return PoissonSampled(noise, weight / (weight + resting)) if resting else noise


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


def allocation_blocks(release: RandomAllocation) -> tuple[tuple[Release, int], ...]:
    """Return passes with one sum per record that cost at least as much as ``release``.

    Split the sums at random into ``selected`` blocks of nearly equal size, and let a record join
    one sum of each block. That is a uniform draw of ``selected`` sums. To reveal the blocks can
    only raise the cost: both deltas and Renyi moments are convex in the likelihood ratio.

    Args:
        release: Random allocation of one or several sums per record.

    Returns:
        The blocks, as passes with one sum per record, with counts.

    References:
        Feldman & Shenfeld (2025), arXiv:2502.08202; docs/mathematics/random_allocation.md.

    Example:
        >>> from dpaudit.accountants import Gaussian, RandomAllocation
        >>> from dpaudit.accountants.releases import allocation_blocks
        >>> [(block.steps, times) for block, times in allocation_blocks(
        ...     RandomAllocation(Gaussian(1.0), steps=11, selected=3)
        ... )]
        [(4, 2), (3, 1)]
    """
    size, larger = divmod(release.steps, release.selected)
    parts = ((size + 1, larger), (size, release.selected - larger))
    return tuple(
        (RandomAllocation(release.mechanism, steps) if steps > 1 else release.mechanism, times)
        for steps, times in parts
        if times
    )


def binned_from_above(release: BinnedMatrixFactorization) -> Release:
    """Return one pass that costs at least as much as a banded matrix under balls in bins.

    A bin has at most n = ceil(steps/bins) columns, which do not overlap: their sum has norm sqrt(n)
    at most. Bins that are ``bands`` apart have independent likelihood ratios. So the ratio is a
    mean, over shifts, of means of floor(bins/bands) independent ratios, and below one of these in
    the convex order.

    Args:
        release: Banded matrix factorization under balls in bins.

    Returns:
        A pass of floor(bins/bands) steps, or a Gaussian without sampling.

    References:
        docs/mathematics/random_allocation.md, equations 19 to 21.

    Example:
        >>> from dpaudit.accountants import BinnedMatrixFactorization, Gaussian
        >>> from dpaudit.accountants.releases import binned_from_above
        >>> binned_from_above(BinnedMatrixFactorization(Gaussian(2.0), 400, 3, 100)).steps
        33
    """
    columns = -(-release.steps // release.bins)
    noise = _with_columns(release.mechanism, columns, ROUND_DOWN)
    independent = release.bins // release.bands
    return RandomAllocation(noise, independent) if independent > 1 else noise


def binned_from_below(release: BinnedMatrixFactorization) -> Release | None:
    """Return one pass that costs at most as much as a banded matrix under balls in bins.

    Only columns that the end of the run does not cut off count. The ratios of all bins have
    covariances of at least 0, so independent ones are lower in the convex order (Kahane).

    Args:
        release: Banded matrix factorization under balls in bins.

    Returns:
        A pass of ``bins`` steps, or a Gaussian; None where a bin has no whole column.

    References:
        docs/mathematics/random_allocation.md, equation 20.

    Example:
        >>> from dpaudit.accountants import BinnedMatrixFactorization, Gaussian
        >>> from dpaudit.accountants.releases import binned_from_below
        >>> binned_from_below(BinnedMatrixFactorization(Gaussian(2.0), 400, 3, 100)).steps
        100
    """
    columns = (release.steps - release.bands + 1) // release.bins
    if columns < 1:
        return None
    noise = _with_columns(release.mechanism, columns, ROUND_UP)
    return RandomAllocation(noise, release.bins) if release.bins > 1 else noise


def _with_columns(noise: Gaussian, columns: int, rounding: float) -> Gaussian:
    """Return noise over the norm of a number of columns of norm 1 that do not overlap."""
    if columns == 1:
        return noise
    return Gaussian(noise.noise_multiplier / math.sqrt(columns) * rounding, noise.set_for)


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


def refuse_given_pairs(releases: ReleaseCounts) -> None:
    """Raise an error if a release is a pair of output distributions, which pld alone reads.

    Args:
        releases: The elementary releases, each with its count.

    Raises:
        UnsupportedMechanism: If a release, or the one inside it, is given by such a pair.
    """
    for release in releases:
        match release:
            case Selected(inner):
                refuse_given_pairs(count_releases(inner))
            case MixtureOfGaussians() | DominatingPair() | PoissonSampled(DominatingPair()):
                raise UnsupportedMechanism(
                    release,
                    "a mixture of Gaussians or another pair of output distributions has no Renyi "
                    "or composition bound here: use pld, without private selection",
                )
            case _:
                pass


def _require_release_supported(release: Mechanism, adjacency: Adjacency) -> None:
    """Raise an error if one release, or the one inside it, is not defined under ``adjacency``."""
    replaces = adjacency is Adjacency.REPLACE_ONE
    match release:
        case RandomizedResponse() if not replaces:
            raise UnsupportedMechanism(
                release,
                f"randomized response is not defined under {adjacency.value}: use replace-one",
            )
        case Shuffled() if not replaces:
            raise UnsupportedMechanism(
                release,
                f"shuffled reports are not defined under {adjacency.value}, as each participant "
                "sends one: use replace-one",
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
        case MixtureOfGaussians(opposite_sensitivities=()) if replaces:
            raise UnsupportedMechanism(
                release,
                "a mixture of Gaussians describes what one data set adds, not what a replacement "
                "changes: use add-or-remove-one or zero-out, or give opposite_sensitivities",
            )
        case PoissonSampled(MixtureOfGaussians()) | SampledWithoutReplacement(
            MixtureOfGaussians() | DominatingPair()
        ):
            raise UnsupportedMechanism(
                release,
                "no analysis of such samples is implemented: use Poisson samples of a pair or of a "
                "mixture without opposite sensitivities",
            )
        case PoissonSampled(DominatingPair()) if replaces:
            raise UnsupportedMechanism(
                release,
                "a pair for replaced records gives no bound for a record that is in the sample of "
                "one neighbor alone: use add-or-remove-one or zero-out",
            )
        case (
            PoissonSampled(inner)
            | TruncatedPoisson(inner)
            | SampledWithoutReplacement(inner)
            | RandomAllocation(inner)
            | BinnedMatrixFactorization(inner)
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
