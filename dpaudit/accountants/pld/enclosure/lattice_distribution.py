"""One release's privacy loss on a lattice, rounded up so that P-mass and Q-mass are kept.

Each cell's mass is split between its two ends so that both its P-mass and its Q-mass are kept
("connect the dots": Doroshenko, Ghazi, Kamath, Kumar & Manurangsi 2022, arXiv:2207.04380).
The hockey-stick curve of the result is the chord of the true curve. It therefore lies above
the true curve at every epsilon, and so does the curve of every composition.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri

from dpaudit.accountants.numerics import Direction
from dpaudit.accountants.releases import gaussian_mu, randomized_response_loss
from dpaudit.accountants.rounding_margins import UNIT_ROUNDOFF
from dpaudit.vocabulary.errors import Unresolvable, UnsupportedMechanism
from dpaudit.vocabulary.mechanism import Gaussian, PoissonSampled, RandomizedResponse, Release
from dpaudit.vocabulary.privacy_terms import Adjacency

# Masses of cells of loss.

Array = NDArray[np.float64]


@dataclass(frozen=True)
class CellMasses:
    """Probabilities of cells of loss under P and Q.

    Attributes:
        p: Masses under P, shape ``(cells,)``.
        q: Masses under Q, shape ``(cells,)``.
        p_rounding: Upper bounds on the rounding of ``p``, shape ``(cells,)``.
        q_rounding: Upper bounds on the rounding of ``q``, shape ``(cells,)``.
    """

    p: Array
    q: Array
    p_rounding: Array
    q_rounding: Array


class CellDistribution(Protocol):
    """One release's privacy loss distribution, evaluated as masses of cells."""

    def reach(self, tail: float) -> tuple[float, float]:
        """Return losses between which all but a P-probability of ``tail`` lies.

        Args:
            tail: Probability under P that may lie outside.

        Returns:
            The smallest and the largest loss, in nats.
        """

    def masses(self, edges: Array) -> CellMasses:
        """Return the masses of cells.

        Args:
            edges: Rising losses in nats, shape ``(cells + 1,)``.

        Returns:
            The masses under P and Q.
        """

    def edge_rounding(self, largest: float) -> float:
        """Bound the error of the loss at an edge.

        Args:
            largest: Largest modulus of an edge, in nats.

        Returns:
            The upper bound in nats.
        """


def _normal_cells(edges: Array) -> tuple[Array, Array]:
    """Return N(0, 1)'s masses between rising edges and an upper bound on their rounding."""
    # Subtract the smaller tails: differences of the larger ones cancel in far cells.
    lower, upper = ndtr(edges), ndtr(-edges)
    right = edges[:-1] > 0
    cells = np.where(right, upper[:-1] - upper[1:], lower[1:] - lower[:-1])
    larger = np.where(right, upper[:-1], lower[1:])
    # An edge y is rounded by u |y|, which changes a tail by about u y^2 relative to it.
    nearest = np.where(np.isfinite(edges), edges, 0.0)[
        np.where(right, 0, 1) + np.arange(len(right))
    ]
    return np.maximum(cells, 0.0), 4 * UNIT_ROUNDOFF * (1 + nearest**2) * larger


