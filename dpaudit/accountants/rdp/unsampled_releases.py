"""Bound Renyi divergences of releases without sampling, and their dominating pairs."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from dpaudit.accountants.numerics import logsumexp
from dpaudit.accountants.rdp.moment_excess import (
    Array,
    excess_rounding,
    log_mixture_ratio,
    log_moment_excess,
)
from dpaudit.accountants.releases import randomized_response_loss
from dpaudit.accountants.rounding_margins import UNIT_ROUNDOFF
from dpaudit.vocabulary.mechanism import (
    DiscreteGaussian,
    DiscreteLaplace,
    Laplace,
    PureDP,
    RandomizedResponse,
    Release,
)

# Closed forms of the divergence.

ArrayBounds = tuple[Array, Array]  # lower and upper bounds of the divergence, one per order

LEAST_SCALE = 1e-3  # of a discrete Gaussian; below it no sum is computed


def rho_divergence(rho: float, orders: Array) -> ArrayBounds:
    """Return bounds of a rho, the divergence of a Gaussian of shift sqrt(2 rho).

    It is exact for that Gaussian, and the largest divergence that rho-zCDP allows.

    Args:
        rho: The zCDP parameter.
        orders: Orders a above 1, shape ``(k,)``.

    Returns:
        Lower and upper bounds in nats, which differ by rounding only.
    """
    with np.errstate(over="ignore"):
        value = orders * rho
    return value * (1 - 1e-15), value * (1 + 1e-15)


def laplace_divergence(width: float, orders: Array) -> ArrayBounds:
    """Bound the divergence of a Laplace mechanism.

    With w = sensitivity/scale,

        D_a = log(a/(2a-1) e^((a-1) w) + (a-1)/(2a-1) e^(-a w))/(a-1).

    For small w this cancels. The divergence of any w-DP release, at most a w^2/2, is then the
    tighter upper bound.

    Args:
        width: The ratio w, which is also the largest loss in nats.
        orders: Orders a above 1, shape ``(k,)``.

    Returns:
        Lower and upper bounds in nats, each of shape ``(k,)``.

    References:
        Mironov (2017), arXiv:1702.07476, Proposition 6.
    """
    a = orders
    value = np.logaddexp(
        np.log(a / (2 * a - 1)) + (a - 1) * width, np.log((a - 1) / (2 * a - 1)) - a * width
    ) / (a - 1)
    slack = 16 * UNIT_ROUNDOFF * (1 + a * width + np.abs(np.log(a - 1))) / (a - 1)
    with np.errstate(over="ignore"):
        pure = np.minimum(width, a * (width * width / 2)) * (1 + 1e-15)
    return np.clip(value - slack, 0.0, pure), np.clip(value + slack, 0.0, pure)


def bounded_range_divergence(epsilon: float, orders: Array) -> ArrayBounds:
    """Bound the divergence of the worst release whose losses lie within some [t - epsilon, t].

    An exponential mechanism is such a release, and attains every t. Spread onto both ends, with
    u = e^t and c = e^-epsilon, the moment is u^(a-1) (1 - c^a - u (c - c^a))/(1 - c). It is
    largest at u = (a-1)(1-c^a)/(a (c-c^a)), where it is u^(a-1) (1-c^a)/(a (1-c)). It is at most
    exp(a (a-1) epsilon^2/8).

    Args:
        epsilon: Range of the privacy loss, in nats.
        orders: Orders a above 1, shape ``(k,)``.

    Returns:
        Lower and upper bounds in nats, each of shape ``(k,)``.

    References:
        Durfee & Rogers (2019), arXiv:1905.04273; Cesar & Rogers (2021), arXiv:2004.07223,
        Lemma 3.4.
    """
    a = orders
    rising, falling = -np.expm1(-a * epsilon), -np.expm1(-(a - 1) * epsilon)
    log_u = np.log((a - 1) / a) + np.log(rising) + epsilon - np.log(falling)
    value = log_u + (np.log(rising / a) - math.log(-math.expm1(-epsilon))) / (a - 1)
    slack = 32 * UNIT_ROUNDOFF * (1 + epsilon + np.log(a) + np.abs(np.log(a - 1))) * a / (a - 1)
    with np.errstate(over="ignore"):
        most = np.minimum(epsilon, a * (epsilon * epsilon / 8)) * (1 + 1e-15)
    return np.clip(value - slack, 0.0, most), np.clip(value + slack, 0.0, most)


def discrete_gaussian_divergence(scale: float, sensitivity: int, orders: Array) -> ArrayBounds:
    """Bound the divergence of a discrete Gaussian.

    By completing the square, the moment is the Gaussian's times a ratio of two sums of
    exp(-x^2/2 scale^2): over the integers moved by a * sensitivity, and over the integers. The
    ratio is at most 1, and 1 where a * sensitivity is an integer. By Poisson summation it is at
    least 1 - 4.1 exp(-2 pi^2 scale^2).

    Args:
        scale: Parameter of the discrete Gaussian.
        sensitivity: Integer distance by which one record moves the value.
        orders: Orders a above 1, shape ``(k,)``.

    Returns:
        Lower and upper bounds in nats, each of shape ``(k,)``.

    References:
        Canonne, Kamath & Steinke (2020), arXiv:2004.00010, Proposition 5.
    """
    shift = sensitivity / scale
    lower, upper = rho_divergence(shift * shift / 2, orders)
    if scale < LEAST_SCALE:
        return np.zeros_like(lower), upper
    if scale > 1.5:
        least = np.log1p(-4.1 * np.exp(-2 * math.pi**2 * scale * scale)) - UNIT_ROUNDOFF
        return np.maximum(0.0, lower + least / (orders - 1)), upper
    moved = np.remainder(orders * sensitivity, 1.0)[:, None]
    x = np.arange(-80.0, 81.0)
    log_top = logsumexp(-((x - moved) ** 2) / (2 * scale * scale), axis=1)
    log_bottom = float(logsumexp(-(x**2) / (2 * scale * scale)))
    # The omitted terms are below exp(-79^2/4.5) of the sum.
    log_ratio = np.minimum(0.0, log_top - log_bottom)
    slack = 1e-13 + 1e-15 * ((1 + orders) * orders * shift * sensitivity / scale - log_ratio)
    below = np.maximum(0.0, lower + (log_ratio - slack) / (orders - 1))
    return below, np.maximum(below, np.minimum(upper, upper + (log_ratio + slack) / (orders - 1)))


# Symmetric pairs of finitely many losses, over which the sums of ``moment_excess`` run.
#
# A pair gives the probability under Q of each value of the loss log(P/Q). Where the ratio P/Q is
# spread out with its mean kept, every convex function of it can only grow, and so can every
# moment. Where it is merged, they can only fall. So a continuous distribution has a pair above
# it and a pair below it.


LAPLACE_CELLS = 512  # cells of the interval on which Laplace's loss grows
MOST_LOSSES = 20_000
MOST_TERMS = 4_000_000  # computed at once
CUTOFF_DEVIATIONS = 40.0  # standard deviations at which a discrete Gaussian is cut off
# Above log of the cut-off share exp(-CUTOFF_DEVIATIONS^2/2) of each moment, with its rounding.
LOG_CUTOFF_SHARE = -700.0


@dataclass(frozen=True)
class FiniteLosses:
    """A finite distribution of the loss log(P/Q) under Q.

    Attributes:
        loss: Losses in nats, shape ``(n,)``.
        log_mass: Logarithms of their probabilities under Q, shape ``(n,)``.
        rounding: Upper bound on the relative error of the probabilities.
        cut_shift: None if nothing was cut off. Otherwise the cut-off part is at most
            exp(``LOG_CUTOFF_SHARE``) of 1 and of the moment exp(a (a-1) cut_shift^2/2) without
            sampling.
    """

    loss: Array
    log_mass: Array
    rounding: float = 8 * UNIT_ROUNDOFF
    cut_shift: float | None = None


@dataclass(frozen=True)
class FinitePairBounds:
    """Two loss distributions that enclose the true one in convex order.

    Attributes:
        lower: Below the true distribution; equal to ``upper`` where the true one is finite.
        upper: Above the true distribution.
    """

    lower: FiniteLosses
    upper: FiniteLosses


def finite_pair(release: Release, largest_order: float) -> FinitePairBounds | None:
    """Return a symmetric pair of finitely many losses that dominates a release.

    Args:
        release: An elementary release without sampling.
        largest_order: Largest order up to which a cut-off must be negligible.

    Returns:
        The enclosing distributions; None where none is computed.

    References:
        Kairouz, Oh & Viswanath (2015), arXiv:1311.0776, Theorem 3.3, for (epsilon, 0)-DP.
    """
    match release:
        case Laplace(scale, sensitivity):
            return _laplace(sensitivity / scale * np.linspace(0, 1, LAPLACE_CELLS + 1))
        case DiscreteLaplace(scale, sensitivity) if sensitivity > LAPLACE_CELLS:
            # Edges are integers. The discrete distribution is Laplace's, spread onto all integers.
            # So it lies between the merged and the spread cells.
            return _laplace(np.rint(np.linspace(0, sensitivity, LAPLACE_CELLS + 1)) / scale)
        case _:
            losses = _exact_losses(release, largest_order)
            return None if losses is None else FinitePairBounds(losses, losses)


def _exact_losses(release: Release, largest_order: float) -> FiniteLosses | None:
    """Return the exact distribution of a discrete loss, or None."""
    match release:
        case PureDP(epsilon):
            return _binary_response(epsilon)
        case RandomizedResponse():
            return _randomized_response(release)
        case DiscreteLaplace(scale, sensitivity):
            return _discrete_laplace(scale, sensitivity)
        case DiscreteGaussian(scale, sensitivity):
            # A wide one has too many losses and a narrow one too large ones; closed forms of
            # its moments are used instead.
            count = largest_order * sensitivity + 2 * CUTOFF_DEVIATIONS * scale
            if not (count < MOST_LOSSES and scale >= LEAST_SCALE):
                return None
            return _discrete_gaussian(scale, sensitivity, largest_order)
        case _:
            return None


def _binary_response(epsilon: float) -> FiniteLosses:
    """Return losses +-epsilon: no (epsilon, 0)-DP release is worse.

    Kairouz, Oh & Viswanath 2015, arXiv:1311.0776, Theorem 3.3.
    """
    log_rare = -float(np.logaddexp(0.0, epsilon))
    return FiniteLosses(
        np.array([-epsilon, epsilon]),
        np.array([-math.log1p(math.exp(-epsilon)), log_rare]),
        UNIT_ROUNDOFF * (8 + 4 * epsilon),
    )


def _randomized_response(release: RandomizedResponse) -> FiniteLosses:
    """Return the losses where P or Q has the true answer; elsewhere the loss is 0 and omitted."""
    loss = randomized_response_loss(release)
    truth = release.truth_probability
    other = (1 - truth) / (release.categories - 1)
    return FiniteLosses(np.array([-loss, loss]), np.log(np.array([truth, other])))


def _laplace(edges: Array) -> FinitePairBounds:
    """Enclose Laplace's loss by cells between ``edges`` of the part, from 0 to w, where it grows.

    In units of the scale, Q has density e^(-|y|)/2 and the loss is 2 y - w from 0 to w. Take a
    cell of width h from y on. Spread onto its ends, it puts e^(-y) tanh(h/2)/2 and
    e^(-y-h) tanh(h/2)/2 there (upper). Merged, it has the loss at its middle (lower).
    """
    spread = _spread(edges)
    width, step = float(edges[-1]), np.diff(edges)
    middle = FiniteLosses(
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
    return FinitePairBounds(middle, spread)


def _discrete_laplace(scale: float, sensitivity: int) -> FiniteLosses:
    """Return the loss: Laplace's distribution spread onto the integers is the discrete one."""
    return _spread(np.arange(sensitivity + 1) / scale)


