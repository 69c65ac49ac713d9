"""One release's privacy loss L under P, in one direction, as points with masses.

A batch that the record joins with probability q turns the pair (P, Q) into

    removed        ((1-q) Q + q P, Q):   L = log r(l),   dP' = r(l) dQ,   r(l) = 1 - q + q e^l
    added          (Q, (1-q) Q + q P):   L = -log r(l),  dP' = dQ
    replaced       the first where l > 0, the second mirrored: L = -log r(l) where l > 0;
                   what is left of P' has no loss at all

(Zhu, Dong & Wang 2022, arXiv:2106.08567, Theorem 11). Densities become Gauss-Legendre
points, each panel with its own bound on the error: of the integrand's modulus M on the
Bernstein ellipse of parameter rho, with half axes (rho +- 1/rho)/2 of the half width w,

    |integral - rule| <= (64/15) w M rho^(-2(n-1)) / (1 - rho^-2)

(Trefethen 2013, Approximation Theory and Practice, Theorem 19.3, for n points).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from dpaudit.accountants.pld.pairs import Density, Pair
from dpaudit.vocabulary.errors import Unresolvable

Array = NDArray[np.float64]

UNIT_ROUNDOFF = 2.0**-53
POINTS = 16
GAUSS_X, GAUSS_W = np.polynomial.legendre.leggauss(POINTS)
RADII = np.array([2.5, 4.0, 6.0, 9.0, 14.0])[:, None]
LOG_RULE = np.log(64 / 15) - 2 * (POINTS - 1) * np.log(RADII) - np.log1p(-(RADII**-2))
# A panel may be this wide: in the density's own scale, in base losses (log r is analytic
# where |Im l| < pi), and in radians of the oscillation to be integrated.
WIDTH_IN_SCALES, WIDTH_IN_LOSSES, WIDTH_IN_RADIANS = 1.2, 0.8, 7.0
LOG_NEGLIGIBLE, LOG_GONE = -46.0, 60.0
LARGEST_LOSS = 700.0  # its exponential is a double
LARGEST_BASE_LOSS, LARGEST_ATOM = 5e3, 600.0
MOST_PANELS, AFFORDED_PANELS = 100_000, 20_000
ORDERS = np.geomspace(1.0, 1e15, 46)
ROUNDED_UP = 1 + 2.0**-52


class Way(Enum):
    """From which of the two neighbours the output is."""

    REMOVED = 1
    """P has the record."""

    ADDED = -1
    """P lacks it."""


@dataclass(frozen=True)
class Points:
    """A law of losses, tilted by exp(order * loss), as points: what remains is an estimate.

    Attributes:
        losses: Shape ``(n,)``.
        masses: Shape ``(n,)``, of the tilted law; they sum to 1 up to rounding.
        log_moment: log E[exp(order * L)], L inside the range that is kept.
        error: Bound on the error of the points' characteristic function up to frequency
            ``reach``; and on that of the logarithm of the moment.
    """

    losses: Array
    masses: Array
    log_moment: float
    error: float
    reach: float


def log_ratio(base: Array, rate: float) -> Array:
    """Return log(1 - q + q e^l), to relative precision also where it is tiny."""
    if rate == 1:
        return base
    near = np.log1p(rate * np.expm1(np.minimum(base, LARGEST_LOSS)))
    if base.size and base.max() > LARGEST_LOSS:
        near = np.where(base > LARGEST_LOSS, base + math.log(rate), near)
    return np.asarray(near)


@dataclass(frozen=True)
class Branch:
    """One density of a pair under sampling, from base loss ``low`` to ``high``."""

    density: Density
    rate: float
    way: Way
    low: float
    high: float

    @property
    def power(self) -> int:
        """The tilted density is q(l) r(l)^(power + sign * order)."""
        return 1 if self.way is Way.REMOVED else 0

    @property
    def supremum(self) -> float:
        """What no loss of the whole density exceeds."""
        end = self.way.value * self.density.largest
        if self.rate == 1 or end > LARGEST_LOSS:
            return self.density.largest
        return self.way.value * float(log_ratio(np.array([end]), self.rate)[0])

    def panels(self, order: float, reach: float) -> tuple[Array, NDArray[np.bool_]]:
        """Cut the interval into panels that resolve exp((order + i y) L), |y| <= reach.

        Returns their edges, and which of them hold more than nothing of the tilted law.
        """
        coarse, ratios, top = self._coarse
        exponent = self.power + self.way.value * order
        top = top + exponent * (ratios[1:] if exponent > 0 else ratios[:-1])
        worth = top - top.max() > LOG_NEGLIGIBLE
        steps = np.diff(ratios) * ((reach + order) / WIDTH_IN_RADIANS)
        pieces = np.where(worth, np.clip(np.ceil(steps), 1, MOST_PANELS), 1).astype(np.int64)
        return self._subdivided(coarse, pieces), np.repeat(worth, pieces)

    def panels_for_orders(self, top: float) -> Array:
        """Return the edges of panels that resolve exp(c L) for every 0 <= c <= ``top``.

        Where L is far below 0, only orders up to some 60 / |L| leave anything of it.
        """
        steps = self._steps(np.array([top]))[0]
        pieces = np.clip(np.ceil(steps), 1, MOST_PANELS).astype(np.int64)
        return self._subdivided(self._coarse[0], pieces)

    @cached_property
    def steepest(self) -> float:
        """About the largest order up to which ``AFFORDED_PANELS`` resolve exp(c L)."""
        counts = np.maximum(self._steps(ORDERS), 1).sum(axis=1)
        return float(ORDERS[max(0, int(np.searchsorted(counts, AFFORDED_PANELS)) - 1)])

    def _steps(self, tops: Array) -> Array:
        """Return by how much to divide each panel for orders up to ``tops``: (tops, panels)."""
        ratios = self._coarse[1]
        nearest = np.maximum(ratios[1:], ratios[:-1]) if self.way is Way.REMOVED else -ratios[:-1]
        orders = np.minimum(tops[:, None], LOG_GONE / np.maximum(-nearest, 1e-9))
        return np.asarray(np.diff(ratios) * orders / WIDTH_IN_RADIANS)

    @cached_property
    def _coarse(self) -> tuple[Array, Array, Array]:
        """Edges of panels as wide as they may be, log r there, and bounds on the log density."""
        width = min(WIDTH_IN_SCALES * self.density.scale, WIDTH_IN_LOSSES)
        count = max(2, math.ceil((self.high - self.low) / width) + 1)
        edges = np.linspace(self.low, self.high, count)
        top = self.density.log_above(edges[:-1], edges[1:], np.zeros(count - 1))
        return edges, log_ratio(edges, self.rate), top

    def above(self, loss: float) -> tuple[Branch | None, Branch | None]:
        """Split in two: where L <= ``loss``, and where it is above."""
        cut = float(self._base(np.array([self.way.value * loss]))[0])
        cut = self.low if math.isnan(cut) else min(max(self.low, cut), self.high)
        left = replace(self, high=cut) if cut > self.low else None
        right = replace(self, low=cut) if cut < self.high else None
        return (left, right) if self.way is Way.REMOVED else (right, left)

    def _subdivided(self, coarse: Array, pieces: NDArray[np.int64]) -> Array:
        """Divide panel k into ``pieces[k]``, evenly in the loss."""
        if len(pieces) == pieces.sum():
            return coarse
        if pieces.sum() >= MOST_PANELS:
            raise Unresolvable(f"{pieces.sum()} panels would be needed to resolve one release")
        starts = np.repeat(np.cumsum(pieces) - pieces, pieces)
        share = (np.arange(pieces.sum()) - starts) / np.repeat(pieces, pieces)
        ratios = self._coarse[1]
        target = np.repeat(ratios[:-1], pieces) + share * np.repeat(np.diff(ratios), pieces)
        base = self._base(target)
        first = share == 0
        base[first] = coarse[:-1]
        low, high = np.repeat(coarse[:-1], pieces), np.repeat(coarse[1:], pieces)
        return np.append(np.clip(base, low, high), coarse[-1])

    def _base(self, ratios: Array) -> Array:
        """Invert ``log_ratio``; panels' edges need not be exact."""
        if self.rate == 1:
            return ratios
        with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
            near = np.log1p(np.expm1(np.minimum(ratios, LARGEST_LOSS)) / self.rate)
        return np.where(ratios > LARGEST_LOSS, ratios - math.log(self.rate), near)

    def log_sup(self, low: Array, high: Array, order: float) -> Array:
        """Bound the log of the tilted density on [low, high]."""
        exponent = self.power + self.way.value * order
        end = high if exponent > 0 else low
        return self.density.log_above(low, high, np.zeros_like(low)) + exponent * log_ratio(
            end, self.rate
        )

    def log_errors(self, edges: Array, orders: Array, reach: float) -> Array:
        """Bound the log of the rule's error, shape ``(orders, panels)``."""
        middle, half = (edges[:-1] + edges[1:]) / 2, np.diff(edges) / 2
        long = half * (RADII + 1 / RADII) / 2
        away = half * (RADII - 1 / RADII) / 2
        low, high = middle - long, middle + long
        exponents = self.power + self.way.value * orders
        log_modulus, turn = self._off_axis(low, high, away)
        bound = LOG_RULE + np.log(half) + self.density.log_above(low, high, away) + reach * turn
        if self.rate < 1:  # log r is analytic up to pi; the bounds hold up to pi/2
            bound = np.where(away < math.pi / 2, bound, np.inf)
        return np.asarray((bound + exponents[:, None, None] * log_modulus).min(axis=1))

    def _off_axis(self, low: Array, high: Array, away: Array) -> tuple[Array, Array]:
        """Bound log |r|, from the side that counts, and |arg r| on |Im l| <= away <= pi/2.

        |r| <= r(Re l); |r| >= r(Re l) cos(Im l / 2) and >= 1 - q. The argument is at most
        |Im l|, and at most |Im l| times the largest |q e^l / r| <= sqrt(2) q e^l / r(Re l).
        """
        if self.rate == 1:
            return (high if self.way is Way.REMOVED else low), away
        top = log_ratio(high, self.rate)
        with np.errstate(over="ignore"):
            turn = away * np.minimum(1.0, math.sqrt(2) * self.rate * np.exp(high - top))
        if self.way is Way.REMOVED:
            return top, turn
        cosine = np.log(np.cos(np.minimum(away, math.pi / 2) / 2))
        return np.maximum(log_ratio(low, self.rate) + cosine, math.log1p(-self.rate)), turn


