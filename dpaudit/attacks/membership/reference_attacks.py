"""Attacks that compare with reference models: LiRA and RMIA, online and offline.

The attack models the logit-scaled confidence of each record as Gaussian, once over models that
trained on it and once over models that did not. Source: Carlini et al. 2022, arXiv:2112.03570,
Algorithm 1 (online) and Equation 4 (offline).
"""

from __future__ import annotations

import numpy as np

from dpaudit.attacks.membership.output_signals import true_class_probability
from dpaudit.attacks.membership.reference_models import (
    ReferenceConfidences,
    in_out_means,
    require_in_models,
    require_out_models,
)
from dpaudit.attacks.membership.scores import RecordScores
from dpaudit.vocabulary.arrays import BoolArray, FloatArray, IntArray
from dpaudit.vocabulary.errors import InvalidArgument

# Carlini et al., section VI.C: from 64 models on, that is 32 per side, one variance per record
# is better than one for all records.
MIN_MODELS_FOR_RECORD_VARIANCE = 32
MIN_DEVIATION = 1e-6  # keeps scores finite if all references give the same confidence


def lira_online(confidences: FloatArray, references: ReferenceConfidences) -> RecordScores:
    """Score by the log-likelihood ratio of the Gaussians of in-models and of out-models.

    In-models are the reference models that trained on the record, out-models the others.

    Args:
        confidences: The target's logit-scaled confidences, shape ``(records,)``.
        references: Reference models on the same records.

    Returns:
        ln(density of in-models) - ln(density of out-models) at each confidence.

    Raises:
        InvalidArgument: If the numbers of records differ, no reference model trained on any of
            the records, or every one trained on all.

    References:
        Carlini et al. (2022), arXiv:2112.03570, Algorithm 1.

    Example:
        >>> member = np.array([[True, False], [False, True]] * 2)
        >>> confidences = np.where(member, 3.0, 0.0) + np.array([[1.0], [1.0], [-1.0], [-1.0]])
        >>> lira_online(np.array([3.0, 0.0]), ReferenceConfidences(confidences, member)).values
        array([ 2.25, -2.25])
    """
    references.require_records(confidences)
    found = in_out_means(references.confidences, references.member)
    require_in_models(found)
    require_out_models(found)
    inside = _standard_deviations(references, found.in_mean, found.in_count, references.member)
    outside = _standard_deviations(references, found.out_mean, found.out_count, ~references.member)
    return RecordScores(
        _log_density(confidences, found.in_mean, inside)
        - _log_density(confidences, found.out_mean, outside)
    )


def lira_offline(confidences: FloatArray, references: ReferenceConfidences) -> RecordScores:
    """Score by the number of standard deviations above the mean of the out-models.

    Out-models are the reference models that did not train on the record. The score is z of
    Equation 4; the Phi(z) there is monotone in z but rounds to 1 for large z.

    Args:
        confidences: The target's logit-scaled confidences, shape ``(records,)``.
        references: Reference models on the same records.

    Returns:
        The z of each record.

    Raises:
        InvalidArgument: If the numbers of records differ, or every reference model trained on
            all records.

    References:
        Carlini et al. (2022), arXiv:2112.03570, Equation 4.

    Example:
        >>> member = np.zeros((2, 1), dtype=bool)
        >>> references = ReferenceConfidences(np.array([[1.0], [-1.0]]), member)
        >>> lira_offline(np.array([np.sqrt(8)]), references).values
        array([2.])
    """
    references.require_records(confidences)
    found = in_out_means(references.confidences, references.member)
    require_out_models(found)
    deviation = _standard_deviations(
        references, found.out_mean, found.out_count, ~references.member
    )
    return RecordScores((confidences - found.out_mean) / deviation)


def _standard_deviations(
    references: ReferenceConfidences,
    means: FloatArray,
    count: IntArray,
    which: BoolArray,
) -> FloatArray:
    """Return the standard deviations over the models of one side, shape ``(records,)``.

    One for each record if all records have enough models; otherwise one for all records.
    """
    squares = np.where(which, np.square(references.confidences - means), 0.0)
    # Unbiased: a record with n models has n - 1 degrees of freedom.
    if count.min() >= MIN_MODELS_FOR_RECORD_VARIANCE:
        variance = squares.sum(axis=0) / (count - 1)
    elif (free := np.maximum(count - 1, 0).sum()) > 0:
        variance = np.full(len(count), squares.sum() / free)
    else:  # at most one model per record: the spread over records is the only estimate
        variance = np.full(len(count), references.confidences[which].var())
    return np.asarray(np.maximum(np.sqrt(variance), MIN_DEVIATION))


def _log_density(values: FloatArray, means: FloatArray, deviations: FloatArray) -> FloatArray:
    """Return log-densities of normal laws without the constant, which cancels in a ratio."""
    return -np.log(deviations) - np.square((values - means) / deviations) / 2


# RMIA, the robust membership-inference attack, online and offline.
#
# A record x is compared with records z of a population by the likelihood ratio
#
#     LR(x, z) = (Pr(x | target) / Pr(x)) / (Pr(z | target) / Pr(z)).
#
# The score of x is the share of z with LR(x, z) >= gamma. Pr(x) is the mean of two means: over
# models that trained on x, and over models that did not. Source: Zarifzadeh, Liu & Shokri 2024,
# arXiv:2312.03262, Equations 3, 4 and 11.

