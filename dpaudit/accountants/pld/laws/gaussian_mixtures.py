"""Pairs of Gaussian mixtures whose losses rise along one axis, enclosed on cells.

In units of the noise's standard deviation, with all c_i and d_j at least 0,

    P = sum_i p_i N(c_i, 1),    Q = sum_j q_j N(-d_j, 1).

The loss log(dP/dQ)(x) rises with x. Equation 3 of docs/mathematics/dominating_pairs.md proves that
such a pair dominates every pair of mixtures of shifts with norms of at most c_i and d_j. It covers

    Poisson sample, record removed        P: 0, c     Q: 0
    Poisson sample, record replaced       P: 0, c     Q: 0, c
    Poisson sample, a and b records       P: binomial(a)    Q: binomial(b)
    truncated Poisson sample              two such pairs, of which a public coin selects one

The axis is cut into cells. A law below the pair merges every cell to its mean of dQ/dP. A law above
it spreads the cell to both ends with mass and mean kept (equations 7 and 8). Composition keeps
either order.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dpaudit.accountants.numerics import Direction, ndtr
from dpaudit.accountants.pld.laws.loss_distribution import LARGEST_BASE_LOSS, LossDistribution
from dpaudit.accountants.rounding_margins import ROUND_UP, UNIT_ROUNDOFF
from dpaudit.vocabulary.errors import Unresolvable

Array = NDArray[np.float64]

CELL = 0.01
"""Width of a cell over the standard deviation, and largest change of the loss in it, about."""
MOST_CELLS = 40_000
LARGEST_SHIFT = 1e6
LEAST_MASS = 1e-300
ROUNDINGS = 16
"""Roundings of a normal probability, and of a mixture of a few."""


@dataclass(frozen=True)
class MixturePair:
    """P = sum p_i N(c_i, 1) against Q = sum q_j N(-d_j, 1), in standard deviations.

    Attributes:
        right: Shifts c_i of P, each at least 0, shape ``(m,)``.
        right_weights: Their probabilities p_i, each above 0.
        left: Lengths d_j of the opposite shifts of Q, each at least 0, shape ``(n,)``.
        left_weights: Their probabilities q_j, each above 0.
    """

    right: tuple[float, ...]
    right_weights: tuple[float, ...]
    left: tuple[float, ...] = (0.0,)
    left_weights: tuple[float, ...] = (1.0,)

    def towards(self, direction: Direction) -> MixturePair:
        """Return the pair whose first distribution generates the output, mirrored if it is Q."""
        if direction is Direction.REMOVED:
            return self
        return MixturePair(self.left, self.left_weights, self.right, self.right_weights)

    @property
    def supremum(self) -> float:
        """The largest loss: finite if P has no shift and Q an unshifted part."""
        resting = sum(
            weight for at, weight in zip(self.left, self.left_weights, strict=True) if at == 0
        )
        if any(at > 0 for at in self.right) or not resting > 0:
            return math.inf
        return max(0.0, -math.log(min(1.0, resting))) * ROUND_UP

    def loss(self, x: Array) -> tuple[Array, Array]:
        """Return the loss log(dP/dQ) at points, with bounds on its error."""
        above, above_error = _log_mixture(x, np.array(self.right), self.right_weights)
        below, below_error = _log_mixture(-x, np.array(self.left), self.left_weights)
        return above - below, above_error + below_error + UNIT_ROUNDOFF * np.abs(above - below)


def sampled_pair(shift: float, rate: float) -> MixturePair:
    """Return the pair of a Poisson sample from which a record is removed.

    Args:
        shift: What the record adds, over the noise's standard deviation.
        rate: Sampling rate, in (0, 1].

    Returns:
        The pair ((1 - q) N(0) + q N(shift), N(0)).
    """
    shifts, weights = _coin(shift, rate)
    return MixturePair(shifts, weights)


def replaced_pair(shift: float, rate: float) -> MixturePair:
    """Return the pair of a Poisson sample in which a record is replaced by its opposite.

    Args:
        shift: Largest norm of a record, over the noise's standard deviation.
        rate: Sampling rate, in (0, 1].

    Returns:
        The pair ((1 - q) N(0) + q N(shift), (1 - q) N(0) + q N(-shift)).
    """
    shifts, weights = _coin(shift, rate)
    return MixturePair(shifts, weights, shifts, weights)


def _coin(shift: float, rate: float) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the shifts 0 and ``shift`` with their probabilities."""
    return ((0.0, shift), (1 - rate, rate)) if rate < 1 else ((shift,), (1.0,))


