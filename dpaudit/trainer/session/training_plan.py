"""Plan of a training: sampling rate, steps and noise, from what the user gave.

The number of records is never read from the data. It is a public number that the user gives, or
a ``NoisyCount``, which is released and recorded.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import cast

from dpaudit.accountants import calibrate
from dpaudit.accountants.calibrate import CalibrationResult
from dpaudit.trainer.batches.samplers import Poisson, Sampler
from dpaudit.trainer.session.release_account import PrivacyBudget
from dpaudit.trainer.session.settings import (
    ConstantSchedule,
    NoisyCount,
    Schedule,
    to_float,
    to_schedule,
)
from dpaudit.vocabulary.errors import (
    InvalidArgument,
    require_count,
    require_delta,
    require_object,
    require_positive,
)
from dpaudit.vocabulary.mechanism import Composed, Gaussian, Mechanism, Release, Repeated

DEFAULT_BATCH_SIZE = 256
"""Expected batch size, in records, if neither it nor a sampling rate is given."""

ALLOWED_SIZE = (
    "given: the public number of records, or NoisyCount(len(data)); it is not taken from the "
    "data, because the number of records is secret under add-or-remove-one"
)


@dataclass(frozen=True)
class PlanRequest:
    """What the user gave of the plan; None: not given.

    Attributes:
        sampler: A sampler, in place of Poisson sampling.
        sampling_rate: Probability with which each record joins each step.
        expected_batch_size: The divisor of noisy sums, in records, or a noisy count.
        dataset_size: The public number of records, or a noisy count.
        noise_multiplier: A number, or a schedule.
        target_epsilon: Largest epsilon, from which the noise multiplier is computed.
        delta: Delta of the target and of the claim.
        epochs: Number of passes over the records, on average.
        steps: Number of steps.
        loader_batch_size: Batch size of a given DataLoader.
    """

    sampler: object = None
    sampling_rate: object = None
    expected_batch_size: object = None
    dataset_size: object = None
    noise_multiplier: object = None
    target_epsilon: object = None
    delta: object = None
    epochs: object = None
    steps: object = None
    loader_batch_size: int | None = None


@dataclass(frozen=True)
class TrainingPlan:
    """How a training draws, how many steps it takes, and what it may spend.

    Attributes:
        sampler: Draws the records, or the users.
        expected_batch_size: Divisor of noisy sums, in records, or a count to be released.
        noise_multiplier: Noise standard deviation over the sensitivity, for each step.
        steps: Number of steps; None: the user gives it to ``batches``.
        delta: Delta of the claim; None: the user gives it to ``finish``.
        calibration: The noise multiplier that meets a target epsilon, with its interval; None:
            the noise multiplier was given.
        size_is_public: Whether the user gave the number of records as public.
        releases: Number of times that the calibrated plan makes each release.
    """

    sampler: Sampler
    expected_batch_size: float | NoisyCount
    noise_multiplier: Schedule
    steps: int | None = None
    delta: float | None = None
    calibration: CalibrationResult[float] | None = None
    size_is_public: bool = False
    releases: Mapping[Release, int] = field(default_factory=dict)

    @property
    def budget(self) -> PrivacyBudget | None:
        """The budget of a calibrated plan; None without a target epsilon."""
        if self.calibration is None:
            return None
        return PrivacyBudget(self.calibration.target_epsilon, self.calibration.delta)


def plan_training(request: PlanRequest) -> TrainingPlan:
    """Compute sampling rate, expected batch size, steps and noise from what was given.

    Args:
        request: What the user gave.

    Returns:
        The plan. With a target, the upper bound of epsilon of all its releases is at most that.

    Raises:
        InvalidArgument: If an argument is missing, out of range, or contradicts another one.
        UnsupportedMechanism: If no upper bound is known for the sampling.
    """
    if request.delta is not None:
        require_delta("delta", to_float("delta", request.delta))
    _require_one_noise(request)
    sampler, batch_size = _sampling(request)
    steps = _steps(request, sampler)
    delta = None if request.delta is None else to_float("delta", request.delta)
    public = request.dataset_size is not None and not isinstance(request.dataset_size, NoisyCount)
    if request.target_epsilon is None:
        noise = to_schedule("noise_multiplier", request.noise_multiplier)
        return TrainingPlan(sampler, batch_size, noise, steps, delta, size_is_public=public)
    if delta is None:
        raise InvalidArgument("delta", None, "given with target_epsilon, as 1e-5")
    if steps is None:
        raise InvalidArgument("epochs", None, "given (or steps) with target_epsilon")
    epsilon = to_float("target_epsilon", request.target_epsilon)
    counted = (batch_size.release,) if isinstance(batch_size, NoisyCount) else ()
    found = _calibrated(sampler, steps, counted, epsilon, delta)
    return TrainingPlan(
        sampler,
        batch_size,
        ConstantSchedule(found.value),
        steps,
        delta,
        calibration=found,
        size_is_public=public,
        releases=_releases(sampler, steps, found.value),
    )


def _require_one_noise(request: PlanRequest) -> None:
    """Refuse both or neither of a noise multiplier and a target epsilon."""
    given = (request.noise_multiplier is not None, request.target_epsilon is not None)
    if given == (True, True):
        raise InvalidArgument(
            "target_epsilon", request.target_epsilon, "None with a noise_multiplier: give one of "
            "them (private.stop_at(epsilon=..., delta=...) sets a budget for a given noise)",
        )  # fmt: skip
    if given == (False, False):
        raise InvalidArgument(
            "noise_multiplier", None, "given, or target_epsilon with delta and epochs, from which "
            "it is computed",
        )  # fmt: skip


def _sampling(request: PlanRequest) -> tuple[Sampler, float | NoisyCount]:
    """Return the sampler and the expected batch size, each given or computed from the other."""
    size = _size(request)
    given = request.expected_batch_size
    if isinstance(given, NoisyCount):
        if size is not None:
            raise InvalidArgument(
                "dataset_size", request.dataset_size, "None with expected_batch_size=NoisyCount"
            )
        size, given = given, None
    batch = None if given is None else to_float("expected_batch_size", given)
    if batch is not None:
        require_positive("expected_batch_size", batch)
    sampler = _given_sampler(request)
    if isinstance(size, NoisyCount):
        return _sampling_with_noisy_count(size, batch, sampler)
    if sampler is not None:
        return sampler, _batch_size_of(sampler, size, batch, request.loader_batch_size)
    if size is None:
        raise InvalidArgument(
            "sampling_rate", None, "given, or dataset_size (the public number of records, or "
            "NoisyCount(len(data))), unless there is a sampler",
        )  # fmt: skip
    if batch is None:
        batch = float(min(request.loader_batch_size or DEFAULT_BATCH_SIZE, size))
    if batch > size:
        raise InvalidArgument("expected_batch_size", batch, f"at most the dataset_size of {size}")
    return Poisson(batch / size), batch


def _size(request: PlanRequest) -> int | NoisyCount | None:
    """Return the number of records: public, to be released, or not given."""
    size = request.dataset_size
    if size is None or isinstance(size, NoisyCount):
        return size
    return _count("dataset_size", size)


def _count(name: str, value: object) -> int:
    """Return a whole number of at least 1, of Python, NumPy or torch, as an int."""
    try:
        number = value if isinstance(value, bool) else operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        number = cast(int, value)
    require_count(name, number)
    return number


def _given_sampler(request: PlanRequest) -> Sampler | None:
    """Return the given sampler, or Poisson sampling at the given rate; None without either."""
    sampler = request.sampler
    if sampler is None:
        rate = request.sampling_rate
        return None if rate is None else Poisson(to_float("sampling_rate", rate))
    require_object("sampler", sampler, "Poisson(0.01)")
    if not hasattr(sampler, "draw") or not hasattr(sampler, "release_at"):
        raise InvalidArgument("sampler", sampler, "a sampler, as Poisson(0.01)")
    return cast(Sampler, sampler)


def _sampling_with_noisy_count(
    count: NoisyCount, batch: float | None, sampler: Sampler | None
) -> tuple[Sampler, NoisyCount]:
    """Return a given sampler with a count, which is released once the ledger is there."""
    if sampler is None or batch is not None:
        given = None if sampler is None else "expected_batch_size and a noisy count"
        raise InvalidArgument(
            "sampling_rate", given, "given, without an expected batch size, if the number of "
            "records is a NoisyCount: the expected batch size is the rate times the noisy count",
        )  # fmt: skip
    return sampler, count


def _batch_size_of(
    sampler: Sampler, size: int | None, batch: float | None, loader_batch_size: int | None
) -> float:
    """Return the expected batch size of a sampler: given, or computed from the public size."""
    drawn = _drawn_on_average(sampler, size)
    if batch is None and drawn is None and loader_batch_size is None:
        raise InvalidArgument("expected_batch_size", None, f"given, or dataset_size {ALLOWED_SIZE}")
    if batch is None:
        return float(drawn or loader_batch_size or 0)
    # The divisor of sums may be rounded. Beyond that, one of the three numbers is a mistake.
    if drawn is not None and not abs(batch - drawn) <= max(1.0, 0.05 * drawn):
        raise InvalidArgument(
            "expected_batch_size", batch, f"about {drawn:g}, which the sampler draws of "
            f"{size} records on average (give two of rate, size and batch size)",
        )  # fmt: skip
    return batch


def _drawn_on_average(sampler: Sampler, size: int | None) -> float | None:
    """Return the mean number of drawn records; None if it cannot be known."""
    if size is None or not hasattr(sampler, "expected_batch_size"):
        return None
    return sampler.expected_batch_size(size)


def _steps(request: PlanRequest, sampler: Sampler) -> int | None:
    """Return the number of steps: given, or of the given epochs; None without either."""
    own = getattr(sampler, "steps", None)  # of a sampler whose run is one release
    if request.steps is not None:
        if request.epochs is not None:
            raise InvalidArgument("epochs", request.epochs, "None with steps: give one of them")
        return _count("steps", request.steps)
    if request.epochs is None:
        return cast("int | None", own)
    epochs = to_float("epochs", request.epochs)
    require_positive("epochs", epochs)
    if isinstance(sampler, Poisson):
        # The tolerance keeps a whole number of steps whole, whatever the rounding of the rate.
        return max(1, math.ceil(epochs / sampler.sampling_rate * (1 - 1e-12)))
    return math.ceil(epochs * sampler.steps_in_a_pass)


def _releases(sampler: Sampler, steps: int, noise_multiplier: float) -> dict[Release, int]:
    """Return how often each release is recorded in a number of steps."""
    found: dict[Release, int] = {}
    noise = Gaussian(noise_multiplier)
    for step in range(0, steps, sampler.steps_per_release):
        release = sampler.release_at(noise, step)
        if release is not None:
            found[release] = found.get(release, 0) + 1
    return found


def _calibrated(
    sampler: Sampler, steps: int, counted: tuple[Release, ...], epsilon: float, delta: float
) -> CalibrationResult[float]:
    """Return the least noise multiplier whose releases, with a noisy count, meet the target."""

    def build(noise_multiplier: float) -> Mechanism:
        releases = _releases(sampler, steps, noise_multiplier)
        parts = [Repeated(release, times) for release, times in releases.items()]
        return Composed((*counted, *parts))

    return calibrate.noise_multiplier(
        build, target_epsilon=epsilon, delta=delta, adjacency=sampler.adjacency
    )
