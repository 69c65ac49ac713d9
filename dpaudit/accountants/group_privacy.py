"""Compute group privacy: epsilon and delta where up to ``size`` records differ.

Four methods:

1. Enlarged sensitivity. For additive noise, and for mechanisms that are given by a guarantee,
   a group of ``size`` records has the same mechanism at ``size`` times the sensitivity. This
   is exact. (Gaussians: Dong, Roth & Su 2019, arXiv:1905.02383, Theorem 2.14; size^2 rho for
   zCDP: Bun & Steinke 2016, arXiv:1605.02065, Proposition 1.9.)
2. Mixtures. In Poisson samples of Gaussians, the records of a group join by their own coins. The
   worst case is a pair of mixtures with binomial weights, which is composed (``group_mixtures``).
   This is exact up to the width of the interval.
3. Chain of neighbors. Any other mechanism is represented by its profile for one record. Let
   P_0, P_1, .., P_k be the outputs as records change one at a time, and h(t) the largest
   P(S) - t Q(S) of neighbors. For any ratios t_1 .. t_k with product T,

       P_0(S) <= h(t_1) + t_1 P_1(S) <= .. <= sum_i t_1 .. t_(i-1) h(t_i) + T P_k(S).

   With equal ratios this is delta (e^(k epsilon) - 1)/(e^epsilon - 1) at k epsilon, which
   Vadhan 2017 ("The complexity of differential privacy", Lemma 2.2) rounds up. The least over
   all ratios equals Theorem 2.14 of Dong, Roth & Su by duality. It is searched on a lattice of
   log ratios. Every choice of ratios is a bound, so the result is an upper bound.
4. Gaussians without sampling, at the sensitivity of the group, where samples or random
   allocations of Gaussians have no smaller bound (``unsampled_group``).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from dpaudit.accountants import pld
from dpaudit.accountants.group_mixtures import group_mixtures, unsampled_group
from dpaudit.accountants.risk import HockeyStickCurve
from dpaudit.vocabulary.errors import (
    AccountingError,
    InvalidArgument,
    Unresolvable,
    UnsupportedMechanism,
    require_count,
    require_delta,
    require_not_negative,
    to_python_number,
)
from dpaudit.vocabulary.mechanism import (
    ZCDP,
    Composed,
    DiscreteGaussian,
    DiscreteLaplace,
    DistributedDiscreteGaussian,
    Exponential,
    FixedThresholdSparseVector,
    Gaussian,
    Laplace,
    Mechanism,
    PoissonSampled,
    PureDP,
    Repeated,
    Skellam,
    SparseVector,
    TreeAggregation,
    VectorDiscreteGaussian,
)
from dpaudit.vocabulary.privacy_terms import Adjacency, Bound

Array = NDArray[np.float64]

LATTICE_POINTS = 32  # lattice points on either side of ratio 1
LARGEST_GROUP = 64  # larger groups use equal ratios alone
LARGEST_TOTAL_EPSILON = 690.0  # over all steps of a chain; larger ratios overflow
LEAST_STEP = 1e-6
LEAST_DELTA = 1e-300  # a smaller one may have underflowed to 0, and large ratios multiply it
# Ratios at which delta is below this share of delta(0) no longer improve a chain.
NEGLIGIBLE_DELTA_SHARE = 0.02
CHAIN_ROUNDING = 1e-12


class EpsilonDeltaProfile(Protocol):
    """Protocol of an accountant's result for one mechanism, with epsilon and delta."""

    def epsilon(self, *, delta: float) -> Bound:
        """Return the interval of epsilon, in nats, at ``delta``."""

    def delta(self, *, epsilon: float) -> Bound:
        """Return the interval of delta at ``epsilon``, given in nats."""


class EpsilonDeltaAccountant(Protocol):
    """Protocol of an accountant's ``profile`` function whose result has epsilon and delta."""

    def __call__(self, mechanism: Mechanism, /, *, adjacency: Adjacency) -> EpsilonDeltaProfile:
        """Return the privacy profile of ``mechanism`` under ``adjacency``."""


