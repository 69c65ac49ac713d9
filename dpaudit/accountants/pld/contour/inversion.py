"""Epsilon at a given delta from certified intervals of delta, where no contour is narrow.

delta(epsilon) falls. So an epsilon whose delta is certainly at most the target is an upper bound,
and one whose delta is certainly at least the target is a lower bound, however it was found.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from dpaudit.accountants.numerics import CertifiedInterval

MAX_EVALUATIONS = 24
MAX_MOVES = 12
LEAST_SHARE = 0.02
"""Share of the bracket by which a guess stays away from both ends."""
FIRST_MOVE, MOVE_GROWTH = 1e-5, 3.0
"""First distance, relative to epsilon, from an epsilon that decides nothing; and its growth."""
LEAST_DELTA = 1e-320
METHOD = "delta at several epsilons"

DeltaFunction = Callable[[float], CertifiedInterval]


@dataclass
class _Bracket:
    """Verified ends of epsilon, with estimates of the logarithm of delta there."""

    lower: float
    upper: float
    lower_log: float
    upper_log: float

    def guess(self, target: float) -> float:
        """Return the epsilon at which a line through the ends meets the target."""
        fall = self.lower_log - self.upper_log
        share = (self.lower_log - target) / fall if fall > 0 else 0.5
        share = min(max(share, LEAST_SHARE), 1 - LEAST_SHARE)
        return self.lower + (self.upper - self.lower) * share

    def take(self, epsilon: float, answer: CertifiedInterval, delta: float) -> bool:
        """Move the end that an interval of delta decides; return whether it decides one."""
        log = 0.5 * sum(math.log(max(end, LEAST_DELTA)) for end in (answer.lower, answer.upper))
        if answer.upper <= delta:
            self.upper, self.upper_log = epsilon, log
        elif answer.lower >= delta:
            self.lower, self.lower_log = epsilon, log
        else:
            return False
        return True


def epsilon_by_inversion(
    delta_at: DeltaFunction,
    delta: float,
    known: CertifiedInterval,
    is_narrow: Callable[[CertifiedInterval], bool],
) -> CertifiedInterval:
    """Narrow an interval of epsilon by evaluations of delta.

    Args:
        delta_at: Function from epsilon, in nats, to the interval of delta.
        delta: The target, in (0, 1).
        known: A valid interval of epsilon with a finite upper end.
        is_narrow: Whether an interval is narrow enough.

    Returns:
        An interval inside ``known``.

    Raises:
        Unresolvable: If an interval of delta cannot be certified.
    """
    target = math.log(delta)
    bracket = _Bracket(known.lower, known.upper, 0.0, target - 1.0)
    for _ in range(MAX_EVALUATIONS):
        found = replace(known, lower=bracket.lower, upper=bracket.upper, method=METHOD)
        if is_narrow(found):
            return found
        epsilon = bracket.guess(target)
        if not bracket.take(epsilon, delta_at(epsilon), delta):
            _move_away(bracket, delta_at, delta, epsilon)
            break
    return replace(known, lower=bracket.lower, upper=bracket.upper, method=METHOD)


def _move_away(bracket: _Bracket, delta_at: DeltaFunction, delta: float, undecided: float) -> None:
    """Find ends on both sides of an epsilon whose interval of delta contains the target."""
    for side in (1, -1):
        distance = FIRST_MOVE * undecided
        for _ in range(MAX_MOVES):
            epsilon = undecided + side * distance
            if not bracket.lower < epsilon < bracket.upper:
                break
            if bracket.take(epsilon, delta_at(epsilon), delta):
                break
            distance *= MOVE_GROWTH
