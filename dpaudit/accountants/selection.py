"""The cost of private selection: the best of a random number of runs.

With D_a the base's Renyi divergence and K the number of trials (Papernot & Steinke 2022,
arXiv:2110.03620), at order a:

Theorem 2   truncated negative binomial K of shape h and success g, for any order b > 1:
            D_a + (1 + h) ((1 - 1/b) D_b + log(1/g)/b) + log E[K]/(a - 1).
Theorem 6   Poisson K of mean m, at e with exp(e) = 1 + 1/(a - 1), delta that of the base at e:
            D_a + m delta + log(m)/(a - 1), for the moment of all runs that choose something;
            choosing nothing adds its own probability exp(-m) to that moment.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dpaudit.accountants.conversion import to_delta
from dpaudit.vocabulary.mechanism import NegativeBinomialTrials, PoissonTrials, Trials

Array = NDArray[np.float64]

ROUND_UP = 1 + 1e-13


class Run(NamedTuple):
    """Upper ends of one run's divergence: at the orders asked for, and at auxiliary ones."""

    orders: Array
    divergence: Array
    auxiliary_orders: Array
    auxiliary: Array


def selected(trials: Trials, run: Run) -> Array:
    """Return upper ends of the selection's divergence at ``run.orders``.

    Args:
        trials: The law of the number of runs.
        run: What one run costs.
    """
    match trials:
        case NegativeBinomialTrials(shape, success):
            return _negative_binomial(shape, success, run)
        case PoissonTrials(mean):
            return _poisson(mean, run)


def expected_trials(shape: float, success: float) -> float:
    """Return E[K] of the truncated negative binomial law (Definition 1 there), rounded up."""
    exponent = -shape * math.log(success)
    if abs(exponent) < 1e-8:  # next to the logarithmic law; x/(1 - e^-x) <= 1 + |x| there
        mean = (1 - success) / (success * -math.log(success)) * (1 + abs(exponent))
    else:
        mean = shape * (1 - success) / (success * -math.expm1(-exponent))
    return mean * (1 + 1e-12)


def _negative_binomial(shape: float, success: float, run: Run) -> Array:
    log_inverse = -math.log(success)
    b = run.auxiliary_orders
    # The limit b = 1 asks for nothing of the run.
    once = min(log_inverse, float(((1 - 1 / b) * run.auxiliary + log_inverse / b).min()))
    log_mean = max(0.0, math.log(expected_trials(shape, success)))
    return (run.divergence + (1 + shape) * once + log_mean / (run.orders - 1)) * ROUND_UP


def _poisson(mean: float, run: Run) -> Array:
    at = -np.log1p(-1 / run.orders)[:, None] * (1 - 1e-15)
    deltas = to_delta(run.auxiliary_orders, run.auxiliary, at, resolution=1e-3).min(axis=1)
    chosen = math.log(mean) + (run.orders - 1) * (run.divergence + mean * deltas)
    exponent = np.logaddexp(-mean, chosen) + 1e-14 * (1 + mean + np.abs(chosen))
    return np.asarray(np.maximum(0.0, exponent) / (run.orders - 1) * ROUND_UP)
