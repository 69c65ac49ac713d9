"""Risk of each record: how often an attack detects it when a model trained on it.

The rates of an attack are averages over records, and a few records may leak much more. Here the
reference models are split in two groups. The first calibrates the attack, and each model of the
second is attacked. Given the first group, the attacks of models that trained on a record are
independent trials, so the detection rate of each record has a Clopper-Pearson interval.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from dpaudit.attacks.bounds import clopper_pearson_interval
from dpaudit.attacks.membership.lira import lira_online
from dpaudit.attacks.membership.reference_models import ReferenceConfidences
from dpaudit.attacks.membership.scores import RecordScores
from dpaudit.vocabulary.arrays import BoolArray, FloatArray, IntArray
from dpaudit.vocabulary.errors import InvalidArgument, require_open_unit

Attack = Callable[[FloatArray, ReferenceConfidences], RecordScores]
RISK_FPR = 0.01
MIN_RISK_MODELS = 4


@dataclass(frozen=True)
class RecordRisks:
    """Detection rates of records, over models that trained on them.

    Attributes:
        trials: Number of attacked models that trained on the record, shape ``(records,)``.
        detections: In how many of these the record is detected, shape ``(records,)``.
        lower: Lower bound of the detection rate, shape ``(records,)``.
        upper: Upper bound of the detection rate, shape ``(records,)``.
        false_trials: Number of attacked models that did not train on the record.
        false_detections: In how many of those the record is taken for a member.
    """

    trials: IntArray
    detections: IntArray
    lower: FloatArray
    upper: FloatArray
    false_trials: IntArray
    false_detections: IntArray


def record_risks(
    references: ReferenceConfidences,
    *,
    confidence: float,
    fpr: float = RISK_FPR,
    attack: Attack = lira_online,
) -> RecordRisks:
    """Compute how often an attack detects each record.

    The first half of the models calibrates the attack. In each model of the second half, the
    records whose score exceeds the threshold for ``fpr`` among this model's non-members are
    detected.

    Args:
        references: Models that were trained independently on random parts of the records, or
            on random halves and their complements in pairs; at least 4.
        confidence: Probability with which the interval of each record holds, in (0, 1). For a
            statement on k records that are picked afterwards, use 1 - (1 - confidence)/k with
            k the number of all records.
        fpr: The largest share of the non-members of a model that may be detected, in (0, 1).
        attack: Scores records of one model against the calibrating ones.

    Returns:
        Detection rates with intervals; the interval of a record without a trial is 0 to 1.

    Raises:
        InvalidArgument: If there are fewer than 4 models, a number is out of range, an attacked
            model trained on all records, or the attack refuses the references.

    Example:
        >>> member = np.array([[True, False] * 5, [False, True] * 5] * 8)
        >>> noise = np.random.default_rng(0).standard_normal((16, 10))
        >>> references = ReferenceConfidences(noise + 9 * member, member)
        >>> risks = record_risks(references, confidence=0.95)
        >>> risks.trials[0].item(), risks.detections.min().item(), risks.lower.min().round(2).item()
        (4, 4, 0.4)
    """
    require_open_unit("confidence", confidence)
    require_open_unit("fpr", fpr)
    if len(references) < MIN_RISK_MODELS:
        allowed = f"at least {MIN_RISK_MODELS} models"
        raise InvalidArgument("references", f"{len(references)} models", allowed)
    # An even number, so that no pair of complementary halves is divided between the groups.
    first = len(references) // 4 * 2
    calibrating = references.first(first)
    member, rows = references.member[first:], references.confidences[first:]
    if member.all(axis=1).any():
        raise InvalidArgument("references", "a model that trained on all records", "part of them")
    detected = np.array(
        [
            _detected(attack(row, calibrating).values, ~inside, fpr)
            for row, inside in zip(rows, member, strict=True)
        ]
    )
    trials, detections = member.sum(axis=0), (detected & member).sum(axis=0)
    lower, upper = _intervals(detections, trials, confidence)
    return RecordRisks(
        trials,
        detections,
        lower,
        upper,
        (~member).sum(axis=0),
        (detected & ~member).sum(axis=0),
    )


def _detected(scores: FloatArray, outside: BoolArray, fpr: float) -> BoolArray:
    """Return the records above the threshold that at most a share of non-members exceeds."""
    others = -np.sort(-scores[outside])
    return np.asarray(scores > others[int(fpr * len(others))])


def _intervals(
    successes: IntArray, trials: IntArray, confidence: float
) -> tuple[FloatArray, FloatArray]:
    """Return the ends of Clopper-Pearson intervals; 0 and 1 without a trial."""
    pairs, place = np.unique(np.stack([successes, trials]), axis=1, return_inverse=True)
    ends = np.array([[0.0, 1.0]] * pairs.shape[1])
    for number, (hits, count) in enumerate(pairs.T.tolist()):
        if count:
            found = clopper_pearson_interval(successes=hits, trials=count, confidence=confidence)
            ends[number] = found.lower, found.upper
    return ends[place.reshape(-1), 0], ends[place.reshape(-1), 1]
