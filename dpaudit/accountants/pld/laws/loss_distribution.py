"""Privacy loss distribution of one release in one direction, as quadrature points.

A batch that includes the record with probability q turns a pair (P, Q) with base loss l into

    removed        ((1-q) Q + q P, Q):   L = log r(l),   dP' = r(l) dQ,   r(l) = 1 - q + q e^l
    added          (Q, (1-q) Q + q P):   L = -log r(l),  dP' = dQ
    replaced       the first where l > 0, the second mirrored: L = -log r(l) where l > 0;
                   the remaining mass of P' has the loss 0

(Zhu, Dong & Wang 2022, arXiv:2106.08567, Theorem 11). Integrals over densities use
Gauss-Legendre points on panels. Let M be the largest modulus of the integrand on the
Bernstein ellipse of parameter rho, whose half axes are (rho +- 1/rho)/2 times the panel's
half width w. The error on a panel has the bound

    |integral - rule| <= (64/15) w M rho^(-2(n-1)) / (1 - rho^-2)

(Trefethen 2013, Approximation Theory and Practice, Theorem 19.3, for n points).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from dpaudit.accountants.numerics import Direction
from dpaudit.accountants.pld.laws.dominating_pairs import DominatingPair, LossDensity
from dpaudit.accountants.rounding_margins import UNIT_ROUNDOFF
from dpaudit.vocabulary.errors import Unresolvable

Array = NDArray[np.float64]

GAUSS_POINTS = 16
GAUSS_X, GAUSS_W = np.polynomial.legendre.leggauss(GAUSS_POINTS)
ELLIPSE_RADII = np.array([2.5, 4.0, 6.0, 9.0, 14.0])[:, None]
LOG_RULE_ERROR = (
    np.log(64 / 15)
    - 2 * (GAUSS_POINTS - 1) * np.log(ELLIPSE_RADII)
    - np.log1p(-(ELLIPSE_RADII**-2))
)
# Largest width of a panel: in units of the density's scale, in base losses (log r is
# analytic where |Im l| < pi), and in radians of the oscillation e^(i y L).
WIDTH_IN_SCALES, WIDTH_IN_LOSSES, WIDTH_IN_RADIANS = 1.2, 0.8, 7.0
# A panel this far below the peak (in nats) holds a negligible mass: e^-46 is 1e-20. Where
# c L < -LOG_UNDERFLOW, exp(c L) is negligible as well.
LOG_NEGLIGIBLE, LOG_UNDERFLOW = -46.0, 60.0
LARGEST_LOSS = 700.0  # its exponential is a double
LARGEST_BASE_LOSS, LARGEST_ATOM = 5e3, 600.0
# Above MAX_PANELS a release is refused; PANEL_BUDGET limits the orders that are tried.
MAX_PANELS, PANEL_BUDGET = 100_000, 20_000
ROUGH_ATOMS = 1000  # of one distribution in searches
TILT_ORDERS = np.geomspace(1.0, 1e15, 46)
ROUND_UP = 1 + 2.0**-52


@dataclass(frozen=True)
class TiltedPoints:
    """A loss distribution tilted by exp(order * L), as weighted points.

    Attributes:
        losses: Losses in nats, shape ``(n,)``.
        masses: Masses of the tilted distribution, shape ``(n,)``; they sum to 1 up to rounding.
        log_moment: log E[exp(order * L)] over the retained losses.
        error: Upper bound on the error of the points' characteristic function at frequencies up
            to ``reach``, and on the error of ``log_moment``.
        reach: Largest frequency, in 1/nats.
    """

    losses: Array
    masses: Array
    log_moment: float
    error: float
    reach: float


def log_mixture_ratio(base: Array, rate: float) -> Array:
    """Return log(1 - q + q e^l), accurate to relative precision also where it is tiny.

    Args:
        base: Base losses l in nats, of any shape.
        rate: Sampling rate q, in (0, 1].

    Returns:
        Log ratios in nats, of the same shape.
    """
    if rate == 1:
        return base
    near = np.log1p(rate * np.expm1(np.minimum(base, LARGEST_LOSS)))
    # Where e^l overflows, log(q e^l) is exact to rounding.
    if base.size and base.max() > LARGEST_LOSS:
        near = np.where(base > LARGEST_LOSS, base + math.log(rate), near)
    return np.asarray(near)


@dataclass(frozen=True)
class SampledDensity:
    """One density of a pair under sampling, on an interval of base losses.

    Attributes:
        density: Density of the base loss under Q.
        rate: Sampling rate q.
        direction: Sign of the loss: L = +log r(l) or -log r(l).
        low: Smallest base loss, in nats.
        high: Largest base loss, in nats.
    """

    density: LossDensity
    rate: float
    direction: Direction
    low: float
    high: float

    @property
    def power(self) -> int:
        """Power of r(l) in dP'/dQ: the tilted density is q(l) r(l)^(power + sign * order)."""
        return 1 if self.direction is Direction.REMOVED else 0

    @property
    def supremum(self) -> float:
        """Upper bound on every loss of the density, inside the interval or not."""
        end = self.direction.value * self.density.largest
        if self.rate == 1 or end > LARGEST_LOSS:
            return self.density.largest
        return self.direction.value * float(log_mixture_ratio(np.array([end]), self.rate)[0])

    def panels(
        self, order: float, reach: float, left_out: float
    ) -> tuple[Array, NDArray[np.bool_]]:
        """Divide the interval into panels that resolve exp((order + i y) L) for |y| <= reach.

        Args:
            order: Tilt c >= 0.
            reach: Largest frequency, in 1/nats.
            left_out: About the share of the tilted mass that is not needed.

        Returns:
            Edges of the panels as base losses, shape ``(k + 1,)``, and a mask, shape ``(k,)``,
            of the panels whose share of the tilted mass is not negligible.
        """
        coarse, ratios, top = self._coarse
        # Log of the tilted density, q(l) r(l)^exponent, at the end of the panel where it is larger.
        exponent = self.power + self.direction.value * order
        top = top + exponent * (ratios[1:] if exponent > 0 else ratios[:-1])
        relevant = top - top.max() > LOG_NEGLIGIBLE
        if left_out > 0:
            shares = np.exp(top - top.max())
            rising = np.argsort(shares)
            relevant[rising[np.cumsum(shares[rising]) <= left_out * shares.sum()]] = False
        steps = np.diff(ratios) * ((reach + order) / WIDTH_IN_RADIANS)
        pieces = np.where(relevant, np.clip(np.ceil(steps), 1, MAX_PANELS), 1).astype(np.int64)
        return self._subdivided(coarse, pieces), np.repeat(relevant, pieces)

    def panels_for_orders(self, top: float) -> Array:
        """Divide the interval into panels that resolve exp(c L) for every 0 <= c <= ``top``.

        Where L is far below 0, exp(c L) underflows for orders above about 60 / |L|.

        Args:
            top: Largest order c.

        Returns:
            Edges of the panels as base losses, shape ``(k + 1,)``.
        """
        steps = self._steps(np.array([top]))[0]
        pieces = np.clip(np.ceil(steps), 1, MAX_PANELS).astype(np.int64)
        return self._subdivided(self._coarse[0], pieces)

    @cached_property
    def largest_order(self) -> float:
        """Approximately the largest order c for which ``PANEL_BUDGET`` panels resolve exp(c L)."""
        counts = np.maximum(self._steps(TILT_ORDERS), 1).sum(axis=1)
        return float(TILT_ORDERS[max(0, int(np.searchsorted(counts, PANEL_BUDGET)) - 1)])

    def _steps(self, tops: Array) -> Array:
        """Return into how many parts to divide each coarse panel, shape ``(tops, panels)``."""
        # On a panel the largest loss is ``nearest``; where it is negative, exp(c L) has
        # underflowed beyond the order LOG_UNDERFLOW / |nearest|.
        ratios = self._coarse[1]
        nearest = (
            np.maximum(ratios[1:], ratios[:-1])
            if self.direction is Direction.REMOVED
            else -ratios[:-1]
        )
        orders = np.minimum(tops[:, None], LOG_UNDERFLOW / np.maximum(-nearest, 1e-9))
        return np.asarray(np.diff(ratios) * orders / WIDTH_IN_RADIANS)

    @cached_property
    def _coarse(self) -> tuple[Array, Array, Array]:
        """Edges of the widest panels, log r at the edges, and upper bounds on the log density."""
        width = min(WIDTH_IN_SCALES * self.density.scale, WIDTH_IN_LOSSES)
        count = max(2, math.ceil((self.high - self.low) / width) + 1)
        edges = np.linspace(self.low, self.high, count)
        top = self.density.log_upper_bound(edges[:-1], edges[1:], np.zeros(count - 1))
        return edges, log_mixture_ratio(edges, self.rate), top

    def split_at(self, loss: float) -> tuple[SampledDensity | None, SampledDensity | None]:
        """Split at a loss into the part with L <= ``loss`` and the part with L > ``loss``.

        Args:
            loss: Loss L in nats.

        Returns:
            The lower and the upper part; None for an empty one.
        """
        # The base loss at which L = +-log r(l) is ``loss``.
        cut = float(self._base(np.array([self.direction.value * loss]))[0])
        cut = self.low if math.isnan(cut) else min(max(self.low, cut), self.high)
        left = replace(self, high=cut) if cut > self.low else None
        right = replace(self, low=cut) if cut < self.high else None
        return (left, right) if self.direction is Direction.REMOVED else (right, left)

    def _subdivided(self, coarse: Array, pieces: NDArray[np.int64]) -> Array:
        """Divide coarse panel k into ``pieces[k]`` panels of equal width in the loss."""
        if len(pieces) == pieces.sum():
            return coarse
        if pieces.sum() >= MAX_PANELS:
            raise Unresolvable(
                f"one release takes {pieces.sum()} integration panels; the limit is {MAX_PANELS}"
            )
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
        """Invert ``log_mixture_ratio``, approximately: edges of panels need not be exact."""
        if self.rate == 1:
            return ratios
        with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
            near = np.log1p(np.expm1(np.minimum(ratios, LARGEST_LOSS)) / self.rate)
        return np.where(ratios > LARGEST_LOSS, ratios - math.log(self.rate), near)

    def log_sup(self, low: Array, high: Array, order: float) -> Array:
        """Bound the log of the tilted density on panels.

        Args:
            low: Lower ends as base losses, shape ``(k,)``.
            high: Upper ends, shape ``(k,)``.
            order: Tilt c >= 0.

        Returns:
            Upper bounds, shape ``(k,)``.
        """
        exponent = self.power + self.direction.value * order
        end = high if exponent > 0 else low
        return self.density.log_upper_bound(
            low, high, np.zeros_like(low)
        ) + exponent * log_mixture_ratio(end, self.rate)

    def log_errors(self, edges: Array, orders: Array, reach: Array) -> Array:
        """Bound the log of the quadrature error on each panel.

        Args:
            edges: Edges of the panels as base losses, shape ``(k + 1,)``.
            orders: Tilts, shape ``(m,)``.
            reach: Largest frequency of each, in 1/nats, shape ``(m,)``.

        Returns:
            Upper bounds, shape ``(m, k)``; each is the least over several ellipses.
        """
        # M <= sup |q(l)| |r(l)|^exponent e^(reach |arg r(l)|) over the rectangle around the
        # ellipse, because |e^(i y log r)| = e^(-y arg r).
        middle, half = (edges[:-1] + edges[1:]) / 2, np.diff(edges) / 2
        long = half * (ELLIPSE_RADII + 1 / ELLIPSE_RADII) / 2
        away = half * (ELLIPSE_RADII - 1 / ELLIPSE_RADII) / 2
        low, high = middle - long, middle + long
        exponents = self.power + self.direction.value * orders
        log_modulus, argument = self._off_axis(low, high, away)
        with np.errstate(divide="ignore"):  # a panel may be empty
            log_half = np.log(half)
        bound = LOG_RULE_ERROR + log_half + self.density.log_upper_bound(low, high, away)
        if self.rate < 1:  # log r is analytic up to pi; the bounds hold up to pi/2
            bound = np.where(away < math.pi / 2, bound, np.inf)
        growth = exponents[:, None, None] * log_modulus
        if reach.any():
            growth += reach[:, None, None] * argument
        return np.asarray((bound + growth).min(axis=1))

    def _off_axis(self, low: Array, high: Array, away: Array) -> tuple[Array, Array]:
        """Bound log |r|, from the side that counts, and |arg r| for |Im l| <= away <= pi/2.

        |r| <= r(Re l); |r| >= r(Re l) cos(Im l / 2) and >= 1 - q. The argument is at most
        |Im l|, and at most |Im l| times the largest |q e^l / r| <= sqrt(2) q e^l / r(Re l).
        """
        if self.rate == 1:
            return (high if self.direction is Direction.REMOVED else low), away
        top = log_mixture_ratio(high, self.rate)
        with np.errstate(over="ignore"):
            argument = away * np.minimum(1.0, math.sqrt(2) * self.rate * np.exp(high - top))
        if self.direction is Direction.REMOVED:
            return top, argument
        cosine = np.log(np.cos(np.minimum(away, math.pi / 2) / 2))
        return np.maximum(
            log_mixture_ratio(low, self.rate) + cosine, math.log1p(-self.rate)
        ), argument


