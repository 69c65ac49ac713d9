"""Symmetric pairs of finitely many losses: what the sums of ``excess`` run over.

A pair says with which probability under Q the loss log(P/Q) takes each value. Where the
ratio P/Q is spread out with its mean kept, every convex function of it can only grow, and so
every moment; where it is drawn together, they can only fall: so a continuous law has a pair
above it and a pair below it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from dpaudit.accountants.releases import response_loss
from dpaudit.accountants.renyi.excess import (
    UNIT_ROUNDOFF,
    Array,
    log_excess,
    log_mixture,
    rounding,
)
from dpaudit.accountants.renyi.whole import LEAST_SCALE
from dpaudit.accountants.special import logsumexp
from dpaudit.vocabulary.mechanism import (
    DiscreteGaussian,
    DiscreteLaplace,
    Laplace,
    PureDP,
    RandomizedResponse,
    Release,
)

Ends = tuple[Array, Array]  # lower and upper ends of log(moment - 1), one for each order

CELLS = 512  # of the stretch on which Laplace's loss grows
MOST_LOSSES = 20_000
MOST_TERMS = 4_000_000  # computed at once
CUT = 40.0  # standard deviations beyond which a discrete Gaussian is cut off
LOG_CUT = -700.0  # more than a share of exp(-CUT^2/2) of each moment, with its rounding


@dataclass(frozen=True)
class Losses:
    """Losses and the logarithms of their probabilities under Q.

    ``rounding`` is the probabilities' relative error. What was cut off holds at most
    exp(``LOG_CUT``) of 1 and of the moment exp(a (a-1) cut_shift^2/2) without sampling;
    where nothing was, ``cut_shift`` is None.
    """

    loss: Array
    log_mass: Array
    rounding: float = 8 * UNIT_ROUNDOFF
    cut_shift: float | None = None


@dataclass(frozen=True)
class Pair:
    """Two laws between which, in convex order, the true one lies; often all three are one."""

    lower: Losses
    upper: Losses


def pair_of(release: Release, largest_order: float) -> Pair | None:
    """Return the symmetric pair that dominates ``release``, or None where none is kept.

    Args:
        release: An elementary release.
        largest_order: Up to which order a cut-off is to be harmless.
    """
    match release:
        case Laplace(scale, sensitivity):
            return _laplace(sensitivity / scale * np.linspace(0, 1, CELLS + 1))
        case DiscreteLaplace(scale, sensitivity) if sensitivity > CELLS:
            # At its own points it is as private as Laplace, and less so between.
            return _laplace(np.rint(np.linspace(0, sensitivity, CELLS + 1)) / scale)
        case _:
            law = _known(release, largest_order)
            return None if law is None else Pair(law, law)


def _known(release: Release, largest_order: float) -> Losses | None:
    """Return the one law that is both ends of the pair."""
    match release:
        case PureDP(epsilon):
            return _two_answers(epsilon)
        case RandomizedResponse():
            return _answers(release)
        case DiscreteLaplace(scale, sensitivity):
            return _discrete_laplace(scale, sensitivity)
        case DiscreteGaussian(scale, sensitivity):
            # A wide one has too many losses, a narrow one too large ones; its moments are known.
            count = largest_order * sensitivity + 2 * CUT * scale
            if not (count < MOST_LOSSES and scale >= LEAST_SCALE):
                return None
            return _discrete_gaussian(scale, sensitivity, largest_order)
        case _:
            return None


def _two_answers(epsilon: float) -> Losses:
    """Randomized response with losses +-epsilon: no (epsilon, 0)-DP release is worse.

    Kairouz, Oh & Viswanath 2015, arXiv:1311.0776, Theorem 3.3.
    """
    log_rare = -float(np.logaddexp(0.0, epsilon))
    return Losses(
        np.array([-epsilon, epsilon]),
        np.array([-math.log1p(math.exp(-epsilon)), log_rare]),
        UNIT_ROUNDOFF * (8 + 4 * epsilon),
    )


def _answers(release: RandomizedResponse) -> Losses:
    """Under Q the other answer is the truth; the remaining ones tell nothing."""
    loss = response_loss(release)
    truth = release.truth_probability
    other = (1 - truth) / (release.categories - 1)
    return Losses(np.array([-loss, loss]), np.log(np.array([truth, other])))


def _laplace(edges: Array) -> Pair:
    """Cut the stretch of growing loss at ``edges``, from 0 to w, and spread out or draw together.

    In units of the scale, Q has density e^(-|y|)/2 and the loss is 2 y - w from 0 to w. A cell
    of width h from y on, spread onto its ends, puts e^(-y) tanh(h/2)/2 and e^(-y-h) tanh(h/2)/2
    there; drawn together, it has the loss at its middle.
    """
    spread = _spread(edges)
    width, step = float(edges[-1]), np.diff(edges)
    middle = Losses(
        np.concatenate([[-width], edges[:-1] + edges[1:] - width, [width]]),
        np.concatenate(
            [
                [-math.log(2)],
                np.log(-np.expm1(-step) / 2) - edges[:-1],
                [-width - math.log(2)],
            ]
        ),
        spread.rounding,
    )
    return Pair(middle, spread)


def _discrete_laplace(scale: float, sensitivity: int) -> Losses:
    """Laplace's law cut at the integers and spread onto them is the discrete one, exactly."""
    return _spread(np.arange(sensitivity + 1) / scale)


