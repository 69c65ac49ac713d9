"""Exact delta(epsilon) of composed Gaussians: the yardstick for every accountant.

Gaussians with multipliers s_i on the whole data set compose to one with
mu = sqrt(sum 1/s_i^2). With x = epsilon/mu - mu/2, density phi and Mills' ratio
R(x) = P[N > x]/phi(x),

    delta = P[N > x] - e^epsilon P[N > x + mu] = phi(x) (R(x) - R(x + mu)).

Source: Balle & Wang 2018, arXiv:1805.06530, Theorem 8; Dong, Roth & Su 2019, Corollary 3.3.
"""

from __future__ import annotations

import math

from dpaudit.accountants.invert import largest_with_at_least, smallest_with_at_most
from dpaudit.accountants.special import erfcx, log_ndtr
from dpaudit.vocabulary.bound import Bound

# Special functions here are good to a few units in the last place: 16 covers each.
ROUNDING = 16 * 2.0**-53
FAR_RIGHT = 1e6
LOG_LEAST = -745.0  # below the logarithm of every double
FAR_LEFT = -5.0  # left of it Mills' ratio grows like exp(x^2/2), and tails near 1 do not


def delta(epsilon: float, *, mu: float) -> Bound:
    """Return the interval of delta(epsilon) for mu-GDP; ``epsilon >= 0``, ``mu > 0``."""
    lower, upper = log_delta(epsilon, mu=mu)
    return Bound(math.exp(lower), math.exp(upper))


def epsilon(delta_target: float, *, mu: float) -> Bound:
    """Return the interval of epsilon(delta) for mu-GDP; ``0 < delta < 1``, ``mu > 0``.

    Raises:
        AccountingError: ``mu`` is so large that rounding hides the answer.
    """
    log_target = math.log(delta_target)
    # delta(mu^2/2 + k mu) <= P[N > k], far below any double at k = 40.
    ceiling = mu * mu / 2 + 40 * mu
    upper = smallest_with_at_most(lambda e: log_delta(e, mu=mu)[1], log_target, 0.0, ceiling)
    lower = largest_with_at_least(lambda e: log_delta(e, mu=mu)[0], log_target, 0.0, upper)
    return Bound(lower, upper)


def log_delta(epsilon: float, *, mu: float) -> tuple[float, float]:
    """Return lower and upper ends of log delta, each at most 0."""
    x = epsilon / mu - mu / 2
    if not x < FAR_RIGHT:  # delta is below the least double, and mu or epsilon beyond squares
        return -math.inf, LOG_LEAST
    lower, upper = _by_tails(epsilon, mu) if x < FAR_LEFT else _by_mills_ratio(x, epsilon, mu)
    return min(0.0, lower), min(0.0, upper)


def _by_tails(epsilon: float, mu: float) -> tuple[float, float]:
    """Bound the difference of the two tails, of which the first is nearly 1."""
    log_gain = float(log_ndtr(mu / 2 - epsilon / mu))
    log_ratio = epsilon + float(log_ndtr(-mu / 2 - epsilon / mu)) - log_gain
    reach = mu / 2 + epsilon / mu
    rounding = ROUNDING * (1 + epsilon + reach * reach)
    if not rounding <= 1:  # mu so large that the tails' exponents have no digits left
        return -math.inf, 0.0
    # ratio = e^epsilon P[N > x + mu]/P[N > x] is known up to that in its logarithm.
    least, most = -math.expm1(log_ratio + rounding), -math.expm1(log_ratio - rounding)
    lower = log_gain + math.log(least) - ROUNDING if least > 0 else -math.inf
    return lower, log_gain + math.log(max(most, ROUNDING)) + ROUNDING


def _by_mills_ratio(x: float, epsilon: float, mu: float) -> tuple[float, float]:
    """Bound phi(x) (R(x) - R(x + mu)) by two routes that both hold, and take the tighter."""
    ratio = _mills_ratio(x)
    gap = ratio - _mills_ratio(x + mu)
    rounding = ROUNDING * ratio * (1 + abs(x) + mu)  # x and x + mu are rounded, too
    # -R' falls and is convex (R is completely monotone): midpoint below, trapezoid above.
    least = max(gap - rounding, mu * _slope(x + mu / 2)[0])
    most = min(gap + rounding, mu * (_slope(x)[1] + _slope(x + mu)[1]) / 2)
    exponent = -x * x / 2 - math.log(2 * math.pi) / 2
    slack = ROUNDING * (4 + x * x + abs(x) * (epsilon / mu + mu))
    lower = exponent + math.log(least) - slack if least > 0 else -math.inf
    return lower, exponent + math.log(most) + slack


def _mills_ratio(x: float) -> float:
    return math.sqrt(math.pi / 2) * float(erfcx(x / math.sqrt(2)))


def _slope(x: float) -> tuple[float, float]:
    """Return ends of -R'(x) = 1 - x R(x); far out 1/(x^2 + 3) < -R' < 1/(x^2 + 1)."""
    product = x * _mills_ratio(x)
    rounding = ROUNDING * (1 + abs(product)) * (1 + abs(x))
    least, most = 1 - product - rounding, 1 - product + rounding
    if x > 1:
        least, most = max(least, 1 / (x * x + 3)), min(most, 1 / (x * x + 1))
    return least, most
