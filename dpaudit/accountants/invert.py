"""Solve a falling function for its argument, on the safe side.

Bisection down to a ``resolution`` relative to the answer, and the end that is returned
has itself been evaluated: an iteration that has not converged widens the answer and
never makes it wrong.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from dpaudit.vocabulary.errors import Unresolvable

HALVINGS = 60
TO_THE_LAST_DIGITS = 1e-13


def smallest_with_at_most(
    falling: Callable[[float], float],
    target: float,
    low: float,
    high: float,
    resolution: float = TO_THE_LAST_DIGITS,
) -> float:
    """Return an argument where ``falling(argument) <= target`` was seen to hold.

    Raises:
        Unresolvable: it does not hold at ``high``.
    """
    if falling(low) <= target:
        return low
    if not (high < math.inf and falling(high) <= target):
        raise Unresolvable(
            f"nothing can be certified here: no value up to {high:g} is enough; add noise, or ask "
            "for a larger delta"
        )
    for _ in range(HALVINGS):
        middle = 0.5 * (low + high)
        if falling(middle) <= target:
            high = middle
        else:
            low = middle
        if high - low <= resolution * high:
            break
    return high


def largest_with_at_least(
    falling: Callable[[float], float],
    target: float,
    low: float,
    high: float,
    resolution: float = TO_THE_LAST_DIGITS,
) -> float:
    """Return an argument where ``falling(argument) >= target`` was seen to hold, else ``low``.

    ``low`` must be a valid answer by itself: here, epsilon 0. The search walks down from
    ``high``, as a lower bound may be useless far below the point that it was made for.
    """
    if not high < math.inf:
        return low
    if falling(high) >= target:
        return high
    fails, gap = high, max(1e-3 * high, resolution * high)
    while not falling(high - gap) >= target:
        fails, gap = high - gap, 2 * gap
        if high - gap <= low:
            break
    holds = max(low, high - gap)
    for _ in range(HALVINGS):
        if fails - holds <= resolution * fails:
            break
        middle = 0.5 * (holds + fails)
        if falling(middle) >= target:
            holds = middle
        else:
            fails = middle
    return holds
