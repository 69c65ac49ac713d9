"""epsilon(delta) and delta(epsilon) of compositions by contours: choose, evaluate, certify.

Choices and root searches are heuristic. An end of an interval is returned only where its
condition was verified. At the upper end of epsilon, delta's upper bound is at most the target.
At the lower end, delta's lower bound is at least the target. A search that has not
converged therefore widens the answer and cannot make it wrong.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from dpaudit.accountants.numerics import CertifiedInterval
from dpaudit.accountants.pld import closed_form
from dpaudit.accountants.pld.contour import planning
from dpaudit.accountants.pld.contour.contour_integral import ContourIntegral
from dpaudit.accountants.pld.contour.integrand import SmoothingKernel
from dpaudit.accountants.pld.contour.planning import (
    ContourTarget,
    JumpMeasure,
    LossMeasure,
    LossSplit,
    WholeMeasure,
    find_split_for_delta,
    find_split_for_epsilon,
)
from dpaudit.accountants.pld.laws.composition import (
    Composition,
    Cumulants,
    cumulants_around,
    gaussian_order,
    log_chernoff_factor,
    order_for_delta,
    order_for_epsilon,
    rough_deviation,
)
from dpaudit.accountants.rounding_margins import ROUND_UP
from dpaudit.vocabulary.errors import Unresolvable

# Smoothed contours, and delta as a sum over contours.

DROPPED_MASS = 1e-6  # of delta: large losses with less mass are dropped and counted
KERNEL_BETA = 24.0  # the kernel's transform falls to about e^-24
MAX_KERNEL_SLACK = 40.0
LARGEST_HALF_WIDTH = 1.0  # nats; smoothing keeps the mean of e^epsilon, not that of epsilon
NEARLY_ONE_LOG_DELTA = -3.0  # above this log delta, delta counts as near 1
# First width by smoothing: relative to the answer, and for epsilon in nats.
RELATIVE_SMOOTHING, ABSOLUTE_SMOOTHING = 1.5e-4, 4e-7


@dataclass(frozen=True)
class DeltaEvaluator:
    """Bounds on delta at any epsilon, as a sum over contours.

    Attributes:
        parts: One contour, or those of both parts of a split.
        composition: The composed losses, for the mass that no contour includes.
        dropped: Upper bound on the P-mass of large losses that were dropped.
    """

    parts: tuple[ContourIntegral, ...]
    composition: Composition
    dropped: float = 0.0

    def estimate(self, epsilon: float) -> float:
        """Estimate delta: for searches, not for bounds.

        Args:
            epsilon: Privacy loss in nats.

        Returns:
            The estimate.
        """
        return sum(part.estimate(epsilon) for part in self.parts) + self.composition.infinite_mass

    def upper(self, epsilon: float) -> float:
        """Bound delta from above: the composition is (epsilon, upper)-DP.

        Args:
            epsilon: Privacy loss in nats.

        Returns:
            The upper bound, at most 1.
        """
        total = sum(part.upper(epsilon) for part in self.parts)
        return min(1.0, total + (self.composition.missing_mass + self.dropped) * ROUND_UP)

    def lower(self, epsilon: float) -> float:
        """Bound delta from below: the composition is not (epsilon, delta)-DP for any smaller delta.

        Args:
            epsilon: Privacy loss in nats.

        Returns:
            The lower bound.
        """
        return (
            sum(part.lower(epsilon) for part in self.parts)
            + self.composition.infinite_mass / ROUND_UP
        )

    def budget(self, epsilon: float) -> dict[str, float]:
        """Return the size of each error relative to delta.

        Args:
            epsilon: Privacy loss in nats.

        Returns:
            Upper bounds on the errors over delta, by name; "smoothing" is the rest of the width.
        """
        delta = max(self.upper(epsilon), 1e-300)
        errors = {
            "tails that were cut off": self.composition.truncated_mass / delta,
            "large losses that were given up": self.dropped / delta,
        }
        for part in self.parts:
            for name, size in part.budget(epsilon).items():
                errors[name] = errors.get(name, 0.0) + size / delta
        if any(part.kernel is not None for part in self.parts):
            width = (self.upper(epsilon) - self.lower(epsilon)) / delta
            errors["smoothing"] = max(0.0, width - sum(errors.values()))
        return errors


def smoothing_share(width: float) -> float:
    """Return the half width h, as a share of 1/c, that widens delta by a relative ``width``.

    Smoothing by h widens delta by about (c h)^2 / beta.

    Args:
        width: Wanted relative width of delta.

    Returns:
        The product c h.
    """
    return math.sqrt(KERNEL_BETA * width)


def smoothing_shrinkage(width: float, wanted: float) -> float:
    """Return the factor for the next half width: the interval's width goes with its square.

    Args:
        width: Width of the interval.
        wanted: Wanted width.

    Returns:
        A factor in [0.05, 0.7].
    """
    return min(0.7, max(0.05, math.sqrt(0.5 * wanted / max(width, wanted))))


def smoothed_evaluator(
    composition: Composition, split: LossSplit, target: ContourTarget, share: float
) -> DeltaEvaluator | None:
    """Choose smoothed contours for the whole or for both parts of a split.

    Args:
        composition: The composed losses.
        split: Where to split, and the orders of the parts.
        target: The point of interest.
        share: Half width of the smoothing times the order.

    Returns:
        The evaluator, or None where a contour takes too many frequencies.
    """
    sources: list[LossMeasure] = [WholeMeasure(composition)]
    dropped = 0.0
    if split.cap is not None:
        below, above = composition.split(split.cap)
        sources = [WholeMeasure(below)]
        if (mass := above.mass) <= DROPPED_MASS * math.exp(target.log_delta):
            dropped = mass
        else:
            sources.append(JumpMeasure(below, above))
    parts = []
    # Near delta 1 the smoothing must be narrow against the losses' deviation, not against 1/c.
    order_floor = (
        1 / rough_deviation(composition) if target.log_delta > NEARLY_ONE_LOG_DELTA else 0.0
    )
    for source, order in zip(sources, split.orders, strict=False):
        cumulants = source.cumulants(order)
        slack = float(cumulants.log_chernoff(target.epsilon).min()) - target.log_delta
        # The terms cancel by ``slack`` nats, so the kernel's transform must fall that much further.
        half_width = min(share / max(order, order_floor), LARGEST_HALF_WIDTH)
        kernel = SmoothingKernel(half_width, KERNEL_BETA + min(max(slack, 0.0), MAX_KERNEL_SLACK))
        part = source.unsmoothed(cumulants, order, target) if split.cap is not None else None
        if part is None:
            part = planning.smoothed_contour(source, cumulants, order, target, kernel)
        if part is None:
            return None
        parts.append(part)
    return DeltaEvaluator(tuple(parts), composition, dropped)


# epsilon(delta).

SHARP_WIDTH = 1e-6  # relative width of epsilon that needs no contour at all
RELATIVE_WIDTH = 8e-4  # target for the relative width, or
ABSOLUTE_WIDTH = 9e-7  # target for the absolute width of epsilon, in nats
MAX_ROUNDS = 6
SHARP_ROOT_TOLERANCE, ROOT_TOLERANCE = 1e-11, 1e-6  # in log delta
LARGEST_SHARE, LARGEST_GUESS = 1.2, 1e6
RESPLIT_RATIO = 1.5
CLEARLY_LESS = 0.9  # share of delta below which an estimate is worth a certificate
FEW_FACTORS = np.array([0.8, 1.0])
LARGEST_GAUSSIAN_ORDER = 1e3  # the panels for a larger one may be many
NEAR_LARGEST_LOSS = 0.98  # share of the largest composed loss
# The margins x of ``_epsilon_by_largest_losses``.
LARGEST_LOSS_MARGINS = (1e-5, 5e-5, 2e-4, 5e-4, 2e-3, 1e-2, 5e-2)


def epsilon_by_contour(
    composition: Composition, delta: float, sufficient_upper: float = 0.0
) -> CertifiedInterval:
    """Compute the interval of epsilon at a given delta.

    Args:
        composition: The composed losses, truncated for this delta.
        delta: In (0, 1).
        sufficient_upper: An upper end of at most this, in nats, is not narrowed further.

    Returns:
        The interval in nats.

    Raises:
        Unresolvable: If infinite and truncated losses have at least the mass delta.
    """
    if not composition.missing_mass * ROUND_UP < delta:
        raise Unresolvable(
            f"with probability up to {composition.missing_mass:g} the privacy loss is infinite or "
            f"truncated, so no epsilon can be certified at delta {delta:g}: use a larger delta"
        )
    log_delta = math.log(delta)
    known = CertifiedInterval(0.0, math.inf, "no bound")
    if sufficient_upper > 0:
        known = _epsilon_by_gaussian_order(composition, delta)
        if known.upper <= sufficient_upper and known.upper < math.inf:
            return known
    order, mean_loss = order_for_delta(composition, log_delta)
    # First bounds. Where nearly every release has nearly its largest loss, they may suffice.
    if mean_loss > NEAR_LARGEST_LOSS * composition.largest:
        known = known.intersect(_epsilon_by_largest_losses(composition, delta))
        if known.lower > 0 and known.is_narrow(RELATIVE_WIDTH, ABSOLUTE_WIDTH):
            return known
    cumulants = cumulants_around(composition, order)
    known = known.intersect(_epsilon_by_chernoff(composition, cumulants, delta))
    if known.lower == 0 and known.upper > NEAR_LARGEST_LOSS * composition.largest:
        known = known.intersect(_epsilon_by_largest_losses(composition, delta))
    if known.is_narrow(SHARP_WIDTH, 0.0) or known.upper <= sufficient_upper:
        return known
    # A contour without smoothing: sharp, where phi falls fast enough.
    guess, slope = known.upper, order
    for factor in planning.TRIAL_ORDER_FACTORS:
        drafted = planning.draft_contour(
            composition, cumulants, factor * order, ContourTarget(guess, log_delta)
        )
        if drafted is None:
            continue
        if _suffices(composition, drafted, delta, sufficient_upper):
            return CertifiedInterval(0.0, sufficient_upper, "contour")
        root, steepness = _root(
            drafted.estimate, delta, guess, order, 2 * guess, SHARP_ROOT_TOLERANCE
        )
        if (contour := planning.certify_contour(composition, drafted, root)) is not None:
            evaluator = DeltaEvaluator((contour,), composition)
            found, slope = _bracket(evaluator, delta, root, steepness, 2 * guess, "contour")
            known = known.intersect(found)
        break
    if known.is_narrow(RELATIVE_WIDTH, ABSOLUTE_WIDTH):
        return known
    # Smoothed contours, for every other composition.
    split = find_split_for_delta(composition, log_delta, order, min(known.upper, LARGEST_GUESS))
    return _epsilon_smoothed(composition, delta, split, known, slope)


def _suffices(
    composition: Composition, drafted: ContourIntegral, delta: float, epsilon: float
) -> bool:
    """Return whether a contour certifies that delta at ``epsilon`` is at most the given one."""
    if not epsilon > 0 or not drafted.estimate(epsilon) < CLEARLY_LESS * delta:
        return False
    contour = planning.certify_contour(composition, drafted, epsilon)
    return contour is not None and DeltaEvaluator((contour,), composition).upper(epsilon) <= delta


def _epsilon_smoothed(
    composition: Composition, delta: float, split: LossSplit, known: CertifiedInterval, slope: float
) -> CertifiedInterval:
    """Narrow an interval of epsilon by smoothed contours, each finer than the last."""
    log_delta = math.log(delta)
    guess = min(max(split.epsilon, known.lower), known.upper)
    # Smoothing by h widens delta by about (h slope)^2 / beta relative to it, and epsilon by
    # that over slope.
    size = max(guess, known.upper / 4) if known.lower == 0 else guess
    share = smoothing_share(slope * max(RELATIVE_SMOOTHING * size, ABSOLUTE_SMOOTHING))
    share = min(share, LARGEST_SHARE)
    ceiling = 2 * min(known.upper, LARGEST_GUESS)
    for _ in range(MAX_ROUNDS):
        if known.is_narrow(RELATIVE_WIDTH, ABSOLUTE_WIDTH):
            break
        evaluator = smoothed_evaluator(composition, split, ContourTarget(guess, log_delta), share)
        if evaluator is None:
            share *= 2
            continue
        method = "smoothed contour" if split.cap is None else "smoothed contour, split"
        found, steepness = _bracket(evaluator, delta, guess, slope, ceiling, method)
        known = known.intersect(found)
        if found.lower > 0:
            guess, slope = min(found.upper, known.upper), steepness
        elif known.upper < guess:
            guess = known.upper
        # The split was chosen for another epsilon.
        if not 1 / RESPLIT_RATIO < guess / split.epsilon < RESPLIT_RATIO:
            moved = find_split_for_epsilon(composition, guess, split.orders[0])
            split = split if moved.cap is None else moved
        share *= smoothing_shrinkage(
            known.upper - known.lower, max(RELATIVE_WIDTH * known.upper, ABSOLUTE_WIDTH)
        )
    return known


def _epsilon_by_gaussian_order(composition: Composition, delta: float) -> CertifiedInterval:
    """Bound epsilon from above by Chernoff's inequality at the order of a similar Gaussian."""
    order = min(gaussian_order(composition, math.log(delta)), composition.largest_order)
    if not order < LARGEST_GAUSSIAN_ORDER:
        return CertifiedInterval(0.0, math.inf, "no bound")
    few = cumulants_around(composition, order, FEW_FACTORS)
    return _epsilon_by_chernoff(composition, few, delta)


