"""Bounds from independent trials: each score comes from a training run of its own.

The first part takes four counts at one threshold that was fixed before the scores were read.
The second part takes scores and an explicit choice of thresholds, see ``thresholds``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import betainc, betaincinv

from dpaudit.attacks.bounds.gaussian_dp import (
    ASSUMES_GAUSSIAN_TRADEOFF,
    epsilon_of_mu,
    mu_of_error_rates,
)
from dpaudit.attacks.bounds.lower_bound import (
    ASSUMES_INDEPENDENT_TRIALS,
    Array,
    LowerBound,
    bisect_largest,
    epsilon_both_directions,
    jeffreys_upper_limit,
    require_delta_or_zero,
    upper_limit,
)
from dpaudit.attacks.bounds.thresholds import (
    ConfidenceBand,
    ErrorLimits,
    Thresholds,
    simultaneous_limits_of_counts,
)
from dpaudit.vocabulary.audit import BoundKind, ErrorBand, GaussianBand
from dpaudit.vocabulary.errors import InvalidArgument, require_count, require_open_unit

ASSUMES_JEFFREYS_PRIOR = "Jeffreys' prior: a credible region, no statement about repeated audits"
STATES_CREDIBLE_REGION = (
    "under this prior, a smaller epsilon has low posterior probability; nothing is refuted"
)
MAX_CREDIBLE_EPSILON = 60.0  # in nats, end of the search
QUADRATURE_NODES = 20_000  # of the posterior of the false-positive rate


@dataclass(frozen=True)
class _ErrorCounts:
    """Errors at one threshold: missed members and accused non-members, with the class sizes."""

    false_negatives: int
    members: int
    false_positives: int
    nonmembers: int


def clopper_pearson(
    *,
    true_positives: int,
    false_positives: int,
    members: int,
    nonmembers: int,
    delta: float,
    confidence: float,
) -> LowerBound:
    """Compute the certified lower bound from Clopper-Pearson limits at one threshold.

    With FPR+ and FNR+ the upper limits, at half the failure probability alpha each,

        epsilon = max(ln((1 - delta - FNR+)/FPR+), ln((1 - delta - FPR+)/FNR+), 0).

    With n trials of each class it is at most about ln(n / ln(2/alpha)).

    Args:
        true_positives: Number of members above the threshold.
        false_positives: Number of non-members above the threshold.
        members: Number of members that were scored, each in a run of its own.
        nonmembers: Number of non-members that were scored, each in a run of its own.
        delta: In [0, 1).
        confidence: Probability with which the bound holds, in (0, 1).

    Returns:
        The bound. It is certified for independent trials.

    Raises:
        InvalidArgument: If the counts contradict each other, or a number is out of range.

    References:
        Clopper & Pearson (1934); Kairouz, Oh & Viswanath (2015), arXiv:1311.0776, Theorem 2.1.

    Example:
        >>> bound = clopper_pearson(
        ...     true_positives=900, false_positives=50, members=1000, nonmembers=1000,
        ...     delta=1e-5, confidence=0.95,
        ... )
        >>> round(bound.epsilon, 2)
        2.6
    """
    errors = _validated_error_counts(
        true_positives, false_positives, members, nonmembers, delta, confidence
    )
    level = (1 - confidence) / 2
    missed = upper_limit(errors.false_negatives, members, level)
    accused = upper_limit(errors.false_positives, nonmembers, level)
    epsilon = epsilon_both_directions(missed, accused, delta)
    return LowerBound(epsilon, BoundKind.CERTIFIED, confidence, ASSUMES_INDEPENDENT_TRIALS)


def jeffreys(
    *,
    true_positives: int,
    false_positives: int,
    members: int,
    nonmembers: int,
    delta: float,
    confidence: float,
) -> LowerBound:
    """Estimate epsilon from posteriors of both error rates under Jeffreys' prior.

    The formula of ``clopper_pearson``, with posterior quantiles in place of the upper limits.

    Args:
        true_positives: Number of members above the threshold.
        false_positives: Number of non-members above the threshold.
        members: Number of members that were scored, each in a run of its own.
        nonmembers: Number of non-members that were scored, each in a run of its own.
        delta: In [0, 1).
        confidence: Posterior probability, in (0, 1).

    Returns:
        An estimate, not a bound.

    Raises:
        InvalidArgument: If the counts contradict each other, or a number is out of range.

    Example:
        >>> bound = jeffreys(
        ...     true_positives=900, false_positives=50, members=1000, nonmembers=1000,
        ...     delta=1e-5, confidence=0.95,
        ... )
        >>> round(bound.epsilon, 2)
        2.61
    """
    errors = _validated_error_counts(
        true_positives, false_positives, members, nonmembers, delta, confidence
    )
    level = (1 - confidence) / 2
    missed = jeffreys_upper_limit(errors.false_negatives, members, level)
    accused = jeffreys_upper_limit(errors.false_positives, nonmembers, level)
    epsilon = epsilon_both_directions(missed, accused, delta)
    return LowerBound(
        epsilon, BoundKind.ESTIMATE, confidence, ASSUMES_JEFFREYS_PRIOR, STATES_CREDIBLE_REGION
    )


def gaussian_threshold(
    *,
    true_positives: int,
    false_positives: int,
    members: int,
    nonmembers: int,
    delta: float,
    confidence: float,
) -> LowerBound:
    """Compute the lower bound within Gaussian trade-off curves at one threshold.

    Clopper-Pearson upper limits of both rates, at half the failure probability each, give a
    lower bound on mu, and mu gives epsilon at ``delta``.

    Args:
        true_positives: Number of members above the threshold.
        false_positives: Number of non-members above the threshold.
        members: Number of members that were scored, each in a run of its own.
        nonmembers: Number of non-members that were scored, each in a run of its own.
        delta: In (0, 1).
        confidence: Probability with which the bound holds, in (0, 1).

    Returns:
        The bound, conditional on a Gaussian trade-off curve and independent trials.

    Raises:
        InvalidArgument: If the counts contradict each other, or a number is out of range.

    References:
        Nasr et al. (2023), arXiv:2302.07956, section 4.

    Example:
        >>> bound = gaussian_threshold(
        ...     true_positives=900, false_positives=50, members=1000, nonmembers=1000,
        ...     delta=1e-5, confidence=0.95,
        ... )
        >>> round(bound.epsilon, 2)
        14.46
    """
    errors = _validated_error_counts(
        true_positives, false_positives, members, nonmembers, delta, confidence
    )
    level = (1 - confidence) / 2
    missed = upper_limit(errors.false_negatives, members, level)
    accused = upper_limit(errors.false_positives, nonmembers, level)
    epsilon = epsilon_of_mu(mu_of_error_rates(missed, accused), delta)
    return LowerBound(
        epsilon,
        BoundKind.CONDITIONAL,
        confidence,
        f"{ASSUMES_GAUSSIAN_TRADEOFF}; {ASSUMES_INDEPENDENT_TRIALS}",
    )


def zanella_beguelin(
    *,
    true_positives: int,
    false_positives: int,
    members: int,
    nonmembers: int,
    delta: float,
    confidence: float,
) -> LowerBound:
    """Estimate epsilon from the joint posterior of both error rates.

    FNR and FPR have independent posteriors under Jeffreys' prior. The estimate is the epsilon
    whose privacy region, the rates that Kairouz et al.'s inequalities allow, has posterior
    probability 1 - confidence.

    Args:
        true_positives: Number of members above the threshold.
        false_positives: Number of non-members above the threshold.
        members: Number of members that were scored, each in a run of its own.
        nonmembers: Number of non-members that were scored, each in a run of its own.
        delta: In [0, 1).
        confidence: Posterior probability, in (0, 1).

    Returns:
        An estimate, not a bound.

    Raises:
        InvalidArgument: If the counts contradict each other, or a number is out of range.

    References:
        Zanella-Beguelin et al. (2023), arXiv:2206.05199.

    Example:
        >>> bound = zanella_beguelin(
        ...     true_positives=900, false_positives=50, members=1000, nonmembers=1000,
        ...     delta=1e-5, confidence=0.95,
        ... )
        >>> round(bound.epsilon, 2)
        2.67
    """
    errors = _validated_error_counts(
        true_positives, false_positives, members, nonmembers, delta, confidence
    )

    def unlikely(epsilon: float) -> bool:
        """Whether the privacy region has posterior probability 1 - confidence or less."""
        return _privacy_region_probability(errors, epsilon, delta) <= 1 - confidence

    epsilon = bisect_largest(unlikely, 0.0, MAX_CREDIBLE_EPSILON) if unlikely(0.0) else 0.0
    return LowerBound(
        epsilon, BoundKind.ESTIMATE, confidence, ASSUMES_JEFFREYS_PRIOR, STATES_CREDIBLE_REGION
    )


def _privacy_region_probability(errors: _ErrorCounts, epsilon: float, delta: float) -> float:
    """Return the posterior probability of the privacy region of (epsilon, delta)-DP.

    The mean over the quantiles of the FPR (midpoint rule) of the posterior probability of the
    FNRs that are allowed there.
    """
    quantiles = (np.arange(QUADRATURE_NODES) + 0.5) / QUADRATURE_NODES
    right = errors.nonmembers - errors.false_positives
    accused = betaincinv(errors.false_positives + 0.5, right + 0.5, quantiles)
    # Both inequalities in both directions, solved for the FNR:
    # 1 - delta <= FNR + e^eps FPR, 1 - delta <= FPR + e^eps FNR, and the same for 1 - FNR, 1 - FPR.
    gain = math.exp(epsilon)
    least = np.maximum(1 - delta - gain * accused, (1 - delta - accused) / gain)
    most = np.minimum(delta + gain * (1 - accused), 1 - (accused - delta) / gain)
    hits = errors.members - errors.false_negatives

    def below(rate: Array) -> Array:
        """Return the posterior probability of an FNR below ``rate``."""
        return np.asarray(betainc(errors.false_negatives + 0.5, hits + 0.5, np.clip(rate, 0, 1)))

    return float(np.mean(np.maximum(below(most) - below(least), 0.0)))


def _validated_error_counts(
    true_positives: int,
    false_positives: int,
    members: int,
    nonmembers: int,
    delta: float,
    confidence: float,
) -> _ErrorCounts:
    """Check counts, delta and confidence, and return the counts of errors."""
    require_count("members", members)
    require_count("nonmembers", nonmembers)
    require_count("true_positives", true_positives, least=0)
    require_count("false_positives", false_positives, least=0)
    if true_positives > members:
        raise InvalidArgument("true_positives", true_positives, f"at most {members} members")
    if false_positives > nonmembers:
        raise InvalidArgument(
            "false_positives", false_positives, f"at most {nonmembers} nonmembers"
        )
    require_delta_or_zero(delta)
    require_open_unit("confidence", confidence)
    return _ErrorCounts(members - true_positives, members, false_positives, nonmembers)


# Bounds from scores, with an explicit choice of thresholds.

ScoreArray = NDArray[np.float64]

ASSUMES_TRIALS_ACROSS_RUNS = "independent trials, which scores of one run are not in general"


def from_scores(
    *,
    members: ScoreArray,
    nonmembers: ScoreArray,
    thresholds: Thresholds,
    delta: float,
    confidence: float,
) -> LowerBound:
    """Compute the certified lower bound from scores of independent trials.

    The largest ln((1 - delta - FNR+)/FPR+), in both directions, over the chosen thresholds. FNR+
    and FPR+ are upper limits that hold at all of them at once.

    Args:
        members: Scores of members, shape ``(n1,)``, finite; larger means member.
        nonmembers: Scores of non-members, shape ``(n0,)``, finite.
        thresholds: The choice of thresholds: ``FixedThreshold``, ``SampleSplit``,
            ``ConfidenceBand``, ``DkwBand`` or ``Bonferroni``.
        delta: In [0, 1).
        confidence: Probability with which the bound holds, in (0, 1).

    Returns:
        The bound. It is certified for independent trials.

    Raises:
        InvalidArgument: If a class has no scores, a score is not finite, or a number is out of
            range.

    References:
        Kairouz, Oh & Viswanath (2015), arXiv:1311.0776, Theorem 2.1.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> bound = from_scores(
        ...     members=rng.normal(2, 1, 500),
        ...     nonmembers=rng.normal(0, 1, 500),
        ...     thresholds=ConfidenceBand(),
        ...     delta=1e-5,
        ...     confidence=0.95,
        ... )
        >>> round(bound.epsilon, 2)
        2.82
    """
    limits = _error_limits(members, nonmembers, thresholds, delta, confidence)
    epsilon = epsilon_both_directions(limits.false_negative_rate, limits.false_positive_rate, delta)
    assumes = f"{ASSUMES_TRIALS_ACROSS_RUNS}; {thresholds.description}"
    return LowerBound(epsilon, BoundKind.CERTIFIED, confidence, assumes)


def from_error_band(errors: ErrorBand, *, delta: float, confidence: float) -> LowerBound:
    """Compute ``from_scores`` with a ``ConfidenceBand`` from counts of errors.

    Args:
        errors: Errors of both kinds at every threshold.
        delta: In [0, 1).
        confidence: Probability with which the bound holds, in (0, 1).

    Returns:
        The bound, certified for independent trials.

    Raises:
        InvalidArgument: If a number is out of range, or there are no counts.

    Example:
        >>> from dpaudit.vocabulary.audit import ErrorBand
        >>> errors = ErrorBand(100, 100, (100, 0, 0), (0, 0, 100))
        >>> round(from_error_band(errors, delta=1e-5, confidence=0.95).epsilon, 2)
        2.65
    """
    require_delta_or_zero(delta)
    require_open_unit("confidence", confidence)
    if min(errors.members, errors.nonmembers, len(errors.missed)) < 1:
        raise InvalidArgument("errors", "no counts", "errors of at least one score of each class")
    counts = GaussianBand(errors.members, errors.nonmembers, errors.missed, errors.accused)
    limits = simultaneous_limits_of_counts(counts, 1 - confidence)
    epsilon = epsilon_both_directions(limits.false_negative_rate, limits.false_positive_rate, delta)
    assumes = f"{ASSUMES_TRIALS_ACROSS_RUNS}; {ConfidenceBand().description}"
    return LowerBound(epsilon, BoundKind.CERTIFIED, confidence, assumes)


def gaussian_from_scores(
    *,
    members: ScoreArray,
    nonmembers: ScoreArray,
    thresholds: Thresholds,
    delta: float,
    confidence: float,
) -> LowerBound:
    """Compute the lower bound within Gaussian trade-off curves from scores.

    The upper limits of the error rates hold at all chosen thresholds at once. The largest mu
    that they imply gives epsilon at ``delta``.

    Args:
        members: Scores of members, shape ``(n1,)``, finite; larger means member.
        nonmembers: Scores of non-members, shape ``(n0,)``, finite.
        thresholds: The choice of thresholds, as for ``from_scores``.
        delta: In (0, 1).
        confidence: Probability with which the bound holds, in (0, 1).

    Returns:
        The bound, conditional on a Gaussian trade-off curve and independent trials.

    Raises:
        InvalidArgument: If a class has no scores, a score is not finite, or a number is out of
            range.

    References:
        Nasr et al. (2023), arXiv:2302.07956, section 4, with simultaneous limits.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> bound = gaussian_from_scores(
        ...     members=rng.normal(2, 1, 500),
        ...     nonmembers=rng.normal(0, 1, 500),
        ...     thresholds=ConfidenceBand(),
        ...     delta=1e-5,
        ...     confidence=0.95,
        ... )
        >>> round(bound.epsilon, 2)
        9.0
    """
    limits = _error_limits(members, nonmembers, thresholds, delta, confidence)
    return _gaussian_bound(limits, thresholds, delta, confidence)


def gaussian_band_of_counts(errors: GaussianBand, *, delta: float, confidence: float) -> LowerBound:
    """Compute ``gaussian_from_scores`` with a ``ConfidenceBand`` from counts of errors.

    Args:
        errors: Errors of both kinds at every threshold, as ``error_counts_at_every_threshold``
            returns them.
        delta: In (0, 1).
        confidence: Probability with which the bound holds, in (0, 1).

    Returns:
        The bound, conditional on a Gaussian trade-off curve and independent trials.

    Raises:
        InvalidArgument: If a number is out of range.

    Example:
        >>> from dpaudit.attacks.bounds import error_counts_at_every_threshold
        >>> counts = error_counts_at_every_threshold(np.arange(100.0), np.arange(100.0) - 80)
        >>> bound = gaussian_band_of_counts(counts, delta=1e-5, confidence=0.95)
        >>> round(bound.epsilon, 1)
        9.4
    """
    require_open_unit("confidence", confidence)
    return _gaussian_bound(
        simultaneous_limits_of_counts(errors, 1 - confidence), ConfidenceBand(), delta, confidence
    )


def _gaussian_bound(
    limits: ErrorLimits, thresholds: Thresholds, delta: float, confidence: float
) -> LowerBound:
    """Return the bound of the largest mu that the limits imply."""
    mu = mu_of_error_rates(limits.false_negative_rate, limits.false_positive_rate)
    assumes = f"{ASSUMES_GAUSSIAN_TRADEOFF}; {ASSUMES_TRIALS_ACROSS_RUNS}; {thresholds.description}"
    return LowerBound(epsilon_of_mu(mu, delta), BoundKind.CONDITIONAL, confidence, assumes)


def _error_limits(
    members: ScoreArray,
    nonmembers: ScoreArray,
    thresholds: Thresholds,
    delta: float,
    confidence: float,
) -> ErrorLimits:
    """Check the arguments, and return the limits at all chosen thresholds."""
    for name, scores in (("members", members), ("nonmembers", nonmembers)):
        if scores.ndim != 1 or len(scores) == 0 or not np.isfinite(scores).all():
            raise InvalidArgument(
                name, f"scores of shape {scores.shape}", "a one-dimensional array of finite scores"
            )
    require_delta_or_zero(delta)
    require_open_unit("confidence", confidence)
    return thresholds.limits(members, nonmembers, 1 - confidence)
