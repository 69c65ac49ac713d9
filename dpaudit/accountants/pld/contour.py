"""delta(epsilon) of a composition by a contour integral, with every error inside a bound.

With S the composed loss, phi the characteristic function of its law tilted by exp(c S) and
z = c + i y (Alghamdi et al. 2023; Zhu, Dong & Wang 2022),

    delta(epsilon) = (1/pi) Re int_0^inf e^(K(c) - c epsilon) phi(y) e^(-i y epsilon)
                     kappa(z) / (z (z + 1)) dy.

The trapezoid rule with spacing 2 pi / B gives sum_k e^(c k B) delta(epsilon + k B): aliases
are not negative, so they touch the lower bound alone, and Chernoff bounds them.

kappa = 1 where phi falls fast. Elsewhere delta is smoothed first: see ``kernel``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from dpaudit.accountants.pld.cumulants import Cumulants, Ledger
from dpaudit.accountants.pld.kernel import LARGEST_EXPONENT, Kernel
from dpaudit.accountants.pld.losses import Points
from dpaudit.accountants.pld.transform import characteristic
from dpaudit.vocabulary.errors import Unresolvable

Array = NDArray[np.float64]
ComplexArray = NDArray[np.complex128]

UNIT_ROUNDOFF = 2.0**-53
NEXT_TO_NOTHING = 1e-20
LEAST_SQUARE = 1e-15  # of |1 + z|: below it nothing is left of the logarithm's digits
LARGEST_GROWTH = 300.0  # far above 1, where any error says nothing


@dataclass(frozen=True)
class Transform:
    """The composition's tilted characteristic function at 0, h, 2h, ..., about its mean.

    Attributes:
        order: The tilt c.
        spacing: Distance of frequencies.
        values: Shape ``(n,)``, phi^T.
        errors: Shape ``(n,)``, bounds on their errors.
        mean: Mean of the tilted composed loss.
        log_moment: K(c), and ``log_moment_error`` its error.
        points: What each law was evaluated on.
    """

    order: float
    spacing: float
    values: ComplexArray
    errors: Array
    mean: float
    log_moment: float
    log_moment_error: float
    points: tuple[Points, ...]

    @property
    def frequencies(self) -> Array:
        """0, h, 2h, ..."""
        return np.asarray(self.spacing * np.arange(len(self.values)))

    @property
    def reach(self) -> float:
        """The last frequency."""
        return self.spacing * (len(self.values) - 1)

    def deviation(self, ledger: Ledger) -> float:
        """Return the standard deviation of the tilted composed loss."""
        variance = ledger.gaussian
        for (_, times), points in zip(ledger.laws, self.points, strict=True):
            mean = float(points.masses @ points.losses)
            variance += times * float(points.masses @ (points.losses - mean) ** 2)
        return math.sqrt(variance)


def transform(
    ledger: Ledger, order: float, spacing: float, count: int, ahead: float = 1.0
) -> Transform:
    """Return the composition's characteristic function, tilted by ``order``.

    Its points are good for frequencies ``ahead`` times as high.
    A factor known up to e makes its T-th power err by at most (|phi| + e)^T - |phi|^T.
    """
    y = spacing * np.arange(count)
    log_values = -0.5 * ledger.gaussian * y * y + 0j
    log_growth = np.zeros(count)
    mean = ledger.gaussian * (order + 0.5)
    log_moment = 0.5 * ledger.gaussian * order * (order + 1)
    log_moment_error = 4 * UNIT_ROUNDOFF * log_moment
    all_points = []
    for law, times in ledger.laws:
        points = law.points(order, ahead * spacing * count)
        centre = float(points.masses @ points.losses)
        factor, error = characteristic(points.losses - centre, points.masses, spacing, count)
        modulus = np.maximum(np.abs(factor), 1e-300)
        with np.errstate(divide="ignore", invalid="ignore"):
            log_values += times * np.log(np.where(factor == 0, 1e-300, factor))
        error += points.error + _rounding(points, spacing * count)
        log_growth += times * np.log1p(error / modulus)
        mean += times * centre
        log_moment += times * points.log_moment
        log_moment_error += times * (points.error + 4 * UNIT_ROUNDOFF)
        all_points.append(points)
    growth = np.exp(np.minimum(log_values.real + log_growth, LARGEST_GROWTH))
    values = np.exp(log_values)
    return Transform(
        order,
        spacing,
        values,
        growth * -np.expm1(-log_growth) + 8 * UNIT_ROUNDOFF * np.abs(values),
        mean,
        log_moment,
        log_moment_error + _summing(ledger, log_moment),
        tuple(all_points),
    )


def _rounding(points: Points, reach: float) -> float:
    """Bound what rounded losses do to phases up to ``reach``, and a logarithm to phi."""
    return 4 * UNIT_ROUNDOFF * (2 + reach * float(points.masses @ np.abs(points.losses)))


def _summing(ledger: Ledger, total: float) -> float:
    """Bound the rounding of a sum over the ledger's laws; moments of c > 0 are at least 1."""
    return UNIT_ROUNDOFF * (8 + 2 * len(ledger.laws)) * (1 + abs(total))


