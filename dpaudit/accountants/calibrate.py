"""The parameter that meets a target epsilon: conservative, the answer itself was priced.

noise_multiplier  the least that keeps epsilon at most the target
sampling_rate     the largest, for Poisson sampling
steps             the most
clip_norm         the largest, where the noise has a fixed standard deviation

The answer is a value whose epsilon was computed and found to be at most the target. Next
to it lies a value whose epsilon was not: so nothing better lies beyond where epsilon is
monotone, as it is in the noise of Gaussians and Laplace mechanisms, sampled or not, in the
rate of Poisson sampling and in the steps. For other noise (discrete Gaussians rise and
fall near scale 0.5) the answer meets its target just as surely, but may not be the best.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Protocol

import msgspec

from dpaudit.accountants import pld
from dpaudit.accountants.parameter_search import (
    Axis,
    Number,
    Search,
    between,
    between_whole,
)
from dpaudit.vocabulary.adjacency import Adjacency
from dpaudit.vocabulary.bound import Bound
from dpaudit.vocabulary.errors import (
    AccountingError,
    InvalidArgument,
    require_delta,
    require_positive,
)
from dpaudit.vocabulary.mechanism import Mechanism

RESOLUTION = 1e-4


class Calibrated(msgspec.Struct, Generic[Number], frozen=True):
    """A parameter that meets its target, and by how much.

    Attributes:
        value: The parameter; its epsilon was priced, and is ``epsilon``.
        epsilon: The interval at ``value``; its upper end is at most the target.
        target_epsilon: What was asked for, at ``delta``.
        delta: The delta of both.
        evaluations: How many mechanisms were priced.
    """

    value: Number
    epsilon: Bound
    target_epsilon: float
    delta: float
    evaluations: int

    @property
    def slack(self) -> float:
        """How much of the target is left over; never below 0."""
        return self.target_epsilon - self.epsilon.upper


class EpsilonProfile(Protocol):
    """What an accountant says of one mechanism."""

    def epsilon(self, *, delta: float) -> Bound:
        """Return the interval of epsilon at ``delta``."""


class Accountant(Protocol):
    """Any accountant's ``profile``."""

    def __call__(self, mechanism: Mechanism, /, *, adjacency: Adjacency) -> EpsilonProfile:
        """Return what it says of ``mechanism``."""


@dataclass(frozen=True)
class Goal:
    """What is to be met, and who says whether it is.

    Attributes:
        target_epsilon: The largest epsilon that meets the goal, above 0.
        delta: The delta that epsilon is asked at.
        adjacency: Which data sets are neighbours.
        accountant: Who prices.
    """

    target_epsilon: float
    delta: float
    adjacency: Adjacency = Adjacency.ADD_OR_REMOVE_ONE
    accountant: Accountant = pld.profile

    def __post_init__(self) -> None:
        require_positive("target_epsilon", self.target_epsilon)
        require_delta("delta", self.delta)

    def price(self, mechanism: Mechanism) -> Bound | None:
        """Return the interval of epsilon; None where no number is certain."""
        try:
            profile = self.accountant(mechanism, adjacency=self.adjacency)
            return profile.epsilon(delta=self.delta)
        except AccountingError:
            return None


def noise_multiplier(
    build: Callable[[float], Mechanism],
    *,
    target_epsilon: float,
    delta: float,
    adjacency: Adjacency = Adjacency.ADD_OR_REMOVE_ONE,
    accountant: Accountant = pld.profile,
    bracket: tuple[float, float] | None = None,
    resolution: float = RESOLUTION,
) -> Calibrated[float]:
    """Return the least noise multiplier that meets the target.

    Args:
        build: The mechanism for a noise multiplier.
        target_epsilon: Above 0 and finite.
        delta: The delta that it is a target for.
        adjacency: Which data sets are neighbours.
        accountant: Who prices the mechanism.
        bracket: Where to look first; the search goes beyond it where it must.
        resolution: How far above the least possible the answer may lie, relatively.

    Raises:
        InvalidArgument: an argument is out of range, or no noise up to 1e9 meets the target.
        UnsupportedMechanism: the accountant does not price the mechanism.
    """
    axis = Axis("noise multiplier", 1e-4, 1e9, 1.0, safer=1, slope=1.0, inside=between)
    goal = Goal(target_epsilon, delta, adjacency, accountant)
    return solve(build, goal, axis, bracket=bracket, resolution=resolution)


