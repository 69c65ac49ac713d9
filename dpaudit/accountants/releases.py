"""A mechanism tree as a multiset of elementary releases: what every accountant reads."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from fractions import Fraction

from dpaudit.vocabulary.adjacency import Adjacency
from dpaudit.vocabulary.errors import UnsupportedMechanism, require_count
from dpaudit.vocabulary.mechanism import (
    BandedMatrixFactorization,
    Composed,
    Gaussian,
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

Releases = Mapping[Release, int]


def count_releases(mechanism: Mechanism) -> Releases:
    """Return how often each elementary release occurs; composition does not mind the order.

    Sampling that leaves nobody out is no sampling, and what is priced by a published
    reduction is replaced by what it reduces to:

    - a tree over n batches is floor(log2 n) + 1 Gaussians on the whole data set, as each
      record is in one node of each level (Kairouz et al. 2021, arXiv:2103.00039, Theorem 4.1);
    - b bands over n steps are ceil(n/b) sampled Gaussians (Choquette-Choo et al. 2023,
      arXiv:2306.08153, Theorem 4).

    Raises:
        InvalidArgument: repetitions of repetitions are more than can be counted.
    """
    counts: Counter[Release] = Counter()
    _collect(mechanism, 1, counts)
    for times in counts.values():
        require_count("times, all repetitions multiplied", times)
    return counts


def _collect(mechanism: Mechanism, times: int, counts: Counter[Release]) -> None:
    match mechanism:
        case Composed(mechanisms):
            for part in mechanisms:
                _collect(part, times, counts)
        case Repeated(inner, more):
            _collect(inner, times * more, counts)
        case PoissonSampled(inner, sampling_rate) if sampling_rate == 1:
            _collect(inner, times, counts)  # every record joins every batch
        case TruncatedPoisson(inner, rate, size, largest) if largest > size:  # a record more fits
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
            counts[mechanism] += times


def shift_over_noise(release: Gaussian, adjacency: Adjacency) -> float:
    """Return by how many standard deviations one record moves the noisy sum.

    Replacing a record subtracts one vector of norm C and adds another: up to 2 C.
    """
    doubled = adjacency is Adjacency.REPLACE_ONE and release.set_for is not adjacency
    return (2 if doubled else 1) / release.noise_multiplier


def response_loss(release: RandomizedResponse) -> float:
    """Return log(p/r), the largest privacy loss of one answer, to the last digit.

    p is the probability of the truth, r = (1-p)/(k-1) that of each other answer. Next to
    guessing p/r is next to 1: its distance from 1 is taken in exact arithmetic.
    """
    truth = Fraction(release.truth_probability)
    return math.log1p(float((release.categories * truth - 1) / (1 - truth)))


def require_meaning(releases: Releases, adjacency: Adjacency) -> None:
    """Refuse, by name, what means nothing under this adjacency, whoever computes.

    Raises:
        UnsupportedMechanism: for randomized response unless one record is replaced; for
            batches of a fixed size unless the data set's size is the same for both
            neighbours and one record is replaced; for noise set for replaced records
            under another adjacency.
    """
    for release in releases:
        _require_meaning(release, adjacency)


def _require_meaning(release: Mechanism, adjacency: Adjacency) -> None:
    replaces = adjacency is Adjacency.REPLACE_ONE
    match release:
        case RandomizedResponse() if not replaces:
            raise UnsupportedMechanism(
                release,
                f"randomized response has no meaning under {adjacency.value}: use replace-one",
            )
        case SampledWithoutReplacement() if not replaces:
            raise UnsupportedMechanism(
                release,
                "batches of a fixed size, drawn without replacement, are priced for neighbours "
                f"of one size alone, not under {adjacency.value}: use replace-one",
            )
        case Gaussian(set_for=Adjacency.REPLACE_ONE) if not replaces:
            raise UnsupportedMechanism(
                release,
                "its noise was set for replaced records, which says nothing of "
                f"{adjacency.value}: use replace-one",
            )
        case Selected(inner):
            require_meaning(count_releases(inner), adjacency)
        case (
            PoissonSampled(inner)
            | TruncatedPoisson(inner)
            | SampledWithoutReplacement(inner)
            | RandomAllocation(inner)
        ):
            _require_meaning(inner, adjacency)
        case _:
            pass
