"""The likelihood-ratio attack: is this confidence that of models with the record, or without?

Each record's logit-scaled confidence is taken as Gaussian over models that trained on it and
over models that did not. Source: Carlini et al. 2022, arXiv:2112.03570, Algorithm 1 (online)
and Equation 4 (offline).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dpaudit.attacks.membership.references import (
    References,
    require_inside,
    require_outside,
    sides,
)
from dpaudit.attacks.membership.scores import Array, RecordScores

# Carlini et al., section VI.C: a variance of a record's own pays from 64 models on, 32 a side.
OWN_VARIANCE_FROM = 32
LEAST_DEVIATION = 1e-6  # references that agree to the last digit still leave a finite score


def lira_online(confidences: Array, references: References) -> RecordScores:
    """Score by the log-likelihood ratio of the two Gaussians.

    Args:
        confidences: The target's logit-scaled confidences, shape ``(records,)``.
        references: Reference models on the same records.

    Raises:
        InvalidArgument: other records, or no record in, or none outside of, any reference.
    """
    references.require_records(confidences)
    found = sides(references.confidences, references.member)
    require_inside(found)
    require_outside(found)
    inside = _deviation(references, found.inside, found.count_inside, references.member)
    outside = _deviation(references, found.outside, found.count_outside, ~references.member)
    return RecordScores(
        _log_density(confidences, found.inside, inside)
        - _log_density(confidences, found.outside, outside)
    )


def lira_offline(confidences: Array, references: References) -> RecordScores:
    """Score by how far the target lies above the models that did not train on the record.

    The score is the normal deviate z of Equation 4, whose Phi(z) would round to 1.

    Args:
        confidences: The target's logit-scaled confidences, shape ``(records,)``.
        references: Reference models on the same records.

    Raises:
        InvalidArgument: other records, or references that all trained on all of them.
    """
    references.require_records(confidences)
    found = sides(references.confidences, references.member)
    require_outside(found)
    deviation = _deviation(references, found.outside, found.count_outside, ~references.member)
    return RecordScores((confidences - found.outside) / deviation)


def _deviation(
    references: References, means: Array, count: NDArray[np.int64], which: NDArray[np.bool_]
) -> Array:
    """Return the standard deviations of one side, shape ``(records,)``.

    One for all records while some record has few models; of each record's own after that.
    """
    squares = np.where(which, np.square(references.confidences - means), 0.0)
    if count.min() >= OWN_VARIANCE_FROM:
        variance = squares.sum(axis=0) / (count - 1)
    elif (free := np.maximum(count - 1, 0).sum()) > 0:
        variance = np.full(len(count), squares.sum() / free)
    else:  # one model a record: all that is seen is how records differ
        variance = np.full(len(count), references.confidences[which].var())
    return np.asarray(np.maximum(np.sqrt(variance), LEAST_DEVIATION))


def _log_density(values: Array, means: Array, deviations: Array) -> Array:
    """Return log-densities of normals, less the constant that a ratio drops."""
    return -np.log(deviations) - np.square((values - means) / deviations) / 2
