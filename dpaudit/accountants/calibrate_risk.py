"""Compute the parameter of a mechanism that keeps the risk of the best attacker at a target.

The functions are those of ``calibrate``, with a risk in place of epsilon at a delta:

- ``TprTarget``: largest true positive rate at a false positive rate
- ``AdvantageTarget``: largest difference of true and false positive rate
- ``BayesRiskTarget``: least error probability of the best guess of membership
- ``ReconstructionTarget``: largest success rate of reconstructing a record

The result is conservative: an upper bound of the risk was computed at the returned value, and
is at most the target. The interval of a true positive rate is up to 1e-5 of its value wide, so
that a limit next to ``fpr`` takes slightly more noise than necessary.

A target of a risk needs no delta, and often less noise than an epsilon that implies the same
risk (Kulynych et al. 2024, arXiv:2407.02191).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Protocol

import msgspec

from dpaudit.accountants import pld, risk
from dpaudit.accountants.calibrate import NOISE_RANGE, RATE_RANGE, RESOLUTION, STEPS_RANGE
from dpaudit.accountants.parameter_search import Number, ParameterRange, ParameterSearch
from dpaudit.vocabulary.errors import AccountingError, InvalidArgument, require_open_unit
from dpaudit.vocabulary.mechanism import Mechanism
from dpaudit.vocabulary.privacy_terms import Adjacency, Bound

__all__ = [
    "AdvantageTarget",
    "BayesRiskTarget",
    "ReconstructionTarget",
    "RiskCalibration",
    "TprTarget",
    "noise_multiplier",
    "sampling_rate",
    "steps",
]


class RiskAccountant(Protocol):
    """Protocol of the ``profile`` function of an accountant that bounds delta(epsilon)."""

    def __call__(self, mechanism: Mechanism, /, *, adjacency: Adjacency) -> risk.PrivacyProfile:
        """Return the privacy profile of ``mechanism`` under ``adjacency``."""


class RiskTarget(Protocol):
    """Protocol of a target: a risk that grows with the attacker's success, and its limit."""

    @property
    def name(self) -> str:
        """Name of the limit, for messages."""

    @property
    def limit(self) -> float:
        """Largest risk that meets the target."""

    @property
    def floor(self) -> float:
        """The risk of a mechanism that releases nothing."""

    def risk_of(self, profile: risk.PrivacyProfile) -> Bound:
        """Return the interval of the risk."""

    def reported(self, found: Bound) -> Bound:
        """Return the interval that a result shows for an interval of the risk."""
        return found


def _require_between(name: str, value: float, low: float, high: float, why: str) -> None:
    """Refuse a limit that releasing nothing misses, or that every mechanism meets."""
    if not low < value < high:
        raise InvalidArgument(name, value, f"above {low:g} and below {high:g}: {why}")


@dataclass(frozen=True)
class TprTarget(RiskTarget):
    """Largest true positive rate of the best attacker at one false positive rate.

    Attributes:
        tpr: The limit, above ``fpr`` and below 1.
        fpr: The false positive rate, above 0 and below 1.

    Raises:
        InvalidArgument: If a rate is out of its range.

    Example:
        >>> from dpaudit.accountants import Gaussian, calibrate_risk
        >>> target = calibrate_risk.TprTarget(tpr=0.01, fpr=0.001)
        >>> found = calibrate_risk.noise_multiplier(Gaussian, target)
        >>> round(found.value, 3), found.risk.upper <= 0.01
        (1.309, True)
    """

    tpr: float
    fpr: float

    def __post_init__(self) -> None:
        require_open_unit("fpr", self.fpr)
        _require_between("tpr", self.tpr, self.fpr, 1.0, "guessing at random reaches fpr")

    @property
    def name(self) -> str:
        """Name of the limit, for messages."""
        return "tpr"

    @property
    def limit(self) -> float:
        """Largest risk that meets the target."""
        return self.tpr

    @property
    def floor(self) -> float:
        """The risk of a mechanism that releases nothing."""
        return self.fpr

    def risk_of(self, profile: risk.PrivacyProfile) -> Bound:
        """Return the interval of the true positive rate.

        Args:
            profile: Privacy profile of a mechanism.

        Returns:
            The interval at ``fpr``.
        """
        return risk.tpr_at_fpr(profile, fpr=self.fpr)


@dataclass(frozen=True)
class AdvantageTarget(RiskTarget):
    """Largest difference of true and false positive rate of the best attacker.

    Attributes:
        advantage: The limit, above 0 and below 1.

    Raises:
        InvalidArgument: If it is out of its range.

    Example:
        >>> from dpaudit.accountants import Gaussian, calibrate_risk
        >>> target = calibrate_risk.AdvantageTarget(0.1)
        >>> round(calibrate_risk.noise_multiplier(Gaussian, target).value, 3)
        3.979
    """

    advantage: float

    def __post_init__(self) -> None:
        require_open_unit("advantage", self.advantage)

    @property
    def name(self) -> str:
        """Name of the limit, for messages."""
        return "advantage"

    @property
    def limit(self) -> float:
        """Largest risk that meets the target."""
        return self.advantage

    @property
    def floor(self) -> float:
        """The risk of a mechanism that releases nothing."""
        return 0.0

    def risk_of(self, profile: risk.PrivacyProfile) -> Bound:
        """Return the interval of the advantage.

        Args:
            profile: Privacy profile of a mechanism.

        Returns:
            The interval.
        """
        return risk.advantage(profile)


