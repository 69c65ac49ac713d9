"""Bound moments of sampled Gaussians: sums at integer orders, the trapezoid rule at real ones.

With shift s (in standard deviations) and r = exp(s Y - s^2/2), Y ~ N(0, 1), the moments are
E[r^k] = exp(k (k-1) s^2/2). At integer orders a, with weights w_k = C(a, k) (1-q)^(a-k) q^k,

    add or remove:  E[g_a(q (r - 1))] = sum_(k >= 2) w_k (e^(k (k-1) s^2/2) - 1)

(Mironov, Talwar & Zhang 2019, arXiv:1908.10530, equation 5, less its terms that sum to 1: the
moments accountant of Abadi et al. 2016). For replace-one, E[g_a(q (r - 1)); r > 1] is the same sum
over E[r^k - 1 - k (r - 1); r > 1], which normal tails give.

At real orders the integral over y is computed by the trapezoid rule. The integrand is analytic in
a strip around the real line, which bounds the error of the rule (Trefethen & Weideman 2014,
Theorem 5.1).
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from dpaudit.accountants.numerics import log_gamma, log_ndtr, logsumexp, ndtr
from dpaudit.accountants.rdp.moment_excess import (
    Array,
    excess_rounding,
    log_mixture_ratio,
    log_moment_excess,
)
from dpaudit.accountants.rounding_margins import UNIT_ROUNDOFF

LARGEST_INTEGER_ORDER = 1024
MOST_NODES = 400_000
LOG_PRECISION = 45.0  # minus the log of the rule's error relative to moment - 1
STRIP_SHARE = 0.999  # of the strip in which the mixture has no zero: |Im y| < pi/s

ArrayBounds = tuple[Array, Array]  # lower and upper bounds of log(moment - 1), one per order


class _BinomialTerms(NamedTuple):
    """The binomial terms k = 2..a of several integer orders, concatenated."""

    k: Array
    order: Array
    log_choose: Array
    starts: np.ndarray


@lru_cache(maxsize=64)
def _binomial_terms(orders: tuple[int, ...]) -> _BinomialTerms:
    """Return the terms of ``orders``, with log C(a, k) of each and the start of each order."""
    k = np.concatenate([np.arange(2, a + 1) for a in orders]).astype(float)
    order = np.concatenate([np.full(a - 1, a) for a in orders]).astype(float)
    log_factorial = log_gamma(np.arange(max(orders) + 1) + 1.0)
    a, b = order.astype(int), k.astype(int)
    log_choose = log_factorial[a] - log_factorial[b] - log_factorial[a - b]
    return _BinomialTerms(k, order, log_choose, np.cumsum([0, *(a - 1 for a in orders[:-1])]))


def binomial_sums(rate: float, orders: Array, log_moments: Array) -> ArrayBounds:
    """Bound log sum_(k >= 2) C(a, k) (1-q)^(a-k) q^k e^(log_moments[k]).

    Args:
        rate: The sampling rate q, above 0 and below 1.
        orders: Integers a from 2 to ``LARGEST_INTEGER_ORDER``, shape ``(n,)``.
        log_moments: At index k, the logarithm of the k-th moment, up to the largest order.

    Returns:
        Lower and upper bounds, each of shape ``(n,)``.
    """
    terms = _binomial_terms(tuple(int(a) for a in orders))
    k = terms.k
    # log of C(a, k) (1-q)^(a-k) q^k e^(log_moments[k]); sums are scaled by the largest term.
    logs = terms.log_choose + (terms.order - k) * math.log1p(-rate) + k * math.log(rate)
    logs += log_moments[k.astype(int)]
    top = np.maximum.reduceat(logs, terms.starts)
    counts = np.diff(np.append(terms.starts, len(k)))
    sums = np.add.reduceat(np.exp(logs - np.repeat(top, counts)), terms.starts)
    total = top + np.log(sums)
    # Each logarithm is a sum of parts no larger than these, each with an error of a few units.
    parts = 6 * orders * np.log(orders + 1) + np.abs(log_moments[orders.astype(int)])
    parts += orders * (abs(math.log1p(-rate)) + abs(math.log(rate)))
    slack = 8 * UNIT_ROUNDOFF * (orders + parts + np.abs(total))
    return total - slack, total + slack


def log_raw_moments(shift: float, largest: int) -> Array:
    """Compute log(E[r^k] - 1) with E[r^k] = exp(k (k-1) s^2/2).

    Args:
        shift: The shift s, in standard deviations.
        largest: The largest k.

    Returns:
        The values for k = 0 .. ``largest``; -inf where the moment is 1.
    """
    k = np.arange(largest + 1, dtype=np.float64)
    exponent = k * (k - 1) * (shift * shift / 2)
    with np.errstate(divide="ignore", over="ignore"):
        return np.where(exponent < 700, np.log(np.expm1(exponent)), exponent)


def log_upper_moments(shift: float, largest: int) -> ArrayBounds:
    """Bound log E[r^k - 1 - k (r - 1); r > 1] by normal tails.

    r > 1 is y > s/2, so E[r^k; r > 1] = e^(k (k-1) s^2/2) Phi((k - 1/2) s). The result is also
    below E[r^k] - 1.

    Args:
        shift: The shift s, in standard deviations.
        largest: The largest k.

    Returns:
        Lower and upper bounds for k = 0 .. ``largest``; -inf for k < 2.
    """
    k = np.arange(largest + 1, dtype=np.float64)
    exponent = k * (k - 1) * (shift * shift / 2)
    likely, unlikely = float(ndtr(shift / 2)), float(ndtr(-shift / 2))
    log_growth = exponent + log_ndtr((k - 0.5) * shift)
    relative = 64 * UNIT_ROUNDOFF * (1 + exponent)
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        growth = np.exp(log_growth)
        rest = growth - unlikely - k * (likely - unlikely)
        slack = growth * relative + 64 * UNIT_ROUNDOFF * (1 + k)
        small = exponent < 600
        lower = np.where(small, np.log(np.maximum(rest - slack, 0.0)), log_growth - relative)
        upper = np.where(small, np.log(rest + slack), log_growth + relative)
    whole = log_raw_moments(shift, largest) + relative
    counts = k >= 2
    return (
        np.where(counts, np.minimum(lower, whole), -math.inf),
        np.where(counts, np.minimum(upper, whole), -math.inf),
    )


def add_remove_at_integers(rate: float, shift: float, orders: Array) -> ArrayBounds:
    """Bound log E[g_a(q (r - 1))] at integer orders.

    Args:
        rate: The sampling rate q, above 0 and below 1.
        shift: The shift s, in standard deviations.
        orders: Integers from 2 to ``LARGEST_INTEGER_ORDER``, shape ``(n,)``.

    Returns:
        Lower and upper bounds, each of shape ``(n,)``.

    References:
        Mironov, Talwar & Zhang (2019), arXiv:1908.10530, equation 5.
    """
    return binomial_sums(rate, orders, log_raw_moments(shift, int(orders.max())))


def replace_at_integers(rate: float, shift: float, orders: Array) -> Array:
    """Bound log E[g_a(q (r - 1)) + g_(1-a)(q (r - 1)); r > 1] at integer orders, from above.

    g_(1-a)(x) is at most a (a-1) x^2/2, and at most (a-1) x.

    Args:
        rate: The sampling rate q, above 0 and below 1.
        shift: The shift s by which a replacement moves the sum, in standard deviations.
        orders: Integers from 2 to ``LARGEST_INTEGER_ORDER``, shape ``(n,)``.

    Returns:
        Upper bounds, shape ``(n,)``.
    """
    moments = log_upper_moments(shift, int(orders.max()))[1]
    forth = binomial_sums(rate, orders, moments)[1]
    total_variation = float(ndtr(shift / 2)) - float(ndtr(-shift / 2))
    square = np.log(orders * (orders - 1) / 2) + 2 * math.log(rate) + moments[2]
    line = np.log(orders - 1) + math.log(rate) + math.log(total_variation + UNIT_ROUNDOFF)
    return np.asarray(np.logaddexp(forth, np.minimum(square, line)) + 1e-14)


def poisson_replace_at_integers(rate: float, shift: float, orders: Array) -> Array:
    """Bound log(moment - 1) of a record replaced in a Poisson sample, from above.

    Let H1 and H2 be the profiles at shifts s (record removed) and 2 s (replaced). The sample's
    profile at t = 1 - q + q u is at most q ((1 - b) H1(u) + b H2(u)), b = t/u. For small q, only
    1/u of H2 remains. The moment exceeds 1 by the integral of a (a-1) q^2 (t^(a-2) + t^(-a-1))
    times that bracket over u >= 1. With the binomial sum of t^(a-2), and t^(-a-1) <= 1, it is a
    sum over the integrals of u^k H(u).

    Args:
        rate: The sampling rate q, above 0 and below 1.
        shift: The shift s by which a removal moves the sum, in standard deviations.
        orders: Integers from 2 to ``LARGEST_INTEGER_ORDER``, shape ``(n,)``.

    Returns:
        Upper bounds, shape ``(n,)``.

    References:
        Balle, Barthe & Gaboardi (2018), arXiv:1807.01647, Theorem 2.
    """
    largest = int(orders.max())
    removed, replaced = (_profile_integrals(times * shift, largest) for times in (1, 2))
    with np.errstate(divide="ignore", invalid="ignore"):
        # u^k (1 - 1/u) H1, and u^(k-1) H2 + q u^k H2 less q u^(k-1) H2; at index k + 1.
        less = np.minimum(removed[0][:-1] - removed[1][1:], 0.0)
        first = math.log1p(-rate) + removed[1][1:] + np.log(-np.expm1(less))
    first = np.where(np.isnan(first), -math.inf, first)
    second = math.log1p(-rate) + replaced[1][:-1]
    third = math.log(rate) + replaced[1][1:]
    brackets = np.logaddexp(first, np.logaddexp(second, third)) + 1e-14
    back = np.full(len(orders), brackets[0])
    forth = np.full(len(orders), brackets[0])
    beyond = orders > 2
    if beyond.any():
        powers = orders[beyond] - 2
        forth[beyond] = _powers_of_mixture(rate, powers, brackets)
    scale = np.log(orders * (orders - 1)) + 2 * math.log(rate)
    return np.asarray(scale + np.logaddexp(forth, back) + 1e-14)


def _powers_of_mixture(rate: float, powers: Array, log_weights: Array) -> Array:
    """Return, rounded up, log sum_(k >= 0) C(n, k) (1-q)^(n-k) q^k e^(log_weights[k])."""
    total = np.logaddexp(
        powers * math.log1p(-rate) + log_weights[0],
        np.log(powers) + (powers - 1) * math.log1p(-rate) + math.log(rate) + log_weights[1],
    ) + 8 * UNIT_ROUNDOFF * powers * (1 + abs(math.log1p(-rate)))
    more = powers >= 2
    if more.any():
        rest = binomial_sums(rate, powers[more], log_weights)[1]
        total[more] = np.logaddexp(total[more], rest)
    return np.asarray(total)


def _profile_integrals(shift: float, largest: int) -> ArrayBounds:
    """Bound log of the integral of u^k H(u) over u >= 1, for k = -1 .. largest - 2.

    For k >= 0 it is E[r^(k+2) - 1 - (k+2) (r - 1); r > 1]/((k+1) (k+2)); for k = -1 it is
    E[r log r - r + 1; r > 1].
    """
    k = np.arange(2, largest + 1, dtype=np.float64)
    lower, upper = (ends[2:] - np.log(k * (k - 1)) for ends in log_upper_moments(shift, largest))
    likely, unlikely = float(ndtr(shift / 2)), float(ndtr(-shift / 2))
    density = math.exp(-shift * shift / 8) / math.sqrt(2 * math.pi)
    # E[r log r - r + 1; r > 1], with Phi = normal distribution function and phi its density:
    # s^2/2 Phi(s/2) + s phi(s/2) - (Phi(s/2) - Phi(-s/2)).
    first = shift * shift / 2 * likely + shift * density - (likely - unlikely)
    slack = 64 * UNIT_ROUNDOFF * (1 + shift * shift)
    low = math.log(first - slack) if first > slack else -math.inf
    high = math.log(first + slack)
    return np.append(low, lower).astype(float), np.append(high, upper).astype(float)


def add_remove_at_reals(rate: float, shift: float, orders: Array) -> ArrayBounds | None:
    """Bound log E[g_a(q (r - 1))] at real orders by the trapezoid rule.

    With spacing h, nodes y_j and density phi, the sum is h sum_j phi(y_j) g_a(q (r(y_j) - 1)). The
    errors beyond the nodes and of the rule are added to the upper bound and subtracted from the
    lower one.

    Args:
        rate: The sampling rate q, above 0 and below 1.
        shift: The shift s, in standard deviations.
        orders: Real orders above 1, shape ``(n,)``.

    Returns:
        Lower and upper bounds, each of shape ``(n,)``; None where it takes too many nodes.

    References:
        Trefethen & Weideman (2014), Theorem 5.1.
    """
    # The moment exceeds 1 by about (q s)^2, so the rule needs that many more digits. A spacing
    # of 2 pi c/(c^2/2 + digits) makes its error exp(c^2/2 - 2 pi c/h) = exp(-digits).
    digits = LOG_PRECISION - 2 * math.log(rate) - 2 * math.log(min(1.0, shift))
    strip = min(math.sqrt(2 * digits), STRIP_SHARE * math.pi / shift)
    spacing = 2 * math.pi * strip / (strip * strip / 2 + digits)
    margin = math.sqrt(2 * digits) + 1
    largest = float(orders.max())
    if not (largest * shift + 2 * margin) / spacing * len(orders) < MOST_NODES:
        return None
    first, last = math.floor(-margin / spacing), math.ceil((largest * shift + margin) / spacing)
    y = spacing * np.arange(first, last + 1, dtype=np.float64)
    z = log_mixture_ratio(rate, shift * (y - shift / 2))
    logs = log_moment_excess(orders[:, None], z) - y * y / 2
    total = logsumexp(logs, axis=1) + math.log(spacing / math.sqrt(2 * math.pi))
    relative = excess_rounding(orders, float(np.abs(z).max()), 16 * UNIT_ROUNDOFF * (1 + shift))
    relative += UNIT_ROUNDOFF * (len(y) + 4 * float(y[-1]) ** 2)
    log_rest = _log_tail_beyond_nodes(rate, shift, orders, (float(y[0]), float(y[-1])), total)
    log_rest = np.logaddexp(log_rest, _log_rule_error(rate, strip, spacing, orders, total))
    share = np.exp(np.minimum(log_rest - total, 0.0))
    with np.errstate(divide="ignore"):
        lower = np.where(share < 1, total + np.log1p(-share) - relative, -math.inf)
    return lower, np.logaddexp(total, log_rest) + relative


def _log_rule_error(
    rate: float, strip: float, spacing: float, orders: Array, log_total: Array
) -> Array:
    """Bound the trapezoid rule's errors of A^a, of 1 and of r, each relative to its mean.

    Shifted by i c in the strip, no modulus grows by more than exp(c^2/2). So the error of the
    rule is at most 2 exp(c^2/2)/(exp(2 pi c/h) - 1) of the mean.
    """
    exponent = 2 * math.pi * strip / spacing - strip * strip / 2
    return np.asarray(
        math.log(2.1) - exponent + np.logaddexp(log_total, np.log(3 + 2 * orders * rate))
    )


def _log_tail_beyond_nodes(
    rate: float, shift: float, orders: Array, ends: tuple[float, float], log_total: Array
) -> Array:
    """Bound the integral beyond the nodes.

    Left of them g_a is at most a q. Right of them it is at most A^a, whose mean has, to the
    power 1/a, a bound by Minkowski's inequality.
    """
    low, high = ends
    left = np.log(orders * rate) + log_ndtr(low)
    stays = math.log1p(-rate) + log_ndtr(-high) / orders
    grows = math.log(rate) + (orders - 1) * (shift * shift / 2)
    grows = grows + log_ndtr(orders * shift - high) / orders
    return np.asarray(np.logaddexp(left, orders * np.logaddexp(stays, grows)) + 1e-12)