def jump_transform(
    below: Ledger, above: Ledger, order: float, spacing: float, count: int
) -> Transform:
    """Return the same for what at least one loss from ``above`` adds to ``below``.

    prod (A_i + B_i)^T_i - prod A_i^T_i, scaled to 1 at frequency 0. As a polynomial in all
    A_i and B_i it has no negative coefficient, so errors a_i and b_i change it by at most
    its value at (|A_i| + a_i, |B_i| + b_i) less that at (|A_i|, |B_i|).
    """
    y = spacing * np.arange(count)
    log_base = -0.5 * below.gaussian * y * y + 0j
    log_ratio = np.zeros(count, dtype=np.complex128)
    plain, grown = np.zeros((2, count)), np.zeros((2, count))
    mean = below.gaussian * (order + 0.5)
    log_moment = 0.5 * below.gaussian * order * (order + 1)
    log_moment_error = 4 * UNIT_ROUNDOFF * log_moment
    for (low, times), (high, _) in zip(below.laws, above.laws, strict=True):
        small = low.points(order, spacing * count)
        centre = float(small.masses @ small.losses)
        a, a_error = characteristic(small.losses - centre, small.masses, spacing, count)
        a_error += small.error + _rounding(small, spacing * count)
        b, b_error = np.zeros(count, dtype=np.complex128), 0.0
        if high.branches or len(high.atom_losses):
            large = high.points(order, spacing * count)
            weight = math.exp(min(large.log_moment - small.log_moment, LARGEST_GROWTH))
            b, b_error = characteristic(large.losses - centre, large.masses, spacing, count)
            b_error += large.error + _rounding(large, spacing * count)
            b, b_error = weight * b, weight * b_error
        modulus = np.maximum(np.abs(a), 1e-150)
        a = np.where(np.abs(a) < 1e-150, 1e-150, a)
        log_base += times * np.log(a)
        log_ratio += times * _log1p(b / a)
        plain += times * np.array([np.log(modulus), np.log1p(np.abs(b) / modulus)])
        most = modulus + a_error
        grown += times * np.array([np.log(most), np.log1p((np.abs(b) + b_error) / most)])
        mean += times * centre
        log_moment += times * small.log_moment
        log_moment_error += times * (small.error + 4 * UNIT_ROUNDOFF)
    values = np.exp(log_base) * _expm1(log_ratio)
    norm = float(values[0].real)
    gaussian = -0.5 * below.gaussian * y * y
    most, least = (
        np.exp(np.minimum(gaussian + part[0], LARGEST_GROWTH))
        * np.expm1(np.minimum(part[1], LARGEST_GROWTH))
        for part in (grown, plain)
    )
    errors = np.maximum(most - least, 0.0) + 64 * UNIT_ROUNDOFF * most
    if not norm > 0:
        raise Unresolvable("what large losses add is lost in rounding")
    return Transform(
        order,
        spacing,
        values / norm,
        errors / norm,
        mean,
        log_moment + math.log(norm),
        log_moment_error + _summing(below, log_moment),
        (),
    )