@dataclass(frozen=True)
class LossDistribution:
    """Privacy loss distribution of one release under P, in one direction.

    Attributes:
        branches: Parts with a density.
        atom_losses: Losses of the atoms in nats, shape ``(k,)``.
        atom_masses: Their masses under P, shape ``(k,)``.
        truncated_mass: Upper bound on the P-mass of finite losses that are left out.
        infinite_mass: P-mass of infinite losses: an upper bound, exact up to rounding.
        largest: Largest retained loss, in nats.
        supremum: Upper bound on every finite loss, retained or not, in nats.
    """

    branches: tuple[SampledDensity, ...]
    atom_losses: Array
    atom_masses: Array
    truncated_mass: float
    infinite_mass: float
    largest: float
    supremum: float

    @property
    def missing_mass(self) -> float:
        """Upper bound on the P-mass that branches and atoms do not include."""
        return self.truncated_mass + self.infinite_mass

    @property
    def largest_order(self) -> float:
        """The largest order c whose panels are affordable."""
        return min((branch.largest_order for branch in self.branches), default=math.inf)

    @cached_property
    def rough(self) -> tuple[Array, Array]:
        """Losses and log masses on the widest panels: for searches, not for bounds."""
        parts = [_on_panels(branch, branch.panels_for_orders(1e-9)) for branch in self.branches]
        losses, masses = _grouped_atoms(self.atom_losses, self.atom_masses)
        with np.errstate(divide="ignore"):
            return (
                np.concatenate([*(part[0] for part in parts), losses]),
                np.concatenate([*(part[1] for part in parts), np.log(masses)]),
            )

    def rough_log_moments(self, orders: Array) -> Array:
        """Approximate log E[exp(c L)]: for searches, not for bounds.

        Args:
            orders: Orders c, shape ``(m,)``.

        Returns:
            Approximate values, shape ``(m,)``.
        """
        losses, log_masses = self.rough
        terms = log_masses + np.multiply.outer(orders, losses)
        return _log_sums(terms)

    def split(self, loss: float) -> tuple[LossDistribution, LossDistribution]:
        """Split at a loss into two sub-distributions.

        Args:
            loss: Loss in nats; it belongs to the lower part.

        Returns:
            The part with losses up to ``loss``, which keeps the missing mass, and the part
            above it.
        """
        pairs = [branch.split_at(loss) for branch in self.branches]
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
                truncated_mass=0.0,
                infinite_mass=0.0,
            ),
        )

    def points(self, order: float, reach: float, left_out: float = 0.0) -> TiltedPoints:
        """Return the tilted distribution as points that resolve frequencies up to ``reach``.

        Args:
            order: Tilt c >= 0.
            reach: Largest frequency, in 1/nats.
            left_out: About the share of the tilted mass that may be left out, as an error.

        Returns:
            The points, with a bound on the error of their characteristic function.
        """
        parts = [_density_points(branch, order, reach, left_out) for branch in self.branches]
        losses = np.concatenate([*(part[0] for part in parts), self.atom_losses])
        with np.errstate(divide="ignore"):
            log_masses = np.concatenate([*(part[1] for part in parts), np.log(self.atom_masses)])
        # M(c) = E[e^(c L)] = sum of masses e^(c losses), scaled by its largest term.
        exponents = log_masses + order * losses
        peak = float(exponents.max())
        masses = np.exp(exponents - peak)
        total = float(masses.sum())
        log_moment = peak + math.log(total)
        masses /= total
        # Quadrature and omitted panels, relative to the moment; then the rounding of exponents.
        # Of denominator and numerator of phi = E[e^((c + i y) L)] / E[e^(c L)].
        missing = sum(float(np.exp(np.minimum(0.0, part[2] - log_moment)).sum()) for part in parts)
        rounding = UNIT_ROUNDOFF * (
            24 + 4 * abs(peak) + 4 * float(masses @ (np.abs(log_masses) + np.abs(order * losses)))
        )
        return TiltedPoints(losses, masses, log_moment, missing + rounding, reach)

    def log_moments(self, orders: Array) -> tuple[Array, Array]:
        """Bound log E[exp(c L)] over the retained losses from both sides.

        Args:
            orders: Orders c >= 0, shape ``(m,)``.

        Returns:
            Lower and upper bounds, each of shape ``(m,)``.
        """
        top = float(orders.max())
        exponents, log_errors = [], []
        for branch in self.branches:
            edges = branch.panels_for_orders(top)
            losses, log_masses = _on_panels(branch, edges)
            exponents.append(log_masses + np.multiply.outer(orders, losses))
            log_errors.append(_log_sums(branch.log_errors(edges, orders, np.zeros(len(orders)))))
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
        # log(1 - x) >= -x - x^2 for x <= 1/2, so the lower bound needs the square as well.
        return value - slack - missing * missing, value + slack


