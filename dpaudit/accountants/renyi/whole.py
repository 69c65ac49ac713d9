"""Closed divergences of releases of the whole data set, where there is one."""

from __future__ import annotations

import math

import numpy as np

from dpaudit.accountants.renyi.excess import UNIT_ROUNDOFF, Array
from dpaudit.accountants.special import logsumexp

Ends = tuple[Array, Array]  # lower and upper ends of the divergence, one for each order

LEAST_SCALE = 1e-3  # of a discrete Gaussian; next to no noise, nothing is worth a sum


def of_rho(rho: float, orders: Array) -> Ends:
    """Return a rho: the Gaussian of shift sqrt(2 rho), and the most that rho-zCDP allows."""
    with np.errstate(over="ignore"):
        value = orders * rho
    return value * (1 - 1e-15), value * (1 + 1e-15)


def of_laplace(width: float, orders: Array) -> Ends:
    """Return log(a/(2a-1) e^((a-1) w) + (a-1)/(2a-1) e^(-a w))/(a-1), w = sensitivity/scale.

    Mironov 2017, arXiv:1702.07476, Proposition 6. Next to no width it cancels: there the
    divergence of any w-DP release, at most a w^2/2, stands in.
    """
    a = orders
    value = np.logaddexp(
        np.log(a / (2 * a - 1)) + (a - 1) * width, np.log((a - 1) / (2 * a - 1)) - a * width
    ) / (a - 1)
    slack = 16 * UNIT_ROUNDOFF * (1 + a * width + np.abs(np.log(a - 1))) / (a - 1)
    with np.errstate(over="ignore"):
        pure = np.minimum(width, a * (width * width / 2)) * (1 + 1e-15)
    return np.clip(value - slack, 0.0, pure), np.clip(value + slack, 0.0, pure)


def of_bounded_range(epsilon: float, orders: Array) -> Ends:
    """Return the divergence of the worst release whose losses lie within some [t - epsilon, t].

    An exponential mechanism is one (Durfee & Rogers 2019, arXiv:1905.04273), and reaches
    every t. Spread onto the two ends, with u = e^t and c = e^-epsilon, the moment is
    u^(a-1) (1 - c^a - u (c - c^a))/(1 - c), largest at u = (a-1)(1-c^a)/(a (c-c^a)):
    u^(a-1) (1-c^a)/(a (1-c)). It is at most exp(a (a-1) epsilon^2/8) (Cesar & Rogers 2021,
    arXiv:2004.07223, Lemma 3.4).
    """
    a = orders
    rising, falling = -np.expm1(-a * epsilon), -np.expm1(-(a - 1) * epsilon)
    log_u = np.log((a - 1) / a) + np.log(rising) + epsilon - np.log(falling)
    value = log_u + (np.log(rising / a) - math.log(-math.expm1(-epsilon))) / (a - 1)
    slack = 32 * UNIT_ROUNDOFF * (1 + epsilon + np.log(a) + np.abs(np.log(a - 1))) * a / (a - 1)
    with np.errstate(over="ignore"):
        most = np.minimum(epsilon, a * (epsilon * epsilon / 8)) * (1 + 1e-15)
    return np.clip(value - slack, 0.0, most), np.clip(value + slack, 0.0, most)


def of_discrete_gaussian(scale: float, sensitivity: int, orders: Array) -> Ends:
    """Return ends of the divergence: at most the Gaussian's, and so at whole a * sensitivity.

    By completing the square the moment is the Gaussian's times a ratio of two sums of
    exp(-x^2/2 scale^2), over the integers moved by a * sensitivity and over the integers:
    at most 1 (Canonne, Kamath & Steinke 2020, arXiv:2004.00010, Proposition 5). By Poisson's
    summation that ratio is at least 1 - 4.1 exp(-2 pi^2 scale^2).
    """
    shift = sensitivity / scale
    lower, upper = of_rho(shift * shift / 2, orders)
    if scale < LEAST_SCALE:
        return np.zeros_like(lower), upper
    if scale > 1.5:
        least = np.log1p(-4.1 * np.exp(-2 * math.pi**2 * scale * scale)) - UNIT_ROUNDOFF
        return np.maximum(0.0, lower + least / (orders - 1)), upper
    moved = np.remainder(orders * sensitivity, 1.0)[:, None]
    x = np.arange(-80.0, 81.0)
    log_top = logsumexp(-((x - moved) ** 2) / (2 * scale * scale), axis=1)
    log_bottom = float(logsumexp(-(x**2) / (2 * scale * scale)))
    # What is left out is below exp(-79^2/4.5) of what is kept.
    log_ratio = np.minimum(0.0, log_top - log_bottom)
    slack = 1e-13 + 1e-15 * ((1 + orders) * orders * shift * sensitivity / scale - log_ratio)
    below = np.maximum(0.0, lower + (log_ratio - slack) / (orders - 1))
    return below, np.maximum(below, np.minimum(upper, upper + (log_ratio + slack) / (orders - 1)))
