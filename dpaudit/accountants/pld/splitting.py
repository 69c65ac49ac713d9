"""When one tilt does not fit all: losses up to a cap, and what a larger one adds.

A step whose record is rarely sampled is nearly always harmless and now and then not. Then
no single tilt makes both the sum of harmless losses and a large one likely, and the
contour's terms cancel to nothing. As measures, with A a law's part below a cap and B the
rest, A^T and (A + B)^T - A^T are both non-negative, and each has a tilt that fits.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dpaudit.accountants.pld.cumulants import SCAN, Ledger, log_peak

Array = NDArray[np.float64]

CAPS = 48
TYPICAL_LOG_GAP = 2.5  # of Chernoff's bound above the truth
ABOUT_EQUAL = 1.0
WORTH_SPLITTING = 4.0  # nats that the terms would cancel


@dataclass(frozen=True)
class Split:
    """Where to cut, if at all, and which orders suit the parts.

    Attributes:
        epsilon: About the epsilon at which all of this is best.
        log_delta: About the log of delta there.
        cap: Largest loss of the lower part; None: do not cut.
        orders: The order for the whole, or those for the lower and the upper part.
        gap: Nats by which the terms cancel.
    """

    epsilon: float
    log_delta: float
    cap: float | None
    orders: tuple[float, ...]
    gap: float


class RoughTables:
    """Roughly K of the whole, of the part below each cap, and of what is above: a search."""

    def __init__(self, ledger: Ledger, guess: float) -> None:
        self.orders = guess * SCAN
        self.caps = _caps(ledger)
        base = 0.5 * ledger.gaussian * self.orders * (self.orders + 1)
        self.below = np.tile(base[:, None], len(self.caps))
        self.ratio = np.zeros_like(self.below)
        for law, times in ledger.sketch.laws:
            log_below, log_ratio = _partial_moments(*law.rough, self.orders, self.caps)
            self.below += times * log_below
            self.ratio += times * log_ratio
        with np.errstate(divide="ignore"):
            grown = np.log(np.expm1(np.minimum(self.ratio, 500.0)))
        self.above = self.below + np.where(self.ratio > 500, self.ratio, grown)
        self.whole = self.below[:, -1]

    def penalty(self, epsilon: float) -> Array:
        """Return what turns K into Chernoff's bound of log delta."""
        return np.asarray(-self.orders * epsilon + log_peak(self.orders))

    def at(self, epsilon: float) -> tuple[float, Array]:
        """Return the whole's Chernoff value, and the larger of both parts' for each cap."""
        penalty = self.penalty(epsilon)
        parts = np.maximum(
            (self.below + penalty[:, None]).min(axis=0), (self.above + penalty[:, None]).min(axis=0)
        )
        return float((self.whole + penalty).min()), parts

    def split(self, epsilon: float, log_delta: float) -> Split:
        """Return the best cut at ``epsilon``, or none where one tilt is good enough."""
        penalty = self.penalty(epsilon)
        whole, parts = self.at(epsilon)
        # Of about equal caps the largest: the smaller, the more the upper part varies.
        best = int(np.flatnonzero(parts <= parts.min() + ABOUT_EQUAL)[-1])
        if whole - log_delta < WORTH_SPLITTING or parts[best] > whole - 2:
            order = float(self.orders[int(np.argmin(self.whole + penalty))])
            return Split(epsilon, log_delta, None, (order,), whole - log_delta)
        orders = tuple(
            float(self.orders[int(np.argmin(table[:, best] + penalty))])
            for table in (self.below, self.above)
        )
        return Split(
            epsilon, log_delta, float(self.caps[best]), orders, float(parts[best]) - log_delta
        )


def split_for_delta(ledger: Ledger, log_delta: float, guess: float, ceiling: float) -> Split:
    """Return the best cut at the epsilon where delta is about as asked."""
    tables = RoughTables(ledger, guess)

    def estimate(epsilon: float) -> float:
        whole, parts = tables.at(epsilon)
        return min(whole, float(parts.min())) - TYPICAL_LOG_GAP

    low, high = 0.0, ceiling
    for _ in range(30):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if estimate(middle) > log_delta else (low, middle)
    return tables.split(high, log_delta)


def split_for_epsilon(ledger: Ledger, epsilon: float, guess: float) -> Split:
    """Return the best cut at ``epsilon``."""
    tables = RoughTables(ledger, guess)
    whole, parts = tables.at(epsilon)
    return tables.split(epsilon, min(whole, float(parts.min()), 0.0) - TYPICAL_LOG_GAP)


def _caps(ledger: Ledger) -> Array:
    tops = max((law.largest for law, _ in ledger.laws), default=1.0)
    least = max(1e-6 * abs(tops), 1e-14)
    return np.geomspace(least, max(tops, 2 * least), CAPS)


def _partial_moments(
    losses: Array, log_masses: Array, orders: Array, caps: Array
) -> tuple[Array, Array]:
    """Return log E[e^(c L); L <= cap], and log(1 + the rest over it); (orders, caps)."""
    order = np.argsort(losses)
    losses, log_masses = losses[order], log_masses[order]
    terms = log_masses + np.multiply.outer(orders, losses)
    peak = terms.max(axis=1, keepdims=True)
    terms = np.exp(terms - peak)
    index = np.searchsorted(losses, caps * (1 + 1e-9))
    zero = np.zeros((len(orders), 1))
    up = np.concatenate([zero, np.cumsum(terms, axis=1)], axis=1)[:, index]
    down = np.concatenate([np.cumsum(terms[:, ::-1], axis=1)[:, ::-1], zero], axis=1)[:, index]
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        return np.log(np.maximum(up, 1e-300)) + peak, np.log1p(down / np.maximum(up, 1e-300))
