"""What attackers can conclude and guess, by single numbers.

Each is at most what it is for the best attacker on the worst pair of neighbours.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import msgspec

from dpaudit.accountants.risk.hockey_sticks import LARGEST_EPSILON, HockeySticks, PrivacyProfile
from dpaudit.accountants.risk.tradeoff import tpr_at_fpr
from dpaudit.vocabulary.bound import Bound
from dpaudit.vocabulary.errors import AccountingError, require_open_unit

ROUNDING = 1e-14
FIRST_EPSILON = 0.02
GOLDEN = (math.sqrt(5) - 1) / 2
SHRINKINGS = 16  # of the golden section: to a thousandth


class Posterior(msgspec.Struct, frozen=True):
    """How sure an attacker can become that the output is that of "with".

    With probability at least 1 - ``exceptional`` over the outputs, whichever of both data
    sets they come from, the posterior of an attacker whose prior was ``prior`` is at most
    ``at_most``: there the privacy loss is at most ``epsilon``.
    """

    prior: float
    exceptional: float
    epsilon: float
    at_most: float


def advantage(profile: PrivacyProfile) -> Bound:
    """Return the interval of the largest true positive rate less false positive rate.

    That is the total variation distance of the outputs, delta at epsilon 0.
    """
    found = profile.delta(epsilon=0.0)
    return Bound(max(0.0, found.lower), min(1.0, found.upper))


def accuracy(profile: PrivacyProfile, *, prior: float = 0.5) -> Bound:
    """Return the interval of how often the best guess of "with" or "without" is right.

    With t = (1 - prior)/prior, the best accuracy is prior (sup tpr - t fpr) + 1 - prior, and
    the supremum is h(t): delta at epsilon = log t. It is at least the larger prior.

    Args:
        profile: Answers for delta.
        prior: Probability beforehand that the output is that of "with".

    Raises:
        InvalidArgument: ``prior`` is not above 0 and below 1.
    """
    require_open_unit("prior", prior)
    rare, usual = min(prior, 1 - prior), max(prior, 1 - prior)
    found = profile.delta(epsilon=min(LARGEST_EPSILON, math.log(usual) - math.log(rare)))
    lower, upper = (usual + rare * end for end in (found.lower, found.upper))
    return Bound(max(usual, lower * (1 - ROUNDING)), max(usual, min(1.0, upper * (1 + ROUNDING))))


def posterior(profile: PrivacyProfile, *, prior: float, exceptional: float) -> Posterior:
    """Return what the posterior exceeds with probability ``exceptional`` at most.

    Where the loss exceeds epsilon, (1 - e^(s - loss)) > 1 - e^(s - epsilon) for every s below;
    the mean of its positive part is delta(s). So the loss exceeds epsilon with probability at
    most delta(s)/(1 - e^(s - epsilon)), by Markov's inequality. Solved for epsilon and least
    over s:

        epsilon = s - log(1 - delta(s)/exceptional).

    Under "without", a loss above epsilon is rarer still, by e^epsilon. Pure differential
    privacy is the case delta(s) = 0: then nothing is exceptional.

    Args:
        profile: Answers for delta; its upper ends count.
        prior: Probability beforehand that the output is that of "with".
        exceptional: Probability of outputs that the statement leaves out.

    Raises:
        InvalidArgument: ``prior`` or ``exceptional`` is not above 0 and below 1.
        AccountingError: delta does not fall below ``exceptional`` at any epsilon.
    """
    require_open_unit("prior", prior)
    require_open_unit("exceptional", exceptional)
    sticks = HockeySticks(profile)

    def loss(s: float) -> float:
        share = sticks.ask(s)[0].upper / exceptional
        return s - math.log1p(-share) if share < 1 else math.inf

    epsilon = _least(loss) * (1 + ROUNDING) + ROUNDING
    odds_against = (1 - prior) / prior * math.exp(-epsilon)
    return Posterior(prior, exceptional, epsilon, min(1.0, (1 + ROUNDING) / (1 + odds_against)))


def _least(function: Callable[[float], float]) -> float:
    """Return the least value of ``function`` at some points from 0 on; any is valid."""
    seen = [function(0.0)]
    high = FIRST_EPSILON
    while not (found := function(high)) < math.inf or len(seen) < 2 or found < seen[-1]:
        seen.append(found)
        high *= 2
        if high > LARGEST_EPSILON:
            break
    else:
        seen.append(found)
    low = 0.0 if len(seen) < 3 else high / 4
    one, other = high - GOLDEN * (high - low), low + GOLDEN * (high - low)
    left, right = function(one), function(other)
    for _ in range(SHRINKINGS):
        seen += [left, right]
        if left <= right < math.inf:
            high, other, right = other, one, left
            one = high - GOLDEN * (high - low)
            left = function(one)
        else:
            low, one, left = one, other, right
            other = low + GOLDEN * (high - low)
            right = function(other)
    if not min(seen) < math.inf:
        raise AccountingError("delta stays above the exceptional probability: allow for more")
    return min(seen)


def reconstruction(profile: PrivacyProfile, *, chance: float) -> Bound:
    """Return the interval of how often a whole record can be reconstructed.

    An attacker knows all other records and a prior of the last one, sees the output and
    names a record; it succeeds if what it names is as close as agreed to the true one.
    ``chance`` is the largest success of naming a record without having seen the output. Let Q
    be the output on a reference neighbour that does not depend on the last record: the data
    without it (add or remove one), with zeros in its place (zero out), or with any fixed
    record (replace one). Under Q the success is at most ``chance``; so with the record, it
    is at most the best tpr at that fpr (Hayes, Mahloujifar & Balle 2023, arXiv:2302.07225,
    Theorem 2; the notion is Balle, Cherubin & Hayes 2022, arXiv:2201.04845). The statement
    therefore holds under each of the three adjacencies, for the profile under it.

    Returns:
        From ``chance``, which naming blindly reaches, to the upper bound on any attacker.

    Raises:
        InvalidArgument: ``chance`` is not above 0 and below 1.
    """
    require_open_unit("chance", chance)
    return Bound(chance, tpr_at_fpr(profile, fpr=chance).upper)