def _epsilon_by_chernoff(
    composition: Composition, cumulants: Cumulants, delta: float
) -> CertifiedInterval:
    """Bound epsilon from above by Chernoff's inequality and by the largest loss.

    log delta <= K(c) - c epsilon + log(c^c / (1+c)^(1+c)), solved for epsilon at each order c.
    """
    log_left = math.log(delta - composition.missing_mass)
    chernoff = (
        cumulants.upper + log_chernoff_factor(cumulants.orders) - log_left
    ) / cumulants.orders
    most = max(0.0, min(float(chernoff.min()) * ROUND_UP, composition.largest * ROUND_UP))
    return CertifiedInterval(0.0, most, "Chernoff's inequality")


def _epsilon_by_largest_losses(composition: Composition, delta: float) -> CertifiedInterval:
    """Bound epsilon where nearly all releases have nearly their largest loss.

    If every release's loss is at least (1 - x) times its largest with probability p_i, then

        delta(epsilon) >= prod p_i^T_i (1 - exp(epsilon - (1 - x) sum of T_i times the largest)).
    """
    best, ceiling = 0.0, composition.largest * ROUND_UP
    for share in LARGEST_LOSS_MARGINS:
        log_mass, total = 0.0, 0.0
        for distribution, times in composition.distributions:
            loss = distribution.largest - share * abs(distribution.largest)
            top = distribution.split(loss)[1]
            if not top.branches and not len(top.atom_losses):
                log_mass = -math.inf  # no loss is that large
                break
            log_mass += times * float(top.log_moments(np.zeros(1))[0][0])
            total += times * loss
        # Solve delta = p (1 - e^(epsilon - total)): epsilon = total + log(1 - delta / p).
        left = -math.expm1(math.log(delta) - log_mass) if log_mass > math.log(delta) else 0.0
        if left > 0:
            best = max(best, (total + math.log(left)) / ROUND_UP)
    return CertifiedInterval(best, ceiling, "largest losses")