@dataclass(frozen=True)
class BayesRiskTarget(RiskTarget):
    """Least error probability of the best guess of membership, for a prior probability.

    Attributes:
        bayes_risk: The limit, above 0 and below min(prior, 1 - prior), which is the error
            probability without the output.
        prior: Prior probability of membership, above 0 and below 1.

    Raises:
        InvalidArgument: If a probability is out of its range.

    Example:
        >>> from dpaudit.accountants import Gaussian, calibrate_risk
        >>> target = calibrate_risk.BayesRiskTarget(0.45)
        >>> found = calibrate_risk.noise_multiplier(Gaussian, target)
        >>> round(found.value, 3), found.risk.lower >= 0.45
        (3.979, True)
    """

    bayes_risk: float
    prior: float = 0.5

    def __post_init__(self) -> None:
        require_open_unit("prior", self.prior)
        largest = min(self.prior, 1 - self.prior)
        _require_between("bayes_risk", self.bayes_risk, 0.0, largest, "the prior alone errs so")

    @property
    def name(self) -> str:
        """Name of the limit, for messages."""
        return "bayes_risk"

    @property
    def limit(self) -> float:
        """Largest accuracy that meets the target, rounded down."""
        # Two roundings are covered: that of this difference, and that of the reported interval.
        return math.nextafter(math.nextafter(1 - self.bayes_risk, 0.0), 0.0)

    @property
    def floor(self) -> float:
        """The accuracy of a mechanism that releases nothing."""
        return max(self.prior, 1 - self.prior)

    def risk_of(self, profile: risk.PrivacyProfile) -> Bound:
        """Return the interval of the accuracy, which is 1 minus the Bayes risk.

        Args:
            profile: Privacy profile of a mechanism.

        Returns:
            The interval.
        """
        return risk.accuracy(profile, prior=self.prior)

    def reported(self, found: Bound) -> Bound:
        """Return the interval of the Bayes risk.

        Args:
            found: The interval of the accuracy.

        Returns:
            1 minus it, rounded outward.
        """
        return risk.complement(found)


@dataclass(frozen=True)
class ReconstructionTarget(RiskTarget):
    """Largest success rate of reconstructing a whole record.

    Attributes:
        success: The limit, above ``chance`` and below 1.
        chance: Largest success rate without the output, above 0 and below 1.

    Raises:
        InvalidArgument: If a probability is out of its range.

    Example:
        >>> from dpaudit.accountants import Gaussian, calibrate_risk
        >>> target = calibrate_risk.ReconstructionTarget(success=0.1, chance=0.01)
        >>> round(calibrate_risk.noise_multiplier(Gaussian, target).value, 3)
        0.957
    """

    success: float
    chance: float

    def __post_init__(self) -> None:
        require_open_unit("chance", self.chance)
        _require_between("success", self.success, self.chance, 1.0, "the prior alone succeeds so")

    @property
    def name(self) -> str:
        """Name of the limit, for messages."""
        return "success"

    @property
    def limit(self) -> float:
        """Largest risk that meets the target."""
        return self.success

    @property
    def floor(self) -> float:
        """The risk of a mechanism that releases nothing."""
        return self.chance

    def risk_of(self, profile: risk.PrivacyProfile) -> Bound:
        """Return the interval of the success rate.

        Args:
            profile: Privacy profile of a mechanism.

        Returns:
            The interval.
        """
        return risk.reconstruction(profile, chance=self.chance)


class RiskCalibration(msgspec.Struct, Generic[Number], frozen=True):
    """A parameter that meets a target of a risk.

    Attributes:
        value: The parameter.
        risk: The interval of the risk at ``value``. Its upper end is at most the target; for a
            Bayes risk, its lower end is at least the target.
        evaluations: Number of mechanisms whose risk was computed.

    Example:
        >>> from dpaudit.accountants import Gaussian, calibrate_risk
        >>> target = calibrate_risk.AdvantageTarget(0.1)
        >>> found = calibrate_risk.noise_multiplier(Gaussian, target, resolution=0.1)
        >>> found.risk.lower <= found.risk.upper <= 0.1
        True
    """

    value: Number
    risk: Bound
    evaluations: int


