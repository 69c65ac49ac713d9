"""The least noise for a target epsilon: conservative, the answer itself was priced."""

from __future__ import annotations

import math
from collections.abc import Callable

from dpaudit.vocabulary.errors import InvalidArgument, require_positive

LEAST, MOST = 1e-2, 1e6


def noise_multiplier(
    upper_epsilon: Callable[[float], float], target_epsilon: float, *, resolution: float = 1e-4
) -> float:
    """Return a noise multiplier whose epsilon was seen to be at most ``target_epsilon``.

    Args:
        upper_epsilon: Upper bound on epsilon as a function of the noise multiplier;
            falls as noise grows (true of Gaussians, sampled or not).
        target_epsilon: Above 0 and finite.
        resolution: How far above the least possible the answer may lie, relatively.

    Raises:
        InvalidArgument: the target is out of range, or no noise up to 1e6 meets it.
    """
    require_positive("target_epsilon", target_epsilon)
    low = high = 1.0
    while not upper_epsilon(high) <= target_epsilon:
        low, high = high, 2 * high
        if high > MOST:
            raise InvalidArgument(
                "target_epsilon",
                target_epsilon,
                f"reachable with a noise multiplier below {MOST:g}",
            )
    while low >= high and low > LEAST:
        low = high / 2
        if upper_epsilon(low) <= target_epsilon:
            high = low
    while high / low > 1 + resolution:
        middle = math.sqrt(low * high)
        if upper_epsilon(middle) <= target_epsilon:
            high = middle
        else:
            low = middle
    return high