def _bracket(
    evaluator: DeltaEvaluator, delta: float, guess: float, slope: float, ceiling: float, method: str
) -> tuple[CertifiedInterval, float]:
    """Return the certified interval around the crossing, and minus the slope of log delta there."""
    precision = SHARP_ROOT_TOLERANCE if method == "contour" else ROOT_TOLERANCE
    root, slope = _root(evaluator.estimate, delta, guess, slope, ceiling, precision)
    if root == 0 and evaluator.upper(0.0) <= delta:
        return CertifiedInterval(0.0, 0.0, method), slope
    upper = _certified_argument(lambda e: evaluator.upper(e) / delta, root, slope, 1, precision)
    lower = _certified_argument(lambda e: evaluator.lower(e) / delta, root, slope, -1, precision)
    budget = evaluator.budget(root)
    return CertifiedInterval(
        lower or 0.0, math.inf if upper is None else upper, method, budget
    ), slope


def _root(
    falling: Callable[[float], float],
    target: float,
    start: float,
    slope: float,
    ceiling: float,
    precision: float,
) -> tuple[float, float]:
    """Solve log falling(e) = log target in [0, ceiling]; return the root and minus the slope there.

    Secant steps. A step that leaves the bracket of the root is replaced by e = 0 while 0 is
    untried, and then by a geometric mean: slopes may differ by powers of ten.
    """
    low, high = -1.0, ceiling  # -1: the argument 0 is untried
    e, last, steepness = min(start, ceiling), (math.nan, math.nan), slope
    for _ in range(60):
        value = falling(e)
        gap = math.log(value / target) if value > 0 else -3.0
        if abs(gap) < precision or (e == 0 and gap < 0):
            break
        low, high = (e, high) if gap > 0 else (low, e)
        secant = (last[1] - gap) / (e - last[0]) if e != last[0] else math.nan
        steepness = secant if 0 < secant < math.inf else steepness
        last = (e, gap)
        e += gap / steepness
        if not low < e < high:
            e = 0.0 if low < 0 else math.sqrt(max(low, 1e-6 * high) * high)
        if e == last[0]:
            break
    return e, steepness


