"""Law of the likelihood ratio of one Gaussian step, in cells.

With shift m = 1/noise_multiplier and y the standard normal output under Q, the ratio is
x = exp(m y - m^2/2), and y is shifted by m under P. A cell of losses z is a cell of
y = z/m + m/2. Its masses are integrals of the normal density (equation 10).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from dpaudit.accountants.numerics import log_ndtr, ndtr
from dpaudit.accountants.pld.allocation.ratio_law import (
    FUNCTION_ERROR,
    LARGEST_LOSS,
    JoinSettings,
    RatioGrid,
    RatioLaw,
    beyond_largest_loss,
    settle,
)
from dpaudit.accountants.rounding_margins import UNIT_ROUNDOFF

Array = NDArray[np.float64]

POINTS, WEIGHTS = np.polynomial.legendre.leggauss(10)
# A panel of width w at y has w (|y| + 1) <= PANEL. The error of the rule is then below 1e-20 of
# the panel's mass (equation 11).
PANEL = 0.5
QUADRATURE_ERROR = 1e-20
MOST_REACH = 37.0


def normal_reach(tail: float) -> float:
    """Return about the y above which the standard normal law has a given mass.

    Args:
        tail: Mass, above 0.

    Returns:
        A number from 1 to ``MOST_REACH``, to about 1e-3.
    """
    low, high, target = 1.0, MOST_REACH, math.log(tail)
    while high - low > 1e-3:
        middle = (low + high) / 2
        if float(log_ndtr(-middle)) > target:
            low = middle
        else:
            high = middle
    return high


def normal_cells(edges: Array) -> tuple[Array, float]:
    """Compute the standard normal mass of each cell.

    Args:
        edges: Edges of the cells, rising, shape ``(n + 1,)``.

    Returns:
        The masses, shape ``(n,)``, and the largest relative error of one.
    """
    width = np.diff(edges)
    far = np.maximum(np.abs(edges[:-1]), np.abs(edges[1:]))
    pieces = np.maximum(1, np.ceil(width * (far + 1) / PANEL)).astype(np.intp)
    starts = np.repeat(np.cumsum(pieces) - pieces, pieces)
    half = np.repeat(width / pieces, pieces) / 2
    middle = np.repeat(edges[:-1], pieces) + half * (2 * (np.arange(len(half)) - starts) + 1)
    y = middle[:, None] + half[:, None] * POINTS
    panels = half * (np.exp(-0.5 * y * y) @ WEIGHTS) / math.sqrt(2 * math.pi)
    cells = np.add.reduceat(panels, np.cumsum(pieces) - pieces)
    # Rounding of y, of y^2/2 and of its exponential, and of the sums (equation 12).
    top = float(far.max())
    rounding = UNIT_ROUNDOFF * (4 * top * (top + 1) + 32 + float(pieces.max())) + FUNCTION_ERROR
    return cells, rounding + QUADRATURE_ERROR


def gaussian_step(shift: float, settings: JoinSettings) -> RatioLaw:
    """Return the law of the likelihood ratio of one Gaussian step.

    Args:
        shift: Sensitivity divided by the noise standard deviation.
        settings: Side, grid and tail.

    Returns:
        The law. Below, the tails beyond the grid are dropped; above, they are lost masses.
    """
    reach = normal_reach(settings.tail / 4)
    half = shift * shift / 2
    if not shift * reach + half < LARGEST_LOSS:  # before a table of huge losses is made
        raise beyond_largest_loss()
    grid = RatioGrid.covering(
        -shift * reach - half,
        shift * reach + half,
        width=min(shift, 1.0),
        turn=settings.turn,
        fineness=settings.fineness,
    )
    y = grid.edges / shift + shift / 2
    (q, q_error), (p, p_error) = normal_cells(y), normal_cells(y - shift)
    ends = np.array([y[0], -y[-1]])
    lost_q, lost_p = (
        float(ndtr(ends + np.array([-mean, mean])).sum()) * (1 + 1e-12) for mean in (0.0, shift)
    )
    widest = max(-grid.edges[0], grid.edges[-1])
    # Rounding of y - m moves the edges under P, but not those under Q.
    far = np.maximum(np.abs(y[:-1]), np.abs(y[1:])) + shift
    moved_edges = 8 * UNIT_ROUNDOFF * float((far / np.diff(y)).max())
    move = (
        q_error + p_error + moved_edges + FUNCTION_ERROR * (4 + widest) + 4 * UNIT_ROUNDOFF * widest
    )
    errors = RatioLaw(y, q, p, lost_q, lost_p, max(q_error, p_error), move)
    return settle(q, p, grid, errors, above=settings.above, tail=settings.tail)