def lower_law(pair: MixturePair, direction: Direction, tail: float) -> LossDistribution:
    """Return a loss distribution below the pair's: each cell merged to its mean.

    Rounding to cells loses information, so its loss distribution gives lower bounds. Losses and
    masses are rounded down; what the masses lose has the least loss.

    Args:
        pair: The pair of mixtures.
        direction: Whether P (removed) or Q (added) generates the output.
        tail: Mass on either side beyond which cells are merged.

    Returns:
        Atoms, with no mass left out.
    """
    facing = pair.towards(direction)
    cells = _cells(facing, _edges(facing, tail))
    kept = (cells.p > LEAST_MASS) & (cells.error < 0.5)
    # A larger mass of Q lowers the loss, so one that underflows may be rounded up.
    p, q, error = cells.p[kept], np.maximum(cells.q, LEAST_MASS)[kept], cells.error[kept]
    log_p, log_q = np.log(p), np.log(q)
    losses = log_p - log_q - 2 * error - 4 * UNIT_ROUNDOFF * (np.abs(log_p) + np.abs(log_q))
    masses = p * (1 - error)
    losses = np.append(losses, losses.min())
    masses = np.append(masses, max(0.0, 1 - float(masses.sum())))
    largest = float(losses.max())
    return LossDistribution((), losses, masses, 0.0, 0.0, largest, largest)


def upper_law(
    pair: MixturePair, direction: Direction, tail: float, share: float = 1.0
) -> LossDistribution:
    """Return a loss distribution above the pair's: each cell spread to its ends.

    Args:
        pair: The pair of mixtures.
        direction: Whether P (removed) or Q (added) generates the output.
        tail: Mass of unbounded losses that may be left out.
        share: Probability of a public coin with which this pair is used at all.

    Returns:
        Atoms of total mass ``share``, rounded up, with the mass left out.
    """
    facing = pair.towards(direction)
    edges = _edges(facing, tail)
    cells = _cells(facing, edges)
    masses = _upper_masses(facing, edges) * (share * (1 + 4 * UNIT_ROUNDOFF))
    spread = shares_of_upper_ends(cells)
    # One atom per edge: the upper part of the cell on its left, the lower part of the right one.
    losses = cells.high[:-1]
    if not losses[-1] < LARGEST_BASE_LOSS:
        raise Unresolvable(
            f"losses of up to {losses[-1]:g} nats cannot be certified, only those below "
            f"{LARGEST_BASE_LOSS:g}: increase the noise"
        )
    atoms = np.append(masses[:1], masses[1:-1] * spread)
    atoms[:-1] += masses[1:-1] * (1 - spread)
    truncated, supremum = 0.0, facing.supremum
    if supremum < math.inf:
        losses, atoms = np.append(losses, supremum), np.append(atoms, masses[-1])
    else:
        truncated = float(masses[-1])
    kept = atoms > 0
    losses, atoms = losses[kept], atoms[kept]
    return LossDistribution((), losses, atoms, truncated, 0.0, float(losses.max()), supremum)


def mixed_laws(parts: list[LossDistribution]) -> LossDistribution:
    """Join the laws of pairs of which a public coin selects one.

    Args:
        parts: Atoms, whose masses include the probability of the part.

    Returns:
        Their sum.
    """
    return LossDistribution(
        (),
        np.concatenate([part.atom_losses for part in parts]),
        np.concatenate([part.atom_masses for part in parts]),
        sum(part.truncated_mass for part in parts) * ROUND_UP,
        0.0,
        max(part.largest for part in parts),
        max(part.supremum for part in parts),
    )


@dataclass(frozen=True)
class LossCells:
    """Cells of the axis, from -infinity to infinity, with at least three of them.

    Attributes:
        p: Masses under P.
        q: Masses under Q.
        error: Bound on the relative error of either mass.
        low: Lower bounds of the loss in the cell; -infinity in the first one.
        high: Upper bounds of the loss in the cell; infinity in the last one.
    """

    p: Array
    q: Array
    error: Array
    low: Array
    high: Array


def _edges(pair: MixturePair, tail: float) -> Array:
    """Return rising ends of cells that hold all but ``tail`` of P between the outer two."""
    farthest, slope = max(pair.right), max(pair.right) + max(pair.left)
    if not slope < LARGEST_SHIFT:
        raise Unresolvable(
            f"a shift of {slope:g} standard deviations cannot be certified: increase the noise"
        )
    reach = math.sqrt(-2 * math.log(tail))
    width = reach + farthest + reach
    count = max(8, min(MOST_CELLS, math.ceil(width * max(1.0, slope) / CELL)))
    return np.linspace(-reach, farthest + reach, count + 1)


