"""delta as a function of the ratio e^epsilon, at any ratio above 0, from both sides.

h(t) = sup over events of P(S) - t Q(S), the worst over all neighbours (P, Q), is convex and
falls from h(0) = 1. At t = e^epsilon >= 1 it is delta(epsilon). As neighbours are so in both
orders, h(t) = 1 - t + t h(1/t): one question to a profile tells of t and of 1/t.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Protocol

from dpaudit.vocabulary.bound import Bound

LARGEST_EPSILON = 700.0  # its exponential is still a double
ROUNDING = 8 * 2.0**-53


class PrivacyProfile(Protocol):
    """What any accountant that knows delta(epsilon) offers."""

    def delta(self, *, epsilon: float) -> Bound:
        """Return the interval of the least delta at ``epsilon``, at least 0."""


@dataclass(frozen=True, order=True)
class HockeyStick:
    """``lower <= h(ratio) <= upper``; the ratio itself is known up to rounding."""

    ratio: float
    lower: float
    upper: float


@dataclass(frozen=True)
class HockeySticks:
    """The hockey sticks of a profile that were asked for so far, each asked for once."""

    profile: PrivacyProfile
    known: dict[float, tuple[HockeyStick, HockeyStick]] = field(default_factory=dict)

    def ask(self, epsilon: float) -> tuple[HockeyStick, HockeyStick]:
        """Return h at e^|epsilon| and at e^-|epsilon|."""
        size = min(abs(epsilon), LARGEST_EPSILON)
        if size not in self.known:
            self.known[size] = _both(size, self.profile.delta(epsilon=size))
        return self.known[size]

    def rising(self) -> list[HockeyStick]:
        """Return all that is known, by rising ratio; h(0) = 1 is known to everyone."""
        found = {stick for pair in self.known.values() for stick in pair}
        return [HockeyStick(0.0, 1.0, 1.0), *sorted(found)]


def _both(epsilon: float, delta: Bound) -> tuple[HockeyStick, HockeyStick]:
    above = HockeyStick(math.exp(epsilon), max(0.0, delta.lower), min(1.0, delta.upper))
    ratio, gain = math.exp(-epsilon), -math.expm1(-epsilon)
    below = HockeyStick(
        ratio,
        (gain + ratio * above.lower) * (1 - ROUNDING),
        min(1.0, (gain + ratio * above.upper) * (1 + ROUNDING)),
    )
    return above, below
