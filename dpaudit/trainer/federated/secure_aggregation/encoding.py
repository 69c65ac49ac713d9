"""Updates as integer vectors: clipped, scaled, and rounded at random under a bound on the norm.

An update is clipped to the L2 norm C and scaled so that C becomes ``levels`` integer steps.
Each coordinate is rounded up with probability equal to its fraction, so the mean is kept. The
rounding of the whole vector is repeated until its squared norm is within the limit

    min{ (L + sqrt(d))^2,  L^2 + d/4 + sqrt(2 ln(1/b)) (L + sqrt(d)/2) },

with L the levels, d the dimension, and b a bound on the probability of a repetition. The check
is made on integers: the sensitivity holds whatever the floats before it did.

Adaptive clipping counts the updates within the clip norm. The count is one more coordinate: plus
h steps for an update within it, minus h for another one. Its square adds to the limit.

References:
    Kairouz, Liu & Steinke (2021), arXiv:2102.06387, conditional randomized rounding; Andrew et
    al. (2021), arXiv:1905.03871, for the centered count.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpaudit.trainer.noise.randomness import Keystream, Purpose
from dpaudit.vocabulary.errors import (
    AccountingError,
    InvalidArgument,
    require_count,
    require_open_unit,
    require_positive,
)

LARGEST_NORM = 2.0**30
"""Squares of integer vectors below this norm fit in int64."""

MOST_ROUNDINGS = 10_000


@dataclass(frozen=True)
class UpdateEncoding:
    """How an update becomes an integer vector, and how much one update can move their sum.

    Attributes:
        clip_norm: Largest L2 norm of an update, C; above 0.
        levels: Number of integer steps in the clip norm, L; at least 1.
        dimension: Number of coordinates, d; at least 1.
        rounding_failure: Bound b on the probability that a rounding is repeated, in (0, 1).
        count_steps: The h of the count of updates within the clip norm, in integer steps; 0:
            there is no count.

    Raises:
        InvalidArgument: If a value is out of its range, or L + sqrt(d) exceeds 2^30.

    Example:
        >>> encoding = UpdateEncoding(clip_norm=1.0, levels=100, dimension=4)
        >>> encoding.encode(np.array([3.0, 0.0, 4.0, 0.0]), Keystream.seeded(0), 0)
        array([60,  0, 80,  0])
        >>> encoding.decode(np.array([60, 0, 80, 0]))
        array([0.6, 0. , 0.8, 0. ])
    """

    clip_norm: float
    levels: int
    dimension: int
    rounding_failure: float = math.exp(-0.5)
    count_steps: int = 0

    def __post_init__(self) -> None:
        require_positive("clip_norm", self.clip_norm)
        require_count("levels", self.levels)
        require_count("dimension", self.dimension)
        require_open_unit("rounding_failure", self.rounding_failure)
        require_count("count_steps", self.count_steps, least=0)
        if self.count_steps > LARGEST_NORM:
            raise InvalidArgument("count_steps", self.count_steps, "at most 2^30")
        if self.levels + math.sqrt(self.dimension) > LARGEST_NORM:
            raise InvalidArgument(
                "clip_levels", self.levels, "at most 2^30 less the root of the dimension"
            )

    @property
    def grid(self) -> float:
        """One integer step, in units of the update."""
        return self.clip_norm / self.levels

    @property
    def length(self) -> int:
        """Number of integers of an encoded update, that of the count included."""
        return self.dimension + (self.count_steps > 0)

    @cached_property
    def squared_norm_limit(self) -> int:
        """Largest squared L2 norm of a rounded update, without the count; a whole number."""
        length, root = self.levels, math.sqrt(self.dimension)
        slack = math.sqrt(-2 * math.log(self.rounding_failure)) * (length + root / 2)
        return math.floor(min((length + root) ** 2, length**2 + self.dimension / 4 + slack))

    @property
    def largest_entry(self) -> int:
        """Largest magnitude of one coordinate of an encoded update."""
        return max(self.levels + 1, self.count_steps)

    @property
    def l2_sensitivity(self) -> float:
        """Largest L2 norm of an encoded update, in integer steps; rounded up."""
        squares = self.squared_norm_limit + self.count_steps**2
        return math.nextafter(math.sqrt(squares), math.inf)

    @property
    def l1_sensitivity(self) -> float:
        """Largest L1 norm of an encoded update, in integer steps; rounded up.

        At most sqrt(d) times the L2 norm, and at most its square, as the entries are whole. The
        count adds h.
        """
        limit = self.squared_norm_limit
        by_dimension = math.sqrt(self.dimension * limit) * (1 + 2.0**-50)
        update = min(by_dimension, float(limit))
        if not self.count_steps:
            return update
        return math.nextafter(update + self.count_steps, math.inf)

    def encode(
        self, update: NDArray[np.floating[Any]], stream: Keystream, round_number: int
    ) -> NDArray[np.int64]:
        """Return a clipped, scaled and randomly rounded update.

        Args:
            update: Shape ``(dimension,)``, finite.
            stream: Keystream of the participant.
            round_number: Number of the round, from 0.

        Returns:
            Whole numbers, shape ``(length,)``: the update, of squared L2 norm at most
            ``squared_norm_limit``, then the count, if there is one. Each is at most
            ``largest_entry`` in magnitude.

        Raises:
            InvalidArgument: If the update has another shape or holds NaN or infinity.
            AccountingError: If 10,000 roundings exceed the limit.
        """
        if update.shape != (self.dimension,) or not np.isfinite(update).all():
            raise InvalidArgument(
                "update", f"shape {update.shape}", f"finite and of shape ({self.dimension},)"
            )
        floor, fraction = self._scaled(update.astype(np.float64))
        for coins in self._uniforms(stream, round_number):
            rounded = floor + (coins < fraction)
            largest = int(np.abs(rounded).max())
            if largest <= self.levels + 1 and int(rounded @ rounded) <= self.squared_norm_limit:
                return self._with_count(rounded, update)
        raise AccountingError(
            f"{MOST_ROUNDINGS} roundings of an update exceed the limit of its norm: raise "
            "rounding_failure or clip_levels"
        )

    def decode(self, total: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return a sum of encoded updates, in units of the update.

        Args:
            total: Shape ``(length,)``.

        Returns:
            Shape ``(dimension,)``.
        """
        return np.asarray(total[: self.dimension] * self.grid, dtype=np.float64)

    def decode_count(self, total: NDArray[np.int64]) -> float | None:
        """Return the centered count of a sum: 1/2 for each update within the clip norm, else -1/2.

        Args:
            total: Shape ``(length,)``.

        Returns:
            The noisy count, in participants; None if there is none.
        """
        return float(total[-1]) / (2 * self.count_steps) if self.count_steps else None

    def _with_count(
        self, rounded: NDArray[np.int64], update: NDArray[np.floating[Any]]
    ) -> NDArray[np.int64]:
        """Append the count: whether the update, before clipping, is within the clip norm."""
        if not self.count_steps:
            return rounded
        largest = float(np.abs(update).max())
        direction = update.astype(np.float64) / (largest or 1.0)  # no square overflows
        within = largest * float(np.sqrt(direction @ direction)) <= self.clip_norm
        return np.append(rounded, np.int64(self.count_steps if within else -self.count_steps))

    def _scaled(self, update: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Return the whole part and the fraction of the clipped update in integer steps."""
        largest = float(np.abs(update).max())
        if largest == 0:
            return np.zeros(self.dimension, np.int64), update
        # Relative to the largest coordinate, so that no square overflows or vanishes.
        direction = update / largest
        norm = float(np.sqrt(direction @ direction))
        factor = min(largest, self.clip_norm / norm) / self.clip_norm * self.levels
        steps = direction * factor
        whole = np.floor(steps)
        return whole.astype(np.int64), steps - whole

    def _uniforms(self, stream: Keystream, round_number: int) -> Iterator[NDArray[np.float64]]:
        """Yield uniform numbers per coordinate, for one rounding after another."""
        read = stream.reader(Purpose.UPDATE_ROUNDING, round_number)
        for _ in range(MOST_ROUNDINGS):
            buffer = bytearray(8 * self.dimension)
            read(buffer)
            bits = np.frombuffer(buffer, dtype="<u8") >> np.uint64(11)
            yield bits.astype(np.float64) * 2.0**-53
