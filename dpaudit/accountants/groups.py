"""Group privacy: what is still hidden when up to ``size`` records differ.

enlarged  Noise, and mechanisms known by a guarantee, seen by a group are mechanisms of the
          same kind, the sensitivity ``size`` times as large: exact. (Gaussians: Dong, Roth
          & Su 2019, arXiv:1905.02383, Theorem 2.14; size^2 rho for zCDP: Bun & Steinke 2016,
          arXiv:1605.02065, Proposition 1.9.)
chain     Of anything else only its profile for one record is used. Walk from one data set
          to the other, a record at a time. With h(t) the largest P(S) - t Q(S), of one
          step, and any ratios t_1 .. t_k of product T,

              P_0(S) <= h(t_1) + t_1 P_1(S) <= .. <= sum_i t_1 .. t_(i-1) h(t_i) + T P_k(S).

          With equal ratios this is delta (e^(k epsilon) - 1)/(e^epsilon - 1) at k epsilon,
          which Vadhan 2017 ("The complexity of differential privacy", Lemma 2.2) rounds
          up. The least over all ratios is Theorem 2.14 of Dong, Roth & Su by duality. It is
          sought on a lattice: a bound wherever it is sought, hence from above.
"""

from __future__ import annotations

import math
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from dpaudit.accountants import pld
from dpaudit.accountants.risk.hockey_sticks import HockeySticks
from dpaudit.vocabulary.adjacency import Adjacency
from dpaudit.vocabulary.bound import Bound
from dpaudit.vocabulary.errors import (
    AccountingError,
    InvalidArgument,
    Unresolvable,
    require_count,
    require_delta,
)
from dpaudit.vocabulary.mechanism import (
    ZCDP,
    Composed,
    DiscreteGaussian,
    DiscreteLaplace,
    Exponential,
    Gaussian,
    Laplace,
    Mechanism,
    PoissonSampled,
    PureDP,
    Repeated,
    TreeAggregation,
)

Array = NDArray[np.float64]

POINTS = 32  # of the lattice, on either side of ratio 1
LARGEST_GROUP = 64
FARTHEST = 690.0  # in epsilon, all steps together: beyond it doubles hold no ratio
NARROWEST = 1e-6
LEAST_DELTA = 1e-300  # a smaller one may be 0 by underflow, and is multiplied by large ratios
FALLEN = 0.02  # delta's share of what it was at 0 at which ratios are no longer of use
ROUNDING = 1e-12


class Profile(Protocol):
    """What an accountant says of one mechanism."""

    def epsilon(self, *, delta: float) -> Bound:
        """Return the interval of epsilon at ``delta``."""

    def delta(self, *, epsilon: float) -> Bound:
        """Return the interval of delta at ``epsilon``."""


class Accountant(Protocol):
    """An accountant's ``profile``."""

    def __call__(self, mechanism: Mechanism, /, *, adjacency: Adjacency) -> Profile:
        """Return what it says of ``mechanism``."""


def epsilon(
    mechanism: Mechanism,
    *,
    size: int,
    delta: float,
    adjacency: Adjacency = Adjacency.ADD_OR_REMOVE_ONE,
    accountant: Accountant = pld.profile,
) -> Bound:
    """Return the interval of epsilon at ``delta`` where up to ``size`` records differ.

    Args:
        mechanism: A release or a composition whose schedule was fixed in advance.
        size: How many records differ at most, each as ``adjacency`` says.
        delta: The delta that it is asked at.
        adjacency: Which data sets differ by one record.
        accountant: Who prices one record.

    Returns:
        Exact where the mechanism can be enlarged. Elsewhere the upper end is that of any
        mechanism with this profile, and the lower end that of one record.

    Raises:
        InvalidArgument: an argument is out of range.
        UnsupportedMechanism: the accountant does not price the mechanism.
        Unresolvable: delta falls too slowly for any chain to end at ``delta``.
    """
    require_count("size", size)
    require_delta("delta", delta)
    larger = enlarged(mechanism, size)
    if larger is not None:
        return accountant(larger, adjacency=adjacency).epsilon(delta=delta)
    profile = accountant(mechanism, adjacency=adjacency)
    one = profile.epsilon(delta=delta)
    upper = _chain_epsilon(HockeySticks(profile), size, delta)
    return Bound(one.lower, max(one.lower, upper))


def delta(
    mechanism: Mechanism,
    *,
    size: int,
    epsilon: float,
    adjacency: Adjacency = Adjacency.ADD_OR_REMOVE_ONE,
    accountant: Accountant = pld.profile,
) -> Bound:
    """Return the interval of delta at ``epsilon`` where up to ``size`` records differ.

    Arguments and errors as for the function ``epsilon``; ``epsilon`` is at least 0.
    """
    require_count("size", size)
    if not 0 <= epsilon < math.inf:
        raise InvalidArgument("epsilon", epsilon, "at least 0 and finite")
    larger = enlarged(mechanism, size)
    if larger is not None:
        return accountant(larger, adjacency=adjacency).delta(epsilon=epsilon)
    profile = accountant(mechanism, adjacency=adjacency)
    one = profile.delta(epsilon=epsilon)
    upper = _chain_delta(HockeySticks(profile), size, epsilon)
    return Bound(one.lower, max(one.lower, upper))


