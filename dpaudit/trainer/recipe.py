"""What every private step does: fixed before training, and checked before anything is drawn."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from dpaudit.trainer.added_noise import AddedNoise, Banded
from dpaudit.trainer.sampling import Cyclic, Sampler
from dpaudit.vocabulary.errors import InvalidArgument, require_count, require_positive

Schedule = Callable[[int], float]
"""From the number of the step to a value; fixed before training, blind to the records."""


@dataclass(frozen=True)
class Constant:
    """The same in every step."""

    value: float

    def __post_init__(self) -> None:
        require_positive("noise_multiplier", self.value)

    def __call__(self, step: int) -> float:
        """Return the value."""
        return self.value


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
    unit: str

    def __post_init__(self) -> None:
        require_positive("expected_batch_size", self.expected_batch_size)
        if self.physical_batch_size is not None:
            require_count("physical_batch_size", self.physical_batch_size)
        bands = self.sampler.bands if isinstance(self.sampler, Cyclic) else None
        if bands != (self.noise.bands if isinstance(self.noise, Banded) else None):
            raise InvalidArgument(
                "noise", self.noise, "Banded(bands) together with the sampler Cyclic(bands, ...)"
            )
        if bands is not None and not isinstance(self.noise_multiplier, Constant):
            raise InvalidArgument("noise_multiplier", "a schedule", "constant with banded noise")
