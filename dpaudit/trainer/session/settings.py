"""Settings of a training session, checked before anything is drawn or written."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import nn
from torch.optim import Optimizer

import dpaudit
from dpaudit.trainer.batches.samplers import Cyclic, Poisson, Sampler
from dpaudit.trainer.clip_rules import ClipRule, ConstantClipping, Scheduled
from dpaudit.trainer.engine import Clipping, Flat
from dpaudit.trainer.noise.correlated_noise import Banded
from dpaudit.trainer.noise.gradient_noise import GradientNoise, Prefetched, noise_kind
from dpaudit.trainer.noise.randomness import Keystream
from dpaudit.vocabulary.errors import (
    InvalidArgument,
    require_count,
    require_noise_within_float32,
    require_object,
    require_open_unit,
    require_positive,
)
from dpaudit.vocabulary.ledger import LedgerHeader
from dpaudit.vocabulary.mechanism import Gaussian
from dpaudit.vocabulary.privacy_terms import Unit

# Settings of every private step: fixed before training.

Schedule = Callable[[int], float]
"""From the number of the step, from 0, to a value; it must not depend on the records."""

COMPARED_STEPS = 4096
"""Number of first steps at which two schedules are compared."""


@dataclass(frozen=True)
class ConstantSchedule:
    """A schedule with one value for every step.

    Attributes:
        value: The value.
    """

    value: float

    def __call__(self, step: int) -> float:
        """Return the constant value.

        Args:
            step: Number of the step, which does not matter.

        Returns:
            The value.
        """
        return self.value


class VaryingSchedule:
    """A user's schedule, evaluated once per step: what is recorded is what is used.

    Args:
        name: Name of the setting, for messages.
        schedule: From the number of the step to a value.
    """

    def __init__(self, name: str, schedule: Schedule) -> None:
        self._name, self._schedule = name, schedule
        self._step: int | None = None
        self._value = 0.0

    def __call__(self, step: int) -> float:
        """Return the value of a step.

        Args:
            step: Number of the step, from 0.

        Returns:
            The schedule's value; the same for repeated calls with one step.

        Raises:
            InvalidArgument: If it is not a finite number above 0.
        """
        if step != self._step:
            self._value = to_float(self._name, self._schedule(step))
            require_positive(self._name, self._value)
            self._step = step
        return self._value

    def first_values(self, steps: int) -> list[float]:
        """Return the values of the first steps, as far as the schedule is defined.

        Args:
            steps: Largest number of values.

        Returns:
            The values up to the first step at which the schedule raises an error.
        """
        values: list[float] = []
        for step in range(steps):
            try:
                values.append(float(self._schedule(step)))
            except Exception:  # the schedule ends here; a step beyond its end raises the error
                break
        return values


def to_float(name: str, value: object) -> float:
    """Return a number of Python, NumPy or torch as a float.

    Args:
        name: Name of the setting, for the message.
        value: The number.

    Returns:
        The float.

    Raises:
        InvalidArgument: If the value is not a number; texts and booleans are not.
    """
    try:
        if not isinstance(value, str | bytes | bool):
            return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, RuntimeError):
        pass
    raise InvalidArgument(name, value, "a number")


def to_schedule(name: str, value: object) -> Schedule:
    """Return a number, or a function of the step, as a schedule.

    Args:
        name: Name of the setting, for messages.
        value: A number, or a function from the number of the step to a number.

    Returns:
        The schedule.

    Raises:
        InvalidArgument: If the value is neither, or not a finite number above 0.
    """
    if callable(value):
        return VaryingSchedule(name, value)
    constant = to_float(name, value)
    require_positive(name, constant)
    return ConstantSchedule(constant)


def to_clip_rule(clipping: object, clip_norm: object) -> ClipRule:
    """Return the clip rule from ``clipping``, or from ``clip_norm`` if that is None.

    Args:
        clipping: A clipping, a clip rule, or None.
        clip_norm: A number, or a schedule.

    Returns:
        The clip rule.

    Raises:
        InvalidArgument: If an argument is of another kind or out of range.
    """
    if clipping is None:
        norm = to_schedule("clip_norm", clip_norm)
        return (
            ConstantClipping(Flat(norm.value))
            if isinstance(norm, ConstantSchedule)
            else Scheduled(norm)
        )
    require_object("clipping", clipping, "PerLayer((1.0, 0.5))")
    if isinstance(clipping, ClipRule):
        return clipping
    if not hasattr(clipping, "factors") or not hasattr(clipping, "sensitivity"):
        raise InvalidArgument("clipping", clipping, "a kind of clipping, as PerLayer((1.0, 0.5))")
    return ConstantClipping(cast(Clipping, clipping))


@dataclass(frozen=True)
class NoisyCount:
    """An expected batch size that is computed from a noisy count of the records.

    Where one record may be added or removed, the number of records is secret. The count is
    released with Gaussian noise before the first step and recorded like any release. The expected
    batch size is the sampling rate times the noisy count.

    Attributes:
        records: The number of records, which is secret.
        noise_multiplier: Standard deviation of the noise on the count, in records.

    Example:
        >>> NoisyCount(records=60_000, noise_multiplier=100.0).noise_multiplier
        100.0
    """

    records: int
    noise_multiplier: float = 50.0

    def __post_init__(self) -> None:
        require_count("records", self.records, least=0)
        require_positive("noise_multiplier", self.noise_multiplier)

    @property
    def release(self) -> Gaussian:
        """The release that the ledger records before the count is drawn."""
        return Gaussian(self.noise_multiplier)


@dataclass(frozen=True)
class StepSettings:
    """The settings of every step, fixed before training.

    Attributes:
        sampler: Draws the records, or the users.
        noise_multiplier: Noise standard deviation over the sensitivity, for each step.
        noise: The kind of noise.
        expected_batch_size: The public constant that noisy sums are divided by, in records.
        physical_batch_size: Records in memory at once; None: as many as fit.
        unit: What neighboring data sets differ in: a record, or a user with all their records.

    Raises:
        InvalidArgument: If a value is out of range, or settings do not fit together.
    """

    sampler: Sampler
    noise_multiplier: Schedule
    noise: GradientNoise
    expected_batch_size: float
    physical_batch_size: int | None
    unit: Unit

    def __post_init__(self) -> None:
        require_positive("expected_batch_size", self.expected_batch_size)
        if self.physical_batch_size is not None:
            require_count("physical_batch_size", self.physical_batch_size)
        # Correlated noise is accounted for with cyclic participation alone, with equal bands.
        bands = self.sampler.bands if isinstance(self.sampler, Cyclic) else None
        if bands != (self.noise.bands if isinstance(self.noise, Banded) else None):
            raise InvalidArgument(
                "noise", self.noise, "Banded(bands) together with the sampler Cyclic(bands, ...)"
            )
        # One release covers several steps only if their noise multipliers are equal.
        if self.sampler.steps_per_release > 1 and not isinstance(
            self.noise_multiplier, ConstantSchedule
        ):
            raise InvalidArgument(
                "noise_multiplier", "a schedule", "constant where one release is recorded for "
                "several steps, as with BallsInBins, Shuffled and Cyclic",
            )  # fmt: skip


def describe_settings(
    sampler: Sampler,
    noise_multiplier: Schedule,
    noise: GradientNoise,
    rule: ClipRule,
    expected_batch_size: float | NoisyCount,
) -> dict[str, str]:
    """Return every step setting that privacy depends on, as one text per setting.

    Equal settings have equal texts in every process. Ranks compare them before the first step,
    and a checkpoint stores them for the run that resumes from it.

    Args:
        sampler: Draws the records, or the users.
        noise_multiplier: Noise multiplier of each step.
        noise: The kind of noise.
        rule: The clip rule.
        expected_batch_size: A public constant, or a noisy count.

    Returns:
        A text for each setting, without the secret number of records.
    """
    if isinstance(noise, Prefetched):  # the same noise, drawn earlier
        noise = noise.noise
    clipping: object = rule
    if isinstance(rule, Scheduled):
        clipping = _describe_schedule(rule.clip_norm)
    elif isinstance(rule, ConstantClipping):
        clipping = rule.clipping
    batch = expected_batch_size
    if isinstance(batch, NoisyCount):  # the number of records is secret and is not stored
        batch_size = f"from a noisy count, noise multiplier {batch.noise_multiplier:.17g}"
    else:
        batch_size = f"{batch:.17g}"
    return {
        "sampler": _describe_setting(sampler),
        "noise_multiplier": _describe_schedule(noise_multiplier),
        "noise": _describe_setting(noise),
        "clip_norm": clipping if isinstance(clipping, str) else _describe_setting(clipping),
        "expected_batch_size": batch_size,
    }


def _describe_schedule(schedule: Schedule) -> str:
    """Return a constant's value, or a digest of a schedule's first values."""
    if isinstance(schedule, VaryingSchedule):
        values = schedule.first_values(COMPARED_STEPS)
        return f"a schedule, SHA-256 {hashlib.sha256(repr(values).encode()).hexdigest()}"
    return f"{schedule(0):.17g}"


def _describe_setting(value: object) -> str:
    """Return a setting's repr; of a user's object without one, its type."""
    if dataclasses.is_dataclass(value) or type(value).__repr__ is not object.__repr__:
        return repr(value)
    return f"{type(value).__module__}.{type(value).__qualname__}"


@dataclass(frozen=True)
class AttachSettings:
    """The settings of a session, each checked when built.

    Attributes:
        sampler: Draws the records, or the users.
        noise_multiplier: Noise standard deviation over the sensitivity, for each step.
        noise: The kind of noise.
        rule: How gradients are clipped over the steps.
        expected_batch_size: A public constant, or a count that is still to be released.
        physical_batch_size: Records in memory at once; None: as many as fit.
        unit: What neighboring data sets differ in: a record, or a user with all their records.
        unaccounted: Uses of the records that no claim of the run covers.
        average_decay: Decay of the weights' average that is released; None: the last weights.
        assumed_public: What the ledger's header lists as public beside hyper-parameters.

    Raises:
        InvalidArgument: If a value is out of range, or settings do not fit together.
    """

    sampler: Sampler
    noise_multiplier: Schedule
    noise: GradientNoise
    rule: ClipRule
    expected_batch_size: float | NoisyCount
    physical_batch_size: int | None = None
    unit: Unit | str = Unit.RECORD
    unaccounted: Sequence[str] = ()
    average_decay: float | None = None
    assumed_public: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        uses = self.unaccounted
        if isinstance(uses, str) or not all(isinstance(use, str) for use in uses):
            raise InvalidArgument("unaccounted", uses, "a list of texts, as ['tuning']")
        object.__setattr__(self, "unaccounted", tuple(uses))
        object.__setattr__(self, "unit", _unit(self.unit))
        self.step_settings(1.0)  # its checks run before anything is written
        if isinstance(self.expected_batch_size, NoisyCount):
            if not isinstance(self.sampler, Poisson):
                raise InvalidArgument(
                    "expected_batch_size",
                    "a noisy count",
                    "a number, unless the sampler is Poisson",
                )
        else:
            self.step_settings(self.expected_batch_size)
        multiplier = self.noise_multiplier(0)
        require_noise_within_float32(self.rule.sensitivity(0, multiplier), multiplier)
        if self.average_decay is not None:
            require_open_unit("average_decay", self.average_decay)

    def step_settings(self, expected_batch_size: float) -> StepSettings:
        """Return the settings of every step, with a known expected batch size.

        Args:
            expected_batch_size: The public constant that noisy sums are divided by, in records.

        Returns:
            The step settings.
        """
        return StepSettings(
            sampler=self.sampler,
            noise_multiplier=self.noise_multiplier,
            noise=self.noise,
            expected_batch_size=expected_batch_size,
            physical_batch_size=self.physical_batch_size,
            unit=Unit(self.unit),
        )

    def settings_with(self, model: nn.Module, optimizer: Optimizer) -> dict[str, str]:
        """Return every setting that privacy depends on, as one text per setting.

        Args:
            model: The model; its parameters' names, shapes and types count.
            optimizer: The optimizer; its type counts.

        Returns:
            Texts that are equal where the settings are.
        """
        own = describe_settings(
            self.sampler, self.noise_multiplier, self.noise, self.rule, self.expected_batch_size
        )
        return {
            **own,
            "unit": str(self.unit),
            "unaccounted": repr(tuple(self.unaccounted)),
            "average_decay": repr(self.average_decay),
            "model": _describe_model(model),
            "optimizer": f"{type(optimizer).__module__}.{type(optimizer).__qualname__}",
        }

    def header(self, stream: Keystream) -> LedgerHeader:
        """Return the header of a new ledger.

        Args:
            stream: The session's keystream, for the kind of randomness.

        Returns:
            A header with a fresh random run identifier.
        """
        batch = () if isinstance(self.expected_batch_size, NoisyCount) else ("expected batch size",)
        return LedgerHeader(
            adjacency=self.sampler.adjacency,
            sampling=self.sampler.kind,
            randomness=stream.randomness,
            schedule_fixed_in_advance=True,
            clip_norm=self.rule.at(0).sensitivity,
            versions={
                "dpaudit": dpaudit.__version__,
                "python": platform.python_version(),
                "torch": str(torch.__version__),
            },
            run=os.urandom(16).hex(),
            unaccounted=tuple(self.unaccounted),
            assumed_public=(*self.assumed_public, *batch, "hyper-parameters"),
            unit=Unit(self.unit),
            noise=noise_kind(self.noise),
        )


def _unit(unit: Unit | str) -> Unit:
    """Return the unit by its value; refuse an unknown one."""
    allowed = [one.value for one in Unit]
    if unit not in allowed:
        raise InvalidArgument("unit", unit, f"one of {', '.join(allowed)}")
    return Unit(unit)


def _describe_model(model: nn.Module) -> str:
    """Return the number of a model's parameters, and a digest of names, shapes and types."""
    parts = [f"{name} {tuple(p.shape)} {p.dtype}" for name, p in model.named_parameters()]
    digest = hashlib.sha256("; ".join(parts).encode()).hexdigest()
    return f"{len(parts)} parameters, SHA-256 of names, shapes and types {digest}"