def _grouped_atoms(losses: Array, masses: Array) -> tuple[Array, Array]:
    """Return about the same atoms as at most ``ROUGH_ATOMS``: neighbors become their mean."""
    if len(losses) <= ROUGH_ATOMS:
        return losses, masses
    order = np.argsort(losses)
    starts = np.linspace(0, len(losses), ROUGH_ATOMS, endpoint=False).astype(np.int64)
    total = np.add.reduceat(masses[order], starts)
    means = np.add.reduceat((masses * losses)[order], starts)
    middle = losses[order][starts]
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(total > 0, means / total, middle), total


def _on_panels(branch: SampledDensity, edges: Array) -> tuple[Array, Array]:
    """Return losses and log P-masses at the Gauss-Legendre points of all panels."""
    middle, half = (edges[:-1] + edges[1:]) / 2, np.diff(edges) / 2
    base = (middle[:, None] + half[:, None] * GAUSS_X).ravel()
    ratios = log_mixture_ratio(base, branch.rate)
    with np.errstate(divide="ignore"):
        log_weights = np.log(half[:, None] * GAUSS_W).ravel()
    return branch.direction.value * ratios, log_weights + branch.density.log_at(base) + (
        branch.power * ratios
    )


def _density_points(
    branch: SampledDensity, order: float, reach: float, left_out: float
) -> tuple[Array, Array, Array]:
    """Return losses and log P-masses at the points of the relevant panels, and log errors.

    The errors, at frequency 0 and up to ``reach``, include a bound on the tilted mass of the panels
    that are left out.
    """
    edges, keep = branch.panels(order, reach, left_out)
    low, high = edges[:-1], edges[1:]
    log_panel = branch.log_sup(low, high, order) + np.log(np.maximum(high - low, 1e-300))
    errors = branch.log_errors(edges, np.array([order, order]), np.array([0.0, reach]))
    log_missing = _log_sums(np.where(keep, errors, log_panel))
    middle, half = (low[keep] + high[keep]) / 2, (high[keep] - low[keep]) / 2
    base = (middle[:, None] + half[:, None] * GAUSS_X).ravel()
    ratios = log_mixture_ratio(base, branch.rate)
    with np.errstate(divide="ignore"):
        log_weights = np.log(half[:, None] * GAUSS_W).ravel()
    log_masses = log_weights + branch.density.log_at(base) + branch.power * ratios
    return branch.direction.value * ratios, log_masses, log_missing


