"""The privacy loss of one release, as probability masses of cells of loss.

For neighbours with output laws P and Q the privacy loss is L = log(dP/dQ), drawn
under P. Each law here answers one question: how much of P, and how much of Q, has a
loss in each cell between given edges. A direction says which neighbour is P.
Source of the pairs: Zhu, Dong & Wang 2022, arXiv:2106.08567, Table 1 and Proposition 30.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri

from dpaudit.accountants.releases import response_loss, shift_over_noise
from dpaudit.vocabulary.adjacency import Adjacency
from dpaudit.vocabulary.errors import UnsupportedMechanism
from dpaudit.vocabulary.mechanism import Gaussian, PoissonSampled, RandomizedResponse, Release

Array = NDArray[np.float64]

UNIT_ROUNDOFF = 2.0**-53


class Direction(Enum):
    """Which of the two neighbours is P, the one whose outputs are seen."""

    REMOVE = "remove"
    """P has the record, Q lacks it."""

    ADD = "add"
    """P lacks the record, Q has it."""


@dataclass(frozen=True)
class CellMasses:
    """Probability of each cell under P and Q, shape ``(cells,)``, and bounds on their rounding."""

    p: Array
    q: Array
    p_rounding: Array
    q_rounding: Array


class LossLaw(Protocol):
    """The law of one release's privacy loss."""

    def reach(self, tail: float) -> tuple[float, float]:
        """Return losses between which all but a P-probability of ``tail`` lies."""

    def masses(self, edges: Array) -> CellMasses:
        """Return the masses of the cells between rising ``edges``, shape ``(cells + 1,)``."""

    def edge_rounding(self, largest: float) -> float:
        """Bound by how much the loss at an edge, at most ``largest`` in size, is misplaced."""


def _normal_cells(edges: Array) -> tuple[Array, Array]:
    """Return N(0, 1)'s masses between rising edges and a bound on their rounding."""
    # Difference the smaller tail: the other one loses all digits of a far cell.
    lower, upper = ndtr(edges), ndtr(-edges)
    right = edges[:-1] > 0
    cells = np.where(right, upper[:-1] - upper[1:], lower[1:] - lower[:-1])
    larger = np.where(right, upper[:-1], lower[1:])
    # An edge is rounded by u |y|, which moves a tail by u y^2 of itself.
    nearest = np.where(np.isfinite(edges), edges, 0.0)[
        np.where(right, 0, 1) + np.arange(len(right))
    ]
    return np.maximum(cells, 0.0), 4 * UNIT_ROUNDOFF * (1 + nearest**2) * larger