def sampling_rate(
    build: Callable[[float], Mechanism],
    *,
    target_epsilon: float,
    delta: float,
    adjacency: Adjacency = Adjacency.ADD_OR_REMOVE_ONE,
    accountant: Accountant = pld.profile,
    bracket: tuple[float, float] | None = None,
    resolution: float = RESOLUTION,
) -> Calibrated[float]:
    """Return the largest sampling rate that meets the target; 1 where every one does.

    Arguments and errors as for ``noise_multiplier``; ``build`` takes a rate above 0 and at
    most 1, and rates below 1e-12 are not looked at.
    """
    axis = Axis("sampling rate", 1e-12, 1.0, 0.01, safer=-1, slope=1.0, inside=between)
    goal = Goal(target_epsilon, delta, adjacency, accountant)
    return solve(build, goal, axis, bracket=bracket, resolution=resolution)


def steps(
    build: Callable[[int], Mechanism],
    *,
    target_epsilon: float,
    delta: float,
    adjacency: Adjacency = Adjacency.ADD_OR_REMOVE_ONE,
    accountant: Accountant = pld.profile,
    bracket: tuple[int, int] | None = None,
    resolution: float = RESOLUTION,
) -> Calibrated[int]:
    """Return the most steps that meet the target, 1e9 at most.

    Arguments and errors as for ``noise_multiplier``; ``build`` takes a number of steps. The
    answer is exact, one more step was seen not to meet the target, up to 1/``resolution``
    steps.
    """
    axis = Axis("number of steps", 1, 10**9, 100, safer=-1, slope=0.5, inside=between_whole)
    goal = Goal(target_epsilon, delta, adjacency, accountant)
    return solve(build, goal, axis, bracket=bracket, resolution=resolution)


def clip_norm(
    build: Callable[[float], Mechanism],
    *,
    noise_std: float,
    target_epsilon: float,
    delta: float,
    adjacency: Adjacency = Adjacency.ADD_OR_REMOVE_ONE,
    accountant: Accountant = pld.profile,
    bracket: tuple[float, float] | None = None,
    resolution: float = RESOLUTION,
) -> Calibrated[float]:
    """Return the largest clip norm that meets the target under noise of a fixed size.

    Args:
        build: The mechanism for a noise multiplier, which is ``noise_std`` over the clip norm.
        noise_std: Standard deviation of the noise, in the unit of the clip norm.
        target_epsilon: Above 0 and finite.
        delta: The delta that it is a target for.
        adjacency: Which data sets are neighbours.
        accountant: Who prices the mechanism.
        bracket: Clip norms to look at first; the search goes beyond them where it must.
        resolution: How far below the largest possible the answer may lie, relatively.

    Raises:
        InvalidArgument: an argument is out of range, or no clip norm down to a billionth
            of ``noise_std`` meets the target.
        UnsupportedMechanism: the accountant does not price the mechanism.
    """
    if not 1e-200 <= noise_std <= 1e200:
        raise InvalidArgument("noise_std", noise_std, "between 1e-200 and 1e200")
    axis = Axis(
        "clip norm",
        noise_std / 1e9,
        noise_std / 1e-4,
        noise_std,
        safer=-1,
        slope=1.0,
        inside=between,
    )
    goal = Goal(target_epsilon, delta, adjacency, accountant)
    return solve(
        lambda clip: build(noise_std / clip), goal, axis, bracket=bracket, resolution=resolution
    )


def solve(
    build: Callable[[Number], Mechanism],
    goal: Goal,
    axis: Axis[Number],
    *,
    bracket: tuple[Number, Number] | None = None,
    resolution: float = RESOLUTION,
) -> Calibrated[Number]:
    """Return the boldest value of any parameter that meets ``goal``.

    Args:
        build: The mechanism for a value of the parameter.
        goal: The target, and the accountant that judges.
        axis: The parameter.
        bracket: Where to look first; the search goes beyond it where it must.
        resolution: How far, relatively, the answer may lie from a value seen to fail.

    Raises:
        InvalidArgument: an argument is out of range, or nothing on the axis meets the goal.
        UnsupportedMechanism: the accountant does not price the mechanism.
    """
    search = Search(lambda value: goal.price(build(value)), goal.target_epsilon, axis)
    value, epsilon = search.run(bracket, resolution)
    return Calibrated(value, epsilon, goal.target_epsilon, goal.delta, len(search.points))