def _spread(edges: Array) -> FiniteLosses:
    """Return Laplace's loss with each cell spread onto its ends, P and Q masses kept."""
    width = float(edges[-1])
    half = np.tanh(np.diff(edges) / 2) / 2
    weight = np.zeros_like(edges)
    weight[:-1] += half
    weight[1:] += half
    weight[[0, -1]] += 0.5  # outputs below 0 and above w have the extreme losses
    return FiniteLosses(
        2 * edges - width, np.log(weight) - edges, UNIT_ROUNDOFF * (16 + 8 * width + 4 * len(edges))
    )


def _discrete_gaussian(scale: float, sensitivity: int, largest_order: float) -> FiniteLosses:
    """Return the loss shift (x - sensitivity/2)/scale at the integers x, with a cut-off."""
    reach = math.ceil(CUTOFF_DEVIATIONS * scale) + 1
    x = np.arange(-reach, math.ceil(largest_order * sensitivity) + reach + 1, dtype=np.float64)
    log_weight = -((x / scale) ** 2) / 2
    shift = sensitivity / scale
    return FiniteLosses(
        shift * (x - sensitivity / 2) / scale,
        log_weight - float(logsumexp(log_weight)),
        UNIT_ROUNDOFF * (16 + len(x) + 8 * float(-log_weight.min())),
        cut_shift=shift,
    )


