"""Lower bound of random allocation to several steps: conditional means of symmetric functions.

Let a record join k of t steps. With W_i the ratio of step i, the ratio of the pass is

    X = e_k(W_1, .., W_t) / C(t, k),

e_k the elementary symmetric function. For disjoint sets A, B of steps,
e_j(A + B) = sum_i e_i(A) e_(j-i)(B), and the factors are independent. So the means of
(e_0, .., e_k) in cells of A and cells of B multiply likewise. A law of conditional means of X is
below X in the convex order, however the cells are chosen (equation 17).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from dpaudit.accountants.numerics import Direction
from dpaudit.accountants.pld.allocation.ratio_law import (
    FUNCTION_ERROR,
    LEAST_MASS,
    JoinSettings,
    RatioLaw,
)
from dpaudit.accountants.pld.allocation.step_law import gaussian_step
from dpaudit.accountants.pld.laws.loss_distribution import LossDistribution
from dpaudit.accountants.rounding_margins import ROUND_DOWN, UNIT_ROUNDOFF
from dpaudit.vocabulary.errors import Unresolvable

Array = NDArray[np.float64]

# More selected steps are bounded by so many of them: the ratio of fewer is lower in the order.
MOST_SELECTED = 12
STEP_FINENESS, STEP_TURN = 0.08, 6.0
# First widths of cells: of log e_1, and of log e_2 relative to the square of e_1.
FIRST_WIDTHS = (0.06, 0.2)
MOST_ATOMS = 900
COARSENING = 1.25
LEAST_SPREAD = -14.0
PAIRS_AT_ONCE = 2**17
LEAST_TAIL = 1e-60


@dataclass(frozen=True)
class SymmetricLaw:
    """Atoms of conditional means of (e_0, .., e_k) over some steps.

    Attributes:
        steps: Number of steps.
        means: Means of e_0 = 1, .., e_k, shape ``(k + 1, n)``.
        q_masses: Masses under Q, shape ``(n,)``.
        mass_error: Largest |log| of a factor by which rounding changed a mass.
        move_error: Largest relative change of e_j by rounding, divided by j.
    """

    steps: int
    means: Array
    q_masses: Array
    mass_error: float
    move_error: float


def _one_step(law: RatioLaw, selected: int) -> SymmetricLaw:
    """Return the means of one step: e_1 is its ratio, and e_2, .. are 0."""
    means = np.zeros((selected + 1, len(law.losses)))
    means[0], means[1] = 1.0, np.exp(law.losses)
    return SymmetricLaw(1, means, law.q_masses, law.mass_error, law.move_error + FUNCTION_ERROR)


def _cells(steps: int, means: Array, widths: tuple[float, float]) -> NDArray[np.int64]:
    """Return a number for each atom, equal in each cell."""
    first = np.log(means[1])
    cells: NDArray[np.int64] = np.floor(first / widths[0]).astype(np.int64)
    if steps == 1:
        return cells
    with np.errstate(divide="ignore"):
        spread = np.maximum(np.log(means[2]) - 2 * first, LEAST_SPREAD)
    return np.asarray(cells * 4096 + np.floor(spread / widths[1]), dtype=np.int64)


def _grouped(law: SymmetricLaw, tail: float) -> SymmetricLaw:
    """Merge the atoms of each cell; widen cells until there are at most ``MOST_ATOMS``."""
    scale = np.array([math.comb(law.steps, j) for j in range(len(law.means))], dtype=np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        weights = law.q_masses * (law.means / np.maximum(scale, 1.0)[:, None]).max(axis=0)
        # Atoms that overflow, or whose masses lose accuracy by underflow, are left out as well.
        exact = np.isfinite(law.means).all(axis=0) & (law.q_masses > LEAST_MASS)
        heavy = exact & (weights > tail)
    means, masses, terms = law.means[:, heavy], law.q_masses[heavy], 0
    widths = FIRST_WIDTHS
    while len(masses):
        names, places = np.unique(_cells(law.steps, means, widths), return_inverse=True)
        terms += int(np.bincount(places).max())
        merged: Array = np.bincount(places, masses).astype(np.float64)
        means = np.array([np.bincount(places, masses * row) / merged for row in means])
        masses = merged
        if len(names) <= MOST_ATOMS:
            break
        widths = (widths[0] * COARSENING, widths[1] * COARSENING)
    rounding = (terms + 8) * UNIT_ROUNDOFF
    return SymmetricLaw(
        law.steps, means, masses, law.mass_error + rounding, law.move_error + 2 * rounding
    )


def _join(left: SymmetricLaw, right: SymmetricLaw, tail: float) -> SymmetricLaw:
    """Return the means over two disjoint sets of steps."""
    rows = max(1, PAIRS_AT_ONCE // len(right.q_masses))
    parts = []
    degree = len(left.means)
    for start in range(0, len(left.q_masses), rows):
        block = slice(start, start + rows)
        # The first factor of e_j is e_i(A), the second e_(j-i)(B).
        with np.errstate(over="ignore", invalid="ignore"):
            means = np.array(
                [
                    sum(
                        np.multiply.outer(left.means[i, block], right.means[j - i]).ravel()
                        for i in range(j + 1)
                    )
                    for j in range(degree)
                ]
            )
        masses = np.multiply.outer(left.q_masses[block], right.q_masses).ravel()
        steps = left.steps + right.steps
        parts.append(_grouped(SymmetricLaw(steps, means, masses, 0.0, 0.0), tail * 1e-3))
    parts = [part for part in parts if len(part.q_masses)]
    if not parts:
        raise Unresolvable("losses within one pass are too large for floats: increase the noise")
    together = SymmetricLaw(
        left.steps + right.steps,
        np.concatenate([part.means for part in parts], axis=1),
        np.concatenate([part.q_masses for part in parts]),
        left.mass_error + right.mass_error + max(part.mass_error for part in parts),
        # Of degree j, errors of i and j - i add up to j; then products and at most k additions.
        max(left.move_error, right.move_error)
        + max(part.move_error for part in parts)
        + (degree + 4) * UNIT_ROUNDOFF,
    )
    return _grouped(together, tail)


@lru_cache(maxsize=16)
def _subset_law(shift: float, steps: int, selected: int, tail: float) -> RatioLaw:
    """Return a law below the ratio of a pass in which a record joins several steps."""
    settings = JoinSettings(False, STEP_FINENESS, STEP_TURN, tail)
    single = _one_step(gaussian_step(shift, settings), selected)
    found = single
    for digit in bin(steps)[3:]:
        found = _join(found, found, tail)
        if digit == "1":
            found = _join(found, single, tail)
    if not len(found.q_masses):
        raise Unresolvable("losses within one pass are too large for floats: increase the noise")
    ratio = found.means[selected] / float(math.comb(steps, selected))
    held = (ratio > 0) & (found.q_masses > 0)
    ratio, q = ratio[held], found.q_masses[held]
    order = np.argsort(ratio)
    ratio, q = ratio[order], q[order]
    losses = np.log(ratio)
    moved = selected * found.move_error + FUNCTION_ERROR * (2 + float(np.abs(losses).max()))
    return RatioLaw(losses, q, q * ratio, 0.0, 0.0, found.mass_error, moved)


def subset_loss_distribution(
    shift: float, steps: int, selected: int, direction: Direction, tail: float
) -> LossDistribution:
    """Return a loss distribution below that of a pass with several steps per record.

    Args:
        shift: Sensitivity divided by the noise standard deviation.
        steps: Number of steps t in the pass.
        selected: Number of steps k that a record joins, from 2 to ``steps``.
        direction: Whether the record is removed or added.
        tail: Atoms of about this mass are left out, which lowers the bound further.

    Returns:
        The distribution: compositions of it bound delta from below.

    Example:
        >>> from dpaudit.accountants.numerics import Direction
        >>> law = subset_loss_distribution(1.0, 10, 2, Direction.REMOVED, 1e-12)
        >>> bool(0.999 < law.atom_masses.sum() < 1)
        True
    """
    rounded = 1e3 ** math.floor(math.log10(max(tail, LEAST_TAIL)) / 3)
    law = _subset_law(shift, steps, min(selected, MOST_SELECTED), rounded)
    losses, masses = law.losses, law.p_masses
    if direction is Direction.ADDED:
        losses, masses = -losses[::-1], law.q_masses[::-1]
    factor = ROUND_DOWN * math.exp(-(law.mass_error + law.move_error))
    lowered = np.nextafter(losses - law.move_error, -math.inf)
    return LossDistribution((), lowered, masses * factor, 0.0, 0.0, float(lowered[-1]), math.inf)