def enlarged(mechanism: Mechanism, size: int) -> Mechanism | None:
    """Return the mechanism that hides one record as this one hides ``size``; None if unknown."""
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
            # Worst where all records are in one batch, and so in the same nodes.
            larger = TreeAggregation(Gaussian(noise_multiplier / size, set_for), steps)
        case PoissonSampled(inner, sampling_rate) if sampling_rate == 1:
            larger = enlarged(inner, size)
        case Repeated(inner, times):
            part = enlarged(inner, size)
            larger = None if part is None else Repeated(part, times)
        case Composed(mechanisms):
            parts = [enlarged(one, size) for one in mechanisms]
            whole = tuple(part for part in parts if part is not None)
            larger = Composed(whole) if len(whole) == len(parts) else None
        case _:
            pass
    return larger


def _chain_delta(sticks: HockeySticks, size: int, epsilon: float) -> float:
    even = _even_chain(sticks, size, epsilon / size)
    if size > LARGEST_GROUP:
        return even
    reach = min(FARTHEST / size, 2 * epsilon / size + _reach(sticks))
    cells = max(1, round(epsilon * POINTS / reach)) if epsilon > 0 else 0
    deltas = _chains(sticks, size, epsilon / cells if cells else reach / POINTS)
    return min(even, float(deltas[min(cells, len(deltas) - 1)]))


def _chain_epsilon(sticks: HockeySticks, size: int, delta: float) -> float:
    longest = _longest_step(sticks, size, delta)
    equal = size * longest if _even_chain(sticks, size, longest) <= delta else math.inf
    found = (
        _least_epsilon(sticks, size, delta, longest / POINTS) if size <= LARGEST_GROUP else equal
    )
    if not min(equal, found) < math.inf:
        raise Unresolvable(
            f"delta falls too slowly for a group of {size}: no chain ends at {delta:g}; ask "
            "for a larger delta or a smaller group"
        )
    return min(equal, found) * (1 + ROUNDING)


def _least_epsilon(sticks: HockeySticks, size: int, delta: float, spacing: float) -> float:
    deltas = _chains(sticks, size, spacing)
    first = int(np.argmax(deltas <= delta))
    if not deltas[first] <= delta:
        return math.inf
    if first == 0:
        return 0.0
    # delta is convex in e^epsilon: below its chord between two points of the lattice.
    share = float((deltas[first - 1] - delta) / (deltas[first - 1] - deltas[first]))
    return (first - 1) * spacing + math.log1p(share * math.expm1(spacing))


def _even_chain(sticks: HockeySticks, size: int, step: float) -> float:
    """Return delta (e^(k step) - 1)/(e^step - 1) at one record's delta at ``step``, at most 1."""
    one = max(LEAST_DELTA, sticks.ask(step)[0].upper)
    log_sum = math.log(size)
    if step > 0:
        # log (e^(k s) - 1)/(e^s - 1), from the largest exponents down.
        log_sum = (size - 1) * step + math.log(-math.expm1(-size * step))
        log_sum -= math.log(-math.expm1(-step))
    return math.exp(min(0.0, math.log(one) + log_sum + ROUNDING * (1 + abs(log_sum))))


def _longest_step(sticks: HockeySticks, size: int, delta: float) -> float:
    """Return a step of which ``size`` equal ones end at ``delta``, or the longest looked at."""
    high, longest = NARROWEST, FARTHEST / size
    while not _even_chain(sticks, size, high) <= delta:
        high *= 2
        if high > longest:
            return longest
    low = high / 2
    while high - low > high / POINTS:
        middle = 0.5 * (low + high)
        low, high = (low, middle) if _even_chain(sticks, size, middle) <= delta else (middle, high)
    return high


def _reach(sticks: HockeySticks) -> float:
    """Return an epsilon at which one record's delta has fallen to a small share."""
    whole, here = sticks.ask(0.0)[0].upper, NARROWEST
    while here < FARTHEST and sticks.ask(here)[0].upper > FALLEN * whole:
        here *= 2
    return here


def _chains(sticks: HockeySticks, size: int, spacing: float) -> Array:
    """Return, at 0, 1, 2 .. spacings, the least delta of chains of multiples of ``spacing``."""
    asked = [sticks.ask(point * spacing) for point in range(POINTS + 1)]
    steps = np.arange(-POINTS, POINTS + 1)
    known = [below.upper for _, below in asked[:0:-1]] + [above.upper for above, _ in asked]
    heights = np.maximum(LEAST_DELTA, np.array(known))
    where = np.arange(-POINTS, size * POINTS + 1)
    # So far is one step; past the lattice delta is no larger than at its end.
    reached: Array = heights[np.minimum(where, POINTS) + POINTS]
    for _ in range(size - 1):
        longer = np.ones(len(where))
        for step, height in zip(steps, heights, strict=True):
            rest = where - step + POINTS  # as an index; below the lattice delta is 1 at most
            before = np.where(rest < 0, 1.0, reached[np.clip(rest, 0, len(where) - 1)])
            # A product of ratios that no double holds is no bound.
            ratio = math.exp(min(700.0, step * spacing))
            longer = np.minimum(longer, height + ratio * before)
        reached = longer
    if not np.all(np.isfinite(reached)):
        raise AccountingError("a chain of neighbours has no finite delta")
    whole: Array = np.minimum(1.0, reached[POINTS:] * (1 + ROUNDING))
    return whole
