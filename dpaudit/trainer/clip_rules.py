"""Clip rules: constant clipping, a schedule of clip norms, and adaptive clipping.

A rule that learns the clip norm from the records must release what it learns. It does so in
further coordinates of the noisy sum, which count towards the sensitivity and get its noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from dpaudit.trainer.engine import ClippedSums, Clipping, Flat
from dpaudit.trainer.engine.clipping import ROUNDING_MARGIN
from dpaudit.vocabulary.errors import InvalidArgument, require_open_unit, require_positive


@runtime_checkable
class ClipRule(Protocol):
    """How gradients are clipped over the steps of a run."""

    @property
    def learned_clip_norm(self) -> float | None:
        """The clip norm that a checkpoint stores; None if the rule learns nothing."""

    def at(self, step: int) -> Clipping:
        """Return how the gradients of ``step`` are clipped.

        Args:
            step: Number of the step, from 0.

        Returns:
            The clipping of one step.
        """

    def sensitivity(self, step: int, noise_multiplier: float) -> float:
        """Return the largest L2 norm of what one record adds, further coordinates included.

        Args:
            step: Number of the step, from 0.
            noise_multiplier: Noise standard deviation over the sensitivity, in that step.

        Returns:
            L2 norm, above 0.
        """

    def extra_coordinates(self, clipped: ClippedSums, noise_multiplier: float) -> dict[str, Tensor]:
        """Return the further coordinates of the sum.

        Args:
            clipped: The clipped sums of the step, and the norms of its records' gradients.
            noise_multiplier: Noise standard deviation over the sensitivity, in that step.

        Returns:
            Tensors by a name that no parameter has; empty if there are none.
        """

    def updated(
        self, noisy: Mapping[str, Tensor], noise_multiplier: float, expected_batch_size: float
    ) -> ClipRule:
        """Return the rule for the next step, computed from released values alone.

        Args:
            noisy: The released sums per parameter, and further coordinates.
            noise_multiplier: Noise standard deviation over the sensitivity, in that step.
            expected_batch_size: The public constant that noisy sums are divided by, in records.

        Returns:
            The rule for the next step.
        """

    def with_clip_norm(self, clip_norm: float | None) -> ClipRule:
        """Return the rule in the state of a checkpoint.

        Args:
            clip_norm: The checkpoint's learned clip norm; None if nothing was learned.

        Returns:
            The rule to resume with.
        """


@dataclass(frozen=True)
class ConstantClipping:
    """The same clipping in every step.

    Attributes:
        clipping: The clipping of each step.

    Example:
        >>> from dpaudit.trainer.engine import Flat
        >>> ConstantClipping(Flat(1.5)).sensitivity(0, noise_multiplier=1.0)
        1.5
    """

    clipping: Clipping
    learned_clip_norm = None

    def at(self, step: int) -> Clipping:
        """Return the one clipping, whatever the step.

        Args:
            step: Number of the step, from 0.

        Returns:
            The clipping of one step.
        """
        return self.clipping

    def sensitivity(self, step: int, noise_multiplier: float) -> float:
        """Return the sensitivity of the one clipping.

        Args:
            step: Number of the step, from 0.
            noise_multiplier: Noise standard deviation over the sensitivity, in that step.

        Returns:
            L2 norm, above 0.
        """
        return self.clipping.sensitivity

    def extra_coordinates(self, clipped: ClippedSums, noise_multiplier: float) -> dict[str, Tensor]:
        """Return no further coordinates.

        Args:
            clipped: The clipped sums of the step, and the norms of its records' gradients.
            noise_multiplier: Noise standard deviation over the sensitivity, in that step.

        Returns:
            An empty dict.
        """
        return {}

    def updated(
        self, noisy: Mapping[str, Tensor], noise_multiplier: float, expected_batch_size: float
    ) -> ConstantClipping:
        """Return this rule: nothing is learned.

        Args:
            noisy: The released sums per parameter, and further coordinates.
            noise_multiplier: Noise standard deviation over the sensitivity, in that step.
            expected_batch_size: The public constant that noisy sums are divided by, in records.

        Returns:
            This rule.
        """
        return self

    def with_clip_norm(self, clip_norm: float | None) -> ConstantClipping:
        """Return this rule: a checkpoint stores no clip norm of it.

        Args:
            clip_norm: The checkpoint's learned clip norm; None if nothing was learned.

        Returns:
            This rule.
        """
        return self


@dataclass(frozen=True)
class Scheduled:
    """A clip norm that varies with the step, fixed before training and independent of the records.

    Attributes:
        clip_norm: From the number of the step, from 0, to the clip norm.

    Example:
        >>> rule = Scheduled(lambda step: 1.0 if step < 100 else 0.5)
        >>> rule.sensitivity(100, noise_multiplier=1.0)
        0.5
    """

    clip_norm: Callable[[int], float]
    learned_clip_norm = None

    def at(self, step: int) -> Clipping:
        """Return flat clipping at the schedule's clip norm.

        Args:
            step: Number of the step, from 0.

        Returns:
            The clipping of one step.
        """
        return Flat(self.clip_norm(step))

    def sensitivity(self, step: int, noise_multiplier: float) -> float:
        """Return the schedule's clip norm at ``step``.

        Args:
            step: Number of the step, from 0.
            noise_multiplier: Noise standard deviation over the sensitivity, in that step.

        Returns:
            L2 norm, above 0.
        """
        return self.at(step).sensitivity

    def extra_coordinates(self, clipped: ClippedSums, noise_multiplier: float) -> dict[str, Tensor]:
        """Return no further coordinates.

        Args:
            clipped: The clipped sums of the step, and the norms of its records' gradients.
            noise_multiplier: Noise standard deviation over the sensitivity, in that step.

        Returns:
            An empty dict.
        """
        return {}

    def updated(
        self, noisy: Mapping[str, Tensor], noise_multiplier: float, expected_batch_size: float
    ) -> Scheduled:
        """Return this rule: nothing is learned.

        Args:
            noisy: The released sums per parameter, and further coordinates.
            noise_multiplier: Noise standard deviation over the sensitivity, in that step.
            expected_batch_size: The public constant that noisy sums are divided by, in records.

        Returns:
            This rule.
        """
        return self

    def with_clip_norm(self, clip_norm: float | None) -> Scheduled:
        """Return this rule: a checkpoint stores no clip norm of it.

        Args:
            clip_norm: The checkpoint's learned clip norm; None if nothing was learned.

        Returns:
            This rule.
        """
        return self


WITHIN_CLIP_NORM = "records within the clip norm"


@dataclass(frozen=True)
class Quantile:
    """Adaptive clipping: the clip norm follows a quantile of the gradients' norms.

    Each step releases the number of records within the clip norm, as one more coordinate of the
    sum. A record adds 1/2 or -1/2 to the count. With a weight w on the coordinate, one record
    adds at most sqrt(C^2 + (w / 2)^2) to the sum. The weight w is chosen such that the count
    gets noise of ``count_noise`` records.

    Attributes:
        clip_norm: The clip norm C of the next step; initially the first step's.
        count_noise: Standard deviation of the noise on the count, in records; the paper uses a
            twentieth of the expected batch size. It must exceed half of the noise multiplier.
        target: Fraction of records that should be within the clip norm, in (0, 1).
        learning_rate: Learning rate of the logarithm of the clip norm.

    References:
        Andrew et al. (2021), arXiv:1905.03871, Algorithm 1.

    Example:
        >>> rule = Quantile(clip_norm=1.0, count_noise=10.0)
        >>> round(rule.sensitivity(0, noise_multiplier=1.0), 4)
        1.0013
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
    def learned_clip_norm(self) -> float:
        """The clip norm of the next step, which a checkpoint stores."""
        return self.clip_norm

    def at(self, step: int) -> Clipping:
        """Return flat clipping at the present clip norm.

        Args:
            step: Number of the step, from 0.

        Returns:
            The clipping of one step.
        """
        return Flat(self.clip_norm)

    def sensitivity(self, step: int, noise_multiplier: float) -> float:
        """Return sqrt(C^2 + (w / 2)^2), the norm with the count's coordinate.

        Args:
            step: Number of the step, from 0.
            noise_multiplier: Noise standard deviation over the sensitivity, in that step.

        Returns:
            L2 norm, above 0.

        Raises:
            InvalidArgument: If ``count_noise`` is not above half of ``noise_multiplier``.
        """
        return math.hypot(self.clip_norm, self._weight(noise_multiplier) / 2)

    def extra_coordinates(self, clipped: ClippedSums, noise_multiplier: float) -> dict[str, Tensor]:
        """Return the weighted count of records within the clip norm.

        Args:
            clipped: The clipped sums of the step, and the norms of its records' gradients.
            noise_multiplier: Noise standard deviation over the sensitivity, in that step.

        Returns:
            One tensor of shape ``(1,)``, float32. A record whose gradient is not finite adds 0,
            as it does to the sums.

        Raises:
            InvalidArgument: If ``count_noise`` is not above half of ``noise_multiplier``.
        """
        norms = clipped.norms[torch.isfinite(clipped.norms)]
        within = (norms <= self.clip_norm).double() - 0.5
        # The coordinate is rounded to float32 below: the margin keeps a record's part within the
        # sensitivity.
        coordinate = ROUNDING_MARGIN * self._weight(noise_multiplier) * within.sum()
        device = next(iter(clipped.sums.values())).device  # norms of an empty batch are on the CPU
        return {WITHIN_CLIP_NORM: coordinate.float().reshape(1).to(device)}

    def updated(
        self, noisy: Mapping[str, Tensor], noise_multiplier: float, expected_batch_size: float
    ) -> Quantile:
        """Return the rule with the clip norm moved towards the target quantile.

        Args:
            noisy: The released sums per parameter, and further coordinates.
            noise_multiplier: Noise standard deviation over the sensitivity, in that step.
            expected_batch_size: The public constant that noisy sums are divided by, in records.

        Returns:
            The rule with clip norm C exp(-learning_rate (share - target)); the exponent is clamped
            to [-2, 2].

        Raises:
            InvalidArgument: If ``count_noise`` is not above half of ``noise_multiplier``.
        """
        centered = float(noisy[WITHIN_CLIP_NORM]) / (
            ROUNDING_MARGIN * self._weight(noise_multiplier)
        )
        share = 0.5 + centered / expected_batch_size  # each record counted as -1/2 or 1/2
        # Clamped, so that one large noise draw cannot make the clip norm overflow or vanish.
        change = min(2.0, max(-2.0, self.learning_rate * (share - self.target)))
        return replace(self, clip_norm=self.clip_norm * math.exp(-change))

    def with_clip_norm(self, clip_norm: float | None) -> Quantile:
        """Return the rule with a checkpoint's clip norm.

        Args:
            clip_norm: The checkpoint's learned clip norm; None if nothing was learned.

        Returns:
            The rule with that clip norm; this rule if it is None.
        """
        return self if clip_norm is None else replace(self, clip_norm=clip_norm)

    def _weight(self, noise_multiplier: float) -> float:
        """Return w, which solves noise_multiplier sqrt(C^2 + w^2 / 4) / w = ``count_noise``."""
        if not self.count_noise > noise_multiplier / 2:
            raise InvalidArgument(
                "count_noise",
                self.count_noise,
                f"above half of noise_multiplier {noise_multiplier}",
            )
        # Squared: noise_multiplier^2 C^2 = w^2 (count_noise^2 - noise_multiplier^2 / 4).
        root = math.sqrt(self.count_noise**2 - noise_multiplier**2 / 4)
        return noise_multiplier * self.clip_norm / root