def _certified_argument(
    ratio: Callable[[float], float], start: float, slope: float, side: int, precision: float
) -> float | None:
    """Return a verified argument near the crossing, or None.

    Side 1 verifies ratio <= 1 and side -1 verifies ratio >= 1. ``slope`` and ``precision`` refer
    to the logarithm of the ratio and only guide the steps.
    """
    e, best = start, None
    margin = precision  # in log ratio, beyond the crossing; it grows until the bound holds
    for _ in range(14):
        e = max(e, 0.0)
        value = ratio(e)
        gap = math.log(value) if value > 0 else -1.0
        if side * gap <= 0 and value > 0:
            if best is None or side * e < side * best:
                best = e
            if abs(gap) <= 4 * margin or e == 0.0:
                break
        elif e == 0.0 and side < 0:
            return best  # already below the target at 0: no lower end but the trivial one
        step = (gap + side * margin) / slope
        e += min(max(step, -2 / slope), 2 / slope)
        margin *= 1.5
    return best


# delta(epsilon).

MAX_DELTA_ROUNDS, MAX_TRUNCATIONS = 6, 4
SETTLED_LOG_DELTA = 6.0  # nats: a truncation for a log delta this near is good enough
MIN_LOG_DELTA = -680.0  # its exponential is a normal double
RETAINED_GROWTH, MAX_GROWTHS = 3.0, 3  # of log delta, from -40 to below the least one
MIN_SMOOTHING_SHARE = 0.2  # share of the width below which finer smoothing does not help


