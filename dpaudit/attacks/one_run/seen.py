"""What one run showed of its gradient canaries."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from dpaudit.attacks.one_run.likelihood import (
    ClaimedSteps,
    fitted_noise_factor,
    likelihood_ratio_scores,
)
from dpaudit.vocabulary.errors import InvalidArgument

Array = NDArray[np.float64]
Bits = NDArray[np.bool_]

EVERY_STEP = "every step"
"""What was observed."""


class Scored(Protocol):
    """One score a canary, a function of what was observed alone."""

    @property
    def name(self) -> str:
        """What was observed, in words."""

    @property
    def scores(self) -> Array:
        """Shape ``(m,)``: positive where included is likelier, the surer the farther from 0."""

    @property
    def included(self) -> Bits:
        """Shape ``(m,)``: the canaries' secret bits."""


@dataclass(frozen=True)
class Seen:
    """Observations of canaries, each in a direction of its own.

    Attributes:
        observations: Shape ``(steps, m)``: what each noisy sum showed, over the clip norm.
        included: Shape ``(m,)``: the canaries' secret bits.
        steps: The claimed mechanism of each row.
        joined: Shape ``(steps, m)``: whether the canary was in the batch; None where nobody
            wrote it down.
    """

    observations: Array
    included: Bits
    steps: ClaimedSteps
    joined: Bits | None = None

    def __post_init__(self) -> None:
        if self.observations.ndim != 2 or self.observations.shape[1] != len(self.included):
            raise InvalidArgument(
                "observations",
                f"shape {self.observations.shape}",
                f"one column for each of {len(self.included)} canaries",
            )
        if len(self.observations) == 0:
            raise InvalidArgument("observations", "no step", "one row for each step")
        if len(self.included) == 0:
            raise InvalidArgument("included", "no canary", "one bit for each canary")
        if self.joined is not None:
            self._require_possible(self.joined)

    def _require_possible(self, joined: Bits) -> None:
        if joined.shape != self.observations.shape:
            raise InvalidArgument("joined", f"shape {joined.shape}", "that of the observations")
        if (joined & ~self.included).any():
            raise InvalidArgument("joined", "a canary that was left out", "included canaries alone")

    @property
    def name(self) -> str:
        """What was observed."""
        return EVERY_STEP

    @property
    def canaries(self) -> int:
        """How many there are, m."""
        return len(self.included)

    @cached_property
    def scores(self) -> Array:
        """Log-likelihood ratios, shape ``(m,)``, under the noise that the observations fit.

        The bits are not used: a score is a function of observations alone.
        """
        fitted = fitted_noise_factor(self.observations, self.steps)
        return likelihood_ratio_scores(self.observations, self.steps.with_noise_factor(fitted))