def _log1p(z: ComplexArray) -> ComplexArray:
    """log(1 + z) to relative precision near 0, which numpy's own has not."""
    real = 0.5 * np.log1p(np.maximum(z.real * (2 + z.real) + z.imag**2, LEAST_SQUARE - 1))
    return np.asarray(real + 1j * np.arctan2(z.imag, 1 + z.real))


def _expm1(z: ComplexArray) -> ComplexArray:
    """exp(z) - 1 to relative precision near 0."""
    grown = np.exp(np.minimum(z.real, LARGEST_GROWTH))
    real = np.expm1(np.minimum(z.real, LARGEST_GROWTH)) * np.cos(z.imag)
    return np.asarray(real - 2 * np.sin(z.imag / 2) ** 2 + 1j * grown * np.sin(z.imag))


@dataclass(frozen=True)
class Series:
    """Re sum_k terms_k e^(-i y_k x), y_k = k spacing, without the terms next to nothing.

    Attributes:
        spacing: Distance of frequencies.
        terms: Shape ``(n,)``.
        size: The terms' moduli summed, and ``moment`` the same weighted by frequency.
        errors: The moduli of the errors of all terms, and of those left out, summed.
    """

    spacing: float
    terms: ComplexArray
    size: float
    moment: float
    errors: float

    @classmethod
    def of(cls, transform: Transform, factors: ComplexArray) -> Series:
        """Return the series of ``transform``'s values times ``factors``."""
        terms = transform.values * factors
        moduli = np.abs(terms)
        held = np.flatnonzero(moduli > NEXT_TO_NOTHING * moduli.max())
        count = int(held[-1]) + 1 if len(held) else 1
        errors = float(transform.errors @ np.abs(factors)) + float(moduli[count:].sum())
        moment = float(moduli[:count] @ transform.frequencies[:count])
        return cls(transform.spacing, terms[:count], float(moduli[:count].sum()), moment, errors)

    def at(self, x: float) -> float:
        """Return the sum at ``x``."""
        phases = self.spacing * x * np.arange(len(self.terms))
        return float(np.cos(phases) @ self.terms.real + np.sin(phases) @ self.terms.imag)


