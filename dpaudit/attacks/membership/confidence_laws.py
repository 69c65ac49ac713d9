"""Laws of a record's confidence, fitted to reference models on one side.

The published LiRA takes normal laws, with one variance per record from 64 models on and one for all
records with fewer. With few models the variance of one record is estimated badly, and one variance
for all ignores that records differ. ``predictive_law`` weighs both by how much the variances of the
records differ, which the reference models show, and accounts for the errors of mean and variance.
No target is read.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq
from scipy.special import digamma, polygamma
from scipy.stats import t as student

from dpaudit.vocabulary.arrays import BoolArray, FloatArray, IntArray

# Carlini et al. 2022, section VI.C: from 64 models on (32 per side), one variance per record is
# better than one for all records.
MIN_MODELS_FOR_RECORD_VARIANCE = 64
MIN_VARIANCE = 1e-12  # keeps scores finite if all references give the same confidence
DEGREES_RANGE = (1e-7, 1e7)  # of the prior; at the upper end, one variance for all records


@dataclass(frozen=True)
class ConfidenceSpread:
    """Confidences of one side (in-models or out-models), summarized for each record.

    Attributes:
        means: Mean of each record, shape ``(records,)``.
        squares: Sum of the squared deviations from it, shape ``(records,)``, at least 0.
        count: Number of models of this side, shape ``(records,)``, at least 0.
        models: Number of models of both sides together.
        across_records: Variance of all confidences of this side, over models and records.
    """

    means: FloatArray
    squares: FloatArray
    count: IntArray
    models: int
    across_records: float

    @property
    def degrees(self) -> IntArray:
        """Degrees of freedom of each sum of squares, shape ``(records,)``."""
        return np.maximum(self.count - 1, 0)

    @property
    def pooled(self) -> float:
        """One variance for all records."""
        # At most one model per record: the spread over records is the only estimate.
        total = int(self.degrees.sum())
        return float(self.squares.sum() / total) if total else self.across_records


@dataclass(frozen=True)
class ConfidenceLaw:
    """Student or normal laws of the confidences of records.

    Attributes:
        means: Shape ``(records,)``.
        deviations: Scale of each law, above 0, shape ``(records,)``.
        degrees: Degrees of freedom of each law, infinite for normal ones, shape ``(records,)``.
    """

    means: FloatArray
    deviations: FloatArray
    degrees: FloatArray

    def deviates(self, confidences: FloatArray) -> FloatArray:
        """Return how many scales each confidence is above the mean, shape ``(records,)``."""
        return (confidences - self.means) / self.deviations

    def log_density(self, confidences: FloatArray) -> FloatArray:
        """Return the logarithm of the density at each confidence, shape ``(records,)``."""
        found = student.logpdf(self.deviates(confidences), self.degrees)
        return np.asarray(found - np.log(self.deviations), dtype=np.float64)


LawRule = Callable[[ConfidenceSpread], ConfidenceLaw]
"""Fits one law per record to the confidences of one side."""


def confidence_spread(
    confidences: FloatArray, means: FloatArray, which: BoolArray
) -> ConfidenceSpread:
    """Compute the spread of one side.

    Args:
        confidences: Shape ``(models, records)``.
        means: Mean of each record on this side, shape ``(records,)``.
        which: Which confidences belong to the side, shape ``(models, records)``; at least one.

    Returns:
        Means, sums of squares and counts.
    """
    return ConfidenceSpread(
        means,
        np.where(which, np.square(confidences - means), 0.0).sum(axis=0),
        which.sum(axis=0),
        len(confidences),
        float(confidences[which].var()),
    )


def published_law(spread: ConfidenceSpread) -> ConfidenceLaw:
    """Fit the normal laws of the published LiRA.

    With at least 64 models, each record has its own unbiased variance. With fewer, all records
    share one. A record with a single model on this side takes the shared one, too.

    Args:
        spread: Confidences of one side.

    Returns:
        One normal law per record.

    References:
        Carlini et al. (2022), arXiv:2112.03570, section VI.C.

    Example:
        >>> counts = np.array([4, 4])
        >>> spread = ConfidenceSpread(np.zeros(2), np.array([3.0, 24.0]), counts, 8, 1.0)
        >>> published_law(spread).deviations.round(3)
        array([2.121, 2.121])
    """
    variances = np.full(len(spread.squares), spread.pooled)
    if spread.models >= MIN_MODELS_FOR_RECORD_VARIANCE:
        own = spread.squares / np.maximum(spread.degrees, 1)
        variances = np.where(spread.degrees > 0, own, variances)
    deviations = np.sqrt(np.maximum(variances, MIN_VARIANCE))
    return ConfidenceLaw(spread.means, deviations, np.full(len(deviations), np.inf))


def predictive_law(spread: ConfidenceSpread) -> ConfidenceLaw:
    """Fit the law of the next model's confidence, given those of the reference models.

    Each record's confidences are taken as normal with a flat prior of the mean. The variances of
    the records are taken as draws from a scaled inverse chi-square law with d degrees of freedom
    and scale s, see ``variance_prior``. With n models and f = n - 1, the next confidence then
    has a Student law with d + f degrees of freedom about the mean, whose squared scale is
    (1 + 1/n) (d s + sum of squares) / (d + f).

    Args:
        spread: Confidences of one side.

    Returns:
        One Student law per record; normal laws if the variances of the records do not differ.

    References:
        Gelman et al., Bayesian Data Analysis, 3rd edition, section 3.3; d and s after Smyth
        (2004), Statistical Applications in Genetics and Molecular Biology 3(1), section 6.2.
        Brannvall (2026), arXiv:2603.11799, uses such laws for membership inference. Rederived
        here, and tested by numerical integration.

    Example:
        >>> counts = np.array([4, 4])
        >>> spread = ConfidenceSpread(np.zeros(2), np.array([3.0, 3.0]), counts, 8, 1.0)
        >>> predictive_law(spread).deviations.round(3)  # sqrt(1 + 1/4): records do not differ
        array([1.118, 1.118])
    """
    degrees, scale = variance_prior(spread)
    total = np.asarray(degrees + spread.degrees, dtype=np.float64)
    variances = np.full(len(total), scale)
    if np.isfinite(degrees):
        variances = (degrees * scale + spread.squares) / total
    # The mean of a record without a model is an estimate; it counts as that of one model.
    variances = np.maximum(variances, MIN_VARIANCE) * (1 + 1 / np.maximum(spread.count, 1))
    return ConfidenceLaw(spread.means, np.sqrt(variances), total)


def variance_prior(spread: ConfidenceSpread) -> tuple[float, float]:
    """Estimate the law of the records' variances from their logarithms.

    The variances are taken as draws of d s / (a chi-square variable with d degrees of freedom).

    With s_j^2 the variance of a record with f_j degrees of freedom, ln s_j^2 has the mean
    ln s + psi(f_j/2) - ln(f_j/2) - psi(d/2) + ln(d/2) and the variance psi'(f_j/2) + psi'(d/2).

    Args:
        spread: Confidences of one side.

    Returns:
        Degrees of freedom d, infinite if the records do not differ, and scale s.
    """
    known = (spread.degrees > 0) & (spread.squares > 0)
    half = spread.degrees[known] / 2
    if len(half) < 2:
        return np.inf, spread.pooled
    logs = np.log(spread.squares[known] / (2 * half)) - digamma(half) + np.log(half)
    excess = float(logs.var(ddof=1) - polygamma(1, half).mean())
    low, high = DEGREES_RANGE
    if not excess > polygamma(1, high / 2):
        return np.inf, spread.pooled
    if excess >= polygamma(1, low / 2):
        return low, float(np.exp(logs.mean() + digamma(low / 2) - np.log(low / 2)))
    degrees = brentq(lambda d: float(polygamma(1, d / 2)) - excess, low, high, xtol=1e-12)
    return float(degrees), float(np.exp(logs.mean() + digamma(degrees / 2) - np.log(degrees / 2)))
