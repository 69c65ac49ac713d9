"""delta(epsilon) of a composition by a contour integral, with all errors inside the bounds.

With S the composed loss and K(z) = log E[e^(z S)], the inversion formula

    (1 - e^-u)+ = (1 / 2 pi i) int_{Re z = c} e^(z u) / (z (z + 1)) dz,    c > 0,

gives delta(epsilon) = (1 / 2 pi i) int e^(K(z) - z epsilon) / (z (z + 1)) dz. With phi the
characteristic function of S tilted by exp(c S), and z = c + i y (Alghamdi et al. 2023; Zhu,
Dong & Wang 2022), that is

    delta(epsilon) = (1/pi) Re int_0^inf e^(K(c) - c epsilon) phi(y) e^(-i y epsilon)
                     kappa(z) / (z (z + 1)) dy.

kappa = 1 where phi falls fast. Elsewhere delta is smoothed first: see ``smoothing_kernel``.

The trapezoid rule with spacing 2 pi / B gives sum_k e^(c k B) delta(epsilon + k B), by
Poisson summation. The aliases k != 0 are not negative, so they affect the lower bound only.
Chernoff's inequality bounds them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from dpaudit.accountants.pld.contour.integrand import (
    LARGEST_EXPONENT,
    SmoothingKernel,
    characteristic_values,
)
from dpaudit.accountants.pld.laws.composition import Composition, Cumulants
from dpaudit.accountants.pld.laws.loss_distribution import TiltedPoints
from dpaudit.accountants.rounding_margins import UNIT_ROUNDOFF
from dpaudit.vocabulary.errors import Unresolvable

Array = NDArray[np.float64]
ComplexArray = NDArray[np.complex128]

NEGLIGIBLE_TERM = 1e-20  # relative to the largest term of a sum
MIN_SQUARE = 1e-15  # floor of |1 + z|^2: below it the logarithm has no correct digits
LARGEST_GROWTH = 300.0  # cap of log moduli: far above 1, where an error bound is trivial


@dataclass(frozen=True)
class TiltedTransform:
    """The composition's tilted characteristic function at 0, h, 2h, ..., about its mean.

    Attributes:
        order: The tilt c.
        spacing: Distance h of frequencies, in 1/nats.
        values: phi, the product over all releases, shape ``(n,)``.
        errors: Upper bounds on the errors of ``values``, shape ``(n,)``.
        mean: Mean of the tilted composed loss, in nats.
        log_moment: K(c).
        log_moment_error: Upper bound on the error of ``log_moment``.
        points: Tilted points of each distribution.
    """

    order: float
    spacing: float
    values: ComplexArray
    errors: Array
    mean: float
    log_moment: float
    log_moment_error: float
    points: tuple[TiltedPoints, ...]

    @property
    def frequencies(self) -> Array:
        """The frequencies 0, h, 2h, ..., shape ``(n,)``, in 1/nats."""
        return np.asarray(self.spacing * np.arange(len(self.values)))

    @property
    def reach(self) -> float:
        """The last frequency, in 1/nats."""
        return self.spacing * (len(self.values) - 1)

    def deviation(self, composition: Composition) -> float:
        """Return the standard deviation of the tilted composed loss.

        Args:
            composition: The composition that the transform was made from.

        Returns:
            The standard deviation in nats.
        """
        variance = composition.gaussian
        for (_, times), points in zip(composition.distributions, self.points, strict=True):
            mean = float(points.masses @ points.losses)
            variance += times * float(points.masses @ (points.losses - mean) ** 2)
        return math.sqrt(variance)


def tilted_transform(
    composition: Composition, order: float, spacing: float, count: int, ahead: float = 1.0
) -> TiltedTransform:
    """Evaluate the composition's characteristic function, tilted by ``order``.

    A factor with an error of at most e has a T-th power with an error of at most
    (|phi| + e)^T - |phi|^T; the product of all factors likewise.

    Args:
        composition: The composed losses.
        order: Tilt c > 0.
        spacing: Distance of frequencies, in 1/nats.
        count: Number of frequencies, from 0.
        ahead: The points resolve frequencies this many times as high as the last one.

    Returns:
        The transform, with error bounds.
    """
    y = spacing * np.arange(count)
    with np.errstate(over="ignore"):  # -inf: the factor is below the least float
        log_values = -0.5 * composition.gaussian * y * y + 0j
    log_growth = np.zeros(count)
    mean = composition.gaussian * (order + 0.5)
    log_moment = 0.5 * composition.gaussian * order * (order + 1)
    log_moment_error = 4 * UNIT_ROUNDOFF * log_moment
    all_points = []
    for distribution, times in composition.distributions:
        points = distribution.points(order, ahead * spacing * count)
        centre = float(points.masses @ points.losses)
        factor, error = characteristic_values(points.losses - centre, points.masses, spacing, count)
        modulus = np.maximum(np.abs(factor), 1e-300)
        with np.errstate(divide="ignore", invalid="ignore"):
            log_values += times * np.log(np.where(factor == 0, 1e-300, factor))
        error += points.error + _phase_rounding(points, spacing * count)
        log_growth += times * np.log1p(error / modulus)
        mean += times * centre
        log_moment += times * points.log_moment
        log_moment_error += times * (points.error + 4 * UNIT_ROUNDOFF)
        all_points.append(points)
    # (|phi| + e)^T - |phi|^T = (|phi| + e)^T (1 - e^-g) with g = T log(1 + e / |phi|).
    growth = np.exp(np.minimum(log_values.real + log_growth, LARGEST_GROWTH))
    values = np.exp(log_values)
    return TiltedTransform(
        order,
        spacing,
        values,
        growth * -np.expm1(-log_growth) + 8 * UNIT_ROUNDOFF * np.abs(values),
        mean,
        log_moment,
        log_moment_error + _summation_rounding(composition, log_moment),
        tuple(all_points),
    )


def _phase_rounding(points: TiltedPoints, reach: float) -> float:
    """Bound the error of phi from rounded phases up to ``reach`` and from its logarithm."""
    return 4 * UNIT_ROUNDOFF * (2 + reach * float(points.masses @ np.abs(points.losses)))


def _summation_rounding(composition: Composition, total: float) -> float:
    """Bound the rounding of a sum over all distributions; moments at c > 0 are at least 1."""
    return UNIT_ROUNDOFF * (8 + 2 * len(composition.distributions)) * (1 + abs(total))


def tilted_jump_transform(
    below: Composition, above: Composition, order: float, spacing: float, count: int
) -> TiltedTransform:
    """Evaluate the transform of what losses from ``above`` add to ``below``.

    With A_i and B_i the transforms of both parts of distribution i, the measure of the outcomes
    with at least one loss from ``above`` has the transform

        prod (A_i + B_i)^T_i - prod A_i^T_i,

    scaled to 1 at frequency 0. As a polynomial in all A_i and B_i it has no negative coefficient.
    Errors a_i and b_i thus change it by at most its value at (|A_i| + a_i, |B_i| + b_i) minus
    that at (|A_i|, |B_i|).

    Args:
        below: Composition of the losses up to a cap.
        above: Composition of the losses above it, from the same split.
        order: Tilt c > 0.
        spacing: Distance of frequencies, in 1/nats.
        count: Number of frequencies, from 0.

    Returns:
        The transform, with error bounds and without points.

    Raises:
        Unresolvable: If the contribution of the large losses is lost in rounding.
    """
    y = spacing * np.arange(count)
    log_base = -0.5 * below.gaussian * y * y + 0j
    log_ratio = np.zeros(count, dtype=np.complex128)
    plain, grown = np.zeros((2, count)), np.zeros((2, count))
    mean = below.gaussian * (order + 0.5)
    log_moment = 0.5 * below.gaussian * order * (order + 1)
    log_moment_error = 4 * UNIT_ROUNDOFF * log_moment
    for (low, times), (high, _) in zip(below.distributions, above.distributions, strict=True):
        small = low.points(order, spacing * count)
        centre = float(small.masses @ small.losses)
        a, a_error = characteristic_values(small.losses - centre, small.masses, spacing, count)
        a_error += small.error + _phase_rounding(small, spacing * count)
        b, b_error = np.zeros(count, dtype=np.complex128), 0.0
        if high.branches or len(high.atom_losses):
            large = high.points(order, spacing * count)
            weight = math.exp(min(large.log_moment - small.log_moment, LARGEST_GROWTH))
            b, b_error = characteristic_values(large.losses - centre, large.masses, spacing, count)
            b_error += large.error + _phase_rounding(large, spacing * count)
            b, b_error = weight * b, weight * b_error
        # log prod A^T, sum T log(1 + B/A), and both again at the moduli without and with errors.
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
    # prod (A + B)^T - prod A^T = prod A^T (exp(sum T log(1 + B/A)) - 1).
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
        raise Unresolvable("the contribution of large losses is lost in rounding")
    return TiltedTransform(
        order,
        spacing,
        values / norm,
        errors / norm,
        mean,
        log_moment + math.log(norm),
        log_moment_error + _summation_rounding(below, log_moment),
        (),
    )


def _log1p(z: ComplexArray) -> ComplexArray:
    """Return log(1 + z), accurate to relative precision near 0 (``numpy.log1p`` is not)."""
    real = 0.5 * np.log1p(np.maximum(z.real * (2 + z.real) + z.imag**2, MIN_SQUARE - 1))
    return np.asarray(real + 1j * np.arctan2(z.imag, 1 + z.real))


def _expm1(z: ComplexArray) -> ComplexArray:
    """Return exp(z) - 1, accurate to relative precision near 0."""
    grown = np.exp(np.minimum(z.real, LARGEST_GROWTH))
    real = np.expm1(np.minimum(z.real, LARGEST_GROWTH)) * np.cos(z.imag)
    return np.asarray(real - 2 * np.sin(z.imag / 2) ** 2 + 1j * grown * np.sin(z.imag))


@dataclass(frozen=True)
class FrequencySeries:
    """The trapezoid sum Re sum_k terms_k e^(-i y_k x), y_k = k spacing, without negligible terms.

    Attributes:
        spacing: Distance of frequencies, in 1/nats.
        terms: Shape ``(n,)``.
        size: Sum of the terms' moduli.
        moment: Sum of the terms' moduli, each times its frequency.
        errors: Sum of the moduli of all terms' errors and of the omitted terms.
    """

    spacing: float
    terms: ComplexArray
    size: float
    moment: float
    errors: float

    @classmethod
    def of(cls, transform: TiltedTransform, factors: ComplexArray) -> FrequencySeries:
        """Multiply a transform by factors and omit the negligible end.

        Args:
            transform: The tilted characteristic function, shape ``(n,)``.
            factors: Factors per frequency, shape ``(n,)``.

        Returns:
            The series.
        """
        terms = transform.values * factors
        moduli = np.abs(terms)
        relevant = np.flatnonzero(moduli > NEGLIGIBLE_TERM * moduli.max())
        count = int(relevant[-1]) + 1 if len(relevant) else 1
        errors = float(transform.errors @ np.abs(factors)) + float(moduli[count:].sum())
        moment = float(moduli[:count] @ transform.frequencies[:count])
        return cls(transform.spacing, terms[:count], float(moduli[:count].sum()), moment, errors)

    def at(self, x: float) -> float:
        """Evaluate the sum.

        Args:
            x: Loss relative to the transform's mean, in nats.

        Returns:
            The sum, with rounding errors.
        """
        phases = self.spacing * x * np.arange(len(self.terms))
        return float(np.cos(phases) @ self.terms.real + np.sin(phases) @ self.terms.imag)


@dataclass(frozen=True)
class ContourIntegral:
    """The integrand, which can be summed at any epsilon.

    Attributes:
        transform: phi, about the mean of the tilted loss.
        kernel: The smoothing kernel, or None without smoothing.
        truncation: Upper bound on the contribution of the frequencies beyond the last to the sum.
        cumulants: Cumulants around the order, for the bound on aliases.
    """

    transform: TiltedTransform
    kernel: SmoothingKernel | None
    truncation: float
    cumulants: Cumulants

    @cached_property
    def _series(self) -> FrequencySeries:
        """The trapezoid sum of delta, or of its smoothed mean g."""
        z = self._contour
        factors = self._trapezoid / (z * (z + 1))
        return FrequencySeries.of(
            self.transform, factors if self.kernel is None else factors * self._kappa
        )

    @cached_property
    def _density(self) -> FrequencySeries:
        """The trapezoid sum of j: see ``smoothing_kernel``."""
        return FrequencySeries.of(self.transform, self._trapezoid * self._kappa)

    @property
    def _contour(self) -> ComplexArray:
        """The points z = c + i y of the contour."""
        return np.asarray(self.transform.order + 1j * self.transform.frequencies, np.complex128)

    @cached_property
    def _kappa(self) -> ComplexArray:
        """The kernel's transform on the contour."""
        # Its relative rounding is large only where it is about e^-beta of its value at 0.
        assert self.kernel is not None
        return self.kernel.transform(self._contour)

    @property
    def _trapezoid(self) -> Array:
        """Weights of the trapezoid rule over pi: the frequency 0 counts half."""
        weights = np.full(len(self.transform.values), self.transform.spacing / math.pi)
        weights[0] *= 0.5
        return weights

    def with_truncation(self, truncation: float) -> ContourIntegral:
        """Return the same contour with another bound on the frequencies beyond the last.

        Args:
            truncation: The upper bound.

        Returns:
            The contour, which shares the sums that are evaluated already.
        """
        found = replace(self, truncation=truncation)
        # Where cached_property keeps its values: neither depends on the truncation.
        found.__dict__.update(_series=self._series, _sums=self._sums)
        return found

    @cached_property
    def _sums(self) -> dict[float, tuple[float, float]]:
        """The sum and the error bound without truncation, by epsilon."""
        return {}

    def _sum(self, epsilon: float) -> tuple[float, float]:
        """Return the sum at ``epsilon`` and an upper bound on its error."""
        if epsilon not in self._sums:
            self._sums[epsilon] = self._evaluated(self._series, epsilon)
        value, error = self._sums[epsilon]
        return value, error + self.truncation

    def _evaluated(self, series: FrequencySeries, epsilon: float) -> tuple[float, float]:
        """Return a series at ``epsilon`` and an upper bound on its error without truncation."""
        t = self.transform
        value = series.at(epsilon - t.mean)
        exponents = abs(t.log_moment) + abs(t.order * epsilon) + abs(t.order * t.mean)
        # Rounding of the scale e^(K - c epsilon) and of the sum, relative; and of the argument
        # epsilon - mean, which shifts the phase of the term at y by y times its error.
        rounding = UNIT_ROUNDOFF * (len(series.terms) + 32 + 8 * exponents) + t.log_moment_error
        shift = UNIT_ROUNDOFF * (8 + 2 * len(t.points)) * (abs(epsilon) + abs(t.mean))
        return value, (
            series.errors + series.size * math.expm1(min(rounding, 1.0)) + shift * series.moment
        )

    def _scale(self, epsilon: float) -> float:
        """Return e^(K(c) - c epsilon), the factor from the sum to delta."""
        exponent = self.transform.log_moment - self.transform.order * epsilon
        return math.exp(min(LARGEST_EXPONENT, exponent))

    def sum(self, epsilon: float) -> float:
        """Evaluate the sum before it is scaled to a delta: an estimate.

        Args:
            epsilon: Privacy loss in nats.

        Returns:
            The sum.
        """
        return self._sum(epsilon)[0]

    def relative_error(self, epsilon: float) -> float:
        """Return the error bound of the sum relative to the sum.

        Args:
            epsilon: Privacy loss in nats.

        Returns:
            The ratio; infinity where the sum is not positive.
        """
        value, error = self._sum(epsilon)
        return error / value if value > 0 else math.inf

    def budget(self, epsilon: float) -> dict[str, float]:
        """Return the size of each error.

        Args:
            epsilon: Privacy loss in nats.

        Returns:
            Upper bounds on the errors, by name, as differences of delta.
        """
        error, scale = self._sum(epsilon)[1], self._scale(epsilon)
        return {
            "frequencies beyond the last": scale * self.truncation,
            "quadrature, transform and rounding": scale * (error - self.truncation),
            "aliases (lower end alone)": self._aliases(epsilon),
        }

    def estimate(self, epsilon: float) -> float:
        """Estimate delta: for searches, not for bounds.

        Args:
            epsilon: Privacy loss in nats.

        Returns:
            The scaled sum.
        """
        return self._scale(epsilon) * self._sum(epsilon)[0]

    def upper(self, epsilon: float) -> float:
        """Bound the measure's hockey-stick divergence from above.

        Args:
            epsilon: Privacy loss in nats.

        Returns:
            The upper bound; aliases and smoothing only raise it.
        """
        value, error = self._sum(epsilon)
        return self._scale(epsilon) * (value + error)

    def lower(self, epsilon: float) -> float:
        """Bound the measure's hockey-stick divergence from below.

        Subtracts the aliases and, with smoothing, C j(epsilon): see ``smoothing_kernel``.

        Args:
            epsilon: Privacy loss in nats.

        Returns:
            The lower bound, at least 0.
        """
        value, error = self._sum(epsilon)
        # delta >= g - C j, with the bounds on both sums.
        least = value - error
        if self.kernel is not None:
            density, density_error = self._evaluated(self._density, epsilon)
            beyond = self.kernel.density_beyond(self.transform.order)
            least -= self.kernel.excess * (max(0.0, density) + density_error + beyond)
        return max(0.0, self._scale(epsilon) * least - self._aliases(epsilon))

    def _aliases(self, epsilon: float) -> float:
        """Bound the sum of e^(c k B) g(epsilon + k B) over k != 0.

        g(epsilon) <= delta(epsilon - h), with h = 0 without smoothing. Chernoff's inequality at an
        order c' bounds the term k by e^(X(c') + (c - c') k B), with X(c') its bound of log delta at
        epsilon - h. That is a geometric series in k > 0 for c' > c, and in k < 0 for c' < c. For
        k < 0 the terms are also at most e^(c k B), because delta <= 1.
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
