"""Lower bound of a pass whose losses are hundreds of nats: the step that the record joins.

Under P a record joins one set of sums. The likelihood ratio of the pass is the mean of those of
all sets, so it is at least the share of this one (equation 27 of
docs/mathematics/random_allocation.md).
"""

from __future__ import annotations

import math

import numpy as np

from dpaudit.accountants.numerics import log_gamma
from dpaudit.accountants.pld.allocation.step_law import normal_cells, normal_reach
from dpaudit.accountants.pld.laws.loss_distribution import LossDistribution
from dpaudit.accountants.rounding_margins import ROUND_DOWN

CELL = 0.01
"""Width of a cell of losses over their standard deviation."""


def log_choices(steps: int, selected: int) -> float:
    """Return log C(t, k), rounded up.

    Args:
        steps: Number t of sums in the pass.
        selected: Number k of sums that a record joins.

    Returns:
        In nats.
    """
    if selected == 1:
        return math.log(steps) * (1 + 1e-15)
    terms = log_gamma(np.array([steps + 1.0, selected + 1.0, steps - selected + 1.0]))
    return float(terms[0] - terms[1] - terms[2]) + 1e-13 * float(np.abs(terms).sum() + 1)


def far_pass_distribution(shift: float, steps: int, selected: int, tail: float) -> LossDistribution:
    """Return a loss distribution below that of one pass, for a removed record.

    With k sums joined, the loss under P is at least N(k m^2/2, k m^2) - log C(t, k). Cells are
    moved to their smallest loss, and masses are rounded down.

    Args:
        shift: m, sensitivity divided by the noise standard deviation.
        steps: Number t of sums in the pass.
        selected: Number k of sums that a record joins.
        tail: Mass that the distribution may leave out on either side.

    Returns:
        Atoms; compositions of them bound delta from below.

    Example:
        >>> round(far_pass_distribution(40.0, 20, 1, 1e-15).largest)
        1114
    """
    moved = shift * math.sqrt(selected)
    reach = normal_reach(tail)
    edges = np.linspace(-reach, reach, math.ceil(2 * reach / CELL) + 1)
    masses, error = normal_cells(edges)
    less = log_choices(steps, selected)
    losses = moved * edges[:-1] + (moved * moved / 2 - less)
    losses -= 1e-14 * (moved * reach + moved * moved + less)
    kept = masses > 0
    losses, masses = losses[kept], masses[kept] * ((1 - error) * ROUND_DOWN)
    return LossDistribution((), losses, masses, 0.0, 0.0, float(losses[-1]), math.inf)
