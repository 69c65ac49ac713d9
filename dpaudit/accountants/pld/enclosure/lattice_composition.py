"""Certified delta(epsilon) of compositions on a lattice of losses.

Upper bound: the composition of lattice distributions that each dominate their release. Lower
bound: each lattice loss is the true loss plus U. Given the true loss, U has a mean of at most
``lift`` and lies in an interval of width h. By Hoeffding's inequality the sum of T of them
exceeds

    r = T lift + h sqrt(T ln(1/eta) / 2)

with probability at most eta, and delta(epsilon) >= delta_lattice(epsilon + r) - eta.

The composition is one FFT of the distributions tilted by exp(c loss) (Koskela et al. 2020 for
the FFT, Gopi et al. 2021 for truncation), so that delta has relative accuracy however small
it is. With K(c) the log moment of the sum S and E~ the expectation under the tilt,

    delta(epsilon) = e^(K(c) - c epsilon) E~[f(S - epsilon)],
    f(u) = e^(-c u) (1 - e^-u) for u > 0,  0 <= f <= c^c / (1+c)^(1+c).

Floating point, the FFT and its periodic wrap change the tilted distribution. These errors are
bounded in the L1 or L2 norm and widen both ends of the interval.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import scipy.fft
from numpy.typing import NDArray

from dpaudit.accountants.pld.enclosure.lattice_distribution import (
    CellDistribution,
    LatticeDistribution,
    discretise,
)
from dpaudit.accountants.rounding_margins import UNIT_ROUNDOFF
from dpaudit.vocabulary.errors import Unresolvable

Array = NDArray[np.float64]
CountedDistributions = Sequence[tuple[CellDistribution, int]]

COARSE_CELLS = 2000
MIN_SPACING = 1e-10  # nats; finer than the rounding of losses
COARSEST_SPACING = 10.0
LARGEST_FFT = 2**21
LOSS_SHARE = 0.02
REACH_TAIL, LARGEST_SPAN = 1e-30, 1000.0
LOG_WRAP = math.log(1e-12)  # tilted probability that the sum leaves the FFT's window
LOG_KERNEL_CUTOFF = 30.0  # f is summed down to exp(-LOG_KERNEL_CUTOFF)
TILT_ORDERS = np.geomspace(1e-2, 1e4, 241)

# Shares of delta for the truncated tails and for Hoeffding's eta.
TAIL_SHARE = 1e-4
ETA_SHARE = 1e-4


def log_chernoff_factor(order: float) -> float:
    """Return log sup f = log(c^c / (1+c)^(1+c)).

    Args:
        order: Tilt c > 0.

    Returns:
        A value of at most 0.
    """
    return -order * math.log1p(1 / order) - math.log1p(order)


def _require_resolvable(distributions: CountedDistributions) -> None:
    """Refuse (``Unresolvable``) losses that range over more nats than a lattice can hold."""
    for distribution, _ in distributions:
        low, high = distribution.reach(REACH_TAIL)
        if not high - low < LARGEST_SPAN:
            raise Unresolvable(
                f"losses from {low:g} to {high:g} nats span more than the {LARGEST_SPAN:g} nats "
                "of a lattice"
            )


@dataclass(frozen=True)
class LatticePlan:
    """Tilt and window of a composition, chosen on a coarse lattice.

    The composition on the fine lattice proves the bounds; the plan only affects their width.

    Attributes:
        order: Tilt c.
        epsilon_guess: Chernoff's bound on epsilon on the coarse lattice, or the given epsilon, in
            nats.
        log_delta_guess: Logarithm of the given delta, or an estimate of it.
        window: Smallest and largest composed loss of the FFT's window, in nats.
        wrap_orders: Distances from the tilt of the orders that bound the mass below and above
            the window.
    """

    order: float
    epsilon_guess: float
    log_delta_guess: float
    window: tuple[float, float]
    wrap_orders: tuple[float, float]


class LatticeCumulants:
    """log E[exp(c S)] of a composition on a coarse lattice.

    Args:
        distributions: Loss distributions with their counts.
        tail: P-mass that each distribution may leave out.
    """

    def __init__(self, distributions: CountedDistributions, tail: float) -> None:
        self._distributions: list[tuple[LatticeDistribution, int]] = []
        for distribution, times in distributions:
            low, high = distribution.reach(tail)
            spacing = max((high - low) / COARSE_CELLS, MIN_SPACING)
            self._distributions += _resolved_lattices([(distribution, times)], spacing, tail)

    def at(self, order: float) -> float:
        """Evaluate the cumulant generating function.

        Args:
            order: Order c, of either sign.

        Returns:
            log E[exp(c S)].
        """
        return sum(
            times * distribution.log_moment(order) for distribution, times in self._distributions
        )

    @cached_property
    def table(self) -> Array:
        """The cumulant generating function at ``TILT_ORDERS``."""
        return np.array([self.at(order) for order in TILT_ORDERS])


def _window(
    cumulants: LatticeCumulants, order: float
) -> tuple[tuple[float, float], tuple[float, float]]:
    """Return Chernoff's window of the tilted sum, and the distances of the orders that give it.

    For u > 0, P~[S >= t] <= e^(K(c + u) - K(c) - u t). The window's top is the least t at which
    that is e^LOG_WRAP, over a grid of u; its bottom likewise with c - u.
    """
    base = cumulants.at(order)
    ups = TILT_ORDERS[(order * 0.02 < TILT_ORDERS) & (order * 20 > TILT_ORDERS)][::6]
    downs = ups
    tops = [(cumulants.at(order + up) - base - LOG_WRAP) / up for up in ups]
    bottoms = [-(cumulants.at(order - down) - base - LOG_WRAP) / down for down in downs]
    i, j = int(np.argmin(tops)), int(np.argmax(bottoms))
    return (bottoms[j], tops[i]), (float(downs[j]), float(ups[i]))


def plan_for_delta(distributions: CountedDistributions, delta: float) -> LatticePlan:
    """Plan the search for epsilon at a given delta.

    Args:
        distributions: Loss distributions with their counts.
        delta: In (0, 1).

    Returns:
        The plan, at the order with the least Chernoff bound of epsilon.
    """
    _require_resolvable(distributions)
    cumulants = LatticeCumulants(
        distributions, delta * TAIL_SHARE / sum(times for _, times in distributions)
    )
    peaks = np.array([log_chernoff_factor(order) for order in TILT_ORDERS])
    chernoff = (cumulants.table + peaks - math.log(delta)) / TILT_ORDERS
    best = int(np.argmin(chernoff))
    window, wraps = _window(cumulants, float(TILT_ORDERS[best]))
    return LatticePlan(
        float(TILT_ORDERS[best]), max(0.0, float(chernoff[best])), math.log(delta), window, wraps
    )


def plan_for_epsilon(distributions: CountedDistributions, epsilon: float) -> LatticePlan:
    """Plan the evaluation of delta at a given epsilon.

    Args:
        distributions: Loss distributions with their counts.
        epsilon: Privacy loss in nats, at least 0.

    Returns:
        The plan, at the order with the least Chernoff bound of delta.
    """
    _require_resolvable(distributions)
    log_delta = 0.0
    for _ in range(2):  # the tail to truncate depends on delta itself
        tail = (
            math.exp(max(log_delta, -690.0)) * TAIL_SHARE / sum(times for _, times in distributions)
        )
        cumulants = LatticeCumulants(distributions, max(tail, 1e-305))
        peaks = np.array([log_chernoff_factor(order) for order in TILT_ORDERS])
        chernoff = cumulants.table + peaks - TILT_ORDERS * epsilon
        best = int(np.argmin(chernoff))
        log_delta = min(0.0, float(chernoff[best])) - 3.0
    window, wraps = _window(cumulants, float(TILT_ORDERS[best]))
    return LatticePlan(float(TILT_ORDERS[best]), epsilon, log_delta, window, wraps)


@dataclass(frozen=True)
class LatticeComposition:
    """The tilted composed loss on a lattice, with bounds on delta at any epsilon.

    Attributes:
        spacing: Distance of neighboring losses, in nats.
        start: Index of the first loss; losses are ``spacing * (start + k)``.
        tilted: Masses of the tilted distribution up to the errors below, shape ``(n,)``.
        order: The tilt c.
        log_scale: K(c), the log moment of the untilted composition.
        l1_error: Upper bound on the L1 error of ``tilted`` by wrap and rounding of masses.
        l2_error: Upper bound on its L2 error by the FFT.
        lost: P-probability of the losses that were left out.
        steps: Number of composed releases.
        lift: Sum of the distributions' lifts, in nats.
        misplaced: Sum of the distributions' edge roundings, in nats.
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
        """f at the lattice's excess losses u = 0, h, 2h, ..., down to e^-LOG_KERNEL_CUTOFF."""
        length = min(math.ceil(LOG_KERNEL_CUTOFF / self.order / self.spacing), len(self.tilted))
        excess = self.spacing * np.arange(length)
        return np.asarray(np.exp(-self.order * excess) * -np.expm1(-excess))

    @cached_property
    def _error(self) -> float:
        """Upper bound on the error of E~[f]: by the L1 error, the L2 error and f's cutoff."""
        by_wrap_and_masses = self.l1_error * math.exp(log_chernoff_factor(self.order))
        by_fft = self.l2_error * math.sqrt(float(self._kernel @ self._kernel))
        beyond_cut = math.exp(-LOG_KERNEL_CUTOFF)
        return by_wrap_and_masses + by_fft + beyond_cut

    def _expectation(self, first: int) -> tuple[float, float]:
        """Return E~[f(S - epsilon)] at the lattice's epsilon number ``first``, and its error."""
        masses = self.tilted[first : first + len(self._kernel)]
        value = float(self._kernel[: len(masses)] @ masses)
        return value, self._error + 4 * UNIT_ROUNDOFF * len(masses) * abs(value)

    def _scale(self, first: int) -> float:
        """Return e^(K(c) - c epsilon), the factor from E~[f] to delta."""
        exponent = self.log_scale - self.order * self.spacing * (self.start + first)
        return math.exp(min(700.0, exponent))

    def delta_upper(self, epsilon: float) -> float:
        """Bound delta from above: the composition is (epsilon, delta_upper)-DP.

        Args:
            epsilon: Privacy loss in nats; it is rounded down to the lattice.

        Returns:
            The upper bound, at most 1.
        """
        first = math.floor((epsilon - self.misplaced) / self.spacing) - self.start
        if first < 0:  # below the window only the trivial bound holds
            return 1.0
        value, error = self._expectation(first)
        return min(1.0, self._scale(first) * (value + error) + self.lost)

    def delta_lower(self, epsilon: float, eta: float) -> float:
        """Bound delta from below: the composition is not (epsilon, delta)-DP for any smaller delta.

        Args:
            epsilon: Privacy loss in nats; it is shifted by r and rounded up to the lattice.
            eta: Probability in (0, 1) that Hoeffding's inequality costs, about 1e-4 of delta.

        Returns:
            The lower bound, at least 0.
        """
        # r = T lift + h sqrt(T ln(1/eta) / 2); ``lift`` is already the sum over T.
        shift = self.lift + self.spacing * math.sqrt(self.steps * -math.log(eta) / 2)
        first = math.ceil((epsilon + shift + self.misplaced) / self.spacing) - self.start
        first = max(0, first)  # delta falls: its value at the window's bottom bounds it below
        value, error = self._expectation(first)
        return max(0.0, self._scale(first) * (value - error) - eta)


