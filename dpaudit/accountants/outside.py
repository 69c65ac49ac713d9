"""What no Renyi divergence can hold: probabilities with which all may be lost.

certain  With some probability everything is revealed: (epsilon, delta)-DP is, with probability
         1 - delta, (epsilon, 0)-DP (Kairouz, Oh & Viswanath 2015, arXiv:1311.0776, Theorem
         3.3), and sampled at rate q, with 1 - q delta, a sample of that: the revealing part
         is left to the record's own coin, and what remains of P and Q mixes alike. Over
         releases 1 - delta multiplies, and the rest composes as ever:
         delta(epsilon) = D + (1 - D) delta_rest(epsilon).
altered  With some probability t, for either neighbour, another release was made than the one
         that is priced: adds t (1 + e^epsilon) to delta, t summed over all releases (Chua et
         al. 2024, arXiv:2411.04205).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from dpaudit.accountants.releases import Releases
from dpaudit.accountants.truncation import truncation_probability
from dpaudit.vocabulary.adjacency import Adjacency
from dpaudit.vocabulary.bound import Bound
from dpaudit.vocabulary.errors import Unresolvable
from dpaudit.vocabulary.mechanism import (
    ApproximateDP,
    PoissonSampled,
    PureDP,
    Release,
    SampledWithoutReplacement,
    TruncatedPoisson,
)

NEXT_TO_NOTHING = 1e-300
# Shares of what altered releases leave of delta; where those are rare, all but nothing.
SHARES = [*(1 - np.geomspace(1e-9, 0.5, 20)), *np.geomspace(0.4, 1e-3, 7)]
LARGEST_EPSILON = 700.0  # its exponential is next to the largest double


class Outside(NamedTuple):
    """Upper ends of both probabilities, over a whole ledger."""

    certain: float = 0.0
    altered: float = 0.0


NOTHING = Outside()


class _Part(NamedTuple):
    """One release as a divergence inside, and what is outside."""

    inside: Release
    certain: float = 0.0
    altered: float = 0.0


def split(releases: Releases, adjacency: Adjacency) -> tuple[Releases, Outside]:
    """Return the releases that have finite divergences, and what is outside of those."""
    inside: Counter[Release] = Counter()
    log_kept, altered = 0.0, 0.0
    for release, times in releases.items():
        part = _part(release, adjacency)
        inside[part.inside] += times
        log_kept += times * math.log1p(-part.certain)
        altered += times * part.altered
    return inside, Outside(-math.expm1(log_kept) * (1 + 1e-14), altered * (1 + 1e-14))


def _part(release: Release, adjacency: Adjacency) -> _Part:
    match release:
        case ApproximateDP(epsilon, delta):
            return _Part(_pure(epsilon), delta)
        case PoissonSampled(ApproximateDP(epsilon, delta), rate):
            return _Part(PoissonSampled(_pure(epsilon), rate), rate * delta)
        case SampledWithoutReplacement(ApproximateDP(epsilon, delta), batch, size):
            inner = SampledWithoutReplacement(_pure(epsilon), batch, size)
            return _Part(inner, delta * batch / size)
        case TruncatedPoisson(inner, rate):
            poisson = inner if rate == 1 else PoissonSampled(inner, rate)
            return _Part(poisson, altered=truncation_probability(release, adjacency))
        case _:
            return _Part(release)


def _pure(epsilon: float) -> PureDP:
    return PureDP(max(epsilon, NEXT_TO_NOTHING))


def epsilon_at(outside: Outside, delta: float, rest: Callable[[float], float]) -> Bound:
    """Return the interval of epsilon at ``delta``, given ``rest``: epsilon of all that is inside.

    Raises:
        Unresolvable: delta is spent outside.
    """
    if outside == NOTHING:
        return Bound(0.0, rest(delta))
    left = (delta - outside.certain) / (1 - outside.certain) * (1 - 1e-14)
    if outside.altered == 0 and left > 0:
        return Bound(0.0, rest(left))
    for share in SHARES if left > NEXT_TO_NOTHING else ():
        epsilon = rest(share * left)
        # The larger the share, the smaller epsilon: the first to hold is the best of them.
        if share * left + _altered(outside, epsilon) <= left:
            return Bound(0.0, epsilon)
    raise Unresolvable(
        f"delta {delta!r} is spent by releases that fail with probability "
        f"{outside.certain + outside.altered:.3g}: ask for a larger delta"
    )


def delta_at(outside: Outside, epsilon: float, rest: float) -> Bound:
    """Return the interval of delta at ``epsilon``, given delta of all that is inside."""
    total = outside.certain + (1 - outside.certain) * (rest + _altered(outside, epsilon))
    return Bound(0.0, min(1.0, total * (1 + 1e-14)))


def _altered(outside: Outside, epsilon: float) -> float:
    """Return what altered releases add, next to what is left once certain losses are off."""
    if outside.altered == 0:
        return 0.0
    if not epsilon < LARGEST_EPSILON:
        return math.inf
    return outside.altered * (1 + math.exp(epsilon)) / (1 - outside.certain) * (1 + 1e-12)
