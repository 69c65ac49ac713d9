"""Amplification by shuffling: parameters of the clones, and the bound in closed form.

Every one of n participants runs a local mechanism, and only the shuffled reports are released.
One participant's value is replaced. The others' reports contain clones of its report, which hide
it (docs/mathematics/shuffling.md):

    reports of the two values   p Q0 + (1 - p) Q1 and (1 - p) Q0 + p Q1,  p = 1/(1 + e^-epsilon)
    report of any other value   r Q0 + r Q1 + (1 - 2 r) of something else

with r = e^-epsilon / 2 for any epsilon-DP mechanism (equations 1 and 2). For randomized response
over k categories, r = (1 - truth)/(k - 1) is larger, and the report is one of the two values with
probability truth + r alone (equation 5).

The bound of Feldman, McMillan & Talwar (2023, arXiv:2208.04591) with r = 1/(e^epsilon + 1) is not
used for every epsilon-DP mechanism: its erratum restricts it to some mechanisms.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from dpaudit.accountants.releases import randomized_response_loss
from dpaudit.accountants.rounding_margins import ROUND_UP
from dpaudit.vocabulary.errors import (
    require_count,
    require_delta,
    require_positive,
    to_python_number,
)
from dpaudit.vocabulary.mechanism import PureDP, RandomizedResponse, Shuffled

__all__ = ["closed_form_epsilon"]

LEAST_RATE = 1e-300


@dataclass(frozen=True)
class Clones:
    """How the other participants' reports hide one report.

    Attributes:
        loss: Largest privacy loss of one report, in nats.
        rate: Probability of a clone of each kind in another report, rounded down.
        weight: Probability that the report itself is of one of the two kinds.
    """

    loss: float
    rate: float
    weight: float


def clones_of(mechanism: Shuffled) -> Clones:
    """Return the parameters of the clones of a shuffled local mechanism.

    Args:
        mechanism: The shuffled reports.

    Returns:
        The parameters of equation 2 or 5 of docs/mathematics/shuffling.md.
    """
    match mechanism.mechanism:
        case PureDP(epsilon):
            rate = math.exp(-epsilon) / 2
            return Clones(epsilon, max(LEAST_RATE, rate * (1 - 1e-15)), 1.0)
        case RandomizedResponse(truth, categories):
            rate = (1 - truth) / (categories - 1)
            loss = randomized_response_loss(mechanism.mechanism)
            return Clones(loss, rate * (1 - 1e-15), min(1.0, (truth + rate) * (1 + 1e-15)))


def closed_form_epsilon(local_epsilon: float, participants: int, *, delta: float) -> float:
    """Compute epsilon of shuffled reports by the theorem of Feldman, McMillan & Talwar (2021).

        log(1 + (1 - e^-e)/(1 + e^-(e + log(1 + x))) x),  x = 8 sqrt(e^e log(4/delta)/n) + 8 e^e/n,

    with e = local_epsilon, where e <= log(n / (16 log(4/delta))); otherwise local_epsilon, which
    always holds. This is the form of the authors' program. The theorem, as it is often quoted, has
    (e^e - 1)/(e^e + 1) before x, which is smaller by a few percent.

    Args:
        local_epsilon: Epsilon of one participant's report, in nats, above 0 and finite.
        participants: Number of participants n, at least 1.
        delta: At least 1e-300 and below 1.

    Returns:
        An upper bound of epsilon in nats where one participant's value is replaced, rounded up.

    Raises:
        InvalidArgument: If an argument is out of range.

    References:
        Feldman, McMillan & Talwar (2021), arXiv:2012.12803, Theorem 3.1.

    Example:
        >>> from dpaudit.accountants import shuffling
        >>> round(shuffling.closed_form_epsilon(1.0, 100_000, delta=1e-6), 4)
        0.0753
    """
    require_positive("local_epsilon", local_epsilon)
    participants = to_python_number(participants)
    require_count("participants", participants)
    require_delta("delta", delta)
    inverse = math.log(4 / delta)
    # The theorem's condition has log(2/delta), which is weaker.
    if not local_epsilon <= math.log(participants / (16 * inverse)):
        return local_epsilon
    ratio = math.exp(local_epsilon) / participants
    most = 8 * math.sqrt(ratio * inverse) + 8 * ratio
    share = -math.expm1(-local_epsilon) / (1 + math.exp(-local_epsilon) / (1 + most))
    grown = share * most
    return min(local_epsilon, math.log1p(grown) * ROUND_UP)
