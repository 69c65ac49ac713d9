"""Choices of thresholds on scores, and confidence limits that account for the choice.

A threshold that was chosen on the same scores that evaluate it makes a bound invalid: at a
nominal 5%, popular tools had 10% to 94% false claims. A threshold is therefore fixed beforehand
(``FixedThreshold``), or chosen on one part of the scores and evaluated on the other
(``SampleSplit``). Otherwise the limits hold at all thresholds at once (``ConfidenceBand``,
``Bonferroni``, ``DkwBand``).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaincinv, gammaln

from dpaudit.attacks.bounds.lower_bound import upper_limit
from dpaudit.vocabulary.audit import GaussianBand
from dpaudit.vocabulary.errors import InvalidArgument, require_count, require_open_unit

# A simultaneous upper limit of a distribution function.
#
# The k-th smallest of n uniform numbers has the law Beta(k, n - k + 1). The band uses the quantile
# 1 - gamma of each law as the limit of U_(k). All limits together fail with probability
#
#     P(exists k: U_(k) > BetaInv(1 - gamma; k, n - k + 1)),
#
# which an exact recursion computes. The local level gamma makes it the wanted level.

Array = NDArray[np.float64]
Counts = NDArray[np.int64]

POISSON_DEVIATIONS = 12.0  # standard deviations of the counts; the rest counts as a failure
MIN_BISECTION_STEP = 1e-17
LEVEL_TOLERANCE = 1e-4  # relative, of a local level
MAX_DENSE_SCORES = 10_000
COARSE_LEVEL_TOLERANCE = 0.02  # relative, of a local level with more scores
LIMITS_PER_DEVIATION = 3
RECURSION_ROUNDING = 4e-15  # of the recursion, per score


def limited_order_statistics(scores: int) -> Counts:
    """Return the order statistics that have limits.

    Args:
        scores: Number of scores, n.

    Returns:
        Ranks k, rising, from 1 to n: all of them up to ``MAX_DENSE_SCORES`` scores, and about
        ``2 LIMITS_PER_DEVIATION sqrt(n)`` of them beyond.
    """
    if scores <= MAX_DENSE_SCORES:
        return np.arange(1, scores + 1)
    # The number of scores below a limit near rank k has a standard deviation of about sqrt(k), so
    # ranks are placed evenly in sqrt(k).
    halves = np.arange(1, 2 * LIMITS_PER_DEVIATION * math.sqrt(scores)) / (2 * LIMITS_PER_DEVIATION)
    return np.unique(np.append(np.ceil(halves**2).astype(np.int64), scores))


@lru_cache(maxsize=256)
def local_level(scores: int, level: float) -> float:
    """Compute the local level gamma of a simultaneous band.

    Args:
        scores: Number of independent scores, n.
        level: Failure probability of all limits together, in (0, 1).

    Returns:
        A gamma at which all limits together fail with probability at most ``level``.

    Raises:
        InvalidArgument: If a number is out of range.
    """
    require_count("scores", scores)
    require_open_unit("level", level)

    def excess(log_gamma: float) -> float:
        return math.log(band_failure_probability(scores, math.exp(log_gamma)) / level)

    # Bonferroni's level is always valid; where rounding hides a larger valid level, use it.
    least, most = math.log(level / scores), math.log(level)
    if scores == 1 or excess(least) >= 0:
        return level / scores
    from scipy.optimize import brentq  # noqa: PLC0415  slow to import, and rarely needed

    tolerance = LEVEL_TOLERANCE if scores <= MAX_DENSE_SCORES else COARSE_LEVEL_TOLERANCE
    root = brentq(excess, least, most, xtol=tolerance)
    while excess(root) > 0:
        root -= tolerance
    return math.exp(max(root, least))


def band_failure_probability(scores: int, gamma: float) -> float:
    """Compute the probability that some order statistic exceeds its quantile 1 - gamma.

    Uniform numbers are the points of a Poisson process of rate n, given that there are n.
    U_(k) is at most b_k for every k if and only if each b_k has k points or more below it. The
    recursion propagates the distribution of the count from one b_k to the next, and drops
    counts that are too small.

    Args:
        scores: Number of independent scores, n.
        gamma: The local level, in (0, 1).

    Returns:
        The failure probability of the band, rounded up.
    """
    k = limited_order_statistics(scores)
    limits = betaincinv(k, scores - k + 1, 1 - gamma)
    steps = scores * np.diff(limits, prepend=0.0, append=1.0)
    most = np.minimum(
        scores,
        np.ceil(scores * limits + POISSON_DEVIATIONS * _count_deviations(scores, limits)),
    )
    counts, first = np.ones(1), 0  # probabilities of first, first + 1, ... points so far
    for least, highest, mean in zip(k, most.astype(int), steps[:-1], strict=True):
        counts = np.convolve(counts, _poisson_probabilities(float(mean)))[
            least - first : highest + 1 - first
        ]
        first = int(least)
    # Condition on exactly n points: divide by P[Poisson(n) = n].
    rest = _poisson_probabilities_at(scores - first - np.arange(len(counts)), float(steps[-1]))
    given = math.exp(-scores + scores * math.log(scores) - float(gammaln(scores + 1)))
    return 1.0 - float(counts @ rest) / given + RECURSION_ROUNDING * scores


def _count_deviations(scores: int, limits: Array) -> Array:
    """Return binomial standard deviations of the counts below ``limits``, plus 1."""
    return np.sqrt(scores * limits * (1 - limits)) + 1.0


def _poisson_probabilities(mean: float) -> Array:
    """Return the Poisson probabilities of 0, 1, ... points, up to 12 standard deviations."""
    return _poisson_probabilities_at(
        np.arange(int(mean + POISSON_DEVIATIONS * math.sqrt(mean) + 12)), mean
    )


def _poisson_probabilities_at(points: NDArray[np.int64], mean: float) -> Array:
    """Return the Poisson probabilities of the given numbers of points."""
    mean = max(mean, MIN_BISECTION_STEP)
    return np.asarray(np.exp(points * math.log(mean) - mean - gammaln(points + 1)))


# Choices of thresholds.

SCORE_COUNT_GRID = 10  # numbers of scores are rounded up to a tenth of their first digit


@dataclass(frozen=True)
class ErrorLimits:
    """Upper limits of both error rates that hold simultaneously.

    Attributes:
        false_negative_rate: One limit per threshold, shape ``(thresholds,)``.
        false_positive_rate: One limit per threshold, shape ``(thresholds,)``.
    """

    false_negative_rate: Array
    false_positive_rate: Array


class Thresholds(Protocol):
    """A choice of thresholds on scores.

    Example:
        >>> choices: list[Thresholds] = [ConfidenceBand(), DkwBand()]
        >>> choices[0].description
        'every threshold, under a simultaneous band (equal local levels)'
    """

    @property
    def description(self) -> str:
        """How the thresholds were chosen, as text for reports."""

    def limits(self, members: Array, nonmembers: Array, level: float) -> ErrorLimits:
        """Compute simultaneous upper limits of both error rates.

        Args:
            members: Scores of members, shape ``(n1,)``; larger means member.
            nonmembers: Scores of non-members, shape ``(n0,)``.
            level: Failure probability of all limits together, in (0, 1).

        Returns:
            The limits, one per threshold.
        """


@dataclass(frozen=True)
class FixedThreshold:
    """One threshold that was fixed before the scores were read.

    Attributes:
        threshold: A score above it means member; finite.

    Example:
        >>> limits = FixedThreshold(0.5).limits(np.ones(100), np.zeros(100), 0.05)
        >>> limits.false_negative_rate.round(4)
        array([0.0362])
    """

    threshold: float

    def __post_init__(self) -> None:
        if not math.isfinite(self.threshold):
            raise InvalidArgument("threshold", self.threshold, "finite")

    @property
    def description(self) -> str:
        """How the threshold was chosen, as text for reports."""
        return f"one threshold, {self.threshold:g}, fixed beforehand"

    def limits(self, members: Array, nonmembers: Array, level: float) -> ErrorLimits:
        """Compute Clopper-Pearson limits at the threshold, each at half the level.

        Args:
            members: Scores of members, shape ``(n1,)``; larger means member.
            nonmembers: Scores of non-members, shape ``(n0,)``.
            level: Failure probability of both limits together, in (0, 1).

        Returns:
            One limit of each error rate, shape ``(1,)``.
        """
        missed = int(np.count_nonzero(members <= self.threshold))
        accused = int(np.count_nonzero(nonmembers > self.threshold))
        return ErrorLimits(
            np.atleast_1d(upper_limit(missed, len(members), level / 2)),
            np.atleast_1d(upper_limit(accused, len(nonmembers), level / 2)),
        )


@dataclass(frozen=True)
class SampleSplit:
    """The best threshold on one part of the scores, evaluated on the rest.

    Attributes:
        rng: Random generator of the split.
        share: Share of the scores of each class that choose the threshold, in (0, 1).
        delta: The delta at which the choice maximizes epsilon.

    Example:
        >>> split = SampleSplit(np.random.default_rng(1))
        >>> limits = split.limits(np.ones(100), np.zeros(100), 0.05)
        >>> limits.false_negative_rate.round(4)
        array([0.0711])
    """

    rng: np.random.Generator
    share: float = 0.5
    delta: float = 0.0

    def __post_init__(self) -> None:
        require_open_unit("share", self.share)

    @property
    def description(self) -> str:
        """How the threshold was chosen, as text for reports."""
        return f"one threshold, chosen on {self.share:.0%} of the scores, evaluated on the others"

    def limits(self, members: Array, nonmembers: Array, level: float) -> ErrorLimits:
        """Compute Clopper-Pearson limits on the scores that did not choose the threshold.

        Args:
            members: Scores of members, shape ``(n1,)``, at least 2; larger means member.
            nonmembers: Scores of non-members, shape ``(n0,)``, at least 2.
            level: Failure probability of both limits together, in (0, 1).

        Returns:
            One limit of each error rate, shape ``(1,)``.
        """
        choosing_in, evaluating_in = self._split(members)
        choosing_out, evaluating_out = self._split(nonmembers)
        threshold = self._best(choosing_in, choosing_out, level)
        return FixedThreshold(threshold).limits(evaluating_in, evaluating_out, level)

    def _split(self, scores: Array) -> tuple[Array, Array]:
        """Return the scores that choose the threshold, and those that evaluate it."""
        if len(scores) < 2:
            raise InvalidArgument("scores", f"{len(scores)} of a class", "at least 2 per class")
        mixed = self.rng.permutation(scores)
        size = min(len(scores) - 1, max(1, round(self.share * len(scores))))
        return mixed[:size], mixed[size:]

    def _best(self, members: Array, nonmembers: Array, level: float) -> float:
        """Return the threshold with the largest epsilon on the choosing scores."""
        candidates = candidate_thresholds(members, nonmembers)
        missed, accused = _error_counts(members, nonmembers, candidates)
        fnr = upper_limit(missed, len(members), level / 2)
        fpr = upper_limit(accused, len(nonmembers), level / 2)
        gains = [(1 - self.delta - fnr) / fpr, (1 - self.delta - fpr) / fnr]
        return float(candidates[int(np.argmax(np.maximum(*gains)))])


@dataclass(frozen=True)
class ConfidenceBand:
    """Every threshold, under a simultaneous band of equal local levels.

    Example:
        >>> limits = ConfidenceBand().limits(np.ones(100), np.zeros(100), 0.05)
        >>> limits.false_negative_rate.round(4)
        array([1.    , 0.0659, 0.0659])
    """

    @property
    def description(self) -> str:
        """How the thresholds were chosen, as text for reports."""
        return "every threshold, under a simultaneous band (equal local levels)"

    def limits(self, members: Array, nonmembers: Array, level: float) -> ErrorLimits:
        """Compute Clopper-Pearson limits at the local level of each class.

        Args:
            members: Scores of members, shape ``(n1,)``; larger means member.
            nonmembers: Scores of non-members, shape ``(n0,)``.
            level: Failure probability of all limits together, in (0, 1).

        Returns:
            One limit per threshold, from the highest threshold to the lowest.
        """
        thresholds = candidate_thresholds(members, nonmembers)
        missed, accused = _error_counts(members, nonmembers, thresholds)
        return ErrorLimits(
            _band_limits(missed, len(members), level / 2),
            _band_limits(accused, len(nonmembers), level / 2),
        )


@dataclass(frozen=True)
class Bonferroni:
    """Every threshold, with the level divided by the number of scores.

    Example:
        >>> limits = Bonferroni().limits(np.ones(100), np.zeros(100), 0.05)
        >>> limits.false_negative_rate.round(4)
        array([1.    , 0.0796, 0.0796])
    """

    @property
    def description(self) -> str:
        """How the thresholds were chosen, as text for reports."""
        return "every threshold, by Bonferroni's inequality"

    def limits(self, members: Array, nonmembers: Array, level: float) -> ErrorLimits:
        """Compute Clopper-Pearson limits at the level over the number of scores.

        Args:
            members: Scores of members, shape ``(n1,)``; larger means member.
            nonmembers: Scores of non-members, shape ``(n0,)``.
            level: Failure probability of all limits together, in (0, 1).

        Returns:
            One limit per threshold, from the highest threshold to the lowest.
        """
        thresholds = candidate_thresholds(members, nonmembers)
        missed, accused = _error_counts(members, nonmembers, thresholds)
        return ErrorLimits(
            upper_limit(missed, len(members), level / 2 / len(members)),
            upper_limit(accused, len(nonmembers), level / 2 / len(nonmembers)),
        )


@dataclass(frozen=True)
class DkwBand:
    """Every threshold, by the Dvoretzky-Kiefer-Wolfowitz (DKW) inequality.

    Let D be the largest one-sided deviation of an empirical distribution function of n scores
    from the true one. For a of at most 1/2, P[D > sqrt(ln(1/a) / (2n))] <= a.

    References:
        Dvoretzky, Kiefer & Wolfowitz (1956), with the constant of Massart (1990).

    Example:
        >>> limits = DkwBand().limits(np.ones(100), np.zeros(100), 0.05)
        >>> limits.false_negative_rate.round(4)
        array([1.    , 0.1358, 0.1358])
    """

    @property
    def description(self) -> str:
        """How the thresholds were chosen, as text for reports."""
        return "every threshold, by the inequality of Dvoretzky, Kiefer and Wolfowitz"

    def limits(self, members: Array, nonmembers: Array, level: float) -> ErrorLimits:
        """Compute the counted rates plus sqrt(ln(2/level) / (2n)).

        Args:
            members: Scores of members, shape ``(n1,)``; larger means member.
            nonmembers: Scores of non-members, shape ``(n0,)``.
            level: Failure probability of all limits together, in (0, 1): half for each class.

        Returns:
            One limit per threshold, from the highest threshold to the lowest.
        """
        missed, accused = _error_counts(
            members, nonmembers, candidate_thresholds(members, nonmembers)
        )
        return ErrorLimits(
            _dkw_limits(missed, len(members), level / 2),
            _dkw_limits(accused, len(nonmembers), level / 2),
        )


def error_counts_at_every_threshold(members: Array, nonmembers: Array) -> GaussianBand:
    """Count both kinds of errors at every threshold.

    Args:
        members: Scores of members, shape ``(n1,)``, finite; larger means member.
        nonmembers: Scores of non-members, shape ``(n0,)``, finite.

    Returns:
        The counts, from the highest threshold to the lowest.

    Example:
        >>> counts = error_counts_at_every_threshold(np.array([1.0, 2.0]), np.array([0.0]))
        >>> counts.missed, counts.accused
        ((2, 1, 0, 0), (0, 0, 0, 1))
    """
    thresholds = candidate_thresholds(members, nonmembers)
    missed, accused = _error_counts(members, nonmembers, thresholds)
    return GaussianBand(
        len(members), len(nonmembers), tuple(missed.tolist()), tuple(accused.tolist())
    )


def simultaneous_limits_of_counts(errors: GaussianBand, level: float) -> ErrorLimits:
    """Compute the limits of ``ConfidenceBand`` from counts of errors.

    Args:
        errors: Errors of both kinds at every threshold.
        level: Failure probability of all limits together, in (0, 1).

    Returns:
        One limit per threshold.
    """
    return ErrorLimits(
        _band_limits(np.array(errors.missed), errors.members, level / 2),
        _band_limits(np.array(errors.accused), errors.nonmembers, level / 2),
    )


def _band_limits(errors: NDArray[np.int64], trials: int, level: float) -> Array:
    """Return simultaneous upper limits of the rates behind these numbers of errors.

    With e errors in n trials, the rate is at most the (e + 1)-th smallest of n uniform numbers.
    Its limit is that of the next rank that has one; with e = n errors it is 1.
    """
    chosen = limited_order_statistics(trials)
    of_each = np.append(upper_limit(chosen - 1, trials, _band_level(trials, level)), 1.0)
    return np.asarray(of_each[np.searchsorted(chosen, errors + 1)])


def _band_level(scores: int, level: float) -> float:
    """Return a valid local level that similar numbers of scores share, to be cached.

    The local level falls with the number of scores, so that of a few more scores is valid. With
    more than ``MAX_DENSE_SCORES`` the ranks that have limits depend on the number: no sharing.
    """
    if scores > MAX_DENSE_SCORES:
        return local_level(scores, level)
    step = max(1, 10 ** (len(str(scores)) - 1) // SCORE_COUNT_GRID)
    return local_level(step * math.ceil(scores / step), level)


def _dkw_limits(errors: NDArray[np.int64], trials: int, level: float) -> Array:
    """Return the DKW upper limits of the rates behind these numbers of errors."""
    # Massart's constant holds for levels up to one half.
    more = math.sqrt(math.log(1 / min(level, 0.5)) / (2 * trials))
    return np.minimum(1.0, errors / trials + more)


def candidate_thresholds(members: Array, nonmembers: Array) -> Array:
    """Return one threshold for each way to divide the scores.

    Args:
        members: Scores of members, shape ``(n1,)``.
        nonmembers: Scores of non-members, shape ``(n0,)``.

    Returns:
        Thresholds, falling. No score is above the first one, the largest score; all scores are
        above the last one.
    """
    values = np.unique(np.concatenate([members, nonmembers]))[::-1]
    return np.append(values, np.nextafter(values[-1], -np.inf))


def _error_counts(
    members: Array, nonmembers: Array, thresholds: Array
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the numbers of members at or below, and of non-members above, each threshold."""
    missed = np.searchsorted(np.sort(members), thresholds, side="right")
    accused = len(nonmembers) - np.searchsorted(np.sort(nonmembers), thresholds, side="right")
    return missed, accused
