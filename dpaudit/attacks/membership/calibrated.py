"""Difficulty calibration: how much easier a record is for the target than for others.

Source: Watson et al. 2022, arXiv:2111.08440, Equation 5.
"""

from __future__ import annotations

from dpaudit.attacks.membership.confidence import losses
from dpaudit.attacks.membership.references import References, require_outside, sides
from dpaudit.attacks.membership.scores import Array, RecordScores


def calibrated(confidences: Array, references: References) -> RecordScores:
    """Score by the mean loss of the models that did not train on the record, less the target's.

    Args:
        confidences: The target's logit-scaled confidences, shape ``(records,)``.
        references: Reference models on the same records.

    Raises:
        InvalidArgument: other records, or references that all trained on all of them.
    """
    references.require_records(confidences)
    found = sides(losses(references.confidences), references.member)
    require_outside(found)
    return RecordScores(found.outside - losses(confidences))
