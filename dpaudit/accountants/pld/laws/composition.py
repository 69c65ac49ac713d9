"""Compositions of loss distributions, and their cumulant generating functions."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from dpaudit.accountants.pld.laws.loss_distribution import (
    LossDistribution,
)
from dpaudit.accountants.rounding_margins import DOUBLE_EPSILON

# Cumulant generating functions of composed losses, and Chernoff bounds.
#
# K(c) = log E[e^(c S)] adds over releases. One Gaussian with mu^2 = g adds g c (c + 1) / 2,
# since its loss is N(g/2, g) under P. For c > 0 and u = S - epsilon,
#
#     delta(epsilon) = E[(1 - e^-u)+] <= E[e^(c u)] sup_u e^(-c u) (1 - e^-u).

Array = NDArray[np.float64]

# Orders of a table, as factors of its central order.
ORDER_FACTORS = np.concatenate(
    [np.geomspace(1 / 30, 0.8, 10), np.geomspace(0.88, 1.6, 9), [2, 2.7, 4]]
)
SCAN_FACTORS = np.geomspace(1e-4, 1e4, 72)
NEARBY_FACTORS = SCAN_FACTORS[20:52]  # the best order of most compositions is among these
MAX_SCANS = 5
SKETCHED_DISTRIBUTIONS = 24


@dataclass(frozen=True)
class Composition:
    """Loss distributions with their counts, and all unsampled Gaussians as one.

    Attributes:
        distributions: Loss distribution of a release, and how often it is composed.
        gaussian: mu^2 of the Gaussians: the sum of times * shift^2.
        truncated_mass: Upper bound on the P-mass of finite losses that the distributions leave
            out, summed over all releases.
        infinite_mass: P-mass of infinite losses over all releases, exact up to rounding.
    """

    distributions: tuple[tuple[LossDistribution, int], ...]
    gaussian: float
    truncated_mass: float
    infinite_mass: float

    @property
    def missing_mass(self) -> float:
        """Upper bound on the part of delta, at any epsilon, that lies outside the distributions."""
        return self.truncated_mass + self.infinite_mass

    def split(self, loss: float) -> tuple[Composition, Composition]:
        """Split every distribution at a loss.

        Args:
            loss: Loss in nats.

        Returns:
            The composition of the losses up to ``loss``, with the Gaussian and the missing mass,
            and the composition of the losses above it.
        """
        pairs = [(distribution.split(loss), times) for distribution, times in self.distributions]
        below = tuple((pair[0], times) for pair, times in pairs)
        above = tuple((pair[1], times) for pair, times in pairs)
        return replace(self, distributions=below), Composition(above, 0.0, 0.0, 0.0)

    @property
    def mass(self) -> float:
        """Upper bound on the P-probability that any loss of the distributions occurs."""
        zero = np.zeros(1)
        return sum(
            times * math.exp(float(distribution.log_moments(zero)[1][0]))
            for distribution, times in self.distributions
            if distribution.branches or len(distribution.atom_losses)
        )

    @property
    def steps(self) -> int:
        """Number of releases that the distributions stand for."""
        return sum(times for _, times in self.distributions)

    @property
    def largest_order(self) -> float:
        """The largest order around which a table of cumulants is affordable."""
        least = min(
            (distribution.largest_order for distribution, _ in self.distributions), default=math.inf
        )
        return least / float(ORDER_FACTORS[-1])

    @property
    def supremum(self) -> float:
        """Upper bound on every finite composed loss, retained or not, in nats."""
        if self.gaussian:
            return math.inf
        return sum(times * distribution.supremum for distribution, times in self.distributions)

    @cached_property
    def sketch(self) -> Composition:
        """Approximately the same composition with few distributions: for searches, not for bounds.

        The distributions with the largest losses are kept, as a single one of them may dominate
        delta. Of the others, each kept one stands for several.
        """
        if len(self.distributions) <= 2 * SKETCHED_DISTRIBUTIONS:
            return self
        distributions = sorted(self.distributions, key=lambda entry: -entry[0].largest)
        # Every ``step``-th of the others stands for ``step`` of them.
        step = -(-(len(distributions) - SKETCHED_DISTRIBUTIONS) // SKETCHED_DISTRIBUTIONS)
        rest = tuple(
            (distribution, step * times)
            for distribution, times in distributions[SKETCHED_DISTRIBUTIONS::step]
        )
        return replace(self, distributions=(*distributions[:SKETCHED_DISTRIBUTIONS], *rest))

    @property
    def rough_points(self) -> int:
        """Number of points of the widest panels: what one evaluation costs, about."""
        return sum(len(distribution.rough[0]) for distribution, _ in self.distributions)

    @property
    def largest(self) -> float:
        """Largest retained composed loss in nats; infinite with a Gaussian."""
        if self.gaussian:
            return math.inf
        return sum(times * distribution.largest for distribution, times in self.distributions)


@dataclass(frozen=True)
class Cumulants:
    """The cumulant generating function K(c) = log E[exp(c S)] of a composed loss S.

    Attributes:
        orders: Rising orders c, shape ``(m,)``.
        upper: Upper bounds on K, shape ``(m,)``.
    """

    orders: Array
    upper: Array

    def log_chernoff(self, epsilon: float) -> Array:
        """Bound log delta(epsilon) from above, at every order.

            log delta(epsilon) <= K(c) - c epsilon + log(c^c / (1+c)^(1+c))

        Args:
            epsilon: Privacy loss in nats.

        Returns:
            Upper bounds, shape ``(m,)``.
        """
        return np.asarray(self.upper - self.orders * epsilon + log_chernoff_factor(self.orders))

    @cached_property
    def slopes(self) -> Array:
        """Estimates of K', shape ``(m,)``."""
        return _slopes(self.upper, self.orders)

    def curvature(self, order: float) -> float:
        """Estimate K''(order), the variance of the tilted loss.

        Args:
            order: An order inside the table.

        Returns:
            The estimate by second differences, positive.
        """
        x, y = self.orders, self.upper
        i = int(np.clip(np.searchsorted(x, order), 1, len(x) - 2))
        # Second divided difference on unequal steps.
        left = (y[i] - y[i - 1]) / (x[i] - x[i - 1])
        right = (y[i + 1] - y[i]) / (x[i + 1] - x[i])
        return float(max(2 * (right - left) / (x[i + 1] - x[i - 1]), 1e-300))

    def order_at(self, log_delta: float) -> float:
        """Estimate the saddle point of the contour at the epsilon with a given delta.

        The integrand exp(K(z) - z epsilon) / (z (z + 1)) has its saddle point c on the real
        axis where

            K'(c) = epsilon + 1/c + 1/(c + 1),

        and the saddle point approximation there is

            delta ~ exp(K(c) - c epsilon) / (c (c+1) sqrt(2 pi (K''(c) + 1/c^2 + 1/(c+1)^2))).

        Each order thus gives an epsilon and a delta; the order for ``log_delta`` is interpolated.

        Args:
            log_delta: Logarithm of delta.

        Returns:
            The order, inside the table.
        """
        c, first = self.orders, self.slopes
        second = _slopes(first, c) + 1 / c**2 + 1 / (c + 1) ** 2
        epsilon = first - 1 / c - 1 / (c + 1)
        logs = self.upper - c * epsilon - np.log(c * (c + 1))
        logs -= 0.5 * np.log(2 * math.pi * np.maximum(second, 1e-300))
        reached = np.flatnonzero(logs <= log_delta)
        if not len(reached) or reached[0] == 0:
            return float(c[int(np.argmin(np.abs(logs - log_delta)))])
        i = int(reached[0])
        share = (log_delta - logs[i - 1]) / (logs[i] - logs[i - 1])
        return float(c[i - 1] * (c[i] / c[i - 1]) ** share)