@dataclass(frozen=True)
class SampledGaussianLoss:
    """N(0, 1) against (1 - rate) N(0, 1) + rate N(shift, 1), in units of the noise.

    The loss of an output y is log(1 - rate + rate e^(shift y - shift^2/2)), or its negative.

    Attributes:
        shift: Sensitivity over the noise's standard deviation.
        rate: Sampling rate, in (0, 1].
        direction: Whether the record is removed or added.
    """

    shift: float
    rate: float
    direction: Direction

    def _loss(self, y: float) -> float:
        """Return the loss of the output ``y``, for removal."""
        exponent = self.shift * y - self.shift * self.shift / 2
        if self.rate == 1:
            return exponent
        return float(np.logaddexp(math.log1p(-self.rate), math.log(self.rate) + exponent))

    def _observation(self, losses: Array) -> Array:
        """Return the output y at which ``_loss`` is ``losses``."""
        if self.rate == 1:
            exponent = losses
        else:
            small = np.minimum(losses, 30.0)
            large = np.maximum(losses, 30.0)
            # rate e^exponent = e^loss - (1 - rate), by the form without cancellation.
            above = (
                np.expm1(small) + self.rate if self.rate < 0.5 else np.exp(small) - (1 - self.rate)
            )
            with np.errstate(divide="ignore"):  # log 0: below the smallest loss
                near = np.log(np.maximum(above, 0.0) / self.rate)
            far = large - math.log(self.rate) + np.log1p(-(1 - self.rate) * np.exp(-large))
            exponent = np.where(losses < 30.0, near, far)
        return np.asarray(exponent / self.shift + self.shift / 2)

    def reach(self, tail: float) -> tuple[float, float]:
        """Truncate either tail of the output at half of ``tail``.

        Args:
            tail: Probability under P that may lie outside.

        Returns:
            The smallest and the largest loss, in nats.
        """
        sigmas = -float(ndtri(tail / 2))
        if self.direction is Direction.REMOVED:
            return self._loss(-sigmas), self._loss(self.shift + sigmas)
        return -self._loss(sigmas), -self._loss(-sigmas)

    def masses(self, edges: Array) -> CellMasses:
        """Return differences of normal distribution functions at the edges' outputs.

        Args:
            edges: Rising losses in nats, shape ``(cells + 1,)``.

        Returns:
            The masses under P and Q.
        """
        if (
            self.direction is Direction.ADDED
        ):  # L = -loss(y) falls with y: reverse, then swap P and Q
            mirrored = self._mixture_and_base(-edges[::-1])
            q, q_rounding, p, p_rounding = (part[::-1] for part in mirrored)
        else:
            p, p_rounding, q, q_rounding = self._mixture_and_base(edges)
        return CellMasses(p, q, p_rounding, q_rounding)

    def _mixture_and_base(self, edges: Array) -> tuple[Array, Array, Array, Array]:
        """Return masses and roundings of the mixture, then of N(0, 1)."""
        y = self._observation(edges)
        base, base_rounding = _normal_cells(y)
        moved, moved_rounding = _normal_cells(y - self.shift)
        mixture = (1 - self.rate) * base + self.rate * moved
        rounding = (1 - self.rate) * base_rounding + self.rate * moved_rounding
        return mixture, rounding, base, base_rounding

    def edge_rounding(self, largest: float) -> float:
        """Bound the error of the round trip from loss to output and back."""
        sizes = 1 + largest + self.shift * self.shift - math.log(self.rate)
        return 16 * UNIT_ROUNDOFF * sizes


@dataclass(frozen=True)
class RandomizedResponseLoss:
    """Losses +e, -e and, with more than two categories, 0; the same in both directions.

    Attributes:
        largest: e, in nats.
        truth: Probability of the true answer.
        other: Probability of each other answer.
        categories: Number of answers.
    """

    largest: float
    truth: float
    other: float
    categories: int

    @property
    def _atoms(self) -> tuple[Array, Array, Array]:
        """Losses, P-masses and Q-masses of the three atoms."""
        rest = (self.categories - 2) * self.other
        return (
            np.array([self.largest, -self.largest, 0.0]),
            np.array([self.truth, self.other, rest]),
            np.array([self.other, self.truth, rest]),
        )

    def reach(self, tail: float) -> tuple[float, float]:
        """Return the smallest and the largest loss: nothing lies beyond."""
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


def cell_distribution(
    release: Release, adjacency: Adjacency, direction: Direction
) -> CellDistribution:
    """Return the loss distribution of one release for its dominating pair.

    Args:
        release: An elementary release.
        adjacency: The relation of neighboring data sets.
        direction: Whether the record is removed or added.

    Returns:
        The distribution.

    Raises:
        UnsupportedMechanism: If no dominating pair is implemented here.
    """
    match release:
        case Gaussian():
            return SampledGaussianLoss(gaussian_mu(release, adjacency), 1.0, direction)
        case PoissonSampled(Gaussian() as inner, sampling_rate) if (
            adjacency is not Adjacency.REPLACE_ONE
        ):
            shift = gaussian_mu(inner, adjacency)
            return SampledGaussianLoss(shift, sampling_rate, direction)
        case RandomizedResponse(truth, categories) if adjacency is Adjacency.REPLACE_ONE:
            other = (1 - truth) / (categories - 1)
            return RandomizedResponseLoss(
                randomized_response_loss(release), truth, other, categories
            )
        case _:
            raise UnsupportedMechanism(
                release, f"the grid has no dominating pair under {adjacency.value}"
            )


# Rounding to the lattice. This additional share of a cell's mass goes to its upper end, so that
# rounding of the split errs upward. A cell whose split may be rounded by more counts as lost.
SPLIT_MARGIN = 1e-4
LARGEST_SPLIT_ROUNDING = 1e-4

MASS_TOLERANCE = 1e-9  # larger than the rounding of a sum of a million masses

# Below it, exp(loss) times Q's mass does not overflow, and Q's mass has not underflowed.
LARGEST_SPLIT_LOSS = 600.0


