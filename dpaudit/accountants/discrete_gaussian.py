"""Exact epsilon of one discrete Gaussian release, by summing its law.

With the loss rising in the output, the worst events are half lines, so that
epsilon(delta) is the largest over whole thresholds x of log((P[X >= x] - delta)/Q[X >= x]);
P is Q moved by the sensitivity (Canonne, Kamath & Steinke 2020, arXiv:2004.00010).
"""

from __future__ import annotations

import math

import numpy as np

UNIT_ROUNDOFF = 2.0**-53
LEAST_SCALE = 1e-3  # below it the exponents leave the range of doubles
LARGEST_SCALE = 20_000.0  # beyond it the sum has millions of terms
NEGLIGIBLE = 45.0


def epsilon(scale: float, sensitivity: int, delta: float) -> float:
    """Return an upper bound of epsilon at ``delta``, infinite where it takes no sum."""
    if not (LEAST_SCALE <= scale <= LARGEST_SCALE and sensitivity <= 50 * LARGEST_SCALE):
        return math.inf
    # Thresholds beyond this one are reached under P with less than delta.
    reach = math.ceil(scale * math.sqrt(2 * (NEGLIGIBLE - math.log(delta)))) + 2
    x = np.arange(-reach, sensitivity + reach + 1, dtype=np.float64)
    weight = np.exp(-((x / scale) ** 2) / 2)
    tails = np.cumsum(weight[::-1])[::-1]
    whole = float(tails[0])
    relative = UNIT_ROUNDOFF * (len(x) + 16) + 4 * UNIT_ROUNDOFF * (reach / scale) ** 2
    # P[X >= x] = Q[X >= x - sensitivity]; what lies beyond all is far below delta.
    seen = tails[: len(x) - sensitivity] / whole * (1 + 2 * relative)
    seen += delta * math.exp(-NEGLIGIBLE / 2)
    log_base = -((x[sensitivity:] / scale) ** 2) / 2
    with np.errstate(divide="ignore"):
        log_tails = np.logaddexp.accumulate(log_base[::-1])[::-1]
    spare = seen - delta
    worst = spare > 0
    if not worst.any():
        return 0.0
    log_rounding = 4 * UNIT_ROUNDOFF * (len(x) + float(np.abs(log_base).max()))
    least = log_tails[worst] - math.log(whole) - log_rounding - relative
    largest = float((np.log(spare[worst]) - least).max())
    return max(0.0, largest * (1 + 1e-14) + 1e-14)