def add_remove_excess(pair: FinitePairBounds, rate: float, orders: Array) -> ArrayBounds:
    """Bound log E[g_a(q (r - 1))], for add-or-remove-one.

    Args:
        pair: The enclosing loss distributions.
        rate: Probability q with which the record joins, above 0 and at most 1.
        orders: Orders a above 1, shape ``(k,)``.

    Returns:
        Lower and upper bounds, each of shape ``(k,)``.
    """

    def sums(losses: FiniteLosses) -> ArrayBounds:
        return _sum_in_chunks(losses, rate, orders, (lambda a: a,))

    return _enclose(pair, sums)


def replace_excess(pair: FinitePairBounds, rate: float, orders: Array) -> ArrayBounds:
    """Bound log E[g_a(q (r - 1)) + g_(1-a)(q (r - 1)); r > 1], for replace-one.

    Args:
        pair: The enclosing loss distributions.
        rate: Probability with which the record, or its replacement, takes part.
        orders: Orders a above 1, shape ``(k,)``.

    Returns:
        Lower and upper bounds, each of shape ``(k,)``.
    """

    def sums(losses: FiniteLosses) -> ArrayBounds:
        rising = losses.loss > 0
        half = FiniteLosses(
            losses.loss[rising], losses.log_mass[rising], losses.rounding, losses.cut_shift
        )
        return _sum_in_chunks(half, rate, orders, (lambda a: a, lambda a: 1 - a))

    return _enclose(pair, sums)


