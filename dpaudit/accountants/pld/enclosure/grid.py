"""Certified delta(epsilon) of any composition, by an enclosure on a grid of losses.

Above: the composition of lattice laws that each dominate their release. Below: each
lattice loss is the true loss plus U, where U has conditional mean at most ``lift`` and
lives in an interval of width h, so by Hoeffding's inequality the sum of T of them
exceeds

    r = T lift + h sqrt(T ln(1/eta) / 2)

with probability at most eta, and delta(epsilon) >= delta_lattice(epsilon + r) - eta.

The composition is one FFT of the laws tilted by exp(c loss) (Koskela et al. 2020 for the
FFT, Gopi et al. 2021 for truncation), so that delta is found with relative accuracy
however small it is:

    delta(epsilon) = e^(K(c) - c epsilon) E~[f(S - epsilon)],
    f(u) = e^(-c u) (1 - e^-u) for u > 0,  0 <= f <= c^c / (1+c)^(1+c).

What floating point, the FFT and its periodic wrap do to the tilted law is bounded in L1
or L2 norm, and enters both ends of the interval.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import scipy.fft
from numpy.typing import NDArray

from dpaudit.accountants.pld.enclosure.lattice import LatticeLaw, discretise
from dpaudit.accountants.pld.enclosure.laws import UNIT_ROUNDOFF, LossLaw
from dpaudit.vocabulary.errors import Unresolvable

Array = NDArray[np.float64]
Laws = Sequence[tuple[LossLaw, int]]

COARSE_CELLS = 2000
LEAST_SPACING = 1e-10  # finer losses are rounding
COARSEST_SPACING = 10.0
LARGEST_FFT = 2**21
LOSS_SHARE = 0.02
REACH_TAIL, LARGEST_SPAN = 1e-30, 1000.0
LOG_WRAP = math.log(1e-12)  # tilted probability that the sum leaves the FFT's window
CUT = 30.0  # f is summed up to exp(-CUT)
ORDERS = np.geomspace(1e-2, 1e4, 241)

# Relative to delta: what the dropped tails, and Hoeffding's eta, may cost.
TAIL_SHARE = 1e-4
ETA_SHARE = 1e-4


def log_peak(order: float) -> float:
    """Return log sup f = log(c^c / (1+c)^(1+c))."""
    return -order * math.log1p(1 / order) - math.log1p(order)


def _require_resolvable(laws: Laws) -> None:
    """Refuse losses that range over thousands of nats: no lattice holds them.

    Raises:
        Unresolvable: the release is far from private.
    """
    for law, _ in laws:
        low, high = law.reach(REACH_TAIL)
        if not high - low < LARGEST_SPAN:
            raise Unresolvable(f"losses from {low:g} to {high:g} are beyond any lattice")


@dataclass(frozen=True)
class Plan:
    """Where to look and how finely: decided on a coarse lattice, proved on the fine one."""

    order: float
    epsilon_guess: float
    log_delta_guess: float
    window: tuple[float, float]
    wrap_orders: tuple[float, float]


class CumulantTable:
    """log E[exp(c S)] of the coarse composition, at every order of ``ORDERS``, both signs."""

    def __init__(self, laws: Laws, tail: float) -> None:
        self._laws: list[tuple[LatticeLaw, int]] = []
        for law, times in laws:
            low, high = law.reach(tail)
            spacing = max((high - low) / COARSE_CELLS, LEAST_SPACING)
            self._laws += _resolved([(law, times)], spacing, tail)

    def at(self, order: float) -> float:
        """Return the cumulant function at ``order``."""
        return sum(times * law.log_moment(order) for law, times in self._laws)

    @cached_property
    def table(self) -> Array:
        """The cumulant function at ``ORDERS``."""
        return np.array([self.at(order) for order in ORDERS])


def _window(
    cumulants: CumulantTable, order: float
) -> tuple[tuple[float, float], tuple[float, float]]:
    """Return Chernoff's window of the tilted sum, and the orders that give it."""
    base = cumulants.at(order)
    ups = ORDERS[(order * 0.02 < ORDERS) & (order * 20 > ORDERS)][::6]
    downs = ups
    tops = [(cumulants.at(order + up) - base - LOG_WRAP) / up for up in ups]
    bottoms = [-(cumulants.at(order - down) - base - LOG_WRAP) / down for down in downs]
    i, j = int(np.argmin(tops)), int(np.argmax(bottoms))
    return (bottoms[j], tops[i]), (float(downs[j]), float(ups[i]))


