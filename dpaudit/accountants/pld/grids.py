"""Epsilon over grids of plans, and over many deltas of one plan.

Most answers come from contours over arrays (``many_plans``), which share characteristic functions
between the deltas of a plan. Every other answer comes from the function that the caller passes, one
plan at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dpaudit.accountants.pld.many_plans import SampledPlans, deltas_of_many, epsilons_of_many
from dpaudit.accountants.releases import ReleaseCounts, gaussian_mu
from dpaudit.accountants.rounding_margins import ROUND_UP
from dpaudit.vocabulary.errors import InvalidArgument, Unresolvable
from dpaudit.vocabulary.mechanism import Gaussian, Mechanism, PoissonSampled, Repeated
from dpaudit.vocabulary.privacy_terms import Adjacency, Bound

Array = NDArray[np.float64]
IntArray = NDArray[np.int64]

NARROW_WIDTH, ABSOLUTE_WIDTH = 1e-3, 1e-6
LARGEST_COUNT = 2**53
SHARED_ADJACENCIES = (Adjacency.ADD_OR_REMOVE_ONE, Adjacency.ZERO_OUT)
"""Adjacencies under which a Poisson-sampled Gaussian has the pairs that ``many_plans`` knows."""

OnePlan = Callable[[Mechanism, float], Bound]


@dataclass(frozen=True)
class BoundArray:
    """Certified intervals of epsilon or delta over an array of questions.

    Attributes:
        lower: Lower bounds, of the shape of the questions.
        upper: Upper bounds, of the same shape; infinite where no epsilon can be certified.

    Example:
        >>> from dpaudit.accountants import pld
        >>> grid = pld.epsilon_grid(0.01, [0.8, 1.0], 1000, 1e-5)
        >>> grid.upper.round(3).tolist()
        [3.141, 1.828]
    """

    lower: Array
    upper: Array


def grid_of_plans(
    sampling_rate: ArrayLike,
    noise_multiplier: ArrayLike,
    steps: ArrayLike,
    delta: ArrayLike,
    adjacency: Adjacency,
    one_plan: OnePlan,
) -> BoundArray:
    """Compute epsilon of every plan of a grid; see ``pld.epsilon_grid``.

    Args:
        sampling_rate: Rates of Poisson sampling.
        noise_multiplier: Noise multipliers.
        steps: Numbers of steps.
        delta: Deltas.
        adjacency: The relation of neighboring data sets.
        one_plan: Epsilon of one mechanism at one delta, for plans outside the array route.

    Returns:
        The grid.

    Raises:
        InvalidArgument: If an argument is NaN or out of range, or the shapes do not broadcast.
    """
    columns = _columns(sampling_rate, noise_multiplier, steps, delta)
    shape = columns[0].shape
    rate, noise, times, target = (column.ravel() for column in columns)
    lower, upper = np.zeros(len(rate)), np.full(len(rate), np.inf)
    if adjacency in SHARED_ADJACENCIES:
        sampled = np.flatnonzero(rate < 1)
        lower[sampled], upper[sampled] = _sampled_grid(
            rate[sampled], noise[sampled], times[sampled], target[sampled], adjacency
        )
    for place in np.flatnonzero(~_is_narrow(lower, upper, ABSOLUTE_WIDTH)):
        plan = _plan(float(rate[place]), float(noise[place]), int(times[place]))
        least, most = _or_nothing(one_plan, plan, float(target[place]))
        lower[place], upper[place] = max(lower[place], least), min(upper[place], most)
    return BoundArray(lower.reshape(shape), upper.reshape(shape))


def _sampled_grid(
    rate: Array, noise: Array, times: Array, delta: Array, adjacency: Adjacency
) -> tuple[Array, Array]:
    """Compute the plans with sampling over arrays; equal plans with several deltas share."""
    if not len(rate):
        return np.zeros(0), np.zeros(0)
    plans, owner = np.unique(np.stack([rate, noise, times]), axis=1, return_inverse=True)
    order = np.argsort(owner.ravel(), kind="stable")
    found = SampledPlans(
        gaussian_mu(Gaussian(1.0), adjacency) / plans[1], plans[0], plans[2],
        np.arange(plans.shape[1]), np.zeros(plans.shape[1]),
    )  # fmt: skip
    lower, upper = np.empty(len(rate)), np.empty(len(rate))
    ends = epsilons_of_many(found, owner.ravel()[order], delta[order])
    lower[order], upper[order] = (one.max(axis=0) for one in ends)
    # A record that participates with probability at most delta costs nothing.
    absent = np.minimum(1.0, rate * times * ROUND_UP) <= delta
    return np.where(absent, 0.0, lower), np.where(absent, 0.0, upper)


def epsilon_curve(
    plan: SampledPlans | None, deltas: ArrayLike, one: Callable[[float], Bound]
) -> BoundArray:
    """Compute epsilon of one composition at many deltas; see ``PldProfile.epsilons``.

    Args:
        plan: The composition for the array route; None for another one.
        deltas: At least 1e-300 and below 1, of any shape.
        one: Epsilon at one delta, where the array route gives no narrow interval.

    Returns:
        The intervals, of the shape of ``deltas``.

    Raises:
        InvalidArgument: If a delta is NaN or out of range.
    """
    target = _numbers("deltas", deltas)
    _require("deltas", target, (target >= 1e-300) & (target < 1), "at least 1e-300 and below 1")
    return _curve(plan, epsilons_of_many, target, one, np.inf, ABSOLUTE_WIDTH)


def delta_curve(
    plan: SampledPlans | None, epsilons: ArrayLike, one: Callable[[float], Bound]
) -> BoundArray:
    """Compute delta of one composition at many epsilons; see ``PldProfile.deltas``.

    Args:
        plan: The composition for the array route; None for another one.
        epsilons: At least 0 and finite, in nats, of any shape.
        one: Delta at one epsilon, where the array route gives no narrow interval.

    Returns:
        The intervals, of the shape of ``epsilons``.

    Raises:
        InvalidArgument: If an epsilon is NaN or out of range.
    """
    target = _numbers("epsilons", epsilons)
    _require("epsilons", target, (target >= 0) & np.isfinite(target), "at least 0 and finite")
    return _curve(plan, deltas_of_many, target, one, 1.0, 0.0)


def _curve(
    plan: SampledPlans | None,
    solve: Callable[[SampledPlans, IntArray, Array], tuple[Array, Array]],
    target: Array,
    one: Callable[[float], Bound],
    largest: float,
    absolute: float,
) -> BoundArray:
    """Answer a curve over arrays, and what is left point by point."""
    asked = target.ravel()
    lower, upper = np.zeros(len(asked)), np.full(len(asked), largest)
    if plan is not None and len(asked):
        ends = solve(plan, np.zeros(len(asked), dtype=np.int64), asked)
        lower, upper = (end.max(axis=0) for end in ends)
    for place in np.flatnonzero(~_is_narrow(lower, upper, absolute)):
        found = one(float(asked[place]))
        lower[place] = max(lower[place], found.lower)
        upper[place] = min(upper[place], found.upper)
    return BoundArray(lower.reshape(target.shape), upper.reshape(target.shape))


def sampled_plan(releases: ReleaseCounts, adjacency: Adjacency) -> SampledPlans | None:
    """Return a composition for the array route; None where it holds other releases.

    Args:
        releases: How often each elementary release occurs.
        adjacency: The relation of neighboring data sets.

    Returns:
        The plan, or None.
    """
    if adjacency not in SHARED_ADJACENCIES:
        return None
    rows, squares = [], []
    for release, times in releases.items():
        match release:
            case Gaussian():
                squares.append(_square(release, adjacency, times))
            case PoissonSampled(Gaussian() as inner, rate) if rate < 1:
                rows.append((gaussian_mu(inner, adjacency), rate, times))
            case PoissonSampled(Gaussian() as inner):
                squares.append(_square(inner, adjacency, times))
            case _:
                return None
    if not rows or not sum(squares) < math.inf:
        return None
    shift, rate, count = np.array(rows, dtype=np.float64).T
    return SampledPlans(
        shift, rate, count, np.zeros(1, dtype=np.int64), np.array([math.fsum(squares)])
    )


def _square(release: Gaussian, adjacency: Adjacency, times: int) -> float:
    """Return mu^2 of a composed Gaussian; infinite where it overflows."""
    mu = gaussian_mu(release, adjacency)
    return times * mu * mu if times < LARGEST_COUNT else math.inf


def _plan(rate: float, noise: float, steps: int) -> Mechanism:
    """Return the mechanism of a plan; without sampling at rate 1."""
    step = Gaussian(noise) if rate == 1 else PoissonSampled(Gaussian(noise), rate)
    return Repeated(step, steps)


def _or_nothing(one_plan: OnePlan, plan: Mechanism, delta: float) -> tuple[float, float]:
    """Return the ends of one plan; where none can be certified, the trivial ones."""
    try:
        found = one_plan(plan, delta)
    except Unresolvable:
        return 0.0, math.inf
    return found.lower, found.upper


def _is_narrow(lower: Array, upper: Array, absolute: float) -> NDArray[np.bool_]:
    """Return where an interval is narrow enough."""
    return np.asarray(upper - lower <= np.maximum(NARROW_WIDTH * lower, absolute))


def _columns(*given: ArrayLike) -> list[Array]:
    """Broadcast the arguments of a grid and refuse values out of range."""
    names = ("sampling_rate", "noise_multiplier", "steps", "delta")
    arrays = [_numbers(name, values) for name, values in zip(names, given, strict=True)]
    rate, noise, steps, delta = arrays
    _require("sampling_rate", rate, (rate > 0) & (rate <= 1), "above 0 and at most 1")
    _require("noise_multiplier", noise, (noise > 0) & np.isfinite(noise), "above 0 and finite")
    whole = (steps >= 1) & (steps <= LARGEST_COUNT) & (steps == np.floor(steps))
    _require("steps", steps, whole, "whole numbers of at least 1")
    _require("delta", delta, (delta >= 1e-300) & (delta < 1), "at least 1e-300 and below 1")
    try:
        return [np.array(one) for one in np.broadcast_arrays(*arrays)]
    except ValueError:
        shapes = ", ".join(f"{name} {one.shape}" for name, one in zip(names, arrays, strict=True))
        raise InvalidArgument(
            "shapes", shapes, "shapes that broadcast, such as (3, 1) and (5,)"
        ) from None


def _numbers(name: str, values: ArrayLike) -> Array:
    """Return real numbers as floats; strings and booleans are refused."""
    try:
        found = np.asarray(values)
    except ValueError:
        raise InvalidArgument(name, values, "numbers, or an array of numbers") from None
    if found.dtype.kind not in "iuf":
        raise InvalidArgument(name, values, "numbers, or an array of numbers")
    return found.astype(np.float64)


def _require(name: str, values: Array, valid: NDArray[np.bool_], allowed: str) -> None:
    """Refuse an argument with a value that is not valid; name the first one."""
    if not valid.all():
        raise InvalidArgument(name, float(values[~valid].ravel()[0]), allowed)