def compose_on_lattice(
    distributions: CountedDistributions, plan: LatticePlan, relative_width: float
) -> LatticeComposition:
    """Compose distributions so that epsilon's interval has about the given relative width.

    Args:
        distributions: Loss distributions with their counts.
        plan: Tilt and window.
        relative_width: Target for the width of epsilon's interval relative to epsilon.

    Returns:
        The composition, with error bounds.
    """
    steps = sum(times for _, times in distributions)
    log_eta = plan.log_delta_guess + math.log(ETA_SHARE)
    bottom, top = plan.window
    # Near epsilon 0 the target width is relative to the loss's own range.
    wanted_shift = relative_width * max(plan.epsilon_guess, LOSS_SHARE * (top - bottom))
    tail = max(math.exp(max(plan.log_delta_guess, -690.0)) * TAIL_SHARE / steps, 1e-305)
    spans = [
        high - low for low, high in (distribution.reach(tail) for distribution, _ in distributions)
    ]
    # Hoeffding's shift r, without lift, is the wanted width: h sqrt(T ln(1/eta) / 2).
    spacing = max(
        wanted_shift / math.sqrt(steps * -log_eta / 2),
        max(top - bottom, *spans) / LARGEST_FFT,
        MIN_SPACING,
    )
    return _compose_on(_resolved_lattices(distributions, spacing, tail), plan)