def noise_multiplier(
    build: Callable[[float], Mechanism],
    target: RiskTarget,
    *,
    adjacency: Adjacency = Adjacency.ADD_OR_REMOVE_ONE,
    accountant: RiskAccountant = pld.profile,
    bracket: tuple[float, float] | None = None,
    resolution: float = RESOLUTION,
) -> RiskCalibration[float]:
    """Compute the least noise multiplier that meets a target of a risk.

    Args:
        build: Function from a noise multiplier to the mechanism.
        target: The risk and its limit.
        adjacency: Neighbor relation.
        accountant: The ``profile`` function of an accountant that bounds delta.
        bracket: Where the search starts; it leaves the bracket where it must.
        resolution: Largest relative distance of the result from the least possible value.

    Returns:
        The noise multiplier with its interval of the risk.

    Raises:
        InvalidArgument: If an argument is out of range, or no noise up to 1e9 meets the target.
        UnsupportedMechanism: If the accountant has no bound for the mechanism.

    References:
        Kulynych et al. (2024), arXiv:2407.02191.

    Example:
        >>> from dpaudit.accountants import Gaussian, calibrate_risk
        >>> target = calibrate_risk.AdvantageTarget(0.2)
        >>> calibrate_risk.noise_multiplier(Gaussian, target).risk.upper <= 0.2
        True
    """
    return _calibrate(build, target, NOISE_RANGE, adjacency, accountant, bracket, resolution)


def sampling_rate(
    build: Callable[[float], Mechanism],
    target: RiskTarget,
    *,
    adjacency: Adjacency = Adjacency.ADD_OR_REMOVE_ONE,
    accountant: RiskAccountant = pld.profile,
    bracket: tuple[float, float] | None = None,
    resolution: float = RESOLUTION,
) -> RiskCalibration[float]:
    """Compute the largest sampling rate that meets a target; 1 where every rate does.

    Args:
        build: Function from a sampling rate, above 0 and at most 1, to the mechanism.
        target: The risk and its limit.
        adjacency: Neighbor relation.
        accountant: The ``profile`` function of an accountant that bounds delta.
        bracket: Where the search starts; it leaves the bracket where it must.
        resolution: Largest relative distance of the result from the largest possible value.

    Returns:
        The sampling rate with its interval of the risk.

    Raises:
        InvalidArgument: If an argument is out of range, or no rate down to 1e-12 meets the
            target.
        UnsupportedMechanism: If the accountant has no bound for the mechanism.

    Example:
        >>> from dpaudit.accountants import Gaussian, PoissonSampled, calibrate_risk
        >>> found = calibrate_risk.sampling_rate(
        ...     lambda rate: PoissonSampled(Gaussian(1.0), rate),
        ...     calibrate_risk.AdvantageTarget(0.1),
        ... )
        >>> found.risk.upper <= 0.1
        True
    """
    return _calibrate(build, target, RATE_RANGE, adjacency, accountant, bracket, resolution)


def steps(
    build: Callable[[int], Mechanism],
    target: RiskTarget,
    *,
    adjacency: Adjacency = Adjacency.ADD_OR_REMOVE_ONE,
    accountant: RiskAccountant = pld.profile,
    bracket: tuple[int, int] | None = None,
    resolution: float = RESOLUTION,
) -> RiskCalibration[int]:
    """Compute the largest number of steps that meets a target, at most 1e9.

    Args:
        build: Function from a number of steps to the mechanism.
        target: The risk and its limit.
        adjacency: Neighbor relation.
        accountant: The ``profile`` function of an accountant that bounds delta.
        bracket: Where the search starts; it leaves the bracket where it must.
        resolution: Largest relative distance of the result from a number that fails.

    Returns:
        The number of steps with its interval of the risk.

    Raises:
        InvalidArgument: If an argument is out of range, or a single step exceeds the target.
        UnsupportedMechanism: If the accountant has no bound for the mechanism.

    Example:
        >>> from dpaudit.accountants import Gaussian, Repeated, calibrate_risk
        >>> found = calibrate_risk.steps(
        ...     lambda count: Repeated(Gaussian(50.0), count),
        ...     calibrate_risk.AdvantageTarget(0.1),
        ... )
        >>> found.value
        157
    """
    return _calibrate(build, target, STEPS_RANGE, adjacency, accountant, bracket, resolution)


def _calibrate(
    build: Callable[[Number], Mechanism],
    target: RiskTarget,
    parameter: ParameterRange[Number],
    adjacency: Adjacency,
    accountant: RiskAccountant,
    bracket: tuple[Number, Number] | None,
    resolution: float,
) -> RiskCalibration[Number]:
    """Search on the excess of the risk over its floor, which is nearly a power of the noise."""
    allowed = target.limit - target.floor
    if not allowed > 0:
        raise InvalidArgument(target.name, target.limit, "farther from the risk of no release")
    known: dict[Number, Bound] = {}

    def excess(value: Number) -> Bound | None:
        try:
            found = target.risk_of(accountant(build(value), adjacency=adjacency))
        except AccountingError:
            return None
        known[value] = found
        # Rounding of the differences must not let a risk above the limit pass.
        above = max(found.upper - target.floor, 0.0)
        if not found.upper <= target.limit:
            above = max(above, math.nextafter(allowed, math.inf))
        return Bound(0.0, above)

    search = ParameterSearch(excess, allowed, parameter, target.name)
    value, _ = search.run(bracket, resolution)
    return RiskCalibration(value, target.reported(known[value]), len(search.points))
