"""Attacks on a model's outputs: loss threshold, calibrated loss, and label-only.

Source: Yeom et al. 2018, arXiv:1709.01604, Adversary 1.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from dpaudit.attacks.membership.output_signals import correct_predictions, cross_entropy
from dpaudit.attacks.membership.reference_models import (
    ReferenceConfidences,
    in_out_means,
    require_out_models,
)
from dpaudit.attacks.membership.scores import MembershipScores, RecordScores
from dpaudit.attacks.membership.target_models import TargetModel
from dpaudit.vocabulary.arrays import BoolArray, FloatArray, IntArray
from dpaudit.vocabulary.errors import InvalidArgument


def loss_threshold(member_losses: FloatArray, nonmember_losses: FloatArray) -> MembershipScores:
    """Score records whose membership is known by their negative losses.

    Args:
        member_losses: Losses of members, in nats, shape ``(members,)``.
        nonmember_losses: Losses of non-members, in nats, shape ``(nonmembers,)``.

    Returns:
        The negative losses of both.

    Raises:
        InvalidArgument: If an array is empty or not finite.

    References:
        Yeom et al. (2018), arXiv:1709.01604, Adversary 1.

    Example:
        >>> import numpy as np
        >>> loss_threshold(np.array([0.25]), np.array([1.5])).members
        array([-0.25])
    """
    return MembershipScores(-member_losses, -nonmember_losses)


def loss_scores(losses: FloatArray) -> RecordScores:
    """Score records by their negative losses: a smaller loss means member.

    Args:
        losses: Losses, in nats, shape ``(records,)``.

    Returns:
        The negative losses.

    Raises:
        InvalidArgument: If ``losses`` is empty or not finite.

    References:
        Yeom et al. (2018), arXiv:1709.01604, Adversary 1.

    Example:
        >>> import numpy as np
        >>> loss_scores(np.array([0.25, 1.5])).values
        array([-0.25, -1.5 ])
    """
    return RecordScores(-losses)


def confidence_scores(confidences: FloatArray) -> RecordScores:
    """Score records by their logit-scaled confidences.

    The order is that of ``loss_scores``. The losses of very confident records round to 0, but
    their confidences still differ.

    Args:
        confidences: The target's logit-scaled confidences, shape ``(records,)``.

    Returns:
        The confidences.

    Raises:
        InvalidArgument: If ``confidences`` is empty or not finite.
    """
    return RecordScores(confidences)


# Difficulty calibration: the loss of the target relative to models without the record.


def calibrated_loss(confidences: FloatArray, references: ReferenceConfidences) -> RecordScores:
    """Score by the mean loss of the out-models minus the loss of the target.

    Out-models are the reference models that did not train on the record.

    Args:
        confidences: The target's logit-scaled confidences, shape ``(records,)``.
        references: Reference models on the same records.

    Returns:
        Loss differences, in nats.

    Raises:
        InvalidArgument: If the numbers of records differ, or every reference model trained on
            all records.

    Example:
        >>> import numpy as np
        >>> member = np.array([[True, False], [False, True]])
        >>> references = ReferenceConfidences(np.zeros((2, 2)), member)
        >>> calibrated_loss(np.array([4.0, 0.0]), references).values.round(3)
        array([0.675, 0.   ])
    """
    references.require_records(confidences)
    found = in_out_means(cross_entropy(references.confidences), references.member)
    require_out_models(found)
    return RecordScores(found.out_mean - cross_entropy(confidences))


# Label-only attack: predictions on members are correct under more perturbations.
#
# For models that output a class and nothing else. With the record itself as the only copy, this is
# the gap attack of Yeom et al. 2018. Source: Choquette-Choo et al. 2021, arXiv:2007.14321, sections
# 3.3 and 3.4.

Features = NDArray[np.float32]
Perturbation = Callable[[Features, np.random.Generator], Features]


def label_only_scores(correct_labels: BoolArray) -> RecordScores:
    """Score by the share of copies of a record that are predicted correctly.

    Args:
        correct_labels: Whether the prediction is correct, shape ``(copies, records)``. The first
            copy is the record itself, the others are perturbed.

    Returns:
        Shares, in [0, 1].

    Raises:
        InvalidArgument: If ``correct_labels`` is not boolean, or has another shape or no copy.

    References:
        Choquette-Choo et al. (2021), arXiv:2007.14321, sections 3.3 and 3.4.

    Example:
        >>> label_only_scores(np.array([[True, True], [True, False]])).values
        array([1. , 0.5])
    """
    if correct_labels.ndim != 2 or correct_labels.dtype != np.bool_ or len(correct_labels) == 0:
        given = f"{correct_labels.dtype} of shape {correct_labels.shape}"
        raise InvalidArgument("correct_labels", given, "booleans of shape (copies, records)")
    return RecordScores(correct_labels.mean(axis=0))


def correct_under_perturbation(
    model: TargetModel,
    features: Features,
    labels: IntArray,
    *,
    perturb: Perturbation,
    copies: int,
    generator: np.random.Generator,
) -> BoolArray:
    """Compute whether a model predicts each record and its perturbed copies correctly.

    Args:
        model: The target.
        features: Shape ``(records, ...)``.
        labels: True class of each record, shape ``(records,)``.
        perturb: Draws one perturbed copy of all records.
        copies: Number of copies, with the record itself; at least 1.
        generator: Source of the random numbers of ``perturb``.

    Returns:
        Shape ``(copies, records)``, the records themselves first, for ``label_only_scores``.
    """
    inputs = [features, *(perturb(features, generator) for _ in range(copies - 1))]
    return np.stack([correct_predictions(model.predict(copy), labels) for copy in inputs])


def random_flips(rate: float) -> Perturbation:
    """Return a perturbation of binary features that flips each independently.

    Args:
        rate: Probability of a flip, in [0, 1].

    Returns:
        A function from features and a generator to perturbed features of the same shape.
    """

    def perturb(features: Features, generator: np.random.Generator) -> Features:
        return np.where(generator.random(features.shape) < rate, 1 - features, features)

    return perturb


def gaussian_jitter(deviation: float) -> Perturbation:
    """Return a perturbation of real features that adds normal noise to each.

    Args:
        deviation: Standard deviation of the noise, in units of the features.

    Returns:
        A function from features and a generator to perturbed features of the same shape.
    """

    def perturb(features: Features, generator: np.random.Generator) -> Features:
        return features + deviation * generator.standard_normal(features.shape, dtype=np.float32)

    return perturb
