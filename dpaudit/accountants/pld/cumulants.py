"""Cumulants of the composed loss, and what Chernoff's inequality makes of them.

K(c) = log E[exp(c S)] at real orders c > 0. With (1 - e^-u)+ <= e^(-c u) ... for every c,

    delta(epsilon) <= exp(K(c) - c epsilon) c^c / (1 + c)^(1 + c).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from dpaudit.accountants.pld.losses import LossLaw

Array = NDArray[np.float64]

# Orders around the chosen one that a table holds, as factors of it.
FACTORS = np.concatenate([np.geomspace(1 / 30, 0.8, 10), np.geomspace(0.88, 1.6, 9), [2, 2.7, 4]])
ROUNDING = 2.0**-52
SCAN = np.geomspace(1e-4, 1e4, 72)
MOST_SCANS = 5
SKETCHED = 24


@dataclass(frozen=True)
class Ledger:
    """Laws with their counts, and all Gaussians on whole data sets as one.

    Attributes:
        laws: One release's law, and how often it is composed.
        gaussian: mu^2 of the Gaussians: the sum of times * shift^2.
        cut: P-mass of finite losses that the laws leave out, over all releases; at most.
        infinite: P-mass of infinite losses, over all releases; to the last digits.
    """

    laws: tuple[tuple[LossLaw, int], ...]
    gaussian: float
    cut: float
    infinite: float

    @property
    def beyond(self) -> float:
        """What delta holds at every epsilon, at most."""
        return self.cut + self.infinite

    def split(self, loss: float) -> tuple[Ledger, Ledger]:
        """Return the ledger of the losses up to ``loss``, and that of those above it."""
        pairs = [(law.split(loss), times) for law, times in self.laws]
        below = tuple((pair[0], times) for pair, times in pairs)
        above = tuple((pair[1], times) for pair, times in pairs)
        return replace(self, laws=below), Ledger(above, 0.0, 0.0, 0.0)

    @property
    def mass(self) -> float:
        """Bound the P-probability that any of the laws' losses occurs."""
        zero = np.zeros(1)
        return sum(
            times * math.exp(float(law.log_moments(zero)[1][0]))
            for law, times in self.laws
            if law.branches or len(law.atom_losses)
        )

    @property
    def steps(self) -> int:
        """How many releases the laws stand for."""
        return sum(times for _, times in self.laws)

    @property
    def steepest(self) -> float:
        """The largest order around which a table can be afforded."""
        least = min((law.steepest for law, _ in self.laws), default=math.inf)
        return least / float(FACTORS[-1])

    @property
    def supremum(self) -> float:
        """What no composed loss exceeds, kept or not, infinite ones aside."""
        if self.gaussian:
            return math.inf
        return sum(times * law.supremum for law, times in self.laws)

    @cached_property
    def sketch(self) -> Ledger:
        """About the same composition with few laws, for searching: the rest stands for others.

        Those with the largest losses stay, as one of them may decide alone.
        """
        if len(self.laws) <= 2 * SKETCHED:
            return self
        laws = sorted(self.laws, key=lambda entry: -entry[0].largest)
        step = -(-(len(laws) - SKETCHED) // SKETCHED)
        rest = tuple((law, step * times) for law, times in laws[SKETCHED::step])
        return replace(self, laws=(*laws[:SKETCHED], *rest))

    @property
    def largest(self) -> float:
        """The largest loss that is kept; infinite with a Gaussian."""
        if self.gaussian:
            return math.inf
        return sum(times * law.largest for law, times in self.laws)


@dataclass(frozen=True)
class Cumulants:
    """K at rising orders: ``upper`` bounds it."""

    orders: Array
    upper: Array

    def log_chernoff(self, epsilon: float) -> Array:
        """Bound log delta(epsilon), for every order."""
        return np.asarray(self.upper - self.orders * epsilon + log_peak(self.orders))

    def curvature(self, order: float) -> float:
        """Return about K''(order): the variance of the tilted loss."""
        x, y = self.orders, self.upper
        i = int(np.clip(np.searchsorted(x, order), 1, len(x) - 2))
        left = (y[i] - y[i - 1]) / (x[i] - x[i - 1])
        right = (y[i + 1] - y[i]) / (x[i + 1] - x[i])
        return float(max(2 * (right - left) / (x[i + 1] - x[i - 1]), 1e-300))

    def order_at(self, log_delta: float) -> float:
        """Return the order whose saddle point, K' = epsilon + 1/c + 1/(c+1), has this delta."""
        c, first = self.orders, np.gradient(self.upper, self.orders)
        second = np.gradient(first, c) + 1 / c**2 + 1 / (c + 1) ** 2
        epsilon = first - 1 / c - 1 / (c + 1)
        logs = self.upper - c * epsilon - np.log(c * (c + 1))
        logs -= 0.5 * np.log(2 * math.pi * np.maximum(second, 1e-300))
        reached = np.flatnonzero(logs <= log_delta)
        if not len(reached) or reached[0] == 0:
            return float(c[int(np.argmin(np.abs(logs - log_delta)))])
        i = int(reached[0])
        share = (log_delta - logs[i - 1]) / (logs[i] - logs[i - 1])
        return float(c[i - 1] * (c[i] / c[i - 1]) ** share)


def log_peak(order: Array) -> Array:
    """Return log sup of e^(-c u) (1 - e^-u) = log(c^c / (1+c)^(1+c))."""
    return np.asarray(-order * np.log1p(1 / order) - np.log1p(order))


def table_around(ledger: Ledger, order: float) -> Cumulants:
    """Return the cumulants at ``FACTORS`` times ``order``."""
    orders = order * FACTORS
    upper = 0.5 * ledger.gaussian * orders * (orders + 1) * (1 + 1e-15)
    for law, times in ledger.laws:
        upper = upper + times * law.log_moments(orders)[1]
    return Cumulants(orders, upper + ROUNDING * (4 + len(ledger.laws)) * (1 + np.abs(upper)))


def jump_table_around(below: Ledger, above: Ledger, order: float) -> Cumulants:
    """Return the same for what at least one loss from ``above`` adds to ``below``."""
    orders = order * FACTORS
    upper = 0.5 * below.gaussian * orders * (orders + 1) * (1 + 1e-15)
    log_ratio = np.zeros(len(orders))
    for (low, times), (high, _) in zip(below.laws, above.laws, strict=True):
        least, most = low.log_moments(orders)
        upper = upper + times * most
        if high.branches or len(high.atom_losses):
            gap = high.log_moments(orders)[1] - least
            log_ratio += times * np.where(
                gap < 0, np.log1p(np.exp(np.minimum(gap, 0))), np.logaddexp(0, gap)
            )
    slack = ROUNDING * (16 + len(below.laws)) * (1 + np.abs(upper))
    with np.errstate(over="ignore", divide="ignore"):
        grown = np.where(log_ratio > 500, log_ratio, np.log(np.expm1(np.minimum(log_ratio, 500))))
    return Cumulants(orders, upper + grown + slack)


def scan(ledger: Ledger, guess: float) -> Cumulants:
    """Return roughly K over eight powers of ten around ``guess``: it bounds nothing."""
    orders = guess * SCAN
    rough = 0.5 * ledger.gaussian * orders * (orders + 1)
    for law, times in ledger.sketch.laws:
        rough = rough + times * law.rough_log_moments(orders)
    return Cumulants(orders, rough)


def order_for_delta(ledger: Ledger, log_delta: float) -> tuple[float, float]:
    """Return a good order for the epsilon where delta is as given, and the mean loss there."""
    order, table = _settled(ledger, log_delta, lambda table: table.order_at(log_delta))
    order = min(order, ledger.steepest)
    return order, float(np.interp(order, table.orders, np.gradient(table.upper, table.orders)))


def order_for_epsilon(ledger: Ledger, epsilon: float) -> float:
    """Return a good order for delta at ``epsilon``."""

    def best(table: Cumulants) -> float:
        c = table.orders
        return float(c[int(np.argmin(table.upper - c * epsilon - np.log(c * (c + 1))))])

    return min(_settled(ledger, -20.0, best)[0], ledger.steepest)


def _settled(
    ledger: Ledger, log_delta: float, best: Callable[[Cumulants], float]
) -> tuple[float, Cumulants]:
    """Scan again around an order that lies at the end of what was scanned."""
    guess = _first_guess(ledger, log_delta)
    for _ in range(MOST_SCANS):
        table = scan(ledger, guess)
        order = best(table)
        if SCAN[3] < order / guess < SCAN[-4]:
            break
        guess = order
    return order, table


def rough_deviation(ledger: Ledger) -> float:
    """Return about the standard deviation of the composed loss."""
    variance = ledger.gaussian
    for law, times in ledger.sketch.laws:
        losses, log_masses = law.rough
        masses = np.exp(log_masses)
        mean = float(masses @ losses)
        variance += times * float(masses @ (losses - mean) ** 2)
    return math.sqrt(max(variance, 1e-300))


def _first_guess(ledger: Ledger, log_delta: float) -> float:
    """Return an order as for a Gaussian of the same variance."""
    variance = ledger.gaussian
    for law, times in ledger.sketch.laws:
        losses, log_masses = law.rough
        variance += times * float(np.exp(log_masses) @ np.minimum(losses * losses, 100.0))
    return math.sqrt(-2 * min(log_delta, -1.0) / max(variance, 1e-30))
