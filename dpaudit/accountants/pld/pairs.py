"""The pair of laws that a release is as hard to tell apart as, as a law of base losses.

For neighbours that differ by one record, Q is the output's law without it and P with it;
the base loss is l = log(dP/dQ). A pair is known by the law of l under Q alone, since
dP = e^l dQ: a density on an interval, atoms, and what P holds where Q has nothing.

Every pair here is its own mirror image: (Q, P) has the law of (P, Q). That, and that the
pair dominates every other of its mechanism, is from:

Gaussian, Laplace     one dimension and the largest shift are the worst: Balle & Wang 2018,
                      arXiv:1805.06530; Zhu, Dong & Wang 2022, arXiv:2106.08567
RandomizedResponse    the laws of two different answers, by symmetry
PureDP, ApproximateDP Kairouz, Oh & Viswanath 2015, arXiv:1311.0776, Theorem 3.3
Exponential           the least hockey-stick curve above all mechanisms of that bounded
                      range: Dong, Durfee & Rogers 2020, arXiv:1909.13830, Lemma 3.4
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dpaudit.accountants.releases import response_loss, shift_over_noise
from dpaudit.vocabulary.adjacency import Adjacency
from dpaudit.vocabulary.errors import Unresolvable, UnsupportedMechanism
from dpaudit.vocabulary.mechanism import (
    ApproximateDP,
    DiscreteGaussian,
    DiscreteLaplace,
    Exponential,
    Gaussian,
    Laplace,
    PureDP,
    RandomizedResponse,
    Release,
)

Array = NDArray[np.float64]

MOST_ATOMS = 2e6


class Density(Protocol):
    """An analytic density of the base loss under Q, on an interval."""

    @property
    def scale(self) -> float:
        """Over what length the density changes by much."""

    @property
    def largest(self) -> float:
        """The largest base loss; the least is its negative."""

    def interval(self, tail: float, rate: float) -> tuple[float, float]:
        """Return where all but ``tail`` of (1 - rate) Q + rate P lies, and of Q."""

    def log_at(self, losses: Array) -> Array:
        """Return the logarithm of the density."""

    def slope_at(self, losses: Array) -> Array:
        """Return the derivative of ``log_at``."""

    def log_above(self, low: Array, high: Array, away: Array) -> Array:
        """Bound log |density| at low <= Re <= high, |Im| <= away."""


@dataclass(frozen=True)
class GaussianDensity:
    """N(shift, 1) against N(0, 1): the base loss is N(-shift^2/2, shift^2) under Q."""

    shift: float

    @property
    def scale(self) -> float:
        """Return the standard deviation."""
        return self.shift

    @property
    def largest(self) -> float:
        """No loss is the largest."""
        return math.inf

    def interval(self, tail: float, rate: float) -> tuple[float, float]:
        """Cut Q at both ends, and P, which is met at ``rate``, at the upper one."""
        sigmas = math.sqrt(-2 * math.log(tail / 4))  # P[N > x] < exp(-x^2/2) / 2
        moved = self.shift + math.sqrt(max(0.0, -2 * math.log(tail / 4 / rate)))
        top = max(sigmas, moved)
        middle = self.shift * self.shift / 2
        return -self.shift * sigmas - middle, self.shift * top - middle

    def log_at(self, losses: Array) -> Array:
        """Return the logarithm of the normal density."""
        x = losses / self.shift + self.shift / 2
        return np.asarray(-x * x / 2 - math.log(self.shift * math.sqrt(2 * math.pi)))

    def slope_at(self, losses: Array) -> Array:
        """Return that of the normal density."""
        return np.asarray(-losses / self.shift**2 - 0.5)

    def log_above(self, low: Array, high: Array, away: Array) -> Array:
        """Take the nearest point to the middle; off the axis the square loses Im^2."""
        middle = -self.shift * self.shift / 2
        nearest = np.clip(middle, low, high)
        return np.asarray(self.log_at(nearest) + (away / self.shift) ** 2 / 2)


@dataclass(frozen=True)
class LaplaceDensity:
    """Between its two atoms, Laplace noise has base losses of density exp(-(l + s)/2)/4.

    s is sensitivity over scale.
    """

    largest: float

    @property
    def scale(self) -> float:
        """The exponential's length."""
        return 2.0

    def interval(self, tail: float, rate: float) -> tuple[float, float]:
        """Return the whole interval: the law is bounded."""
        return -self.largest, self.largest

    def log_at(self, losses: Array) -> Array:
        """Return -(l + s)/2 - log 4."""
        return np.asarray(-(losses + self.largest) / 2 - math.log(4))

    def slope_at(self, losses: Array) -> Array:
        """Return -1/2."""
        return np.full_like(losses, -0.5)

    def log_above(self, low: Array, high: Array, away: Array) -> Array:
        """Take the left end: the modulus does not depend on the imaginary part."""
        return self.log_at(low)


