"""Signals that attacks compute from a model's outputs on records.

The others follow from one: the logit-scaled confidence phi = ln(p / (1 - p)), where p is the
probability of the true class. The loss is ln(1 + exp(-phi)), and p is 1 / (1 + exp(-phi)).
Computed from logits, phi does not saturate (Carlini et al. 2022, arXiv:2112.03570, section
VI.A).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logsumexp

from dpaudit.vocabulary.arrays import BoolArray, FloatArray, IntArray
from dpaudit.vocabulary.errors import InvalidArgument

# Replaces a probability of 0, whose logarithm must be finite: the least normal float32.
MIN_PROBABILITY = float(np.finfo(np.float32).tiny)
TOP_PROBABILITIES = 3  # largest probabilities that the attack classifier gets


def logits_from_probabilities(probabilities: NDArray[Any]) -> FloatArray:
    """Return the logarithms of probabilities, which are logits of them.

    Args:
        probabilities: Shape ``(records, classes)``, in [0, 1].

    Returns:
        Shape ``(records, classes)``, finite: probabilities below ``MIN_PROBABILITY`` are raised.
    """
    return np.log(np.maximum(probabilities.astype(np.float64), MIN_PROBABILITY))


def logits_from_outputs(outputs: NDArray[Any]) -> FloatArray:
    """Return logits of outputs that are logits or probabilities.

    Outputs count as probabilities if all are at least 0 and every row sums to 1.

    Args:
        outputs: Shape ``(records, classes)``, with at least two classes.

    Returns:
        Shape ``(records, classes)``, finite.

    Raises:
        InvalidArgument: If the shape is another one, or an output is NaN or infinite.
    """
    if outputs.ndim != 2 or outputs.shape[1] < 2 or not np.isfinite(outputs).all():
        allowed = "finite, of shape (records, classes), with at least two classes"
        raise InvalidArgument("outputs", f"outputs of shape {outputs.shape}", allowed)
    sums = outputs.sum(axis=1, dtype=np.float64)
    if (outputs >= 0).all() and np.allclose(sums, 1, rtol=0, atol=1e-4):
        return logits_from_probabilities(outputs)
    return outputs.astype(np.float64)


def logits_from_batches(outputs: Sequence[NDArray[Any]]) -> FloatArray:
    """Return logits of the outputs of successive batches.

    Args:
        outputs: At least one batch, each of shape ``(records, classes)``.

    Returns:
        Logits of all batches in order, shape ``(records, classes)``.

    Raises:
        InvalidArgument: If batches differ in their number of classes, or for an error of
            ``logits_from_outputs``.
    """
    classes = sorted({batch.shape[1] for batch in outputs})
    if len(classes) > 1:
        allowed = "of the same number of classes for all records"
        raise InvalidArgument("outputs", f"outputs of {classes} classes", allowed)
    return logits_from_outputs(np.concatenate(outputs))


def logit_scaled_confidence(logits: NDArray[Any], labels: IntArray) -> FloatArray:
    """Compute the logit-scaled confidence phi = ln(p / (1 - p)) of the true class.

    Args:
        logits: Shape ``(..., records, classes)``.
        labels: True class of each record, shape ``(records,)``.

    Returns:
        Shape ``(..., records)``; larger means more probability of the true class.

    Raises:
        InvalidArgument: If ``labels`` has another shape or holds a number that is no class.

    References:
        Carlini et al. (2022), arXiv:2112.03570, section VI.A.

    Example:
        >>> logit_scaled_confidence(np.array([[2.0, 0.0]]), np.array([0]))
        array([2.])
    """
    # With logits z, p is exp(z_y) / sum_k exp(z_k), so phi is z_y - ln(sum over k != y of
    # exp(z_k)).
    true = _true_class_index(logits.shape, labels)
    own = np.take_along_axis(logits.astype(np.float64), true, axis=-1)[..., 0]
    others = logits.astype(np.float64)
    np.put_along_axis(others, true, -np.inf, axis=-1)
    return np.asarray(own - logsumexp(others, axis=-1))


def cross_entropy(confidences: FloatArray) -> FloatArray:
    """Return the cross-entropy loss -ln(p) of logit-scaled confidences.

    Args:
        confidences: Logit-scaled confidences, any shape.

    Returns:
        Losses in nats, of the same shape.
    """
    return np.logaddexp(0.0, -confidences)


def true_class_probability(confidences: FloatArray) -> FloatArray:
    """Return the probability of the true class.

    Args:
        confidences: Logit-scaled confidences, any shape.

    Returns:
        Probabilities in [0, 1], of the same shape.
    """
    return np.asarray(expit(confidences))


def correct_predictions(logits: NDArray[Any], labels: IntArray) -> BoolArray:
    """Return whether the predicted class is the true one.

    Args:
        logits: Shape ``(..., records, classes)``.
        labels: True class of each record, shape ``(records,)``.

    Returns:
        Shape ``(..., records)``.
    """
    return np.asarray(logits.argmax(axis=-1) == labels)


def classifier_features(logits: NDArray[Any], labels: IntArray) -> NDArray[np.float32]:
    """Return the features of each record for ``learned_attacks.attack_classifier``.

    Args:
        logits: Shape ``(..., records, classes)``.
        labels: True class of each record, shape ``(records,)``.

    Returns:
        Shape ``(..., records, 2 + TOP_PROBABILITIES)``: the logit-scaled confidence, the largest
        log-probabilities in falling order (0 for missing classes), and the label.

    Raises:
        InvalidArgument: If ``labels`` has another shape or holds a number that is no class.
    """
    wide = logits.astype(np.float64)
    logs = wide - logsumexp(wide, axis=-1, keepdims=True)
    top = -np.sort(-logs, axis=-1)[..., :TOP_PROBABILITIES]
    padding = np.zeros((*top.shape[:-1], TOP_PROBABILITIES - top.shape[-1]))
    phi = logit_scaled_confidence(logits, labels)
    label = np.broadcast_to(labels, phi.shape)
    parts = (phi[..., None], top, padding, label[..., None])
    return np.concatenate(parts, axis=-1).astype(np.float32)


def _true_class_index(shape: tuple[int, ...], labels: IntArray) -> IntArray:
    """Return labels as an index into logits of this shape; refuse labels that do not fit."""
    if len(shape) < 2 or labels.shape != shape[-2:-1]:
        raise InvalidArgument(
            "labels", f"shape {labels.shape}", f"one per record of logits of shape {shape}"
        )
    if not ((labels >= 0) & (labels < shape[-1])).all():
        raise InvalidArgument("labels", int(labels.max()), f"classes, 0 to {shape[-1] - 1}")
    return np.broadcast_to(labels[:, None], (*shape[:-1], 1))
