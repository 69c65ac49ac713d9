"""Sparse vector techniques as compositions: of guarantees, and of pairs that are attained.

With s the sensitivity, b1, b2 and b3 the scales of the noise on the threshold, on a query and on a
released value, and c the number of positive results, the guarantee is a composition of

    SparseVector          c times (s/b1 + 2 s/b2, 0)-DP (Dwork & Roth 2014, Theorem 3.23)
    MonotoneSparseVector  c times (s/b1 + s/b2, 0)-DP (Lyu, Su & Li 2017, Theorem 5)
    FixedThreshold...     once (s/b1 + 2 c s/b2, 0)-DP (Lyu, Su & Li 2017, Theorem 2)
    NumericSparseVector   the above, and c times the Laplace mechanism of scale b3

A run up to one positive result is one mechanism: until then, its queries depend on nothing but the
results before it. So the runs and the released values compose adaptively, and any composition
theorem applies (Dwork & Roth 2014, Theorems 3.25 and 3.28). Runs with a fixed threshold share its
noise. There the values and the comparisons alternate, and only the sum of all epsilons is used.

From below: one query that differs by s between neighbors and lies at the threshold -+s/2 gives a
positive result with the probabilities 1 - p and p, p = P[b2 Z2 - b1 Z1 <= s/2] for standard
Laplace Z1, Z2. A second query far above the threshold ends the run. This is randomized response of
epsilon log(p/(1-p)), attained in the limit; the value that follows differs by s.
"""

from __future__ import annotations

import math

from dpaudit.accountants.rounding_margins import ROUND_DOWN, ROUND_UP
from dpaudit.vocabulary.mechanism import (
    FixedThresholdSparseVector,
    Laplace,
    MonotoneSparseVector,
    NumericSparseVector,
    PureDP,
    SparseVector,
    SparseVectorMechanism,
    ThresholdComparison,
)

CountedParts = tuple[tuple[PureDP | Laplace, int], ...]

# Scales closer than this are replaced by the larger one: the difference below would cancel.
CLOSE_SCALES = 1e-3
LEAST_TAIL = 1e-300


def guarantee_parts(mechanism: SparseVectorMechanism) -> CountedParts:
    """Return releases whose composition costs at least as much as a sparse vector technique.

    Args:
        mechanism: The sparse vector technique.

    Returns:
        Each release with its count.

    References:
        Dwork & Roth (2014), doi:10.1561/0400000042, Theorems 3.23, 3.25 and 3.28; Lyu, Su & Li
        (2017), arXiv:1603.01699, Theorems 2 and 5.

    Example:
        >>> from dpaudit.accountants import SparseVector
        >>> guarantee_parts(SparseVector(threshold_scale=20.0, query_scale=40.0, answers=10))
        ((PureDP(epsilon=0.10000000000010001), 10),)
    """
    match mechanism:
        case NumericSparseVector(FixedThresholdSparseVector(answers=answers) as comparison, scale):
            values = answers * comparison.sensitivity / scale
            return ((PureDP((_run_epsilon(comparison) + values) * ROUND_UP), 1),)
        case NumericSparseVector(comparison, scale):
            value = Laplace(scale, comparison.sensitivity)
            return (*guarantee_parts(comparison), (value, comparison.answers))
        case FixedThresholdSparseVector():
            return ((PureDP(_run_epsilon(mechanism) * ROUND_UP), 1),)
        case SparseVector(answers=answers) | MonotoneSparseVector(answers=answers):
            return ((PureDP(_run_epsilon(mechanism) * ROUND_UP), answers),)


def attained_parts(mechanism: SparseVectorMechanism) -> CountedParts:
    """Return releases whose composition some neighbors attain, in the limit of far queries.

    Args:
        mechanism: The sparse vector technique.

    Returns:
        Each release with its count.
    """
    match mechanism:
        case NumericSparseVector(comparison, scale):
            value = Laplace(scale, comparison.sensitivity)
            return (*attained_parts(comparison), (value, comparison.answers))
        case FixedThresholdSparseVector():
            return ((PureDP(_attained_epsilon(mechanism)), 1),)
        case SparseVector(answers=answers) | MonotoneSparseVector(answers=answers):
            return ((PureDP(_attained_epsilon(mechanism)), answers),)


def _run_epsilon(mechanism: ThresholdComparison) -> float:
    """Return epsilon of one run, or of all runs where they share the threshold's noise."""
    threshold = mechanism.sensitivity / mechanism.threshold_scale
    query = mechanism.sensitivity / mechanism.query_scale
    match mechanism:
        case SparseVector():
            return threshold + 2 * query
        case MonotoneSparseVector():
            return threshold + query
        case FixedThresholdSparseVector(answers=answers):
            return threshold + 2 * answers * query


def _attained_epsilon(mechanism: ThresholdComparison) -> float:
    """Return log(p/(1-p)), rounded down, of one query at the threshold."""
    tail = laplace_sum_tail(
        mechanism.sensitivity / 2, mechanism.threshold_scale, mechanism.query_scale
    )
    tail = max(LEAST_TAIL, tail)  # of tiny scales it underflows to 0, or is NaN
    # p/(1-p) - 1 = (1 - 2 tail)/tail.
    return max(math.log1p((1 - 2 * tail) / tail) * ROUND_DOWN - 1e-14, 1e-300)


def laplace_sum_tail(distance: float, one: float, other: float) -> float:
    """Bound P[b1 Z1 + b2 Z2 > t] from above, for independent standard Laplace Z1 and Z2.

    For b1 > b2 it is (b1^2 e^(-t/b1) - b2^2 e^(-t/b2)) / (2 (b1^2 - b2^2)), and
    e^(-t/b) (2 + t/b)/4 for equal scales. It grows with either scale.

    Args:
        distance: t, at least 0.
        one: Scale b1.
        other: Scale b2.

    Returns:
        Upper bound, at most 1/2 up to rounding.
    """
    large, small = max(one, other), min(one, other)
    if small > large * (1 - CLOSE_SCALES):
        return math.exp(-distance / large) * (2 + distance / large) / 4 * ROUND_UP
    ratio = small / large
    top = math.exp(-distance / large) - ratio * ratio * math.exp(-distance / small)
    return top / (2 * (1 - ratio * ratio)) * ROUND_UP
