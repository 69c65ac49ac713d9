"""An enclosure of delta without any transform: laws of the likelihood ratio, joined pair by pair.

For X = dP/dQ under Q, removed delta = E[(X - k)+] and added delta = E[(1 - k X)+], k = e^epsilon.
Both rise in the convex order, which products of independent ratios keep. After each product, the
atoms of a cell move to one atom at their mean (below) or to both ends of the cell, with mass and
mean kept (above). It shares no code with the accountants; its own rounding is far below ROUNDING.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

Array = NDArray[np.float64]
Cdf = Callable[[Array], Array]

ROUNDING = 1e-10
NEGLIGIBLE = 1e-15


@dataclass(frozen=True)
class RatioAtoms:
    """Losses log x of atoms with their masses under Q and under P, and the masses left out."""

    losses: Array
    q: Array
    p: Array
    lost_q: float = 0.0
    lost_p: float = 0.0


def regroup(atoms: RatioAtoms, step: float, *, above: bool) -> RatioAtoms:
    """Merge (below) or spread (above) atoms in cells of a loss between multiples of ``step``."""
    cells = np.floor(atoms.losses / step).astype(np.int64)
    first = int(cells.min())
    count = int(cells.max()) - first + 1
    q, p = (np.bincount(cells - first, masses, count) for masses in (atoms.q, atoms.p))
    held = q > 0
    if not above:
        return _without_tails(np.log(p[held] / q[held]), q[held], p[held], atoms)
    ends = np.arange(first, first + count + 1) * step
    ratio = np.exp(ends)
    # q = at_low + at_high and p = at_low e^low + at_high e^high.
    at_high = np.clip((p - q * ratio[:-1]) / np.diff(ratio), 0.0, q)
    masses = np.append(q - at_high, 0.0) + np.append(0.0, at_high)
    return _without_tails(ends, masses, masses * ratio, atoms)


def _without_tails(losses: Array, q: Array, p: Array, rest: RatioAtoms) -> RatioAtoms:
    kept = q + p > NEGLIGIBLE
    return RatioAtoms(
        losses[kept],
        q[kept],
        p[kept],
        rest.lost_q + float(q[~kept].sum()),
        rest.lost_p + float(p[~kept].sum()),
    )


def product(one: RatioAtoms, other: RatioAtoms, step: float, *, above: bool) -> RatioAtoms:
    """Return the law of the product of two independent ratios."""
    pairs = RatioAtoms(
        np.add.outer(one.losses, other.losses).ravel(),
        np.multiply.outer(one.q, other.q).ravel(),
        np.multiply.outer(one.p, other.p).ravel(),
        one.lost_q + other.lost_q,
        one.lost_p + other.lost_p,
    )
    return regroup(pairs, step, above=above)


def mean(one: RatioAtoms, other: RatioAtoms, step: float, *, above: bool) -> RatioAtoms:
    """Return the law of the mean of two independent ratios of equally many steps."""
    x = np.add.outer(np.exp(one.losses), np.exp(other.losses)).ravel() / 2
    q = np.multiply.outer(one.q, other.q).ravel()
    lost_p = (one.lost_p + one.lost_q + other.lost_p + other.lost_q) / 2
    pairs = RatioAtoms(np.log(x), q, q * x, one.lost_q + other.lost_q, lost_p)
    return regroup(pairs, step, above=above)


def power(atoms: RatioAtoms, times: int, step: float, *, above: bool) -> RatioAtoms:
    """Return the law of the product of independent copies."""
    found = atoms
    for digit in bin(times)[3:]:
        found = product(found, found, step, above=above)
        if digit == "1":
            found = product(found, atoms, step, above=above)
    return found


def composed(parts: Sequence[tuple[RatioAtoms, int]], step: float, *, above: bool) -> RatioAtoms:
    """Return the law of a composition of ratios with counts."""
    (first, times), *others = parts
    found = power(first, times, step, above=above)
    for atoms, count in others:
        found = product(found, power(atoms, count, step, above=above), step, above=above)
    return found


def from_masses(losses: Sequence[float], p: Sequence[float]) -> RatioAtoms:
    """Return a law from its atoms under P."""
    order = np.argsort(losses)
    z, masses = np.asarray(losses)[order], np.asarray(p)[order]
    return RatioAtoms(z, masses * np.exp(-z), masses)


def from_cells(edges: Array, q_cdf: Cdf, p_cdf: Cdf, *, above: bool) -> RatioAtoms:
    """Return a law from the masses of cells between losses, beyond which nothing is negligible.

    The functions give the masses below a loss under Q and under P, or above it where it is
    positive, as negative numbers; so that differences keep their accuracy in both tails.
    """
    q, p = np.diff(q_cdf(edges)), np.diff(p_cdf(edges))
    at_zero = np.searchsorted(edges, 0.0, side="right") - 1
    q[at_zero] += 1.0
    p[at_zero] += 1.0
    held = (q > 0) & (p > 0)
    q, p, low, high = q[held], p[held], edges[:-1][held], edges[1:][held]
    if not above:
        return RatioAtoms(np.log(p / q), q, p)
    at_high = np.clip((p - q * np.exp(low)) / (np.exp(high) - np.exp(low)), 0.0, q)
    losses = np.concatenate([low, high])
    masses = np.concatenate([q - at_high, at_high])
    ends = edges[[0, -1]]
    lost_q, lost_p = (float(np.abs(cdf(ends)).sum()) for cdf in (q_cdf, p_cdf))
    return RatioAtoms(losses, masses, masses * np.exp(losses), lost_q, lost_p)


def sampled_gaussian(noise: float, rate: float, step: float, *, above: bool) -> RatioAtoms:
    """Return the law of one Poisson-sampled Gaussian: ((1 - r) Q + r P, Q)."""

    def output(loss: Array) -> Array:
        """Return the output at which log(1 - r + r e^l) is ``loss``."""
        with np.errstate(divide="ignore", invalid="ignore"):
            inner = np.log((np.expm1(loss) + rate) / rate)
        return np.where(np.expm1(loss) + rate > 0, inner * noise**2 + 0.5, -np.inf)

    def masses(loss: Array, mean: float) -> Array:
        y = (output(loss) - mean) / noise
        return np.where(loss <= 0, ndtr(y), -ndtr(-y))

    def q_cdf(loss: Array) -> Array:
        return masses(loss, 0.0)

    def p_cdf(loss: Array) -> Array:
        return (1 - rate) * masses(loss, 0.0) + rate * masses(loss, 1.0)

    reach = 8 * noise + 1
    inner = (2 * reach - 1) / (2 * noise**2)
    top = math.log1p(rate * math.expm1(inner)) if inner < 30 else inner + math.log(rate)
    bottom = math.log1p(rate * math.expm1(-inner))
    edges = np.arange(math.floor(bottom / step) - 1, math.ceil(top / step) + 2) * step
    return from_cells(edges, q_cdf, p_cdf, above=above)


def laplace(scale: float, step: float, *, above: bool) -> RatioAtoms:
    """Return the law of Laplace noise at sensitivity 1: two atoms and a density between."""
    count = max(2, math.ceil(2 / (scale * step)))
    inner = np.linspace(-1 / scale, 1 / scale, count + 1)
    # Between 0 and 1 the loss is (1 - 2 u) / scale at u, with densities e^(-u/scale)/(2 scale)
    # under P (noise around 0) and e^(-(1-u)/scale)/(2 scale) under Q.
    u = (1 - inner * scale) / 2
    p = np.diff(-np.exp(-u / scale) / 2) * -1
    q = np.diff(np.exp(-(1 - u) / scale) / 2) * -1
    ends = np.array([-1 / scale, 1 / scale])
    p_ends = np.array([math.exp(-1 / scale) / 2, 0.5])
    q_ends = p_ends[::-1]
    if not above:
        losses = np.concatenate([[ends[0]], np.log(p / q), [ends[1]]])
        return RatioAtoms(
            losses,
            np.concatenate([[q_ends[0]], q, [q_ends[1]]]),
            np.concatenate([[p_ends[0]], p, [p_ends[1]]]),
        )
    low, high = inner[:-1], inner[1:]
    at_high = (p - q * np.exp(low)) / (np.exp(high) - np.exp(low))
    losses = np.concatenate([low, high, ends])
    masses = np.concatenate([q - at_high, at_high, q_ends])
    return RatioAtoms(losses, masses, masses * np.exp(losses))


def deltas(atoms: RatioAtoms, epsilon: float, *, above: bool) -> tuple[float, float]:
    """Return bounds of the removed and the added delta."""
    over, under = atoms.losses > epsilon, atoms.losses < -epsilon
    removed = float(atoms.p[over] @ -np.expm1(epsilon - atoms.losses[over]))
    added = float(atoms.q[under] @ -np.expm1(epsilon + atoms.losses[under]))
    if above:
        return (
            removed * (1 + ROUNDING) + atoms.lost_p,
            added * (1 + ROUNDING) + atoms.lost_q,
        )
    return removed * (1 - ROUNDING), added * (1 - ROUNDING)


def enclosed_delta(
    parts: Callable[[bool], Sequence[tuple[RatioAtoms, int]]], epsilon: float, step: float
) -> tuple[float, float]:
    """Return a lower and an upper bound of delta, of the larger direction."""
    lower, upper = (
        max(deltas(composed(parts(above), step, above=above), epsilon, above=above))
        for above in (False, True)
    )
    return lower, upper