@dataclass(frozen=True)
class ContourPlacement:
    """A composition truncated for the delta at an epsilon, and the orders and split that suit it.

    Attributes:
        composition: The composed losses.
        order: Order of the saddle point.
        split: The best split.
    """

    composition: Composition
    order: float
    split: LossSplit

    @property
    def log_delta(self) -> float:
        """Approximate log delta, bounded from below."""
        return max(self.split.log_delta, MIN_LOG_DELTA)

    @property
    def orders(self) -> tuple[float, ...]:
        """Orders for a contour, the most promising first.

        The saddle point may lie among rare large losses, which the order that is best for
        that delta avoids. Near delta 1 the order is about the inverse of the losses' deviation.
        """
        order = min(self.order, order_for_delta(self.composition, self.log_delta)[0])
        if self.log_delta > NEARLY_ONE_LOG_DELTA:
            order = max(order, 0.3 / rough_deviation(self.composition))
        orders = [factor * order for factor in planning.TRIAL_ORDER_FACTORS]
        return (*orders, self.order) if self.order > 1.2 * order else tuple(orders)


def delta_by_contour(compose: Callable[[float], Composition], epsilon: float) -> CertifiedInterval:
    """Compute the interval of delta at a given epsilon.

    Args:
        compose: Function from a delta to the composition that is truncated for it.
        epsilon: Privacy loss in nats, at least 0.

    Returns:
        The interval, in [0, 1].
    """
    found = _place_contour(compose, epsilon)
    if isinstance(found, CertifiedInterval):
        return found
    known = _delta_unsmoothed(found, epsilon)
    if not known.is_narrow(RELATIVE_WIDTH, 0.0):
        known = known.intersect(_delta_by_hellinger(found.composition, epsilon))
    return _delta_smoothed(found, epsilon, known)


def _place_contour(
    compose: Callable[[float], Composition], epsilon: float
) -> ContourPlacement | CertifiedInterval:
    """Truncate the composition for its own delta at ``epsilon``, by iteration.

    Returns an interval instead where ``epsilon`` exceeds all losses.
    """
    log_delta = -40.0
    for _ in range(MAX_TRUNCATIONS + MAX_GROWTHS):
        composition = compose(math.exp(min(log_delta, -1.0)))
        if epsilon >= composition.supremum * ROUND_UP:
            lower, upper = (
                composition.infinite_mass / ROUND_UP,
                min(1.0, composition.infinite_mass * ROUND_UP),
            )
            return CertifiedInterval(lower, upper, "epsilon above all losses")
        if epsilon >= composition.largest * ROUND_UP:
            if log_delta > MIN_LOG_DELTA:  # all that is retained is too small: retain more
                log_delta = max(MIN_LOG_DELTA, RETAINED_GROWTH * log_delta)
                continue
            lower, upper = (
                composition.infinite_mass / ROUND_UP,
                min(1.0, composition.missing_mass * ROUND_UP),
            )
            return CertifiedInterval(lower, upper, "epsilon above all retained losses")
        order = order_for_epsilon(composition, epsilon)
        placement = ContourPlacement(
            composition, order, find_split_for_epsilon(composition, epsilon, order)
        )
        if abs(placement.log_delta - log_delta) < SETTLED_LOG_DELTA:
            break
        log_delta = placement.log_delta
    return placement


