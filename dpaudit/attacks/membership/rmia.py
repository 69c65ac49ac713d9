"""Attacks on the ratio of the target's probability to that of reference models.

RMIA, InfoRMIA and BASE compare r(x) = Pr(x | target) / Pr(x), where Pr(x | target) is the
probability of the true class. They differ in how they use a population of records z:

- RMIA: the share of z with LR(x, z) = r(x) / r(z) at least gamma.
- InfoRMIA: the mean of ln LR(x, z) over z.
- BASE: ln r(x), without a population.

Pr(x) is the mean of two means: over models that trained on x, and over models that did not
(Zarifzadeh, Liu & Shokri 2024, arXiv:2312.03262, Equations 3, 4 and 11). BASE averages over the
models; without models that trained on x, it multiplies ln Pr(x) by a scale. Within one target,
the three have the same order if Pr(x) is the same.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.stats import rankdata

from dpaudit.attacks.membership.output_signals import cross_entropy, true_class_probability
from dpaudit.attacks.membership.reference_models import (
    ReferenceConfidences,
    in_out_means,
    require_out_models,
)
from dpaudit.attacks.membership.scores import RecordScores
from dpaudit.vocabulary.arrays import BoolArray, FloatArray
from dpaudit.vocabulary.errors import InvalidArgument

# Every gamma gives the same order; with 1 the largest scores have the fewest ties.
GAMMA = 1.0
OFFLINE_SCALE = 0.3  # the a of Equation 11, where the references cannot show a better one
BASE_SCALE = 0.33  # the s of offline BASE, where the references cannot show a better one
MIN_DIVISOR = 1e-300  # avoids division by 0

SCALE_GRID = tuple(step / 10 for step in range(11))
MAX_TUNING_TARGETS = 8  # references that take the target's place, to tune a
MAX_TUNING_RECORDS = 20_000


def rmia_online(
    confidences: FloatArray,
    references: ReferenceConfidences,
    *,
    population: BoolArray | None = None,
    gamma: float = GAMMA,
    offline_scale: float | None = None,
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
        offline_scale: The a of the offline rule, in [0, 1]; None for
            ``tune_offline_scale(references)``.

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
    _require_gamma(gamma)
    mean = _online_probability(confidences, references, offline_scale)
    return _dominated_share(confidences, mean, population, gamma)


def rmia_offline(
    confidences: FloatArray,
    references: ReferenceConfidences,
    *,
    population: BoolArray | None = None,
    gamma: float = GAMMA,
    offline_scale: float | None = None,
) -> RecordScores:
    """Compute RMIA scores with reference models that did not train on the records.

    Pr(x) = ((1 + a) Pr_out(x) + 1 - a) / 2, with a the ``offline_scale``. If all models trained
    on a record, Pr_out is estimated by the inverse of the rule Pr_in = a Pr_out + 1 - a.

    Args:
        confidences: The target's logit-scaled confidences, shape ``(records,)``.
        references: Reference models on the same records.
        population: Which records are the z, shape ``(records,)``; None for all.
        gamma: The least likelihood ratio that counts; above 0 and finite.
        offline_scale: The a of the offline rule, in [0, 1]; None for
            ``tune_offline_scale(references)``.

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
    _require_gamma(gamma)
    mean = _offline_probability(confidences, references, offline_scale)
    return _dominated_share(confidences, mean, population, gamma)


def informia_online(
    confidences: FloatArray,
    references: ReferenceConfidences,
    *,
    population: BoolArray | None = None,
    offline_scale: float | None = None,
) -> RecordScores:
    """Compute InfoRMIA scores with reference models that trained on some of the records.

    The score is ln(Pr(x | target) / Pr(x)) plus the mean of ln(Pr(z) / Pr(z | target)) over the
    population, an estimate of the divergence of Pr(z | target) from Pr(z).

    Args:
        confidences: The target's logit-scaled confidences, shape ``(records,)``.
        references: Reference models on the same records.
        population: Which records are the z, shape ``(records,)``; None for all.
        offline_scale: As for ``rmia_online``.

    Returns:
        Mean log-likelihood ratios, in nats.

    Raises:
        InvalidArgument: If the numbers of records differ, the population is empty, or the scale
            is out of range.

    References:
        Tao & Shokri (2025), arXiv:2510.05582. The formula is that of published summaries of the
        paper; the paper itself was not at hand.

    Example:
        >>> member = np.array([[True, False], [False, True]])
        >>> references = ReferenceConfidences(np.where(member, 2.0, 0.0), member)
        >>> informia_online(np.array([2.0, 0.0]), references).values.round(4)
        array([ 0.2831, -0.2831])
    """
    mean = _online_probability(confidences, references, offline_scale)
    return _mean_log_ratio(confidences, mean, population)