def _log_sums(logs: Array) -> Array:
    """Return log sum exp of every row; infinities of either sign are allowed."""
    peak = np.clip(logs.max(axis=1), -1e300, 1e300)
    with np.errstate(divide="ignore"):
        return np.asarray(peak + np.log(np.exp(logs - peak[:, None]).sum(axis=1)))


def poisson_loss_distribution(
    pair: DominatingPair, rate: float, direction: Direction, tail: float
) -> LossDistribution:
    """Return the loss distribution of a pair under Poisson sampling.

    Args:
        pair: Dominating pair on the whole data set.
        rate: Sampling rate q, in (0, 1].
        direction: Whether the record is removed or added.
        tail: Mass that each unbounded density may leave out.

    Returns:
        The distribution of L under P', truncated.

    References:
        Zhu, Dong & Wang (2022), arXiv:2106.08567, Theorem 11.
    """
    branches = [_sampled_density(density, rate, direction, tail) for density in pair.densities]
    losses, masses = _sampled_atoms(pair, rate, direction)
    # Infinite losses occur where P has mass and Q has none: with probability q in P', removed.
    participation = rate if direction is Direction.REMOVED else 0.0
    # Truncated atoms have mass under P and under Q: a sample has at most the larger of them.
    truncated = _truncated_mass(pair, tail) + pair.truncated_mass
    return _loss_distribution(
        branches, losses, masses, truncated, _scaled_mass(participation, pair.infinite_mass)
    )


