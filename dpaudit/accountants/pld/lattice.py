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

from dpaudit.accountants.pld.laws import UNIT_ROUNDOFF, LossLaw

Array = NDArray[np.float64]

# Share of each lower end's mass that goes to the upper end as well: rounding of the
# split then errs upward. A cell's split is good to about 1e-6 where it matters.
SPLIT_MARGIN = 1e-4

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
    """Put ``law`` on the lattice of multiples of ``spacing``, leaving out at most ``tail``."""
    low, high = law.reach(tail)
    first, last = math.floor(low / spacing) - 1, math.ceil(high / spacing) + 1
    edges = spacing * np.arange(first, last + 1, dtype=np.float64)
    cells = law.masses(edges)
    # With ends l and u = l + h:  lower + upper = p  and  lower e^-l + upper e^-u = q,
    # so  lower = (e^u q - p) / (e^h - 1).
    ends = edges[1:]
    splittable = ends < LARGEST_SPLIT_LOSS
    scaled_q = np.exp(np.where(splittable, ends, 0.0)) * cells.q
    lower = np.where(splittable, (scaled_q - cells.p) / math.expm1(spacing), 0.0)
    lower = np.clip(lower, 0.0, cells.p) * (1 - SPLIT_MARGIN)
    masses, rounding = np.zeros(len(edges)), np.zeros(len(edges))
    masses[:-1] += lower
    masses[1:] += cells.p - lower
    # Rounding of a cell may land on either end.
    rounding[:-1] += cells.p_rounding
    rounding[1:] += cells.p_rounding
    # E[e^-U | loss] = 1 with U in an interval of width h gives E[U] <= h^2/8
    # (Hoeffding's lemma); the margin adds its share of h.
    lift = spacing**2 / 8 + 2 * SPLIT_MARGIN * spacing
    if not splittable.all():
        lift = spacing
    return LatticeLaw(
        spacing=spacing,
        first=first,
        masses=masses,
        rounding=rounding,
        lost=tail,
        lift=lift,
        misplaced=law.edge_rounding(max(abs(low), abs(high))),
    )
