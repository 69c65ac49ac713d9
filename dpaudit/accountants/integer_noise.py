"""Integer vectors with discrete noise: sensitivities, distances and Renyi bounds.

The change of an integer vector between neighbors has integer coordinates, so its norms restrict
each other: with l1 and l2 the norms and d the dimension,

    l1 <= l2^2,   l1 <= sqrt(d) l2,   l2 <= l1,   at most l1 coordinates change.

A coordinate that does not change has the same distribution for both neighbors. It adds nothing to
a divergence, so bounds that grow with the dimension use the number of changed coordinates.

The derivations are in docs/mathematics/federated_mechanisms.md; equation numbers refer to it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from dpaudit.accountants.rounding_margins import ROUND_UP
from dpaudit.vocabulary.errors import UnsupportedMechanism
from dpaudit.vocabulary.mechanism import (
    DiscreteGaussian,
    DistributedDiscreteGaussian,
    IntegerVectorNoise,
    Skellam,
    VectorDiscreteGaussian,
)

Array = NDArray[np.float64]

# sqrt(3.0)**2 is below 3: norms are rounded to integers with this relative margin.
NORM_MARGIN = 1e-12
MOST_ATTAINED_COORDINATES = 8
# Above this square of the scale the sums over integers are evaluated by Poisson summation.
LEAST_POISSON_SQUARE = 0.25
EXACT_OSCILLATION_TERMS = 1000
LEAST_PUBLISHED_SCALE = 0.5  # of one share, in the theorem of Kairouz, Liu & Steinke


@dataclass(frozen=True)
class IntegerChange:
    """Largest change of an integer vector between neighbors.

    Attributes:
        l1: Largest L1 norm, an integer.
        l2_squared: Largest squared L2 norm, an integer.
        coordinates: Largest number of coordinates that change at once.
    """

    l1: int
    l2_squared: int
    coordinates: int

    @property
    def largest_shift(self) -> int:
        """Largest change of one coordinate, if no other one changes."""
        return min(self.l1, math.isqrt(self.l2_squared))

    def attained_shifts(self) -> tuple[int, ...]:
        """Return the changes of single coordinates that together form one allowed change.

        The largest shift comes first, then the largest that the rest of both norms allows.

        Returns:
            Positive integers, at most ``MOST_ATTAINED_COORDINATES`` of them.
        """
        l1, square, shifts = self.l1, self.l2_squared, []
        for _ in range(min(self.coordinates, MOST_ATTAINED_COORDINATES)):
            shift = min(l1, math.isqrt(square))
            if shift == 0:
                break
            shifts.append(shift)
            l1, square = l1 - shift, square - shift * shift
        return tuple(shifts)


def integer_change(mechanism: IntegerVectorNoise) -> IntegerChange:
    """Return the sensitivities of a mechanism, each as small as the others allow.

    Args:
        mechanism: Noise on an integer vector.

    Returns:
        The largest change between neighbors.

    Example:
        >>> from dpaudit.accountants import Skellam
        >>> integer_change(Skellam(9.0, l1_sensitivity=50.0, l2_sensitivity=3.5, dimension=100))
        IntegerChange(l1=12, l2_squared=12, coordinates=12)
    """
    grown = 1 + NORM_MARGIN
    square = math.floor(mechanism.l2_sensitivity * mechanism.l2_sensitivity * grown)
    l1 = min(
        math.floor(mechanism.l1_sensitivity * grown),
        square,
        math.isqrt(mechanism.dimension * square),
    )
    return IntegerChange(l1, min(square, l1 * l1), min(mechanism.dimension, l1))


def scalar_form(mechanism: IntegerVectorNoise) -> DiscreteGaussian | IntegerVectorNoise:
    """Return the simplest equivalent release: fewer shares, or one coordinate.

    If one coordinate alone can change, the others are equally distributed for both neighbors, and
    the mechanism is that of one coordinate.

    Args:
        mechanism: Noise on an integer vector.

    Returns:
        A ``DiscreteGaussian`` where there is one share and one coordinate; otherwise the same
        kind, in the form of one coordinate where this applies.
    """
    change = integer_change(mechanism)
    match mechanism:
        case DistributedDiscreteGaussian(scale, 1, l2, l1, dimension):
            return scalar_form(VectorDiscreteGaussian(scale, l2, l1, dimension))
        case _ if change.coordinates > 1:
            return mechanism
    shift = change.largest_shift
    match mechanism:
        case VectorDiscreteGaussian(scale):
            return DiscreteGaussian(scale, shift)
        case DistributedDiscreteGaussian(scale, shares):
            return DistributedDiscreteGaussian(scale, shares, float(shift), float(shift), 1)
        case Skellam(variance):
            return Skellam(variance, float(shift), float(shift), 1)


def theta_oscillation(square: float) -> float:
    """Bound the log of the largest over the smallest sum of a Gaussian over moved integers.

    The sums are sum_x exp(-(x - m)^2 / (2 square)) over the integers x, for real m (equation 1).

    Args:
        square: Square of the scale; above 0.

    Returns:
        Upper bound in nats; about 4 exp(-2 pi^2 square) for large squares.
    """
    if square >= LEAST_POISSON_SQUARE:
        first = math.exp(-2 * math.pi**2 * square * (1 - 1e-14))
        waves = first / (1 - first**3) * ROUND_UP
        return (math.log1p(2 * waves) - math.log1p(-2 * waves)) * ROUND_UP
    # Largest sum at m = 0; smallest at m = 1/2, at least its four largest terms.
    top = 1 + 2 * math.exp(-1 / (2 * square)) / (1 - math.exp(-3 / (2 * square)))
    bottom = 2 * (1 + math.exp(-1 / square))
    return (math.log(top / bottom) + 1 / (8 * square)) * ROUND_UP


def square_for_oscillation(oscillation: float) -> float:
    """Return a square whose ``theta_oscillation`` is about a given one.

    Args:
        oscillation: The target in nats, above 0 and at most 0.1.

    Returns:
        The square of a scale.
    """
    return math.log(4 / oscillation) / (2 * math.pi**2)


@lru_cache(maxsize=1024)
def sum_oscillation(scale: float, shares: int) -> float:
    """Bound how far a sum of discrete Gaussians is from one, per coordinate.

    The mass of the sum over that of the discrete Gaussian of scale sqrt(shares) * scale varies by
    a factor of at most the exponential of this bound (equation 6).

    Args:
        scale: Scale of one share.
        shares: Number of shares, at least 1.

    Returns:
        Upper bound of the log of the largest over the smallest ratio, in nats.
    """
    exact = min(shares, EXACT_OSCILLATION_TERMS)
    terms = [theta_oscillation(scale * scale * k / (k + 1)) for k in range(1, exact)]
    rest = shares - exact
    if rest:
        terms.append(rest * theta_oscillation(scale * scale * exact / (exact + 1)))
    return sum(terms) * ROUND_UP


def published_tau(scale: float, shares: int) -> float:
    """Return tau of Kairouz, Liu & Steinke: 10 sum_(k<n) exp(-2 pi^2 scale^2 k/(k+1)), rounded up.

    Args:
        scale: Scale of one share; the theorem needs at least 1/2.
        shares: Number of shares n, at least 1.

    Returns:
        Their distance per coordinate, in nats; infinite where the theorem does not apply.

    References:
        Kairouz, Liu & Steinke (2021), arXiv:2102.06387, Theorem 1.
    """
    if shares > 1 and scale < LEAST_PUBLISHED_SCALE:
        return math.inf
    k = np.arange(1, min(shares, EXACT_OSCILLATION_TERMS), dtype=np.float64)
    exponent = -2 * math.pi**2 * scale * scale * (1 - 1e-14)
    total = float(np.exp(exponent * k / (k + 1)).sum())
    rest = shares - 1 - len(k)
    last = EXACT_OSCILLATION_TERMS / (EXACT_OSCILLATION_TERMS + 1)
    return 10 * (total + rest * math.exp(exponent * last)) * ROUND_UP


def noise_square(mechanism: VectorDiscreteGaussian | DistributedDiscreteGaussian) -> float:
    """Return the square of the scale of the discrete Gaussian that the noise equals or approaches.

    Args:
        mechanism: Discrete Gaussian noise, or a sum of such noise.

    Returns:
        scale^2, times the number of shares.
    """
    match mechanism:
        case VectorDiscreteGaussian(scale):
            return scale * scale
        case DistributedDiscreteGaussian(scale, shares):
            return shares * scale * scale


def concentrated_rho(mechanism: VectorDiscreteGaussian | DistributedDiscreteGaussian) -> float:
    """Return rho of zCDP: D_a <= a rho at every order a > 1.

    With s the scale of the sum, t the published distance and m changed coordinates, rho is half
    of min(l2^2/s^2 + 2 l1 t/s + m t^2, (l2/s + sqrt(m) t)^2), with t = 0 for one share.

    Args:
        mechanism: Discrete Gaussian noise, or a sum of such noise.

    Returns:
        Upper bound of rho; infinite where a share's scale is below 1/2.

    References:
        Canonne, Kamath & Steinke (2020), arXiv:2004.00010, Theorem 14; Kairouz, Liu & Steinke
        (2021), arXiv:2102.06387, Proposition 14.
    """
    change, square = integer_change(mechanism), noise_square(mechanism)
    ratio = change.l2_squared / square
    match mechanism:
        case VectorDiscreteGaussian():
            return ratio / 2 * (1 + 1e-15)
        case DistributedDiscreteGaussian(scale, shares):
            tau, m, s = published_tau(scale, shares), change.coordinates, math.sqrt(square)
            if not tau < math.inf:
                return math.inf
            by_l1 = ratio + 2 * change.l1 * tau / s + m * tau * tau
            by_l2 = (math.sqrt(ratio) + math.sqrt(m) * tau) ** 2
            return min(by_l1, by_l2) / 2 * ROUND_UP


def renyi_upper(mechanism: IntegerVectorNoise, orders: Array) -> Array:
    """Bound the Renyi divergence between the outputs on neighbors from above.

    Args:
        mechanism: Noise on an integer vector.
        orders: Orders a above 1, shape ``(k,)``.

    Returns:
        Upper bounds in nats, shape ``(k,)``; the least of all that apply.

    References:
        Canonne, Kamath & Steinke (2020), arXiv:2004.00010; Kairouz, Liu & Steinke (2021),
        arXiv:2102.06387, Proposition 14; Agarwal, Kairouz & Liu (2021), arXiv:2110.04995.
    """
    match mechanism:
        case VectorDiscreteGaussian():
            return orders * concentrated_rho(mechanism) * (1 + 1e-15)
        case DistributedDiscreteGaussian():
            return _sum_divergence(mechanism, orders)
        case Skellam():
            return skellam_divergence(mechanism, orders)


def _sum_divergence(mechanism: DistributedDiscreteGaussian, orders: Array) -> Array:
    """Return the least of the published bounds and of equation 7, for a sum of shares."""
    change, square = integer_change(mechanism), noise_square(mechanism)
    gaussian = orders * (change.l2_squared / square / 2)
    tau = published_tau(mechanism.scale, mechanism.shares)
    oscillation = sum_oscillation(mechanism.scale, mechanism.shares)
    bounds = [gaussian + orders / (orders - 1) * change.coordinates * oscillation]
    if tau < math.inf:
        bounds += [gaussian + change.coordinates * tau, orders * concentrated_rho(mechanism)]
    return np.asarray(np.minimum.reduce(bounds) * ROUND_UP)


def skellam_divergence(mechanism: Skellam, orders: Array) -> Array:
    """Bound the Renyi divergence of Skellam noise at real orders.

    At integer orders a, with v the variance,

        D_a <= a l2^2/(2 v) + min(((2 a - 1) l2^2 + 6 l1)/(4 v^2), 3 l1/(2 v)).

    Between integer orders the chord of (a - 1) D_a is above it, as in ``sampled_releases``.

    Args:
        mechanism: Skellam noise.
        orders: Orders a above 1, shape ``(k,)``.

    Returns:
        Upper bounds in nats, shape ``(k,)``.

    References:
        Agarwal, Kairouz & Liu (2021), arXiv:2110.04995, Theorem 3.5.
    """
    low, high = np.floor(orders), np.ceil(orders)
    # (a - 1) D_a is 0 at a = 1, whatever the bound says there.
    left = (low - 1) * _skellam_at_integers(mechanism, low)
    right = (high - 1) * _skellam_at_integers(mechanism, high)
    chord = left + (right - left) * (orders - low)
    return np.asarray(chord / (orders - 1) * ROUND_UP)


def _skellam_at_integers(mechanism: Skellam, orders: Array) -> Array:
    """Evaluate the theorem at integer orders."""
    change, v = integer_change(mechanism), mechanism.variance
    square, l1 = float(change.l2_squared), float(change.l1)
    near = ((2 * orders - 1) * square + 6 * l1) / (4 * v) / v
    return np.asarray(orders * square / (2 * v) + np.minimum(near, 3 * l1 / (2 * v)))


def require_concentrated(mechanism: IntegerVectorNoise) -> float:
    """Return rho of zCDP, or raise where none is known.

    Args:
        mechanism: Noise on an integer vector.

    Returns:
        Upper bound of rho.

    Raises:
        UnsupportedMechanism: For Skellam noise, and for sums of narrow discrete Gaussians.
    """
    match mechanism:
        case Skellam():
            raise UnsupportedMechanism(
                mechanism,
                "its divergence is bounded at integer orders only, which gives no rho: use rdp or "
                "pld",
            )
        case VectorDiscreteGaussian() | DistributedDiscreteGaussian():
            rho = concentrated_rho(mechanism)
            if rho < math.inf:
                return rho
            raise UnsupportedMechanism(
                mechanism,
                f"no rho is known for shares of scale below {LEAST_PUBLISHED_SCALE:g}: use rdp or "
                "pld",
            )