@dataclass(frozen=True)
class LatticeDistribution:
    """Masses at the losses ``spacing * (first + k)``, k = 0, 1, ...

    Attributes:
        spacing: Distance of neighboring losses, in nats.
        first: Index of the first loss.
        masses: Masses under P with a sum of at most 1, shape ``(k,)``.
        rounding: Upper bounds on the rounding of ``masses``, shape ``(k,)``.
        lost: P-probability of all losses that the lattice leaves out.
        lift: Upper bound on the mean by which a loss was raised, given the true loss, in nats.
        misplaced: Upper bound on the rounding of a cell's edge, in nats.
    """

    spacing: float
    first: int
    masses: Array
    rounding: Array
    lost: float
    lift: float
    misplaced: float

    @property
    def losses(self) -> Array:
        """The losses, shape ``(k,)``, in nats."""
        return self.spacing * np.arange(self.first, self.first + len(self.masses), dtype=np.float64)

    def log_moment(self, order: float) -> float:
        """Return log E[exp(order * loss)] over the lattice's masses.

        Args:
            order: Order c, of either sign.

        Returns:
            The log moment.
        """
        exponents = order * self.losses
        top = float(exponents[self.masses > 0].max())
        # A term that underflows is 1e-300 times smaller than the largest.
        weights = np.exp(np.minimum(exponents - top, 0.0))
        return top + math.log(float(weights @ self.masses))

    def tilted(self, order: float) -> tuple[Array, float]:
        """Return the tilted masses, proportional to exp(order * loss).

        Args:
            order: Tilt c, of either sign.

        Returns:
            Masses with a sum of 1, shape ``(k,)``, and an upper bound on their L1 rounding.
        """
        exponents = order * self.losses
        weights = np.exp(np.minimum(exponents - float(exponents[self.masses > 0].max()), 0.0))
        total = float(weights @ self.masses)
        # Rounding of each exponent, and of a sum of that many terms.
        sizes = 8 + abs(order) * float(np.abs(self.losses[[0, -1]]).max()) + len(self.masses)
        error = float(weights @ self.rounding) / total + 4 * UNIT_ROUNDOFF * sizes
        return weights * self.masses / total, error


def discretise(distribution: CellDistribution, spacing: float, tail: float) -> LatticeDistribution:
    """Round a distribution up to the multiples of a spacing.

    Args:
        distribution: The loss distribution.
        spacing: Distance of neighboring losses, in nats.
        tail: P-mass that may be left out.

    Returns:
        The lattice distribution, which dominates ``distribution`` up to the lost mass.

    Raises:
        Unresolvable: If the cells' masses do not sum to 1 up to ``tail`` and rounding.
    """
    low, high = distribution.reach(tail)
    first, last = math.floor(low / spacing) - 1, math.ceil(high / spacing) + 1
    edges = spacing * np.arange(first, last + 1, dtype=np.float64)
    cells = distribution.masses(edges)
    if not abs(1 - float(cells.p.sum())) <= tail + MASS_TOLERANCE:
        raise Unresolvable("the masses of the cells do not sum to 1 within rounding")
    lower, reliable = _lower_shares(cells, edges[1:], spacing)
    p = np.where(reliable, cells.p, 0.0)
    p_rounding = np.where(reliable, cells.p_rounding, 0.0)
    lost = float(np.sum((cells.p + cells.p_rounding)[~reliable]))
    masses, rounding = np.zeros(len(edges)), np.zeros(len(edges))
    masses[:-1] += np.where(reliable, lower, 0.0)
    masses[1:] += p - np.where(reliable, lower, 0.0)
    # Rounding of a cell's mass may affect either end.
    rounding[:-1] += p_rounding
    rounding[1:] += p_rounding
    # E[e^-U | loss] = 1 with U in an interval of width h gives E[U] <= h^2/8
    # (Hoeffding's lemma); the margin adds its share of h.
    lift = spacing**2 / 8 + 2 * SPLIT_MARGIN * spacing
    if edges[-1] >= LARGEST_SPLIT_LOSS:  # such cells are not split: all mass goes to the upper end
        lift = spacing
    return LatticeDistribution(
        spacing=spacing,
        first=first,
        masses=masses,
        rounding=rounding,
        lost=min(1.0, (tail + lost) * (1 + 1e-12)),
        lift=lift,
        misplaced=distribution.edge_rounding(max(abs(low), abs(high))),
    )


def _lower_shares(
    cells: CellMasses, ends: Array, spacing: float
) -> tuple[Array, NDArray[np.bool_]]:
    """Return the P-mass that each cell's lower end receives, and where that is accurate.

    With the ends l and u = l + h:  lower + upper = p  and  lower e^-l + upper e^-u = q,  so
    lower = (e^u q - p) / (e^h - 1).
    """
    splittable = ends < LARGEST_SPLIT_LOSS
    growth = np.exp(np.where(splittable, ends, 0.0))
    width = math.expm1(spacing)
    lower = np.clip((growth * cells.q - cells.p) / width, 0.0, cells.p)
    error = (growth * cells.q_rounding + cells.p_rounding + 4 * UNIT_ROUNDOFF * cells.p) / width
    reliable = (error <= LARGEST_SPLIT_ROUNDING * cells.p) | ~splittable
    share = np.maximum(lower - SPLIT_MARGIN * cells.p, 0.0)
    return np.where(splittable, share, 0.0), reliable