@dataclass(frozen=True)
class LossLaw:
    """The law of one release's loss under P: branches with densities, and atoms.

    Attributes:
        branches: Parts with a density.
        atoms: Losses and masses under P.
        cut: P-mass of finite losses that is left out, at most.
        infinite: P-mass of infinite losses; at most, and to the last digits.
        largest: The largest loss that is kept.
        supremum: What no loss exceeds, kept or not, infinite ones aside.
    """

    branches: tuple[Branch, ...]
    atom_losses: Array
    atom_masses: Array
    cut: float
    infinite: float
    largest: float
    supremum: float

    @property
    def beyond(self) -> float:
        """P-mass that is not held, at most."""
        return self.cut + self.infinite

    @property
    def steepest(self) -> float:
        """The largest order that panels can be afforded for."""
        return min((branch.steepest for branch in self.branches), default=math.inf)

    @cached_property
    def rough(self) -> tuple[Array, Array]:
        """Losses and log masses on panels as wide as they may be: for searching alone."""
        parts = [_on_panels(branch, branch.panels_for_orders(1e-9)) for branch in self.branches]
        with np.errstate(divide="ignore"):
            return (
                np.concatenate([*(part[0] for part in parts), self.atom_losses]),
                np.concatenate([*(part[1] for part in parts), np.log(self.atom_masses)]),
            )

    def rough_log_moments(self, orders: Array) -> Array:
        """Return about log E[exp(c L)] for every order."""
        losses, log_masses = self.rough
        terms = log_masses + np.multiply.outer(orders, losses)
        return _log_sums(terms)

    def split(self, loss: float) -> tuple[LossLaw, LossLaw]:
        """Return the part with losses up to ``loss``, and the part above it."""
        pairs = [branch.above(loss) for branch in self.branches]
        small = self.atom_losses <= loss
        below = tuple(pair[0] for pair in pairs if pair[0] is not None)
        above = tuple(pair[1] for pair in pairs if pair[1] is not None)
        losses, masses = self.atom_losses, self.atom_masses
        return (
            replace(
                self,
                branches=below,
                atom_losses=losses[small],
                atom_masses=masses[small],
                largest=loss,
                supremum=loss,
            ),
            replace(
                self,
                branches=above,
                atom_losses=losses[~small],
                atom_masses=masses[~small],
                cut=0.0,
                infinite=0.0,
            ),
        )

    def points(self, order: float, reach: float) -> Points:
        """Return the tilted law as points good up to frequency ``reach``."""
        parts = [_branch_points(branch, order, reach) for branch in self.branches]
        losses = np.concatenate([*(part[0] for part in parts), self.atom_losses])
        with np.errstate(divide="ignore"):
            log_masses = np.concatenate([*(part[1] for part in parts), np.log(self.atom_masses)])
        exponents = log_masses + order * losses
        peak = float(exponents.max())
        masses = np.exp(exponents - peak)
        total = float(masses.sum())
        log_moment = peak + math.log(total)
        masses /= total
        missing = sum(math.exp(min(0.0, part[2] - log_moment)) for part in parts)
        rounding = UNIT_ROUNDOFF * (
            24 + 4 * abs(peak) + 4 * float(masses @ (np.abs(log_masses) + np.abs(order * losses)))
        )
        return Points(losses, masses, log_moment, missing + rounding, reach)

    def log_moments(self, orders: Array) -> tuple[Array, Array]:
        """Return log E[exp(c L)] from both sides, for every order, L inside what is kept."""
        top = float(orders.max())
        exponents, log_errors = [], []
        for branch in self.branches:
            edges = branch.panels_for_orders(top)
            losses, log_masses = _on_panels(branch, edges)
            exponents.append(log_masses + np.multiply.outer(orders, losses))
            log_errors.append(_log_sums(branch.log_errors(edges, orders, 0.0)))
        if len(self.atom_losses):
            with np.errstate(divide="ignore"):
                exponents.append(
                    np.log(self.atom_masses) + np.multiply.outer(orders, self.atom_losses)
                )
        terms = np.concatenate(exponents, axis=1)
        value = _log_sums(terms)
        missing = sum(
            (np.exp(np.minimum(0.0, e - value)) for e in log_errors), np.zeros(len(orders))
        )
        slack = missing + UNIT_ROUNDOFF * (terms.shape[1] + 64 + 8 * np.abs(terms.max(axis=1)))
        return value - slack - missing * missing, value + slack


