"""Laws of a likelihood ratio as atoms, and the moves that keep them above or below the truth.

Let X = dP/dQ be the likelihood ratio of a pair, distributed under Q. With k = e^epsilon,

    removed  delta(epsilon) = E[(X - k)+],        added  delta(epsilon) = E[(1 - k X)+].

Both are means of convex functions of X that are at least 0. A finite measure is at most another
one in this order if every such mean is at most the other's. Equation numbers refer to
docs/mathematics/random_allocation.md.

    below   atoms of a cell become one atom at their mean (Jensen); mass may be dropped
    above   atoms of a cell move to its ends, with mass and mean kept; mass may be added

Every term is positive, so no rounding error is amplified.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from dpaudit.accountants.rounding_margins import UNIT_ROUNDOFF
from dpaudit.vocabulary.errors import Unresolvable

Array = NDArray[np.float64]

FUNCTION_ERROR = 8 * UNIT_ROUNDOFF
"""Largest relative error of numpy's exp, log, expm1 and arcsinh: four units in the last place."""
LARGEST_LOSS = 600.0
"""Largest loss of an atom in nats: its exponential, times a mass, is a double."""
LEAST_MASS = 1e-290
"""Cells with less mass are left out: sums of smaller products lose relative accuracy."""


@dataclass(frozen=True)
class RatioGrid:
    """Cells of losses z = log x, whose edges are turn * width * sinh(k fineness / turn).

    Near 0 the cells are ``width * fineness`` wide, and where |z| is large, ``|z| fineness / turn``.

    Attributes:
        width: Loss around which cells begin to widen, divided by ``turn``; in nats.
        turn: How many widths away from 0 cells begin to widen.
        fineness: Width of the cells around 0, divided by ``width``.
        first: Number k of the first edge.
        last: Number k of the last edge.
    """

    width: float
    turn: float
    fineness: float
    first: int
    last: int

    @classmethod
    def covering(
        cls, low: float, high: float, *, width: float, turn: float, fineness: float
    ) -> RatioGrid:
        """Return a grid with at least one further cell on either side of an interval.

        Args:
            low: Least loss in nats.
            high: Largest loss in nats.
            width: See the class.
            turn: See the class.
            fineness: See the class.

        Returns:
            The grid.
        """
        first, last = (math.asinh(end / (turn * width)) * turn / fineness for end in (low, high))
        return cls(width, turn, fineness, math.floor(first) - 1, math.ceil(last) + 1)

    @property
    def cells(self) -> int:
        """Number of cells."""
        return self.last - self.first

    @cached_property
    def edges(self) -> Array:
        """Edges of the cells in nats, rising, shape ``(cells + 1,)``."""
        numbers = np.arange(self.first, self.last + 1) * (self.fineness / self.turn)
        return np.asarray(self.turn * self.width * np.sinh(numbers))

    @cached_property
    def placement_error(self) -> float:
        """Largest displacement of a loss, in nats, by the rounding of edges and of ``locate``.

        A loss moves by (turn width + |z|) times a relative error of arsinh(z / (turn width)).
        """
        scale = self.turn * self.width
        widest = max(-float(self.edges[0]), float(self.edges[-1]))
        return (scale + widest) * math.asinh(widest / scale) * (4 * FUNCTION_ERROR)

    def locate(self, losses: Array) -> NDArray[np.intp]:
        """Return the number of the cell of each loss.

        Args:
            losses: Losses inside the grid, of any shape; overwritten.

        Returns:
            Numbers from 0 to ``cells`` - 1, of the same shape.
        """
        losses *= 1 / (self.turn * self.width)
        np.arcsinh(losses, out=losses)
        losses *= self.turn / self.fineness
        losses -= self.first
        return losses.astype(np.intp)


@dataclass(frozen=True)
class RatioLaw:
    """Atoms of a likelihood ratio x, under Q and under P.

    Attributes:
        losses: z = log x in nats, rising, shape ``(n,)``.
        q_masses: Masses under Q, shape ``(n,)``.
        p_masses: Masses under P, which are x times those under Q, shape ``(n,)``.
        lost_q: Upper bound on the Q-mass that a law from above leaves out.
        lost_p: Upper bound on the P-mass that a law from above leaves out.
        mass_error: Largest |log| of a factor by which rounding changed a mass.
        move_error: Largest change of a loss by rounding, in nats.
    """

    losses: Array
    q_masses: Array
    p_masses: Array
    lost_q: float
    lost_p: float
    mass_error: float
    move_error: float

    @property
    def deviation(self) -> float:
        """Standard deviation of the loss under Q, in nats."""
        weights = self.q_masses / self.q_masses.sum()
        return math.sqrt(float(weights @ (self.losses - weights @ self.losses) ** 2))


