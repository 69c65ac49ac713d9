"""Contours of many compositions of sampled Gaussians at once.

Each contour has its own order, period and, where the characteristic function falls too slowly,
smoothing kernel; it serves all deltas of its plan for which its order suits. The formulas are
those of ``contour.contour_integral`` and ``contour.integrand``, over arrays. Smoothed by the kernel
k(v), delta is g, and

    g(epsilon) - C j(epsilon) <= delta(epsilon) <= g(epsilon).

Plans that these contours cannot certify to the wanted width are left to the caller.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from dpaudit.accountants.pld.contour.integrand import SERIES_COEFFICIENTS, SERIES_RADIUS
from dpaudit.accountants.pld.laws.composition import log_chernoff_factor
from dpaudit.accountants.pld.many_plans.drafts import (
    ORDER_FACTORS,
    Draft,
    Targets,
    add_rows,
    outline,
    plain_draft,
    smoothed_draft,
)
from dpaudit.accountants.pld.many_plans.order_search import ManyCompositions, saddle_points
from dpaudit.accountants.pld.many_plans.sampled_normals import (
    MOST_CHUNK,
    TiltedNodes,
    characteristic_rows,
)
from dpaudit.accountants.rounding_margins import ROUND_UP, UNIT_ROUNDOFF

Array = NDArray[np.float64]
ComplexArray = NDArray[np.complex128]
IntArray = NDArray[np.int64]

LARGEST_EXPONENT, LARGEST_GROWTH = 700.0, 300.0
ROUNDS_TO_ROOT, ROUNDS_TO_VERIFY = 30, 8
ROOT_TOLERANCE = 1e-8
WIDE, ABSOLUTE_WIDE = 8e-4, 9e-7  # wider intervals of epsilon are evaluated anew, by smoothing
SAME_ORDER = 1.3  # deltas of one plan share a contour where their orders differ by less
SEARCHED_ORDERS = 8  # of one plan; the orders of more deltas are interpolated


@dataclass(frozen=True)
class Questions:
    """What is asked of which plan, and about where the answer is.

    Attributes:
        owner: The plan of each question, rising, shape ``(m,)``.
        order: Order that suits it, shape ``(m,)``.
        epsilon: The epsilon that is asked about, or a guess of it, in nats, shape ``(m,)``.
        log_delta: The logarithm of the delta that is asked about, or a guess of it.
    """

    owner: IntArray
    order: Array
    epsilon: Array
    log_delta: Array


Answer = Callable[["ManyContours", IntArray], tuple[Array, Array]]


def epsilons(plans: ManyCompositions, owner: IntArray, delta: Array) -> tuple[Array, Array]:
    """Compute certified intervals of epsilon of many compositions, each at one or more deltas.

    Deltas of one plan share a contour where one order suits them. Contours without smoothing
    come first, smoothed ones follow where the characteristic function falls too slowly.

    Args:
        plans: Compositions in one direction each, ``p`` of them.
        owner: The plan of each question, rising, shape ``(m,)``.
        delta: In (0, 1), shape ``(m,)``.

    Returns:
        Lower and upper ends in nats, shape ``(m,)``: 0 and infinity where nothing is certified.
    """
    with np.errstate(all="ignore"):
        log_delta = np.log(delta)
        order, epsilon, _ = _searched(plans, owner, "log_delta", log_delta)
        asked = Questions(owner, order, epsilon, log_delta)

        def answer(contours: ManyContours, places: IntArray) -> tuple[Array, Array]:
            return _verified_ends(contours, delta[places], epsilon[places])

        return _answers(plans, asked, answer, math.inf, ABSOLUTE_WIDE)


def deltas(plans: ManyCompositions, owner: IntArray, epsilon: Array) -> tuple[Array, Array]:
    """Compute certified intervals of delta of many compositions, each at one or more epsilons.

    Args:
        plans: Compositions in one direction each, ``p`` of them.
        owner: The plan of each question, rising, shape ``(m,)``.
        epsilon: In nats, above 0, shape ``(m,)``.

    Returns:
        Lower and upper ends, shape ``(m,)``: 0 and 1 where nothing is certified.
    """
    with np.errstate(all="ignore"):
        order, _, log_delta = _searched(plans, owner, "epsilon", epsilon)

        def answer(contours: ManyContours, places: IntArray) -> tuple[Array, Array]:
            _, least, most = contours.bounds(epsilon[places])
            least, most = np.nan_to_num(least, nan=0.0), np.nan_to_num(most, nan=1.0)
            return least, np.minimum(most, 1.0)

        asked = Questions(owner, order, epsilon, log_delta)
        return _answers(plans, asked, answer, 1.0, 0.0)


def _answers(
    plans: ManyCompositions, asked: Questions, answer: Answer, largest: float, absolute: float
) -> tuple[Array, Array]:
    """Answer questions by contours without smoothing, then by smoothed ones."""
    lower, upper = np.zeros(len(asked.owner)), np.full(len(asked.owner), largest)
    contour = _shared_contours(asked)
    group, targets = _grouped(plans, asked, contour)
    found = outline(group, targets)
    for draft_of in (plain_draft, smoothed_draft):
        wide = ~(upper - lower <= np.maximum(WIDE * lower, absolute))
        if not (wide & found.feasible[contour]).any():
            break
        draft = draft_of(group, found)
        places = np.flatnonzero(wide & draft.feasible[contour])
        _solve(group, draft, contour, places, answer, lower, upper)
    return lower, upper


def _searched(
    plans: ManyCompositions, owner: IntArray, name: str, values: Array
) -> tuple[Array, Array, Array]:
    """Search order, epsilon and log delta of every question; interpolate many of one plan."""
    counts = np.bincount(owner, minlength=len(plans.starts))
    if counts.max() <= SEARCHED_ORDERS:
        return saddle_points(plans.take(owner), **{name: values})
    found = np.empty((3, len(owner)))
    for plan in np.flatnonzero(counts):
        asked = np.flatnonzero(owner == plan)
        known = np.unique(np.quantile(values[asked], np.linspace(0, 1, SEARCHED_ORDERS)))
        searched = saddle_points(plans.take(np.full(len(known), plan)), **{name: known})
        for column, column_values in enumerate(searched):
            found[column, asked] = np.interp(values[asked], known, column_values)
    return found[0], found[1], found[2]


def _shared_contours(asked: Questions) -> IntArray:
    """Number contours so that questions of one plan with similar orders share one."""
    owner, order = asked.owner, asked.order
    contour, number = np.empty(len(owner), dtype=np.int64), -1
    last_owner, first = -1, math.nan
    for place in np.lexsort((order, owner)):
        if owner[place] != last_owner or not order[place] < SAME_ORDER * first:
            number, last_owner, first = number + 1, int(owner[place]), float(order[place])
        contour[place] = number
    return contour


def _grouped(
    plans: ManyCompositions, asked: Questions, contour: IntArray
) -> tuple[ManyCompositions, Targets]:
    """Return the composition of every contour, and the range of its questions."""
    count = int(contour.max()) + 1
    epsilon, log_delta = asked.epsilon, asked.log_delta
    middle = np.zeros(count)
    np.add.at(middle, contour, np.log(asked.order))
    middle = np.exp(middle / np.bincount(contour))
    ends = np.array([np.full(count, np.inf), np.full(count, -np.inf)])
    deltas = np.array([np.full(count, -np.inf), np.full(count, np.inf)])
    np.minimum.at(ends[0], contour, epsilon)
    np.maximum.at(ends[1], contour, epsilon)
    np.maximum.at(deltas[0], contour, log_delta)
    np.minimum.at(deltas[1], contour, log_delta)
    plan = np.empty(count, dtype=np.int64)
    plan[contour] = asked.owner
    return plans.take(plan), Targets(middle, ends, deltas)


def _solve(
    plans: ManyCompositions,
    draft: Draft,
    contour: IntArray,
    places: IntArray,
    answer: Answer,
    lower: Array,
    upper: Array,
) -> None:
    """Evaluate the contours of some questions in chunks, and narrow their ends in place."""
    for chunk in _chunks_of_contours(plans, draft, np.unique(contour[places])):
        contours = _contours(plans, draft, chunk)
        at = np.searchsorted(chunk, contour[places])
        inside = chunk[np.minimum(at, len(chunk) - 1)] == contour[places]
        least, most = answer(contours.take(at[inside]), places[inside])
        lower[places[inside]] = np.maximum(lower[places[inside]], least)
        upper[places[inside]] = np.minimum(upper[places[inside]], most)


def _chunks_of_contours(plans: ManyCompositions, draft: Draft, wanted: IntArray) -> list[IntArray]:
    """Divide contours into chunks of about equally many frequencies; each chunk rises."""
    cost = plans.sums(draft.nodes.count.astype(float)) * draft.count
    order = wanted[np.argsort(draft.count[wanted], kind="stable")]
    parts, start = [], 0
    while start < len(order):
        spent = np.cumsum(cost[order[start:]])
        end = start + max(1, int(np.searchsorted(spent, 40 * MOST_CHUNK)))
        most = 1.3 * draft.count[order[start]] + 16
        end = min(end, int(np.searchsorted(draft.count[order], most, side="right")))
        parts.append(np.sort(order[start:end]))
        start = end
    return parts


def _contours(plans: ManyCompositions, draft: Draft, chunk: IntArray) -> ManyContours:
    """Evaluate characteristic functions and assemble the terms of the sums."""
    part, owner_of_all = plans.take(chunk), plans.plan_of_row
    count = int(draft.count[chunk].max())
    # More frequencies than planned: the period grows and the reach stays.
    spacing = draft.spacing[chunk] * (draft.count[chunk] / count)
    order, owner = draft.outline.targets.order[chunk], part.plan_of_row
    nodes = draft.nodes.take(np.flatnonzero(np.isin(owner_of_all, chunk)))
    y = spacing[:, None] * np.arange(count)
    log_values = -0.5 * part.gaussian[:, None] * y * y + 0j
    growth = np.zeros((len(chunk), count))
    mean = part.gaussian * (order + 0.5)
    log_moment = 0.5 * part.gaussian * order * (order + 1)
    moment_error = 4 * UNIT_ROUNDOFF * log_moment
    for rows in nodes.chunks():
        at, times, plan = order[owner[rows]], part.times[rows], owner[rows]
        tilted = nodes.grid(part, rows).tilted(at, (spacing * count)[plan])
        logs, more = _log_factors(tilted, spacing[plan], count)
        add_rows(log_values, plan, times[:, None] * logs)
        add_rows(growth, plan, times[:, None] * more)
        np.add.at(mean, plan, times * tilted.mean)
        np.add.at(log_moment, plan, times * tilted.log_moment)
        np.add.at(moment_error, plan, times * (tilted.error + 4 * UNIT_ROUNDOFF))
    counts = part.sums(np.ones(len(owner)))
    moment_error += UNIT_ROUNDOFF * (8 + 2 * counts) * (1 + np.abs(log_moment))
    values = np.exp(log_values)
    grown = np.exp(np.minimum(log_values.real + growth, LARGEST_GROWTH))
    errors = grown * -np.expm1(-growth)
    errors += UNIT_ROUNDOFF * (8 + 2 * counts[:, None]) * (1 + np.abs(log_values)) * np.abs(values)
    transform = (values, errors, mean, log_moment, moment_error, counts)
    return _assembled(draft, chunk, spacing, y, *transform)


@dataclass(frozen=True)
class ManyContours:
    """The terms of the trapezoid sums of delta, and of the density j, for ``p`` plans.

    Attributes:
        order: c, shape ``(p,)``.
        spacing: Distance of frequencies in 1/nats, shape ``(p,)``.
        half_width: h of the smoothing kernel in nats, shape ``(p,)``.
        excess: C, shape ``(p,)``.
        mean: Mean of the tilted composed loss in nats, shape ``(p,)``.
        log_moment: K(c), shape ``(p,)``.
        log_moment_error: Bound on its error, shape ``(p,)``.
        terms: Of delta, shape ``(p, f)``.
        density_terms: Of j, shape ``(p, f)``.
        sizes: Sums of moduli, of moduli times frequency, and of errors, for delta and for j, shape
            ``(2, 3, p)``.
        beyond: Bounds on the frequencies beyond the last, for delta and for j, shape ``(2, p)``.
        table: Upper bounds on K at ``ORDER_FACTORS`` times c, shape ``(p, k)``.
        rows: Number of rows of each plan, shape ``(p,)``.
    """

    order: Array
    spacing: Array
    half_width: Array
    excess: Array
    mean: Array
    log_moment: Array
    log_moment_error: Array
    terms: ComplexArray
    density_terms: ComplexArray
    sizes: Array
    beyond: Array
    table: Array
    rows: Array

    def take(self, contours: IntArray) -> ManyContours:
        """Return some of the contours, any of them repeatedly."""
        last_axis = ("sizes", "beyond")
        return ManyContours(
            **{
                one.name: getattr(self, one.name)[
                    (..., contours) if one.name in last_axis else contours
                ]
                for one in fields(self)
            }
        )

    def sums(self, epsilon: Array) -> tuple[Array, Array]:
        """Evaluate both trapezoid sums at one epsilon per plan, each of shape ``(p,)``."""
        x = self.spacing * (epsilon - self.mean)
        phases = x[:, None] * np.arange(self.terms.shape[1])
        cosine, sine = np.cos(phases), np.sin(phases)
        return (
            np.einsum("pf,pf->p", cosine, self.terms.real)
            + np.einsum("pf,pf->p", sine, self.terms.imag),
            np.einsum("pf,pf->p", cosine, self.density_terms.real)
            + np.einsum("pf,pf->p", sine, self.density_terms.imag),
        )

    def scale(self, epsilon: Array) -> Array:
        """Return e^(K(c) - c epsilon), the factor from a sum to delta."""
        return np.exp(np.minimum(LARGEST_EXPONENT, self.log_moment - self.order * epsilon))

    def bounds(self, epsilon: Array) -> tuple[Array, Array, Array]:
        """Bound delta at one epsilon per plan.

        Args:
            epsilon: In nats, shape ``(p,)``.

        Returns:
            An estimate, a lower and an upper bound, each of shape ``(p,)``.
        """
        value, density = self.sums(epsilon)
        exponents = (
            np.abs(self.log_moment) + self.order * np.abs(epsilon) + self.order * np.abs(self.mean)
        )
        count = self.terms.shape[1]
        rounding = UNIT_ROUNDOFF * (count + 32 + 8 * exponents) + self.log_moment_error
        shift = UNIT_ROUNDOFF * (8 + 2 * self.rows) * (np.abs(epsilon) + np.abs(self.mean))
        grown = np.expm1(np.minimum(rounding, 1.0))
        size, moment, errors = self.sizes[0]
        error = errors + size * grown + shift * moment + self.beyond[0]
        size, moment, errors = self.sizes[1]
        density_error = errors + size * grown + shift * moment + self.beyond[1]
        scale = self.scale(epsilon)
        least = value - error - self.excess * (np.maximum(density, 0.0) + density_error)
        lower = np.maximum(0.0, scale * least - self._aliases(epsilon))
        return scale * value, lower, scale * (value + error)

    def _aliases(self, epsilon: Array) -> Array:
        """Bound the sum of e^(c k B) g(epsilon + k B) over k != 0, as ``ContourIntegral``."""
        period = 2 * math.pi / self.spacing
        orders = self.order[:, None] * ORDER_FACTORS
        log_delta = (
            self.table - orders * (epsilon - self.half_width)[:, None] + log_chernoff_factor(orders)
        )
        gap = np.abs(orders - self.order[:, None]) * period[:, None]
        logs = log_delta - gap - np.log(-np.expm1(-np.maximum(gap, 1e-300)))
        right = logs[:, ORDER_FACTORS > 1].min(axis=1)
        left = -self.order * period - np.log(-np.expm1(-self.order * period))
        left = np.minimum(left, logs[:, ORDER_FACTORS < 1].min(axis=1))
        return np.asarray(np.exp(np.minimum(right, LARGEST_EXPONENT)) + np.exp(left))


def _assembled(
    draft: Draft,
    chunk: IntArray,
    spacing: Array,
    y: Array,
    values: ComplexArray,
    errors: Array,
    mean: Array,
    log_moment: Array,
    moment_error: Array,
    counts: Array,
) -> ManyContours:
    """Multiply the characteristic functions by kernel and weights, and bound what is left out."""
    half_width, beta = draft.half_width[chunk], draft.beta[chunk]
    order = draft.outline.targets.order[chunk]
    z = order[:, None] + 1j * y
    log_norm = _log_norm(half_width, beta)
    if half_width[0] > 0:
        kappa = _kernel(z, half_width, beta, log_norm)
        beyond = _beyond(order, half_width, beta, log_norm, y[:, -1])
    else:
        kappa = np.ones_like(z)
        beyond = np.array([draft.rest[chunk], np.zeros(len(chunk))])
    weights = np.repeat(spacing[:, None] / math.pi, y.shape[1], axis=1)
    weights[:, 0] *= 0.5
    factors = 1 / (z * (z + 1))
    density = values * (kappa * weights)
    terms = density * factors
    moduli, least = np.abs(kappa) * weights, np.abs(factors)
    sizes = [
        [np.abs(terms).sum(1), (np.abs(terms) * y).sum(1), (errors * moduli * least).sum(1)],
        [np.abs(density).sum(1), (np.abs(density) * y).sum(1), (errors * moduli).sum(1)],
    ]
    excess = half_width**2 * np.cosh(half_width / 2) / beta * ROUND_UP
    return ManyContours(
        order, spacing, half_width, excess, mean, log_moment, moment_error, terms, density,
        np.array(sizes), beyond, draft.outline.table[chunk], counts,
    )  # fmt: skip


def _log_factors(tilted: TiltedNodes, spacing: Array, count: int) -> tuple[ComplexArray, Array]:
    """Return log phi of every row, and an upper bound of log(1 + error / |phi|)."""
    phi = characteristic_rows(tilted.losses, tilted.masses, spacing, count)
    modulus = np.abs(phi)
    if not modulus.min() > 1e-300:
        phi = np.where(modulus > 1e-300, phi, 1e-300)
        modulus = np.maximum(modulus, 1e-300)
    more = tilted.error[:, None] / modulus  # log(1 + x) <= x
    logs = np.empty_like(phi)
    np.log(modulus, out=logs.real)
    np.arctan2(phi.imag, phi.real, out=logs.imag)
    return logs, more


def _log_norm(half_width: Array, beta: Array) -> Array:
    """Return log A(k0): see ``contour.integrand.SmoothingKernel``."""
    k0 = np.hypot(beta, half_width / 2)
    fading = np.exp(-2 * k0)
    return np.asarray(k0 + np.log((k0 * (1 + fading) - (1 - fading)) / (2 * k0**3)))


def _kernel(z: ComplexArray, half_width: Array, beta: Array, log_norm: Array) -> ComplexArray:
    """Return kappa(z) = A(rho) / A(k0), with the series of A near rho = 0."""
    scaled = (z + 0.5) * half_width[:, None]
    square = (beta * beta)[:, None] + scaled * scaled
    rho = np.sqrt(square)
    near = np.abs(rho) < SERIES_RADIUS
    far = np.where(near, 1.0, rho)
    fading = np.exp(-2 * far)
    found = np.exp(far - log_norm[:, None]) * (far * (1 + fading) - (1 - fading)) / (2 * far**3)
    if near.any():
        norms = np.broadcast_to(log_norm[:, None], near.shape)[near]
        found[near] = np.polyval(SERIES_COEFFICIENTS[::-1], square[near]) * np.exp(-norms)
    return np.asarray(found)


def _beyond(order: Array, half_width: Array, beta: Array, log_norm: Array, last: Array) -> Array:
    """Bound the frequencies beyond the last for delta and for j, as ``SmoothingKernel`` does."""
    side = (order + 0.5) * half_width
    real = np.sqrt((np.sqrt(side**4 + 4 * side**2 * beta**2) + side**2) / 2)
    growth = np.exp(np.minimum(LARGEST_EXPONENT, real - log_norm))
    b = np.hypot(beta, side)
    w = np.sqrt(b * b + 6)
    area = (w - beta) / 3 + np.log((w + b) / (w - b)) / b
    return np.array(
        [
            growth / 3 * np.arcsinh(1 / last) / math.pi,
            growth * area * ROUND_UP / (math.pi * half_width),
        ]
    )


def _verified_ends(contours: ManyContours, delta: Array, start: Array) -> tuple[Array, Array]:
    """Find the crossings, then verify an end on either side of each.

    The upper end is returned only where delta's upper bound is at most the target, the lower end
    only where its lower bound is at least the target.
    """
    with np.errstate(all="ignore"):
        root, slope = _roots(contours, delta, start)
        ends = []
        for side in (1, -1):
            end, best = root.copy(), np.full(len(delta), np.inf if side > 0 else 0.0)
            margin = 1e-9
            done = np.zeros(len(delta), dtype=bool)
            for _ in range(ROUNDS_TO_VERIFY):
                _, least, most = contours.bounds(end)
                gap = np.log((most if side > 0 else least) / delta)
                holds = (side * gap <= 0) & (end >= 0)
                best = np.where(holds & ~done, end, best)
                done |= holds
                if done.all():
                    break
                step = np.clip((gap + side * margin) / slope, -1 / slope, 1 / slope)
                end = np.where(done, end, np.where(np.isfinite(step), end + step, end))
                margin *= 4
            ends.append(np.where(np.isnan(best), np.inf if side > 0 else 0.0, best))
    return ends[1], ends[0]


def _roots(contours: ManyContours, delta: Array, start: Array) -> tuple[Array, Array]:
    """Solve estimate(epsilon) = delta by secants of the logarithm; return roots and slopes."""
    e, slope = start.copy(), contours.order.copy()
    last_e, last_gap = np.full_like(e, np.nan), np.full_like(e, np.nan)
    for _ in range(ROUNDS_TO_ROOT):
        value = contours.scale(e) * contours.sums(e)[0]
        gap = np.where(value > 0, np.log(value / delta), -1.0)
        secant = (last_gap - gap) / (e - last_e)
        slope = np.where((secant > 0) & np.isfinite(secant), secant, slope)
        if (np.abs(gap) < ROOT_TOLERANCE).all():
            break
        last_e, last_gap = e, gap
        step = np.clip(gap / slope, -2 / slope, 2 / slope)
        e = np.maximum(e + np.where(np.abs(gap) < ROOT_TOLERANCE, 0.0, step), 0.0)
    return e, slope
