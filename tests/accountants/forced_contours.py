"""Each kind of contour, forced: bounds must hold where the solver would not choose it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from dpaudit.accountants.numerics import Direction
from dpaudit.accountants.pld.contour import planning
from dpaudit.accountants.pld.contour.contour_integral import ContourIntegral
from dpaudit.accountants.pld.contour.integrand import SmoothingKernel
from dpaudit.accountants.pld.contour.planning import (
    ContourTarget,
    JumpMeasure,
    LossMeasure,
    WholeMeasure,
)
from dpaudit.accountants.pld.contour.solver import DeltaEvaluator
from dpaudit.accountants.pld.laws.composition import Composition, Cumulants, rough_cumulants
from dpaudit.accountants.pld.laws.loss_distribution import LossDistribution
from dpaudit.accountants.pld.laws.loss_query import BoundSide, LossQuery
from dpaudit.accountants.releases import count_releases
from dpaudit.vocabulary.mechanism import Mechanism
from dpaudit.vocabulary.privacy_terms import Adjacency
from tests.accountants.golden import of_ledger

DIRECTIONS = {"remove": Direction.REMOVED, "add": Direction.ADDED}
LARGEST_ORDER = 1e5
SHARE, BETA = 0.02, 20.0

Entries = Iterable[tuple[float, float, int]]


def composition_of(
    mechanism: Mechanism | Entries,
    direction: str = "remove",
    *,
    delta: float = 1e-30,
    adjacency: Adjacency = Adjacency.ADD_OR_REMOVE_ONE,
    side: BoundSide = BoundSide.ABOVE,
) -> Composition:
    """Return the composition of a mechanism, or of (sampling rate, noise multiplier, steps), ..."""
    if not isinstance(mechanism, Mechanism):
        mechanism = of_ledger(list(mechanism))
    query = LossQuery(count_releases(mechanism), adjacency, DIRECTIONS[direction], side)
    return query.composition(delta)


def saddle(source: LossMeasure, epsilon: float) -> tuple[float, Cumulants, ContourTarget]:
    """Return the approximate order of the least Chernoff bound: a scan and three refinements."""
    parts = (
        (source.composition,) if isinstance(source, WholeMeasure) else (source.below, source.above)
    )
    distributions = [
        (distribution, times)
        for part in parts
        for distribution, times in part.distributions
        if not is_empty(distribution)
    ]
    rough = rough_cumulants(replace(parts[0], distributions=tuple(distributions)), 30.0)
    order = float(rough.orders[int(rough.log_chernoff(epsilon).argmin())])
    for _ in range(3):
        table = source.cumulants(order)
        logs = table.log_chernoff(epsilon)
        order = min(float(table.orders[int(logs.argmin())]), LARGEST_ORDER)
    return (
        order,
        source.cumulants(order),
        ContourTarget(epsilon, max(float(logs.min()) - 3, -680.0)),
    )


def is_empty(distribution: LossDistribution) -> bool:
    return not distribution.branches and not len(distribution.atom_losses)


def plain_part(composition: Composition, epsilon: float) -> ContourIntegral | None:
    order, table, target = saddle(WholeMeasure(composition), epsilon)
    for factor in planning.TRIAL_ORDER_FACTORS:
        drafted = planning.draft_contour(composition, table, factor * order, target)
        if drafted is not None:
            found = planning.certify_contour(composition, drafted, epsilon)
            if found is not None:
                return found
    return None


def smooth_part(
    source: LossMeasure, epsilon: float, share: float = SHARE
) -> ContourIntegral | None:
    order, table, target = saddle(source, epsilon)
    return planning.smoothed_contour(
        source, table, order, target, SmoothingKernel(share / order, BETA)
    )


def plain(composition: Composition, epsilon: float) -> DeltaEvaluator | None:
    """Return delta by a contour without smoothing, if there is one."""
    part = plain_part(composition, epsilon)
    return None if part is None else DeltaEvaluator((part,), composition)


def smoothed(
    composition: Composition, epsilon: float, share: float = SHARE
) -> DeltaEvaluator | None:
    """Return delta by one smoothed contour."""
    part = smooth_part(WholeMeasure(composition), epsilon, share)
    return None if part is None else DeltaEvaluator((part,), composition)


def split(
    composition: Composition, epsilon: float, cap: float, share: float = SHARE
) -> DeltaEvaluator | None:
    """Return delta by two smoothed contours: losses up to ``cap``, and what larger ones add."""
    below, above = composition.split(cap)
    if any(is_empty(distribution) for distribution, _ in below.distributions):
        return None
    parts = [
        smooth_part(source, epsilon, share)
        for source in (WholeMeasure(below), JumpMeasure(below, above))
    ]
    found = tuple(part for part in parts if part is not None)
    return DeltaEvaluator(found, composition) if len(found) == len(parts) else None
