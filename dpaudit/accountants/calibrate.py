"""Compute the parameter of a mechanism that meets a target epsilon.

- ``noise_multiplier``: the least one with epsilon at most the target
- ``sampling_rate``: the largest one, for Poisson sampling
- ``steps``: the largest number
- ``clip_norm``: the largest one, where the noise has a fixed standard deviation

The result is conservative: epsilon was computed at the returned value, and is at most the
target. At a value next to it the computed epsilon exceeds the target, or has no bound. Where
epsilon is monotone, no better value lies beyond. It is monotone in the noise of Gaussian and
Laplace mechanisms, sampled or not, in the Poisson sampling rate, and in the steps. For other
noise (epsilon of discrete Gaussians is not monotone near scale 0.5) the result meets the
target as well, but may not be the best one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Protocol

import msgspec

from dpaudit.accountants import pld
from dpaudit.accountants.parameter_search import (
    Number,
    ParameterRange,
    ParameterSearch,
    integer_between,
    real_between,
)
from dpaudit.vocabulary.errors import (
    AccountingError,
    InvalidArgument,
    require_delta,
    require_positive,
)
from dpaudit.vocabulary.mechanism import Mechanism
from dpaudit.vocabulary.privacy_terms import Adjacency, Bound

RESOLUTION = 1e-4  # default relative distance of a result from a value that fails

NOISE_RANGE = ParameterRange(
    "noise multiplier", 1e-4, 1e9, 1.0, direction=1, slope=1.0, nearest=real_between
)
RATE_RANGE = ParameterRange(
    "sampling rate", 1e-12, 1.0, 0.01, direction=-1, slope=1.0, nearest=real_between
)
# For Gaussians without sampling epsilon grows about like the square root of the steps.
STEPS_RANGE = ParameterRange(
    "number of steps", 1, 10**9, 100, direction=-1, slope=0.5, nearest=integer_between
)


class CalibrationResult(msgspec.Struct, Generic[Number], frozen=True):
    """A parameter that meets a target epsilon.

    Attributes:
        value: The parameter.
        epsilon: The interval of epsilon at ``value``; its upper end is at most the target.
        target_epsilon: The target, in nats, at ``delta``.
        delta: The delta of the target and of ``epsilon``.
        evaluations: Number of mechanisms whose epsilon was computed.
    """

    value: Number
    epsilon: Bound
    target_epsilon: float
    delta: float
    evaluations: int

    @property
    def slack(self) -> float:
        """The target less the upper end of epsilon, in nats; at least 0."""
        return self.target_epsilon - self.epsilon.upper


class EpsilonProfile(Protocol):
    """Protocol of an accountant's result for one mechanism."""

    def epsilon(self, *, delta: float) -> Bound:
        """Return the interval of epsilon, in nats, at ``delta``."""


class Accountant(Protocol):
    """Protocol of the ``profile`` function of any accountant."""

    def __call__(self, mechanism: Mechanism, /, *, adjacency: Adjacency) -> EpsilonProfile:
        """Return the privacy profile of ``mechanism`` under ``adjacency``."""


@dataclass(frozen=True)
class CalibrationTarget:
    """A target epsilon and the accountant that decides whether it is met.

    Attributes:
        target_epsilon: Largest epsilon that meets the target, in nats, above 0.
        delta: Delta at which epsilon is computed.
        adjacency: Neighbor relation.
        accountant: The ``profile`` function of an accountant.
    """

    target_epsilon: float
    delta: float
    adjacency: Adjacency = Adjacency.ADD_OR_REMOVE_ONE
    accountant: Accountant = pld.profile

    def __post_init__(self) -> None:
        require_positive("target_epsilon", self.target_epsilon)
        require_delta("delta", self.delta)

    def epsilon_of(self, mechanism: Mechanism) -> Bound | None:
        """Return the interval of epsilon; None where the accountant cannot certify a number."""
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
) -> CalibrationResult[float]:
    """Compute the least noise multiplier that meets the target.

    Args:
        build: Function from a noise multiplier to the mechanism.
        target_epsilon: Largest allowed epsilon in nats, above 0 and finite.
        delta: Delta at which epsilon is computed.
        adjacency: Neighbor relation.
        accountant: The ``profile`` function of an accountant.
        bracket: Where the search starts; it leaves the bracket where it must.
        resolution: Largest relative distance of the result from the least possible value.

    Returns:
        The noise multiplier with its interval of epsilon.

    Raises:
        InvalidArgument: If an argument is out of range, or no noise up to 1e9 meets the target.
        UnsupportedMechanism: If the accountant has no bound for the mechanism.

    Example:
        >>> from dpaudit.accountants import Gaussian, calibrate
        >>> found = calibrate.noise_multiplier(Gaussian, target_epsilon=1.0, delta=1e-5)
        >>> round(found.value, 3)
        3.731
        >>> found.epsilon.upper <= 1.0
        True
    """
    target = CalibrationTarget(target_epsilon, delta, adjacency, accountant)
    return calibrate_parameter(build, target, NOISE_RANGE, bracket=bracket, resolution=resolution)


