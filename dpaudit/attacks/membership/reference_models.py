"""Confidences of reference (shadow) models on records that they did and did not train on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dpaudit.vocabulary.arrays import BoolArray, FloatArray, IntArray
from dpaudit.vocabulary.errors import InvalidArgument, require_count


@dataclass(frozen=True)
class ReferenceConfidences:
    """Logit-scaled confidences of reference models, and the records that each trained on.

    Attributes:
        confidences: Shape ``(models, records)``, finite, with at least one model and record.
        member: Whether the model trained on the record, shape ``(models, records)``.

    Raises:
        InvalidArgument: If the shapes differ, ``confidences`` is not finite or ``member`` not
            boolean.

    Example:
        >>> member = random_halves(models=2, records=4, seed=0)
        >>> len(ReferenceConfidences(np.zeros((2, 4)), member))
        2
    """

    confidences: FloatArray
    member: BoolArray

    def __post_init__(self) -> None:
        if self.confidences.ndim != 2 or 0 in self.confidences.shape:
            given = f"confidences of shape {self.confidences.shape}"
            raise InvalidArgument(
                "references", given, "of shape (models, records), with at least one of each"
            )
        if self.member.shape != self.confidences.shape or self.member.dtype != np.bool_:
            given = f"{self.member.dtype} of shape {self.member.shape}"
            raise InvalidArgument("member", given, f"booleans of shape {self.confidences.shape}")
        if not np.isfinite(self.confidences).all():
            raise InvalidArgument("references", "NaN or infinity", "finite confidences")

    def __len__(self) -> int:
        return len(self.confidences)

    def first(self, models: int) -> ReferenceConfidences:
        """Return the confidences of the first models.

        Args:
            models: How many models, at least 1.

        Returns:
            The first rows of both arrays.
        """
        return ReferenceConfidences(self.confidences[:models], self.member[:models])

    def require_records(self, confidences: FloatArray) -> None:
        """Refuse confidences of a target whose number of records differs.

        Args:
            confidences: The target's confidences.

        Raises:
            InvalidArgument: If the shape is not ``(records,)``.
        """
        if confidences.shape != self.confidences.shape[1:]:
            records = self.confidences.shape[1]
            raise InvalidArgument(
                "confidences", f"shape {confidences.shape}", f"one for each of {records} records"
            )


@dataclass(frozen=True)
class InOutMeans:
    """Means over the models that trained on each record (in) and over the others (out).

    Attributes:
        in_mean: Shape ``(records,)``; an estimate if no model trained on the record.
        out_mean: Shape ``(records,)``; an estimate if all models trained on the record.
        in_count: How many models trained on each record, shape ``(records,)``.
        out_count: How many models did not, shape ``(records,)``.
    """

    in_mean: FloatArray
    out_mean: FloatArray
    in_count: IntArray
    out_count: IntArray


def in_out_means(values: FloatArray, member: BoolArray) -> InOutMeans:
    """Compute the mean of each record over in-models and over out-models.

    With few models a record may have models on one side alone. The other mean is then estimated
    from this one, shifted by the mean difference over the records that have both.

    Args:
        values: A signal, such as losses, shape ``(models, records)``.
        member: Whether the model trained on the record, shape ``(models, records)``.

    Returns:
        Both means and counts; NaN means if one side has no models at all.
    """
    inside, in_count = _masked_mean(values, member)
    outside, out_count = _masked_mean(values, ~member)
    gap = _mean_difference(inside, outside)
    return InOutMeans(
        np.where(in_count > 0, inside, outside + gap),
        np.where(out_count > 0, outside, inside - gap),
        in_count,
        out_count,
    )


def require_in_models(found: InOutMeans) -> None:
    """Refuse references if no model trained on any of the records.

    Args:
        found: Means and counts of the references.

    Raises:
        InvalidArgument: If no record has an in-model.
    """
    if not found.in_count.any():
        allowed = "models that trained on some of the records; else use an offline attack"
        raise InvalidArgument("references", "models that trained on none", allowed)


def require_out_models(found: InOutMeans) -> None:
    """Refuse references if every model trained on all of the records.

    Args:
        found: Means and counts of the references.

    Raises:
        InvalidArgument: If no record has an out-model.
    """
    if not found.out_count.any():
        allowed = "models that did not train on some of the records"
        raise InvalidArgument("references", "models that trained on all", allowed)


def _masked_mean(values: FloatArray, which: BoolArray) -> tuple[FloatArray, IntArray]:
    """Return the mean over selected models per record, NaN without one, and their number."""
    count = which.sum(axis=0)
    total = np.where(which, values, 0.0).sum(axis=0)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan), count


def _mean_difference(inside: FloatArray, outside: FloatArray) -> float:
    """Return the mean of ``inside - outside``; NaN if one side has no record at all.

    Records with both sides are compared with themselves. If there is none, means over different
    records are compared.
    """
    both = np.isfinite(inside) & np.isfinite(outside)
    if both.any():
        return float((inside[both] - outside[both]).mean())
    known_inside, known_outside = inside[np.isfinite(inside)], outside[np.isfinite(outside)]
    if min(len(known_inside), len(known_outside)) == 0:
        return float("nan")
    return float(known_inside.mean() - known_outside.mean())


# Assignment of records to reference models.


def random_halves(models: int, records: int, *, seed: int) -> BoolArray:
    """Draw a random half of the records for each reference model.

    Every second model gets the complement of the half before it. So with an even number of
    models, each record is in the training set of exactly half of them.

    Args:
        models: Number of models; at least 1.
        records: Number of records; at least 2.
        seed: Seed of the draw.

    Returns:
        Whether the model trains on the record, shape ``(models, records)``.

    Raises:
        InvalidArgument: If a count is too small or no whole number.

    Example:
        >>> random_halves(models=2, records=4, seed=0).sum(axis=0)
        array([1, 1, 1, 1])
    """
    require_count("models", models)
    require_count("records", records, least=2)
    generator = np.random.default_rng(seed)
    member = np.zeros((models, records), dtype=bool)
    for first in range(0, models, 2):  # a model and, unless it is the last, its complement
        member[first, generator.permutation(records)[: records // 2]] = True
        member[first + 1 : first + 2] = ~member[first]
    return member
