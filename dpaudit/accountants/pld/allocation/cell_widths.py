"""Widths of the cells of a random allocation: as coarse as the answer allows.

The width of an interval falls with the square of the cells' width, and the time rises with it.
So an interval by coarse cells says which cells are needed. Every width gives a valid interval.
"""

from __future__ import annotations

import math

from dpaudit.accountants.numerics import CertifiedInterval

COARSE_CELLS = 0.06
"""First width of cells, in standard deviations of the loss."""
FIXED_CELLS = 0.02
"""Width of cells where other errors are larger, so that finer cells would not help."""
FINEST_CELLS = 0.002
FINEST_CELLS_FOR_DELTA = 0.01
MOST_REFINEMENTS = 5
MOST_AT_ONCE = 0.25
"""Least ratio of a width to the last one: a wide interval may have other causes than cells."""
LARGEST_REMAINDER = 0.9
"""Share of an interval's width that finer cells leave if other causes make most of it."""

EPSILON_WIDTH, ABSOLUTE_EPSILON_WIDTH, DELTA_WIDTH = 1e-3, 1e-6, 1e-2
# What smoothing adds to both ends of a composed epsilon together, relative to epsilon.
SMOOTHING_WIDTH = 1.8e-4
AIM = 0.81  # of what remains


def cells_for_epsilon(answer: CertifiedInterval, fineness: float) -> float:
    """Return the width of cells for a relative width of epsilon of ``EPSILON_WIDTH``.

    Args:
        answer: An interval of epsilon, in nats.
        fineness: Width of the cells that gave it, in standard deviations of the loss.

    Returns:
        A smaller width; the same one where the interval is narrow or cells are the finest.
    """
    wanted = max(EPSILON_WIDTH * answer.upper, ABSOLUTE_EPSILON_WIDTH)
    width = answer.upper - answer.lower
    if width <= wanted or fineness <= FINEST_CELLS:
        return fineness
    smoothing = SMOOTHING_WIDTH * answer.upper if answer.upper < math.inf else 0.0
    left, excess = wanted - smoothing, max(width - smoothing, 0.2 * width)
    share = AIM * math.sqrt(left / excess) if left > 0 < excess < math.inf else 0.3
    return max(FINEST_CELLS, fineness * min(max(share, MOST_AT_ONCE), 0.8))


def cells_widen(wide: CertifiedInterval, narrower: CertifiedInterval) -> bool:
    """Return whether cells make a relevant part of an interval's width.

    Another release may make the interval wide, such as a sparse vector technique.

    Args:
        wide: The interval by wider cells.
        narrower: The interval by finer ones.

    Returns:
        False if finer cells hardly made it narrower.
    """
    left = narrower.upper - narrower.lower
    return not math.isfinite(left) or left <= LARGEST_REMAINDER * (wide.upper - wide.lower)


def cells_for_delta(answer: CertifiedInterval, fineness: float) -> float:
    """Return the width of cells for a relative width of delta of about ``DELTA_WIDTH``.

    The widths come from a short list, so that the points of a curve share their laws.

    Args:
        answer: An interval of delta.
        fineness: Width of the cells that gave it, in standard deviations of the loss.

    Returns:
        A smaller width; the same one where the interval is narrow or cells are fine enough.
    """
    if answer.is_narrow(DELTA_WIDTH, 0.0) or fineness <= FINEST_CELLS_FOR_DELTA:
        return fineness
    return max(FINEST_CELLS_FOR_DELTA, fineness / 2.5)