def _slopes(values: Array, at: Array) -> Array:
    """Estimate derivatives: second order inside, one-sided at both ends."""
    width = np.diff(at)
    secant = np.diff(values) / width
    inside = (secant[:-1] * width[1:] + secant[1:] * width[:-1]) / (width[1:] + width[:-1])
    return np.concatenate([secant[:1], inside, secant[-1:]])


def log_chernoff_factor(order: Array) -> Array:
    """Return log sup over u of e^(-c u) (1 - e^-u), which is log(c^c / (1+c)^(1+c)).

    The supremum is at e^-u = c / (1 + c).

    Args:
        order: Orders c > 0, of any shape.

    Returns:
        Values at most 0, of the same shape.
    """
    return np.asarray(-order * np.log1p(1 / order) - np.log1p(order))


def cumulants_around(
    composition: Composition, order: float, factors: Array = ORDER_FACTORS
) -> Cumulants:
    """Bound the cumulant generating function at orders around one.

    Args:
        composition: The composed losses.
        order: Central order c.
        factors: Rising factors from it to the orders of the table, shape ``(m,)``.

    Returns:
        The table, with rounding inside the upper bounds.
    """
    orders = order * factors
    upper = 0.5 * composition.gaussian * orders * (orders + 1) * (1 + 1e-15)
    for distribution, times in composition.distributions:
        upper = upper + times * distribution.log_moments(orders)[1]
    return Cumulants(
        orders, upper + DOUBLE_EPSILON * (4 + len(composition.distributions)) * (1 + np.abs(upper))
    )