def _on_panels(branch: Branch, edges: Array) -> tuple[Array, Array]:
    middle, half = (edges[:-1] + edges[1:]) / 2, np.diff(edges) / 2
    base = (middle[:, None] + half[:, None] * GAUSS_X).ravel()
    ratios = log_ratio(base, branch.rate)
    with np.errstate(divide="ignore"):
        log_weights = np.log(half[:, None] * GAUSS_W).ravel()
    return branch.way.value * ratios, log_weights + branch.density.log_at(base) + (
        branch.power * ratios
    )


def _branch_points(branch: Branch, order: float, reach: float) -> tuple[Array, Array, float]:
    edges, keep = branch.panels(order, reach)
    low, high = edges[:-1], edges[1:]
    log_panel = branch.log_sup(low, high, order) + np.log(np.maximum(high - low, 1e-300))
    errors = branch.log_errors(edges, np.array([order]), reach)[0]
    log_missing = float(_log_sums(np.where(keep, errors, log_panel)[None])[0])
    middle, half = (low[keep] + high[keep]) / 2, (high[keep] - low[keep]) / 2
    base = (middle[:, None] + half[:, None] * GAUSS_X).ravel()
    ratios = log_ratio(base, branch.rate)
    with np.errstate(divide="ignore"):
        log_weights = np.log(half[:, None] * GAUSS_W).ravel()
    log_masses = log_weights + branch.density.log_at(base) + branch.power * ratios
    return branch.way.value * ratios, log_masses, log_missing