def _cells(pair: MixturePair, edges: Array) -> LossCells:
    """Return the cells between the edges, with the two unbounded ones."""
    p, p_error = _mixture_masses(edges, np.array(pair.right), pair.right_weights)
    q, q_error = _mixture_masses(edges, -np.array(pair.left), pair.left_weights)
    # Edges that are moved by a shift are rounded, so P's and Q's cells differ a little.
    farthest = float(np.abs(edges).max()) + max(pair.right) + max(pair.left)
    moved = 4 * UNIT_ROUNDOFF * farthest / float(np.diff(edges).min())
    loss, loss_error = pair.loss(edges)
    low = np.concatenate([[-math.inf], loss - loss_error])
    high = np.concatenate([loss + loss_error, [math.inf]])
    return LossCells(p, q, p_error + q_error + moved, low, high)


def _upper_masses(pair: MixturePair, edges: Array) -> Array:
    """Return P's masses of all cells, moved up by what rounding may have left out.

    The probability above an edge has a small relative error, unlike a difference of two. It is
    rounded up, so that the masses sum to 1 and what is moved can only raise the loss.
    """
    above = np.zeros(len(edges))
    for shift, weight in zip(pair.right, pair.right_weights, strict=True):
        away = np.abs(edges - shift)
        # An edge rounded by u |x| changes the tail by at most u |x| (|x| + 1), relatively.
        error = UNIT_ROUNDOFF * (ROUNDINGS + 4 + len(pair.right) + 2 * away * (away + 1))
        above += weight * ndtr(shift - edges) * (1 + error)
    above = np.minimum.accumulate(np.minimum(above, 1.0))
    return np.concatenate([[1 - above[0]], -np.diff(above), above[-1:]])


def shares_of_upper_ends(cells: LossCells) -> Array:
    """Return the share of each inner cell's P-mass that is moved to its upper end.

    With losses l < h at the ends, the mean q/p of dQ/dP is kept by the share
    (1 - e^(l + log(q/p)))/(1 - e^(l - h)). It is rounded up: a larger one has larger losses.

    Args:
        cells: All n + 2 cells, of which the outer two are left out.

    Returns:
        Shares from 0 to 1, shape ``(n,)``.
    """
    p, q, error = cells.p[1:-1], cells.q[1:-1], cells.error[1:-1]
    low, high = cells.low[1:-1], cells.high[1:-1]
    log_p, log_q = np.log(np.maximum(p, LEAST_MASS)), np.log(np.maximum(q, LEAST_MASS))
    slack = 4 * error + 4 * UNIT_ROUNDOFF * (np.abs(log_p) + np.abs(log_q) + np.abs(low))
    fallen = np.minimum(low + (log_q - log_p) - slack, 0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.expm1(fallen) / np.expm1(np.minimum(low - high, 0.0)) * (1 + 8 * UNIT_ROUNDOFF)
    # A mass of Q that underflows gives no mean: the whole cell moves up.
    share = np.where((q > LEAST_MASS) & (high > low), share, 1.0)
    return np.clip(share, 0.0, 1.0)


def _log_mixture(x: Array, shifts: Array, weights: tuple[float, ...]) -> tuple[Array, Array]:
    """Return log sum_i w_i e^(c_i x - c_i^2/2), with bounds on its error."""
    logs = np.log(np.array(weights))[:, None]
    terms = logs + shifts[:, None] * x - (shifts * shifts / 2)[:, None]
    sizes = np.abs(logs) + np.abs(shifts[:, None] * x) + (shifts * shifts / 2)[:, None]
    peak = terms.max(axis=0)
    shares = np.exp(terms - peak)
    total = shares.sum(axis=0)
    # Every term counts by its share: a tiny one may have a large error in its logarithm.
    error = ((4 * sizes + np.abs(peak) + 8) * shares).sum(axis=0) / total
    return peak + np.log(total), UNIT_ROUNDOFF * (error + np.abs(peak) + len(weights))


def _mixture_masses(edges: Array, shifts: Array, weights: tuple[float, ...]) -> tuple[Array, Array]:
    """Return the mixture's masses of all cells, and bounds on their relative errors."""
    total, absolute = np.zeros(len(edges) + 1), np.zeros(len(edges) + 1)
    for shift, weight in zip(shifts, weights, strict=True):
        masses, error = _normal_masses(edges - shift)
        total += weight * masses
        absolute += weight * error
    return total, absolute / np.maximum(total, LEAST_MASS) + 4 * len(weights) * UNIT_ROUNDOFF


def _normal_masses(edges: Array) -> tuple[Array, Array]:
    """Return N(0, 1) of each cell, from the nearer tail, with bounds on the absolute errors."""
    ends = np.concatenate([[-math.inf], edges, [math.inf]])
    right = ends[:-1] > 0
    tail = ndtr(-np.abs(ends))
    above, below = np.where(ends > 0, tail, 1 - tail), np.where(ends > 0, 1 - tail, tail)
    near = np.where(right, above[:-1], below[1:])
    far = np.where(right, above[1:], below[:-1])
    return np.maximum(near - far, 0.0), ROUNDINGS * UNIT_ROUNDOFF * near
