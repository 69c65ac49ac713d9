"""The one mapping from sampling, rate, noise and steps to the mechanism that is accounted for.

The trainer's samplers, plans on the command line, importers and the calibration of noise all
ask here, so that the same training has the same mechanism wherever it is described.
"""

from __future__ import annotations

import math

from dpaudit.vocabulary.adjacency import Adjacency
from dpaudit.vocabulary.errors import (
    InvalidArgument,
    UnsupportedMechanism,
    require_count,
    require_sampling_rate,
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


def coin_sampling(sampling_rate: float) -> Sampling:
    """Return what sampling by one coin per record is called: a full batch is no sample."""
    return Sampling.FULL_BATCH if sampling_rate == 1 else Sampling.POISSON


def poisson_step(noise: Gaussian, sampling_rate: float) -> Release:
    """Return the release of one step whose records join by coins of bias ``sampling_rate``.

    At rate 1 every record joins every step, and the release is the noise mechanism itself.
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
    """Return what a ledger records at once of training under ``sampling``.

    Args:
        sampling: How records are drawn.
        noise: What is added to each noisy sum.
        sampling_rate: Of coins, in (0, 1].
        dataset_size: Number of records, where it is public.
        batch_size: Of batches of one size.
        largest_batch: Where Poisson batches are cut.
        steps: Steps that this release covers, where it covers more than one: those of a
            pass (balls in bins) or of the whole run (cyclic).
        bands: Number of groups that take turns (cyclic).

    Returns:
        One step, one pass or the whole run, as the sampling has it. The numbers that a
        sampling does not have are not looked at.

    Raises:
        InvalidArgument: A number that the sampling has is missing or out of range.
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
            # A record is in one batch of a pass, and the batches are disjoint: a pass costs
            # one release on all records, and no amplification is claimed.
            return noise


def training_mechanism(
    *,
    sampling: Sampling,
    sampling_rate: float,
    noise_multiplier: float,
    steps: int,
    adjacency: Adjacency = Adjacency.ADD_OR_REMOVE_ONE,
) -> Mechanism:
    """Return what ``steps`` noisy sums release, under the sampling that was really used.

    Args:
        sampling: How records are drawn: Poisson, full batches, or shuffled passes.
        sampling_rate: Probability with which a record joins a step, in (0, 1].
        noise_multiplier: Noise standard deviation divided by the clip norm.
        steps: Number of noisy sums.
        adjacency: The neighbour relation; it matters for shuffled passes alone.

    Returns:
        The composition of all steps.

    Raises:
        InvalidArgument: A number is out of range.
        UnsupportedMechanism: Shuffled batches under add-or-remove-one, where a record more
            moves other records between batches; or a sampling with numbers of its own.
    """
    require_sampling_rate("sampling_rate", sampling_rate)
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
                    "shuffled batches under add-or-remove-one: a record more moves others "
                    "between batches; use --adjacency zero-out or replace-one",
                )
            # steps are whole and a pass is 1/rate of them: 1e-9 allows for rounding.
            passes = max(1, math.ceil(steps * sampling_rate - 1e-9))
            return Repeated(recorded_release(sampling, noise), passes)
        case _:
            raise UnsupportedMechanism(
                noise, f"{sampling.value} sampling has numbers of its own: build its mechanism"
            )
