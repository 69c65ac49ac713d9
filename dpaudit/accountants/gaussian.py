"""Exact delta(epsilon) of composed Gaussians: the yardstick for every accountant.

Gaussians with multipliers s_i on the whole data set compose to one with
mu = sqrt(sum 1/s_i^2).
Source: Balle & Wang 2018, arXiv:1805.06530, Theorem 8; Dong, Roth & Su 2019, Corollary 3.3.
"""

from __future__ import annotations

import math

from scipy.special import log_ndtr

from dpaudit.accountants.invert import largest_with_at_least, smallest_with_at_most
from dpaudit.vocabulary.bound import Bound

# Each special function and each product below is good to a few units in the last
# place; arguments of size x lose x times that in the exponent. One part in 1e12
# of (1 + the exponents in play) covers both with room.
RELATIVE_SLACK = 1e-12


def log_delta(epsilon: float, *, mu: float) -> float:
    """Return log delta of mu-GDP at ``epsilon``, natural logarithm, without rounding slack."""
    log_gain = float(log_ndtr(mu / 2 - epsilon / mu))
    # exp(epsilon) overflows at 710, inside the range users ask for: stay in logs.
    log_ratio = epsilon + float(log_ndtr(-mu / 2 - epsilon / mu)) - log_gain
    if log_ratio >= 0:  # gain and loss agree to the last digit
        return -math.inf
    return log_gain + math.log(-math.expm1(log_ratio))


def _slack(epsilon: float, mu: float) -> float:
    # The difference of gain and loss cancels by the factor 1/(1 - ratio).
    exponents = 1 + epsilon + (mu / 2 + epsilon / mu) ** 2
    ratio_gap = -math.expm1(
        min(
            -1e-300,
            epsilon
            + float(log_ndtr(-mu / 2 - epsilon / mu))
            - float(log_ndtr(mu / 2 - epsilon / mu)),
        )
    )
    return RELATIVE_SLACK * exponents / max(ratio_gap, 1e-300)


def delta(epsilon: float, *, mu: float) -> Bound:
    """Return the interval of delta(epsilon) for mu-GDP; ``epsilon >= 0``, ``mu > 0``."""
    log_value, slack = log_delta(epsilon, mu=mu), _slack(epsilon, mu)
    upper = min(1.0, math.exp(min(0.0, log_value + slack)))
    return Bound(math.exp(log_value - slack), upper)


def epsilon(delta_target: float, *, mu: float) -> Bound:
    """Return the interval of epsilon(delta) for mu-GDP; ``0 < delta < 1``, ``mu > 0``."""
    log_target = math.log(delta_target)
    # delta(mu^2/2 + k mu) <= ndtr(-k), far below any double at k = 40.
    ceiling = mu * mu / 2 + 40 * mu

    def upper_log_delta(value: float) -> float:
        return log_delta(value, mu=mu) + _slack(value, mu)

    def lower_log_delta(value: float) -> float:
        return log_delta(value, mu=mu) - _slack(value, mu)

    return Bound(
        largest_with_at_least(lower_log_delta, log_target, 0.0, ceiling),
        smallest_with_at_most(upper_log_delta, log_target, 0.0, ceiling),
    )