def jump_cumulants_around(below: Composition, above: Composition, order: float) -> Cumulants:
    """Bound the cumulant generating function of what losses from ``above`` add to ``below``.

    With A_i and B_i the moments of both parts at order c, the measure has the moment

        prod (A_i + B_i)^T_i - prod A_i^T_i = prod A_i^T_i (exp(sum T_i log(1 + B_i/A_i)) - 1).

    Args:
        below: Composition of the losses up to a cap.
        above: Composition of the losses above it, from the same split.
        order: Central order c.

    Returns:
        The table, with rounding inside the upper bounds.
    """
    orders = order * ORDER_FACTORS
    upper = 0.5 * below.gaussian * orders * (orders + 1) * (1 + 1e-15)
    log_ratio = np.zeros(len(orders))
    for (low, times), (high, _) in zip(below.distributions, above.distributions, strict=True):
        least, most = low.log_moments(orders)
        upper = upper + times * most
        if high.branches or len(high.atom_losses):
            gap = high.log_moments(orders)[1] - least
            log_ratio += times * np.where(
                gap < 0, np.log1p(np.exp(np.minimum(gap, 0))), np.logaddexp(0, gap)
            )
    slack = DOUBLE_EPSILON * (16 + len(below.distributions)) * (1 + np.abs(upper))
    with np.errstate(over="ignore", divide="ignore"):
        grown = np.where(log_ratio > 500, log_ratio, np.log(np.expm1(np.minimum(log_ratio, 500))))
    return Cumulants(orders, upper + grown + slack)


def rough_cumulants(
    composition: Composition, guess: float, factors: Array = SCAN_FACTORS
) -> Cumulants:
    """Estimate K around an order: for searches, not for bounds.

    Args:
        composition: The composed losses.
        guess: Central order c.
        factors: Rising factors from it to the orders of the table, shape ``(m,)``.

    Returns:
        A table of estimates; here ``upper`` is no bound.
    """
    orders = guess * factors
    rough = 0.5 * composition.gaussian * orders * (orders + 1)
    for distribution, times in composition.sketch.distributions:
        rough = rough + times * distribution.rough_log_moments(orders)
    return Cumulants(orders, rough)


def order_for_delta(composition: Composition, log_delta: float) -> tuple[float, float]:
    """Estimate the order at the epsilon with a given delta.

    Args:
        composition: The composed losses.
        log_delta: Logarithm of delta.

    Returns:
        The order, and the mean of the composed loss tilted by it, in nats.
    """
    order, table = _scan_until_inside(
        composition, log_delta, lambda table: table.order_at(log_delta)
    )
    order = min(order, composition.largest_order)
    return order, float(np.interp(order, table.orders, table.slopes))


def order_for_epsilon(composition: Composition, epsilon: float) -> float:
    """Estimate the order for delta at a given epsilon.

    Args:
        composition: The composed losses.
        epsilon: Privacy loss in nats.

    Returns:
        The order of a grid that minimises K(c) - c epsilon - log(c (c + 1)).
    """

    def best(table: Cumulants) -> float:
        c = table.orders
        return float(c[int(np.argmin(table.upper - c * epsilon - np.log(c * (c + 1))))])

    return min(_scan_until_inside(composition, -20.0, best)[0], composition.largest_order)


def _scan_until_inside(
    composition: Composition, log_delta: float, best: Callable[[Cumulants], float]
) -> tuple[float, Cumulants]:
    """Scan orders near the first guess, then all, and again while the best lies at an end."""
    guess = gaussian_order(composition, log_delta)
    for factors in (NEARBY_FACTORS, *[SCAN_FACTORS] * MAX_SCANS):
        table = rough_cumulants(composition, guess, factors)
        order = best(table)
        if factors[3] < order / guess < factors[-4]:
            break
        if factors is SCAN_FACTORS:
            guess = order
    return order, table


def rough_deviation(composition: Composition) -> float:
    """Estimate the standard deviation of the composed loss: for searches, not for bounds.

    Args:
        composition: The composed losses.

    Returns:
        The estimate in nats, positive.
    """
    variance = composition.gaussian
    for distribution, times in composition.sketch.distributions:
        losses, log_masses = distribution.rough
        masses = np.exp(log_masses)
        mean = float(masses @ losses)
        variance += times * float(masses @ (losses - mean) ** 2)
    return math.sqrt(max(variance, 1e-300))


def gaussian_order(composition: Composition, log_delta: float) -> float:
    """Return the order of a Gaussian with the same variance: delta ~ exp(-(c sigma)^2 / 2).

    Args:
        composition: The composed losses.
        log_delta: Logarithm of delta.

    Returns:
        The order, positive: for searches, not for bounds.
    """
    variance = composition.gaussian
    for distribution, times in composition.sketch.distributions:
        losses, log_masses = distribution.rough
        # Capped, so that rare huge losses do not dominate the variance.
        variance += times * float(np.exp(log_masses) @ np.minimum(losses * losses, 100.0))
    return math.sqrt(-2 * min(log_delta, -1.0) / max(variance, 1e-30))