def _log_sums(logs: Array) -> Array:
    """Return log sum exp of every row, infinities of either sign included."""
    peak = np.clip(logs.max(axis=1), -1e300, 1e300)
    with np.errstate(divide="ignore"):
        return np.asarray(peak + np.log(np.exp(logs - peak[:, None]).sum(axis=1)))


def sampled_losses(pair: Pair, rate: float, way: Way, tail: float) -> LossLaw:
    """Return the loss law of ``pair`` on Poisson samples, but for ``tail`` of it."""
    branches = [_branch(density, rate, way, tail) for density in pair.densities]
    losses, masses = _atoms(pair, rate, way)
    joins = rate if way is Way.REMOVED else 0.0
    cut = _cut(pair, tail) + joins * pair.cut
    return _law(branches, losses, masses, cut, _share(joins, pair.infinite))


def replaced_losses(pair: Pair, rate: float, tail: float) -> LossLaw:
    """Return the loss law of ``pair`` on batches of a fixed size, one record replaced."""
    branches, losses, masses = [], [], []
    for way in Way:
        for density in pair.densities:
            whole = _branch(density, rate, way, tail)
            branches.append(replace(whole, low=0.0))
        way_losses, way_masses = _atoms(pair, rate, way)
        positive = way.value * way_losses > 0
        losses.append(way_losses[positive])
        masses.append(way_masses[positive])
    infinite = _share(rate, pair.infinite)
    inside = sum(float(np.exp(_on_panels(b, b.panels_for_orders(1e-9))[1]).sum()) for b in branches)
    nothing = max(0.0, 1 - inside - infinite - sum(float(part.sum()) for part in masses))
    if nothing > 0:
        losses.append(np.zeros(1))
        masses.append(np.array([nothing]))
    return _law(
        branches,
        np.concatenate(losses),
        np.concatenate(masses),
        2 * _cut(pair, tail) + rate * pair.cut,
        infinite,
    )


