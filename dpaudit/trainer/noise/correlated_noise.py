"""Noise that is correlated over neighboring steps: DP-FTRL with a banded factorization."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from dpaudit.trainer.noise.gradient_noise import (
    GradientSums,
    NoiseContext,
    add_scaled,
    count_coordinates,
    device_of,
    standard_normals,
)
from dpaudit.trainer.noise.randomness import Keystream
from dpaudit.vocabulary.errors import InvalidArgument, require_count
from dpaudit.vocabulary.ledger import NoiseKind


@dataclass
class Banded:
    """Noise that is correlated over neighboring steps: DP-FTRL with a banded factorization.

    The noise of all steps is C^-1 Z with Z independent. Below its diagonal, C has the first
    ``bands`` coefficients of (1 - x)^(-1/2), scaled to columns of norm 1. So what a record adds
    at steps that are ``bands`` apart has norm 1 in C. Row t of the noise follows from the rows
    before it: y_t = (z_t - sum_i c_i y_(t-i)) / c_0. Use it together with the sampler ``Cyclic``.

    Attributes:
        bands: Number of bands of C. The noise of ``bands`` - 1 earlier steps is kept in memory.

    References:
        Choquette-Choo et al. (2023), arXiv:2306.08153, section 4. Kalinin & Lampert (2024),
        arXiv:2405.13763, equation 5.

    Example:
        >>> noise = Banded(2)
        >>> [round(value, 4) for value in noise.coefficients]
        [0.8944, 0.4472]
    """

    kind: ClassVar[NoiseKind] = NoiseKind.CORRELATED

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
        """The column of C from the diagonal down, shape ``(bands,)``, of L2 norm at most 1."""
        # (1 - x)^(-1/2) = sum_k a_k x^k with a_0 = 1 and a_k = a_(k-1) (2k - 1) / (2k).
        series = [1.0]
        for k in range(1, self.bands):
            series.append(series[-1] * (2 * k - 1) / (2 * k))
        norm = math.hypot(*series) * (1 + 1e-12)  # rounded up, so that a column's norm is at most 1
        return [value / norm for value in series]

    def deviation(
        self, noise_multiplier: float, norm: float, dimension: int, context: NoiseContext
    ) -> float:
        """Return noise_multiplier * norm times the norm of this step's row of C^-1.

        Args:
            noise_multiplier: Noise standard deviation over the sensitivity.
            norm: The sensitivity: largest L2 norm of what one record adds.
            dimension: Number of coordinates of the sum.
            context: Keystream and step.

        Returns:
            Standard deviation of the noise on one coordinate.
        """
        return noise_multiplier * norm * self._row_norm(context.step - context.first)

    def add_noise(
        self, sums: GradientSums, context: NoiseContext, noise_multiplier: float, norm: float
    ) -> GradientSums:
        """Add this step's row of C^-1 Z; missing earlier rows are drawn again from the key.

        Args:
            sums: Clipped sums per parameter; they may be changed in place.
            context: Keystream and step; one pair gives one noise.
            noise_multiplier: Noise standard deviation over the sensitivity.
            norm: The sensitivity: largest L2 norm of what one record adds.

        Returns:
            The noisy sums by the same names, with the same shapes.

        Raises:
            InvalidArgument: If the number of coordinates differs from earlier steps.
        """
        if (
            self._stream is context.stream
            and self._rows
            and len(self._rows[0]) != count_coordinates(sums)
        ):
            raise InvalidArgument(
                "model", f"{count_coordinates(sums)} trainable numbers",
                f"of {len(self._rows[0])}, as in the "
                "steps before: correlated noise needs the same coordinates in every step",
            )  # fmt: skip
        # After a resume, or with another key, the kept rows are not those before this step.
        if self._next != context.step or self._stream is not context.stream:
            self._rows.clear()
            for step in range(context.first, context.step):
                self._make(NoiseContext(context.stream, step, context.first), sums)
        return add_scaled(sums, [self._make(context, sums)], noise_multiplier * norm)

    def _make(self, context: NoiseContext, sums: GradientSums) -> Tensor:
        """Return row t of C^-1 Z from z_t and the rows before it, and keep it."""
        first, *others = self.coefficients
        row = standard_normals(context, count_coordinates(sums), device_of(sums))
        # y_t = (z_t - sum_i c_i y_(t-i)) / c_0; the newest kept row is y_(t-1).
        for coefficient, earlier in zip(others, reversed(self._rows), strict=False):
            row.sub_(earlier, alpha=coefficient)
        row.div_(first)
        if others:
            self._rows.append(row)
        self._next, self._stream = context.step + 1, context.stream
        return row

    def _row_norm(self, row: int) -> float:
        """Return the norm of a row of C^-1, whose entries are those of one column, reversed."""
        # The noise of row t has deviation sigma sqrt(sum_(i<=t) a_i^2), a the column of C^-1.
        first, *others = self.coefficients
        column = self._inverse
        while len(column) <= row:
            # C times a column of C^-1 is a unit vector: 1, then zeros.
            earlier = zip(others, reversed(column), strict=False)
            column.append((0.0 if column else 1.0) / first - sum(c * d for c, d in earlier) / first)
        return math.hypot(*column[: row + 1])