def group_epsilon(
    mechanism: Mechanism,
    *,
    size: int,
    delta: float,
    adjacency: Adjacency = Adjacency.ADD_OR_REMOVE_ONE,
    accountant: EpsilonDeltaAccountant = pld.profile,
) -> Bound:
    """Compute the interval of epsilon at ``delta`` where up to ``size`` records differ.

    Args:
        mechanism: A release, or a composition whose schedule was fixed in advance.
        size: Largest number of records that differ, each in the sense of ``adjacency``.
        delta: Delta of the guarantee, at least 1e-300 and below 1.
        adjacency: Neighbor relation for one record.
        accountant: The ``profile`` function of the accountant that bounds one record.

    Returns:
        Tight where the sensitivity can be enlarged, and for Poisson samples of Gaussians by
        ``pld``. Otherwise the upper end holds for every mechanism with this profile, and the
        lower end is that of one record.

    Raises:
        InvalidArgument: If an argument is out of range.
        UnsupportedMechanism: If the accountant has no bound for the mechanism.
        Unresolvable: If delta falls too slowly for any chain to reach ``delta``.

    Example:
        >>> from dpaudit.accountants import Gaussian, group_privacy
        >>> bound = group_privacy.group_epsilon(Gaussian(2.0), size=2, delta=1e-5)
        >>> round(bound.upper, 4)  # that of noise multiplier 1 for one record
        4.3772
    """
    size = to_python_number(size)
    require_count("size", size)
    require_delta("delta", delta)
    larger = group_mechanism(mechanism, size)
    if larger is not None:
        return accountant(larger, adjacency=adjacency).epsilon(delta=delta)
    tight = _costliest_mixture(
        mechanism, size, adjacency, accountant, lambda one: one.epsilon(delta=delta)
    )
    if tight is not None:
        return tight
    profile = accountant(mechanism, adjacency=adjacency)
    one = profile.epsilon(delta=delta)
    whole = _unsampled_upper(
        mechanism, size, adjacency, accountant, lambda profile: profile.epsilon(delta=delta)
    )
    try:
        upper = _chain_epsilon(HockeyStickCurve(profile), size, delta)
    except Unresolvable:
        if whole is None:
            raise
        upper = whole
    return Bound(one.lower, max(one.lower, upper if whole is None else min(upper, whole)))


def group_delta(
    mechanism: Mechanism,
    *,
    size: int,
    epsilon: float,
    adjacency: Adjacency = Adjacency.ADD_OR_REMOVE_ONE,
    accountant: EpsilonDeltaAccountant = pld.profile,
) -> Bound:
    """Compute the interval of delta at ``epsilon`` where up to ``size`` records differ.

    Args:
        mechanism: A release, or a composition whose schedule was fixed in advance.
        size: Largest number of records that differ, each in the sense of ``adjacency``.
        epsilon: Privacy loss in nats, at least 0 and finite.
        adjacency: Neighbor relation for one record.
        accountant: The ``profile`` function of the accountant that bounds one record.

    Returns:
        Tight where the sensitivity can be enlarged, and for Poisson samples of Gaussians by
        ``pld``. Otherwise the upper end holds for every mechanism with this profile, and the
        lower end is that of one record.

    Raises:
        InvalidArgument: If an argument is out of range.
        UnsupportedMechanism: If the accountant has no bound for the mechanism.

    Example:
        >>> from dpaudit.accountants import Gaussian, group_privacy
        >>> bound = group_privacy.group_delta(Gaussian(2.0), size=2, epsilon=1.0)
        >>> round(bound.upper, 4)
        0.1269
    """
    size = to_python_number(size)
    require_count("size", size)
    require_not_negative("epsilon", epsilon)
    larger = group_mechanism(mechanism, size)
    if larger is not None:
        return accountant(larger, adjacency=adjacency).delta(epsilon=epsilon)
    tight = _costliest_mixture(
        mechanism, size, adjacency, accountant, lambda one: one.delta(epsilon=epsilon)
    )
    if tight is not None:
        return tight
    profile = accountant(mechanism, adjacency=adjacency)
    one = profile.delta(epsilon=epsilon)
    whole = _unsampled_upper(
        mechanism, size, adjacency, accountant, lambda profile: profile.delta(epsilon=epsilon)
    )
    upper = _chain_delta(HockeyStickCurve(profile), size, epsilon)
    return Bound(one.lower, max(one.lower, upper if whole is None else min(upper, whole)))