def _share(rate: float, mass: float) -> float:
    """Return rate * mass, rounded up; a whole mass stays what it was declared to be."""
    return mass if rate == 1 else rate * mass * ROUNDED_UP


def _branch(density: Density, rate: float, way: Way, tail: float) -> Branch:
    # What is not in the batch's law needs no room: added, P' is Q alone.
    low, high = density.interval(tail, rate if way is Way.REMOVED else 1e-300)
    _require_private(max(abs(low), abs(high)), LARGEST_BASE_LOSS)
    return Branch(density, rate, way, low, high)


def _cut(pair: Pair, tail: float) -> float:
    """Return what ``_branch`` leaves out: bounded densities are kept whole."""
    return sum(tail for density in pair.densities if math.isinf(density.largest))


def _atoms(pair: Pair, rate: float, way: Way) -> tuple[Array, Array]:
    base, masses = pair.atom_losses, pair.atom_masses
    finite = base[np.isfinite(base)]
    _require_private(float(np.abs(finite).max()) if len(finite) else 0.0, LARGEST_ATOM)
    with np.errstate(divide="ignore"):
        ratios = log_ratio(base, rate)
        log_masses = np.log(masses)
    p_masses = np.exp(log_masses + ratios) if way is Way.REMOVED else masses
    held = p_masses > 0
    return way.value * ratios[held], p_masses[held]


def _require_private(loss: float, largest: float) -> None:
    """Refuse losses whose masses underflow, or that take too many panels.

    Raises:
        Unresolvable: the release is far from private.
    """
    if not loss < largest:
        raise Unresolvable(f"losses of up to {loss:g} nats are far from private")


def _law(
    branches: Sequence[Branch], losses: Array, masses: Array, cut: float, infinite: float
) -> LossLaw:
    tops = [
        branch.way.value
        * float(
            log_ratio(
                np.array([branch.high if branch.way is Way.REMOVED else branch.low]), branch.rate
            )[0]
        )
        for branch in branches
    ]
    largest = max([*tops, *losses.tolist()], default=-math.inf)
    suprema = [branch.supremum for branch in branches]
    return LossLaw(
        tuple(branches), losses, masses, cut, infinite, largest, max([largest, *suprema])
    )
