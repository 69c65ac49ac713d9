"""Epsilon of many compositions of Poisson-sampled Gaussians at once, over arrays.

``epsilons_of_many`` answers most plans of practice in about a millisecond each, both directions
together. It returns certified intervals; those that are too wide are left to ``pld.profile``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dpaudit.accountants.pld.many_plans.contours import deltas, epsilons
from dpaudit.accountants.pld.many_plans.order_search import ManyCompositions
from dpaudit.accountants.pld.many_plans.sampled_normals import SampledNormals

Array = NDArray[np.float64]
IntArray = NDArray[np.int64]

LARGEST_SHIFT, LEAST_SHIFT = 30.0, 1e-4
LEAST_RATE = 1e-12
LARGEST_STEPS = 1e9
LARGEST_DELTA, LEAST_DELTA = 0.05, 1e-100


@dataclass(frozen=True)
class SampledPlans:
    """Compositions of Poisson-sampled and of unsampled Gaussians.

    Attributes:
        shift: Sensitivity over the noise's standard deviation of each sampled Gaussian, all plans
            one after another, shape ``(n,)``.
        rate: Sampling rates in (0, 1), shape ``(n,)``.
        times: How often each is composed, shape ``(n,)``.
        starts: Index of each plan's first one, shape ``(p,)``.
        gaussian: mu^2 of each plan's Gaussians without sampling, shape ``(p,)``.
    """

    shift: Array
    rate: Array
    times: Array
    starts: IntArray
    gaussian: Array

    def in_direction(self, sign: float) -> ManyCompositions:
        """Return the compositions with a record removed (1) or added (-1)."""
        rows = SampledNormals(self.shift, self.rate, np.full(len(self.rate), sign))
        return ManyCompositions(rows, self.times, self.starts, self.gaussian)

    @property
    def covered(self) -> NDArray[np.bool_]:
        """Whether a plan's parameters are in the range of these contours, shape ``(p,)``."""
        inside = (self.shift < LARGEST_SHIFT) & (self.shift > LEAST_SHIFT)
        inside &= (self.rate > LEAST_RATE) & (self.rate < 1) & (self.times < LARGEST_STEPS)
        return np.asarray(np.logical_and.reduceat(inside, self.starts))


def epsilons_of_many(plans: SampledPlans, owner: IntArray, delta: Array) -> tuple[Array, Array]:
    """Compute certified intervals of epsilon per direction.

    Args:
        plans: Compositions, ``p`` of them.
        owner: The plan of each question, rising, shape ``(m,)``.
        delta: In (0, 1), shape ``(m,)``.

    Returns:
        Lower and upper ends in nats, shape ``(2, m)``, removed first: 0 and infinity where nothing
        is certified.
    """
    asked = plans.covered[owner] & (delta <= LARGEST_DELTA) & (delta >= LEAST_DELTA)
    return _by_direction(epsilons, plans, owner, delta, asked, np.inf)


def deltas_of_many(plans: SampledPlans, owner: IntArray, epsilon: Array) -> tuple[Array, Array]:
    """Compute certified intervals of delta per direction.

    Args:
        plans: Compositions, ``p`` of them.
        owner: The plan of each question, rising, shape ``(m,)``.
        epsilon: In nats, at least 0, shape ``(m,)``.

    Returns:
        Lower and upper ends, shape ``(2, m)``, removed first: 0 and 1 where nothing is certified.
    """
    return _by_direction(deltas, plans, owner, epsilon, plans.covered[owner] & (epsilon > 0), 1.0)


def _by_direction(
    solve: Callable[[ManyCompositions, IntArray, Array], tuple[Array, Array]],
    plans: SampledPlans,
    owner: IntArray,
    values: Array,
    asked: NDArray[np.bool_],
    largest: float,
) -> tuple[Array, Array]:
    """Answer the questions that are asked in both directions."""
    lower, upper = np.zeros((2, len(owner))), np.full((2, len(owner)), largest)
    if asked.any():
        for row, sign in enumerate((1.0, -1.0)):
            found = solve(plans.in_direction(sign), owner[asked], values[asked])
            lower[row, asked], upper[row, asked] = found
    return lower, upper
