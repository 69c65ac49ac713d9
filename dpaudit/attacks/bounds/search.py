"""The largest number for which something holds, rounded down."""

from __future__ import annotations

from collections.abc import Callable

RESOLUTION = 1e-12


def largest(
    holds: Callable[[float], bool], low: float, high: float, resolution: float = RESOLUTION
) -> float:
    """Return a number at which ``holds``, and just above which it does not.

    Args:
        holds: True below some number, and false above it.
        low: Where it holds; returned where it holds nowhere above.
        high: Returned if it holds there, too.
        resolution: How far below that number the result may be, over 1 + its size.
    """
    if holds(high):
        return high
    while high - low > resolution * (1 + abs(low)):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low
