"""When two numbers are the same one, although a file or another machine changed the last digits."""

from __future__ import annotations

import math

ROUNDED = 1e-9
"""Relative difference of one number that was written, read or computed in another order."""

OTHER_MACHINE = 1e-6
"""Relative difference of one epsilon that two machines compute from the same ledger."""

LEAST = 1e-9
"""Absolute difference, in nats, below which two epsilons are equal; near 0 alone."""


def same_number(one: float, other: float) -> bool:
    """Return whether two deltas, rates or confidences are the same number; NaN is none."""
    return math.isclose(one, other, rel_tol=ROUNDED, abs_tol=0.0)


def holds_at(delta_of_bound: float, delta: float) -> bool:
    """Return whether a lower bound on epsilon at one delta holds at another.

    Epsilon falls as delta grows: a bound at a larger delta holds at a smaller one, too.
    """
    return delta_of_bound >= delta or same_number(delta_of_bound, delta)


def same_epsilon(one: float, other: float) -> bool:
    """Return whether two epsilons are the same up to what machines differ in; NaN is none."""
    return math.isclose(one, other, rel_tol=OTHER_MACHINE, abs_tol=LEAST)
