"""LiRA, the likelihood-ratio attack, online and offline.

The attack fits a law to the logit-scaled confidence of each record, once over models that trained
on it and once over models that did not. Source: Carlini et al. 2022, arXiv:2112.03570, Algorithm 1
(online) and Equation 4 (offline), with normal laws (``confidence_laws.published_law``).
"""

from __future__ import annotations

from dpaudit.attacks.membership.confidence_laws import (
    ConfidenceLaw,
    LawRule,
    confidence_spread,
    predictive_law,
)
from dpaudit.attacks.membership.reference_models import (
    ReferenceConfidences,
    in_out_means,
    require_in_models,
    require_out_models,
)
from dpaudit.attacks.membership.scores import RecordScores
from dpaudit.vocabulary.arrays import BoolArray, FloatArray


def lira_online(
    confidences: FloatArray,
    references: ReferenceConfidences,
    *,
    law: LawRule = predictive_law,
) -> RecordScores:
    """Score by the log-likelihood ratio of the laws of in-models and of out-models.

    In-models are the reference models that trained on the record, out-models the others.

    Args:
        confidences: The target's logit-scaled confidences, shape ``(records,)``.
        references: Reference models on the same records.
        law: Fits the law of each record's confidence; ``published_law`` is that of the paper.

    Returns:
        ln(density of in-models) - ln(density of out-models) at each confidence.

    Raises:
        InvalidArgument: If the numbers of records differ, no reference model trained on any of
            the records, or every one trained on all.

    References:
        Carlini et al. (2022), arXiv:2112.03570, Algorithm 1.

    Example:
        >>> import numpy as np
        >>> from dpaudit.attacks.membership import published_law
        >>> member = np.array([[True, False], [False, True]] * 2)
        >>> confidences = np.where(member, 3.0, 0.0) + np.array([[1.0], [1.0], [-1.0], [-1.0]])
        >>> references = ReferenceConfidences(confidences, member)
        >>> lira_online(np.array([3.0, 0.0]), references, law=published_law).values
        array([ 2.25, -2.25])
    """
    references.require_records(confidences)
    found = in_out_means(references.confidences, references.member)
    require_in_models(found)
    require_out_models(found)
    inside = _law(references, found.in_mean, references.member, law)
    outside = _law(references, found.out_mean, ~references.member, law)
    return RecordScores(inside.log_density(confidences) - outside.log_density(confidences))


def lira_offline(
    confidences: FloatArray,
    references: ReferenceConfidences,
    *,
    law: LawRule = predictive_law,
) -> RecordScores:
    """Score by the number of standard deviations above the mean of the out-models.

    Out-models are the reference models that did not train on the record. The score is z of
    Equation 4; the Phi(z) there is monotone in z but rounds to 1 for large z.

    Args:
        confidences: The target's logit-scaled confidences, shape ``(records,)``.
        references: Reference models on the same records.
        law: Fits the law of each record's confidence; ``published_law`` is that of the paper.

    Returns:
        The z of each record.

    Raises:
        InvalidArgument: If the numbers of records differ, or every reference model trained on
            all records.

    References:
        Carlini et al. (2022), arXiv:2112.03570, Equation 4.

    Example:
        >>> import numpy as np
        >>> from dpaudit.attacks.membership import published_law
        >>> member = np.zeros((2, 1), dtype=bool)
        >>> references = ReferenceConfidences(np.array([[1.0], [-1.0]]), member)
        >>> lira_offline(np.array([np.sqrt(8)]), references, law=published_law).values
        array([2.])
    """
    references.require_records(confidences)
    found = in_out_means(references.confidences, references.member)
    require_out_models(found)
    outside = _law(references, found.out_mean, ~references.member, law)
    return RecordScores(outside.deviates(confidences))


def _law(
    references: ReferenceConfidences, means: FloatArray, which: BoolArray, rule: LawRule
) -> ConfidenceLaw:
    """Return the laws of the confidences over the models of one side."""
    return rule(confidence_spread(references.confidences, means, which))
