"""The number of trials of a selection, from its mean: dp_accounting books the mean.

The truncated negative binomial law D(shape, success) of Papernot & Steinke 2022
(arXiv:2110.03620, Definition 1) has, with x = -log(success), the mean

    shape (e^x - 1) / (1 - e^(-shape x)),   and (e^x - 1) / x for shape 0,

which rises with x.
"""

from __future__ import annotations

import math

from dpaudit.vocabulary.errors import InvalidArgument
from dpaudit.vocabulary.mechanism import NegativeBinomialTrials, PoissonTrials, Trials

LONGEST = 690.0
"""The largest x: e^-x is a double, and so are all terms of the mean."""

ROUND_OFF = 1e-12
"""More than the relative error of a mean computed in doubles."""


def trials_of_mean(*, shape: float, mean: float) -> Trials | None:
    """Return the law with at least this mean; None where it is one trial for certain.

    A larger mean costs more at the same shape: it is rounded up.

    Args:
        shape: Above -1; infinite for a Poisson number of trials.
        mean: At least 1; above 0 for a Poisson number.
    """
    if shape == math.inf:
        return PoissonTrials(mean)
    if not shape > -1:
        raise InvalidArgument("shape", shape, "above -1, or infinite for Poisson trials")
    if not (1 <= mean < math.inf and mean <= _mean(shape, LONGEST) / (1 + 2 * ROUND_OFF)):
        raise InvalidArgument(
            "mean", mean, f"at least 1 and not too large for a law of shape {shape:g}"
        )
    if mean == 1:
        return None
    low, high = 0.0, LONGEST
    for _ in range(200):  # far more halvings than a double has digits
        middle = (low + high) / 2
        if _mean(shape, middle) >= mean * (1 + ROUND_OFF):
            high = middle
        else:
            low = middle
    return NegativeBinomialTrials(shape, math.exp(-high))


def _mean(shape: float, x: float) -> float:
    if x == 0:
        return 1.0
    # A shape that small is 0 to the last digit, and its products leave the range of doubles.
    below = x if abs(shape) < 1e-200 else -math.expm1(-shape * x) / shape
    return math.expm1(x) / below
