"""One release alone: delta is one integral, without any transform.

delta(epsilon) = E[(1 - e^(epsilon - L))+], over the losses above epsilon.
"""

from __future__ import annotations

import math

import numpy as np

from dpaudit.accountants.invert import largest_with_at_least, smallest_with_at_most
from dpaudit.accountants.pld.answer import Answer
from dpaudit.accountants.pld.losses import LossLaw

UNIT_ROUNDOFF = 2.0**-53
METHOD = "one integral"
PULL = 14.0
NUDGE = 1 + 1e-12


def delta(law: LossLaw, epsilon: float) -> Answer:
    """Return the interval of delta at ``epsilon``."""
    never = law.infinite if law.cut == 0 else law.beyond * NUDGE
    above = law.split(epsilon)[1]
    if epsilon >= law.largest or not (above.branches or len(above.atom_losses)):
        rounding = 0.0 if epsilon >= law.largest * NUDGE else 1e-12
        return Answer(law.infinite / NUDGE, min(1.0, never + rounding), METHOD)
    points = above.points(0.0, 0.0)
    excess = points.losses - epsilon
    value = math.exp(points.log_moment) * float(points.masses @ -np.expm1(-np.maximum(excess, 0.0)))
    # On the ellipses around panels, which reach no further than 2.5 below epsilon,
    # |1 - e^(epsilon - L)| is at most 1 + e^2.5 < PULL.
    mass = math.exp(points.log_moment)
    rounding = UNIT_ROUNDOFF * (1 + abs(epsilon) + float(points.masses @ np.abs(points.losses)))
    error = mass * (PULL * points.error + 16 * rounding)
    lower, upper = value - error + law.infinite / NUDGE, value + error + never
    return Answer(max(0.0, lower), min(1.0, upper), METHOD)


def epsilon(law: LossLaw, target: float) -> Answer:
    """Return the interval of epsilon at ``target`` delta."""
    if delta(law, 0.0).upper <= target:
        return Answer(0.0, 0.0, METHOD)
    ceiling = law.largest * NUDGE
    upper = smallest_with_at_most(lambda e: delta(law, e).upper, target, 0.0, ceiling, 1e-12)
    lower = largest_with_at_least(lambda e: delta(law, e).lower, target, 0.0, upper, 1e-12)
    return Answer(lower, upper, METHOD)