def sampling_rate(
    build: Callable[[float], Mechanism],
    *,
    target_epsilon: float,
    delta: float,
    adjacency: Adjacency = Adjacency.ADD_OR_REMOVE_ONE,
    accountant: Accountant = pld.profile,
    bracket: tuple[float, float] | None = None,
    resolution: float = RESOLUTION,
) -> CalibrationResult[float]:
    """Compute the largest sampling rate that meets the target; 1 where every rate does.

    Args:
        build: Function from a sampling rate, above 0 and at most 1, to the mechanism.
        target_epsilon: Largest allowed epsilon in nats, above 0 and finite.
        delta: Delta at which epsilon is computed.
        adjacency: Neighbor relation.
        accountant: The ``profile`` function of an accountant.
        bracket: Where the search starts; it leaves the bracket where it must.
        resolution: Largest relative distance of the result from the largest possible value.

    Returns:
        The sampling rate with its interval of epsilon.

    Raises:
        InvalidArgument: If an argument is out of range, or no rate down to 1e-12 meets the
            target.
        UnsupportedMechanism: If the accountant has no bound for the mechanism.

    Example:
        >>> from dpaudit.accountants import Gaussian, PoissonSampled, calibrate
        >>> found = calibrate.sampling_rate(
        ...     lambda rate: PoissonSampled(Gaussian(1.0), rate), target_epsilon=1.0, delta=1e-5
        ... )
        >>> found.epsilon.upper <= 1.0
        True
    """
    target = CalibrationTarget(target_epsilon, delta, adjacency, accountant)
    return calibrate_parameter(build, target, RATE_RANGE, bracket=bracket, resolution=resolution)


def steps(
    build: Callable[[int], Mechanism],
    *,
    target_epsilon: float,
    delta: float,
    adjacency: Adjacency = Adjacency.ADD_OR_REMOVE_ONE,
    accountant: Accountant = pld.profile,
    bracket: tuple[int, int] | None = None,
    resolution: float = RESOLUTION,
) -> CalibrationResult[int]:
    """Compute the largest number of steps that meets the target, at most 1e9.

    Args:
        build: Function from a number of steps to the mechanism.
        target_epsilon: Largest allowed epsilon in nats, above 0 and finite.
        delta: Delta at which epsilon is computed.
        adjacency: Neighbor relation.
        accountant: The ``profile`` function of an accountant.
        bracket: Where the search starts; it leaves the bracket where it must.
        resolution: Largest relative distance of the result from a number that fails.

    Returns:
        The number of steps with its interval of epsilon. Up to 1/``resolution`` steps it is
        exact: epsilon of one more step was found to exceed the target.

    Raises:
        InvalidArgument: If an argument is out of range, or a single step exceeds the target.
        UnsupportedMechanism: If the accountant has no bound for the mechanism.

    Example:
        >>> from dpaudit.accountants import Gaussian, Repeated, calibrate
        >>> found = calibrate.steps(
        ...     lambda count: Repeated(Gaussian(10.0), count), target_epsilon=2.0, delta=1e-5
        ... )
        >>> found.epsilon.upper <= 2.0
        True
    """
    target = CalibrationTarget(target_epsilon, delta, adjacency, accountant)
    return calibrate_parameter(build, target, STEPS_RANGE, bracket=bracket, resolution=resolution)


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
) -> CalibrationResult[float]:
    """Compute the largest clip norm that meets the target for noise of a fixed size.

    Args:
        build: Function from a noise multiplier, ``noise_std`` / clip norm, to the mechanism.
        noise_std: Standard deviation of the noise, in the unit of the clip norm.
        target_epsilon: Largest allowed epsilon in nats, above 0 and finite.
        delta: Delta at which epsilon is computed.
        adjacency: Neighbor relation.
        accountant: The ``profile`` function of an accountant.
        bracket: Clip norms where the search starts; it leaves the bracket where it must.
        resolution: Largest relative distance of the result from the largest possible value.

    Returns:
        The clip norm with its interval of epsilon.

    Raises:
        InvalidArgument: If an argument is out of range, or no clip norm down to ``noise_std`` /
            1e9 meets the target.
        UnsupportedMechanism: If the accountant has no bound for the mechanism.

    Example:
        >>> from dpaudit.accountants import Gaussian, calibrate
        >>> found = calibrate.clip_norm(Gaussian, noise_std=4.0, target_epsilon=1.0, delta=1e-5)
        >>> round(found.value, 3)
        1.072
    """
    if not 1e-200 <= noise_std <= 1e200:
        raise InvalidArgument("noise_std", noise_std, "between 1e-200 and 1e200")
    parameter = ParameterRange(
        "clip norm",
        noise_std / 1e9,
        noise_std / 1e-4,
        noise_std,
        direction=-1,
        slope=1.0,
        nearest=real_between,
    )
    target = CalibrationTarget(target_epsilon, delta, adjacency, accountant)
    return calibrate_parameter(
        lambda clip: build(noise_std / clip),
        target,
        parameter,
        bracket=bracket,
        resolution=resolution,
    )


def calibrate_parameter(
    build: Callable[[Number], Mechanism],
    target: CalibrationTarget,
    parameter: ParameterRange[Number],
    *,
    bracket: tuple[Number, Number] | None = None,
    resolution: float = RESOLUTION,
) -> CalibrationResult[Number]:
    """Compute the least private value of any parameter that meets a target.

    Args:
        build: Function from a value of the parameter to the mechanism.
        target: The target, and the accountant that decides whether it is met.
        parameter: Range of the parameter and the direction in which privacy grows.
        bracket: Where the search starts; it leaves the bracket where it must.
        resolution: Largest relative distance of the result from a value that fails.

    Returns:
        The value with its interval of epsilon.

    Raises:
        InvalidArgument: If an argument is out of range, or no value in the range meets the
            target.
        UnsupportedMechanism: If the accountant has no bound for the mechanism.
    """
    search = ParameterSearch(
        lambda value: target.epsilon_of(build(value)), target.target_epsilon, parameter
    )
    value, epsilon = search.run(bracket, resolution)
    return CalibrationResult(
        value, epsilon, target.target_epsilon, target.delta, len(search.points)
    )