def informia_offline(
    confidences: FloatArray,
    references: ReferenceConfidences,
    *,
    population: BoolArray | None = None,
    offline_scale: float | None = None,
) -> RecordScores:
    """Compute InfoRMIA scores with reference models that did not train on the records.

    As ``informia_online``, with Pr(x) of ``rmia_offline``.

    Args:
        confidences: The target's logit-scaled confidences, shape ``(records,)``.
        references: Reference models on the same records.
        population: Which records are the z, shape ``(records,)``; None for all.
        offline_scale: As for ``rmia_offline``.

    Returns:
        Mean log-likelihood ratios, in nats.

    Raises:
        InvalidArgument: If the numbers of records differ, the population is empty, the scale is
            out of range, or every reference model trained on all records.

    References:
        Tao & Shokri (2025), arXiv:2510.05582.

    Example:
        >>> references = ReferenceConfidences(np.zeros((1, 2)), np.zeros((1, 2), dtype=bool))
        >>> informia_offline(np.array([2.0, 0.0]), references).values.round(4)
        array([ 0.2831, -0.2831])
    """
    mean = _offline_probability(confidences, references, offline_scale)
    return _mean_log_ratio(confidences, mean, population)


def base_online(confidences: FloatArray, references: ReferenceConfidences) -> RecordScores:
    """Compute BASE scores with reference models that trained on some of the records.

    With l the loss of the target and l_k that of reference model k, the score is
    -l - ln(mean over k of exp(-l_k)), the approximate log-odds of membership at prior 1/2.

    Args:
        confidences: The target's logit-scaled confidences, shape ``(records,)``.
        references: Reference models on the same records.

    Returns:
        Log-likelihood ratios, in nats.

    Raises:
        InvalidArgument: If the numbers of records differ.

    References:
        Lassila, Ostman, Ngo & Graell i Amat (2025), arXiv:2505.24089. Written from its abstract
        (a Monte Carlo estimate of the Bayes-optimal rule of Sablayrolles et al. 2019, equal to
        RMIA in one setting); the paper itself was not at hand.

    Example:
        >>> member = np.array([[True, False], [False, True]])
        >>> references = ReferenceConfidences(np.where(member, 2.0, 0.0), member)
        >>> base_online(np.array([2.0, 0.0]), references).values.round(4)
        array([ 0.2436, -0.3227])
    """
    references.require_records(confidences)
    mean = true_class_probability(references.confidences).mean(axis=0)
    return RecordScores(_log_ratio(confidences, mean))


def base_offline(
    confidences: FloatArray,
    references: ReferenceConfidences,
    *,
    threshold_scale: float | None = None,
) -> RecordScores:
    """Compute BASE scores with reference models that did not train on the records.

    As ``base_online``, but the mean is over the models that did not train on the record, and its
    logarithm is multiplied by s: -l - s ln(mean over k of exp(-l_k)). With s below 1, it makes up
    for models that trained on the record. If all did, the mean is estimated from theirs as in
    ``rmia_offline``.

    Args:
        confidences: The target's logit-scaled confidences, shape ``(records,)``.
        references: Reference models on the same records.
        threshold_scale: The s, in [0, 1]; None for the s with the largest AUC on the reference
            models, as ``tune_offline_scale`` chooses its a.

    Returns:
        Approximate log-likelihood ratios, in nats.

    Raises:
        InvalidArgument: If the numbers of records differ, every reference model trained on
            all records, or the s is out of range.

    References:
        Lassila, Ostman, Ngo & Graell i Amat (2025), arXiv:2505.24089. The scaled threshold is that
        of LeakPro's attack BASE, whose s is 0.33 unless it is tuned; the paper was not at hand.

    Example:
        >>> references = ReferenceConfidences(np.zeros((1, 2)), np.zeros((1, 2), dtype=bool))
        >>> base_offline(np.array([2.0, 0.0]), references, threshold_scale=1.0).values.round(4)
        array([0.5662, 0.    ])
    """
    references.require_records(confidences)
    _require_scale(threshold_scale, "threshold_scale")
    outside = _base_probability(references)
    if threshold_scale is None:
        threshold_scale = _tuned_scale(references, _base_scores, BASE_SCALE)
    return RecordScores(_scaled_ratio(confidences, outside, threshold_scale))


