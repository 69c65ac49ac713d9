"""Bounds from scores of independent trials, with the choice of thresholds made explicit."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dpaudit.attacks.bounds.gaussian import GAUSSIAN, epsilon_of_mu, mu_of_rates
from dpaudit.attacks.bounds.rates import epsilon_both_ways
from dpaudit.attacks.bounds.result import LowerBound, require_delta_or_zero
from dpaudit.attacks.bounds.thresholds import Band, ErrorLimits, Thresholds, limits_of_counts
from dpaudit.vocabulary.audit import BoundKind
from dpaudit.vocabulary.errors import InvalidArgument, require_open_unit
from dpaudit.vocabulary.estimators import GaussianBand

Array = NDArray[np.float64]

INDEPENDENT = "independent trials, as scores of one run are not by themselves"


def from_scores(
    *, members: Array, nonmembers: Array, thresholds: Thresholds, delta: float, confidence: float
) -> LowerBound:
    """Return the certified bound over the thresholds that are looked at.

    Args:
        members: Scores of members, shape ``(n1,)``; larger means member.
        nonmembers: Scores of non-members, shape ``(n0,)``.
        thresholds: Fixed, Split, Band, Dkw or Bonferroni.
        delta: In [0, 1).
        confidence: In (0, 1).

    Raises:
        InvalidArgument: no scores of a kind, scores that are not finite, or a number out of
            range.
    """
    limits = _limits(members, nonmembers, thresholds, delta, confidence)
    epsilon = epsilon_both_ways(limits.false_negative_rate, limits.false_positive_rate, delta)
    assumes = f"{INDEPENDENT}; {thresholds.words}"
    return LowerBound(epsilon, BoundKind.CERTIFIED, confidence, assumes)


def gaussian_from_scores(
    *, members: Array, nonmembers: Array, thresholds: Thresholds, delta: float, confidence: float
) -> LowerBound:
    """Return the bound of the largest Gaussian trade-off through the limits.

    Arguments as above, but ``delta`` above 0. Nasr et al. 2023, arXiv:2302.07956, with every
    threshold paid for.
    """
    limits = _limits(members, nonmembers, thresholds, delta, confidence)
    return _gaussian(limits, thresholds, delta, confidence)


def gaussian_band_of_counts(errors: GaussianBand, *, delta: float, confidence: float) -> LowerBound:
    """Return ``gaussian_from_scores`` under ``Band``, from the errors at every threshold.

    Args:
        errors: See ``thresholds.errors_at_every_threshold``.
        delta: In (0, 1).
        confidence: In (0, 1).
    """
    require_open_unit("confidence", confidence)
    return _gaussian(limits_of_counts(errors, 1 - confidence), Band(), delta, confidence)


def _gaussian(
    limits: ErrorLimits, thresholds: Thresholds, delta: float, confidence: float
) -> LowerBound:
    mu = mu_of_rates(limits.false_negative_rate, limits.false_positive_rate)
    assumes = f"{GAUSSIAN}; {INDEPENDENT}; {thresholds.words}"
    return LowerBound(epsilon_of_mu(mu, delta), BoundKind.CONDITIONAL, confidence, assumes)


def _limits(
    members: Array, nonmembers: Array, thresholds: Thresholds, delta: float, confidence: float
) -> ErrorLimits:
    for name, scores in (("members", members), ("nonmembers", nonmembers)):
        if scores.ndim != 1 or len(scores) == 0 or not np.isfinite(scores).all():
            raise InvalidArgument(
                name, f"scores of shape {scores.shape}", "a finite, non-empty list of scores"
            )
    require_delta_or_zero(delta)
    require_open_unit("confidence", confidence)
    return thresholds.limits(members, nonmembers, 1 - confidence)
