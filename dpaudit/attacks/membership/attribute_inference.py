"""Inference of a record's label, or of one of its features, from a model.

A model that predicts well also predicts for persons outside of its training data, so a correct
guess alone is no leakage: the same guess may be possible from the other features (imputation).
Each attack is therefore compared with two things: the same attack on non-members, and a predictor
that has no access to the model (Jayaraman & Evans 2022, arXiv:2209.01292).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp

from dpaudit.attacks.bounds import clopper_pearson_interval
from dpaudit.attacks.membership.target_models import TargetModel
from dpaudit.vocabulary.arrays import BoolArray, FloatArray, IntArray
from dpaudit.vocabulary.audit import InferenceResult
from dpaudit.vocabulary.errors import InvalidArgument, MissingExtra, require_open_unit
from dpaudit.vocabulary.privacy_terms import Bound

try:
    from sklearn.ensemble import HistGradientBoostingClassifier
except ImportError as error:  # pragma: no cover - needs an environment without scikit-learn
    raise MissingExtra("scikit-learn", "train") from error

MAX_VALUES = 100  # of an inferred feature
MIN_PROBABILITY = 1e-12


@dataclass(frozen=True)
class InferenceCase:
    """A model, and records of which an attacker knows all but one value.

    Attributes:
        model: The model.
        features: Shape ``(records, ...)``.
        labels: Class of each record, shape ``(records,)``.
        member: Whether the model was trained on the record, shape ``(records,)``.
        known: Records that the attacker knows completely, all of them non-members, shape
            ``(records,)``. The predictor without the model learns from them.
        seed: Seed of that predictor.

    Raises:
        InvalidArgument: If shapes differ, a known record is a member, or there is no known
            record, no member or no other non-member.

    Example:
        >>> member, known = np.arange(30) < 10, np.arange(30) >= 20
        >>> features, labels = np.zeros((30, 2), dtype=np.float32), np.arange(30) % 2
        >>> case = InferenceCase(None, features, labels, member, known, seed=0)
        >>> int((~case.member & ~case.known).sum())  # non-members that are compared
        10
    """

    model: TargetModel
    features: NDArray[np.float32]
    labels: IntArray
    member: BoolArray
    known: BoolArray
    seed: int

    def __post_init__(self) -> None:
        shapes = {self.labels.shape, self.member.shape, self.known.shape, (len(self.features),)}
        if len(shapes) > 1:
            raise InvalidArgument("member", f"shapes {sorted(shapes)}", "one value per record")
        if (self.known & self.member).any() or not self.known.any():
            raise InvalidArgument("known", "members or no record", "some of the non-members")
        if not self.member.any() or not (~self.member & ~self.known).any():
            raise InvalidArgument("member", "one class", "both members and unknown non-members")


def infer_labels(case: InferenceCase, *, confidence: float) -> InferenceResult:
    """Infer the labels of records from their features.

    The attack guesses the class that the model predicts. The predictor without the model is
    trained on the known records.

    Args:
        case: The model and the records.
        confidence: Probability with which each interval holds, in (0, 1).

    Returns:
        How often members and non-members are guessed correctly, with and without the model.

    Raises:
        InvalidArgument: If ``confidence`` is out of range, or the known records have one class.

    References:
        Wu et al. (2022), arXiv:2202.12968: label inference, against a predictor without access.

    Example:
        >>> class Memorizer:
        ...     def predict(self, features):
        ...         return np.stack([-features[:, 1], features[:, 1]], axis=1)
        >>> draws = np.random.default_rng(0)
        >>> labels = draws.integers(0, 2, 300)
        >>> member, known = np.arange(300) < 100, np.arange(300) >= 200
        >>> memory = np.where(member, 2 * labels - 1, draws.choice([-1, 1], 300))
        >>> features = np.stack([draws.standard_normal(300), memory], 1).astype(np.float32)
        >>> case = InferenceCase(Memorizer(), features, labels, member, known, seed=0)
        >>> found = infer_labels(case, confidence=0.95)
        >>> found.correct_members, found.gap_interval.lower > 0.2
        (100, True)
    """
    flat = _flat(case.features)
    baseline = _imputed(flat, case.labels, case)
    guessed = case.model.predict(case.features).argmax(axis=1)
    return _result(
        "label", case.labels, guessed, baseline.argmax(axis=1), case, confidence=confidence
    )


def infer_feature(case: InferenceCase, column: int, *, confidence: float) -> InferenceResult:
    """Infer one feature of records from their labels and other features.

    For each possible value v, the model's probability of the true class with v in place is
    multiplied by the probability of v according to the predictor without the model. The value
    with the largest product is guessed.

    Args:
        case: The model and the records.
        column: Index of the feature among the flattened features of a record.
        confidence: Probability with which each interval holds, in (0, 1).

    Returns:
        How often members and non-members are guessed correctly, with and without the model.

    Raises:
        InvalidArgument: If there is no such feature, it has one value or over ``MAX_VALUES``,
            the known records show one value alone, or ``confidence`` is out of range.

    References:
        Fredrikson, Jha & Ristenpart (2015), section 4; Yeom et al. (2018), arXiv:1709.01604,
        section 5; Jayaraman & Evans (2022), arXiv:2209.01292, on imputation.

    Example:
        >>> class Rule:  # class 1 where the two features are equal
        ...     def predict(self, features):
        ...         same = features[:, 0] == features[:, 1]
        ...         return np.where(same[:, None] == np.array([False, True]), 2.0, -2.0)
        >>> features = np.random.default_rng(0).integers(0, 2, (300, 2)).astype(np.float32)
        >>> labels = (features[:, 0] == features[:, 1]).astype(np.int64)
        >>> member, known = np.arange(300) < 100, np.arange(300) >= 200
        >>> case = InferenceCase(Rule(), features, labels, member, known, seed=0)
        >>> found = infer_feature(case, 1, confidence=0.95)
        >>> found.correct_members, found.correct_nonmembers, found.leaks  # of 100 each
        (100, 100, False)
    """
    flat = _flat(case.features)
    if not 0 <= column < flat.shape[1]:
        raise InvalidArgument("infer", column, f"a feature, 0 to {flat.shape[1] - 1}, or label")
    values, place = np.unique(flat[:, column], return_inverse=True)
    if not 2 <= len(values) <= MAX_VALUES:
        allowed = f"a feature of 2 to {MAX_VALUES} different values"
        raise InvalidArgument("infer", f"feature {column} of {len(values)} values", allowed)
    others = np.column_stack([np.delete(flat, column, axis=1), case.labels])
    baseline = _imputed(others, place, case, classes=len(values))
    likelihood = np.stack([_true_class_logs(case, column, value) for value in values], axis=1)
    joint = likelihood + np.log(np.maximum(baseline, MIN_PROBABILITY))
    return _result(
        f"feature {column}",
        place,
        joint.argmax(axis=1),
        baseline.argmax(axis=1),
        case,
        confidence=confidence,
    )


def _flat(features: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return features as a matrix."""
    return features.reshape(len(features), -1)