def _spread(edges: Array) -> Losses:
    width = float(edges[-1])
    half = np.tanh(np.diff(edges) / 2) / 2
    weight = np.zeros_like(edges)
    weight[:-1] += half
    weight[1:] += half
    weight[[0, -1]] += 0.5  # all of the outputs below 0, and beyond w
    return Losses(
        2 * edges - width, np.log(weight) - edges, UNIT_ROUNDOFF * (16 + 8 * width + 4 * len(edges))
    )


def _discrete_gaussian(scale: float, sensitivity: int, largest_order: float) -> Losses:
    reach = math.ceil(CUT * scale) + 1
    x = np.arange(-reach, math.ceil(largest_order * sensitivity) + reach + 1, dtype=np.float64)
    log_weight = -((x / scale) ** 2) / 2
    shift = sensitivity / scale
    return Losses(
        shift * (x - sensitivity / 2) / scale,
        log_weight - float(logsumexp(log_weight)),
        UNIT_ROUNDOFF * (16 + len(x) + 8 * float(-log_weight.min())),
        cut_shift=shift,
    )


def joining(pair: Pair, rate: float, orders: Array) -> Ends:
    """Return ends of log E[g_a(q (r - 1))]: a record joins with probability q, or is not there."""

    def sums(law: Losses) -> Ends:
        return _in_parts(law, rate, orders, (lambda a: a,))

    return _enclose(pair, sums)


def swapping(pair: Pair, rate: float, orders: Array) -> Ends:
    """Return ends of log E[g_a(q (r - 1)) + g_(1-a)(q (r - 1)); r > 1]."""

    def sums(law: Losses) -> Ends:
        rising = law.loss > 0
        half = Losses(law.loss[rising], law.log_mass[rising], law.rounding, law.cut_shift)
        return _in_parts(half, rate, orders, (lambda a: a, lambda a: 1 - a))

    return _enclose(pair, sums)


def _enclose(pair: Pair, sums: Callable[[Losses], Ends]) -> Ends:
    if pair.lower is pair.upper:
        return sums(pair.upper)
    return sums(pair.lower)[0], sums(pair.upper)[1]


def _in_parts(
    law: Losses, rate: float, orders: Array, powers: tuple[Callable[[Array], Array], ...]
) -> Ends:
    """Sum g of every power over the law, for as many orders at once as memory is meant for."""
    at_once = max(1, MOST_TERMS // max(1, len(law.loss)))
    parts = [
        _ends(law, rate, orders[start : start + at_once], powers)
        for start in range(0, len(orders), at_once)
    ]
    return np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])


def _ends(
    law: Losses, rate: float, orders: Array, powers: tuple[Callable[[Array], Array], ...]
) -> Ends:
    z = log_mixture(rate, law.loss)
    largest = float(np.abs(z).max(initial=0.0))
    total, relative = np.full(len(orders), -math.inf), np.zeros(len(orders))
    for power in powers:
        p = power(orders)
        # Where every loss is 0, nothing is released, and the logarithm of nothing is -inf.
        terms = log_excess(p[:, None], z) + law.log_mass
        total = np.logaddexp(total, logsumexp(terms, axis=1))
        relative = np.maximum(relative, rounding(p, largest, 16 * UNIT_ROUNDOFF))
    relative += law.rounding + 4 * UNIT_ROUNDOFF * (
        len(z) + float(np.abs(law.log_mass).max(initial=0.0))
    )
    upper = total + relative
    if law.cut_shift is not None:
        upper = np.logaddexp(upper, _log_cut(law.cut_shift, rate, orders))
    return total - relative, upper


def _log_cut(shift: float, rate: float, orders: Array) -> Array:
    """Bound what was cut off: A^a <= 2^(a-1) (1 + (q r)^a), and g_(1-a) <= (a-1) q r."""
    moment = orders * math.log(rate) + orders * (orders - 1) * (shift * shift / 2)
    return np.asarray(LOG_CUT + orders * math.log(2) + np.logaddexp(np.log(orders), moment))


@lru_cache(maxsize=1024)
def cached_pair(release: Release, largest_order: float) -> Pair | None:
    """Return ``pair_of``, kept: tables ask for it again and again."""
    return pair_of(release, largest_order)
