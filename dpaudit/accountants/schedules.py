"""Map sampling, sampling rate, noise and steps to the mechanism that is accounted for.

The trainer's samplers, plans on the command line, importers and calibration all use these
functions. The same training therefore has the same mechanism however it is described.
"""

from __future__ import annotations

import math
from fractions import Fraction
from functools import lru_cache

from dpaudit.accountants.rounding_margins import DOUBLE_EPSILON
from dpaudit.vocabulary.errors import (
    InvalidArgument,
    UnsupportedMechanism,
    require_count,
    require_sampling_rate,
    to_python_number,
)
from dpaudit.vocabulary.ledger import Sampling
from dpaudit.vocabulary.mechanism import (
    BandedMatrixFactorization,
    Gaussian,
    Mechanism,
    PoissonSampled,
    RandomAllocation,
    Release,
    Repeated,
    SampledWithoutReplacement,
    TruncatedPoisson,
)
from dpaudit.vocabulary.privacy_terms import Adjacency, require_adjacency

RELEASES_KEPT = 256
"""Releases that are made once: training asks for that of each step."""


def coin_sampling(sampling_rate: float) -> Sampling:
    """Return the name of sampling by independent coins: full batches at rate 1, else Poisson."""
    return Sampling.FULL_BATCH if sampling_rate == 1 else Sampling.POISSON


@lru_cache(maxsize=RELEASES_KEPT)
def poisson_step(noise: Gaussian, sampling_rate: float) -> Release:
    """Return the release of one step of Poisson sampling.

    Args:
        noise: Gaussian noise of the step.
        sampling_rate: Probability with which each record joins, in (0, 1].

    Returns:
        The sampled release; at rate 1 the noise mechanism itself.

    Raises:
        InvalidArgument: If the rate is out of range.

    Example:
        >>> from dpaudit.accountants import Gaussian, schedules
        >>> schedules.poisson_step(Gaussian(noise_multiplier=1.0), 0.01).sampling_rate
        0.01
    """
    require_sampling_rate("sampling_rate", sampling_rate)
    return noise if sampling_rate == 1 else PoissonSampled(noise, sampling_rate)


def recorded_release(
    sampling: Sampling,
    noise: Gaussian,
    *,
    sampling_rate: float = 1.0,
    dataset_size: int = 0,
    batch_size: int = 0,
    largest_batch: int = 0,
    steps: int = 0,
    bands: int = 0,
) -> Release:
    """Return the release that a ledger records per entry of training under ``sampling``.

    Args:
        sampling: How records are drawn.
        noise: Gaussian noise that is added to each sum.
        sampling_rate: Probability with which a record joins a step, in (0, 1].
        dataset_size: Number of records, where it is public.
        batch_size: Size of fixed-size batches, in records.
        largest_batch: Size at which Poisson batches are truncated, in records.
        steps: Number of steps that this release covers, where it covers more than one: those of
            a pass (balls in bins) or of the whole run (cyclic).
        bands: Number of groups that take turns (cyclic).

    Returns:
        One step, one pass or the whole run, depending on the sampling. Numbers that a sampling
        does not have are ignored.

    Raises:
        InvalidArgument: If a number that the sampling has is missing or out of range.

    Example:
        >>> from dpaudit.accountants import Gaussian, schedules
        >>> from dpaudit.vocabulary.ledger import Sampling
        >>> release = schedules.recorded_release(
        ...     Sampling.FIXED_SIZE, Gaussian(1.0), batch_size=10, dataset_size=1000
        ... )
        >>> type(release).__name__
        'SampledWithoutReplacement'
    """
    match sampling:
        case Sampling.POISSON | Sampling.FULL_BATCH:
            return poisson_step(noise, sampling_rate)
        case Sampling.TRUNCATED_POISSON:
            return TruncatedPoisson(noise, sampling_rate, dataset_size, largest_batch)
        case Sampling.FIXED_SIZE:
            return SampledWithoutReplacement(noise, batch_size, dataset_size)
        case Sampling.BALLS_IN_BINS:
            return RandomAllocation(noise, steps)
        case Sampling.CYCLIC_POISSON:
            return BandedMatrixFactorization(noise, steps, bands, sampling_rate)
        case Sampling.SHUFFLED:
            # The batches of a pass are disjoint and a record is in one of them. So a pass
            # costs one release on all records; no amplification is claimed.
            return noise


def training_mechanism(
    *,
    sampling: Sampling,
    sampling_rate: float,
    noise_multiplier: float,
    steps: int,
    adjacency: Adjacency = Adjacency.ADD_OR_REMOVE_ONE,
) -> Mechanism:
    """Return the mechanism of ``steps`` noisy sums under the sampling that was really used.

    Args:
        sampling: How records are drawn: Poisson, full batches, or shuffled passes.
        sampling_rate: Probability with which a record joins a step, in (0, 1].
        noise_multiplier: Noise standard deviation divided by the clip norm.
        steps: Number of noisy sums.
        adjacency: Neighbor relation; it matters for shuffled passes only.

    Returns:
        The composition of all steps.

    Raises:
        InvalidArgument: If a number is out of range.
        UnsupportedMechanism: If batches are shuffled under add-or-remove-one: an added record
            moves other records between batches. Also if the sampling has parameters that this
            function does not take.

    Example:
        >>> from dpaudit.accountants import schedules
        >>> from dpaudit.vocabulary.ledger import Sampling
        >>> run = schedules.training_mechanism(
        ...     sampling=Sampling.POISSON, sampling_rate=0.01, noise_multiplier=1.0, steps=500
        ... )
        >>> run.times
        500
    """
    require_adjacency("adjacency", adjacency)
    require_sampling_rate("sampling_rate", sampling_rate)
    steps = to_python_number(steps)
    require_count("steps", steps)
    noise = Gaussian(noise_multiplier)
    match sampling:
        case Sampling.POISSON:
            return Repeated(poisson_step(noise, sampling_rate), steps)
        case Sampling.FULL_BATCH:
            if sampling_rate != 1:
                raise InvalidArgument("sampling_rate", sampling_rate, "1 for full batches")
            return Repeated(poisson_step(noise, sampling_rate), steps)
        case Sampling.SHUFFLED:
            if adjacency is Adjacency.ADD_OR_REMOVE_ONE:
                raise UnsupportedMechanism(
                    noise,
                    "shuffled batches under add-or-remove-one: an added record moves others "
                    "between batches; use --adjacency zero-out or replace-one",
                )
            return Repeated(
                recorded_release(sampling, noise), _started_passes(sampling_rate, steps)
            )
        case _:
            raise UnsupportedMechanism(
                noise,
                f"{sampling.value} sampling has further parameters: build its mechanism",
            )


def _started_passes(sampling_rate: float, steps: int) -> int:
    """Return the number of passes that ``steps`` steps begin, where a pass has 1/rate of them.

    A rate of B/N was rounded to a double. The simplest fraction that rounds so is taken for it.
    """
    exact = Fraction(sampling_rate)
    slack = Fraction(DOUBLE_EPSILON)
    rate = min(_simplest_fraction(exact * (1 - slack), exact * (1 + slack)), Fraction(1))
    return math.ceil(steps * rate)


def _simplest_fraction(low: Fraction, high: Fraction) -> Fraction:
    """Return the fraction with the least denominator in [low, high], 0 < low < high."""
    whole = math.ceil(low)
    if whole <= high:
        return Fraction(whole)
    return whole - 1 + 1 / _simplest_fraction(1 / (high - whole + 1), 1 / (low - whole + 1))