def _true_class_logs(case: InferenceCase, column: int, value: np.float32) -> FloatArray:
    """Return the log-probability of each record's class with a value of one feature in place."""
    changed = _flat(case.features).copy()
    changed[:, column] = value
    logits = case.model.predict(changed.reshape(case.features.shape)).astype(np.float64)
    own = np.take_along_axis(logits, case.labels[:, None], axis=1)[:, 0]
    return np.asarray(own - logsumexp(logits, axis=1))


def _imputed(
    inputs: NDArray[Any], values: IntArray, case: InferenceCase, classes: int | None = None
) -> FloatArray:
    """Return probabilities of each value by a predictor that learns from the known records."""
    total = classes or int(values.max()) + 1
    if len(np.unique(values[case.known])) < 2:
        raise InvalidArgument("known", "one value", "records with at least two different values")
    model = HistGradientBoostingClassifier(random_state=case.seed)
    model.fit(inputs[case.known], values[case.known])
    found = np.zeros((len(values), total))
    found[:, model.classes_] = model.predict_proba(inputs)
    return found


def _result(
    inferred: str,
    truth: IntArray,
    guessed: IntArray,
    baseline: IntArray,
    case: InferenceCase,
    *,
    confidence: float,
) -> InferenceResult:
    """Return counts of correct guesses on members and on unknown non-members."""
    require_open_unit("confidence", confidence)
    member, other = case.member, ~case.member & ~case.known
    right, right_alone = guessed == truth, baseline == truth
    counts = [int((hit & which).sum()) for hit in (right, right_alone) for which in (member, other)]
    sizes = int(member.sum()), int(other.sum())
    members = counts[0], sizes[0]
    return InferenceResult(
        inferred=inferred,
        values=len(np.unique(truth)),
        members=sizes[0],
        nonmembers=sizes[1],
        correct_members=counts[0],
        correct_nonmembers=counts[1],
        baseline_members=counts[2],
        baseline_nonmembers=counts[3],
        confidence=confidence,
        gap_interval=_difference(members, (counts[1], sizes[1]), confidence),
        above_baseline=_difference(members, (counts[2], sizes[0]), confidence),
    )


def _difference(one: tuple[int, int], other: tuple[int, int], confidence: float) -> Bound:
    """Return an interval of the difference of two rates, each given as successes and trials.

    Each rate gets half of the failure probability, so the trials may depend on each other.
    """
    ends = [
        clopper_pearson_interval(successes=hits, trials=trials, confidence=(1 + confidence) / 2)
        for hits, trials in (one, other)
    ]
    return Bound(ends[0].lower - ends[1].upper, ends[0].upper - ends[1].lower)