def plan_for_delta(laws: Laws, delta: float) -> Plan:
    """Plan the search for epsilon at ``delta``."""
    _require_resolvable(laws)
    cumulants = CumulantTable(laws, delta * TAIL_SHARE / sum(times for _, times in laws))
    peaks = np.array([log_peak(order) for order in ORDERS])
    chernoff = (cumulants.table + peaks - math.log(delta)) / ORDERS
    best = int(np.argmin(chernoff))
    window, wraps = _window(cumulants, float(ORDERS[best]))
    return Plan(
        float(ORDERS[best]), max(0.0, float(chernoff[best])), math.log(delta), window, wraps
    )


def plan_for_epsilon(laws: Laws, epsilon: float) -> Plan:
    """Plan the evaluation of delta at ``epsilon``."""
    _require_resolvable(laws)
    log_delta = 0.0
    for _ in range(2):  # the tail to drop depends on delta itself
        tail = math.exp(max(log_delta, -690.0)) * TAIL_SHARE / sum(times for _, times in laws)
        cumulants = CumulantTable(laws, max(tail, 1e-305))
        peaks = np.array([log_peak(order) for order in ORDERS])
        chernoff = cumulants.table + peaks - ORDERS * epsilon
        best = int(np.argmin(chernoff))
        log_delta = min(0.0, float(chernoff[best])) - 3.0
    window, wraps = _window(cumulants, float(ORDERS[best]))
    return Plan(float(ORDERS[best]), epsilon, log_delta, window, wraps)


@dataclass(frozen=True)
class Composition:
    """The composed loss, tilted, on the lattice; delta from both sides at any epsilon.

    Attributes:
        spacing: Distance of neighbouring losses, in nats.
        start: Index of the first loss; losses are ``spacing * (start + k)``.
        tilted: Shape ``(n,)``, masses of the tilted law, up to the errors below.
        order: The tilt c.
        log_scale: K(c), the logarithm of the untilted total moment.
        l1_error: Bound on the L1 error of ``tilted`` by wrap and rounding of masses.
        l2_error: Bound on its L2 error by the FFT.
        lost: P-probability of the losses that were left out.
        steps: How many releases were composed.
        lift: Sum of the laws' lifts.
        misplaced: Sum of the laws' edge roundings.
    """

    spacing: float
    start: int
    tilted: Array
    order: float
    log_scale: float
    l1_error: float
    l2_error: float
    lost: float
    steps: int
    lift: float
    misplaced: float

    @cached_property
    def _kernel(self) -> Array:
        length = min(math.ceil(CUT / self.order / self.spacing), len(self.tilted))
        excess = self.spacing * np.arange(length)
        return np.asarray(np.exp(-self.order * excess) * -np.expm1(-excess))

    @cached_property
    def _error(self) -> float:
        by_wrap_and_masses = self.l1_error * math.exp(log_peak(self.order))
        by_fft = self.l2_error * math.sqrt(float(self._kernel @ self._kernel))
        beyond_cut = math.exp(-CUT)
        return by_wrap_and_masses + by_fft + beyond_cut

    def _expectation(self, first: int) -> tuple[float, float]:
        """Return E~[f(S - epsilon)] at the lattice's epsilon number ``first``, and its error."""
        masses = self.tilted[first : first + len(self._kernel)]
        value = float(self._kernel[: len(masses)] @ masses)
        return value, self._error + 4 * UNIT_ROUNDOFF * len(masses) * abs(value)

    def _scale(self, first: int) -> float:
        exponent = self.log_scale - self.order * self.spacing * (self.start + first)
        return math.exp(min(700.0, exponent))

    def delta_upper(self, epsilon: float) -> float:
        """Return a delta at which the composition is certainly (epsilon, delta)-DP."""
        first = math.floor((epsilon - self.misplaced) / self.spacing) - self.start
        if first < 0:  # below the window nothing is known
            return 1.0
        value, error = self._expectation(first)
        return min(1.0, self._scale(first) * (value + error) + self.lost)

    def delta_lower(self, epsilon: float, eta: float) -> float:
        """Return a delta below which the composition is certainly not (epsilon, delta)-DP.

        ``eta`` is the probability, of order 1e-4 of delta, that Hoeffding's inequality costs.
        """
        shift = self.lift + self.spacing * math.sqrt(self.steps * -math.log(eta) / 2)
        first = math.ceil((epsilon + shift + self.misplaced) / self.spacing) - self.start
        first = max(0, first)  # delta falls: its value at the window's bottom is a lower bound
        value, error = self._expectation(first)
        return max(0.0, self._scale(first) * (value - error) - eta)