def _base_probability(references: ReferenceConfidences) -> FloatArray:
    """Return the mean probability of models that did not train on x."""
    found = in_out_means(true_class_probability(references.confidences), references.member)
    require_out_models(found)
    return np.where(
        found.out_count > 0, found.out_mean, _out_probability(found.in_mean, OFFLINE_SCALE)
    )


def _scaled_ratio(confidences: FloatArray, mean: FloatArray, scale: float) -> FloatArray:
    """Return ln Pr(x | target) - s ln Pr(x)."""
    return np.asarray(-cross_entropy(confidences) - scale * np.log(np.maximum(mean, MIN_DIVISOR)))


def tune_offline_scale(references: ReferenceConfidences) -> float:
    """Choose the a of offline RMIA on the reference models alone.

    Some reference models take the target's place in turn, and the others stay references. The
    a of the grid 0, 0.1, ..., 1 with the largest mean AUC is chosen; of several, the smallest. A
    reference with exactly the other records of the one in the target's place is left out: it
    would know the answer, and the real target has no such reference.

    Args:
        references: Reference models; the target is not among them.

    Returns:
        The a, in [0, 1]; ``OFFLINE_SCALE`` if there is a single model, or if no model trained on
        some but not all of the records.

    References:
        Zarifzadeh, Liu & Shokri (2024), arXiv:2312.03262, and ``tune_offline_a`` of ML Privacy
        Meter, which tunes on one reference model that is paired with the target.

    Example:
        >>> member = np.array([[True, False] * 4, [True, True, False, False] * 2] * 2)
        >>> tune_offline_scale(ReferenceConfidences(np.where(member, 3.0, 0.0), member))
        0.0
    """
    return _tuned_scale(references, _rmia_scores, OFFLINE_SCALE)


ScaledScores = Callable[[FloatArray, ReferenceConfidences, float], FloatArray]
"""Scores of a target by its confidences, references and a scale in [0, 1]."""


def _rmia_scores(target: FloatArray, references: ReferenceConfidences, scale: float) -> FloatArray:
    """Return ln r(x), by which offline RMIA orders the records."""
    return _log_ratio(target, _offline_probability(target, references, scale))


def _base_scores(target: FloatArray, references: ReferenceConfidences, scale: float) -> FloatArray:
    """Return the scores of offline BASE."""
    return _scaled_ratio(target, _base_probability(references), scale)