# Every gamma gives the same order; with 1 the largest scores have the fewest ties.
GAMMA = 1.0
OFFLINE_SCALE = 0.3  # the a of Equation 11
MIN_DIVISOR = 1e-300  # avoids division by 0


def rmia_online(
    confidences: FloatArray,
    references: ReferenceConfidences,
    *,
    population: BoolArray | None = None,
    gamma: float = GAMMA,
    offline_scale: float = OFFLINE_SCALE,
) -> RecordScores:
    """Compute RMIA scores with reference models that trained on some of the records.

    If all or none of the models trained on a record, the offline rule estimates the missing
    mean from the other one.

    Args:
        confidences: The target's logit-scaled confidences, shape ``(records,)``.
        references: Reference models on the same records.
        population: Which records are the z, shape ``(records,)``; None for all. Scores are
            multiples of one over their number, so few z cause ties among the largest scores.
        gamma: The least likelihood ratio that counts; above 0 and finite.
        offline_scale: The a of the offline rule, in [0, 1].

    Returns:
        Shares of the population, in [0, 1].

    Raises:
        InvalidArgument: If the numbers of records differ, the population is empty, or a
            parameter is out of range.

    References:
        Zarifzadeh, Liu & Shokri (2024), arXiv:2312.03262, Equations 3 and 4.

    Example:
        >>> member = np.array([[True, False], [False, True]])
        >>> references = ReferenceConfidences(np.where(member, 2.0, 0.0), member)
        >>> rmia_online(np.array([2.0, 0.0]), references).values
        array([1. , 0.5])
    """
    _require_parameters(confidences, references, gamma, offline_scale)
    found = in_out_means(true_class_probability(references.confidences), references.member)
    outside = np.where(
        found.out_count > 0, found.out_mean, _out_probability(found.in_mean, offline_scale)
    )
    inside = np.where(found.in_count > 0, found.in_mean, _in_probability(outside, offline_scale))
    return _dominated_share(confidences, (inside + outside) / 2, population, gamma)


def rmia_offline(
    confidences: FloatArray,
    references: ReferenceConfidences,
    *,
    population: BoolArray | None = None,
    gamma: float = GAMMA,
    offline_scale: float = OFFLINE_SCALE,
) -> RecordScores:
    """Compute RMIA scores with reference models that did not train on the records.

    Pr(x) = ((1 + a) Pr_out(x) + 1 - a) / 2, with a the ``offline_scale``. If all models trained
    on a record, Pr_out is estimated by the inverse of the rule Pr_in = a Pr_out + 1 - a.

    Args:
        confidences: The target's logit-scaled confidences, shape ``(records,)``.
        references: Reference models on the same records.
        population: Which records are the z, shape ``(records,)``; None for all.
        gamma: The least likelihood ratio that counts; above 0 and finite.
        offline_scale: The a of the offline rule, in [0, 1].

    Returns:
        Shares of the population, in [0, 1].

    Raises:
        InvalidArgument: If the numbers of records differ, the population is empty, a parameter
            is out of range, or every reference model trained on all records.

    References:
        Zarifzadeh, Liu & Shokri (2024), arXiv:2312.03262, Equation 11.

    Example:
        >>> references = ReferenceConfidences(np.zeros((1, 2)), np.zeros((1, 2), dtype=bool))
        >>> rmia_offline(np.array([2.0, 0.0]), references).values
        array([1. , 0.5])
    """
    _require_parameters(confidences, references, gamma, offline_scale)
    found = in_out_means(true_class_probability(references.confidences), references.member)
    require_out_models(found)
    outside = np.where(
        found.out_count > 0, found.out_mean, _out_probability(found.in_mean, offline_scale)
    )
    mean = (_in_probability(outside, offline_scale) + outside) / 2
    return _dominated_share(confidences, mean, population, gamma)


def _in_probability(outside: FloatArray, scale: float) -> FloatArray:
    """Return Pr_in = a Pr_out + 1 - a: training on a record moves it toward 1."""
    return scale * outside + 1 - scale


def _out_probability(inside: FloatArray, scale: float) -> FloatArray:
    """Return Pr_out = (Pr_in - (1 - a)) / a, cut to [0, 1]."""
    return np.clip((inside - (1 - scale)) / max(scale, MIN_DIVISOR), 0.0, 1.0)


def _dominated_share(
    confidences: FloatArray, mean: FloatArray, population: BoolArray | None, gamma: float
) -> RecordScores:
    """Return the share of z with r(z) <= r(x) / gamma, where r(x) = Pr(x | target) / Pr(x)."""
    ratio = true_class_probability(confidences) / np.maximum(mean, MIN_DIVISOR)
    others = np.sort(ratio if population is None else ratio[population])
    if len(others) == 0:
        raise InvalidArgument("population", "no records", "at least one record")
    return RecordScores(np.searchsorted(others, ratio / gamma, side="right") / len(others))


def _require_parameters(
    confidences: FloatArray, references: ReferenceConfidences, gamma: float, scale: float
) -> None:
    """Refuse a target with other records, and parameters out of range."""
    references.require_records(confidences)
    if not 0 < gamma < np.inf:
        raise InvalidArgument("gamma", gamma, "above 0 and finite")
    if not 0 <= scale <= 1:
        raise InvalidArgument("offline_scale", scale, "at least 0 and at most 1")
