"""Replace releases by ones whose dominating pairs are known, from above or from below.

A replaced release has a slack r: its noise equals the noise of the replacement, or of a randomised
function of it, up to a factor between kappa and kappa e^r that does not depend on the data. Then

    e^-r delta(epsilon + r) <= delta_of_the_release(epsilon) <= e^r delta(epsilon - r)

with delta of the replacement (equations 2 to 5). Slacks of composed releases add up.

From above   wide discrete Gaussians and sums of them: a Gaussian of smaller variance
             sparse vector techniques: the guarantees that compose them
From below   wide discrete Gaussians and sums of them: a Gaussian of larger variance
             other integer vectors: one coordinate, or several independent ones
             sparse vector techniques: pairs that some neighbors attain

Shuffled reports keep their own pairs, of which the masses have a small error.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, replace
from functools import lru_cache

import msgspec

from dpaudit.accountants import integer_noise, sparse_vector
from dpaudit.accountants.integer_noise import (
    IntegerChange,
    integer_change,
    noise_square,
    scalar_form,
    square_for_oscillation,
    sum_oscillation,
    theta_oscillation,
)
from dpaudit.accountants.pld.laws.noise_tables import noise_table
from dpaudit.accountants.pld.laws.shuffled_reports import RELATIVE_ERROR
from dpaudit.accountants.releases import (
    ReleaseCounts,
    allocation_blocks,
    binned_from_above,
    binned_from_below,
)
from dpaudit.accountants.rounding_margins import ROUND_UP
from dpaudit.vocabulary.errors import Unresolvable, UnsupportedMechanism
from dpaudit.vocabulary.mechanism import (
    BinnedMatrixFactorization,
    DiscreteGaussian,
    DistributedDiscreteGaussian,
    Gaussian,
    IntegerVectorNoise,
    PoissonSampled,
    RandomAllocation,
    Release,
    SampledWithoutReplacement,
    Shuffled,
    Skellam,
    SparseVectorMechanism,
    VectorDiscreteGaussian,
)
from dpaudit.vocabulary.privacy_terms import Adjacency

# From this scale on, one coordinate is compared with a Gaussian instead of tabulated: the interval
# of epsilon widens by a relative 1e-7, and the time no longer grows with the scale.
WIDE_SCALE = 4096.0
# From this scale on, the attained change of a vector is compared with one Gaussian.
WIDE_VECTOR_SCALE = 64.0
# From this variance on, the lower end of a Skellam vector uses its largest coordinate alone: more
# tables would take seconds.
ONE_TABLE_VARIANCE = 1e5
# Slack of all replaced releases together, as a share of 1/scale^2. The variance that a smaller
# slack costs is then about as large as the slack itself.
SLACK_SHARE = 0.02
LARGEST_SLACK = 0.5  # a larger one gives no useful bound
MULTIPLIER_ROUNDING = 1e-15
# Masses of P and of Q that err by a relative r change delta by at most the slack 2 r.
SHUFFLED_SLACK = 2.1 * RELATIVE_ERROR


@dataclass(frozen=True)
class Comparison:
    """What replaces one release.

    Attributes:
        parts: Releases with counts; none for the trivial lower bound.
        slack: The factor kappa e^r of the module's inequality, as r in nats.
        complete: False if no dominating pair is known, so that only other accountants bound it.
    """

    parts: tuple[tuple[Release, int], ...]
    slack: float = 0.0
    complete: bool = True


NO_PAIR = Comparison((), complete=False)
NOTHING = Comparison(())


@dataclass(frozen=True)
class ComparedReleases:
    """What replaces a composition.

    Attributes:
        counts: The replacing releases.
        slack: The sum of their slacks, in nats.
        complete: Whether every release has a replacement.
    """

    counts: ReleaseCounts
    slack: float
    complete: bool


def needs_comparison(release: Release) -> bool:
    """Return whether a release is replaced: by different releases from above and from below.

    Args:
        release: An elementary release, sampled or not.

    Returns:
        False for the releases that have a dominating pair of their own, without error.
    """
    match release:
        case PoissonSampled(inner) | SampledWithoutReplacement(inner):
            return needs_comparison(inner)
        case DiscreteGaussian(scale):
            return scale >= WIDE_SCALE
        case RandomAllocation(selected=selected):
            return selected > 1
        case BinnedMatrixFactorization():
            return True
        case _:
            return isinstance(release, IntegerVectorNoise | SparseVectorMechanism | Shuffled)


def compare_from_above(releases: ReleaseCounts, adjacency: Adjacency) -> ComparedReleases:
    """Replace every release by one that costs at least as much, up to a slack.

    Args:
        releases: How often each elementary release occurs.
        adjacency: The relation of neighbouring data sets.

    Returns:
        The replacement.
    """
    return _gather(releases, {one: _above(one, n, adjacency) for one, n in releases.items()})


def compare_from_below(releases: ReleaseCounts, adjacency: Adjacency) -> ComparedReleases:
    """Replace every release by one that costs at most as much, up to a slack.

    Args:
        releases: How often each elementary release occurs.
        adjacency: The relation of neighbouring data sets.

    Returns:
        The replacement.
    """
    return _gather(releases, {one: _below(one, n, adjacency) for one, n in releases.items()})


def _gather(releases: ReleaseCounts, found: dict[Release, Comparison]) -> ComparedReleases:
    """Add up the replacements of all releases."""
    counts: Counter[Release] = Counter()
    slack = 0.0
    for release, times in releases.items():
        for part, each in found[release].parts:
            counts[part] += times * each
        slack += times * found[release].slack
    complete = all(one.complete for one in found.values())
    return ComparedReleases(counts, slack * ROUND_UP, complete)


@lru_cache(maxsize=4096)
def _above(release: Release, times: int, adjacency: Adjacency) -> Comparison:
    """Return what replaces one of ``times`` equal releases from above."""
    match release:
        case _ if not needs_comparison(release):
            return Comparison(((release, 1),))
        case RandomAllocation():
            return Comparison(allocation_blocks(release))
        case BinnedMatrixFactorization():
            return Comparison(((binned_from_above(release), 1),))
        case PoissonSampled(inner):
            _require_removable(release, adjacency)
            return _sampled(release, _noise_above(_DiscreteNoise.sampled(inner), times, adjacency))
        case SampledWithoutReplacement(inner):
            return _sampled(release, _noise_above(_DiscreteNoise.sampled(inner), times, adjacency))
        case (
            DiscreteGaussian()
            | VectorDiscreteGaussian()
            | DistributedDiscreteGaussian()
            | Skellam()
        ):
            return _noise_above(_DiscreteNoise.whole(release), times, adjacency)
        case Shuffled():
            return Comparison(((release, 1),), SHUFFLED_SLACK)
        case _:
            return Comparison(sparse_vector.guarantee_parts(_sparse(release)))


@lru_cache(maxsize=4096)
def _below(release: Release, times: int, adjacency: Adjacency) -> Comparison:
    """Return what replaces one of ``times`` equal releases from below."""
    match release:
        case _ if not needs_comparison(release):
            return Comparison(((release, 1),))
        case RandomAllocation():  # a law from below of its own
            return Comparison(((release, 1),))
        case BinnedMatrixFactorization():
            lower = binned_from_below(release)
            return NOTHING if lower is None else Comparison(((lower, 1),))
        case PoissonSampled(inner) | SampledWithoutReplacement(inner):
            noise = _DiscreteNoise.sampled(inner)
            return _sampled(release, _noise_below(noise, times, adjacency, most=1))
        case (
            DiscreteGaussian()
            | VectorDiscreteGaussian()
            | DistributedDiscreteGaussian()
            | Skellam()
        ):
            return _noise_below(_DiscreteNoise.whole(release), times, adjacency)
        case Shuffled():
            return Comparison(((release, 1),), SHUFFLED_SLACK)
        case _:
            return Comparison(sparse_vector.attained_parts(_sparse(release)))


def _sparse(release: Release) -> SparseVectorMechanism:
    """Return the release, which is a sparse vector technique."""
    if isinstance(release, SparseVectorMechanism):
        return release
    raise UnsupportedMechanism(release, "no dominating pair is known: use rdp or naive")


def _require_removable(release: PoissonSampled, adjacency: Adjacency) -> None:
    """Refuse Poisson samples under replace-one, which need the guarantee for a removed record."""
    if adjacency is Adjacency.REPLACE_ONE:
        raise UnsupportedMechanism(
            release, "under replace-one, Poisson sampling is supported for Gaussian releases only"
        )


def _sampled(release: PoissonSampled | SampledWithoutReplacement, found: Comparison) -> Comparison:
    """Return the replacement of a sampled release: the replaced noise, sampled in the same way."""
    parts = tuple((msgspec.structs.replace(release, mechanism=part), n) for part, n in found.parts)
    return replace(found, parts=parts)


@dataclass(frozen=True)
class _DiscreteNoise:
    """Noise on an integer vector, with the change between neighbors.

    Attributes:
        release: The noise itself.
        change: Largest change between neighbors.
        coordinates: Number of coordinates over which slacks add up: those that may change. Under
            sampling, different samples may change different coordinates, so it is all of them.
        square: Square of the scale of the discrete Gaussian that the noise approaches; 0 for none.
        oscillation: Distance from it, in nats per coordinate.
    """

    release: Release
    change: IntegerChange
    coordinates: int
    square: float
    oscillation: float

    @classmethod
    def whole(cls, release: Release) -> _DiscreteNoise:
        """Describe a release on the whole data set."""
        match release:
            case DiscreteGaussian(scale, moved):
                return cls(release, IntegerChange(moved, moved * moved, 1), 1, scale * scale, 0.0)
            case VectorDiscreteGaussian(scale):
                change = integer_change(release)
                return cls(release, change, change.coordinates, scale * scale, 0.0)
            case DistributedDiscreteGaussian(scale, shares):
                change = integer_change(release)
                apart = sum_oscillation(scale, shares)
                return cls(release, change, change.coordinates, noise_square(release), apart)
            case Skellam():
                change = integer_change(release)
                return cls(release, change, change.coordinates, 0.0, 0.0)
            case _:
                raise UnsupportedMechanism(release, "its noise is not on the integers")

    @classmethod
    def sampled(cls, release: Release) -> _DiscreteNoise:
        """Describe a release on a sample."""
        dimension = 1 if isinstance(release, DiscreteGaussian) else release.dimension  # type: ignore[union-attr]
        return replace(cls.whole(release), coordinates=dimension)

    @property
    def is_scalar(self) -> bool:
        """Whether one coordinate alone can change."""
        return self.change.coordinates == 1


def _noise_above(noise: _DiscreteNoise, times: int, adjacency: Adjacency) -> Comparison:
    """Replace discrete noise from above: by its own pair, or by a Gaussian."""
    wide = noise.square >= WIDE_SCALE * WIDE_SCALE
    if noise.is_scalar and not wide:
        match noise.release:
            case Skellam() | DistributedDiscreteGaussian():
                found = _tabulated(noise.release)
                if found.complete:
                    return found
            case _:
                return Comparison(((noise.release, 1),))
    return _gaussian_above(noise, times, adjacency)


def _noise_below(
    noise: _DiscreteNoise,
    times: int,
    adjacency: Adjacency,
    most: int = integer_noise.MOST_ATTAINED_COORDINATES,
) -> Comparison:
    """Replace discrete noise from below: by a Gaussian, or by at most ``most`` coordinates."""
    least = WIDE_SCALE if noise.is_scalar else WIDE_VECTOR_SCALE
    if noise.square >= least * least:
        found = _gaussian_below(noise, times, adjacency)
        if found.parts:
            return found
    if isinstance(noise.release, Skellam) and noise.release.variance >= ONE_TABLE_VARIANCE:
        most = 1
    parts: Counter[Release] = Counter()
    slack = 0.0
    for shift in noise.change.attained_shifts()[:most]:
        found = _one_coordinate(noise.release, shift)
        if not found.complete:
            return NOTHING
        parts.update(dict(found.parts))
        slack += found.slack
    return Comparison(tuple(parts.items()), slack)


def _one_coordinate(release: Release, shift: int) -> Comparison:
    """Return one coordinate of integer noise, moved by ``shift``."""
    match release:
        case DiscreteGaussian(scale) | VectorDiscreteGaussian(scale):
            return Comparison(((DiscreteGaussian(scale, shift), 1),))
        case DistributedDiscreteGaussian(scale, shares):
            return _tabulated(
                DistributedDiscreteGaussian(scale, shares, float(shift), float(shift), 1)
            )
        case Skellam(variance):
            return _tabulated(Skellam(variance, float(shift), float(shift), 1))
        case _:
            return NO_PAIR


def _tabulated(release: Skellam | DistributedDiscreteGaussian) -> Comparison:
    """Return a release of one coordinate with the error of its table as slack, if there is one."""
    change = integer_change(release)
    alone = scalar_form(release)
    match alone:
        case Skellam() | DistributedDiscreteGaussian():
            try:
                table = noise_table(alone, change.largest_shift)
            except Unresolvable:
                return NO_PAIR
            return Comparison(((alone, 1),), 2 * table.log_error)
        case _:
            return Comparison(((alone, 1),))


def _target_oscillation(noise: _DiscreteNoise, times: int) -> float:
    """Return the oscillation per coordinate and release that balances slack and variance."""
    total = min(SLACK_SHARE, SLACK_SHARE / noise.square)
    return total / (noise.coordinates * times)


def _gaussian_above(noise: _DiscreteNoise, times: int, adjacency: Adjacency) -> Comparison:
    """Replace wide noise by a Gaussian of smaller variance, which it is a function of.

    Equation 3: rounding N(0, s2^2) by a discrete Gaussian of scale s1 gives the noise up to
    ``theta_oscillation(s1^2)`` per coordinate, with s1^2 + s2^2 = square.
    """
    if noise.square == 0:
        return NO_PAIR
    inner = square_for_oscillation(_target_oscillation(noise, times))
    slack = noise.coordinates * (theta_oscillation(inner) + noise.oscillation)
    if not (inner <= noise.square / 2 and slack * times <= LARGEST_SLACK):
        return NO_PAIR
    multiplier = math.sqrt((noise.square - inner) / noise.change.l2_squared)
    gaussian = Gaussian(multiplier * (1 - MULTIPLIER_ROUNDING), adjacency)
    return Comparison(((gaussian, 1),), slack * ROUND_UP)


def _gaussian_below(noise: _DiscreteNoise, times: int, adjacency: Adjacency) -> Comparison:
    """Replace wide noise by a Gaussian of larger variance, which is a function of it.

    Equation 4: noise of variance s1^2 on top gives N(0, square + s1^2) up to
    ``theta_oscillation(t^2)`` per coordinate, with 1/t^2 = 1/square + 1/s1^2.
    """
    shifts = noise.change.attained_shifts()
    joint = square_for_oscillation(_target_oscillation(noise, times))
    slack = len(shifts) * (theta_oscillation(joint) + noise.oscillation)
    if not (joint <= noise.square / 2 and slack * times <= LARGEST_SLACK):
        return NOTHING
    added = joint * noise.square / (noise.square - joint) * ROUND_UP
    length = math.sqrt(sum(shift * shift for shift in shifts))
    multiplier = math.sqrt(noise.square + added) / length
    gaussian = Gaussian(multiplier * (1 + MULTIPLIER_ROUNDING), adjacency)
    return Comparison(((gaussian, 1),), slack * ROUND_UP)
