"""What a Gaussian trade-off costs: epsilon of mu, and a mu that the data exceed.

Everything here assumes that the mechanism's trade-off curve is G_mu for some mu (Dong, Roth
& Su 2022, arXiv:1905.02383), as it is for full-batch Gaussian noise. Outside of that family
nothing is claimed: on randomized response at epsilon 1 such bounds say 4.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_ndtr, nctdtr, ndtri, stdtr

from dpaudit.attacks.bounds.result import LowerBound
from dpaudit.attacks.bounds.search import largest
from dpaudit.vocabulary.audit import BoundKind
from dpaudit.vocabulary.errors import InvalidArgument, require_open_unit
from dpaudit.vocabulary.estimators import Sample

Array = NDArray[np.float64]

MOST_MU = 100.0  # beyond it, epsilon is in the thousands
ROUNDING = 1e-14  # of a distribution function, with room

GAUSSIAN = "a Gaussian trade-off curve, as full-batch Gaussian noise has it"
PIVOT = "scores that are normal with one variance, members' and non-members' alike"
GIVEN = "that the mechanism is mu-GDP and no better"


def gaussian_epsilon(*, mu: float, delta: float) -> LowerBound:
    """Return the epsilon of a mechanism that is exactly mu-GDP.

    Dong, Roth & Su 2022, Corollary 2.13: delta = Phi(mu/2 - eps/mu) - e^eps Phi(-mu/2 - eps/mu).

    Raises:
        InvalidArgument: ``mu`` is negative or not finite, or ``delta`` is outside of (0, 1).
    """
    return LowerBound(epsilon_of_mu(mu, delta), BoundKind.CONDITIONAL, 1.0, GIVEN)


def epsilon_of_mu(mu: float, delta: float) -> float:
    """Return epsilon at ``delta`` of a mu-GDP mechanism, rounded down."""
    if not 0 <= mu < math.inf:
        raise InvalidArgument("mu", mu, "at least 0 and finite")
    require_open_unit("delta", delta)
    if mu == 0 or _log_delta(mu, 0.0) <= math.log(delta):
        return 0.0
    # Above it, Phi(mu/2 - eps/mu) alone is below delta.
    most = mu * (mu / 2 - float(ndtri(delta))) + 1e-9
    return largest(lambda epsilon: _log_delta(mu, epsilon) > math.log(delta), 0.0, most)


def mu_of_epsilon(epsilon: float, delta: float) -> float:
    """Return the mu at which a Gaussian trade-off has ``epsilon`` at ``delta``, rounded down."""
    if epsilon <= 0:
        return 0.0
    most = 2.0
    while _log_delta(most, epsilon) <= math.log(delta):
        most *= 2
    return largest(lambda mu: _log_delta(mu, epsilon) <= math.log(delta), 0.0, most)


def _log_delta(mu: float, epsilon: float) -> float:
    if mu == 0:
        return -math.inf
    gain = float(log_ndtr(mu / 2 - epsilon / mu))
    loss = epsilon + float(log_ndtr(-mu / 2 - epsilon / mu))
    return gain + math.log(-math.expm1(loss - gain)) if loss < gain else -math.inf


def mu_of_rates(false_negative_rate: Array, false_positive_rate: Array) -> float:
    """Return the largest Phi_inv(1 - FPR) - Phi_inv(FNR) of upper limits; 0 where none is above.

    Nasr et al. 2023, arXiv:2302.07956, section 4.
    """
    gaps = -ndtri(false_positive_rate) - ndtri(false_negative_rate)
    return float(np.max(gaps, initial=0.0))


def gaussian_pivot(
    *, members: Array, nonmembers: Array, delta: float, confidence: float
) -> LowerBound:
    """Return the bound from the gap of two normal samples: its pivot is a noncentral t.

    With mu the gap in standard deviations, sqrt(n1 n0/(n1 + n0)) (mean1 - mean0)/s is
    noncentral t with n1 + n0 - 2 degrees of freedom, centred at sqrt(n1 n0/(n1 + n0)) mu. The
    gap as a privacy loss: Andrew et al. 2023, arXiv:2302.03098.

    Args:
        members: Scores of members, shape ``(n1,)``, larger means member.
        nonmembers: Scores of non-members, shape ``(n0,)``.
        delta: In (0, 1).
        confidence: In (0, 1).

    Raises:
        InvalidArgument: scores that are not finite, or a number out of range.
    """
    return gaussian_pivot_of_moments(
        sample_of(members), sample_of(nonmembers), delta=delta, confidence=confidence
    )


def gaussian_pivot_of_moments(
    members: Sample, nonmembers: Sample, *, delta: float, confidence: float
) -> LowerBound:
    """Return the same from the sufficient statistics, arguments as above."""
    require_open_unit("confidence", confidence)
    mu = min(MOST_MU, mu_of_moments(members, nonmembers, 1 - confidence))
    return LowerBound(epsilon_of_mu(mu, delta), BoundKind.CONDITIONAL, confidence, PIVOT)


def sample_of(observations: Array) -> Sample:
    """Return the sufficient statistics of normal observations, shape ``(n,)``.

    Raises:
        InvalidArgument: An observation is not finite.
    """
    if observations.ndim != 1 or not np.isfinite(observations).all():
        given = f"scores of shape {observations.shape}"
        raise InvalidArgument("observations", given, "a list, all finite")
    if len(observations) == 0:
        return Sample(0, 0.0, 0.0)
    return Sample(len(observations), float(observations.mean()), float(observations.var()))


def mu_of_moments(members: Sample, nonmembers: Sample, level: float) -> float:
    """Return what the gap in standard deviations is below with probability ``level`` at most.

    Fewer than two observations of a kind say nothing: 0.
    """
    n1, n0 = members.count, nonmembers.count
    if min(n1, n0) < 2:
        return 0.0  # too few to say anything
    squares = (n1 * members.variance + n0 * nonmembers.variance) / (n1 + n0 - 2)
    gap = members.mean - nonmembers.mean
    if squares == 0:  # no noise at all tells everything, if it tells anything
        return math.inf if gap > 0 else 0.0
    size = math.sqrt(n1 * n0 / (n1 + n0))
    t = size * gap / math.sqrt(squares)
    return noncentrality(t, n1 + n0 - 2, level) / size


def noncentrality(t: float, degrees: int, level: float) -> float:
    """Return what a noncentral t's centre is below with probability ``level`` at most.

    The limit by inverting its distribution; 0 where ``t`` is not above chance.
    """
    if not stdtr(degrees, -t) <= level:
        return 0.0

    def above(centre: float) -> float:
        return 1 - float(nctdtr(degrees, centre, t)) + ROUNDING

    return largest(lambda centre: above(centre) <= level, 0.0, t + 1.0)
