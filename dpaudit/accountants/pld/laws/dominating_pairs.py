"""Dominating pairs of releases on the whole data set, as distributions of the base loss.

For neighbors that differ by one record, Q is the output's distribution without the record
and P the one with it. The base loss is l = log(dP/dQ). Since dP = e^l dQ, the distribution of
l under Q determines the pair: densities on intervals, atoms, and the mass of P where Q has
none.

Every pair here is symmetric: exchanging P and Q does not change the loss distribution. That,
and that the pair dominates every other pair of its mechanism, is from:

Gaussian, Laplace     one dimension and the largest shift are the worst case: Balle & Wang
                      2018, arXiv:1805.06530; Zhu, Dong & Wang 2022, arXiv:2106.08567
RandomizedResponse    the output distributions of two different answers, by symmetry
PureDP, ApproximateDP Kairouz, Oh & Viswanath 2015, arXiv:1311.0776, Theorem 3.3
Discrete noise        log-concave masses: the largest shift is the worst case (equation 9 of
                      docs/mathematics/federated_mechanisms.md)
Exponential           the smallest hockey-stick curve above all mechanisms of that bounded
                      range: Dong, Durfee & Rogers 2020, arXiv:1909.13830, Lemma 3.4
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dpaudit.accountants.integer_noise import integer_change
from dpaudit.accountants.pld.laws.noise_tables import (
    LEAST_TAIL,
    ScalarNoise,
    noise_reach,
    noise_table,
)
from dpaudit.accountants.releases import gaussian_mu, randomized_response_loss
from dpaudit.vocabulary.errors import Unresolvable, UnsupportedMechanism
from dpaudit.vocabulary.mechanism import (
    ApproximateDP,
    DiscreteGaussian,
    DiscreteLaplace,
    DistributedDiscreteGaussian,
    Exponential,
    Gaussian,
    Laplace,
    PureDP,
    RandomizedResponse,
    Release,
    Skellam,
)
from dpaudit.vocabulary.privacy_terms import Adjacency

Array = NDArray[np.float64]

MAX_ATOMS = 2e6  # a table of more does not fit into memory


class LossDensity(Protocol):
    """An analytic density of the base loss under Q, on an interval."""

    @property
    def scale(self) -> float:
        """Length over which the density changes considerably, in nats."""

    @property
    def largest(self) -> float:
        """Largest base loss, in nats; the smallest is its negative."""

    def interval(self, tail: float, rate: float) -> tuple[float, float]:
        """Return an interval that holds all but ``tail`` of (1 - rate) Q + rate P, and of Q.

        Args:
            tail: Probability that may lie outside.
            rate: Sampling rate of P, in (0, 1].

        Returns:
            The smallest and the largest base loss of the interval, in nats.
        """

    def log_at(self, losses: Array) -> Array:
        """Return the logarithm of the density.

        Args:
            losses: Base losses in nats, shape ``(n,)``.

        Returns:
            Log density, shape ``(n,)``.
        """

    def slope_at(self, losses: Array) -> Array:
        """Return the derivative of the log density.

        Args:
            losses: Base losses in nats, shape ``(n,)``.

        Returns:
            Derivatives with respect to the base loss, shape ``(n,)``.
        """

    def log_upper_bound(self, low: Array, high: Array, away: Array) -> Array:
        """Bound log |density| on rectangles in the complex plane.

        Args:
            low: Smallest real parts; the three shapes broadcast.
            high: Largest real parts.
            away: Largest moduli of the imaginary parts.

        Returns:
            Upper bounds, of the broadcast shape.
        """


@dataclass(frozen=True)
class GaussianDensity:
    """N(shift, 1) against N(0, 1).

    The base loss of an output x is l = shift x - shift^2/2, so l ~ N(-shift^2/2, shift^2) under Q.

    Attributes:
        shift: Sensitivity over the noise's standard deviation (mu).
    """

    shift: float

    @property
    def scale(self) -> float:
        """The standard deviation of the base loss, in nats."""
        return self.shift

    @property
    def largest(self) -> float:
        """Infinity: the base loss is unbounded."""
        return math.inf

    def interval(self, tail: float, rate: float) -> tuple[float, float]:
        """Truncate Q at both ends, and P, which has the weight ``rate``, at the upper end.

        Args:
            tail: Probability that may lie outside.
            rate: Sampling rate of P, in (0, 1].

        Returns:
            The smallest and the largest base loss of the interval, in nats.
        """
        sigmas = math.sqrt(-2 * math.log(tail / 4))  # P[N > x] < exp(-x^2/2) / 2
        moved = self.shift + math.sqrt(max(0.0, -2 * math.log(tail / 4 / rate)))
        top = max(sigmas, moved)
        middle = self.shift * self.shift / 2  # l = shift x - shift^2/2
        return -self.shift * sigmas - middle, self.shift * top - middle

    def log_at(self, losses: Array) -> Array:
        """Return the log density of N(-shift^2/2, shift^2)."""
        x = losses / self.shift + self.shift / 2
        return np.asarray(-x * x / 2 - math.log(self.shift * math.sqrt(2 * math.pi)))

    def slope_at(self, losses: Array) -> Array:
        """Return the derivative of the normal log density."""
        return np.asarray(-losses / self.shift**2 - 0.5)

    def log_upper_bound(self, low: Array, high: Array, away: Array) -> Array:
        """Evaluate at the point nearest to the mean; off the real axis |density| grows by Im^2.

        |exp(-(a + ib)^2/2)| = exp(-(a^2 - b^2)/2), in units of the standard deviation.

        Args:
            low: Smallest real parts; the three shapes broadcast.
            high: Largest real parts.
            away: Largest moduli of the imaginary parts.

        Returns:
            Upper bounds, of the broadcast shape.
        """
        middle = -self.shift * self.shift / 2
        nearest = np.clip(middle, low, high)
        return np.asarray(self.log_at(nearest) + (away / self.shift) ** 2 / 2)


@dataclass(frozen=True)
class LaplaceDensity:
    """Laplace noise between its two atoms, with s = sensitivity / scale.

    In units of the scale, Q has the density e^-|x|/2 and l = |x| - |x - s|. For 0 < x < s that is
    l = 2 x - s, so the density of l is e^(-(l + s)/2) / 4 on (-s, s). The rest of Q is in atoms:
    1/2 at -s and e^-s/2 at s.

    Attributes:
        largest: s, in nats.
    """

    largest: float

    @property
    def scale(self) -> float:
        """Length over which the density falls by a factor e, in nats."""
        return 2.0

    def interval(self, tail: float, rate: float) -> tuple[float, float]:
        """Return the whole interval: the losses are bounded."""
        return -self.largest, self.largest

    def log_at(self, losses: Array) -> Array:
        """Return -(l + s)/2 - log 4."""
        return np.asarray(-(losses + self.largest) / 2 - math.log(4))

    def slope_at(self, losses: Array) -> Array:
        """Return -1/2."""
        return np.full_like(losses, -0.5)

    def log_upper_bound(self, low: Array, high: Array, away: Array) -> Array:
        """Evaluate at the lower end: the modulus does not depend on the imaginary part."""
        return self.log_at(low)


@dataclass(frozen=True)
class BoundedRangeDensity:
    """Density of the base loss whose hockey-stick curve bounds all mechanisms of bounded range e.

    The curve is delta(t) = (1 - e^((t - e)/2))^2 / (1 - e^-e) for -e <= t <= e. From
    delta(t) = E_Q[(e^l - e^t)+] follows delta'(t) = -e^t Q[l > t], so the density of l under Q is

        d/dt (e^-t delta'(t)) = e^(-(t + e)/2) / (2 (1 - e^-e)).

    Attributes:
        largest: e, in nats.

    References:
        Dong, Durfee & Rogers (2020), arXiv:1909.13830, Lemma 3.4.
    """

    largest: float

    @property
    def scale(self) -> float:
        """Length over which the density falls by a factor e, in nats."""
        return 2.0

    def interval(self, tail: float, rate: float) -> tuple[float, float]:
        """Return the whole interval: the losses are bounded."""
        return -self.largest, self.largest

    def log_at(self, losses: Array) -> Array:
        """Return log of e^(-(t + e)/2) / (2 (1 - e^-e))."""
        return np.asarray(
            -(losses + self.largest) / 2 - math.log(2) - math.log(-math.expm1(-self.largest))
        )

    def slope_at(self, losses: Array) -> Array:
        """Return -1/2."""
        return np.full_like(losses, -0.5)

    def log_upper_bound(self, low: Array, high: Array, away: Array) -> Array:
        """Evaluate at the lower end: the modulus does not depend on the imaginary part."""
        return self.log_at(low)


@dataclass(frozen=True)
class DominatingPair:
    """A dominating pair (P, Q) as the distribution of the base loss under Q.

    Attributes:
        densities: Analytic parts.
        atom_losses: Base losses of the atoms in nats, shape ``(k,)``.
        atom_masses: Their masses under Q, shape ``(k,)``.
        infinite_mass: Mass of P where Q has none: an infinite loss.
        truncated_mass: Upper bound on the mass of P, and on that of Q, in atoms that are left out.
    """

    densities: tuple[LossDensity, ...]
    atom_losses: Array
    atom_masses: Array
    infinite_mass: float = 0.0
    truncated_mass: float = 0.0


def dominating_pair(mechanism: Release, adjacency: Adjacency, tail: float) -> DominatingPair:
    """Return the dominating pair of a release on the whole data set.

    Args:
        mechanism: A release without sampling.
        adjacency: The relation of neighboring data sets; it scales a Gaussian's shift.
        tail: Mass of P that may be left out where there are infinitely many atoms.

    Returns:
        The pair.

    Raises:
        UnsupportedMechanism: If no dominating pair is known for the release.
    """
    match mechanism:
        case Gaussian():
            return _pair_of_density(GaussianDensity(gaussian_mu(mechanism, adjacency)))
        case Laplace(scale, sensitivity):
            largest = sensitivity / scale
            ends = np.array([-largest, largest])
            masses = np.array([0.5, 0.5 * math.exp(-largest)])
            return DominatingPair((LaplaceDensity(largest),), ends, masses)
        case DiscreteLaplace(scale, sensitivity):
            return _discrete_laplace(scale, sensitivity)
        case DiscreteGaussian(scale, sensitivity):
            return _discrete_gaussian(scale, sensitivity, tail)
        case Skellam(dimension=1) | DistributedDiscreteGaussian(dimension=1):
            return _tabulated_noise(mechanism, tail)
        case RandomizedResponse(truth, categories):
            other = (1 - truth) / (categories - 1)
            loss = randomized_response_loss(mechanism)
            return _pair_of_atoms([loss, -loss, 0.0], [other, truth, (categories - 2) * other])
        case Exponential(epsilon):
            return _pair_of_density(BoundedRangeDensity(epsilon))
        case PureDP(epsilon):
            return _binary_response(epsilon, 0.0)
        case ApproximateDP(epsilon, delta):
            return _binary_response(epsilon, delta)
        case _:
            raise UnsupportedMechanism(
                mechanism,
                f"no dominating pair is known under {adjacency.value}: use the accountant rdp or "
                "naive",
            )


def _pair_of_density(density: LossDensity) -> DominatingPair:
    """Return a pair with one density and no atoms."""
    return DominatingPair((density,), np.empty(0), np.empty(0))


def _pair_of_atoms(
    losses: ArrayLike, masses: ArrayLike, *, infinite_mass: float = 0.0, truncated_mass: float = 0.0
) -> DominatingPair:
    """Return a pair with atoms only."""
    return DominatingPair(
        (), np.asarray(losses, float), np.asarray(masses, float), infinite_mass, truncated_mass
    )


def _binary_response(epsilon: float, delta: float) -> DominatingPair:
    """Return the worst (epsilon, delta)-DP pair: losses +-epsilon, and infinite mass delta."""
    truth = 1 / (1 + math.exp(-epsilon))
    other = math.exp(-epsilon) * truth
    masses = [(1 - delta) * other, (1 - delta) * truth, delta]
    return _pair_of_atoms([epsilon, -epsilon, -math.inf], masses, infinite_mass=delta)


def _discrete_laplace(scale: float, sensitivity: int) -> DominatingPair:
    """Return the pair of discrete Laplace noise: losses (|x| - |x - s|)/scale.

    These are s + 1 values. All x <= 0 share the smallest and all x >= s the largest of them.
    """
    _require_few_atoms(sensitivity)
    x = np.arange(sensitivity + 1)
    ratio = math.exp(-1 / scale)
    masses = np.exp(-x / scale) * (1 - ratio) / (1 + ratio)
    tail = 1 / (1 + ratio)  # Q[x <= 0], which includes the mass at 0
    masses[0], masses[-1] = tail, tail * math.exp(-sensitivity / scale)
    return _pair_of_atoms((2 * x - sensitivity) / scale, masses)


def _discrete_gaussian(scale: float, sensitivity: int, tail: float) -> DominatingPair:
    """Return the pair of discrete Gaussian noise: losses (2 x s - s^2)/(2 scale^2), truncated."""
    reach = sensitivity + scale * math.sqrt(-2 * math.log(tail / 16)) + 2
    _require_few_atoms(reach)
    x = np.arange(-math.ceil(reach), math.ceil(reach) + 1, dtype=np.float64)
    with np.errstate(over="ignore"):
        weights = np.exp(-((x / scale) ** 2) / 2)
        losses = (sensitivity / scale) * ((x - sensitivity / 2) / scale)
    if not np.isfinite(losses).all():
        raise Unresolvable(
            f"discrete Gaussian noise of scale {scale:g} gives losses that overflow: increase "
            "the scale"
        )
    return _pair_of_atoms(losses, weights / weights.sum(), truncated_mass=tail)


def _tabulated_noise(noise: ScalarNoise, tail: float) -> DominatingPair:
    """Return the pair of tabulated noise: losses log p(x - s) - log p(x), truncated.

    The masses are those of the true distribution up to the error of the table, which
    ``comparisons`` adds as a slack.
    """
    shift = integer_change(noise).largest_shift
    kept = max(tail, LEAST_TAIL)
    reach = shift + noise_reach(noise, kept)
    _require_few_atoms(reach)
    table = noise_table(noise, shift)
    x = np.arange(shift - reach, reach + 1, dtype=np.int64)
    log_masses = table.at(x)
    losses = table.at(x - shift) - log_masses
    return _pair_of_atoms(losses, np.exp(log_masses), truncated_mass=2 * kept)


def _require_few_atoms(atoms: float) -> None:
    """Refuse (``Unresolvable``) tables of atoms that do not fit into memory."""
    if not atoms < MAX_ATOMS:
        raise Unresolvable(
            f"discrete noise with {atoms:g} values does not fit into a table of "
            f"{MAX_ATOMS:g}: reduce the scale or the sensitivity"
        )