def beyond_largest_loss() -> Unresolvable:
    """Return the refusal of a pass with losses beyond ``LARGEST_LOSS``."""
    return Unresolvable(
        f"losses of more than {LARGEST_LOSS:g} nats within one pass: increase the noise"
    )


def settle(
    q_sums: Array, p_sums: Array, grid: RatioGrid, errors: RatioLaw, *, above: bool, tail: float
) -> RatioLaw:
    """Turn the sums of masses in each cell into atoms.

    From below a cell becomes one atom at its mean p/q (equation 5). From above its mass moves to
    the ends l, u with shares that keep both sums (equation 6):

        share of u = (p/q - x_l)/(x_u - x_l) = expm1(z - l)/expm1(u - l).

    Args:
        q_sums: Q-mass of each cell, shape ``(grid.cells,)``.
        p_sums: P-mass of each cell, shape ``(grid.cells,)``.
        grid: The cells.
        errors: A law whose lost masses and rounding errors are those of the sums.
        above: Whether the law shall be above the truth.
        tail: Mass that either end of the law may leave out.

    Returns:
        The law, without its negligible ends.

    Raises:
        Unresolvable: If losses are beyond ``LARGEST_LOSS``.
    """
    edges = grid.edges
    if not max(-edges[0], edges[-1]) < LARGEST_LOSS:
        raise beyond_largest_loss()
    held = (q_sums > LEAST_MASS) & (p_sums > LEAST_MASS)
    lost_q, lost_p = (float(sums[~held].sum()) * (1 + 1e-6) for sums in (q_sums, p_sums))
    q, p, low, high = q_sums[held], p_sums[held], edges[:-1][held], edges[1:][held]
    losses = np.log(p / q)
    if not above:
        return _trim(replace(errors, losses=losses, q_masses=q, p_masses=p), tail)
    share = np.clip(np.expm1(losses - low) / np.expm1(high - low), 0.0, 1.0)
    at_edges = np.zeros(len(edges))
    at_edges[:-1][held] += q * (1 - share)
    at_edges[1:][held] += q * share
    used = at_edges > 0
    losses, q = edges[used], at_edges[used]
    law = RatioLaw(
        losses,
        q,
        q * np.exp(losses),
        errors.lost_q + lost_q,
        errors.lost_p + lost_p,
        errors.mass_error,
        errors.move_error,
    )
    return _trim(law, tail)


def _trim(law: RatioLaw, tail: float) -> RatioLaw:
    """Leave out either end of at most ``tail``; what is lost matters from above alone."""
    weights = law.q_masses + law.p_masses
    first = int(np.searchsorted(np.cumsum(weights), tail))
    last = len(weights) - int(np.searchsorted(np.cumsum(weights[::-1]), tail))
    lost_q, lost_p = (
        (float(masses[:first].sum()) + float(masses[last:].sum())) * (1 + 1e-6)
        for masses in (law.q_masses, law.p_masses)
    )
    return replace(
        law,
        losses=law.losses[first:last],
        q_masses=law.q_masses[first:last],
        p_masses=law.p_masses[first:last],
        lost_q=law.lost_q + lost_q,
        lost_p=law.lost_p + lost_p,
    )


BLOCK = 2**14  # pairs that are formed at once: their arrays stay in the cache
OMITTED_PAIRS = 4.0  # tails: one at either end of each row, and as much of mirror images


@dataclass(frozen=True)
class JoinSettings:
    """What the laws of a computation have in common.

    Attributes:
        above: Whether the laws shall be above the truth, or below.
        fineness: Width of the cells around 0 over the standard deviation of the loss.
        turn: See ``RatioGrid``.
        tail: Mass that either end of a law may leave out.
    """

    above: bool
    fineness: float
    turn: float
    tail: float


