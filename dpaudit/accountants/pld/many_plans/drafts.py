"""Choice of orders, periods, kernels and frequencies for the contours of many plans.

Only the table of cumulants and the bound ``rest`` are bounds. Every other choice affects widths
and run times alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpaudit.accountants.pld.laws.composition import log_chernoff_factor
from dpaudit.accountants.pld.many_plans.decay import layers, log_modulus_beyond, segment_bounds
from dpaudit.accountants.pld.many_plans.order_search import ManyCompositions
from dpaudit.accountants.pld.many_plans.sampled_normals import (
    MOST_CHUNK,
    NodeGrid,
    choose_steps,
)
from dpaudit.accountants.rounding_margins import UNIT_ROUNDOFF

Array = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]

BETA, MOST_CANCELLATION = 17.0, 14.0  # of the kernel; nats by which terms of a sum may cancel
ALIASES = 1e-6  # allowed aliases relative to delta
RELATIVE_WIDTH, ABSOLUTE_WIDTH = 1.5e-4, 3e-7  # of epsilon, by smoothing
LARGEST_SHARE, LARGEST_HALF_WIDTH = 1.0, 1.0
ORDER_FACTORS = np.array([0.5, 0.8, 1.0, 1.03, 1.1, 1.3, 1.9])
CENTER = 2  # the place of 1 in ORDER_FACTORS
MOST_FREQUENCIES, MOST_NODES = 4000, 4500
MOST_PRODUCTS = 2e6  # of nodes and frequencies of one release: about 15 ms
# Frequencies that are tried as the last one, in units of 1 / deviation of the composed loss.
REACHES = np.concatenate([3.0 * 1.15 ** np.arange(36), 500.0 * 3.0 ** np.arange(14)])
MOST_ENVELOPES = 500  # of one plan, about
NEGLIGIBLE = 1e-8  # of the integrand at its peak: what the frequencies beyond the last may add


@dataclass(frozen=True)
class Targets:
    """What one contour per plan is for: the ends of a range of epsilon.

    Attributes:
        order: Order of the contour, shape ``(p,)``.
        epsilon: About the smallest and the largest epsilon, in nats, shape ``(2, p)``.
        log_delta: Logarithms of delta there, shape ``(2, p)``.
    """

    order: Array
    epsilon: Array
    log_delta: Array

    def take(self, plans: IntArray) -> Targets:
        """Return those of some of the plans."""
        return Targets(self.order[plans], self.epsilon[:, plans], self.log_delta[:, plans])


@dataclass(frozen=True)
class NodeChoice:
    """Step, strip, high end and number of nodes of every row, each of shape ``(n,)``."""

    step: Array
    strip: Array
    high: Array
    count: IntArray

    def grid(self, plans: ManyCompositions, rows: IntArray) -> NodeGrid:
        """Return the nodes of some rows."""
        count = int(min(self.count[rows].max(), MOST_NODES))
        return NodeGrid.of(
            plans.rows[rows], self.step[rows], self.strip[rows], self.high[rows], count
        )

    def take(self, rows: IntArray) -> NodeChoice:
        """Return the choices of some rows."""
        return NodeChoice(self.step[rows], self.strip[rows], self.high[rows], self.count[rows])

    def chunks(self) -> list[IntArray]:
        """Divide rows into chunks of about equally many nodes, of limited size."""
        count = np.minimum(self.count, MOST_NODES)
        order = np.argsort(count, kind="stable")
        parts, start = [], 0
        while start < len(order):
            most = 1.3 * int(count[order[start]]) + 16
            end = int(np.searchsorted(count[order], most, side="right"))
            end = min(end, start + max(1, int(MOST_CHUNK / (25 * most))))
            parts.append(order[start:end])
            start = end
        return parts


def choose_nodes(plans: ManyCompositions, order: Array, reach: Array) -> NodeChoice:
    """Choose nodes that resolve frequencies up to a reach, for all orders of the table.

    Args:
        plans: Compositions, ``p`` of them.
        order: Orders c > 0, shape ``(p,)``.
        reach: Largest frequencies, in 1/nats, shape ``(p,)``.

    Returns:
        The choices for every row.
    """
    owner = plans.plan_of_row
    step, strip = choose_steps(plans.rows, order[owner], reach[owner])
    low, high = plans.rows.interval(1.95 * order[owner])
    count = np.ceil(np.minimum((high - low) / step, 1e9)).astype(np.int64) + 1
    return NodeChoice(step, strip, high, count)


@dataclass(frozen=True)
class Outline:
    """What both kinds of contours need.

    Attributes:
        feasible: Whether a contour may be certified, shape ``(p,)``.
        targets: What the contours are for.
        nodes: Nodes without any frequency.
        table: Upper bounds on K at ``ORDER_FACTORS`` times the order, shape ``(p, k)``.
        slack: Nats by which the terms of the sums cancel, shape ``(p,)``.
        period: Period B without smoothing, in nats, shape ``(p,)``.
    """

    feasible: BoolArray
    targets: Targets
    nodes: NodeChoice
    table: Array
    slack: Array
    period: Array


def outline(plans: ManyCompositions, targets: Targets) -> Outline:
    """Bound K around every order, and choose periods.

    Args:
        plans: Compositions, ``p`` of them.
        targets: What the contours are for.

    Returns:
        The outline.
    """
    order = targets.order
    feasible = np.isfinite(order) & (targets.epsilon > 0).all(axis=0) & (order < 1e6)
    order = np.where(feasible, order, 1.0)
    nodes = choose_nodes(plans, order, np.zeros(len(order)))
    feasible &= _all_rows(plans, nodes.count <= MOST_NODES)
    table = _cumulant_table(plans, order, nodes)
    slack, period = np.zeros(len(order)), np.zeros(len(order))
    for epsilon, log_delta in zip(targets.epsilon, targets.log_delta, strict=True):
        orders = order[:, None] * ORDER_FACTORS
        chernoff = table - orders * epsilon[:, None] + log_chernoff_factor(orders)
        slack = np.maximum(slack, chernoff[:, CENTER] - log_delta)
        period = np.maximum(period, _period(chernoff, orders, log_delta + math.log(ALIASES)))
    feasible &= (slack < MOST_CANCELLATION) & np.isfinite(period) & (period > 0)
    return Outline(
        feasible, Targets(order, targets.epsilon, targets.log_delta), nodes, table,
        np.where(feasible, slack, 0.0), np.where(feasible, period, 1.0),
    )  # fmt: skip


def _period(chernoff: Array, orders: Array, budget: Array) -> Array:
    """Return periods with aliases of ``e^budget``, as ``contour.planning.alias_period``."""
    excess = np.logaddexp(0.0, chernoff - budget[:, None])
    center = orders[:, CENTER]
    above, below = slice(CENTER + 1, None), slice(CENTER)
    right = (excess[:, above] / (orders[:, above] - center[:, None])).min(axis=1)
    left = (excess[:, below] / (center[:, None] - orders[:, below])).min(axis=1)
    return np.asarray(np.maximum(right, np.minimum(left, -budget / center)))


def _all_rows(plans: ManyCompositions, holds: BoolArray) -> BoolArray:
    """Return whether something holds for all rows of each plan."""
    return np.asarray(plans.sums((~holds).astype(np.float64)) == 0)


def _is_affordable(plans: ManyCompositions, nodes: NodeChoice, count: IntArray) -> BoolArray:
    """Return whether a contour of this many frequencies takes few enough products."""
    products = nodes.count * count[plans.plan_of_row].astype(np.float64)
    return _all_rows(plans, (nodes.count <= MOST_NODES) & (products <= MOST_PRODUCTS))


def _cumulant_table(plans: ManyCompositions, order: Array, nodes: NodeChoice) -> Array:
    """Bound K from above at ``ORDER_FACTORS`` times each order, shape ``(p, k)``."""
    owner = plans.plan_of_row
    found = np.empty((len(owner), len(ORDER_FACTORS)))
    for part in nodes.chunks():
        grid, zero = nodes.grid(plans, part), np.zeros(len(part))
        for column, factor in enumerate(ORDER_FACTORS):
            tilted = grid.tilted(factor * order[owner[part]], zero)
            found[part, column] = tilted.log_moment + tilted.error
    orders = order[:, None] * ORDER_FACTORS
    total = plans.sums(plans.times[:, None] * found)
    total += 0.5 * plans.gaussian[:, None] * orders * (orders + 1)
    counts = plans.sums(np.ones(len(owner)))[:, None]
    return np.asarray(total + 2 * UNIT_ROUNDOFF * (8 + counts) * (1 + np.abs(total)))


@dataclass(frozen=True)
class Draft:
    """Everything that a contour of each plan needs.

    Attributes:
        outline: Orders, bounds on K, targets.
        feasible: Whether the contour is affordable, shape ``(p,)``.
        half_width: h of the smoothing kernel in nats; 0 for no smoothing, shape ``(p,)``.
        beta: Shape of the kernel, shape ``(p,)``.
        spacing: Distance of frequencies in 1/nats, shape ``(p,)``.
        count: Number of frequencies, shape ``(p,)``.
        nodes: Nodes that resolve them.
        rest: Without smoothing, a bound on what all further frequencies add, shape ``(p,)``.
    """

    outline: Outline
    feasible: BoolArray
    half_width: Array
    beta: Array
    spacing: Array
    count: IntArray
    nodes: NodeChoice
    rest: Array


def plain_draft(plans: ManyCompositions, found: Outline) -> Draft:
    """Choose contours without smoothing: up to where phi has surely fallen enough.

    Args:
        plans: Compositions, ``p`` of them.
        found: Their outline.

    Returns:
        The draft.
    """
    order, owner = found.targets.order, plans.plan_of_row
    variance, parts = plans.gaussian.copy(), []
    for rows in found.nodes.chunks():
        grid = found.nodes.grid(plans, rows)
        tilted = grid.tilted(order[owner[rows]], np.zeros(len(rows)))
        own = (tilted.masses * tilted.losses**2).sum(axis=1)
        np.add.at(variance, owner[rows], plans.times[rows] * own)
        parts.append((rows, *layers(grid, tilted, order[owner[rows]])))
    far = REACHES / np.sqrt(variance)[:, None]
    log_far = -0.5 * plans.gaussian[:, None] * far**2
    for rows, masses, lengths in parts:
        # Every factor of phi is at most 1, so a bound may omit some of them.
        step = max(1, round(len(owner) / (len(order) * MOST_ENVELOPES)))
        some = slice(None, None, step)
        bounds = log_modulus_beyond(masses[some], lengths[some], far[owner[rows[some]]])
        add_rows(log_far, owner[rows[some]], plans.times[rows[some]][:, None] * bounds)
    spacing = 2 * math.pi / found.period
    # Sums from each frequency on; beyond the last one the bound falls, and int dy / y^2 = 1 / y.
    segments = segment_bounds(far, log_far[:, :-1], spacing)
    rest = np.cumsum(segments[:, ::-1], axis=1)[:, ::-1]
    rest = np.concatenate([rest, np.zeros((len(order), 1))], axis=1)
    rest += (np.exp(log_far[:, -1]) * (1 / far[:, -1] + spacing / far[:, -1] ** 2))[:, None]
    small = rest < NEGLIGIBLE * (np.exp(-found.slack) / (order * (order + 1)))[:, None]
    place, first = np.arange(len(order)), small.argmax(axis=1)
    # The last frequency is at least there, so that all further ones are beyond it.
    count = np.ceil(np.minimum(far[place, first] / spacing, 1e9)).astype(np.int64) + 1
    feasible = found.feasible & small.any(axis=1) & (count <= MOST_FREQUENCIES)
    nodes = choose_nodes(plans, order, np.where(feasible, spacing * count, 0.0))
    feasible &= _is_affordable(plans, nodes, count)
    zero = np.zeros(len(order))
    return Draft(found, feasible, zero, zero + 1, spacing, count, nodes, rest[place, first])


def smoothed_draft(plans: ManyCompositions, found: Outline) -> Draft:
    """Choose smoothed contours: up to where the kernel's transform has fallen.

    Smoothing by h widens delta by about (c h)^2 / beta, and epsilon by that over c.

    Args:
        plans: Compositions, ``p`` of them.
        found: Their outline.

    Returns:
        The draft.
    """
    order = found.targets.order
    size = np.maximum(RELATIVE_WIDTH * found.targets.epsilon.min(axis=0), ABSOLUTE_WIDTH)
    share = np.minimum(np.sqrt(BETA * order * size), LARGEST_SHARE)
    half_width = np.minimum(share / order, LARGEST_HALF_WIDTH)
    beta = BETA + np.minimum(found.slack, MOST_CANCELLATION)
    needed = beta / half_width * (found.period + 2 * half_width) / (2 * math.pi)
    feasible = found.feasible & (needed < MOST_FREQUENCIES)
    needed = np.where(feasible, needed, 1.0)
    spacing = beta / half_width / needed
    count = np.ceil(needed).astype(np.int64) + 2
    nodes = choose_nodes(plans, order, np.where(feasible, spacing * count, 0.0))
    feasible &= _is_affordable(plans, nodes, count)
    return Draft(found, feasible, half_width, beta, spacing, count, nodes, np.zeros(len(order)))


def add_rows(total: NDArray[Any], plan: IntArray, values: NDArray[Any]) -> None:
    """Add rows to their plans, in place.

    Args:
        total: Sums, shape ``(p, ...)``.
        plan: The plan of each row, shape ``(n,)``.
        values: Shape ``(n, ...)``.
    """
    if len(total) == 1:
        total[0] += values.sum(axis=0)
    elif len(np.unique(plan)) == len(plan):
        total[plan] += values
    else:
        np.add.at(total, plan, values)
