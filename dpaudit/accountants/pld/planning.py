"""Where to put a contour and how many frequencies it takes: choices that no bound rests on."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from dpaudit.accountants.pld import decay
from dpaudit.accountants.pld.contour import (
    Contour,
    Transform,
    jump_transform,
    transform,
)
from dpaudit.accountants.pld.cumulants import (
    Cumulants,
    Ledger,
    jump_table_around,
    table_around,
)
from dpaudit.accountants.pld.kernel import Kernel
from dpaudit.vocabulary.errors import Unresolvable

Array = NDArray[np.float64]

PLAIN_ALIASES, SMOOTH_ALIASES = 1e-10, 1e-6
PLAIN_FREQUENCIES = 3000
SMOOTH_FREQUENCIES = 200_000
DEVIATIONS = 12.0  # a normal characteristic function is gone at 7
LOG_FALLEN = 27.6  # of |phi|^T / |z|^2, over that at its largest
MOST_DOUBT = 4e-4  # a wider contour is no better than a smoothed one
SLOWEST_FALL = 1.55  # of log |phi|, when the reach is doubled
NEGLIGIBLE = 1e-12
STEP_IN_DEVIATIONS = 5.0  # costs 5^2/8 in the exponent
LEFT_BETWEEN = 1e-8  # of phi^T, between samples of nothing
ENVELOPES = 100
# Of many laws the points are made once, for the samples beyond the last frequency as well.
MANY, AHEAD = 10, 8.0
MOST_SAMPLES, FURTHEST = 2000, 60.0
# Orders to try, over the saddle point's: a larger one cancels less, a smaller one stays clear
# of rare large losses.
LEANS = (1.1, 0.95)


@dataclass(frozen=True)
class Target:
    """Where delta is wanted: about this epsilon, and about this log delta."""

    epsilon: float
    log_delta: float


def period(cumulants: Cumulants, order: float, target: Target, aliases: float) -> float:
    """Return a period B whose aliases are about ``aliases`` of delta, by Chernoff."""
    log_budget = target.log_delta + math.log(aliases)
    excess = np.logaddexp(0.0, cumulants.log_chernoff(target.epsilon) - log_budget)
    orders = cumulants.orders
    above, below = orders > order * 1.05, orders < order * 0.95
    right = float((excess[above] / (orders[above] - order)).min())
    left = min(float((excess[below] / (order - orders[below])).min()), -log_budget / order)
    return max(right, left)


def draft(ledger: Ledger, cumulants: Cumulants, order: float, target: Target) -> Contour | None:
    """Return a contour without smoothing, or None where phi does not fall fast enough.

    What the frequencies beyond the last may add is not in it yet: see ``certified``.
    """
    try:
        return _draft(ledger, cumulants, order, target)
    except Unresolvable:  # too many panels; smoothing needs fewer
        return None


def certified(ledger: Ledger, drafted: Contour, epsilon: float) -> Contour | None:
    """Return the drafted contour with all of its errors, or None where they hide the sum."""
    if not drafted.doubt(epsilon) < MOST_DOUBT:
        return None
    affordable = MOST_DOUBT * drafted.sum(epsilon)
    try:
        found = replace(drafted, truncation=_beyond(ledger, drafted.transform, affordable))
    except Unresolvable:
        return None
    return found if found.doubt(epsilon) < MOST_DOUBT else None


def _draft(ledger: Ledger, cumulants: Cumulants, order: float, target: Target) -> Contour | None:
    if any(len(law.branches) != 1 for law, _ in ledger.laws):
        return None
    length = period(cumulants, order, target, PLAIN_ALIASES)
    if not 0 < length < math.inf:  # nothing is that far out, or Chernoff knows nothing of it
        return None
    spacing = 2 * math.pi / length
    deviation = math.sqrt(cumulants.curvature(order))
    count = 8 + math.ceil(DEVIATIONS / deviation / spacing)
    last_fall, ahead = 0.0, AHEAD if len(ledger.laws) > MANY else 1.0
    while count <= PLAIN_FREQUENCIES:
        found = transform(ledger, order, spacing, count, ahead)
        modulus = float(np.abs(found.values[-4:]).max())
        fall = -math.log(max(modulus, 1e-300))
        wanted = LOG_FALLEN - 2 * math.log(max(found.reach / order, 1.0))
        if fall > wanted:
            return Contour(found, None, 0.0, cumulants)
        if not fall > SLOWEST_FALL * last_fall:
            return None  # on a plateau: losses of this size are too rare to fill the gaps
        last_fall = fall
        count *= min(4, max(2, math.ceil(wanted / max(fall, 1e-3))))
    return None


class Source(Protocol):
    """A measure on losses: that of a composition, or of a part of it."""

    def table(self, order: float) -> Cumulants:
        """Return its cumulants around ``order``."""

    def transform(self, order: float, spacing: float, count: int) -> Transform:
        """Return its tilted characteristic function."""

    def plain(self, cumulants: Cumulants, order: float, target: Target) -> Contour | None:
        """Return a contour that needs no smoothing, if there is one."""


@dataclass(frozen=True)
class Whole:
    """All losses of a ledger."""

    ledger: Ledger

    def table(self, order: float) -> Cumulants:
        """Return the cumulants of the composition."""
        return table_around(self.ledger, order)

    def transform(self, order: float, spacing: float, count: int) -> Transform:
        """Return the transform of the composition."""
        return transform(self.ledger, order, spacing, count)

    def plain(self, cumulants: Cumulants, order: float, target: Target) -> Contour | None:
        """Return one where phi falls fast enough to leave little doubt."""
        drafted = draft(self.ledger, cumulants, order, target)
        return certified(self.ledger, drafted, target.epsilon) if drafted else None


@dataclass(frozen=True)
class Jumps:
    """What at least one loss from ``above`` adds to those of ``below``."""

    below: Ledger
    above: Ledger

    def table(self, order: float) -> Cumulants:
        """Return the cumulants of the difference."""
        return jump_table_around(self.below, self.above, order)

    def transform(self, order: float, spacing: float, count: int) -> Transform:
        """Return the transform of the difference."""
        return jump_transform(self.below, self.above, order, spacing, count)

    def plain(self, cumulants: Cumulants, order: float, target: Target) -> Contour | None:
        """Return none: how fast a difference falls is not bounded here."""
        return None


def smooth(
    source: Source, cumulants: Cumulants, saddle: float, target: Target, kernel: Kernel
) -> Contour | None:
    """Return a contour of the smoothed delta, or None where it takes too many frequencies."""
    order, length = _cheapest(cumulants, saddle, target)
    needed = kernel.reach * (length + 2 * kernel.half_width) / (2 * math.pi)
    if not needed < SMOOTH_FREQUENCIES:
        return None
    spacing = kernel.reach / needed
    try:
        found = source.transform(order, spacing, math.ceil(needed) + 2)
    except Unresolvable:  # too many panels; a wider kernel needs fewer
        return None
    return Contour(found, kernel, kernel.beyond(order, found.reach), cumulants)


def _cheapest(cumulants: Cumulants, saddle: float, target: Target) -> tuple[float, float]:
    """Return the order near the saddle point with the shortest period, and that.

    Every nat by which Chernoff's bound is worse than at its best cancels digits.
    """
    c = cumulants.orders
    logs = cumulants.log_chernoff(target.epsilon)
    with np.errstate(invalid="ignore"):
        worse = logs - float(logs.min())
    near = [
        float(o) for o, w in zip(c, worse, strict=True) if saddle / 4 < o < 1.7 * saddle and w < 3
    ]
    return min(
        ((order, period(cumulants, order, target, SMOOTH_ALIASES)) for order in [saddle, *near]),
        key=lambda pair: pair[1],
    )


def _beyond(ledger: Ledger, found: Transform, affordable: float) -> float:
    """Bound (1/pi) sum over further frequencies of spacing |phi|^T / |z (z + 1)|.

    Far out by the envelopes alone; nearer, where they say little, from samples. Infinite
    where that is more than ``affordable`` in any case.
    """
    far = found.reach * np.geomspace(1, 1e9, 300)
    log_far = -0.5 * ledger.gaussian * far * far
    # No factor exceeds 1: some of many are enough.
    for (law, times), points in list(zip(ledger.laws, found.points, strict=True))[:ENVELOPES]:
        bound = decay.envelope(law, found.order, points.log_moment)
        log_far = log_far + times * bound.log_above(far)
    parts = _segments(far, log_far[:-1], found.spacing)
    beyond = np.append(np.cumsum(parts[::-1])[::-1], 0.0) + math.exp(log_far[-1]) / far[-1]
    enough = np.flatnonzero(beyond < NEGLIGIBLE / (found.order * (found.order + 1)))
    step = _step_in_deviations(ledger.steps) / found.deviation(ledger)
    split = min(
        int(enough[0]) if len(enough) else len(far) - 1,
        int(np.searchsorted(far, min(MOST_SAMPLES * step, FURTHEST * found.reach))),
    )
    rest = float(beyond[min(split, len(far) - 1)])
    if rest > affordable:
        return math.inf
    return rest + (_sampled(ledger, found, step, float(far[split])) if split else 0.0)


def _step_in_deviations(steps: int) -> float:
    """Return how coarse samples of |phi| may be.

    Between samples |phi|^2 is known up to step^2 variance / 4 of one release, which is what
    is left of a phi that has fallen to nothing: its T-th power must be next to nothing too.
    """
    return min(STEP_IN_DEVIATIONS, 2 * math.sqrt(steps) * math.pow(LEFT_BETWEEN, 1 / steps))


def _sampled(ledger: Ledger, found: Transform, step: float, end: float) -> float:
    """Bound the part of that up to ``end``, from samples of phi at ``step``."""
    first = math.floor(found.reach / step)
    y = np.asarray(step * np.arange(math.ceil(end / step) + 2))
    log_modulus = -0.5 * ledger.gaussian * y[first:-1] ** 2
    for (law, times), made in zip(ledger.laws, found.points, strict=True):
        points = made if made.reach >= y[-1] else law.points(found.order, float(y[-1]))
        log_modulus += times * decay.log_between(points, step, len(y))[first:]
    return float(_segments(np.maximum(y[first:], found.reach), log_modulus, found.spacing).sum())


def _segments(y: Array, log_modulus: Array, spacing: float) -> Array:
    """Bound (1/pi) sum spacing |phi|^T / y^2 over the frequencies in each [y_i, y_i+1]."""
    return np.asarray(np.exp(log_modulus) * (np.diff(y) + spacing) / (math.pi * y[:-1] ** 2))