def _resolved_lattices(
    distributions: CountedDistributions, spacing: float, tail: float
) -> list[tuple[LatticeDistribution, int]]:
    """Put the distributions on one lattice, as fine as floating point can still split their cells.

    Args:
        distributions: Loss distributions with their counts.
        spacing: Smallest distance of losses to try, in nats; it is doubled until it works.
        tail: P-mass that each distribution may leave out.

    Returns:
        Lattice distributions with one spacing, and their counts.

    Raises:
        Unresolvable: If no spacing below ``COARSEST_SPACING`` works.
    """
    while spacing < COARSEST_SPACING:
        lattices = [
            (discretise(distribution, spacing, tail), times)
            for distribution, times in distributions
        ]
        if all(lattice.lost <= 2 * tail for lattice, _ in lattices):
            return lattices
        spacing *= 2
    raise Unresolvable("no lattice spacing lets all cells be split within rounding")


def _compose_on(
    distributions: Sequence[tuple[LatticeDistribution, int]], plan: LatticePlan
) -> LatticeComposition:
    """Compose lattice distributions by one FFT over the plan's window."""
    order, (bottom, top) = plan.order, plan.window
    spacing = distributions[0][0].spacing
    start = math.floor(bottom / spacing)
    longest = max(len(distribution.masses) for distribution, _ in distributions)
    size = scipy.fft.next_fast_len(max(math.ceil(top / spacing) - start + 1, longest), real=True)
    tilted, l2_error, rounding = _tilted_composition(distributions, order, size)
    shift = start - sum(times * distribution.first for distribution, times in distributions)
    log_scale = sum(times * distribution.log_moment(order) for distribution, times in distributions)
    return LatticeComposition(
        spacing=spacing,
        start=start,
        tilted=np.roll(tilted, -(shift % size)),
        order=order,
        log_scale=log_scale,
        l1_error=rounding
        + _wrapped_mass(
            distributions, plan, log_scale, spacing * start, spacing * (start + size - 1)
        ),
        l2_error=l2_error,
        lost=-math.expm1(
            sum(times * math.log1p(-distribution.lost) for distribution, times in distributions)
        ),
        steps=sum(times for _, times in distributions),
        lift=sum(times * distribution.lift for distribution, times in distributions),
        misplaced=sum(times * distribution.misplaced for distribution, times in distributions),
    )