def replaced_loss_distribution(pair: DominatingPair, rate: float, tail: float) -> LossDistribution:
    """Return the loss distribution of a pair on batches of a fixed size, one record replaced.

    Args:
        pair: Dominating pair on the whole data set, for replace-one neighbors.
        rate: Batch size over number of records, in (0, 1].
        tail: Mass that each unbounded density may leave out, in each direction.

    Returns:
        The distribution of L under P', truncated.

    References:
        Zhu, Dong & Wang (2022), arXiv:2106.08567, Theorem 11.
    """
    branches, losses, masses = [], [], []
    for direction in Direction:
        for density in pair.densities:
            whole = _sampled_density(density, rate, direction, tail)
            branches.append(replace(whole, low=0.0))  # base losses l > 0 alone
        way_losses, way_masses = _sampled_atoms(pair, rate, direction)
        positive = direction.value * way_losses > 0
        losses.append(way_losses[positive])
        masses.append(way_masses[positive])
    infinite = _scaled_mass(rate, pair.infinite_mass)
    inside = sum(float(np.exp(_on_panels(b, b.panels_for_orders(1e-9))[1]).sum()) for b in branches)
    remaining = max(0.0, 1 - inside - infinite - sum(float(part.sum()) for part in masses))
    if remaining > 0:
        losses.append(np.zeros(1))
        masses.append(np.array([remaining]))
    return _loss_distribution(
        branches,
        np.concatenate(losses),
        np.concatenate(masses),
        2 * _truncated_mass(pair, tail) + rate * pair.truncated_mass,
        infinite,
    )