def group_mechanism(mechanism: Mechanism, size: int) -> Mechanism | None:
    """Return the mechanism for one record that equals ``mechanism`` for ``size`` records.

    Args:
        mechanism: The mechanism as it was run.
        size: Largest number of records that differ.

    Returns:
        The same kind of mechanism with enlarged sensitivity; None where no exact one is known.
    """
    larger: Mechanism | None = mechanism if size == 1 else None
    match mechanism:
        case Gaussian(noise_multiplier, set_for):
            larger = Gaussian(noise_multiplier / size, set_for)
        case Laplace(scale, sensitivity):
            larger = Laplace(scale, sensitivity * size)
        case DiscreteGaussian(scale, moved):
            larger = DiscreteGaussian(scale, moved * size)
        case DiscreteLaplace(scale, moved):
            larger = DiscreteLaplace(scale, moved * size)
        case PureDP(one):
            larger = PureDP(one * size)
        case Exponential(one):
            larger = Exponential(one * size)
        case ZCDP(rho):
            larger = ZCDP(rho * size**2)
        case TreeAggregation(Gaussian(noise_multiplier, set_for), steps):
            # The worst case has all records in one batch, and so in the same nodes.
            larger = TreeAggregation(Gaussian(noise_multiplier / size, set_for), steps)
        case PoissonSampled(inner, sampling_rate) if sampling_rate == 1:
            larger = group_mechanism(inner, size)
        case Repeated(inner, times):
            part = group_mechanism(inner, size)
            larger = None if part is None else Repeated(part, times)
        case Composed(mechanisms):
            parts = [group_mechanism(one, size) for one in mechanisms]
            known = tuple(part for part in parts if part is not None)
            larger = Composed(known) if len(known) == len(parts) else None
        case _:
            larger = larger or _with_larger_sensitivity(mechanism, size)
    return larger


def _costliest_mixture(
    mechanism: Mechanism,
    size: int,
    adjacency: Adjacency,
    accountant: EpsilonDeltaAccountant,
    evaluate: Callable[[EpsilonDeltaProfile], Bound],
) -> Bound | None:
    """Return the largest answer over all splits of the group; None where one is not answered."""
    mixtures = group_mixtures(mechanism, size, adjacency, group_mechanism)
    found: list[Bound] = []
    for mixture in mixtures:
        with suppress(UnsupportedMechanism, AccountingError):
            found.append(evaluate(accountant(mixture, adjacency=adjacency)))
    if not mixtures or len(found) < len(mixtures):
        return None
    return Bound(max(one.lower for one in found), max(one.upper for one in found))


def _unsampled_upper(
    mechanism: Mechanism,
    size: int,
    adjacency: Adjacency,
    accountant: EpsilonDeltaAccountant,
    evaluate: Callable[[EpsilonDeltaProfile], Bound],
) -> float | None:
    """Return the upper end for the same noise without sampling; None where there is none."""
    with suppress(InvalidArgument, AccountingError):  # noise over size may vanish
        whole = unsampled_group(mechanism, size, group_mechanism)
        return None if whole is None else evaluate(accountant(whole, adjacency=adjacency)).upper
    return None


def _with_larger_sensitivity(mechanism: Mechanism, size: int) -> Mechanism | None:
    """Return noise on an integer vector, or comparisons with a threshold, for ``size`` records."""
    match mechanism:
        case VectorDiscreteGaussian() | DistributedDiscreteGaussian() | Skellam():
            return msgspec.structs.replace(
                mechanism,
                l1_sensitivity=mechanism.l1_sensitivity * size,
                l2_sensitivity=mechanism.l2_sensitivity * size,
            )
        case SparseVector() | FixedThresholdSparseVector():
            return msgspec.structs.replace(mechanism, sensitivity=mechanism.sensitivity * size)
        case _:
            return None


def _chain_delta(curve: HockeyStickCurve, size: int, epsilon: float) -> float:
    """Return the least delta at ``epsilon`` of equal ratios and of ratios on a lattice."""
    even = _even_chain(curve, size, epsilon / size)
    if size > LARGEST_GROUP:
        return even
    reach = min(LARGEST_TOTAL_EPSILON / size, 2 * epsilon / size + _reach(curve))
    cells = max(1, round(epsilon * LATTICE_POINTS / reach)) if epsilon > 0 else 0
    deltas = _chains(curve, size, epsilon / cells if cells else reach / LATTICE_POINTS)
    return min(even, float(deltas[min(cells, len(deltas) - 1)]))


def _chain_epsilon(curve: HockeyStickCurve, size: int, delta: float) -> float:
    """Return the least epsilon at which a chain reaches ``delta``; raise where none does."""
    # All chains of equal ratios and all chains on a lattice are bounds: take the least.
    longest = _longest_step(curve, size, delta)
    equal = size * longest if _even_chain(curve, size, longest) <= delta else math.inf
    found = (
        _least_epsilon(curve, size, delta, longest / LATTICE_POINTS)
        if size <= LARGEST_GROUP
        else equal
    )
    if not min(equal, found) < math.inf:
        raise Unresolvable(
            f"delta falls too slowly for a group of {size}: no chain of neighbors reaches "
            f"{delta:g}; use a larger delta or a smaller group"
        )
    return min(equal, found) * (1 + CHAIN_ROUNDING)