@dataclass(frozen=True)
class BoundedRangeDensity:
    """The hockey-stick curve (1 - e^((t - e)/2))^2 / (1 - e^-e), -e <= t <= e, as a law.

    Its second derivative in e^t is the density of Q over t e^... : with
    delta' = -e^t Q[l > t], the density of Q is d/dt (e^-t delta'(t)).
    """

    largest: float

    @property
    def scale(self) -> float:
        """The exponential's length."""
        return 2.0

    def interval(self, tail: float, rate: float) -> tuple[float, float]:
        """Return the whole interval: the law is bounded."""
        return -self.largest, self.largest

    def log_at(self, losses: Array) -> Array:
        """Return log of e^(-(t + e)/2) / (2 (1 - e^-e))."""
        return np.asarray(
            -(losses + self.largest) / 2 - math.log(2) - math.log(-math.expm1(-self.largest))
        )

    def slope_at(self, losses: Array) -> Array:
        """Return -1/2."""
        return np.full_like(losses, -0.5)

    def log_above(self, low: Array, high: Array, away: Array) -> Array:
        """Take the left end: the modulus does not depend on the imaginary part."""
        return self.log_at(low)


@dataclass(frozen=True)
class Pair:
    """The law of base losses under Q.

    Attributes:
        densities: Analytic parts.
        atom_losses: Base losses that have a mass of their own, shape ``(k,)``.
        atom_masses: Their masses under Q, shape ``(k,)``.
        infinite: What P holds where Q has nothing: an infinite loss.
        cut: What P holds of atoms that are left out, at most.
    """

    densities: tuple[Density, ...]
    atom_losses: Array
    atom_masses: Array
    infinite: float = 0.0
    cut: float = 0.0


def pair_of(mechanism: Release, adjacency: Adjacency, tail: float) -> Pair:
    """Return the worst pair of a mechanism on the whole data set; atoms cut at ``tail``.

    Raises:
        UnsupportedMechanism: no such pair is known.
    """
    match mechanism:
        case Gaussian():
            return _dense(GaussianDensity(shift_over_noise(mechanism, adjacency)))
        case Laplace(scale, sensitivity):
            largest = sensitivity / scale
            ends = np.array([-largest, largest])
            masses = np.array([0.5, 0.5 * math.exp(-largest)])
            return Pair((LaplaceDensity(largest),), ends, masses)
        case DiscreteLaplace(scale, sensitivity):
            return _discrete_laplace(scale, sensitivity)
        case DiscreteGaussian(scale, sensitivity):
            return _discrete_gaussian(scale, sensitivity, tail)
        case RandomizedResponse(truth, categories):
            other = (1 - truth) / (categories - 1)
            loss = response_loss(mechanism)
            return _atoms([loss, -loss, 0.0], [other, truth, (categories - 2) * other])
        case Exponential(epsilon):
            return _dense(BoundedRangeDensity(epsilon))
        case PureDP(epsilon):
            return _two_answers(epsilon, 0.0)
        case ApproximateDP(epsilon, delta):
            return _two_answers(epsilon, delta)
        case _:
            raise UnsupportedMechanism(
                mechanism,
                f"no worst pair of laws is known under {adjacency.value}: ask rdp or naive",
            )


def _dense(density: Density) -> Pair:
    return Pair((density,), np.empty(0), np.empty(0))


def _atoms(
    losses: ArrayLike, masses: ArrayLike, *, infinite: float = 0.0, cut: float = 0.0
) -> Pair:
    return Pair((), np.asarray(losses, float), np.asarray(masses, float), infinite, cut)


def _two_answers(epsilon: float, delta: float) -> Pair:
    truth = 1 / (1 + math.exp(-epsilon))
    other = math.exp(-epsilon) * truth
    masses = [(1 - delta) * other, (1 - delta) * truth, delta]
    return _atoms([epsilon, -epsilon, -math.inf], masses, infinite=delta)


def _discrete_laplace(scale: float, sensitivity: int) -> Pair:
    """Losses (|x| - |x - s|)/scale: s + 1 values, the outer ones with all of a tail."""
    _require_few(sensitivity)
    x = np.arange(sensitivity + 1)
    rest = math.exp(-1 / scale)
    masses = np.exp(-x / scale) * (1 - rest) / (1 + rest)
    tail = 1 / (1 + rest)  # of x <= 0: the two tails share the middle
    masses[0], masses[-1] = tail, tail * math.exp(-sensitivity / scale)
    return _atoms((2 * x - sensitivity) / scale, masses)


def _discrete_gaussian(scale: float, sensitivity: int, tail: float) -> Pair:
    """Losses (2 x s - s^2)/(2 scale^2); what lies beyond ``tail`` is left out."""
    reach = sensitivity + scale * math.sqrt(-2 * math.log(tail / 16)) + 2
    _require_few(reach)
    x = np.arange(-math.ceil(reach), math.ceil(reach) + 1, dtype=np.float64)
    with np.errstate(over="ignore"):
        weights = np.exp(-((x / scale) ** 2) / 2)
        losses = (sensitivity / scale) * ((x - sensitivity / 2) / scale)
    if not np.isfinite(losses).all():
        raise Unresolvable(f"noise of scale {scale:g} is far from private")
    return _atoms(losses, weights / weights.sum(), cut=tail)


def _require_few(atoms: float) -> None:
    """Refuse tables that memory does not hold.

    Raises:
        Unresolvable: there would be millions of atoms.
    """
    if not atoms < MOST_ATOMS:
        raise Unresolvable(f"{atoms:g} values of discrete noise are too many for a table")
