"""epsilon(delta) of a ledger of laws: choose a contour, then certify.

Whatever was chosen, an end is returned only where it was seen to hold: the upper end's
delta is at most the one asked for, the lower end's is at least that. An iteration that
has not converged widens the answer.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from dpaudit.accountants.pld import planning
from dpaudit.accountants.pld.answer import Answer
from dpaudit.accountants.pld.cumulants import (
    Cumulants,
    Ledger,
    log_peak,
    order_for_delta,
    table_around,
)
from dpaudit.accountants.pld.evaluator import (
    ABSOLUTE_SMOOTHING,
    SMOOTHING,
    Evaluator,
    narrower,
    share_for,
    smoothed,
)
from dpaudit.accountants.pld.planning import Target
from dpaudit.accountants.pld.splitting import Split, split_for_delta, split_for_epsilon
from dpaudit.vocabulary.errors import Unresolvable

SHARP = 1e-6
WIDE = 8e-4  # relative; or, for epsilon,
NARROW = 9e-7  # absolute
MOST_ROUNDS = 6
SHARP_ROOT, WIDE_ROOT = 1e-11, 1e-6  # of log delta
NUDGE = 1 + 1e-12
LARGEST_SHARE, LARGEST_GUESS = 1.2, 1e6
MOVED = 1.5
CORNER = 0.98  # of the largest loss: all releases lose nearly what they can
CORNER_SHARES = (1e-5, 5e-5, 2e-4, 5e-4, 2e-3, 1e-2, 5e-2)


def epsilon(ledger: Ledger, delta: float, enough: float = 0.0) -> Answer:
    """Return the interval of epsilon at ``delta``, narrow unless all of it is below ``enough``.

    Raises:
        Unresolvable: delta is that of the infinite losses, to the last digits.
    """
    if not ledger.beyond * NUDGE < delta:
        raise Unresolvable(
            f"with probability {ledger.beyond:g} the output may tell all, so that no epsilon "
            f"can be certified at delta {delta:g}: ask for a larger delta"
        )
    log_delta = math.log(delta)
    order, mean_loss = order_for_delta(ledger, log_delta)
    known = Answer(0.0, math.inf, "nothing")
    if mean_loss > CORNER * ledger.largest:
        known = known.meet(_corner(ledger, delta))
        if known.lower > 0 and known.narrow_enough(WIDE, NARROW):
            return known
    cumulants = table_around(ledger, order)
    known = known.meet(_by_chernoff(ledger, cumulants, delta))
    if known.lower == 0 and known.upper > CORNER * ledger.largest:
        known = known.meet(_corner(ledger, delta))
    if known.narrow_enough(SHARP, 0.0) or known.upper <= enough:
        return known
    guess, slope = known.upper, order
    for lean in planning.LEANS:
        drafted = planning.draft(ledger, cumulants, lean * order, Target(guess, log_delta))
        if drafted is None:
            continue
        root, steepness = _root(drafted.estimate, delta, guess, order, 2 * guess, SHARP_ROOT)
        if (contour := planning.certified(ledger, drafted, root)) is not None:
            evaluator = Evaluator((contour,), ledger)
            found, slope = _bracket(evaluator, delta, root, steepness, 2 * guess, "contour")
            known = known.meet(found)
        break
    if known.narrow_enough(WIDE, NARROW):
        return known
    split = split_for_delta(ledger, log_delta, order, min(known.upper, LARGEST_GUESS))
    return _epsilon_smoothed(ledger, delta, split, known, slope)


def _epsilon_smoothed(
    ledger: Ledger, delta: float, split: Split, known: Answer, slope: float
) -> Answer:
    """Narrow what is known by smoothed contours, each finer than the last."""
    log_delta = math.log(delta)
    guess = min(max(split.epsilon, known.lower), known.upper)
    # Smoothing by h widens delta by about (h slope)^2 / beta, and epsilon by that over slope.
    size = max(guess, known.upper / 4) if known.lower == 0 else guess
    share = share_for(slope * max(SMOOTHING * size, ABSOLUTE_SMOOTHING))
    share = min(share, LARGEST_SHARE)
    ceiling = 2 * min(known.upper, LARGEST_GUESS)
    for _ in range(MOST_ROUNDS):
        if known.narrow_enough(WIDE, NARROW):
            break
        evaluator = smoothed(ledger, split, Target(guess, log_delta), share)
        if evaluator is None:
            share *= 2
            continue
        method = "smoothed contour" if split.cap is None else "smoothed contour, split"
        found, steepness = _bracket(evaluator, delta, guess, slope, ceiling, method)
        known = known.meet(found)
        if found.lower > 0:
            guess, slope = min(found.upper, known.upper), steepness
        elif known.upper < guess:
            guess = known.upper
        if not 1 / MOVED < guess / split.epsilon < MOVED:  # the cut was made for elsewhere
            moved = split_for_epsilon(ledger, guess, split.orders[0])
            split = split if moved.cap is None else moved
        share *= narrower(known.upper - known.lower, max(WIDE * known.upper, NARROW))
    return known


def _by_chernoff(ledger: Ledger, cumulants: Cumulants, delta: float) -> Answer:
    """Return what Chernoff's inequality and the largest loss say of epsilon."""
    log_left = math.log(delta - ledger.beyond)
    chernoff = (cumulants.upper + log_peak(cumulants.orders) - log_left) / cumulants.orders
    most = max(0.0, min(float(chernoff.min()) * NUDGE, ledger.largest * NUDGE))
    return Answer(0.0, most, "Chernoff's inequality")