def mean_of(
    left: RatioLaw, right: RatioLaw, counts: tuple[int, int], settings: JoinSettings
) -> RatioLaw:
    """Return the law of the weighted mean of two independent likelihood ratios.

    With weights a and b, the pair of atoms (x, x') is an atom (a x + b x')/(a + b) of Q-mass q q'
    (equation 3). The P-law of the mean is a mixture of P x Q and Q x P, so P-masses left out add
    to (a (lost_p + lost_q') + b (lost_q + lost_p'))/(a + b) (equation 9).

    Args:
        left: Law of the first ratio.
        right: Law of the second ratio; the same object may stand for an independent copy.
        counts: How many independent ratios each is the mean of: the weights.
        settings: Side, grid and tail.

    Returns:
        The law, rounded to a grid.
    """
    a, b = counts[0] / sum(counts), counts[1] / sum(counts)
    grid = RatioGrid.covering(
        min(left.losses[0], right.losses[0]),
        max(left.losses[-1], right.losses[-1]),
        width=min(1.0, math.hypot(a * left.deviation, b * right.deviation)),
        turn=settings.turn,
        fineness=settings.fineness,
    )
    q_sums, p_sums, terms = _sum_over_pairs(left, right, (a, b), grid, settings.tail)
    # Equation 13: at most ``terms`` additions, and nine further roundings.
    rounding = (terms + 16) * UNIT_ROUNDOFF + 2 * FUNCTION_ERROR
    widest = max(-grid.edges[0], grid.edges[-1])
    errors = RatioLaw(
        q_sums,
        q_sums,
        p_sums,
        (left.lost_q + right.lost_q + OMITTED_PAIRS * settings.tail) * (1 + 1e-12),
        (
            a * (left.lost_p + right.lost_q)
            + b * (left.lost_q + right.lost_p)
            + OMITTED_PAIRS * settings.tail
        )
        * (1 + 1e-12),
        (left.mass_error + right.mass_error + rounding) * (1 + 1e-12),
        max(left.move_error, right.move_error)
        + (2 * rounding + FUNCTION_ERROR * (4 + widest) + grid.placement_error),
    )
    return settle(q_sums, p_sums, grid, errors, above=settings.above, tail=settings.tail)


def _sum_over_pairs(
    left: RatioLaw, right: RatioLaw, weights: tuple[float, float], grid: RatioGrid, tail: float
) -> tuple[Array, Array, int]:
    """Return the Q- and P-mass of all pairs in each cell, and the largest number of additions.

    Pairs are left out whose Q-masses and whose P-masses sum to at most ``OMITTED_PAIRS * tail``:
    with w = q + p, both masses of a pair are at most w w' (equation 8).
    """
    left_x, right_x = weights[0] * np.exp(left.losses), weights[1] * np.exp(right.losses)
    q_sums, p_sums = np.zeros(grid.cells), np.zeros(grid.cells)
    size, same = len(right.losses), left is right
    rows = max(1, BLOCK // size)
    blocks = range(0, len(left.losses), rows)
    left_weights, right_weights = (law.q_masses + law.p_masses for law in (left, right))
    rising, falling = np.cumsum(right_weights), np.cumsum(right_weights[::-1])
    for start in blocks:
        block = slice(start, min(start + rows, len(left.losses)))
        negligible = tail / len(blocks) / float(left_weights[block].sum())
        first = int(np.searchsorted(rising, negligible))
        last = size - int(np.searchsorted(falling, negligible))
        right_q = right.q_masses
        if same:  # a pair right of the block stands for its mirror image as well
            first, last = max(first, start), max(last, start)
            right_q = np.where(np.arange(size) >= block.stop, 2 * right_q, right_q)
        x = np.add.outer(left_x[block], right_x[first:last]).ravel()
        q = np.multiply.outer(left.q_masses[block], right_q[first:last]).ravel()
        p = q * x
        np.log(x, out=x)
        cells = grid.locate(x)
        q_sums += np.bincount(cells, q, grid.cells)
        p_sums += np.bincount(cells, p, grid.cells)
    return q_sums, p_sums, rows * size + len(blocks)


def mean_of_copies(law: RatioLaw, copies: int, settings: JoinSettings) -> RatioLaw:
    """Return the law of the mean of independent copies of a ratio.

    Args:
        law: Law of one copy.
        copies: Number of copies.
        settings: Side, grid and tail.

    Returns:
        The law, after a join per doubling and per binary digit 1 of ``copies``.
    """
    found, count = law, 1
    for digit in bin(copies)[3:]:
        found, count = mean_of(found, found, (1, 1), settings), 2 * count
        if digit == "1":
            found, count = mean_of(found, law, (count, 1), settings), count + 1
    return found
