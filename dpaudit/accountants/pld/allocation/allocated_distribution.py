"""Privacy loss distribution of one pass of random allocation, from above or from below.

In a pass of t steps a record joins one, drawn uniformly. With s the noise multiplier, the pair

    P = mean over i of N(e_i, s^2 I),        Q = N(0, s^2 I)

dominates the pass, and a record at the clip norm attains it. Under Q the likelihood ratio is the
mean of t independent ratios of one step, which are log-normal.

References:
    Choquette-Choo et al. (2024), arXiv:2410.06266, Lemma 3.2.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from dpaudit.accountants.numerics import Direction
from dpaudit.accountants.pld.allocation.ratio_law import JoinSettings, RatioLaw, mean_of_copies
from dpaudit.accountants.pld.allocation.step_law import gaussian_step, normal_reach
from dpaudit.accountants.pld.laws.loss_distribution import LossDistribution
from dpaudit.accountants.rounding_margins import ROUND_DOWN, ROUND_UP

Array = NDArray[np.float64]

# Cells begin to widen this many standard deviations of the loss away from 0. Fewer are faster, but
# not where a single step can determine delta.
TURN, TURN_FOR_SINGLE_STEPS = 5.0, 14.0
SINGLE_STEPS_RATIO = 0.1
RELEVANT_SHARE = 1e-9  # a tail is this share of the delta of interest
# Tails are cut off at powers of this, so that several deltas share a law.
TAIL_STEP = 1e2
LEAST_TAIL = 1e-280
MOST_LAWS = 64


@lru_cache(maxsize=MOST_LAWS)
def _pass_law(
    shift: float, steps: int, above: bool, fineness: float, turn: float, tail: float
) -> RatioLaw:
    """Return the law of the ratio of one pass; read-only."""
    settings = JoinSettings(above, fineness, turn, tail)
    law = mean_of_copies(gaussian_step(shift, settings), steps, settings)
    for array in (law.losses, law.q_masses, law.p_masses):
        array.flags.writeable = False
    return law


def pass_law(shift: float, steps: int, *, above: bool, fineness: float, tail: float) -> RatioLaw:
    """Return a law of the likelihood ratio of one pass that is above or below the true one.

    Args:
        shift: Sensitivity divided by the noise standard deviation.
        steps: Number of steps in the pass.
        above: Whether the law is above the truth, or below.
        fineness: Width of cells over the standard deviation of the loss. The relative width of
            epsilon's interval is about the number of joins times the square of it, over 8.
        tail: Mass that the law may leave out.

    Returns:
        The law; from above, ``lost_q`` and ``lost_p`` are at most ``tail``.

    Raises:
        Unresolvable: If losses within the pass are beyond ``ratio_law.LARGEST_LOSS``.
    """
    # A copy of each of ``steps`` laws loses mass at both ends, in each of the joins.
    joins = 2 * steps.bit_length() + 2
    share = max(tail / (8 * steps * joins), LEAST_TAIL)
    rounded = TAIL_STEP ** math.floor(math.log(share) / math.log(TAIL_STEP))
    turn = _turn(shift, steps, tail / RELEVANT_SHARE)
    return _pass_law(shift, steps, above, fineness, turn, max(rounded, LEAST_TAIL))


def _turn(shift: float, steps: int, delta: float) -> float:
    """Choose the turn of the grids: by the share of one step in X at probability ``delta``."""
    log_ratio = shift * (normal_reach(min(delta, 0.1)) + shift / 2) - math.log(steps)
    return TURN_FOR_SINGLE_STEPS if log_ratio > math.log(SINGLE_STEPS_RATIO) else TURN


def allocated_loss_distribution(
    shift: float, steps: int, direction: Direction, *, above: bool, fineness: float, tail: float
) -> LossDistribution:
    """Return the loss distribution of one pass as atoms, with rounding inside.

    Rounding changed masses by at most e^M and ratios by at most e^eta. From above, masses are
    multiplied by e^(M + eta) and losses raised by eta; from below both are lowered. As
    delta = sum of masses (1 - e^(epsilon - loss))+ rises with both, this covers the rounding.

    Args:
        shift: Sensitivity divided by the noise standard deviation.
        steps: Number of steps in the pass.
        direction: Whether the record is removed or added.
        above: Whether compositions of the distribution bound delta from above, or from below.
        fineness: See ``pass_law``.
        tail: Mass that the distribution may leave out.

    Returns:
        The distribution; from below, the mass that is left out is no part of it.

    Raises:
        Unresolvable: See ``pass_law``.

    Example:
        >>> from dpaudit.accountants.numerics import Direction
        >>> ends = [
        ...     allocated_loss_distribution(
        ...         1.0, 100, Direction.REMOVED, above=above, fineness=0.05, tail=1e-15
        ...     )
        ...     for above in (False, True)
        ... ]
        >>> all(one.largest < 9 for one in ends)
        True
    """
    law = pass_law(shift, steps, above=above, fineness=fineness, tail=tail)
    match direction:
        case Direction.REMOVED:
            losses, masses, lost = law.losses, law.p_masses, law.lost_p
        case Direction.ADDED:
            losses, masses, lost = -law.losses[::-1], law.q_masses[::-1], law.lost_q
    moved = law.move_error * ROUND_UP
    factor = math.exp(law.mass_error + law.move_error) * ROUND_UP
    if above:
        losses, masses = _outward(losses, moved), masses * factor
    else:
        losses, masses, lost = _outward(losses, -moved), masses * (ROUND_DOWN / factor), 0.0
    return LossDistribution((), losses, masses, lost, 0.0, float(losses[-1]), math.inf)


def _outward(losses: Array, moved: float) -> Array:
    """Return losses moved by more than ``moved``, in its direction, whatever the rounding."""
    return np.asarray(np.nextafter(losses + moved, math.copysign(math.inf, moved)))
