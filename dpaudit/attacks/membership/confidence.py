"""What a model's outputs say of a record: the signals that attacks read.

One signal holds the others: the logit-scaled confidence phi = ln(p / (1 - p)) of the true
class. The loss is ln(1 + exp(-phi)), the probability 1 / (1 + exp(-phi)).
Carlini et al. 2022, arXiv:2112.03570, section VI.A; computed from logits, it never saturates.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logsumexp

from dpaudit.attacks.membership.scores import Array
from dpaudit.vocabulary.errors import InvalidArgument

# What a probability of 0 is read as, as its logarithm must exist: the least normal float32.
LEAST_PROBABILITY = float(np.finfo(np.float32).tiny)
TOP = 3  # greatest probabilities that the attack classifier sees


def logits_of_probabilities(probabilities: NDArray[Any]) -> Array:
    """Return logits that stand for ``probabilities``, shape ``(records, classes)``."""
    return np.log(np.maximum(probabilities.astype(np.float64), LEAST_PROBABILITY))


def logits_of_outputs(outputs: NDArray[Any]) -> Array:
    """Return logits, whether ``outputs`` are logits or probabilities.

    They are probabilities where every row is at least 0 and sums to 1.

    Raises:
        InvalidArgument: not of shape ``(records, classes)``, or NaN or infinity among them.
    """
    if outputs.ndim != 2 or outputs.shape[1] < 2 or not np.isfinite(outputs).all():
        allowed = "finite, of shape (records, classes), two classes at least"
        raise InvalidArgument("outputs", f"outputs of shape {outputs.shape}", allowed)
    sums = outputs.sum(axis=1, dtype=np.float64)
    if (outputs >= 0).all() and np.allclose(sums, 1, rtol=0, atol=1e-4):
        return logits_of_probabilities(outputs)
    return outputs.astype(np.float64)


def logits_of_batches(outputs: Sequence[NDArray[Any]]) -> Array:
    """Return logits of the outputs of successive batches, each of shape ``(records, classes)``.

    Raises:
        InvalidArgument: the batches differ in their number of classes, or as
            ``logits_of_outputs`` says.
    """
    classes = sorted({batch.shape[1] for batch in outputs})
    if len(classes) > 1:
        allowed = "of the same number of classes for all records"
        raise InvalidArgument("outputs", f"outputs of {classes} classes", allowed)
    return logits_of_outputs(np.concatenate(outputs))


def logit_scaled(logits: NDArray[Any], labels: NDArray[np.int64]) -> Array:
    """Return phi of the true class.

    Args:
        logits: Shape ``(..., records, classes)``.
        labels: Shape ``(records,)``, each a class.

    Returns:
        Shape ``(..., records)``; larger means surer, and right.
    """
    true = _true_class(logits.shape, labels)
    own = np.take_along_axis(logits.astype(np.float64), true, axis=-1)[..., 0]
    others = logits.astype(np.float64)
    np.put_along_axis(others, true, -np.inf, axis=-1)
    return np.asarray(own - logsumexp(others, axis=-1))


def losses(confidences: Array) -> Array:
    """Return the cross-entropy, in nats, of logit-scaled confidences of the same shape."""
    return np.logaddexp(0.0, -confidences)


def probabilities(confidences: Array) -> Array:
    """Return the probability of the true class."""
    return np.asarray(expit(confidences))


def right(logits: NDArray[Any], labels: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return whether the largest logit is the true class's, shape ``(..., records)``."""
    return np.asarray(logits.argmax(axis=-1) == labels)


def features_for_classifier(logits: NDArray[Any], labels: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return what the attack classifier reads of each record, shape ``(..., records, 2 + TOP)``.

    The logit-scaled confidence, the greatest log-probabilities in falling order, the label.
    """
    wide = logits.astype(np.float64)
    logs = wide - logsumexp(wide, axis=-1, keepdims=True)
    top = -np.sort(-logs, axis=-1)[..., :TOP]
    padding = np.zeros((*top.shape[:-1], TOP - top.shape[-1]))
    phi = logit_scaled(logits, labels)
    label = np.broadcast_to(labels, phi.shape)
    parts = (phi[..., None], top, padding, label[..., None])
    return np.concatenate(parts, axis=-1).astype(np.float32)


def _true_class(shape: tuple[int, ...], labels: NDArray[np.int64]) -> NDArray[np.int64]:
    if len(shape) < 2 or labels.shape != shape[-2:-1]:
        raise InvalidArgument("labels", f"shape {labels.shape}", f"one a record of logits {shape}")
    if not ((labels >= 0) & (labels < shape[-1])).all():
        raise InvalidArgument("labels", int(labels.max()), f"classes, 0 to {shape[-1] - 1}")
    return np.broadcast_to(labels[:, None], (*shape[:-1], 1))