@dataclass(frozen=True)
class Contour:
    """The integrand, ready to be summed at any epsilon; ``kernel`` None: not smoothed.

    Attributes:
        transform: phi^T.
        kernel: The smoothing, if any.
        truncation: Bound on what the frequencies beyond the last would add to the sum.
        cumulants: For the aliases.
    """

    transform: Transform
    kernel: Kernel | None
    truncation: float
    cumulants: Cumulants

    @cached_property
    def _series(self) -> Series:
        """The sum that gives delta, or its smoothed mean g."""
        z = self._contour
        factors = self._trapezoid / (z * (z + 1))
        return Series.of(self.transform, factors if self.kernel is None else factors * self._kappa)

    @cached_property
    def _density(self) -> Series:
        """The sum that gives j: see ``kernel``."""
        return Series.of(self.transform, self._trapezoid * self._kappa)

    @property
    def _contour(self) -> ComplexArray:
        return np.asarray(self.transform.order + 1j * self.transform.frequencies, np.complex128)

    @cached_property
    def _kappa(self) -> ComplexArray:
        # Where its rounding is large beside it, it is e^-beta of what it is at 0.
        assert self.kernel is not None
        return self.kernel.transform(self._contour)

    @property
    def _trapezoid(self) -> Array:
        weights = np.full(len(self.transform.values), self.transform.spacing / math.pi)
        weights[0] *= 0.5
        return weights

    def _sum(self, epsilon: float) -> tuple[float, float]:
        """Return the sum at ``epsilon`` and a bound on its error."""
        value, error = self._evaluated(self._series, epsilon)
        return value, error + self.truncation

    def _evaluated(self, series: Series, epsilon: float) -> tuple[float, float]:
        t = self.transform
        value = series.at(epsilon - t.mean)
        exponents = abs(t.log_moment) + abs(t.order * epsilon) + abs(t.order * t.mean)
        rounding = UNIT_ROUNDOFF * (len(series.terms) + 32 + 8 * exponents) + t.log_moment_error
        shift = UNIT_ROUNDOFF * (8 + 2 * len(t.points)) * (abs(epsilon) + abs(t.mean))
        return value, (
            series.errors + series.size * math.expm1(min(rounding, 1.0)) + shift * series.moment
        )

    def _scale(self, epsilon: float) -> float:
        exponent = self.transform.log_moment - self.transform.order * epsilon
        return math.exp(min(LARGEST_EXPONENT, exponent))

    def sum(self, epsilon: float) -> float:
        """Return about the sum itself, before it is scaled to a delta."""
        return self._sum(epsilon)[0]

    def doubt(self, epsilon: float) -> float:
        """Return the error of the sum over the sum, infinite where that is not above 0."""
        value, error = self._sum(epsilon)
        return error / value if value > 0 else math.inf

    def budget(self, epsilon: float) -> dict[str, float]:
        """Return what each kind of error may be at ``epsilon``, as a delta."""
        error, scale = self._sum(epsilon)[1], self._scale(epsilon)
        return {
            "frequencies beyond the last": scale * self.truncation,
            "quadrature, transform and rounding": scale * (error - self.truncation),
            "aliases (lower end alone)": self._aliases(epsilon),
        }

    def estimate(self, epsilon: float) -> float:
        """Return the sum itself, for searching: it bounds nothing."""
        return self._scale(epsilon) * self._sum(epsilon)[0]

    def upper(self, epsilon: float) -> float:
        """Return at least the measure's hockey-stick divergence at ``epsilon``."""
        value, error = self._sum(epsilon)
        return self._scale(epsilon) * (value + error)

    def lower(self, epsilon: float) -> float:
        """Return at most the measure's hockey-stick divergence at ``epsilon``."""
        value, error = self._sum(epsilon)
        least = value - error
        if self.kernel is not None:
            density, density_error = self._evaluated(self._density, epsilon)
            beyond = self.kernel.density_beyond(self.transform.order)
            least -= self.kernel.excess * (max(0.0, density) + density_error + beyond)
        return max(0.0, self._scale(epsilon) * least - self._aliases(epsilon))

    def _aliases(self, epsilon: float) -> float:
        """Bound the sum of e^(c k B) g(epsilon + k B) over k != 0.

        g(epsilon) <= delta(epsilon - h), and Chernoff at an order c' above c bounds the
        terms k > 0 by a geometric series, c' below c those with k < 0; or delta <= 1 does.
        """
        h = 0.0 if self.kernel is None else self.kernel.half_width
        period, order = 2 * math.pi / self.transform.spacing, self.transform.order
        orders = self.cumulants.orders
        log_delta = self.cumulants.log_chernoff(epsilon - h)
        with np.errstate(over="ignore"):
            gap = np.abs(orders - order) * period
            log_sums = log_delta - gap - np.log(-np.expm1(-np.maximum(gap, 1e-300)))
        above, below = orders > order * 1.001, orders < order * 0.999
        right = float(log_sums[above].min()) if above.any() else LARGEST_EXPONENT
        left = -order * period - math.log(-math.expm1(-order * period))
        if below.any():
            left = min(left, float(log_sums[below].min()))
        return math.exp(min(right, LARGEST_EXPONENT)) + math.exp(left)
