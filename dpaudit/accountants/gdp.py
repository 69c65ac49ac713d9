"""Compute bounds by Gaussian differential privacy: exact for Gaussians without sampling.

A Gaussian of shift s (sensitivity over noise standard deviation) is s-GDP. Gaussians of shifts
s_i compose to mu-GDP with mu = sqrt(sum s_i^2) (Dong, Roth & Su 2019, arXiv:1905.02383,
Corollary 3.3). With the standard normal distribution function Phi, mu-GDP has

    delta(epsilon) = Phi(mu/2 - epsilon/mu) - e^epsilon Phi(-mu/2 - epsilon/mu).

For a Poisson-sampled Gaussian the central limit theorem gives the limit over many steps at a
small rate. That is an estimate, never a bound.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from dpaudit.accountants.numerics import (
    certified_lower_crossing,
    certified_upper_crossing,
    erfcx,
    log_ndtr,
    ndtr,
)
from dpaudit.accountants.profile_display import DisplayedProfile
from dpaudit.accountants.releases import (
    ReleaseCounts,
    count_releases,
    gaussian_mu,
    refuse_given_pairs,
    require_supported_adjacency,
)
from dpaudit.vocabulary.errors import (
    AccountingError,
    UnsupportedMechanism,
    require_delta,
    require_not_negative,
)
from dpaudit.vocabulary.mechanism import Gaussian, Mechanism, PoissonSampled, Release
from dpaudit.vocabulary.privacy_terms import Adjacency, Bound

# Exact delta(epsilon) of composed Gaussians.

# The special functions used here err by a few units in the last place; 16 units cover each.
SPECIAL_FUNCTION_ROUNDING = 16 * 2.0**-53
LARGEST_TAIL_ARGUMENT = 1e6
LEAST_LOG_DOUBLE = -745.0  # below the logarithm of every positive double
LEAST_MILLS_ARGUMENT = -5.0  # left of it Mills' ratio grows like exp(x^2/2); tails stay near 1


def delta_of_mu(epsilon: float, *, mu: float) -> Bound:
    """Compute the interval of delta at ``epsilon`` for mu-GDP.

    Args:
        epsilon: Privacy loss in nats, at least 0.
        mu: The GDP parameter, above 0.

    Returns:
        The exact value, enclosed up to rounding.

    References:
        Balle & Wang (2018), arXiv:1805.06530, Theorem 8.

    Example:
        >>> from dpaudit.accountants import gdp
        >>> round(gdp.delta_of_mu(1.0, mu=1.0).upper, 4)
        0.1269
    """
    lower, upper = log_delta_of_mu(epsilon, mu=mu)
    # An upper bound that underflows is rounded up to the least positive double.
    return Bound(math.exp(lower), math.exp(max(upper, LEAST_LOG_DOUBLE)))


def epsilon_of_mu(delta: float, *, mu: float) -> Bound:
    """Compute the interval of epsilon at ``delta`` for mu-GDP.

    Args:
        delta: Above 0 and below 1.
        mu: The GDP parameter, above 0.

    Returns:
        The exact value, enclosed up to rounding; its lower end is at least 0.

    Raises:
        AccountingError: If ``mu`` is so large that rounding hides the result.

    Example:
        >>> from dpaudit.accountants import gdp
        >>> round(gdp.epsilon_of_mu(1e-5, mu=1.0).upper, 4)
        4.3772
    """
    log_target = math.log(delta)
    # delta(mu^2/2 + k mu) <= P[N > k], far below any double at k = 40.
    ceiling = mu * mu / 2 + 40 * mu
    upper = certified_upper_crossing(
        lambda e: log_delta_of_mu(e, mu=mu)[1], log_target, 0.0, ceiling
    )
    lower = certified_lower_crossing(lambda e: log_delta_of_mu(e, mu=mu)[0], log_target, 0.0, upper)
    return Bound(lower, upper)


def log_delta_of_mu(epsilon: float, *, mu: float) -> tuple[float, float]:
    """Compute lower and upper bounds of log delta for mu-GDP.

    With x = epsilon/mu - mu/2, a standard normal N of density phi, and Mills' ratio
    R(x) = P[N > x]/phi(x),

        delta = P[N > x] - e^epsilon P[N > x + mu] = phi(x) (R(x) - R(x + mu)).

    The second form does not underflow for large x.

    Args:
        epsilon: Privacy loss in nats, at least 0.
        mu: The GDP parameter, above 0.

    Returns:
        The lower and the upper bound, each at most 0; the lower one may be -inf.

    References:
        Balle & Wang (2018), arXiv:1805.06530, Theorem 8; Dong, Roth & Su (2019),
        arXiv:1905.02383, Corollary 3.3.
    """
    x = epsilon / mu - mu / 2
    # Far in the tail delta underflows, and the squares below would overflow.
    if not x < LARGEST_TAIL_ARGUMENT:
        return -math.inf, LEAST_LOG_DOUBLE
    lower, upper = (
        _by_tails(epsilon, mu) if x < LEAST_MILLS_ARGUMENT else _by_mills_ratio(x, epsilon, mu)
    )
    return min(0.0, lower), min(0.0, upper)


def _by_tails(epsilon: float, mu: float) -> tuple[float, float]:
    """Bound the difference of the two tails where the first one is nearly 1."""
    log_gain = float(log_ndtr(mu / 2 - epsilon / mu))
    log_ratio = epsilon + float(log_ndtr(-mu / 2 - epsilon / mu)) - log_gain
    reach = mu / 2 + epsilon / mu
    rounding = SPECIAL_FUNCTION_ROUNDING * (1 + epsilon + reach * reach)
    if not rounding <= 1:  # mu so large that rounding exceeds the tails' exponents
        return -math.inf, 0.0
    # delta = gain (1 - ratio), with log ratio = epsilon + log P[N > x + mu] - log P[N > x] known
    # up to ``rounding``.
    least, most = -math.expm1(log_ratio + rounding), -math.expm1(log_ratio - rounding)
    lower = log_gain + math.log(least) - SPECIAL_FUNCTION_ROUNDING if least > 0 else -math.inf
    return lower, log_gain + math.log(
        max(most, SPECIAL_FUNCTION_ROUNDING)
    ) + SPECIAL_FUNCTION_ROUNDING


def _by_mills_ratio(x: float, epsilon: float, mu: float) -> tuple[float, float]:
    """Bound phi(x) (R(x) - R(x + mu)) by two valid methods, and return the tighter ends.

    The first is the difference itself, with its rounding error. The second is the integral of
    -R' over [x, x + mu]. -R' falls and is convex, since R is completely monotone. So the
    midpoint rule is below the integral, and the trapezoid rule is above it.
    """
    ratio = _mills_ratio(x)
    gap = ratio - _mills_ratio(x + mu)
    # The arguments x and x + mu are rounded, too.
    rounding = SPECIAL_FUNCTION_ROUNDING * ratio * (1 + abs(x) + mu)
    # Midpoint rule below, trapezoid rule above.
    least = max(gap - rounding, mu * _mills_ratio_slope(x + mu / 2)[0])
    most = min(gap + rounding, mu * (_mills_ratio_slope(x)[1] + _mills_ratio_slope(x + mu)[1]) / 2)
    exponent = -x * x / 2 - math.log(2 * math.pi) / 2
    slack = SPECIAL_FUNCTION_ROUNDING * (4 + x * x + abs(x) * (epsilon / mu + mu))
    lower = exponent + math.log(least) - slack if least > 0 else -math.inf
    return lower, exponent + math.log(most) + slack


def _mills_ratio(x: float) -> float:
    """Return R(x) = P[N > x]/phi(x) = sqrt(pi/2) erfcx(x/sqrt(2))."""
    return math.sqrt(math.pi / 2) * float(erfcx(x / math.sqrt(2)))


def _mills_ratio_slope(x: float) -> tuple[float, float]:
    """Bound -R'(x) = 1 - x R(x); for x > 1, 1/(x^2 + 3) < -R' < 1/(x^2 + 1)."""
    product = x * _mills_ratio(x)
    rounding = SPECIAL_FUNCTION_ROUNDING * (1 + abs(product)) * (1 + abs(x))
    least, most = 1 - product - rounding, 1 - product + rounding
    if x > 1:
        least, most = max(least, 1 / (x * x + 3)), min(most, 1 / (x * x + 1))
    return least, most


MU_ROUNDING = 1e-15


def profile(
    mechanism: Mechanism, *, adjacency: Adjacency = Adjacency.ADD_OR_REMOVE_ONE
) -> GdpProfile:
    """Compute the GDP parameter of Gaussians without sampling.

    Args:
        mechanism: A composition of Gaussians whose schedule was fixed in advance.
        adjacency: Neighbor relation.

    Returns:
        The profile, exact up to rounding.

    Raises:
        UnsupportedMechanism: If a part is no Gaussian, is sampled, or its noise was set for
            another adjacency.

    References:
        Dong, Roth & Su (2019), arXiv:1905.02383, Corollary 3.3.

    Example:
        >>> from dpaudit.accountants import Gaussian, Repeated, gdp
        >>> profile = gdp.profile(Repeated(Gaussian(noise_multiplier=10.0), 100))
        >>> round(profile.mu.upper, 4), round(profile.epsilon(delta=1e-5).upper, 4)
        (1.0, 4.3772)
    """
    releases = count_releases(mechanism)
    require_supported_adjacency(releases, adjacency)
    refuse_given_pairs(releases)
    # mu = sqrt(sum s_i^2); hypot, as the squares alone may overflow or underflow.
    shifts = (
        math.sqrt(times) * _release_mu(release, adjacency) for release, times in releases.items()
    )
    mu, rounding = math.hypot(*shifts), MU_ROUNDING * (4 + len(releases))
    return GdpProfile(releases, adjacency, Bound(mu * (1 - rounding), mu * (1 + rounding)))


@dataclass(frozen=True)
class GdpProfile(DisplayedProfile):
    """The interval of mu, with the intervals of epsilon and delta that follow from it.

    Attributes:
        releases: The Gaussians, each with its count.
        adjacency: Neighbor relation.
        mu: The interval of the GDP parameter.
    """

    releases: ReleaseCounts
    adjacency: Adjacency
    mu: Bound

    def epsilon(self, *, delta: float) -> Bound:
        """Compute the interval of epsilon at ``delta``.

        Args:
            delta: At least 1e-300 and below 1.

        Returns:
            The interval, in nats.

        Raises:
            InvalidArgument: If ``delta`` is out of range.
            AccountingError: If mu is so large that rounding hides the result.
        """
        require_delta("delta", delta)
        low, high = (epsilon_of_mu(delta, mu=mu) for mu in (self.mu.lower, self.mu.upper))
        return Bound(low.lower, high.upper)

    def delta(self, *, epsilon: float) -> Bound:
        """Compute the interval of delta at ``epsilon``.

        Args:
            epsilon: Privacy loss in nats, at least 0 and finite.

        Returns:
            The interval, within [0, 1].

        Raises:
            InvalidArgument: If ``epsilon`` is out of range.
        """
        require_not_negative("epsilon", epsilon)
        low, high = (delta_of_mu(epsilon, mu=mu) for mu in (self.mu.lower, self.mu.upper))
        return Bound(low.lower, high.upper)


@dataclass(frozen=True)
class CltEstimate:
    """A central-limit estimate of mu; it bounds nothing.

    The true value may lie on either side, and most often lies above. The error is a few percent
    for many steps with large noise, and half or more otherwise. Use a ``Bound`` for reports.

    Attributes:
        mu: The estimated GDP parameter.
    """

    mu: float

    def epsilon(self, *, delta: float) -> float:
        """Estimate epsilon at ``delta`` as that of mu-GDP.

        Args:
            delta: At least 1e-300 and below 1.

        Returns:
            The estimate in nats, which is no bound.

        Raises:
            InvalidArgument: If ``delta`` is out of range.
        """
        require_delta("delta", delta)
        return epsilon_of_mu(delta, mu=self.mu).upper

    def delta(self, *, epsilon: float) -> float:
        """Estimate delta at ``epsilon`` as that of mu-GDP.

        Args:
            epsilon: Privacy loss in nats, at least 0.

        Returns:
            The estimate, which is no bound and may be inaccurate where delta is tiny.
        """
        return float(
            ndtr(self.mu / 2 - epsilon / self.mu)
            - math.exp(epsilon) * ndtr(-self.mu / 2 - epsilon / self.mu)
        )


def clt_estimate(
    mechanism: Mechanism, *, adjacency: Adjacency = Adjacency.ADD_OR_REMOVE_ONE
) -> CltEstimate:
    """Estimate mu by the central limit theorem; the estimate bounds nothing.

    mu^2 is a sum over releases. A Poisson-sampled step with rate q and noise multiplier s adds
    q^2 (exp(1/s^2) - 1); every other release adds its exact square.

    Args:
        mechanism: A composition of Gaussians, Poisson-sampled or not.
        adjacency: Neighbor relation; a sampled part requires another one than replace-one.

    Returns:
        The estimate.

    Raises:
        UnsupportedMechanism: If a part is no Gaussian, or is sampled under replace-one.
        AccountingError: If the estimate overflows.

    References:
        Bu, Dong, Long & Su (2020), arXiv:1911.11607, Corollary 4.

    Example:
        >>> from dpaudit.accountants import Gaussian, PoissonSampled, Repeated, gdp
        >>> run = Repeated(PoissonSampled(Gaussian(noise_multiplier=1.0), 0.01), 1000)
        >>> round(gdp.clt_estimate(run).mu, 4)
        0.4145
    """
    releases = count_releases(mechanism)
    require_supported_adjacency(releases, adjacency)
    refuse_given_pairs(releases)
    squares = sum(
        times * _clt_mu_squared(release, adjacency) for release, times in releases.items()
    )
    if not squares < math.inf:
        raise AccountingError("the central-limit estimate overflows: add noise, or use pld")
    return CltEstimate(math.sqrt(squares))


def _release_mu(release: Release, adjacency: Adjacency) -> float:
    """Return the exact mu of one Gaussian; raise for any other release."""
    match release:
        case Gaussian():
            return gaussian_mu(release, adjacency)
        case _:
            raise UnsupportedMechanism(
                release,
                "gdp supports only Gaussians without sampling: use pld or rdp",
            )


def _clt_mu_squared(release: Release, adjacency: Adjacency) -> float:
    """Return one release's part of mu^2: q^2 (exp(shift^2) - 1) if sampled, else its exact mu^2."""
    match release:
        case PoissonSampled(Gaussian() as inner, rate) if adjacency is not Adjacency.REPLACE_ONE:
            shift = gaussian_mu(inner, adjacency)
            exponent = shift * shift
            return rate * rate * math.expm1(exponent) if exponent < 700 else math.inf
        case _:
            shift = _release_mu(release, adjacency)
            return shift * shift