@dataclass(frozen=True)
class SampledGaussianLoss:
    """N(0, 1) against (1 - rate) N(0, 1) + rate N(shift, 1), both in units of the noise."""

    shift: float
    rate: float
    direction: Direction

    def _loss(self, y: float) -> float:
        exponent = self.shift * y - self.shift * self.shift / 2
        if self.rate == 1:
            return exponent
        return float(np.logaddexp(math.log1p(-self.rate), math.log(self.rate) + exponent))

    def _observation(self, losses: Array) -> Array:
        """Return the y at which log(1 - rate + rate exp(shift y - shift^2/2)) is ``losses``."""
        if self.rate == 1:
            exponent = losses
        else:
            small = np.minimum(losses, 30.0)
            large = np.maximum(losses, 30.0)
            # e^loss - (1 - rate), by the form that loses no digits.
            above = (
                np.expm1(small) + self.rate if self.rate < 0.5 else np.exp(small) - (1 - self.rate)
            )
            with np.errstate(divide="ignore"):  # log 0: below the least loss there is
                near = np.log(np.maximum(above, 0.0) / self.rate)
            far = large - math.log(self.rate) + np.log1p(-(1 - self.rate) * np.exp(-large))
            exponent = np.where(losses < 30.0, near, far)
        return np.asarray(exponent / self.shift + self.shift / 2)

    def reach(self, tail: float) -> tuple[float, float]:
        """Cut either tail of the observation at half of ``tail``."""
        sigmas = -float(ndtri(tail / 2))
        if self.direction is Direction.REMOVE:
            return self._loss(-sigmas), self._loss(self.shift + sigmas)
        return -self._loss(sigmas), -self._loss(-sigmas)

    def masses(self, edges: Array) -> CellMasses:
        """Difference normal distribution functions at the edges' observations."""
        if self.direction is Direction.ADD:  # L = -loss(y) falls in y: mirror, then swap
            mirrored = self._mixture_and_base(-edges[::-1])
            q, q_rounding, p, p_rounding = (part[::-1] for part in mirrored)
        else:
            p, p_rounding, q, q_rounding = self._mixture_and_base(edges)
        return CellMasses(p, q, p_rounding, q_rounding)

    def _mixture_and_base(self, edges: Array) -> tuple[Array, Array, Array, Array]:
        y = self._observation(edges)
        base, base_rounding = _normal_cells(y)
        moved, moved_rounding = _normal_cells(y - self.shift)
        mixture = (1 - self.rate) * base + self.rate * moved
        rounding = (1 - self.rate) * base_rounding + self.rate * moved_rounding
        return mixture, rounding, base, base_rounding

    def edge_rounding(self, largest: float) -> float:
        """Bound the round trip from loss to observation and back."""
        sizes = 1 + largest + self.shift * self.shift - math.log(self.rate)
        return 16 * UNIT_ROUNDOFF * sizes


@dataclass(frozen=True)
class RandomizedResponseLoss:
    """Losses +e, -e and, with more than two categories, 0; the same in both directions."""

    largest: float
    truth: float
    other: float
    categories: int

    @property
    def _atoms(self) -> tuple[Array, Array, Array]:
        rest = (self.categories - 2) * self.other
        return (
            np.array([self.largest, -self.largest, 0.0]),
            np.array([self.truth, self.other, rest]),
            np.array([self.other, self.truth, rest]),
        )

    def reach(self, tail: float) -> tuple[float, float]:
        """Return the two extreme losses: nothing lies beyond."""
        return -self.largest, self.largest

    def masses(self, edges: Array) -> CellMasses:
        """Put each of the three atoms into its cell."""
        losses, p, q = self._atoms
        cell = np.clip(np.searchsorted(edges, losses, side="left") - 1, 0, len(edges) - 2)
        cells = len(edges) - 1
        p_cells: Array = np.bincount(cell, p, cells).astype(np.float64)
        q_cells: Array = np.bincount(cell, q, cells).astype(np.float64)
        return CellMasses(
            p_cells, q_cells, 4 * UNIT_ROUNDOFF * p_cells, 4 * UNIT_ROUNDOFF * q_cells
        )

    def edge_rounding(self, largest: float) -> float:
        """Bound the rounding of a logarithm and of an edge."""
        return 8 * UNIT_ROUNDOFF * (1 + largest)


def loss_law(release: Release, adjacency: Adjacency, direction: Direction) -> LossLaw:
    """Return the loss law of one release for the worst pair of neighbours.

    Raises:
        UnsupportedMechanism: no such pair is known here.
    """
    match release:
        case Gaussian():
            return SampledGaussianLoss(shift_over_noise(release, adjacency), 1.0, direction)
        case PoissonSampled(Gaussian() as inner, sampling_rate) if (
            adjacency is not Adjacency.REPLACE_ONE
        ):
            shift = shift_over_noise(inner, adjacency)
            return SampledGaussianLoss(shift, sampling_rate, direction)
        case RandomizedResponse(truth, categories) if adjacency is Adjacency.REPLACE_ONE:
            other = (1 - truth) / (categories - 1)
            return RandomizedResponseLoss(response_loss(release), truth, other, categories)
        case _:
            raise UnsupportedMechanism(release, f"no pair of laws under {adjacency.value}")
