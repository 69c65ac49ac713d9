"""What every private step does: fixed before training, and checked before anything is drawn."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable
from dataclasses import dataclass

from dpaudit.trainer.added_noise import AddedNoise, AheadOfTime, Banded, Independent
from dpaudit.trainer.clip_rules import Always, ClipRule, Scheduled
from dpaudit.trainer.sampling import Cyclic, Sampler
from dpaudit.vocabulary.errors import InvalidArgument, require_count, require_positive
from dpaudit.vocabulary.unit import Unit

Schedule = Callable[[int], float]
"""From the number of the step to a value; fixed before training, blind to the records."""

COMPARED_STEPS = 4096
"""Steps at which two schedules are compared."""


@dataclass(frozen=True)
class Constant:
    """The same in every step."""

    value: float

    def __call__(self, step: int) -> float:
        """Return the value."""
        return self.value


class Varying:
    """A schedule of your own, asked once per step: what is recorded is what is used.

    Args:
        name: Of the setting, for messages.
        schedule: From the number of the step to a value.
    """

    def __init__(self, name: str, schedule: Schedule) -> None:
        self._name, self._schedule = name, schedule
        self._step: int | None = None
        self._value = 0.0

    def __call__(self, step: int) -> float:
        """Return the value of a step.

        Raises:
            InvalidArgument: It is no finite number above 0.
        """
        if step != self._step:
            self._value = number(self._name, self._schedule(step))
            require_positive(self._name, self._value)
            self._step = step
        return self._value

    def first_values(self, steps: int) -> list[float]:
        """Return the values of the first steps, as far as the schedule has them."""
        values: list[float] = []
        for step in range(steps):
            try:
                values.append(float(self._schedule(step)))
            except Exception:  # the schedule ends here; a step beyond its end will say why
                break
        return values


def number(name: str, value: object) -> float:
    """Return a number of Python, NumPy or torch as a float.

    Raises:
        InvalidArgument: It is none.
    """
    try:
        if not isinstance(value, str | bytes | bool):
            return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, RuntimeError):
        pass
    raise InvalidArgument(name, value, "a number")


def schedule_of(name: str, value: object) -> Schedule:
    """Return a number, or a function of the step, as a schedule.

    Raises:
        InvalidArgument: It is neither, or no finite number above 0.
    """
    if callable(value):
        return Varying(name, value)
    constant = number(name, value)
    require_positive(name, constant)
    return Constant(constant)


@dataclass(frozen=True)
class NoisyCount:
    """An expected batch size that is made from a noisy count of the records.

    How many records there are is a secret where one may be added or removed. The count is
    released with Gaussian noise before the first step, and recorded like any release; the
    expected batch size is the sampling rate times that.

    Attributes:
        records: How many there are: the secret.
        noise_multiplier: Standard deviation of the noise, in records.
    """

    records: int
    noise_multiplier: float = 50.0

    def __post_init__(self) -> None:
        require_count("records", self.records, least=0)
        require_positive("noise_multiplier", self.noise_multiplier)


@dataclass(frozen=True)
class Recipe:
    """What every step does, fixed before training.

    Attributes:
        sampler: Draws the records, or the users.
        noise_multiplier: Of each step.
        noise: What is added.
        expected_batch_size: The public constant that the noisy sum is divided by.
        physical_batch_size: Records in memory at once; None: all.
        unit: What one neighbour more or less is.
    """

    sampler: Sampler
    noise_multiplier: Schedule
    noise: AddedNoise
    expected_batch_size: float
    physical_batch_size: int | None
    unit: Unit

    def __post_init__(self) -> None:
        require_positive("expected_batch_size", self.expected_batch_size)
        if self.physical_batch_size is not None:
            require_count("physical_batch_size", self.physical_batch_size)
        bands = self.sampler.bands if isinstance(self.sampler, Cyclic) else None
        if bands != (self.noise.bands if isinstance(self.noise, Banded) else None):
            raise InvalidArgument(
                "noise", self.noise, "Banded(bands) together with the sampler Cyclic(bands, ...)"
            )
        if self.sampler.steps_a_booking > 1 and not isinstance(self.noise_multiplier, Constant):
            raise InvalidArgument(
                "noise_multiplier", "a schedule", "constant where one release is recorded for "
                "several steps, as with BallsInBins, Shuffled and Cyclic",
            )  # fmt: skip


def described(
    sampler: Sampler,
    noise_multiplier: Schedule,
    noise: AddedNoise,
    rule: ClipRule,
    expected_batch_size: float | NoisyCount,
) -> dict[str, str]:
    """Return every setting of a step that its privacy depends on, by name, in words.

    Equal settings have equal words in every process: ranks compare them before the first
    step, and a checkpoint keeps them for the run that goes on from it.
    """
    if isinstance(noise, AheadOfTime):  # the same noise, drawn at another time
        noise = Independent()
    clipping: object = rule
    if isinstance(rule, Scheduled):
        clipping = _values(rule.clip_norm)
    elif isinstance(rule, Always):
        clipping = rule.clipping
    batch = expected_batch_size
    if isinstance(batch, NoisyCount):  # the number of records stays out of files
        batch_size = f"from a noisy count, noise multiplier {batch.noise_multiplier:.17g}"
    else:
        batch_size = f"{batch:.17g}"
    return {
        "sampler": _words(sampler),
        "noise_multiplier": _values(noise_multiplier),
        "noise": _words(noise),
        "clip_norm": clipping if isinstance(clipping, str) else _words(clipping),
        "expected_batch_size": batch_size,
    }


def _values(schedule: Schedule) -> str:
    """Return a constant's value, or a digest of a schedule's first values."""
    if isinstance(schedule, Varying):
        values = schedule.first_values(COMPARED_STEPS)
        return f"a schedule, SHA-256 {hashlib.sha256(repr(values).encode()).hexdigest()}"
    return f"{schedule(0):.17g}"


def _words(value: object) -> str:
    """Return what a setting is; of an object of your own, which may have no words, its type."""
    if dataclasses.is_dataclass(value) or type(value).__repr__ is not object.__repr__:
        return repr(value)
    return f"{type(value).__module__}.{type(value).__qualname__}"
