"""delta(epsilon) of a ledger of laws: choose a contour, then certify.

An end is returned only where it was seen to hold; what cannot be made narrow stays wide.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from dpaudit.accountants.pld import one_release, planning
from dpaudit.accountants.pld.answer import Answer
from dpaudit.accountants.pld.cumulants import (
    Cumulants,
    Ledger,
    order_for_delta,
    order_for_epsilon,
    rough_deviation,
    table_around,
)
from dpaudit.accountants.pld.evaluator import (
    NEARLY_ONE,
    SMOOTHING,
    Evaluator,
    narrower,
    share_for,
    smoothed,
)
from dpaudit.accountants.pld.planning import Target
from dpaudit.accountants.pld.splitting import Split, split_for_epsilon

WIDE = 8e-4  # relative
MOST_ROUNDS, MOST_CUTS = 6, 4
SETTLED = 6.0  # nats of delta: laws that were cut for so near a delta are good enough
LEAST_LOG_DELTA = -680.0
NUDGE = 1 + 1e-12
WORTH_NARROWING = 0.2  # of the width: what smoothing must be to blame for


@dataclass(frozen=True)
class Place:
    """Laws cut for about the delta at an epsilon, and where a contour suits them."""

    laws: Ledger
    order: float
    split: Split

    @property
    def log_delta(self) -> float:
        """About the log of delta."""
        return max(self.split.log_delta, LEAST_LOG_DELTA)

    @property
    def orders(self) -> tuple[float, ...]:
        """Orders for a contour, the most promising first.

        The saddle point may lie among rare large losses, which the order that is best for
        that delta avoids. Near delta 1 it is the spread of the losses that matters.
        """
        order = min(self.order, order_for_delta(self.laws, self.log_delta)[0])
        if self.log_delta > NEARLY_ONE:
            order = max(order, 0.3 / rough_deviation(self.laws))
        leans = [lean * order for lean in planning.LEANS]
        return (*leans, self.order) if self.order > 1.2 * order else tuple(leans)


def delta(ledger: Callable[[float], Ledger], epsilon: float) -> Answer:
    """Return the interval of delta at ``epsilon``; ``ledger`` cuts its laws for a delta."""
    found = _place(ledger, epsilon)
    if isinstance(found, Answer):
        return found
    known = _plain(found, epsilon)
    if not known.narrow_enough(WIDE, 0.0):
        known = known.meet(_nearly_one(found.laws, epsilon))
    return _narrowed(found, epsilon, known)


def _place(ledger: Callable[[float], Ledger], epsilon: float) -> Place | Answer:
    """Cut the laws for the delta that they turn out to have; or answer, beyond all losses."""
    log_delta = -40.0
    for _ in range(MOST_CUTS):
        laws = ledger(math.exp(min(log_delta, -1.0)))
        if epsilon >= laws.supremum * NUDGE:
            lower, upper = laws.infinite / NUDGE, min(1.0, laws.infinite * NUDGE)
            return Answer(lower, upper, "no loss is that large")
        if epsilon >= laws.largest * NUDGE:
            lower, upper = laws.infinite / NUDGE, min(1.0, laws.beyond * NUDGE)
            return Answer(lower, upper, "hardly any loss is that large")
        order = order_for_epsilon(laws, epsilon)
        place = Place(laws, order, split_for_epsilon(laws, epsilon, order))
        if abs(place.log_delta - log_delta) < SETTLED:
            break
        log_delta = place.log_delta
    return place


def _plain(place: Place, epsilon: float) -> Answer:
    """Return what Chernoff's inequality says, and a contour without smoothing."""
    laws, target = place.laws, Target(epsilon, place.log_delta)
    cumulants = table_around(laws, place.orders[0])
    known = _by_chernoff(laws, cumulants, epsilon)
    for order in place.orders:
        if known.narrow_enough(WIDE, 0.0):
            break
        table = cumulants if order < 2 * place.orders[0] else table_around(laws, order)
        drafted = planning.draft(laws, table, order, target)
        contour = planning.certified(laws, drafted, epsilon) if drafted else None
        if contour is not None:
            known = known.meet(_by(Evaluator((contour,), laws), epsilon, "contour"))
    return known


def _by_chernoff(laws: Ledger, cumulants: Cumulants, epsilon: float) -> Answer:
    most = math.exp(min(0.0, float(cumulants.log_chernoff(epsilon).min()))) * NUDGE
    return Answer(0.0, min(1.0, most + laws.beyond), "Chernoff's inequality")


def _narrowed(place: Place, epsilon: float, known: Answer) -> Answer:
    """Narrow what is known by smoothed contours, each finer than the last."""
    laws, split, log_delta = place.laws, place.split, place.log_delta
    if split.cap is None and log_delta > NEARLY_ONE:
        split = replace(split, orders=place.orders[:1])
    method = "smoothed contour" if split.cap is None else "smoothed contour, split"
    share = share_for(SMOOTHING)
    for _ in range(MOST_ROUNDS):
        if known.narrow_enough(WIDE, 0.0):
            break
        evaluator = smoothed(laws, split, Target(epsilon, log_delta), share)
        if evaluator is None:
            share *= 2
            continue
        found = _by(evaluator, epsilon, method)
        known = known.meet(found)
        if found.budget["smoothing"] * found.upper < WORTH_NARROWING * (found.upper - found.lower):
            break
        log_delta = math.log(max(known.upper, 1e-300))
        share *= narrower(known.upper - known.lower, WIDE * known.upper)
    return known


def _by(evaluator: Evaluator, epsilon: float, method: str) -> Answer:
    lower, upper = min(1.0, evaluator.lower(epsilon)), evaluator.upper(epsilon)
    return Answer(lower, upper, method, evaluator.budget(epsilon))


def _nearly_one(laws: Ledger, epsilon: float) -> Answer:
    """Return the lower end that Hellinger affinities give, which is 1 in the end.

    1 - delta = int min(P, e^epsilon Q) <= e^(epsilon/2) int sqrt(P Q), a product over the
    releases; and int sqrt(P Q) <= sqrt(1 - TV^2), where TV is delta at 0 (Le Cam 1986).
    """
    log_affinity = -laws.gaussian / 8
    for law, times in laws.laws:
        apart = max(0.0, one_release.delta(law, 0.0).lower / NUDGE)
        log_affinity += 0.5 * times * math.log1p(-min(apart * apart, 1 - 1e-15))
    least = -math.expm1(min(0.0, log_affinity / NUDGE + epsilon / 2 * NUDGE))
    return Answer(max(0.0, least / NUDGE), 1.0, "distance of the laws")
