"""What is added to the clipped sum: independent noise, noise on a grid, correlated noise.

Each is added once to the sum of all ranks and chunks, and depends on the key and the step
alone: ranks that hold one key add the same.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from dpaudit.trainer import device_stream, grid
from dpaudit.trainer.ahead import Ahead
from dpaudit.trainer.noise import normals
from dpaudit.trainer.randomness import Keystream, Purpose
from dpaudit.vocabulary.errors import InvalidArgument, require_count

Sums = dict[str, Tensor]
"""By name of the parameter, or of a further coordinate."""


@dataclass(frozen=True)
class Moment:
    """Where in a run noise is drawn.

    Attributes:
        stream: Whose key it depends on.
        step: Which step.
        first: The step at which this key began: 0, or where a run was resumed.
    """

    stream: Keystream
    step: int
    first: int = 0


class AddedNoise(Protocol):
    """Turns a sum into what is released."""

    def deviation(
        self, noise_multiplier: float, norm: float, dimension: int, moment: Moment
    ) -> float:
        """Return the standard deviation of what is added to one of ``dimension`` coordinates."""

    def added(self, sums: Sums, moment: Moment, noise_multiplier: float, norm: float) -> Sums:
        """Return the sums with noise of noise_multiplier times their sensitivity, or a hair more.

        Args:
            sums: The clipped sums; they may be changed in place.
            moment: Where in the run.
            noise_multiplier: Over the sensitivity.
            norm: The sensitivity.
        """


@dataclass(frozen=True)
class Independent:
    """Fresh normals in each step: the Gaussian mechanism, in float32."""

    def deviation(
        self, noise_multiplier: float, norm: float, dimension: int, moment: Moment
    ) -> float:
        """See ``AddedNoise``."""
        return noise_multiplier * norm

    def added(self, sums: Sums, moment: Moment, noise_multiplier: float, norm: float) -> Sums:
        """See ``AddedNoise``."""
        drawn = unit_normals(moment, size(sums), _device(sums))
        return _plus(sums, drawn, noise_multiplier * norm)


class AheadOfTime:
    """The same, drawn in a thread while the step before is computed."""

    def __init__(self) -> None:
        self._ahead: Ahead | None = None
        self._stream: Keystream | None = None
        self._dimension = 0

    def deviation(
        self, noise_multiplier: float, norm: float, dimension: int, moment: Moment
    ) -> float:
        """See ``AddedNoise``."""
        return noise_multiplier * norm

    def added(self, sums: Sums, moment: Moment, noise_multiplier: float, norm: float) -> Sums:
        """See ``AddedNoise``."""
        # Another dimension: what is trained has changed. What was made for this step and never
        # handed out is dropped with its maker.
        begun = self._stream is moment.stream and self._dimension == size(sums)
        if self._ahead is None or not begun:
            self._ahead, self._stream = self._begun(sums, moment), moment.stream
            self._dimension = size(sums)
        return _plus(sums, self._ahead.take(moment.step), noise_multiplier * norm)

    @staticmethod
    def _begun(sums: Sums, moment: Moment) -> Ahead:
        dimension, device = size(sums), _device(sums)
        stream, began = moment.stream, moment.first
        return Ahead(
            lambda step: unit_normals(Moment(stream, step, began), dimension, device),
            first=moment.step,
        )


@dataclass(frozen=True)
class OnGrid:
    """Rounded normals on a grid: nothing leaks through the floats below the noise.

    Rounding the sum moves it; the noise is wider by as much, a thousandth at most.
    """

    def deviation(
        self, noise_multiplier: float, norm: float, dimension: int, moment: Moment
    ) -> float:
        """See ``AddedNoise``."""
        return noise_multiplier * self.widened(norm, dimension)

    def widened(self, sensitivity: float, dimension: int) -> float:
        """Return the sensitivity of the rounded sum."""
        step = grid.grid_for(sensitivity, dimension) * math.sqrt(dimension)
        return math.nextafter(sensitivity + math.nextafter(step, math.inf), math.inf)

    def added(self, sums: Sums, moment: Moment, noise_multiplier: float, norm: float) -> Sums:
        """See ``AddedNoise``."""
        dimension = size(sums)
        flat = torch.cat([part.flatten() for part in sums.values()])
        noisy = grid.noisy(
            flat,
            moment.stream,
            Purpose.GRADIENT_NOISE,
            moment.step,
            deviation=self.deviation(noise_multiplier, norm, dimension, moment),
            grid=grid.grid_for(norm, dimension),
        )
        return _apart(noisy, sums)


@dataclass
class Banded:
    """Noise of neighbouring steps that cancels in part: DP-FTRL by a banded factorisation.

    The noise of all steps is C^-1 Z, where Z is independent and C has, below its diagonal,
    the first ``bands`` coefficients of (1 - x)^(-1/2), scaled to columns of norm 1: what a
    record adds at steps that are ``bands`` apart has norm 1 in C (Choquette-Choo et al.
    2023, arXiv:2306.08153, section 4; Kalinin & Lampert 2024, arXiv:2405.13763, equation 5).
    So row t of the noise is (z_t - sum_i c_i y_(t-i)) / c_0, from the rows before it.

    Attributes:
        bands: How many steps of noise are kept, with the one that is made.
    """

    bands: int
    _rows: deque[Tensor] = field(init=False, repr=False)
    _next: int = field(default=-1, init=False, repr=False)
    _stream: Keystream | None = field(default=None, init=False, repr=False)
    _inverse: list[float] = field(default_factory=list, init=False, repr=False)

    def __post_init__(self) -> None:
        require_count("bands", self.bands)
        self._rows = deque(maxlen=max(1, self.bands - 1))

    @property
    def coefficients(self) -> list[float]:
        """A column of C: its entries from the diagonal down, of norm 1."""
        series = [1.0]
        for k in range(1, self.bands):
            series.append(series[-1] * (2 * k - 1) / (2 * k))
        norm = math.hypot(*series) * (1 + 1e-12)  # a column must not be longer than 1
        return [value / norm for value in series]

    def deviation(
        self, noise_multiplier: float, norm: float, dimension: int, moment: Moment
    ) -> float:
        """See ``AddedNoise``."""
        return noise_multiplier * norm * self._row_norm(moment.step - moment.first)

    def added(self, sums: Sums, moment: Moment, noise_multiplier: float, norm: float) -> Sums:
        """See ``AddedNoise``: rows that are not at hand are made again from the key."""
        if self._stream is moment.stream and self._rows and len(self._rows[0]) != size(sums):
            raise InvalidArgument(
                "model", f"{size(sums)} trainable numbers", f"of {len(self._rows[0])}, as in the "
                "steps before: correlated noise cancels between equal coordinates alone",
            )  # fmt: skip
        if self._next != moment.step or self._stream is not moment.stream:
            self._rows.clear()
            for step in range(moment.first, moment.step):
                self._make(Moment(moment.stream, step, moment.first), sums)
        return _plus(sums, self._make(moment, sums), noise_multiplier * norm)

    def _make(self, moment: Moment, sums: Sums) -> Tensor:
        first, *others = self.coefficients
        row = unit_normals(moment, size(sums), _device(sums))
        # The newest row is the one before this.
        for coefficient, earlier in zip(others, reversed(self._rows), strict=False):
            row.sub_(earlier, alpha=coefficient)
        row.div_(first)
        if others:
            self._rows.append(row)
        self._next, self._stream = moment.step + 1, moment.stream
        return row

    def _row_norm(self, row: int) -> float:
        """Return the norm of a row of C^-1, whose entries are those of one column, reversed."""
        first, *others = self.coefficients
        column = self._inverse
        while len(column) <= row:
            # A column of C^-1 times C is the unit vector: 1, then zeros.
            earlier = zip(others, reversed(column), strict=False)
            column.append((0.0 if column else 1.0) / first - sum(c * d for c, d in earlier) / first)
        return math.hypot(*column[: row + 1])


def unit_normals(moment: Moment, count: int, device: torch.device) -> Tensor:
    """Return draws of N(0, 1) of a step, made on the device where it has a stream of its own."""
    purpose = Purpose.GRADIENT_NOISE
    if device.type == "cpu":
        return normals(moment.stream, purpose, moment.step, count)
    key = device_stream.key_of(moment.stream)
    return device_stream.normals(key, purpose, moment.step, count, device)


def size(sums: Mapping[str, Tensor]) -> int:
    """Return how many coordinates there are."""
    return sum(part.numel() for part in sums.values())


def _device(sums: Mapping[str, Tensor]) -> torch.device:
    return next(iter(sums.values())).device


def _plus(sums: Sums, drawn: Tensor, deviation: float) -> Sums:
    start = 0
    for part in sums.values():
        own = drawn[start : start + part.numel()].view_as(part)
        part.add_(own, alpha=deviation)
        start += part.numel()
    return sums


def _apart(flat: Tensor, sums: Mapping[str, Tensor]) -> Sums:
    parts = torch.split(flat, [part.numel() for part in sums.values()])
    return {name: own.view_as(part) for (name, part), own in zip(sums.items(), parts, strict=True)}
