"""How clipping changes from step to step: not at all, by a schedule, or by what was released.

A rule that learns the clip norm from the records must release what it learns: it does so in
further coordinates of the noisy sum, which enter its sensitivity and share its noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from dpaudit.trainer.engine import Clipped, Clipping, Flat
from dpaudit.trainer.engine.clipping import SHRINK
from dpaudit.vocabulary.errors import InvalidArgument, require_open_unit, require_positive


@runtime_checkable
class ClipRule(Protocol):
    """Clipping over the steps."""

    @property
    def learned(self) -> float | None:
        """The clip norm for a checkpoint to keep; None: nothing is learned."""

    def at(self, step: int) -> Clipping:
        """Return how the gradients of ``step`` are clipped."""

    def sensitivity(self, step: int, noise_multiplier: float) -> float:
        """Return the largest norm of what one record adds, further coordinates included."""

    def beside(self, clipped: Clipped, noise_multiplier: float) -> dict[str, Tensor]:
        """Return the sum's further coordinates, by a name that no parameter has."""

    def after(
        self, noisy: Mapping[str, Tensor], noise_multiplier: float, expected_batch_size: float
    ) -> ClipRule:
        """Return the rule for the next step, from what this one released."""

    def at_norm(self, clip_norm: float | None) -> ClipRule:
        """Return the rule as it stood in a checkpoint, where what it had learned is kept."""


@dataclass(frozen=True)
class Always:
    """The same clipping in every step."""

    clipping: Clipping
    learned = None

    def at(self, step: int) -> Clipping:
        """See ``ClipRule``."""
        return self.clipping

    def sensitivity(self, step: int, noise_multiplier: float) -> float:
        """See ``ClipRule``."""
        return self.clipping.sensitivity

    def beside(self, clipped: Clipped, noise_multiplier: float) -> dict[str, Tensor]:
        """See ``ClipRule``."""
        return {}

    def after(
        self, noisy: Mapping[str, Tensor], noise_multiplier: float, expected_batch_size: float
    ) -> Always:
        """See ``ClipRule``."""
        return self

    def at_norm(self, clip_norm: float | None) -> Always:
        """See ``ClipRule``."""
        return self


@dataclass(frozen=True)
class Scheduled:
    """Another clip norm in each step, fixed before training and blind to the records."""

    clip_norm: Callable[[int], float]
    learned = None

    def at(self, step: int) -> Clipping:
        """See ``ClipRule``."""
        return Flat(self.clip_norm(step))

    def sensitivity(self, step: int, noise_multiplier: float) -> float:
        """See ``ClipRule``."""
        return self.at(step).sensitivity

    def beside(self, clipped: Clipped, noise_multiplier: float) -> dict[str, Tensor]:
        """See ``ClipRule``."""
        return {}

    def after(
        self, noisy: Mapping[str, Tensor], noise_multiplier: float, expected_batch_size: float
    ) -> Scheduled:
        """See ``ClipRule``."""
        return self

    def at_norm(self, clip_norm: float | None) -> Scheduled:
        """See ``ClipRule``."""
        return self


COUNT = "records within the clip norm"


@dataclass(frozen=True)
class Quantile:
    """A clip norm that follows a quantile of the gradients' norms.

    Andrew et al. 2021, arXiv:1905.03871, Algorithm 1: each step releases how many records
    were within the clip norm, as one more coordinate of the sum. A record counts as 1/2 or
    -1/2, so with a weight w on the coordinate one record adds at most
    sqrt(C^2 + (w / 2)^2); w is such that the count gets noise of ``count_noise`` records.

    Attributes:
        clip_norm: Where it starts, and where it is.
        count_noise: Standard deviation of the noise on the count, in records; the paper
            takes a twentieth of the expected batch size.
        target: Share of records that shall be within the clip norm.
        learning_rate: Of the logarithm of the clip norm.
    """

    clip_norm: float
    count_noise: float
    target: float = 0.5
    learning_rate: float = 0.2

    def __post_init__(self) -> None:
        require_positive("clip_norm", self.clip_norm)
        require_positive("count_noise", self.count_noise)
        require_open_unit("target", self.target)
        require_positive("learning_rate", self.learning_rate)

    @property
    def learned(self) -> float:
        """See ``ClipRule``."""
        return self.clip_norm

    def at(self, step: int) -> Clipping:
        """See ``ClipRule``."""
        return Flat(self.clip_norm)

    def sensitivity(self, step: int, noise_multiplier: float) -> float:
        """See ``ClipRule``."""
        return math.hypot(self.clip_norm, self._weight(noise_multiplier) / 2)

    def beside(self, clipped: Clipped, noise_multiplier: float) -> dict[str, Tensor]:
        """See ``ClipRule``: a record that is left out adds nothing here either."""
        norms = clipped.norms[torch.isfinite(clipped.norms)]
        within = (norms <= self.clip_norm).double() - 0.5
        # Rounded to float32 below: a hair less keeps a record inside the sensitivity.
        coordinate = SHRINK * self._weight(noise_multiplier) * within.sum()
        device = next(iter(clipped.sums.values())).device  # an empty batch has its norms elsewhere
        return {COUNT: coordinate.float().reshape(1).to(device)}

    def after(
        self, noisy: Mapping[str, Tensor], noise_multiplier: float, expected_batch_size: float
    ) -> Quantile:
        """See ``ClipRule``."""
        centred = float(noisy[COUNT]) / (SHRINK * self._weight(noise_multiplier))
        share = 0.5 + centred / expected_batch_size
        # Noise alone must not carry the clip norm out of all bounds.
        change = min(2.0, max(-2.0, self.learning_rate * (share - self.target)))
        return replace(self, clip_norm=self.clip_norm * math.exp(-change))

    def at_norm(self, clip_norm: float | None) -> Quantile:
        """See ``ClipRule``."""
        return self if clip_norm is None else replace(self, clip_norm=clip_norm)

    def _weight(self, noise_multiplier: float) -> float:
        """Return w: noise_multiplier sqrt(C^2 + w^2 / 4) / w is ``count_noise``."""
        if not self.count_noise > noise_multiplier / 2:
            raise InvalidArgument(
                "count_noise",
                self.count_noise,
                f"above half of noise_multiplier {noise_multiplier}",
            )
        spare = math.sqrt(self.count_noise**2 - noise_multiplier**2 / 4)
        return noise_multiplier * self.clip_norm / spare
