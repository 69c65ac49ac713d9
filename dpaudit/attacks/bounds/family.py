"""The claimed mechanism with more or less noise: what a bound inverts over.

Lower bounds share no code with the accountants that they may contradict, so what a mechanism
costs at a noise factor is handed in. Every number is rounded against the bound: trade-off
curves from below, total variation from above, epsilon by its lower end.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri

from dpaudit.vocabulary.bound import Bound
from dpaudit.vocabulary.errors import InvalidArgument

Array = NDArray[np.float64]

Tradeoff = Callable[[float], float]
"""The least false-negative rate that a test with a false-positive rate can have, from below."""

LEAST_NOISE_FACTOR, MOST_NOISE_FACTOR = 0.05, 64.0
BRACKET = 1.5
RESOLUTION = 1.001  # of noise factors
TIE = 1e-6  # relative; a factor this close to a threshold may count as on either side of it


@dataclass(frozen=True)
class Family:
    """The claimed mechanism with all of its noise scaled by a factor.

    Attributes:
        epsilon: Epsilon at a noise factor, at the delta of the audit.
        total_variation: An upper end of the total variation at a noise factor.
        tradeoff: The trade-off curve at a noise factor, from below.
    """

    epsilon: Callable[[float], Bound]
    total_variation: Callable[[float], float]
    tradeoff: Callable[[float], Tradeoff]

    def epsilon_refuted(self, refuted: Callable[[float], bool]) -> float:
        """Return epsilon at the least noise factor that is refuted; 0 where none is.

        Args:
            refuted: Whether a noise factor is; if one is, so is every larger one.
        """
        return self.epsilon_at(least_refuted(refuted))

    def epsilon_at(self, refuted: float | None) -> float:
        """Return the largest lower end of epsilon at a refuted factor or above it.

        0 where no factor is refuted.

        It falls with noise but for what an accountant cannot resolve: next to no noise at all
        may cost anything from 0, though more of it certainly costs much.
        """
        if refuted is None:
            return 0.0
        while (found := self.epsilon(refuted).lower) == 0 and refuted < MOST_NOISE_FACTOR:
            refuted *= BRACKET
        return found


def least_refuted(refuted: Callable[[float], bool]) -> float | None:
    """Return the least noise factor that is refuted, up to ``RESOLUTION``; None where none is.

    Args:
        refuted: Whether a noise factor is; if one is, so is every larger one.
    """
    low = high = 1.0
    while refuted(low):
        if low < LEAST_NOISE_FACTOR:
            return low
        low, high = low / BRACKET, low
    while not refuted(high):
        if high > MOST_NOISE_FACTOR:
            return None
        low, high = high, high * BRACKET
    while high / low > RESOLUTION:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if refuted(middle) else (middle, high)
    return high


def is_least_refuted(factor: float | None, refuted: Callable[[float], bool]) -> bool:
    """Return whether ``least_refuted`` would return ``factor``: two evaluations in place of many.

    Args:
        factor: What it is said to have returned.
        refuted: As there.
    """
    if factor is None:
        return not refuted(MOST_NOISE_FACTOR)
    # A little less and a little more: another machine may decide a tie differently.
    lower = factor / RESOLUTION * (1 - TIE)
    return refuted(factor * (1 + TIE)) and (factor < LEAST_NOISE_FACTOR or not refuted(lower))


@dataclass(frozen=True)
class SupportedTradeoff:
    """A trade-off curve from below, by lines that support it.

    An (epsilon, delta)-DP mechanism has FNR >= 1 - delta - e^epsilon FPR and FNR >=
    e^-epsilon (1 - delta - FPR) (Wasserman & Zhou 2010): the largest over a few epsilons is
    below the true curve, and touches it there.

    Attributes:
        epsilons: Shape ``(k,)``, at least 0.
        deltas: An upper end of delta at each, in both directions, shape ``(k,)``.
    """

    epsilons: Array
    deltas: Array

    def __post_init__(self) -> None:
        if self.epsilons.shape != self.deltas.shape or not np.all(self.epsilons >= 0):
            raise InvalidArgument("epsilons", self.epsilons, "at least 0, one for each delta")
        if not np.all((self.deltas >= 0) & (self.deltas <= 1)):
            raise InvalidArgument("deltas", self.deltas, "from 0 to 1")

    def __call__(self, false_positive_rate: float) -> float:
        """Return the least false-negative rate, from below."""
        left, gain, heights, slopes = self._lines
        steep = (left - gain * false_positive_rate).max()
        flat = (heights - slopes * false_positive_rate).max()
        return max(0.0, float(steep), float(flat))

    @cached_property
    def _lines(self) -> tuple[Array, Array, Array, Array]:
        """Heights at 0 and slopes of the steep lines, and of the flat ones."""
        left, gain = 1 - self.deltas, np.exp(self.epsilons)
        return left, gain, left / gain, 1 / gain


def gaussian_tradeoff(mu: float) -> Tradeoff:
    """Return G_mu(x) = Phi(Phi_inv(1 - x) - mu) (Dong, Roth & Su 2022, equation 6)."""

    def least_false_negative_rate(false_positive_rate: float) -> float:
        return float(ndtr(-ndtri(false_positive_rate) - mu))

    return least_false_negative_rate