def _delta_unsmoothed(placement: ContourPlacement, epsilon: float) -> CertifiedInterval:
    """Bound delta by Chernoff's inequality and a contour without smoothing."""
    composition, target = placement.composition, ContourTarget(epsilon, placement.log_delta)
    cumulants = cumulants_around(composition, placement.orders[0])
    known = _delta_by_chernoff(composition, cumulants, epsilon)
    for order in placement.orders:
        if known.is_narrow(RELATIVE_WIDTH, 0.0):
            break
        table = (
            cumulants if order < 2 * placement.orders[0] else cumulants_around(composition, order)
        )
        drafted = planning.draft_contour(composition, table, order, target)
        contour = planning.certify_contour(composition, drafted, epsilon) if drafted else None
        if contour is not None:
            known = known.intersect(
                _evaluated_interval(DeltaEvaluator((contour,), composition), epsilon, "contour")
            )
    return known


def _delta_by_chernoff(
    composition: Composition, cumulants: Cumulants, epsilon: float
) -> CertifiedInterval:
    """Bound delta from above by Chernoff's inequality at the best order of the table."""
    most = math.exp(min(0.0, float(cumulants.log_chernoff(epsilon).min()))) * ROUND_UP
    return CertifiedInterval(
        0.0, min(1.0, most + composition.missing_mass), "Chernoff's inequality"
    )


def _delta_smoothed(
    placement: ContourPlacement, epsilon: float, known: CertifiedInterval
) -> CertifiedInterval:
    """Narrow an interval of delta by smoothed contours, each finer than the last."""
    composition, split, log_delta = placement.composition, placement.split, placement.log_delta
    if split.cap is None and log_delta > NEARLY_ONE_LOG_DELTA:
        split = replace(split, orders=placement.orders[:1])
    method = "smoothed contour" if split.cap is None else "smoothed contour, split"
    share = smoothing_share(RELATIVE_SMOOTHING)
    for _ in range(MAX_DELTA_ROUNDS):
        if known.is_narrow(RELATIVE_WIDTH, 0.0):
            break
        evaluator = smoothed_evaluator(composition, split, ContourTarget(epsilon, log_delta), share)
        if evaluator is None:
            share *= 2
            continue
        found = _evaluated_interval(evaluator, epsilon, method)
        known = known.intersect(found)
        if found.budget["smoothing"] * found.upper < MIN_SMOOTHING_SHARE * (
            found.upper - found.lower
        ):
            break
        log_delta = math.log(max(known.upper, 1e-300))
        share *= smoothing_shrinkage(known.upper - known.lower, RELATIVE_WIDTH * known.upper)
    return known


def _evaluated_interval(
    evaluator: DeltaEvaluator, epsilon: float, method: str
) -> CertifiedInterval:
    """Evaluate an interval of delta with its error budget."""
    lower, upper = min(1.0, evaluator.lower(epsilon)), evaluator.upper(epsilon)
    return CertifiedInterval(lower, upper, method, evaluator.budget(epsilon))


def _delta_by_hellinger(composition: Composition, epsilon: float) -> CertifiedInterval:
    """Bound delta from below by Hellinger affinities; the bound tends to 1 with many releases.

    1 - delta = int min(P, e^epsilon Q) <= e^(epsilon/2) int sqrt(P Q), a product over the
    releases; and int sqrt(P Q) <= sqrt(1 - TV^2), where TV is delta at 0 (Le Cam 1986).
    """
    log_affinity = -composition.gaussian / 8  # of N(mu, 1) and N(0, 1), mu^2 = gaussian
    for distribution, times in composition.distributions:
        # 2 log int sqrt(P Q) <= log(1 - TV^2)
        variation = max(0.0, closed_form.single_release_delta(distribution, 0.0).lower / ROUND_UP)
        log_affinity += 0.5 * times * math.log1p(-min(variation * variation, 1 - 1e-15))
    # delta >= 1 - e^(epsilon/2) times the affinity.
    least = -math.expm1(min(0.0, log_affinity / ROUND_UP + epsilon / 2 * ROUND_UP))
    return CertifiedInterval(max(0.0, least / ROUND_UP), 1.0, "Hellinger affinity")
