"""A lower bound on epsilon, what it rests on and what it says."""

from __future__ import annotations

import math
from dataclasses import dataclass

from dpaudit.vocabulary.audit import BoundKind
from dpaudit.vocabulary.errors import InvalidArgument

COINS = "nothing but fair, independent coins"
TRIALS = "independent trials, and a threshold that did not look at these scores"
AT_LEAST = "the mechanism is not (epsilon, delta)-DP for any smaller epsilon"


@dataclass(frozen=True)
class LowerBound:
    """A lower bound on epsilon.

    Attributes:
        epsilon: The bound, in nats; 0 says nothing.
        kind: What it rests on.
        confidence: Probability with which it holds, where what it assumes is true.
        assumes: That, in words.
        states: What exactly is refuted, in words.
        noise_factor: The least factor on the claimed noise that is refuted, where the bound
            inverts over the claimed family; None: none is, or there is no family.
    """

    epsilon: float
    kind: BoundKind
    confidence: float
    assumes: str
    states: str = AT_LEAST
    noise_factor: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.epsilon < math.inf:
            raise InvalidArgument("epsilon", self.epsilon, "at least 0 and finite")


def require_delta_or_zero(delta: float) -> None:
    """Refuse anything but a delta of a lower bound: 0 is allowed."""
    if not 0 <= delta < 1:
        raise InvalidArgument("delta", delta, "at least 0 and below 1")
