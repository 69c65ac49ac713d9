"""One release's privacy loss on a lattice: from above without loss of total mass, mean kept.

Each cell's mass goes to its two ends so that both its P-mass and its Q-mass stay
("connect the dots": Doroshenko, Ghazi, Kamath, Kumar & Manurangsi 2022,
arXiv:2207.04380). The hockey-stick curve of the result is the chord of the true curve,
so it lies above it for every epsilon, and so does that of every composition.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dpaudit.accountants.pld.enclosure.laws import UNIT_ROUNDOFF, CellMasses, LossLaw
from dpaudit.vocabulary.errors import Unresolvable

Array = NDArray[np.float64]

# Share of a cell's mass that goes to its upper end on top: rounding of the split then errs
# upward. A cell whose split may be rounded by more counts as lost.
SPLIT_MARGIN = 1e-4
LARGEST_SPLIT_ROUNDING = 1e-4

MISSING = 1e-9  # sums of a million rounded masses are closer to 1 than this

# exp of the loss times Q's mass must neither overflow nor meet a Q that underflowed.
LARGEST_SPLIT_LOSS = 600.0


@dataclass(frozen=True)
class LatticeLaw:
    """Masses at the losses ``spacing * (first + k)``, k = 0, 1, ...

    Attributes:
        spacing: Distance of neighbouring losses, in nats.
        first: Index of the first loss.
        masses: Shape ``(k,)``; a sub-probability under P.
        rounding: Shape ``(k,)``; bounds what floating point did to ``masses``.
        lost: P-probability of all losses that the lattice leaves out.
        lift: Bound on the mean by which a loss was raised, given the true loss.
        misplaced: Bound on the rounding of a cell's edge, in nats.
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
        """Return log E[exp(order * loss)] over the lattice's masses."""
        exponents = order * self.losses
        top = float(exponents[self.masses > 0].max())
        # An underflow here is a term 1e-300 times smaller than the largest.
        weights = np.exp(np.minimum(exponents - top, 0.0))
        return top + math.log(float(weights @ self.masses))

    def tilted(self, order: float) -> tuple[Array, float]:
        """Return masses proportional to exp(order * loss), summing to 1, and their L1 rounding."""
        exponents = order * self.losses
        weights = np.exp(np.minimum(exponents - float(exponents[self.masses > 0].max()), 0.0))
        total = float(weights @ self.masses)
        # Rounding of each exponent, and of a sum of that many terms.
        sizes = 8 + abs(order) * float(np.abs(self.losses[[0, -1]]).max()) + len(self.masses)
        error = float(weights @ self.rounding) / total + 4 * UNIT_ROUNDOFF * sizes
        return weights * self.masses / total, error


def discretise(law: LossLaw, spacing: float, tail: float) -> LatticeLaw:
    """Put ``law`` on the lattice of multiples of ``spacing``, leaving out at most ``tail``.

    Raises:
        Unresolvable: the cells do not hold all probability, up to rounding.
    """
    low, high = law.reach(tail)
    first, last = math.floor(low / spacing) - 1, math.ceil(high / spacing) + 1
    edges = spacing * np.arange(first, last + 1, dtype=np.float64)
    cells = law.masses(edges)
    if not abs(1 - float(cells.p.sum())) <= tail + MISSING:
        raise Unresolvable("rounding hides where some of the probability is")
    lower, reliable = _lower_shares(cells, edges[1:], spacing)
    p = np.where(reliable, cells.p, 0.0)
    p_rounding = np.where(reliable, cells.p_rounding, 0.0)
    lost = float(np.sum((cells.p + cells.p_rounding)[~reliable]))
    masses, rounding = np.zeros(len(edges)), np.zeros(len(edges))
    masses[:-1] += np.where(reliable, lower, 0.0)
    masses[1:] += p - np.where(reliable, lower, 0.0)
    # Rounding of a cell may land on either end.
    rounding[:-1] += p_rounding
    rounding[1:] += p_rounding
    # E[e^-U | loss] = 1 with U in an interval of width h gives E[U] <= h^2/8
    # (Hoeffding's lemma); the margin adds its share of h.
    lift = spacing**2 / 8 + 2 * SPLIT_MARGIN * spacing
    if edges[-1] >= LARGEST_SPLIT_LOSS:  # there a cell's whole mass is raised
        lift = spacing
    return LatticeLaw(
        spacing=spacing,
        first=first,
        masses=masses,
        rounding=rounding,
        lost=min(1.0, (tail + lost) * (1 + 1e-12)),
        lift=lift,
        misplaced=law.edge_rounding(max(abs(low), abs(high))),
    )


def _lower_shares(
    cells: CellMasses, ends: Array, spacing: float
) -> tuple[Array, NDArray[np.bool_]]:
    """Return what of each cell's P-mass its lower end gets, and where that is well known.

    With ends l and u = l + h:  lower + upper = p  and  lower e^-l + upper e^-u = q,  so
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