def _enclose(pair: FinitePairBounds, sums: Callable[[FiniteLosses], ArrayBounds]) -> ArrayBounds:
    """Return the lower bound from the lower distribution and the upper one from the upper."""
    if pair.lower is pair.upper:
        return sums(pair.upper)
    return sums(pair.lower)[0], sums(pair.upper)[1]


def _sum_in_chunks(
    losses: FiniteLosses, rate: float, orders: Array, powers: tuple[Callable[[Array], Array], ...]
) -> ArrayBounds:
    """Sum g over the distribution in chunks of orders, which limits memory."""
    at_once = max(1, MOST_TERMS // max(1, len(losses.loss)))
    parts = [
        _excess_bounds(losses, rate, orders[start : start + at_once], powers)
        for start in range(0, len(orders), at_once)
    ]
    return np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])


def _excess_bounds(
    losses: FiniteLosses, rate: float, orders: Array, powers: tuple[Callable[[Array], Array], ...]
) -> ArrayBounds:
    """Bound log of the sum over ``powers`` of E[g_p(q (r - 1))], p = power(order)."""
    # sum over losses of Q(loss) g_p(q (e^loss - 1)), in logarithms.
    z = log_mixture_ratio(rate, losses.loss)
    largest = float(np.abs(z).max(initial=0.0))
    total, relative = np.full(len(orders), -math.inf), np.zeros(len(orders))
    for power in powers:
        p = power(orders)
        # If every loss is 0, the excess is 0 and its logarithm is -inf.
        terms = log_moment_excess(p[:, None], z) + losses.log_mass
        total = np.logaddexp(total, logsumexp(terms, axis=1))
        relative = np.maximum(relative, excess_rounding(p, largest, 16 * UNIT_ROUNDOFF))
    relative += losses.rounding + 4 * UNIT_ROUNDOFF * (
        len(z) + float(np.abs(losses.log_mass).max(initial=0.0))
    )
    upper = total + relative
    if losses.cut_shift is not None:
        upper = np.logaddexp(upper, _log_cutoff_excess(losses.cut_shift, rate, orders))
    return total - relative, upper


def _log_cutoff_excess(shift: float, rate: float, orders: Array) -> Array:
    """Bound the cut-off part by A^a <= 2^(a-1) (1 + (q r)^a) and g_(1-a) <= (a-1) q r."""
    moment = orders * math.log(rate) + orders * (orders - 1) * (shift * shift / 2)
    return np.asarray(
        LOG_CUTOFF_SHARE + orders * math.log(2) + np.logaddexp(np.log(orders), moment)
    )


@lru_cache(maxsize=1024)
def cached_finite_pair(release: Release, largest_order: float) -> FinitePairBounds | None:
    """Return ``finite_pair`` from a cache, since tables evaluate the same release repeatedly.

    Args:
        release: An elementary release without sampling.
        largest_order: Largest order up to which a cut-off must be negligible.

    Returns:
        The enclosing distributions; None where none is computed.
    """
    return finite_pair(release, largest_order)