def _scaled_mass(rate: float, mass: float) -> float:
    """Return rate * mass, rounded up; at rate 1 the mass itself."""
    return mass if rate == 1 else rate * mass * ROUND_UP


def _sampled_density(
    density: LossDensity, rate: float, direction: Direction, tail: float
) -> SampledDensity:
    """Return a density under sampling, truncated to an interval."""
    # Added, P' is Q alone, so the interval need not hold P.
    low, high = density.interval(tail, rate if direction is Direction.REMOVED else 1e-300)
    _require_private(max(abs(low), abs(high)), LARGEST_BASE_LOSS)
    return SampledDensity(density, rate, direction, low, high)


def _truncated_mass(pair: DominatingPair, tail: float) -> float:
    """Return the mass that ``_sampled_density`` leaves out; bounded densities are not truncated."""
    return sum(tail for density in pair.densities if math.isinf(density.largest))


def _sampled_atoms(pair: DominatingPair, rate: float, direction: Direction) -> tuple[Array, Array]:
    """Return losses L and P'-masses of the atoms of a pair under sampling."""
    base, masses = pair.atom_losses, pair.atom_masses
    finite = base[np.isfinite(base)]
    _require_private(float(np.abs(finite).max()) if len(finite) else 0.0, LARGEST_ATOM)
    with np.errstate(divide="ignore"):
        ratios = log_mixture_ratio(base, rate)
        log_masses = np.log(masses)
    p_masses = np.exp(log_masses + ratios) if direction is Direction.REMOVED else masses
    positive = p_masses > 0
    return direction.value * ratios[positive], p_masses[positive]


def _require_private(loss: float, largest: float) -> None:
    """Refuse (``Unresolvable``) losses whose masses underflow or that take too many panels."""
    if not loss < largest:
        raise Unresolvable(
            f"losses of up to {loss:g} nats cannot be certified, only those below {largest:g}: "
            "increase the noise"
        )


def _loss_distribution(
    branches: Sequence[SampledDensity],
    losses: Array,
    masses: Array,
    truncated_mass: float,
    infinite_mass: float,
) -> LossDistribution:
    """Assemble a distribution and find its largest loss and its supremum."""
    tops = [
        branch.direction.value
        * float(
            log_mixture_ratio(
                np.array([branch.high if branch.direction is Direction.REMOVED else branch.low]),
                branch.rate,
            )[0]
        )
        for branch in branches
    ]
    largest = max([*tops, *losses.tolist()], default=-math.inf)
    suprema = [branch.supremum for branch in branches]
    return LossDistribution(
        tuple(branches),
        losses,
        masses,
        truncated_mass,
        infinite_mass,
        largest,
        max([largest, *suprema]),
    )