def _least_epsilon(curve: HockeyStickCurve, size: int, delta: float, spacing: float) -> float:
    """Return the least epsilon of lattice chains that reach ``delta``; infinite if none does."""
    deltas = _chains(curve, size, spacing)
    first = int(np.argmax(deltas <= delta))
    if not deltas[first] <= delta:
        return math.inf
    if first == 0:
        return 0.0
    # delta is convex in e^epsilon, so it lies below its chord between two lattice points.
    share = float((deltas[first - 1] - delta) / (deltas[first - 1] - deltas[first]))
    return (first - 1) * spacing + math.log1p(share * math.expm1(spacing))


def _even_chain(curve: HockeyStickCurve, size: int, step: float) -> float:
    """Return delta (e^(k step) - 1)/(e^step - 1), at most 1: a chain of k equal ratios e^step."""
    one = max(LEAST_DELTA, curve.points_at(step)[0].upper)
    log_sum = math.log(size)
    if step > 0:
        # log (e^(k s) - 1)/(e^s - 1) with e^((k-1) s) factored out, so that nothing overflows.
        log_sum = (size - 1) * step + math.log(-math.expm1(-size * step))
        log_sum -= math.log(-math.expm1(-step))
    return math.exp(min(0.0, math.log(one) + log_sum + CHAIN_ROUNDING * (1 + abs(log_sum))))


def _longest_step(curve: HockeyStickCurve, size: int, delta: float) -> float:
    """Return a log ratio of which ``size`` equal ones reach ``delta``, or the largest one tried."""
    high, longest = LEAST_STEP, LARGEST_TOTAL_EPSILON / size
    while not _even_chain(curve, size, high) <= delta:
        high *= 2
        if high > longest:
            return longest
    low = high / 2
    while high - low > high / LATTICE_POINTS:
        middle = 0.5 * (low + high)
        low, high = (low, middle) if _even_chain(curve, size, middle) <= delta else (middle, high)
    return high


def _reach(curve: HockeyStickCurve) -> float:
    """Return an epsilon at which one record's delta is a small share of its value at 0."""
    whole, here = curve.points_at(0.0)[0].upper, LEAST_STEP
    while (
        here < LARGEST_TOTAL_EPSILON
        and curve.points_at(here)[0].upper > NEGLIGIBLE_DELTA_SHARE * whole
    ):
        here *= 2
    return here


def _chains(curve: HockeyStickCurve, size: int, spacing: float) -> Array:
    """Compute the least delta over chains of log ratios that are multiples of ``spacing``.

    Dynamic programming over the number of records: with step j and ratio t = e^(j spacing),

        delta_(k+1)(e) = min over j of h(t) + t delta_k(e - j spacing).

    Args:
        curve: The hockey-stick divergence of one record.
        size: Number of records k.
        spacing: Distance of log ratios, in nats.

    Returns:
        Delta at the total epsilons 0, 1, 2 .. times ``spacing``, each at most 1.

    Raises:
        AccountingError: If a chain has no finite delta.
    """
    points = [curve.points_at(point * spacing) for point in range(LATTICE_POINTS + 1)]
    steps = np.arange(-LATTICE_POINTS, LATTICE_POINTS + 1)
    known = [below.upper for _, below in points[:0:-1]] + [above.upper for above, _ in points]
    heights = np.maximum(LEAST_DELTA, np.array(known))
    where = np.arange(-LATTICE_POINTS, size * LATTICE_POINTS + 1)
    # A chain of one record; beyond the lattice delta is at most its value at the end.
    reached: Array = heights[np.minimum(where, LATTICE_POINTS) + LATTICE_POINTS]
    for _ in range(size - 1):
        longer = np.ones(len(where))
        for step, height in zip(steps, heights, strict=True):
            # Index of the rest of the chain; below the lattice delta is at most 1.
            rest = where - step + LATTICE_POINTS
            before = np.where(rest < 0, 1.0, reached[np.clip(rest, 0, len(where) - 1)])
            # An overflowing ratio would give no bound.
            ratio = math.exp(min(700.0, step * spacing))
            longer = np.minimum(longer, height + ratio * before)
        reached = longer
    if not np.all(np.isfinite(reached)):
        raise AccountingError("a chain of neighbors has no finite delta: use a smaller group")
    deltas: Array = np.minimum(1.0, reached[LATTICE_POINTS:] * (1 + CHAIN_ROUNDING))
    return deltas
