"""Masses of symmetric integer noise as tables, with a bound on their relative error.

Skellam noise of variance v has the mass e^-v I_|x|(v) at x, with the modified Bessel function I
(equation 10). Sums of discrete Gaussians are convolved. Both are log-concave, so the loss between
moved copies increases with the output (equation 9).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from dpaudit.accountants.integer_noise import noise_square, sum_oscillation
from dpaudit.accountants.rounding_margins import ROUND_UP, UNIT_ROUNDOFF
from dpaudit.vocabulary.errors import Unresolvable
from dpaudit.vocabulary.mechanism import DistributedDiscreteGaussian, Skellam

Array = NDArray[np.float64]
ScalarNoise = Skellam | DistributedDiscreteGaussian

# Tables reach as far as this probability, whatever tail is asked for: one table per noise. At a
# smaller delta the other accountants' bounds remain.
LEAST_TAIL = 1e-120
LARGEST_REACH = 120_000  # of a table: the number of values on one side
LARGEST_CONVOLUTION = 4_000
LEAST_LOG_MASS = -650.0  # of a convolution; smaller masses lose digits by underflow
LARGEST_EXPONENT = 750.0  # of a share's mass that does not underflow
BESSEL_MARGIN = 12  # steps of the recurrence before its first value, in standard deviations
# Sums of wide shares are one discrete Gaussian up to less than this, in nats.
CLOSE_SUM = 1e-12


@dataclass(frozen=True)
class NoiseTable:
    """Masses of symmetric noise at 0, 1, ..., with a sum over the whole table of 1.

    Attributes:
        log_masses: Logarithms of the masses, shape ``(k,)``.
        log_error: Bound on the error of each logarithm, up to one constant that all share.
    """

    log_masses: Array
    log_error: float

    def at(self, x: NDArray[np.int64]) -> Array:
        """Return the logarithms of the masses at integers.

        Args:
            x: Integers of modulus below the length of the table, shape ``(n,)``.

        Returns:
            Logarithms, shape ``(n,)``.
        """
        return np.asarray(self.log_masses[np.abs(x)])


def noise_reach(noise: ScalarNoise, tail: float) -> int:
    """Return an integer that the noise exceeds in modulus with probability at most ``tail``.

    Sums of discrete Gaussians are subgaussian with the sum of the squared scales. For Skellam
    noise of variance v, P[X >= k] <= exp(v (cosh t - 1) - t k) with sinh t = k/v.

    Args:
        noise: Noise on one coordinate.
        tail: Probability, above 0 and below 1.

    Returns:
        The integer, at least 1.
    """
    log_tail = -math.log(tail / 2) + 1e-9
    match noise:
        case DistributedDiscreteGaussian():
            return math.ceil(math.sqrt(2 * noise_square(noise) * log_tail)) + 1
        case Skellam(variance):
            return math.ceil(_skellam_reach(variance, log_tail)) + 1


def _skellam_reach(variance: float, log_tail: float) -> float:
    """Return k with v h(k/v) >= log_tail, h(u) = u asinh(u) - sqrt(1 + u^2) + 1."""
    # h is below u^2/2, so the first value is never too far.
    reach = math.sqrt(2 * variance * log_tail)
    while True:
        u = reach / variance
        # sqrt(1 + u^2) - 1 = u^2/(sqrt(1 + u^2) + 1) does not cancel.
        rate = u * math.asinh(u) - u * u / (math.sqrt(1 + u * u) + 1)
        if variance * rate * (1 - 1e-9) >= log_tail:
            return reach
        reach = 1.02 * reach + 0.5


@lru_cache(maxsize=64)
def noise_table(noise: ScalarNoise, shift: int) -> NoiseTable:
    """Return the masses of noise on one coordinate, as far as a moved copy needs them.

    Args:
        noise: The noise; its sensitivities play no part.
        shift: Distance of the moved copy, at least 1.

    Returns:
        The table, up to ``shift`` beyond the reach of ``LEAST_TAIL``.

    Raises:
        Unresolvable: If the table is too long, or the noise too narrow for double precision.
    """
    reach = shift + noise_reach(noise, LEAST_TAIL)
    if not reach < LARGEST_REACH:
        raise Unresolvable(
            f"noise and sensitivity that reach {reach:g} need a table of more than "
            f"{LARGEST_REACH} values: use the accountant rdp"
        )
    match noise:
        case Skellam(variance):
            return _skellam_table(variance, reach)
        case DistributedDiscreteGaussian(scale, shares):
            if sum_oscillation(scale, shares) < CLOSE_SUM:
                return _close_sum_table(noise, reach)
            return _convolved_table(scale, shares, reach)


def _normalised(log_masses: Array, log_error: float) -> NoiseTable:
    """Return the table whose masses on both sides add up to 1; rounding joins the error."""
    top = float(log_masses[0])  # symmetric and log-concave: the largest
    weights = np.exp(log_masses - top)
    total = top + math.log(2 * float(weights[1:].sum()) + float(weights[0]))
    rounding = UNIT_ROUNDOFF * (len(log_masses) + 8 + 2 * float(np.abs(log_masses).max()))
    return NoiseTable(log_masses - total, log_error + rounding)


def _close_sum_table(noise: DistributedDiscreteGaussian, reach: int) -> NoiseTable:
    """Return the discrete Gaussian that a sum of wide shares equals up to equation 6."""
    x = np.arange(reach + 1, dtype=np.float64)
    logs = -(x * x) / (2 * noise_square(noise))
    rounding = 4 * UNIT_ROUNDOFF * (1 + float(-logs[-1]))
    return _normalised(logs, sum_oscillation(noise.scale, noise.shares) + rounding)


def _skellam_table(variance: float, reach: int) -> NoiseTable:
    """Return the Skellam masses by ratios of Bessel functions, r_k = I_k(v)/I_(k-1)(v).

    The recurrence r_k = 1/(a_k + r_(k+1)), a_k = 2 k/v, starts far out from the middle of
    0 <= r_k <= 1. It turns an error e into r s e, with r the computed and s the exact value of
    r_k, and s <= min(1, r/(1 - r e)). Where a_k is small,
    t_k = 1 - r_k = (a_k - t_(k+1)) / (1 + a_k - t_(k+1)) keeps the digits of log r_k.
    """
    first = reach + BESSEL_MARGIN + math.ceil(BESSEL_MARGIN * math.sqrt(variance))
    log_ratios, errors = np.empty(reach), np.empty(reach)
    ratio, t, error = 0.5, 0.5, 0.5
    for k in range(first, 0, -1):
        a = 2 * k / variance
        if a < 1:
            t = (a - t) / (1 + (a - t))
            ratio, log_ratio = 1 - t, math.log1p(-t)
            rounding = 8 * UNIT_ROUNDOFF * (a + abs(t))
        else:
            log_ratio = -math.log(a + ratio)
            ratio = 1 / (a + ratio)
            t = 1 - ratio
            rounding = 6 * UNIT_ROUNDOFF * ratio
        exact = min(1.0, ratio / (1 - min(ratio * error, 0.6)))  # at least the exact ratio
        error = (ratio * exact * error + rounding) * ROUND_UP
        if k <= reach:
            log_ratios[k - 1] = log_ratio
            errors[k - 1] = error / ratio * 1.01 + 4 * UNIT_ROUNDOFF * abs(log_ratio)
    logs = np.concatenate([[0.0], np.cumsum(log_ratios)])
    log_error = float(errors.sum()) * ROUND_UP + 2 * UNIT_ROUNDOFF * float(np.abs(logs).sum())
    if not (float(errors.max()) < 1e-3 and log_error < 1e-3):
        raise Unresolvable(
            f"Skellam noise of variance {variance:g} cannot be tabulated up to {reach} in double "
            "precision: use the accountant rdp"
        )
    return _normalised(logs, log_error)


@lru_cache(maxsize=64)
def _convolved_table(scale: float, shares: int, reach: int) -> NoiseTable:
    """Return the masses of a sum of discrete Gaussians by direct convolution.

    All terms are positive, so a convolution of n terms has a relative error of about n roundings.
    What a cut at ``width`` removes, over all partial sums, is below e^-690 (equation 8).
    """
    square = shares * scale * scale
    width = math.ceil(math.sqrt(2 * square * (690 + math.log(4 * shares)))) + 1
    if not width < LARGEST_CONVOLUTION:
        raise Unresolvable(
            f"a sum of {shares} discrete Gaussians needs a convolution of {width} values: use "
            "the accountant rdp"
        )
    masses, log_error = _convolution_power(scale, shares, width)
    least = float(masses[width + reach]) if reach <= width else 0.0
    if not least > math.exp(LEAST_LOG_MASS):
        raise Unresolvable(
            f"a sum of {shares} discrete Gaussians of scale {scale:g} underflows at {reach}: use "
            "the accountant rdp"
        )
    return _normalised(np.log(masses[width : width + reach + 1]), log_error + 1e-15)


def _convolution_power(scale: float, shares: int, width: int) -> tuple[Array, float]:
    """Return the sum's masses from -width to width, and the error of their logarithms."""
    x = np.arange(-width, width + 1, dtype=np.float64)
    power = np.exp(-((x / scale) ** 2) / 2)
    power /= power.sum()
    power_error = UNIT_ROUNDOFF * (8 + 4 * LARGEST_EXPONENT)  # normalisation is common to all
    once = UNIT_ROUNDOFF * (2 * width + 4)
    total, total_error, left = None, 0.0, shares
    while left:
        if left % 2:
            first = total is None
            total = power if total is None else np.convolve(total, power, mode="same")
            total_error += power_error + (0.0 if first else once)
        left //= 2
        if left:
            power = np.convolve(power, power, mode="same")
            power_error = 2 * power_error + once
    assert total is not None
    return total, total_error * ROUND_UP