def _tilted_composition(
    distributions: Sequence[tuple[LatticeDistribution, int]], order: float, size: int
) -> tuple[Array, float, float]:
    """Return the tilted composition modulo ``size``, its L2 error and the masses' L1 error.

    An FFT of length n has an error of at most about 4 u log2(n) times its L2 norm (Higham 2002,
    Theorem 24.2). A factor F_i with an error of at most e_i changes the product by at most
    prod (|F_i| + e_i)^T_i - prod |F_i|^T_i.
    """
    fft_error = 8 * UNIT_ROUNDOFF * math.log2(size)
    log_product = np.zeros(size // 2 + 1, dtype=np.complex128)
    log_growth = np.zeros(size // 2 + 1)
    log_rounding = 0.0
    for distribution, times in distributions:
        masses, rounding = distribution.tilted(order)
        transform = scipy.fft.rfft(masses, size)
        error = fft_error * math.sqrt(size * float(masses @ masses))
        with np.errstate(divide="ignore"):
            modulus = np.maximum(np.abs(transform), 1e-300)
            log_product += times * np.log(np.where(transform == 0, 1e-300, transform))
        log_growth += times * (np.log1p(error / modulus) + 16 * UNIT_ROUNDOFF)
        log_rounding += times * math.log1p(rounding)
    log_modulus = log_product.real
    # Frequencies whose power underflows must keep their error: add logarithms, then subtract.
    # The cap is far above 1, where any error makes the bound trivial.
    grown = np.exp(np.minimum(log_modulus + log_growth, 300.0))
    errors = grown * -np.expm1(-log_growth)
    product = np.exp(log_product)
    tilted = scipy.fft.irfft(product, size)
    both_halves = math.sqrt(2 * float(errors @ errors) / size)
    l2_error = both_halves + fft_error * math.sqrt(float(tilted @ tilted))
    return tilted, l2_error, math.expm1(min(700.0, log_rounding))


def _wrapped_mass(
    distributions: Sequence[tuple[LatticeDistribution, int]],
    plan: LatticePlan,
    log_scale: float,
    bottom: float,
    top: float,
) -> float:
    """Return twice Chernoff's bound on the tilted probability of a sum outside [bottom, top].

    Twice, because wrapped mass is missing at one place and appears at another.
    """
    down, up = plan.wrap_orders
    above = (
        sum(t * distribution.log_moment(plan.order + up) for distribution, t in distributions)
        - log_scale
        - up * top
    )
    below = (
        sum(t * distribution.log_moment(plan.order - down) for distribution, t in distributions)
        - log_scale
        + down * bottom
    )
    return 2 * (math.exp(min(0.0, above)) + math.exp(min(0.0, below)))