def _tuned_scale(references: ReferenceConfidences, scores: ScaledScores, default: float) -> float:
    """Return the scale of the grid with the largest mean AUC; ``default`` if none is known."""
    stride = -(-references.confidences.shape[1] // MAX_TUNING_RECORDS)  # rounded up
    some = ReferenceConfidences(references.confidences[:, ::stride], references.member[:, ::stride])
    places = range(min(len(some), MAX_TUNING_TARGETS))
    rows = [_tuning_aucs(some, place, scores) for place in places]
    if not (known := [row for row in rows if row is not None]):
        return default
    # Sums of the same AUCs in another order may differ in the last digits.
    return SCALE_GRID[int(np.argmax(np.mean(known, axis=0).round(12)))]


def _tuning_aucs(
    references: ReferenceConfidences, place: int, scores: ScaledScores
) -> list[float] | None:
    """Return the AUC of each scale with one reference as the target; None if unknown."""
    member = references.member[place]
    others = np.arange(len(references)) != place
    usual = others & (references.member == member).any(axis=1)
    kept = usual if usual.any() else others
    if not kept.any() or member.all() or not member.any() or references.member[kept].all():
        return None
    rest = ReferenceConfidences(references.confidences[kept], references.member[kept])
    target = references.confidences[place]
    return [auc(scores(target, rest, scale), member) for scale in SCALE_GRID]


def auc(scores: FloatArray, member: BoolArray) -> float:
    """Compute the area under the ROC curve; ties count one half.

    Args:
        scores: Shape ``(records,)``; larger means member.
        member: Shape ``(records,)``, with members and non-members.

    Returns:
        The area, in [0, 1].
    """
    ranks, members = rankdata(scores)[member].sum(), int(member.sum())
    return float((ranks / members - (members + 1) / 2) / (len(scores) - members))


# Pr(x), and what is made of the ratios r(x) = Pr(x | target) / Pr(x).


def _online_probability(
    confidences: FloatArray, references: ReferenceConfidences, scale: float | None
) -> FloatArray:
    """Return Pr(x) from models that did and did not train on x."""
    references.require_records(confidences)
    _require_scale(scale)
    found = in_out_means(true_class_probability(references.confidences), references.member)
    complete = bool((found.in_count > 0).all() and (found.out_count > 0).all())
    if scale is None:
        scale = OFFLINE_SCALE if complete else tune_offline_scale(references)
    outside = np.where(found.out_count > 0, found.out_mean, _out_probability(found.in_mean, scale))
    inside = np.where(found.in_count > 0, found.in_mean, _in_probability(outside, scale))
    return np.asarray((inside + outside) / 2)


def _offline_probability(
    confidences: FloatArray, references: ReferenceConfidences, scale: float | None
) -> FloatArray:
    """Return Pr(x) from models that did not train on x."""
    references.require_records(confidences)
    _require_scale(scale)
    found = in_out_means(true_class_probability(references.confidences), references.member)
    require_out_models(found)
    if scale is None:
        scale = tune_offline_scale(references)
    outside = np.where(found.out_count > 0, found.out_mean, _out_probability(found.in_mean, scale))
    return np.asarray((_in_probability(outside, scale) + outside) / 2)


def _in_probability(outside: FloatArray, scale: float) -> FloatArray:
    """Return Pr_in = a Pr_out + 1 - a: training on a record moves it toward 1."""
    return scale * outside + 1 - scale


def _out_probability(inside: FloatArray, scale: float) -> FloatArray:
    """Return Pr_out = (Pr_in - (1 - a)) / a, cut to [0, 1]."""
    return np.clip((inside - (1 - scale)) / max(scale, MIN_DIVISOR), 0.0, 1.0)


def _dominated_share(
    confidences: FloatArray, mean: FloatArray, population: BoolArray | None, gamma: float
) -> RecordScores:
    """Return the share of z with r(z) <= r(x) / gamma."""
    ratio = true_class_probability(confidences) / np.maximum(mean, MIN_DIVISOR)
    others = np.sort(_of_population(ratio, population))
    return RecordScores(np.searchsorted(others, ratio / gamma, side="right") / len(others))


def _mean_log_ratio(
    confidences: FloatArray, mean: FloatArray, population: BoolArray | None
) -> RecordScores:
    """Return the mean of ln(r(x) / r(z)) over z."""
    ratio = _log_ratio(confidences, mean)
    return RecordScores(ratio - _of_population(ratio, population).mean())


def _log_ratio(confidences: FloatArray, mean: FloatArray) -> FloatArray:
    """Return ln r(x), which does not underflow for small probabilities of the target."""
    return np.asarray(-cross_entropy(confidences) - np.log(np.maximum(mean, MIN_DIVISOR)))


def _of_population(ratio: FloatArray, population: BoolArray | None) -> FloatArray:
    """Return the values of the z; refuse an empty population."""
    others = ratio if population is None else ratio[population]
    if len(others) == 0:
        raise InvalidArgument("population", "no records", "at least one record")
    return others


def _require_gamma(gamma: float) -> None:
    """Refuse a gamma that compares nothing."""
    if not 0 < gamma < np.inf:
        raise InvalidArgument("gamma", gamma, "above 0 and finite")


def _require_scale(scale: float | None, name: str = "offline_scale") -> None:
    """Refuse a scale out of range."""
    if scale is not None and not 0 <= scale <= 1:
        raise InvalidArgument(name, scale, "at least 0 and at most 1, or None")
