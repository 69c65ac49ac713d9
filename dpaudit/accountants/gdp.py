"""Gaussian differential privacy: exact for Gaussians on the whole data set, and for no other.

Gaussians of shifts s_i compose to one of mu = sqrt(sum s_i^2) (Dong, Roth & Su 2019,
arXiv:1905.02383, Corollary 3.3). Of a Poisson-sampled Gaussian the central limit theorem says
what it tends to, over many steps of little rate: an estimate, never a bound.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from dpaudit.accountants import gaussian
from dpaudit.accountants.releases import (
    Releases,
    count_releases,
    require_meaning,
    shift_over_noise,
)
from dpaudit.accountants.special import ndtr
from dpaudit.vocabulary.adjacency import Adjacency
from dpaudit.vocabulary.bound import Bound
from dpaudit.vocabulary.errors import (
    AccountingError,
    InvalidArgument,
    UnsupportedMechanism,
    require_delta,
)
from dpaudit.vocabulary.mechanism import Gaussian, Mechanism, PoissonSampled, Release

ROUNDING = 1e-15


def profile(
    mechanism: Mechanism, *, adjacency: Adjacency = Adjacency.ADD_OR_REMOVE_ONE
) -> GdpProfile:
    """Return the exact mu of Gaussians on the whole data set.

    Raises:
        UnsupportedMechanism: a part is anything else.
    """
    releases = count_releases(mechanism)
    require_meaning(releases, adjacency)
    # hypot, as squares alone would leave the range of doubles.
    shifts = (math.sqrt(times) * _shift(release, adjacency) for release, times in releases.items())
    mu, rounding = math.hypot(*shifts), ROUNDING * (4 + len(releases))
    return GdpProfile(releases, adjacency, Bound(mu * (1 - rounding), mu * (1 + rounding)))


@dataclass(frozen=True)
class GdpProfile:
    """The interval of mu, and what it says of epsilon and delta, from both sides."""

    releases: Releases
    adjacency: Adjacency
    mu: Bound

    def epsilon(self, *, delta: float) -> Bound:
        """Return the interval of epsilon at ``delta``."""
        require_delta("delta", delta)
        low, high = (gaussian.epsilon(delta, mu=mu) for mu in (self.mu.lower, self.mu.upper))
        return Bound(low.lower, high.upper)

    def delta(self, *, epsilon: float) -> Bound:
        """Return the interval of delta at ``epsilon``."""
        if not 0 <= epsilon < math.inf:
            raise InvalidArgument("epsilon", epsilon, "at least 0 and finite")
        low, high = (gaussian.delta(epsilon, mu=mu) for mu in (self.mu.lower, self.mu.upper))
        return Bound(low.lower, high.upper)


@dataclass(frozen=True)
class Estimate:
    """What the central limit theorem suggests. It bounds nothing.

    The truth lies on either side, and most often above: by a few percent where steps are
    many and noise is large, by half and more where they are not. Report a ``Bound`` instead.
    """

    mu: float

    def epsilon(self, *, delta: float) -> float:
        """Return the epsilon of a Gaussian of this mu at ``delta``: an estimate."""
        require_delta("delta", delta)
        return gaussian.epsilon(delta, mu=self.mu).upper

    def delta(self, *, epsilon: float) -> float:
        """Return the delta of a Gaussian of this mu at ``epsilon``: an estimate."""
        return float(
            ndtr(self.mu / 2 - epsilon / self.mu)
            - math.exp(epsilon) * ndtr(-self.mu / 2 - epsilon / self.mu)
        )


def clt_estimate(
    mechanism: Mechanism, *, adjacency: Adjacency = Adjacency.ADD_OR_REMOVE_ONE
) -> Estimate:
    """Return the central-limit estimate of mu, which bounds nothing.

    mu^2 adds q^2 (exp(1/noise_multiplier^2) - 1) for each Poisson-sampled step (Bu, Dong,
    Long & Su 2020, arXiv:1911.11607, Corollary 4), and the exact square of each other.

    Raises:
        UnsupportedMechanism: a part is no Gaussian, or is sampled and a record replaced.
        AccountingError: the estimate is too large for a double.
    """
    releases = count_releases(mechanism)
    require_meaning(releases, adjacency)
    squares = sum(times * _limit(release, adjacency) for release, times in releases.items())
    if not squares < math.inf:
        raise AccountingError("the central-limit estimate overflows: add noise, or use pld")
    return Estimate(math.sqrt(squares))


def _shift(release: Release, adjacency: Adjacency) -> float:
    match release:
        case Gaussian():
            return shift_over_noise(release, adjacency)
        case _:
            raise UnsupportedMechanism(
                release,
                "gdp is exact for Gaussians on the whole data set alone: use pld or rdp",
            )


def _limit(release: Release, adjacency: Adjacency) -> float:
    match release:
        case PoissonSampled(Gaussian() as inner, rate) if adjacency is not Adjacency.REPLACE_ONE:
            shift = shift_over_noise(inner, adjacency)
            exponent = shift * shift
            return rate * rate * math.expm1(exponent) if exponent < 700 else math.inf
        case _:
            shift = _shift(release, adjacency)
            return shift * shift
