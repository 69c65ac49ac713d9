"""The family of mechanisms that a conditional bound inverts tests over.

The family is the claimed mechanism with all noise multiplied by a factor. A test that refutes a
noise factor f refutes every larger factor, so the smallest refuted factor gives the bound.

Lower bounds share no code with the accountants that they may contradict. The caller therefore
provides epsilon, total variation and trade-off curve as functions of the noise factor. Every
number is rounded against the bound: trade-off curves from below, total variation from above,
epsilon by its lower end.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri

from dpaudit.vocabulary.errors import InvalidArgument
from dpaudit.vocabulary.privacy_terms import Bound

Array = NDArray[np.float64]

Tradeoff = Callable[[float], float]
"""A trade-off function: the smallest false-negative rate of any test with a given
false-positive rate, or a lower bound on it."""

MIN_NOISE_FACTOR, MAX_NOISE_FACTOR = 0.05, 64.0
BRACKET_RATIO = 1.5  # between noise factors, before the bisection
RESOLUTION = 1.001  # of noise factors, as a ratio
NOISE_FACTOR_TIE = 1e-6  # relative; a factor this close to a threshold may fall on either side


@dataclass(frozen=True)
class MechanismFamily:
    """The claimed mechanism with all of its noise multiplied by a factor.

    Each attribute is a function of the noise factor; 1 is the claimed mechanism.

    Attributes:
        epsilon: Both ends of epsilon in nats, at the delta of the audit.
        total_variation: Upper bound on the total variation between the outputs on neighbors.
        tradeoff: Lower bound on the trade-off function.

    Example:
        One full-batch step with noise multiplier 1, at delta 1e-5:

        >>> from math import erf, sqrt
        >>> from dpaudit.attacks import bounds
        >>> from dpaudit.vocabulary.privacy_terms import Bound
        >>> def epsilon(factor):
        ...     bound = bounds.gaussian_epsilon(mu=1 / factor, delta=1e-5).epsilon
        ...     return Bound(bound, bound)
        >>> family = MechanismFamily(
        ...     epsilon=epsilon,
        ...     total_variation=lambda factor: erf(1 / factor / sqrt(8)),
        ...     tradeoff=lambda factor: bounds.gaussian_tradeoff(1 / factor),
        ... )
        >>> round(family.epsilon_refuted(lambda factor: factor >= 0.5), 1)
        10.0
    """

    epsilon: Callable[[float], Bound]
    total_variation: Callable[[float], float]
    tradeoff: Callable[[float], Tradeoff]

    def epsilon_refuted(self, refuted: Callable[[float], bool]) -> float:
        """Compute epsilon at the smallest refuted noise factor.

        Args:
            refuted: A test of a noise factor; if it refutes one, it refutes every larger one.

        Returns:
            Lower bound on epsilon in nats; 0 where no factor is refuted.
        """
        return self.epsilon_at(least_refuted(refuted))

    def epsilon_at(self, refuted: float | None) -> float:
        """Compute a lower bound on epsilon for a refuted noise factor.

        Epsilon falls with noise. At very little noise, however, an accountant may give only the
        trivial lower end 0. Larger factors, which are refuted as well, are then tried.

        Args:
            refuted: A noise factor that is refuted, or None.

        Returns:
            The first positive lower end of epsilon at the factor or above, in nats; 0 where
            there is none, or for None.
        """
        if refuted is None:
            return 0.0
        while (found := self.epsilon(refuted).lower) == 0 and refuted < MAX_NOISE_FACTOR:
            refuted *= BRACKET_RATIO
        return found


def least_refuted(refuted: Callable[[float], bool]) -> float | None:
    """Find the smallest refuted noise factor, rounded up by at most ``RESOLUTION``.

    Args:
        refuted: A test of a noise factor; if it refutes one, it refutes every larger one.

    Returns:
        The factor. Below ``MIN_NOISE_FACTOR`` the search ends at the factor that it reached.
        None if no factor up to ``MAX_NOISE_FACTOR`` is refuted.
    """
    # Bracket the threshold between ``low``, not refuted, and ``high``, refuted; then bisect.
    low = high = 1.0
    while refuted(low):
        if low < MIN_NOISE_FACTOR:
            return low
        low, high = low / BRACKET_RATIO, low
    while not refuted(high):
        if high > MAX_NOISE_FACTOR:
            return None
        low, high = high, high * BRACKET_RATIO
    while high / low > RESOLUTION:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if refuted(middle) else (middle, high)
    return high


def is_least_refuted(factor: float | None, refuted: Callable[[float], bool]) -> bool:
    """Check with two evaluations that ``factor`` is the smallest refuted noise factor.

    Args:
        factor: The stated result of a search; None states that no factor is refuted.
        refuted: The test of a noise factor; if it refutes one, it refutes every larger one.

    Returns:
        Whether the search could have had this result. The tolerance ``NOISE_FACTOR_TIE`` allows
        for ties that another machine decides differently.

    Example:
        >>> is_least_refuted(0.5, lambda factor: factor >= 0.5)
        True
        >>> is_least_refuted(0.6, lambda factor: factor >= 0.5)
        False
    """
    if factor is None:
        return not refuted(MAX_NOISE_FACTOR)
    # Test slightly above and slightly below: another machine may decide a tie differently.
    lower = factor / RESOLUTION * (1 - NOISE_FACTOR_TIE)
    return refuted(factor * (1 + NOISE_FACTOR_TIE)) and (
        factor < MIN_NOISE_FACTOR or not refuted(lower)
    )


@dataclass(frozen=True)
class PiecewiseLinearTradeoff:
    """A lower bound on a trade-off function, as the maximum of supporting lines.

    An (epsilon, delta)-DP mechanism has, at every false-positive rate x,

        FNR >= 1 - delta - e^epsilon x    and    FNR >= e^-epsilon (1 - delta - x).

    The maximum of these lines over a few epsilons is below the true curve, and touches it where
    delta is exact.

    Attributes:
        epsilons: Privacy losses in nats, shape ``(k,)``, at least 0.
        deltas: Upper bounds on delta at each, for both directions, shape ``(k,)``, in [0, 1].

    References:
        Wasserman & Zhou (2010).

    Example:
        >>> curve = PiecewiseLinearTradeoff(np.array([0.0, 1.0]), np.array([0.5, 0.1]))
        >>> round(curve(0.2), 4)
        0.3563
    """

    epsilons: Array
    deltas: Array

    def __post_init__(self) -> None:
        if self.epsilons.shape != self.deltas.shape or not np.all(self.epsilons >= 0):
            raise InvalidArgument("epsilons", self.epsilons, "at least 0, one for each delta")
        if not np.all((self.deltas >= 0) & (self.deltas <= 1)):
            raise InvalidArgument("deltas", self.deltas, "from 0 to 1")

    def __call__(self, false_positive_rate: float) -> float:
        """Compute a lower bound on the false-negative rate.

        Args:
            false_positive_rate: In [0, 1].

        Returns:
            The largest of all lines there, at least 0.
        """
        left, gain, heights, slopes = self._lines
        steep = (left - gain * false_positive_rate).max()
        flat = (heights - slopes * false_positive_rate).max()
        return max(0.0, float(steep), float(flat))

    @cached_property
    def _lines(self) -> tuple[Array, Array, Array, Array]:
        """Heights at 0 and negated slopes of the steep lines, then of the flat ones."""
        left, gain = 1 - self.deltas, np.exp(self.epsilons)
        return left, gain, left / gain, 1 / gain


def gaussian_tradeoff(mu: float) -> Tradeoff:
    """Return the Gaussian trade-off function G_mu(x) = Phi(Phi_inv(1 - x) - mu).

    Args:
        mu: The parameter of Gaussian DP, at least 0.

    Returns:
        The function from a false-positive rate to the smallest false-negative rate.

    References:
        Dong, Roth & Su (2022), arXiv:1905.02383, equation 6.

    Example:
        >>> round(gaussian_tradeoff(1.0)(0.05), 4)
        0.7405
    """

    def least_false_negative_rate(false_positive_rate: float) -> float:
        return float(ndtr(-ndtri(false_positive_rate) - mu))

    return least_false_negative_rate
