"""Bounds within Gaussian differential privacy: epsilon of mu, and lower bounds on mu.

Everything here assumes that the trade-off curve of the mechanism is G_mu for some mu,

    G_mu(x) = Phi(Phi_inv(1 - x) - mu)        (Dong, Roth & Su 2022, arXiv:1905.02383),

as it is for full-batch Gaussian noise. Such a mechanism is (epsilon, delta)-DP exactly for

    delta = Phi(mu/2 - epsilon/mu) - e^epsilon Phi(-mu/2 - epsilon/mu)        (Corollary 2.13).

Outside of this family these bounds are invalid: on randomized response at epsilon 1 they give
about 4.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_ndtr, nctdtr, ndtri, stdtr

from dpaudit.attacks.bounds.lower_bound import LowerBound, bisect_largest
from dpaudit.vocabulary.audit import BoundKind, SampleMoments
from dpaudit.vocabulary.errors import InvalidArgument, require_open_unit

Array = NDArray[np.float64]

MAX_MU = 100.0  # epsilon is in the thousands beyond it
NORMAL_CDF_ROUNDING = 1e-14  # of a distribution function, with room

ASSUMES_GAUSSIAN_TRADEOFF = "a Gaussian trade-off curve, as full-batch Gaussian noise has it"
ASSUMES_EQUAL_VARIANCE_NORMAL_SCORES = (
    "normal scores with the same variance for members and non-members"
)
ASSUMES_EXACT_GDP = "that the mechanism is exactly mu-GDP"


def gaussian_epsilon(*, mu: float, delta: float) -> LowerBound:
    """Compute the epsilon of a mechanism that is exactly mu-GDP.

    Args:
        mu: The parameter of Gaussian DP, at least 0 and finite.
        delta: In (0, 1).

    Returns:
        The bound, conditional on this mechanism, with confidence 1. Rounded down.

    Raises:
        InvalidArgument: If ``mu`` is negative or not finite, or ``delta`` is out of range.

    References:
        Dong, Roth & Su (2022), arXiv:1905.02383, Corollary 2.13.

    Example:
        >>> round(gaussian_epsilon(mu=1.0, delta=1e-5).epsilon, 4)
        4.3772
    """
    return LowerBound(epsilon_of_mu(mu, delta), BoundKind.CONDITIONAL, 1.0, ASSUMES_EXACT_GDP)


def epsilon_of_mu(mu: float, delta: float) -> float:
    """Compute epsilon at ``delta`` of a mu-GDP mechanism, rounded down.

    Args:
        mu: The parameter of Gaussian DP, at least 0 and finite.
        delta: In (0, 1).

    Returns:
        Epsilon in nats, at least 0.

    Raises:
        InvalidArgument: If an argument is out of range.
    """
    if not 0 <= mu < math.inf:
        raise InvalidArgument("mu", mu, "at least 0 and finite")
    require_open_unit("delta", delta)
    if mu == 0 or _log_delta(mu, 0.0) <= math.log(delta):
        return 0.0
    # At eps = mu (mu/2 - Phi_inv(delta)) the first term of delta, Phi(mu/2 - eps/mu), equals
    # the target. Delta falls with eps, so the root lies below.
    most = mu * (mu / 2 - float(ndtri(delta))) + 1e-9
    return bisect_largest(lambda epsilon: _log_delta(mu, epsilon) > math.log(delta), 0.0, most)


def mu_of_epsilon(epsilon: float, delta: float) -> float:
    """Compute the mu at which a mu-GDP mechanism has ``epsilon`` at ``delta``, rounded down.

    Args:
        epsilon: In nats. The result is 0 for an epsilon of 0 or less.
        delta: In (0, 1).

    Returns:
        Mu, at least 0.
    """
    if epsilon <= 0:
        return 0.0
    most = 2.0
    while _log_delta(most, epsilon) <= math.log(delta):
        most *= 2
    return bisect_largest(lambda mu: _log_delta(mu, epsilon) <= math.log(delta), 0.0, most)


def _log_delta(mu: float, epsilon: float) -> float:
    """Return ln delta(epsilon) of a mu-GDP mechanism; -inf where delta is 0."""
    if mu == 0:
        return -math.inf
    gain = float(log_ndtr(mu / 2 - epsilon / mu))
    loss = epsilon + float(log_ndtr(-mu / 2 - epsilon / mu))
    # ln(e^gain - e^loss), without cancellation of large numbers.
    return gain + math.log(-math.expm1(loss - gain)) if loss < gain else -math.inf


def mu_of_error_rates(false_negative_rate: Array, false_positive_rate: Array) -> float:
    """Compute the largest mu of Gaussian trade-off curves through points of error rates.

    FNR >= G_mu(FPR) gives mu >= Phi_inv(1 - FPR) - Phi_inv(FNR) at each threshold.

    Args:
        false_negative_rate: Upper limits, shape ``(k,)``.
        false_positive_rate: Upper limits, shape ``(k,)``.

    Returns:
        The largest lower bound on mu; 0 where none is positive.

    References:
        Nasr et al. (2023), arXiv:2302.07956, section 4.
    """
    gaps = -ndtri(false_positive_rate) - ndtri(false_negative_rate)
    return float(np.max(gaps, initial=0.0))


def gaussian_pivot(
    *, members: Array, nonmembers: Array, delta: float, confidence: float
) -> LowerBound:
    """Compute the lower bound from the gap between the means of two normal samples.

    Let mu be the gap in standard deviations, s^2 the pooled variance, and
    c = sqrt(n1 n0 / (n1 + n0)). The pivot

        t = c (mean1 - mean0) / s

    has a noncentral t distribution with n1 + n0 - 2 degrees of freedom and noncentrality c mu.
    Inverting it gives a lower confidence limit of mu.

    Args:
        members: Scores of members, shape ``(n1,)``; larger means member.
        nonmembers: Scores of non-members, shape ``(n0,)``.
        delta: In (0, 1).
        confidence: Probability with which the bound holds, in (0, 1).

    Returns:
        The bound, conditional on normal scores with one variance. Fewer than two scores of a
        class give 0.

    Raises:
        InvalidArgument: If a score is not finite, or a number is out of range.

    References:
        The gap as a privacy loss: Andrew et al. (2023), arXiv:2302.03098.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> bound = gaussian_pivot(
        ...     members=rng.normal(2, 1, 500),
        ...     nonmembers=rng.normal(0, 1, 500),
        ...     delta=1e-5,
        ...     confidence=0.95,
        ... )
        >>> round(bound.epsilon, 2)
        9.75
    """
    return gaussian_pivot_of_moments(
        sample_statistics(members),
        sample_statistics(nonmembers),
        delta=delta,
        confidence=confidence,
    )


def gaussian_pivot_of_moments(
    members: SampleMoments, nonmembers: SampleMoments, *, delta: float, confidence: float
) -> LowerBound:
    """Compute the bound of ``gaussian_pivot`` from the sufficient statistics.

    Args:
        members: Moments of the members' scores.
        nonmembers: Moments of the non-members' scores.
        delta: In (0, 1).
        confidence: Probability with which the bound holds, in (0, 1).

    Returns:
        The bound, conditional on normal scores with one variance.

    Raises:
        InvalidArgument: If a number is out of range.

    Example:
        >>> members, nonmembers = SampleMoments(500, 2.0, 1.0), SampleMoments(500, 0.0, 1.0)
        >>> bound = gaussian_pivot_of_moments(members, nonmembers, delta=1e-5, confidence=0.95)
        >>> round(bound.epsilon, 2)
        9.21
    """
    require_open_unit("confidence", confidence)
    mu = min(MAX_MU, mu_from_sample_statistics(members, nonmembers, 1 - confidence))
    return LowerBound(
        epsilon_of_mu(mu, delta),
        BoundKind.CONDITIONAL,
        confidence,
        ASSUMES_EQUAL_VARIANCE_NORMAL_SCORES,
    )


def sample_statistics(observations: Array) -> SampleMoments:
    """Compute the sufficient statistics of normal observations.

    Args:
        observations: Shape ``(n,)``, finite; may be empty.

    Returns:
        Their number, mean, and mean squared distance from the mean.

    Raises:
        InvalidArgument: If the array has another shape, or an observation is not finite.

    Example:
        >>> sample_statistics(np.array([1.0, 3.0]))
        SampleMoments(count=2, mean=2.0, variance=1.0)
    """
    if observations.ndim != 1 or not np.isfinite(observations).all():
        given = f"shape {observations.shape}"
        raise InvalidArgument("observations", given, "a one-dimensional array of finite numbers")
    if len(observations) == 0:
        return SampleMoments(0, 0.0, 0.0)
    return SampleMoments(len(observations), float(observations.mean()), float(observations.var()))


def mu_from_sample_statistics(
    members: SampleMoments, nonmembers: SampleMoments, level: float
) -> float:
    """Compute a lower confidence limit of the gap between two means, in standard deviations.

    Args:
        members: Moments of one normal sample.
        nonmembers: Moments of the other one, with the same true variance.
        level: Failure probability of the limit, in (0, 1).

    Returns:
        The limit; 0 with fewer than two observations of a class, and infinite where the
        observations have no variance and a positive gap.
    """
    n1, n0 = members.count, nonmembers.count
    if min(n1, n0) < 2:
        return 0.0
    squares = (n1 * members.variance + n0 * nonmembers.variance) / (n1 + n0 - 2)
    gap = members.mean - nonmembers.mean
    if squares == 0:  # without noise, any gap identifies every member
        return math.inf if gap > 0 else 0.0
    size = math.sqrt(n1 * n0 / (n1 + n0))
    t = size * gap / math.sqrt(squares)
    return noncentrality_lower_limit(t, n1 + n0 - 2, level) / size


def noncentrality_lower_limit(t: float, degrees: int, level: float) -> float:
    """Compute a lower confidence limit of the noncentrality of a t statistic.

    Args:
        t: The observed statistic.
        degrees: Degrees of freedom, at least 1.
        level: Failure probability of the limit, in (0, 1).

    Returns:
        The largest noncentrality at which P[T >= t] <= level, rounded down; 0 where ``t`` is
        not significant at ``level`` under noncentrality 0.
    """
    if not stdtr(degrees, -t) <= level:
        return 0.0

    def above(noncentrality: float) -> float:
        """Return P[T >= t] from above."""
        return 1 - float(nctdtr(degrees, noncentrality, t)) + NORMAL_CDF_ROUNDING

    return bisect_largest(lambda noncentrality: above(noncentrality) <= level, 0.0, t + 1.0)