def _corner(ledger: Ledger, delta: float) -> Answer:
    """Return what follows from all releases losing nearly as much as they can.

    If every loss is at least (1 - x) of its largest with probability p, then delta is at
    least p^T (1 - exp(epsilon - (1 - x) sum of the largest)).
    """
    best, ceiling = 0.0, ledger.largest * NUDGE
    for share in CORNER_SHARES:
        log_mass, total = 0.0, 0.0
        for law, times in ledger.laws:
            loss = law.largest - share * abs(law.largest)
            top = law.split(loss)[1]
            if not top.branches and not len(top.atom_losses):
                log_mass = -math.inf  # it is never that large
                break
            log_mass += times * float(top.log_moments(np.zeros(1))[0][0])
            total += times * loss
        left = -math.expm1(math.log(delta) - log_mass) if log_mass > math.log(delta) else 0.0
        if left > 0:
            best = max(best, (total + math.log(left)) / NUDGE)
    return Answer(best, ceiling, "the largest losses")


def _bracket(
    evaluator: Evaluator, delta: float, guess: float, slope: float, ceiling: float, method: str
) -> tuple[Answer, float]:
    """Return the certified interval around the crossing of ``delta``, and the slope there."""
    precision = SHARP_ROOT if method == "contour" else WIDE_ROOT
    root, slope = _root(evaluator.estimate, delta, guess, slope, ceiling, precision)
    if root == 0 and evaluator.upper(0.0) <= delta:
        return Answer(0.0, 0.0, method), slope
    upper = _seen(lambda e: evaluator.upper(e) / delta, root, slope, 1, precision)
    lower = _seen(lambda e: evaluator.lower(e) / delta, root, slope, -1, precision)
    budget = evaluator.budget(root)
    return Answer(lower or 0.0, math.inf if upper is None else upper, method, budget), slope


def _root(
    falling: Callable[[float], float],
    target: float,
    start: float,
    slope: float,
    ceiling: float,
    precision: float,
) -> tuple[float, float]:
    """Return about where log falling(e) = log target in [0, ceiling], and its slope there.

    Secant steps; a step that leaves what is known to hold the root is replaced by a look at
    0, and then by geometric means, as slopes may differ by powers of ten.
    """
    low, high = -1.0, ceiling  # -1: nothing is known of 0 yet
    e, last, steepness = min(start, ceiling), (math.nan, math.nan), slope
    for _ in range(60):
        value = falling(e)
        gap = math.log(value / target) if value > 0 else -3.0
        if abs(gap) < precision or (e == 0 and gap < 0):
            break
        low, high = (e, high) if gap > 0 else (low, e)
        seen = (last[1] - gap) / (e - last[0]) if e != last[0] else math.nan
        steepness = seen if 0 < seen < math.inf else steepness
        last = (e, gap)
        e += gap / steepness
        if not low < e < high:
            e = 0.0 if low < 0 else math.sqrt(max(low, 1e-6 * high) * high)
        if e == last[0]:
            break
    return e, steepness


def _seen(
    ratio: Callable[[float], float], start: float, slope: float, side: int, precision: float
) -> float | None:
    """Return an argument, near the crossing, where ratio <= 1 (side 1) or >= 1 (side -1) held."""
    e, best = start, None
    margin = precision
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
            return best
        step = (gap + side * margin) / slope
        e += min(max(step, -2 / slope), 2 / slope)
        margin *= 1.5
    return best
