"""Normal tails and factorials of the C library, for arrays.

scipy.special has them all, and takes longer to import than a question takes to answer:
`dpaudit epsilon` would spend half of its time on that.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

SPLITTER = 2.0**27 + 1
FAR = 26.0  # beyond it erfc underflows, and seven terms of its expansion are exact to a double
HALF_ROOT = math.sqrt(0.5)


def _over_arrays(function: Callable[[float], float]) -> Callable[[ArrayLike], Array]:
    each: Callable[[ArrayLike], Any] = np.frompyfunc(function, 1, 1)

    def over(values: ArrayLike) -> Array:
        with np.errstate(over="ignore"):  # -x^2/2 of a huge x is -inf
            return np.asarray(each(values), dtype=np.float64)

    return over


def _square(x: float) -> tuple[float, float]:
    """Return x^2 as a double and what it lacks (Dekker 1971)."""
    high = SPLITTER * x - (SPLITTER * x - x)
    low = x - high
    square = x * x
    return square, ((high * high - square) + 2 * high * low) + low * low


def erfcx(x: float) -> float:
    """Return e^(x^2) erfc(x), for x above -26, to a few units in the last place."""
    if x < FAR:
        square, rest = _square(x)
        return math.exp(square) * (1 + rest) * math.erfc(x)
    term, total, square = 1.0, 1.0, x * x
    for k in range(1, 8):
        term *= -(2 * k - 1) / (2 * square)
        total += term
    return total / (x * math.sqrt(math.pi))


def _log_ndtr(x: float) -> float:
    if x > -1:
        return math.log1p(-0.5 * math.erfc(x * HALF_ROOT))
    return -0.5 * x * x + math.log(0.5 * erfcx(-x * HALF_ROOT)) if x > -math.inf else -math.inf


def _ndtr(x: float) -> float:
    return 0.5 * math.erfc(-x * HALF_ROOT)


log_gamma = _over_arrays(math.lgamma)
"""The logarithm of the gamma function, of positive numbers."""

ndtr = _over_arrays(_ndtr)
"""The standard normal distribution function."""

log_ndtr = _over_arrays(_log_ndtr)
"""Its logarithm, without underflow."""


def logsumexp(values: Array, axis: int | None = None) -> Array:
    """Return log sum e^values along ``axis``, infinities of either sign included."""
    peak = np.clip(np.max(values, axis=axis, keepdims=True), -1e300, 1e300)
    with np.errstate(divide="ignore"):
        total = np.log(np.sum(np.exp(values - peak), axis=axis, keepdims=True)) + peak
    return np.asarray(total.squeeze() if axis is None else total.squeeze(axis))
