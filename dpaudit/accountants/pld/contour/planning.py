"""Choice of contours, periods, frequencies and splits.

Only ``certify_contour`` and its helpers give bounds: they bound the truncation error. All other
choices affect widths and run times, not the validity of a bound.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from dpaudit.accountants.pld.contour import integrand
from dpaudit.accountants.pld.contour.contour_integral import (
    ContourIntegral,
    TiltedTransform,
    tilted_jump_transform,
    tilted_transform,
)
from dpaudit.accountants.pld.contour.integrand import SmoothingKernel
from dpaudit.accountants.pld.laws.composition import (
    SCAN_FACTORS,
    Composition,
    Cumulants,
    cumulants_around,
    jump_cumulants_around,
    log_chernoff_factor,
)
from dpaudit.vocabulary.errors import Unresolvable

Array = NDArray[np.float64]

PLAIN_ALIASES, SMOOTH_ALIASES = 1e-10, 1e-6  # allowed aliases relative to delta
PLAIN_FREQUENCIES = 3000
SMOOTH_FREQUENCIES = 200_000
DEVIATIONS = 12.0  # first reach times deviation; a normal phi is below 1e-10 at 7
LOG_DECAYED = 27.6  # nats by which |phi| / |z|^2 must fall below its maximum
MAX_RELATIVE_ERROR = 4e-4  # above it a smoothed contour is at least as narrow
MIN_DECAY_RATIO = 1.55  # growth of -log |phi| per extension; below it phi is on a plateau
NEGLIGIBLE = 1e-12
LEAST_PERIOD = 1e-200  # nats; the spacing of frequencies, its inverse, must not overflow
STEP_IN_DEVIATIONS = 5.0  # loosens the bound on log |phi| by 5^2/8
RESIDUE_BETWEEN_SAMPLES = 1e-8  # bound on |phi| between samples where it has vanished
MAX_ENVELOPES = 100
FAR_FACTORS = np.geomspace(1, 1e9, 300)  # from the last frequency to those of the envelopes
# With many distributions, points are made once, for the samples beyond the last frequency too.
MANY_DISTRIBUTIONS, POINTS_AHEAD = 10, 8.0
MOST_LOOSENING, KEPT_FALL = 8.0, 10.0  # nats of log |phi| that a rough bound may give up, or not
LEAST_STEPS_TO_LOOSEN = 100  # of fewer, the T-th power of m itself matters
MAX_SAMPLES, LARGEST_REACH_FACTOR = 2000, 60.0
# Orders to try, as factors of the saddle point: with a larger one fewer digits cancel, a smaller
# one avoids rare large losses.
TRIAL_ORDER_FACTORS = (1.1, 0.95)


@dataclass(frozen=True)
class ContourTarget:
    """The point of interest, known approximately.

    Attributes:
        epsilon: Privacy loss in nats.
        log_delta: Logarithm of delta.
    """

    epsilon: float
    log_delta: float


def alias_period(
    cumulants: Cumulants, order: float, target: ContourTarget, aliases: float
) -> float:
    """Return a period B whose aliases are about ``aliases`` times delta, by Chernoff's inequality.

    With X(c') Chernoff's bound of log delta at the order c', the first alias at +B is at most
    exp(X(c') - (c' - c) B) for c' > c. Solve that for B, and likewise for -B with c' < c. The
    alias at -B is also at most e^(-c B), because delta <= 1.

    Args:
        cumulants: Cumulants around the order.
        order: Real part c of the contour.
        target: The point of interest.
        aliases: Allowed size of the aliases relative to delta.

    Returns:
        The period in nats.
    """
    log_budget = target.log_delta + math.log(aliases)
    excess = np.logaddexp(0.0, cumulants.log_chernoff(target.epsilon) - log_budget)
    orders = cumulants.orders
    above, below = orders > order * 1.05, orders < order * 0.95
    right = float((excess[above] / (orders[above] - order)).min())
    left = min(float((excess[below] / (order - orders[below])).min()), -log_budget / order)
    return max(right, left)


def draft_contour(
    composition: Composition, cumulants: Cumulants, order: float, target: ContourTarget
) -> ContourIntegral | None:
    """Choose a contour without smoothing.

    The truncation error is not in it yet: see ``certify_contour``.

    Args:
        composition: The composed losses.
        cumulants: Cumulants around the order.
        order: Real part c of the contour.
        target: The point of interest.

    Returns:
        The contour, or None where phi does not fall fast enough.
    """
    try:
        return _draft_contour(composition, cumulants, order, target)
    except Unresolvable:  # too many panels; a smoothed contour needs fewer
        return None


def certify_contour(
    composition: Composition, drafted: ContourIntegral, epsilon: float
) -> ContourIntegral | None:
    """Add the truncation error to a drafted contour.

    Args:
        composition: The composed losses.
        drafted: A contour by ``draft_contour``.
        epsilon: Privacy loss in nats at which the contour must be accurate.

    Returns:
        The contour with all errors, or None where they exceed ``MAX_RELATIVE_ERROR``.
    """
    if not drafted.relative_error(epsilon) < MAX_RELATIVE_ERROR:
        return None
    affordable = MAX_RELATIVE_ERROR * drafted.sum(epsilon)
    try:
        found = drafted.with_truncation(
            _truncation_bound(composition, drafted.transform, affordable)
        )
    except Unresolvable:
        return None
    return found if found.relative_error(epsilon) < MAX_RELATIVE_ERROR else None


def _draft_contour(
    composition: Composition, cumulants: Cumulants, order: float, target: ContourTarget
) -> ContourIntegral | None:
    """Extend the frequencies until phi has decayed; None where it stays on a plateau."""
    if any(len(distribution.branches) != 1 for distribution, _ in composition.distributions):
        return None
    if _fall_to_atoms(composition, order) < LOG_DECAYED / 2:
        return None  # atoms hold so much of the mass that |phi| returns near 1 again and again
    length = alias_period(cumulants, order, target, PLAIN_ALIASES)
    if not LEAST_PERIOD < length < math.inf:  # no mass is that far out, or the bound is infinite
        return None
    spacing = 2 * math.pi / length
    # Near y = 0, phi ~ e^(-K''(c) y^2 / 2): start with DEVIATIONS of its standard deviation.
    deviation = math.sqrt(cumulants.curvature(order))
    count = 8 + math.ceil(DEVIATIONS / deviation / spacing)
    last_fall, ahead = (
        0.0,
        POINTS_AHEAD if len(composition.distributions) > MANY_DISTRIBUTIONS else 1.0,
    )
    while count <= PLAIN_FREQUENCIES:
        found = tilted_transform(composition, order, spacing, count, ahead)
        fall, wanted = _fall_and_wanted(found)
        if fall > wanted:
            return ContourIntegral(found, None, 0.0, cumulants)
        if not fall > MIN_DECAY_RATIO * last_fall:
            return None  # on a plateau: the distribution of large losses is nearly discrete
        last_fall = fall
        count *= min(4, max(2, math.ceil(wanted / max(fall, 1e-3))))
    return None


def _fall_and_wanted(found: TiltedTransform) -> tuple[float, float]:
    """Return by how many nats |phi| falls up to the last frequency, and by how many it must."""
    fall = -math.log(max(float(np.abs(found.values[-4:]).max()), 1e-300))
    return fall, LOG_DECAYED - 2 * math.log(max(found.reach / found.order, 1.0))


def _fall_to_atoms(composition: Composition, order: float) -> float:
    """Estimate by how many nats |phi| can fall: it returns to what the largest atoms leave.

    An atom of tilted mass a among atoms of mass b leaves |phi| at a - b or more, far out.
    """
    if composition.gaussian:
        return math.inf
    fall = 0.0
    for distribution, times in composition.sketch.distributions:
        if not len(distribution.atom_losses):
            return math.inf
        log_moment = float(distribution.rough_log_moments(np.array([order]))[0])
        with np.errstate(divide="ignore"):
            logs = np.log(distribution.atom_masses) + order * distribution.atom_losses - log_moment
        masses = np.exp(np.minimum(logs, 0.0))
        fall -= times * math.log(max(2 * float(masses.max()) - float(masses.sum()), 1e-300))
    return fall


class LossMeasure(Protocol):
    """A measure on losses: a composition or a part of one."""

    def cumulants(self, order: float) -> Cumulants:
        """Bound the cumulant generating function around ``order``.

        Args:
            order: Central order c.

        Returns:
            The table.
        """

    def transform(self, order: float, spacing: float, count: int) -> TiltedTransform:
        """Evaluate the tilted characteristic function.

        Args:
            order: Tilt c > 0.
            spacing: Distance of frequencies, in 1/nats.
            count: Number of frequencies, from 0.

        Returns:
            The transform, with error bounds.
        """

    def unsmoothed(
        self, cumulants: Cumulants, order: float, target: ContourTarget
    ) -> ContourIntegral | None:
        """Return a certified contour without smoothing, if there is one.

        Args:
            cumulants: Cumulants around the order.
            order: Real part c of the contour.
            target: The point of interest.

        Returns:
            The contour or None.
        """


@dataclass(frozen=True)
class WholeMeasure:
    """The measure of all losses of a composition.

    Attributes:
        composition: The composed losses.
    """

    composition: Composition

    def cumulants(self, order: float) -> Cumulants:
        """Bound the cumulant generating function of the composition."""
        return cumulants_around(self.composition, order)

    def transform(self, order: float, spacing: float, count: int) -> TiltedTransform:
        """Evaluate the transform of the composition."""
        return tilted_transform(self.composition, order, spacing, count)

    def unsmoothed(
        self, cumulants: Cumulants, order: float, target: ContourTarget
    ) -> ContourIntegral | None:
        """Return a certified contour where phi falls fast enough."""
        drafted = draft_contour(self.composition, cumulants, order, target)
        return certify_contour(self.composition, drafted, target.epsilon) if drafted else None


@dataclass(frozen=True)
class JumpMeasure:
    """The measure that losses from ``above`` add to the composition of ``below``.

    Attributes:
        below: Composition of the losses up to a cap.
        above: Composition of the losses above it, from the same split.
    """

    below: Composition
    above: Composition

    def cumulants(self, order: float) -> Cumulants:
        """Bound the cumulant generating function of the difference."""
        return jump_cumulants_around(self.below, self.above, order)

    def transform(self, order: float, spacing: float, count: int) -> TiltedTransform:
        """Evaluate the transform of the difference."""
        return tilted_jump_transform(self.below, self.above, order, spacing, count)

    def unsmoothed(
        self, cumulants: Cumulants, order: float, target: ContourTarget
    ) -> ContourIntegral | None:
        """Return None: no bound on the decay of a difference is implemented."""
        return None


def smoothed_contour(
    source: LossMeasure,
    cumulants: Cumulants,
    saddle: float,
    target: ContourTarget,
    kernel: SmoothingKernel,
) -> ContourIntegral | None:
    """Choose a contour of the smoothed delta.

    Args:
        source: The measure of losses.
        cumulants: Its cumulants around the saddle point.
        saddle: Order of the saddle point.
        target: The point of interest.
        kernel: The smoothing kernel.

    Returns:
        The contour, or None where it takes more than ``SMOOTH_FREQUENCIES``.
    """
    order, length = _order_of_shortest_period(cumulants, saddle, target)
    # The spacing 2 pi / B, up to the reach beta / h; the period grows by the kernel's support.
    needed = kernel.reach * (length + 2 * kernel.half_width) / (2 * math.pi)
    if not needed < SMOOTH_FREQUENCIES:
        return None
    spacing = kernel.reach / needed
    try:
        found = source.transform(order, spacing, math.ceil(needed) + 2)
    except Unresolvable:  # too many panels; a wider kernel needs fewer
        return None
    return ContourIntegral(found, kernel, kernel.beyond(order, found.reach), cumulants)


def _order_of_shortest_period(
    cumulants: Cumulants, saddle: float, target: ContourTarget
) -> tuple[float, float]:
    """Return the order near the saddle point with the shortest period, and that period.

    At an order whose Chernoff bound is w nats above the best one, the terms of the sum cancel by
    w nats. Only orders with w < 3 are considered.
    """
    c = cumulants.orders
    logs = cumulants.log_chernoff(target.epsilon)
    with np.errstate(invalid="ignore"):
        worse = logs - float(logs.min())
    near = [
        float(o) for o, w in zip(c, worse, strict=True) if saddle / 4 < o < 1.7 * saddle and w < 3
    ]
    return min(
        (
            (order, alias_period(cumulants, order, target, SMOOTH_ALIASES))
            for order in [saddle, *near]
        ),
        key=lambda pair: pair[1],
    )


def _truncation_bound(composition: Composition, found: TiltedTransform, affordable: float) -> float:
    """Bound (1/pi) sum over further frequencies of spacing |phi| / |z (z + 1)|.

    The envelopes of ``decay_envelope`` bound the far end; nearer, where they are loose, samples
    of phi do. Infinite where the far end alone exceeds ``affordable``.
    """
    far = found.reach * FAR_FACTORS
    log_far = -0.5 * composition.gaussian * far * far
    # Every factor of phi is at most 1, so a bound may omit some of them.
    for (distribution, times), points in list(
        zip(composition.distributions, found.points, strict=True)
    )[:MAX_ENVELOPES]:
        bound = integrand.decay_envelope(distribution, found.order, points.log_moment)
        log_far = log_far + times * bound.log_upper_bound(far)
    # Sums from each point on; beyond the last one the bound falls, and int dy / y^2 = 1 / y.
    parts = _segment_bounds(far, log_far[:-1], found.spacing)
    beyond = np.append(np.cumsum(parts[::-1])[::-1], 0.0) + math.exp(log_far[-1]) / far[-1]
    negligible = np.flatnonzero(beyond < NEGLIGIBLE / (found.order * (found.order + 1)))
    step = _step_in_deviations(composition.steps) / found.deviation(composition)
    split = min(
        int(negligible[0]) if len(negligible) else len(far) - 1,
        int(np.searchsorted(far, min(MAX_SAMPLES * step, LARGEST_REACH_FACTOR * found.reach))),
    )
    rest = float(beyond[min(split, len(far) - 1)])
    if rest > affordable:
        return math.inf
    return rest + (
        _truncation_from_samples(composition, found, step, float(far[split])) if split else 0.0
    )


def _step_in_deviations(steps: int) -> float:
    """Return the distance of samples of |phi|, in units of 1 / standard deviation of the sum.

    Between samples, |phi_1|^2 of one release is known up to step^2 variance / 4 even where
    phi_1 has vanished. Its T-th power must be negligible too.
    """
    return min(
        STEP_IN_DEVIATIONS, 2 * math.sqrt(steps) * math.pow(RESIDUE_BETWEEN_SAMPLES, 1 / steps)
    )


def _truncation_from_samples(
    composition: Composition, found: TiltedTransform, step: float, end: float
) -> float:
    """Bound the part of the truncation up to ``end`` from samples of phi at distance ``step``."""
    first = math.floor(found.reach / step)
    y = np.asarray(step * np.arange(math.ceil(end / step) + 2))
    log_modulus = -0.5 * composition.gaussian * y[first:-1] ** 2
    # Rare large losses take most of the points. Without a mass m of them, log |phi| of all T
    # releases is bounded by about 2 T m more.
    fall, wanted = _fall_and_wanted(found)
    spare = min(MOST_LOOSENING, max(0.0, fall - wanted - KEPT_FALL) / 2)
    many = composition.steps >= LEAST_STEPS_TO_LOOSEN
    left_out = 0.5 * spare / composition.steps if many else 0.0
    for (distribution, times), made in zip(composition.distributions, found.points, strict=True):
        points = made
        if made.reach < y[-1]:
            points = distribution.points(found.order, float(y[-1]), left_out)
        log_modulus += times * integrand.log_modulus_between(points, step, len(y))[first:]
    return float(
        _segment_bounds(np.maximum(y[first:], found.reach), log_modulus, found.spacing).sum()
    )


def _segment_bounds(y: Array, log_modulus: Array, spacing: float) -> Array:
    """Bound (1/pi) sum spacing |phi| / y^2 over the frequencies in each [y_i, y_i+1]."""
    return np.asarray(np.exp(log_modulus) * (np.diff(y) + spacing) / (math.pi * y[:-1] ** 2))


# Split compositions. Where rare large losses dominate delta, one tilt does not suit all
# losses. With A the losses up to a cap and B those above it,
#
#     delta = delta[prod A^T] + delta[prod (A + B)^T - prod A^T],
#
# two non-negative measures, each with its own order and contour.


CAP_COUNT = 48
TYPICAL_LOG_GAP = 2.5  # typical excess of Chernoff's bound over log delta
EQUAL_WITHIN = 1.0  # nats by which caps count as equal
MIN_CANCELLATION = 4.0  # nats of cancellation from which a split is considered


@dataclass(frozen=True)
class LossSplit:
    """Where to split the losses, if at all, and the orders that suit the parts.

    Attributes:
        epsilon: Approximate epsilon for which the split was chosen, in nats.
        log_delta: Approximate log delta there.
        cap: Largest loss of the lower part in nats; None for no split.
        orders: One order without a split, else the orders of the lower and the upper part.
        gap: Nats by which the terms of the sums cancel.
    """

    epsilon: float
    log_delta: float
    cap: float | None
    orders: tuple[float, ...]
    gap: float


class SplitSearch:
    """Estimates of K for the whole, for the part below each cap and for what is added above it.

    Args:
        composition: The composed losses.
        guess: Central order of the table.
    """

    def __init__(self, composition: Composition, guess: float) -> None:
        self.orders = guess * SCAN_FACTORS
        self.caps = _caps(composition)
        base = 0.5 * composition.gaussian * self.orders * (self.orders + 1)
        self.below = np.tile(base[:, None], len(self.caps))
        self.ratio = np.zeros_like(self.below)
        for distribution, times in composition.sketch.distributions:
            log_below, log_ratio = _partial_moments(*distribution.rough, self.orders, self.caps)
            self.below += times * log_below
            self.ratio += times * log_ratio
        with np.errstate(divide="ignore"):
            grown = np.log(np.expm1(np.minimum(self.ratio, 500.0)))
        self.above = self.below + np.where(self.ratio > 500, self.ratio, grown)
        self.whole = self.below[:, -1]  # the last cap is the largest loss

    def penalty(self, epsilon: float) -> Array:
        """Return what turns K into Chernoff's bound of log delta.

        Args:
            epsilon: Privacy loss in nats.

        Returns:
            -c epsilon + log(c^c / (1+c)^(1+c)), per order.
        """
        return np.asarray(-self.orders * epsilon + log_chernoff_factor(self.orders))

    def at(self, epsilon: float) -> tuple[float, Array]:
        """Evaluate Chernoff's bound of log delta with and without a split.

        Args:
            epsilon: Privacy loss in nats.

        Returns:
            The value of the whole, and for each cap the larger value of both parts.
        """
        penalty = self.penalty(epsilon)
        parts = np.maximum(
            (self.below + penalty[:, None]).min(axis=0), (self.above + penalty[:, None]).min(axis=0)
        )
        return float((self.whole + penalty).min()), parts

    def split(self, epsilon: float, log_delta: float) -> LossSplit:
        """Choose the best split at an epsilon.

        Args:
            epsilon: Privacy loss in nats.
            log_delta: Approximate log delta there.

        Returns:
            The split; its cap is None where one tilt is good enough.
        """
        penalty = self.penalty(epsilon)
        whole, parts = self.at(epsilon)
        # Of about equal caps take the largest: the losses of the upper part vary least.
        best = int(np.flatnonzero(parts <= parts.min() + EQUAL_WITHIN)[-1])
        if whole - log_delta < MIN_CANCELLATION or parts[best] > whole - 2:
            order = float(self.orders[int(np.argmin(self.whole + penalty))])
            return LossSplit(epsilon, log_delta, None, (order,), whole - log_delta)
        orders = tuple(
            float(self.orders[int(np.argmin(table[:, best] + penalty))])
            for table in (self.below, self.above)
        )
        return LossSplit(
            epsilon, log_delta, float(self.caps[best]), orders, float(parts[best]) - log_delta
        )


def find_split_for_delta(
    composition: Composition, log_delta: float, guess: float, ceiling: float
) -> LossSplit:
    """Choose the best split at the epsilon with a given delta.

    Args:
        composition: The composed losses.
        log_delta: Logarithm of delta.
        guess: Central order of the search.
        ceiling: Largest epsilon to consider, in nats.

    Returns:
        The split.
    """
    tables = SplitSearch(composition, guess)

    def estimate(epsilon: float) -> float:  # of log delta
        whole, parts = tables.at(epsilon)
        return min(whole, float(parts.min())) - TYPICAL_LOG_GAP

    low, high = 0.0, ceiling
    for _ in range(30):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if estimate(middle) > log_delta else (low, middle)
    return tables.split(high, log_delta)


def find_split_for_epsilon(composition: Composition, epsilon: float, guess: float) -> LossSplit:
    """Choose the best split at a given epsilon.

    Args:
        composition: The composed losses.
        epsilon: Privacy loss in nats.
        guess: Central order of the search.

    Returns:
        The split.
    """
    tables = SplitSearch(composition, guess)
    whole, parts = tables.at(epsilon)
    return tables.split(epsilon, min(whole, float(parts.min()), 0.0) - TYPICAL_LOG_GAP)


def _caps(composition: Composition) -> Array:
    """Return the candidates for the cap, in nats: geometric up to the largest loss."""
    tops = max((distribution.largest for distribution, _ in composition.distributions), default=1.0)
    least = max(1e-6 * abs(tops), 1e-14)
    return np.geomspace(least, max(tops, 2 * least), CAP_COUNT)


def _partial_moments(
    losses: Array, log_masses: Array, orders: Array, caps: Array
) -> tuple[Array, Array]:
    """Return log A and log(1 + B/A), A = E[e^(c L); L <= cap] and B the rest, (orders, caps)."""
    order = np.argsort(losses)
    losses, log_masses = losses[order], log_masses[order]
    terms = log_masses + np.multiply.outer(orders, losses)
    peak = terms.max(axis=1, keepdims=True)
    terms = np.exp(terms - peak)
    # Cumulative sums from below and from above: no cancellation in either part.
    index = np.searchsorted(losses, caps * (1 + 1e-9))
    zero = np.zeros((len(orders), 1))
    up = np.concatenate([zero, np.cumsum(terms, axis=1)], axis=1)[:, index]
    down = np.concatenate([np.cumsum(terms[:, ::-1], axis=1)[:, ::-1], zero], axis=1)[:, index]
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        return np.log(np.maximum(up, 1e-300)) + peak, np.log1p(down / np.maximum(up, 1e-300))
