"""A mechanism tree as a multiset of elementary releases: what every accountant reads."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from fractions import Fraction

from dpaudit.vocabulary.adjacency import Adjacency
from dpaudit.vocabulary.errors import UnsupportedMechanism
from dpaudit.vocabulary.mechanism import (
    Composed,
    Gaussian,
    Mechanism,
    PoissonSampled,
    RandomizedResponse,
    Release,
    Repeated,
)

Releases = Mapping[Release, int]


def count_releases(mechanism: Mechanism) -> Releases:
    """Return how often each elementary release occurs; composition does not mind the order."""
    counts: Counter[Release] = Counter()
    _collect(mechanism, 1, counts)
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
        case _:
            counts[mechanism] += times


def shift_over_noise(release: Gaussian, adjacency: Adjacency) -> float:
    """Return by how many standard deviations one record moves the noisy sum.

    Replacing a record subtracts one vector of norm C and adds another: up to 2 C.
    """
    moves = 2 if adjacency is Adjacency.REPLACE_ONE else 1
    return moves / release.noise_multiplier


def response_loss(release: RandomizedResponse) -> float:
    """Return log(p/r), the largest privacy loss of one answer, to the last digit.

    p is the probability of the truth, r = (1-p)/(k-1) that of each other answer. Next to
    guessing p/r is next to 1: its distance from 1 is taken in exact arithmetic.
    """
    truth = Fraction(release.truth_probability)
    return math.log1p(float((release.categories * truth - 1) / (1 - truth)))


def refuse_unpriced(releases: Releases, adjacency: Adjacency) -> None:
    """Refuse, by name, what has no valid pair of laws under this adjacency.

    Raises:
        UnsupportedMechanism: for randomized response unless one record is replaced, and for
            Poisson sampling of anything but a Gaussian that a record joins or leaves.
    """
    for release in releases:
        match release:
            case RandomizedResponse() if adjacency is not Adjacency.REPLACE_ONE:
                raise UnsupportedMechanism(
                    release,
                    f"randomized response has no meaning under {adjacency.value}: use replace-one",
                )
            case PoissonSampled(RandomizedResponse()):
                raise UnsupportedMechanism(
                    release, "no accountant here prices Poisson-sampled randomized response"
                )
            case PoissonSampled() if adjacency is Adjacency.REPLACE_ONE:
                raise UnsupportedMechanism(
                    release,
                    "no accountant here prices Poisson sampling under replace-one: "
                    "use add-or-remove-one or zero-out",
                )
            case _:
                pass