def compose(laws: Laws, plan: Plan, relative_width: float) -> Composition:
    """Compose ``laws`` so that epsilon's interval is about ``relative_width`` wide."""
    steps = sum(times for _, times in laws)
    log_eta = plan.log_delta_guess + math.log(ETA_SHARE)
    bottom, top = plan.window
    # Around epsilon 0 the width that matters is that of the loss itself.
    wanted_shift = relative_width * max(plan.epsilon_guess, LOSS_SHARE * (top - bottom))
    tail = max(math.exp(max(plan.log_delta_guess, -690.0)) * TAIL_SHARE / steps, 1e-305)
    spans = [high - low for low, high in (law.reach(tail) for law, _ in laws)]
    spacing = max(
        wanted_shift / math.sqrt(steps * -log_eta / 2),
        max(top - bottom, *spans) / LARGEST_FFT,
        LEAST_SPACING,
    )
    return _compose_on(_resolved(laws, spacing, tail), plan)


def _resolved(laws: Laws, spacing: float, tail: float) -> list[tuple[LatticeLaw, int]]:
    """Put the laws on one lattice, as fine as floating point can still split their cells.

    Raises:
        Unresolvable: no lattice is coarse enough.
    """
    while spacing < COARSEST_SPACING:
        lattices = [(discretise(law, spacing, tail), times) for law, times in laws]
        if all(lattice.lost <= 2 * tail for lattice, _ in lattices):
            return lattices
        spacing *= 2
    raise Unresolvable("the cells of no lattice can be split in floating point")


def _compose_on(laws: Sequence[tuple[LatticeLaw, int]], plan: Plan) -> Composition:
    order, (bottom, top) = plan.order, plan.window
    spacing = laws[0][0].spacing
    start = math.floor(bottom / spacing)
    longest = max(len(law.masses) for law, _ in laws)
    size = scipy.fft.next_fast_len(max(math.ceil(top / spacing) - start + 1, longest), real=True)
    tilted, l2_error, rounding = _power(laws, order, size)
    shift = start - sum(times * law.first for law, times in laws)
    log_scale = sum(times * law.log_moment(order) for law, times in laws)
    return Composition(
        spacing=spacing,
        start=start,
        tilted=np.roll(tilted, -(shift % size)),
        order=order,
        log_scale=log_scale,
        l1_error=rounding
        + _wrapped(laws, plan, log_scale, spacing * start, spacing * (start + size - 1)),
        l2_error=l2_error,
        lost=-math.expm1(sum(times * math.log1p(-law.lost) for law, times in laws)),
        steps=sum(times for _, times in laws),
        lift=sum(times * law.lift for law, times in laws),
        misplaced=sum(times * law.misplaced for law, times in laws),
    )


def _power(
    laws: Sequence[tuple[LatticeLaw, int]], order: float, size: int
) -> tuple[Array, float, float]:
    """Return the tilted composition modulo ``size``, its L2 error and the masses' L1 error.

    An FFT of length n errs by at most about 4 u log2(n) of its L2 norm (Higham 2002,
    Theorem 24.2). A factor F_i known up to e_i makes the product err by at most
    prod (|F_i| + e_i)^T_i - prod |F_i|^T_i.
    """
    fft_error = 8 * UNIT_ROUNDOFF * math.log2(size)
    log_product = np.zeros(size // 2 + 1, dtype=np.complex128)
    log_growth = np.zeros(size // 2 + 1)
    log_rounding = 0.0
    for law, times in laws:
        masses, rounding = law.tilted(order)
        transform = scipy.fft.rfft(masses, size)
        error = fft_error * math.sqrt(size * float(masses @ masses))
        with np.errstate(divide="ignore"):
            modulus = np.maximum(np.abs(transform), 1e-300)
            log_product += times * np.log(np.where(transform == 0, 1e-300, transform))
        log_growth += times * (np.log1p(error / modulus) + 16 * UNIT_ROUNDOFF)
        log_rounding += times * math.log1p(rounding)
    log_modulus = log_product.real
    # Frequencies whose power underflows must keep their error: add logarithms, then subtract.
    # The cap is far above 1, where any error makes the bound say nothing.
    grown = np.exp(np.minimum(log_modulus + log_growth, 300.0))
    errors = grown * -np.expm1(-log_growth)
    product = np.exp(log_product)
    tilted = scipy.fft.irfft(product, size)
    both_halves = math.sqrt(2 * float(errors @ errors) / size)
    l2_error = both_halves + fft_error * math.sqrt(float(tilted @ tilted))
    return tilted, l2_error, math.expm1(min(700.0, log_rounding))


def _wrapped(
    laws: Sequence[tuple[LatticeLaw, int]], plan: Plan, log_scale: float, bottom: float, top: float
) -> float:
    """Bound, by Chernoff, the tilted probability of a sum outside [bottom, top]; twice, as it
    is missing there and turns up elsewhere."""
    down, up = plan.wrap_orders
    above = sum(t * law.log_moment(plan.order + up) for law, t in laws) - log_scale - up * top
    below = (
        sum(t * law.log_moment(plan.order - down) for law, t in laws) - log_scale + down * bottom
    )
    return 2 * (math.exp(min(0.0, above)) + math.exp(min(0.0, below)))
